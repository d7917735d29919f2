"""What a model consists of: its layers, what they cost, and how long a target takes for them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from nnc import channels, measure
from nnc import graph as graphs
from nnc.context import Progress, silent
from nnc.errors import NncError
from nnc.report import remarks
from nnc.simulation.analytic import predict
from nnc.simulation.kernels import Kernel, kernels, peak_bytes
from nnc.target import Target


def inspect(
    path: Path,
    target: Target | None,
    shapes: graphs.Shapes,
    threads: int | None = None,
    groups: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The layers of a model, one per fused kernel, and their totals; with predictions where there is a target.

    {"model", "target", "totals": {...}, "layers": [{"name", "op", "shape", "macs", "params", "latency_ms", "bound"}]}

    With `groups` also which channels go together, and why others stay, by the layer's name:

    {"groups": [{"name", "channels", "written_by": [...], "read_by": [...], "followed_by": [...]}], "fixed": {...}}

    Raises NncError for a model that can't be read, for `threads` without a target, and for more than it has cores.
    """
    if target is not None:
        target.require_threads(threads)
    elif threads is not None:
        raise NncError(f"--threads {threads}: nothing is predicted without --target", "such as --target x86")
    progress("read the model", 0, 2)
    graph = graphs.load(path, shapes)
    progress("look at its layers", 1, 2)
    inspected = _inspected(path, graph, target, threads, groups)
    progress("look at its layers", 2, 2)
    return inspected


def totals_of(graph: gs.Graph) -> dict[str, Any]:
    """The "totals" that need no target: nnc.measure.Figures, and "peak_activation_bytes"."""
    return asdict(measure.measure(graph)) | {"peak_activation_bytes": peak_bytes(graph, kernels(graph))}


def _inspected(path: Path, graph: gs.Graph, target: Target | None, threads: int | None, groups: bool) -> dict[str, Any]:
    totals = totals_of(graph)
    inspected: dict[str, Any] = {"model": path.name, "target": target.label if target else None, "totals": totals}
    if groups:
        traced = channels.trace(graph)
        inspected |= {"groups": [_group(group) for group in traced.groups], "fixed": traced.fixed}
    if target is None:
        return inspected | {"layers": [_layer(kernel) for kernel in kernels(graph)], "remarks": []}
    predicted = predict(graph, target, threads)
    totals |= {
        "latency_ms": predicted.latency_ms,
        "peak_activation_bytes": predicted.peak_activation_bytes,  # of what the target executes, perhaps in float32
        "energy_mj": predicted.energy_mj,
        "latency_error": predicted.error,
    }
    layers = [asdict(layer) for layer in predicted.layers]
    return inspected | {"layers": layers, "remarks": remarks(predicted, target)}


def _layer(kernel: Kernel) -> dict[str, Any]:
    return {
        "name": kernel.anchor.name,
        "op": "+".join(node.op for node in kernel.nodes),
        "shape": list(kernel.outputs[0].shape or ()),
        "macs": kernel.macs,
        "params": sum(map(measure.params, kernel.nodes)),
    }


def _group(group: channels.Group) -> dict[str, Any]:
    places = {"written_by": group.producers, "read_by": group.consumers, "followed_by": group.others}
    names = {key: list(dict.fromkeys(use.node.name for use in uses)) for key, uses in places.items()}
    return {"name": group.name, "channels": len(group.ids), **names}
