"""Factors for weights with a scale per channel: they balance the noise of activations and of weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc.calibrate.extremes import Extremes
from nnc.equalize.ranges import MOST_LOG, blocks, extent, groups, widest
from nnc.equalize.scalable import Scalable


@dataclass(frozen=True)
class Noise:
    """What tells how much quantization disturbs layers whose weights have a scale for every output channel."""

    activations: Mapping[str, Extremes]
    """Of the channels of what layers read, by the tensor's name."""
    weight_bits: int
    activation_bits: int = 8


def quietest(graph: gs.Graph, traced: Scalable, noise: Noise) -> np.ndarray:
    """s by id, float64 with s[0] = 1, so that the layers that read the channels are disturbed least.

    Rows don't mind being scaled here. A layer's noise is that of activations, whose step is set by their widest
    channel, and that of weights, whose steps are set by their largest columns; s = a^p / w^q, of ranges a of
    activations and w of columns, moves one into the other (SmoothQuant, p + q = 1). Of some p and q the best is taken,
    by the power of the noise over that of the signal, and none where it gains little.
    """
    nodes = {each.name: each for each in graph.nodes}
    readers = [
        _Reader(each[0], nodes[name], noise.activations[nodes[name].inputs[0].name], noise)
        for name, each in traced.layers.items()
        if nodes[name].inputs[0].name in noise.activations
    ]
    logs = np.zeros(traced.count)
    for ids in groups(traced):
        reading = [each for each in readers if np.isin(each.ids, ids).any()]
        logs[ids] = _quietest(ids, reading, logs) if reading else 0.0
    return np.exp(logs)


class _Reader:
    """The noise of one layer by the factors of what it reads."""

    def __init__(self, ids: np.ndarray, layer: gs.Node, read: Extremes, noise: Noise) -> None:
        self.ids, self._read = ids, read
        self._extent = extent(layer)
        self._columns = self._extent.max(1).reshape(-1)
        W = blocks(layer)
        self._power = np.einsum("goit,goit->gi", W, W, dtype=np.float64).reshape(-1)
        self._moment = np.square(read.mean) + np.square(read.deviation)
        self._taps = W.shape[-1]
        self._levels = 2.0**noise.activation_bits - 1, 2.0**noise.weight_bits - 1
        self._signal = float((self._power * self._moment).sum()) or 1.0

    def ranges(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The largest magnitudes of activations and of columns, by id; 0 where there are none."""
        found = np.zeros((2, max(int(ids.max()), int(self.ids.max())) + 1))
        for row, values in zip(found, (self._read.largest, self._columns), strict=True):
            np.maximum.at(row, self.ids, values)
        return found[0, ids], found[1, ids]

    def noise(self, logs: np.ndarray) -> float:
        """Power of the noise over that of the signal."""
        s = np.exp(logs[self.ids])
        step = ((self._read.high / s).max(initial=0.0) - (self._read.low / s).min(initial=0.0)) / self._levels[0]
        count = len(self._extent)
        steps = 2 * widest(self._extent, s.reshape(count, -1), 2) / self._levels[1]
        read = (self._moment / s**2).reshape(count, -1).sum(1) * self._taps
        weights = float((np.square(steps).sum(1) * read).sum())
        return float((step**2 * (s**2 * self._power).sum() + weights) / self._signal)


#: The share of the noise that a change of factors has to save.
_GAIN = 0.1

_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def _quietest(ids: np.ndarray, readers: Sequence[_Reader], logs: np.ndarray) -> np.ndarray:
    """Logarithms of the factors of the ids at which their readers are disturbed least."""
    found = [each.ranges(ids) for each in readers]
    activations, columns = (_log_mean([pair[side] for pair in found]) for side in (0, 1))

    def noise(step: np.ndarray) -> float:
        tried = logs.copy()
        tried[ids] = step
        return sum(each.noise(tried) for each in readers)

    none = np.zeros(len(ids))
    steps = [np.clip(p * activations - q * columns, -MOST_LOG, MOST_LOG) for p in _POWERS for q in _POWERS]
    best = min(steps, key=noise)
    return best if noise(best) < (1 - _GAIN) * noise(none) else none


def _log_mean(ranges: Sequence[np.ndarray]) -> np.ndarray:
    """Logarithms about their mean of the geometric means of ranges; 0 where one is 0."""
    alive = np.all([each > 0 for each in ranges], axis=0)
    logs = np.mean([np.log(np.where(alive, each, 1.0)) for each in ranges], axis=0)
    return np.where(alive, logs - (logs[alive].mean() if alive.any() else 0.0), 0.0)
