"""The layers of a network with what the emulation says of them, beside the predictions of the roofline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import onnx_graphsurgeon as gs

from nnc import halving
from nnc.display import units
from nnc.simulation.analytic import Layer, Prediction
from nnc.simulation.emulated.latency import Step
from nnc.simulation.kernels import Kernel, kernels

#: What `Step` says that is summed up over the steps of a layer.
_SUMMED = ("milliseconds", "cycles", "instructions", "accesses", "l1_misses", "l2_misses", "dram_bytes")


class Built(Protocol):
    """nnc.lowering.Kernel: what a step of a library computes."""

    @property
    def name(self) -> str: ...
    @property
    def nodes(self) -> list[str]: ...


def layers(
    graph: gs.Graph, predicted: Prediction, built: Sequence[Built], steps: Sequence[Step], halves: bool
) -> list[dict[str, Any]]:
    """The layers of `predicted` as the report has them, with the figures of the steps of the library built of `graph`
    for a unit that computes in float16 (`halves`), or does not.

    "latency_ms" is the emulation's and "analytic_ms" the roofline's; "cycles" are those of the core that takes the
    longest, "ipc" its instructions per cycle while it does not wait, "l1_misses" and "l2_misses" lines of 64 bytes that
    all cores fetch, "dram_bytes" what they move from and to memory. "kernels" names the steps, and "why" says what the
    latency consists of. Steps that belong to no layer follow at the end.
    """
    owners = _owners(kernels(halving.executed(graph, halves)))
    spent: dict[int, list[int]] = {}
    for number, each in enumerate(built):
        spent.setdefault(next((owners[node] for node in each.nodes if node in owners), -1 - number), []).append(number)
    made = [
        _merged(asdict(layer), [steps[i] for i in spent.get(index, ())], [built[i].name for i in spent.get(index, ())])
        for index, layer in enumerate(predicted.layers)
    ]
    others = (number for owned in spent for number in spent[owned] if owned < 0)
    return [*made, *(_merged(asdict(_other(built[i])), [steps[i]], [built[i].name]) for i in others)]


def _owners(executed: Iterable[Kernel]) -> dict[str, int]:
    """The index of the layer that computes a node, by the node's name and by those of its outputs."""
    owners: dict[str, int] = {}
    for index, kernel in enumerate(executed):
        for node in kernel.nodes:
            for name in (node.name, *(tensor.name for tensor in node.outputs)):
                owners.setdefault(name, index)
    return owners


def _other(built: Built) -> Layer:
    """A step that only moves values to where others want them."""
    return Layer(built.name, "copy", (), 0, 0, 0.0, "cache", "float32")


def _merged(layer: dict[str, Any], steps: Sequence[Step], names: Sequence[str]) -> dict[str, Any]:
    sums = {name: sum(getattr(step, name) for step in steps) for name in _SUMMED}
    longest = max(steps, key=lambda step: step.milliseconds, default=None)
    made = {
        **layer,
        "analytic_ms": layer["latency_ms"],
        "latency_ms": float(sums.pop("milliseconds")),
        "bound": longest.bound if longest else layer["bound"],
        "kernels": list(names),
        **sums,
        "ipc": longest.ipc if longest else None,
    }
    return made | {"why": _why(made)}


def _why(layer: Mapping[str, Any]) -> str:
    """'2.05 instructions per cycle; 3.07 MB of memory traffic': what the latency consists of."""
    if not layer["kernels"]:
        return "part of another layer's kernel"
    if layer["bound"] == "memory":
        return f"waits for {units.size(layer['dram_bytes'])} of memory traffic"
    if layer["bound"] == "cache":
        return f"moves {units.size(64 * layer['l1_misses'])} from level 2 on into the first cache"
    if layer["bound"] == "dispatch":
        return "waking up the other cores takes longer than its work"
    macs = f"{units.digits(layer['macs'] / layer['instructions'])} MACs per instruction, " if layer["macs"] else ""
    return f"{macs}{units.digits(layer['ipc'])} instructions per cycle"
