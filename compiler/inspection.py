"""What a model consists of: its layers, what they cost, and how long a target takes for them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnc import channels, measure
from nnc import graph as graphs
from nnc.report import remarks
from nnc.simulation.analytic import predict
from nnc.simulation.kernels import Kernel, kernels, peak_bytes
from nnc.target import Target


def inspect(
    path: Path, target: Target | None, shapes: graphs.Shapes, threads: int | None = None, groups: bool = False
) -> dict[str, Any]:
    """The layers of a model, one per fused kernel, and their totals; with predictions where there is a target.

    {"model", "target", "totals": {...}, "layers": [{"name", "op", "shape", "macs", "params", "latency_ms", "bound"}]}

    With `groups` also which channels go together, and why others stay, by the layer's name:

    {"groups": [{"name", "channels", "written_by": [...], "read_by": [...], "followed_by": [...]}], "fixed": {...}}
    """
    if target is not None:
        target.require_threads(threads)
    graph = graphs.load(path, shapes)
    totals = asdict(measure.measure(graph)) | {"peak_activation_bytes": peak_bytes(graph, kernels(graph))}
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
