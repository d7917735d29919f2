"""The order in which a network can lose its channels, found by least squares.

A channel is worth what the layers that read it can't make up for when all their other inputs are refitted. The channel
that is worth least goes, the weights of the others take over, and so on (optimal brain surgeon, Hassibi and Stork 1993,
for the columns of a channel together; Kurtic, Frantar, Alistarh, ZipLM, 2023, arXiv:2302.04089).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc import calibrate
from nnc.calibrate import Flow
from nnc.channels import Channels, Group, Use
from nnc.compression import sensitivity
from nnc.factorize.linear import blocks_of, positive_inverse
from nnc.layers import Layer, dequantized
from nnc.rewrite import Context

#: Share of the mean of E[x x] that is added to a layer's moments before they are inverted. It stands for the errors of
#: the layers in front, which the weights that take over would multiply: with less, plans that prune fall behind what
#: they predict.
_RIDGE = 0.05

#: Steps in which a group loses its channels: the others are looked at again after each.
_STEPS = 64

#: Share of columns whose channels are left at which a block lets go of the others.
_SPARSE = 0.75

#: Columns of a layer up to which its moments are inverted: 4608 are 512 channels of 3 x 3.
MOST_COLUMNS = 4608


@dataclass(frozen=True)
class Ranking:
    """The order in which a group loses its channels, the least important first."""

    ids: np.ndarray
    """int64 [units]."""
    errors: np.ndarray
    """float64 [units + 1], growing: what it costs to have lost the first n."""


def rank(
    graph: gs.Graph,
    channels: Channels,
    groups: Sequence[Group],
    samples: Mapping[str, np.ndarray],
    context: Context,
    weights: Mapping[str, np.ndarray] | None = None,
) -> list[Ranking]:
    """The ranking of every group; errors are shares of the energy of the outputs.

    `weights` are the sensitivities by layer (nnc.compression.sensitivity), which are measured where none are given.
    """
    seen = Eliminations(channels, groups)
    readers = [node for node in graph.nodes if seen.reads(node)]
    if weights is None:
        weights = sensitivity.output_sensitivity(graph, readers, samples, context)
    flow = Flow(graph, samples)
    for index, node in enumerate(readers):
        context.progress("moments", index, len(readers))
        flow.run_before(node)
        seen.add(node, flow, weights.get(node.name), moments_of(node, flow, context.seed))
    return seen.rankings(context)


def moments_of(node: gs.Node, flow: Flow, seed: int, most: int = MOST_COLUMNS) -> np.ndarray | None:
    """E[x x^T] [g, D, D] of what a node reads, to which the flow has run; None where it is no layer, or of more columns
    than `most`."""
    layer = Layer.of(node)
    if layer is None or layer.columns > most:
        return None
    return calibrate.input_moments(layer, flow.value(node.inputs[0]), seed)


class Eliminations:
    """What is seen of groups of channels, reader by reader, and then the order in which they lose them."""

    def __init__(self, channels: Channels, groups: Sequence[Group]) -> None:
        self._channels, self._groups = channels, groups
        self._uses = {use.node.name: use for group in groups for use in group.consumers}
        self._blocks: dict[int, list[_Block | _Apart]] = defaultdict(list)

    def reads(self, node: gs.Node) -> bool:
        """Whether a node reads channels of the groups."""
        return node.name in self._uses

    def add(self, node: gs.Node, flow: Flow, weights: np.ndarray | None, moments: np.ndarray | None) -> None:
        """See what a node reads, to which the flow has run.

        `weights` [K] are what the squared error of each of its outputs costs, `moments` as of `moments_of`.
        """
        use = self._uses[node.name]
        x = node.inputs[1 - use.input]
        located = self._channels.of(x)
        assert located is not None, "what can be removed lies along an axis"
        reader = _Reader(use, self._channels.read(node), flow.value(x), located[0], weights, moments)
        for place, block in reader.blocks(self._groups):
            self._blocks[place].append(block)

    def rankings(self, context: Context) -> list[Ranking]:
        """The ranking of every group."""
        found = []
        for index, group in enumerate(self._groups):
            context.progress("rank channels", index, len(self._groups))
            found.append(_eliminated(group.ids, self._blocks.pop(index, [])))
        return found


def _eliminated(ids: np.ndarray, blocks: Sequence["_Block | _Apart"]) -> Ranking:
    """Let channels go, the cheapest first, until none is left."""
    left, order, errors = ids.copy(), [], [0.0]
    while left.size:
        costs = sum((block.costs(left) for block in blocks), np.zeros(len(left)))
        chosen = np.argsort(costs, kind="stable")[: max(1, len(ids) // _STEPS)]
        for block in blocks:
            block.lose(left[chosen])
        order += left[chosen].tolist()
        errors += (errors[-1] + np.cumsum(costs[chosen])).tolist()
        left = np.delete(left, chosen)
    return Ranking(np.array(order, np.int64), np.array(errors))


@dataclass
class _Block:
    """What one layer reads of one group: a part of its inverse moments, and the weights that go with it."""

    inverse: np.ndarray
    """[n, n], rows and columns of the inverse of E[x x^T]."""
    W: np.ndarray
    """[K, n], each output scaled by the root of what its squared error costs."""
    columns: dict[int, np.ndarray]
    """Columns of the block by channel id."""

    def costs(self, ids: np.ndarray) -> np.ndarray:
        """What each channel c adds when it goes and all others are refitted: W_c (P_cc)^-1 W_c^T, P the inverse."""
        costs = np.zeros(len(ids))
        by_size: dict[int, list[int]] = defaultdict(list)
        for index, one in enumerate(ids.tolist()):
            if one in self.columns:
                by_size[len(self.columns[one])].append(index)
        for indices in by_size.values():
            columns = np.stack([self.columns[int(ids[index])] for index in indices])
            own = self.inverse[columns[:, :, None], columns[:, None]]
            W = self.W[:, columns].transpose(1, 2, 0)
            costs[indices] = np.einsum("ctk,ctk->c", W, np.linalg.solve(own, W))
        return np.maximum(costs, 0.0)

    def lose(self, ids: np.ndarray) -> None:
        """Refit the other columns without those of the channels."""
        columns = [self.columns.pop(one) for one in ids.tolist() if one in self.columns]
        if columns:
            gone = np.concatenate(columns)
            shared = np.linalg.solve(self.inverse[np.ix_(gone, gone)], self.inverse[gone])
            for matrix in (self.W, self.inverse):
                lost = matrix[:, gone]
                for rows in blocks_of(len(matrix), matrix.shape[1]):  # no copy of the whole
                    matrix[rows] -= lost[rows] @ shared
            if sum(map(len, self.columns.values())) < _SPARSE * len(self.inverse):
                self._leave_out_lost()

    def _leave_out_lost(self) -> None:
        """Let go of the rows and columns of channels that are gone, which nothing reads any more."""
        rest = np.sort(np.concatenate([np.zeros(0, np.int64), *self.columns.values()]))
        self.inverse, self.W = self.inverse[np.ix_(rest, rest)], self.W[:, rest]
        self.columns = {one: np.searchsorted(rest, columns) for one, columns in self.columns.items()}


@dataclass(frozen=True)
class _Apart:
    """What one layer reads of channels that nothing makes up for."""

    ids: np.ndarray
    """int64, ascending."""
    strengths: np.ndarray
    """What each adds when it goes."""

    def costs(self, ids: np.ndarray) -> np.ndarray:
        """What each channel adds when it goes; 0 where the layer doesn't read it."""
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[places] == ids, self.strengths[places], 0.0)

    def lose(self, ids: np.ndarray) -> None:
        """The others stay as they are."""


@dataclass(frozen=True)
class _Reader:
    """A layer that reads channels."""

    use: Use
    """The axis of its weights that is along what it reads."""
    ids: np.ndarray
    """The channel of every input channel or feature."""
    x: np.ndarray
    """What it reads, [batches, *shape]."""
    axis: int
    """The axis of the shape that channels or features are along."""
    weights: np.ndarray | None
    """What the squared error of each output costs; None counts errors relative to all that the layer gives."""
    moments: np.ndarray | None
    """As of `moments_of`."""

    def blocks(self, groups: Sequence[Group]) -> Iterator[tuple[int, "_Block | _Apart"]]:
        """The layer's blocks, with the index of the group of each."""
        layer = Layer.of(self.use.node)
        if layer is None or self.moments is None or layer.columns > MOST_COLUMNS:
            yield from self._independent(groups)
            return
        for ids, inverse, W in self._parts(layer, self.moments):
            taps = W.shape[1] // len(ids)
            for index, group in enumerate(groups):
                mine = np.flatnonzero(np.isin(ids, group.ids))
                if mine.size:
                    columns = (mine[:, None] * taps + np.arange(taps)).reshape(-1)
                    places = np.repeat(ids[mine], taps)
                    by_id = {int(one): np.flatnonzero(places == one) for one in np.unique(places)}
                    yield index, _Block(inverse[np.ix_(columns, columns)], W[:, columns], by_id)

    def _parts(self, layer: Layer, moments: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Input channels, inverse moments and scaled weights of each group of the layer."""
        matrix = layer.matrix
        energy = np.einsum("gkd,gkd->", matrix @ moments, matrix) or 1.0
        weights = np.full(layer.outputs, 1 / energy) if self.weights is None else self.weights
        matrix = matrix * np.sqrt(weights).reshape(*matrix.shape[:2], 1)
        for ids, xx, W in zip(self.ids.reshape(layer.groups, -1), moments, matrix, strict=True):
            yield ids, positive_inverse(xx, _RIDGE * np.trace(xx) / len(xx) or 1.0), W

    def _independent(self, groups: Sequence[Group]) -> Iterator[tuple[int, "_Apart"]]:
        """The same for a layer whose moments are not at hand: its inputs count as uncorrelated."""
        per_channel = np.moveaxis(self.x, self.axis + 1, 0).reshape(len(self.ids), -1)
        strength = per_channel.var(1, dtype=np.float64) * self._energies()
        strength *= 1 / (strength.sum() or 1.0) if self.weights is None else self.weights.mean()
        ids, places = np.unique(self.ids, return_inverse=True)
        block = _Apart(ids, np.bincount(places, strength))
        yield from ((index, block) for index, group in enumerate(groups) if np.isin(group.ids, ids).any())

    def _energies(self) -> np.ndarray:
        """The sum of the squared weights that read each input channel or feature."""
        squares = np.moveaxis(np.square(dequantized(self.use.node.inputs[self.use.input])), self.use.axis, 1)
        outputs, inputs = squares.shape[:2]
        groups = len(self.ids) // inputs  # of a Conv, which all read as many channels
        return squares.reshape(groups, outputs // groups, inputs, -1).sum((1, 3)).reshape(-1)
