"""Factors that make the ranges of the weights on both sides of a channel alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import bias, output_axis
from nnc.equalize.scalable import Scalable

_MOST_SWEEPS = 100

#: Ranges that are scaled at once.
_CHUNK = 1 << 20

#: Logarithms of factors that change less than this are settled.
_SETTLED = 1e-3

#: Logarithms of factors are within this of 0: further apart, rounding would show.
MOST_LOG = float(np.log(2.0**12))


@dataclass(frozen=True)
class _Term:
    """Ranges that factors change: those of a layer's rows or columns, or of its bias."""

    ids: np.ndarray
    """[groups, rows or columns]."""
    ranges: np.ndarray
    """float32 [groups, rows, columns]; the terms of a layer share it."""
    axis: int
    """Of the ranges, which the ids are along: 1 or 2."""
    across: np.ndarray
    """The ids along the other axis, 0 where no factor is."""

    @property
    def sign(self) -> int:
        """-1: the ranges shrink where s grows, as what writes a channel does."""
        return -1 if self.axis == 1 else 1

    def log(self, ids: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the largest range by id, given those of all factors, and where there is one."""
        scaled = widest(self.ranges, np.exp(-self.sign * logs)[self.across], 3 - self.axis)
        largest = np.zeros(max(int(ids.max()), int(self.ids.max())) + 1)
        np.maximum.at(largest, self.ids, scaled * np.exp(self.sign * logs)[self.ids])
        there = largest[ids] > 0
        return np.log(np.where(there, largest[ids], 1.0)), there

    def holds(self, ids: np.ndarray) -> bool:
        return bool(np.isin(ids, self.ids).any())


def alike(graph: gs.Graph, traced: Scalable) -> np.ndarray:
    """s by id, float64 with s[0] = 1: channels are to be divided by it where they are written.

    For every channel the ranges of the weights that write it and of those that read it become equal:
    s = sqrt(r_out / r_in), Nagel's equation 11, sweep by sweep, as every layer reads some channels and writes others.
    Over several layers r is the geometric mean.
    """
    terms = _terms({each.name: each for each in graph.nodes}, traced)
    logs, together = np.zeros(traced.count), groups(traced)
    touched = [[term for term in terms if term.holds(ids)] for ids in together]
    for _ in range(_MOST_SWEEPS):
        moved = 0.0
        for ids, held in zip(together, touched, strict=True):
            new = np.clip(logs[ids] + _step(ids, held, logs), -MOST_LOG, MOST_LOG)
            moved = max(moved, float(np.abs(new - logs[ids]).max()))
            logs[ids] = new
        if moved < _SETTLED:
            break
    return np.exp(logs)


def groups(traced: Scalable) -> list[np.ndarray]:
    """Ids that lie in the same layers, in the order of execution."""
    found, seen = [], np.zeros(traced.count, bool)
    seen[0] = True
    for _, written in traced.layers.values():
        ids = np.unique(written[~seen[written]])
        seen[ids] = True
        found += [ids] if ids.size else []
    return found


def _terms(nodes: dict[str, gs.Node], traced: Scalable) -> list[_Term]:
    """The ranges of all weights, and of biases: a channel of small weights and a large bias is not small."""
    terms = []
    for name, (read, written) in traced.layers.items():
        ranges = extent(nodes[name])
        rows, columns = written.reshape(len(ranges), -1), read.reshape(len(ranges), -1)
        terms += [_Term(rows, ranges, 1, columns), _Term(columns, ranges, 2, rows)]
        if (added := bias(nodes[name])) is not None:
            terms.append(_Term(written[None], np.abs(added)[None, :, None], 1, np.zeros((1, 1), np.int64)))
    return terms


def _step(ids: np.ndarray, terms: Sequence[_Term], logs: np.ndarray) -> np.ndarray:
    """What to add to the logarithms of the factors of some ids."""
    sums, counts = {sign: np.zeros(len(ids)) for sign in (-1, 1)}, {sign: np.zeros(len(ids)) for sign in (-1, 1)}
    for each in terms:
        log, there = each.log(ids, logs)
        sums[each.sign] += np.where(there, log, 0.0)
        counts[each.sign] += there
    out, into = (sums[sign] / np.maximum(counts[sign], 1) for sign in (-1, 1))
    if counts[-1].any() and counts[1].any():
        return np.where((counts[-1] > 0) & (counts[1] > 0), (out - into) / 2, 0.0)
    sign = -1 if counts[-1].any() else 1  # nothing minds the other side: all channels get one range
    alive, log = counts[sign] > 0, out if sign < 0 else into
    return np.where(alive, sign * (log[alive].mean() - log), 0.0) if alive.any() else np.zeros(len(ids))


def blocks(layer: gs.Node) -> np.ndarray:
    """A layer's weights [groups, outputs, inputs, taps], not copied."""
    W, groups = layer.inputs[1].values, layer.attrs.get("group", 1)
    stored = W.reshape(groups, W.shape[0] // groups, W.shape[1], -1)
    return stored if output_axis(layer) == 0 else stored.swapaxes(1, 2)


def extent(layer: gs.Node) -> np.ndarray:
    """The largest magnitude over the taps of a layer's weights, in their dtype, [groups, outputs, inputs]."""
    W = blocks(layer)
    return np.maximum(W.max(-1), -W.min(-1))


def widest(ranges: np.ndarray, factors: np.ndarray, axis: int) -> np.ndarray:
    """The largest of ranges [groups, rows, columns] along an axis, 1 or 2, times factors [groups, rows or columns].

    float64 [groups, columns or rows]. Block by block: the ranges of one layer may be most of a network.
    """
    groups, rows, columns = ranges.shape
    found = np.zeros((groups, columns if axis == 1 else rows))
    step = max(1, _CHUNK // max(1, groups * columns))
    for part in (slice(start, start + step) for start in range(0, rows, step)):
        if axis == 1:
            scaled = ranges[:, part] * factors[:, part, None]
            np.maximum(found, scaled.max(1), out=found)
        else:
            found[:, part] = (ranges[:, part] * factors[:, None]).max(2, initial=0.0)
    return found
