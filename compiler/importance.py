"""Which channels a network misses least: scores of channels, and the order in which a group loses them.

Scores are by channel id, see nnc.channels; a higher score is a channel to keep.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from nnc import calibrate
from nnc.calibrate import Flow
from nnc.channels import Channels, Group, Use
from nnc.errors import NncError
from nnc.gradient import Gradients
from nnc.layers import Layer
from nnc.rewrite import Context

Importance: TypeAlias = Literal["l1", "l2", "fpgm", "bn-scale", "taylor", "activation", "reconstruction"]

#: Criteria that are computed from calibration data.
NEED_DATA = frozenset({"taylor", "activation", "reconstruction"})

Arrays: TypeAlias = Mapping[str, np.ndarray]

#: Share of the mean of E[x x] that is added to a layer's moments before they are inverted.
_RIDGE = 1e-3

#: Units that leave a group before the others are looked at again: at most this many steps per group.
_STEPS = 64

#: Columns of a layer up to which its moments are inverted: 4608 are 512 channels of 3 x 3.
_MOST_COLUMNS = 4608


@dataclass(frozen=True)
class Ranking:
    """The order in which a group loses its channels, the least important first."""

    ids: np.ndarray
    """int64 [units]."""
    errors: np.ndarray
    """float64 [units + 1], growing: what it costs to have lost the first n."""


def rank(
    importance: Importance,
    graph: gs.Graph,
    channels: Channels,
    groups: Sequence[Group],
    samples: Arrays | None,
    context: Context,
) -> list[Ranking]:
    """The ranking of every group; `samples` are calibration data [batches, *shape] by input name, see calibrate."""
    if importance == "reconstruction":
        assert samples is not None, "the pass needs calibration data"
        return _by_reconstruction(graph, channels, groups, samples, context)
    scores = _scores(importance, graph, channels, groups, samples, context)
    return [_ranked(group, scores[group.ids]) for group in groups]


def _ranked(group: Group, scores: np.ndarray) -> Ranking:
    order = np.argsort(scores, kind="stable")
    mean = scores.mean() or 1.0  # layers differ in the scale of their weights, not in what they are worth
    return Ranking(group.ids[order], np.concatenate([[0.0], np.cumsum(scores[order] / mean)]))


def _scores(
    importance: Importance, graph: gs.Graph, channels: Channels, groups: Sequence[Group], samples: Arrays | None,
    context: Context,
) -> np.ndarray:  # fmt: skip
    """A score by channel id."""
    count = 1 + max([0, *(int(group.ids.max()) for group in groups)])
    match importance:
        case "l1" | "l2" | "fpgm":
            return _mean_over_uses(groups, "producers", count, _NORMS[importance])
        case "bn-scale":
            return _batchnorm_scales(groups, count)
        case "activation":
            assert samples is not None, "the pass needs calibration data"
            return _energies(graph, channels, samples, count)
    assert samples is not None, "the pass needs calibration data"
    return _taylor(graph, channels, samples, count, context)


def _mean_over_uses(
    groups: Sequence[Group], role: str, count: int, norm: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
) -> np.ndarray:
    """The mean, over the layers where a channel lies, of its norm relative to the others of the layer."""
    total, uses = np.zeros(count), np.zeros(count)
    for use in _distinct(use for group in groups for use in getattr(group, role)):
        scores = norm(rows(use), np.where(use.ids < count, use.ids, 0), count)
        here = np.unique(use.ids[(use.ids > 0) & (use.ids < count)])
        total[here] += scores[here] / (scores[here].mean() or 1.0)
        uses[here] += 1
    return total / np.maximum(uses, 1)


def _distinct(uses: object) -> list[Use]:
    return list({(use.node.name, use.input, use.axis): use for use in uses}.values())  # type: ignore[attr-defined]


def rows(use: Use) -> np.ndarray:
    """The constant of a use as float64 [indices along its axis, values]; a quantized one as what it stands for."""
    tensor = use.node.inputs[use.input]
    values = weights(tensor)
    return np.moveaxis(values, use.axis, 0).reshape(values.shape[use.axis], -1)


def weights(tensor: gs.Tensor) -> np.ndarray:
    """The values of a constant, or of what DequantizeLinear makes of one, float64."""
    if isinstance(tensor, gs.Constant):
        return tensor.values.astype(np.float64)
    quantize = tensor.inputs[0]
    if quantize.op != "DequantizeLinear":
        return weights(quantize.inputs[0])
    stored, scale, *zero = quantize.inputs
    values = stored.values.astype(np.float64) if isinstance(stored, gs.Constant) else weights(stored)
    shape = [1] * values.ndim
    if scale.values.size > 1:
        shape[quantize.attrs.get("axis", 1)] = scale.values.size
    shift = zero[0].values.astype(np.float64).reshape(shape) if zero and not zero[0].is_empty() else 0.0
    return (values - shift) * scale.values.astype(np.float64).reshape(shape)


def _l1(rows: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(ids, np.abs(rows).sum(1), count)


def _l2(rows: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    return np.sqrt(np.bincount(ids, np.square(rows).sum(1), count))


def _fpgm(rows: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """Distance of a filter from all others (He et al., Filter pruning via geometric median, CVPR 2019)."""
    squares = np.square(rows).sum(1)
    distances = squares[:, None] + squares[None] - 2 * rows @ rows.T
    return np.bincount(ids, np.sqrt(np.maximum(distances, 0.0)).sum(1), count)


_NORMS = {"l1": _l1, "l2": _l2, "fpgm": _fpgm}


def _batchnorm_scales(groups: Sequence[Group], count: int) -> np.ndarray:
    """|gamma| (Liu et al., Learning efficient convolutional networks through network slimming, ICCV 2017)."""
    total, uses = np.zeros(count), np.zeros(count)
    for use in _distinct(use for group in groups for use in group.others):
        if use.node.op == "BatchNormalization" and use.input == 1:
            ids = np.where(use.ids < count, use.ids, 0)
            total += np.bincount(ids, np.abs(rows(use))[:, 0], count)
            uses += np.bincount(ids, minlength=count)
    for group in groups:
        if not uses[group.ids].all():
            raise NncError(
                f"importance 'bn-scale': no BatchNormalization scales the channels of '{group.name}'",
                "prune before fold-batchnorm, exclude the layer, or choose another importance",
            )
    return total / np.maximum(uses, 1)


def _read_tensors(graph: gs.Graph, channels: Channels) -> dict[str, gs.Tensor]:
    """What layers read of channels that can be removed, by name."""
    nodes = [node for node in graph.nodes if node.name in channels.layers]
    return {node.inputs[0].name: node.inputs[0] for node in nodes if channels.of(node.inputs[0]) is not None}


def _energies(graph: gs.Graph, channels: Channels, samples: Arrays, count: int) -> np.ndarray:
    """Mean of the squared activations that layers read."""
    flow, total, uses = Flow(graph, samples), np.zeros(count), np.zeros(count)
    found = _read_tensors(graph, channels)
    for node in graph.nodes:
        for tensor in node.inputs:
            if found.pop(tensor.name, None) is None:
                continue
            flow.run_before(node)
            axis, ids = channels.axes[tensor.name]
            energy = _along(np.square(flow.value(tensor)).mean(0, dtype=np.float64), axis)
            energy /= energy.mean() or 1.0
            known = np.where(ids < count, ids, 0)
            total += np.bincount(known, energy, count)
            uses += np.bincount(known, minlength=count)
    return total / np.maximum(uses, 1)


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean over all axes but one."""
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).mean(1)


def _taylor(graph: gs.Graph, channels: Channels, samples: Arrays, count: int, context: Context) -> np.ndarray:
    """What the loss would change to first order (Molchanov et al., Importance estimation, CVPR 2019).

    The loss is the cross-entropy with labels drawn from what the network itself predicts, so that none are needed.
    """
    tensors = _read_tensors(graph, channels)
    network = Gradients(graph, list(tensors), seed=context.seed, threads=context.threads)
    total = np.zeros(count)
    batches = len(next(iter(samples.values())))
    for index in range(batches):
        context.progress("gradients", index, batches)
        activations, gradients = network.run({name: values[index] for name, values in samples.items()})
        for name in tensors:
            axis, ids = channels.axes[name]
            gates = np.moveaxis(activations[name] * gradients[name], axis, 0)
            known = np.where(ids < count, ids, 0)
            if axis == 0:
                total += np.bincount(known, np.square(gates.reshape(len(gates), -1).sum(1)), count)
            else:  # a gate per sample: the first of the other axes is the batch
                summed = gates.reshape(len(gates), gates.shape[1], -1).sum(2)
                total += np.square([np.bincount(known, each, count) for each in summed.T]).sum(0)
    return total / batches


# --- Reconstruction


@dataclass
class _Block:
    """What one layer reads of a group: its share of the inverse moments, and the weights that go with it."""

    inverse: np.ndarray
    """[n, n] of the inverse of E[x x^T]."""
    W: np.ndarray
    """[K, n]."""
    columns: dict[int, np.ndarray]
    """Columns of the block by channel id."""
    weight: float
    """1 / E[y^2]: errors count relative to the layer's output."""

    def costs(self, ids: np.ndarray) -> np.ndarray:
        """What the loss of each channel adds to the error when all other columns are refitted.

        W_c (P_cc)^-1 W_c^T with P the inverse moments: the optimal brain surgeon of Hassibi and Stork (1993) for the
        columns of a channel together.
        """
        costs = np.zeros(len(ids))
        by_size: dict[int, list[int]] = {}
        for index, one in enumerate(ids.tolist()):
            if one in self.columns:
                by_size.setdefault(len(self.columns[one]), []).append(index)
        for indices in by_size.values():
            columns = np.stack([self.columns[int(ids[index])] for index in indices])
            own = self.inverse[columns[:, :, None], columns[:, None]]
            W = self.W[:, columns].transpose(1, 2, 0)
            costs[indices] = np.einsum("ctk,ctk->c", W, np.linalg.solve(own, W))
        return np.maximum(costs, 0.0) * self.weight

    def lose(self, ids: np.ndarray) -> None:
        """Refit the other columns without those of the channels."""
        lost = np.concatenate(
            [np.zeros(0, np.int64), *(self.columns.pop(one) for one in ids.tolist() if one in self.columns)]
        )
        if lost.size:
            shared = np.linalg.solve(self.inverse[np.ix_(lost, lost)], self.inverse[lost])
            self.W -= self.W[:, lost] @ shared
            self.inverse -= self.inverse[:, lost] @ shared


def _by_reconstruction(
    graph: gs.Graph, channels: Channels, groups: Sequence[Group], samples: Arrays, context: Context
) -> list[Ranking]:
    """Channels leave in the order in which the layers that read them can make up for them by least squares."""
    blocks: list[list[_Block]] = [[] for _ in groups]
    flow = Flow(graph, samples)
    readers = [
        node for node in graph.nodes if any(use.node.name == node.name for group in groups for use in group.consumers)
    ]
    for index, node in enumerate(readers):
        context.progress("moments", index, len(readers))
        flow.run_before(node)
        for block, group in _blocks(node, channels, groups, flow, context.seed):
            blocks[group].append(block)
    rankings = []
    for index, (group, mine) in enumerate(zip(groups, blocks, strict=True)):
        context.progress("rank channels", index, len(groups))
        rankings.append(_eliminated(group, mine))
    return rankings


def _blocks(
    node: gs.Node, channels: Channels, groups: Sequence[Group], flow: Flow, seed: int
) -> list[tuple[_Block, int]]:
    """The part of a layer's moments that belongs to each group, with the group's index."""
    ids, x = channels.read(node), flow.value(node.inputs[0])
    layer = Layer.of(node)
    if layer is None or layer.columns > _MOST_COLUMNS:
        return _diagonal_blocks(node, channels, groups, x)
    moments = calibrate.input_moments(layer, x, seed)
    found = []
    taps = layer.columns * layer.groups // len(ids)
    for part, own in enumerate(ids.reshape(layer.groups, -1)):
        W, xx = layer.matrix[part], moments[part]
        energy = float(np.einsum("kd,kd->", W @ xx, W)) * layer.groups
        inverse = np.linalg.inv(xx + (_RIDGE * np.trace(xx) / len(xx) + 1e-30) * np.eye(len(xx)))
        for index, group in enumerate(groups):
            mine = np.flatnonzero(np.isin(own, group.ids))
            if mine.size:
                columns = (mine[:, None] * taps + np.arange(taps)).reshape(-1)
                places = _places(own[mine], taps)
                found.append(
                    (
                        _Block(inverse[np.ix_(columns, columns)], W[:, columns].copy(), places, 1 / (energy or 1.0)),
                        index,
                    )
                )
    return found


def _places(ids: np.ndarray, taps: int) -> dict[int, np.ndarray]:
    """The columns of each channel in a block whose input channels are `ids`."""
    spread = np.repeat(ids, taps)
    return {int(one): np.flatnonzero(spread == one) for one in np.unique(ids)}


def _diagonal_blocks(
    node: gs.Node, channels: Channels, groups: Sequence[Group], x: np.ndarray
) -> list[tuple[_Block, int]]:
    """The same for a layer whose moments are not at hand: its inputs count as uncorrelated."""
    ids = channels.read(node)
    axis = 1 if node.op in ("Conv", "ConvTranspose") else len(node.inputs[0].shape) - 1
    energy = _along(np.square(x).mean(0, dtype=np.float64), axis)
    use = next(use for group in groups for use in group.consumers if use.node.name == node.name)
    strength = energy * np.square(rows(use)).sum(1) if len(use.ids) == len(ids) else energy
    total = float(strength.sum()) or 1.0
    found = []
    for index, group in enumerate(groups):
        mine = np.flatnonzero(np.isin(ids, group.ids))
        if mine.size:
            W = np.sqrt(strength[mine])[None]
            found.append((_Block(np.eye(len(mine)), W, _places(ids[mine], 1), 1 / total), index))
    return found


def _eliminated(group: Group, blocks: Sequence[_Block]) -> Ranking:
    """Let channels go, the cheapest first, until none is left."""
    left, order, errors = group.ids.copy(), [], [0.0]
    while left.size:
        costs = sum((block.costs(left) for block in blocks), np.zeros(len(left)))
        chosen = np.argsort(costs, kind="stable")[: max(1, len(group.ids) // _STEPS)]
        for block in blocks:
            block.lose(left[chosen])
        order += left[chosen].tolist()
        errors += (errors[-1] + np.cumsum(costs[chosen])).tolist()
        left = np.delete(left, chosen)
    return Ranking(np.array(order, np.int64), np.array(errors))
