"""What a pass reached: the figures of a graph, and what a pass predicted of them beside what came out."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from nnc import verify
from nnc.context import Context
from nnc.errors import NncError
from nnc.measure import measure
from nnc.session import Session

#: Samples of the calibration data on which outputs are compared with the error that a pass predicted.
_COMPARED = 64


def figures(graph: gs.Graph, context: Context) -> dict[str, Any]:
    """The figures of a row that say what a graph costs: params, macs, weight_bytes, nodes and latency_ms."""
    static = measure(graph)
    return {
        "params": static.params,
        "macs": static.macs,
        "weight_bytes": static.weight_bytes,
        "nodes": static.nodes,
        "latency_ms": context.predict(graph).latency_ms,
    }


def reached(
    predicted: Mapping[str, float], before: gs.Graph, after: gs.Graph, measured: Mapping[str, Any], context: Context
) -> dict[str, dict[str, float | None]]:
    """What a pass predicted, between the same figures before and after it; `measured` are those after it."""
    old = figures(before, context)
    if "error" in predicted:
        old, measured = {**old, "error": 0.0}, {**measured, "error": output_error(before, after, context)}
    return {
        name: {"before": old.get(name), "predicted": value, "reached": measured[name]}
        for name, value in predicted.items()
    }


def output_error(before: gs.Graph, after: gs.Graph, context: Context) -> float | None:
    """The relative error of the outputs on the calibration data, or on random inputs where there are none.

    None where they can't be compared, as the row of a pass says: onnxruntime can't run the graph, or the data decide
    the shapes of all outputs.
    """
    if after is before:
        return 0.0
    try:
        snr = _snr_db(before, after, context)
    except NncError:
        return None
    return None if snr is None else 10 ** (-snr / 20)


def _snr_db(before: gs.Graph, after: gs.Graph, context: Context) -> float | None:
    reference, result = (Session(graph, optimized=not verify.rounds(graph)) for graph in (before, after))
    pairs = [
        tuple(verify.of_static_shape(before, session.run(inputs)) for session in (reference, result))
        for inputs in _samples(before, context)
    ]
    expected, found = (
        {name: np.stack([each[name] for each in side]) for name in side[0]} for side in zip(*pairs, strict=True)
    )
    return verify.snr_db(expected, found) if expected else None


def _samples(graph: gs.Graph, context: Context) -> Iterable[verify.Arrays]:
    """Calibration data in batches of the graph's own size, or random inputs."""
    if context.calibration is None:
        return [verify.probe_inputs(graph, context.seed)]
    size = graph.inputs[0].shape[0]
    samples = context.calibration.subset(context.seed, max(_COMPARED // size, 1) * size)
    return (inputs for inputs, _ in samples.full_batches(size))
