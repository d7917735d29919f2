"""Means of channels without data: BatchNormalization says what it writes, a normal distribution what Relu makes of it.

Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019, section 4.2.
"""

import math
from contextlib import suppress

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import Computed, bounds
from nnc.measure import has_shape
from nnc.model.proto import is_standard

_MOVES = ("Dropout", "GlobalAveragePool", "AveragePool", "Identity")


def clipped_mean(mean: np.ndarray, deviation: np.ndarray, low: float, high: float) -> np.ndarray:
    """E[min(max(x, low), high)] of normal x, by channel; low and high may be infinite."""
    result = np.empty_like(mean)
    for index, (m, d) in enumerate(zip(mean.tolist(), deviation.tolist(), strict=True)):
        result[index] = min(max(m, low), high) if d == 0 else _clipped(m, d, low, high)
    return result


def _clipped(mean: float, deviation: float, low: float, high: float) -> float:
    below, above = (low - mean) / deviation, (high - mean) / deviation
    inside = _distribution(above) - _distribution(below)
    ends = (low * _distribution(below) if math.isfinite(low) else 0.0) + (
        high * (1 - _distribution(above)) if math.isfinite(high) else 0.0
    )
    return ends + mean * inside + deviation * (_density(below) - _density(above))


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi) if math.isfinite(x) else 0.0


def _distribution(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def means(graph: gs.Graph) -> dict[str, np.ndarray]:
    """Expected values by channel, float64, of tensors whose channels BatchNormalization tells of, by name."""
    known: dict[str, np.ndarray] = {}
    spread: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for node in graph.nodes:
        output = node.outputs[0]
        if is_standard(node, "BatchNormalization") and all(isinstance(t, gs.Constant) for t in node.inputs[1:3]):
            gamma, beta = (tensor.values.astype(np.float64) for tensor in node.inputs[1:3])
            spread[output.name] = beta, np.abs(gamma)
            known[output.name] = beta
        elif is_standard(node, "Relu", "Clip") and node.inputs[0].name in spread:
            with suppress(Computed):
                known[output.name] = clipped_mean(*spread[node.inputs[0].name], *bounds(node))
        elif is_standard(node, *_MOVES) and node.inputs[0].name in known:
            known[output.name] = known[node.inputs[0].name]
        elif is_standard(node, "Flatten") and node.inputs[0].name in known and has_shape(node.inputs[0], output):
            repeats = output.shape[-1] // known[node.inputs[0].name].size
            known[output.name] = np.repeat(known[node.inputs[0].name], repeats)
        elif is_standard(node, "Add") and all(tensor.name in known for tensor in node.inputs):
            first, second = (known[tensor.name] for tensor in node.inputs)
            if first.size == second.size:
                known[output.name] = first + second
        elif is_standard(node, "Concat") and node.attrs.get("axis") == 1 and all(t.name in known for t in node.inputs):
            known[output.name] = np.concatenate([known[tensor.name] for tensor in node.inputs])
    return known
