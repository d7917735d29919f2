"""Which channels a network misses least: scores of channels, and the order in which a group loses them.

Scores are by channel id, see nnc.channels; a higher score is a channel to keep.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from nnc import calibrate
from nnc.calibrate import Flow
from nnc.channels import Channels, Group, Use
from nnc.compression import elimination
from nnc.compression.elimination import Ranking
from nnc.errors import NncError
from nnc.gradient import Gradients
from nnc.layers import dequantized
from nnc.rewrite import Context

Importance: TypeAlias = Literal["l1", "l2", "fpgm", "bn-scale", "taylor", "activation", "reconstruction"]

#: Criteria that are computed from calibration data.
NEED_DATA = frozenset({"taylor", "activation", "reconstruction"})

Arrays: TypeAlias = Mapping[str, np.ndarray]

#: Weights that are looked at at a time.
_BLOCK_VALUES = 1 << 22


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
        return elimination.rank(graph, channels, groups, samples, context)
    scores = _scores(importance, graph, channels, groups, samples, context)
    curve = _additive if importance == "taylor" else _as_information
    return [_ranked(group, scores[group.ids], curve) for group in groups]


def _ranked(group: Group, scores: np.ndarray, curve: Callable[[Group, np.ndarray], np.ndarray]) -> Ranking:
    order = np.argsort(scores, kind="stable")
    return Ranking(group.ids[order], curve(group, np.concatenate([[0.0], np.cumsum(scores[order])])))


def _additive(group: Group, lost: np.ndarray) -> np.ndarray:
    """What is lost of the loss is lost of the same whole, whatever the layer."""
    return lost


def _as_information(group: Group, lost: np.ndarray) -> np.ndarray:
    """-log(1 - s) of the share s that is lost, once for each layer that writes the channels.

    Scores of other layers are no measure: a layer suffers with what is left of its own, and the last channels of a
    narrow one are not to be had for the price of the first ones of another.
    """
    shares = np.minimum(lost / (lost[-1] or 1.0), 1 - 1e-9)
    return -np.log1p(-shares) * max(1, len({use.node.name for use in group.producers}))


def _scores(
    importance: Importance, graph: gs.Graph, channels: Channels, groups: Sequence[Group], samples: Arrays | None,
    context: Context,
) -> np.ndarray:  # fmt: skip
    """A score by channel id."""
    count = 1 + max([0, *(int(group.ids.max()) for group in groups)])
    match importance:
        case "l1" | "l2" | "fpgm":
            return _sum_over_uses(groups, "producers", count, _NORMS[importance])
        case "bn-scale":
            return _batchnorm_scales(groups, count)
        case "activation":
            assert samples is not None, "the pass needs calibration data"
            return _energies(graph, channels, samples, count)
    assert samples is not None, "the pass needs calibration data"
    return _taylor(graph, channels, samples, count, context)


def _sum_over_uses(
    groups: Sequence[Group], role: str, count: int, norm: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
) -> np.ndarray:
    """The sum, over the layers where a channel lies, of its norm relative to the mean of the layer's channels.

    Layers differ in the scale of their weights, not in what they are worth; a channel of many layers is worth more.
    """
    total = np.zeros(count)
    for use in _distinct(use for group in groups for use in getattr(group, role)):
        scores = norm(rows(use), np.where(use.ids < count, use.ids, 0), count)
        here = np.unique(use.ids[(use.ids > 0) & (use.ids < count)])
        total[here] += scores[here] / (scores[here].mean() or 1.0)
    return total


def _distinct(uses: object) -> list[Use]:
    return list({(use.node.name, use.input, use.axis): use for use in uses}.values())  # type: ignore[attr-defined]


def rows(use: Use) -> np.ndarray:
    """The constant of a use as [indices along its axis, values]; a quantized one as what it stands for."""
    tensor = use.node.inputs[use.input]
    values = tensor.values if isinstance(tensor, gs.Constant) else dequantized(tensor)
    return np.moveaxis(values, use.axis, 0).reshape(values.shape[use.axis], -1)


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Columns of [n, values] in float64, some at a time: the largest layers have 100 million weights."""
    step = max(1, _BLOCK_VALUES // max(1, len(rows)))
    return (rows[:, start : start + step].astype(np.float64) for start in range(0, rows.shape[1], step))


def _l1(rows: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(ids, sum(np.abs(block).sum(1) for block in _blocks(rows)), count)


def _l2(rows: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """The norm's square: what is lost with several channels adds up."""
    return np.bincount(ids, sum(np.square(block).sum(1) for block in _blocks(rows)), count)


def _fpgm(rows: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """Distance of a filter from all others (He et al., Filter pruning via geometric median, CVPR 2019)."""
    products = sum(block @ block.T for block in _blocks(rows))
    squares = np.diagonal(products)
    distances = squares[:, None] + squares - 2 * products
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
    flow, total = Flow(graph, samples), np.zeros(count)
    found = _read_tensors(graph, channels)
    for node in graph.nodes:
        for tensor in node.inputs:
            if found.pop(tensor.name, None) is None:
                continue
            flow.run_before(node)
            axis, ids = channels.axes[tensor.name]
            mean, var = calibrate.channel_moments(flow.value(tensor), axis)
            energy = mean**2 + var
            if not np.isfinite(energy).all():
                raise NncError(
                    f"'{tensor.name}' is not finite on the calibration data", "check the data and [data.preprocess]"
                )
            energy /= energy.mean() or 1.0
            total += np.bincount(np.where(ids < count, ids, 0), energy, count)
    return total


def _taylor(graph: gs.Graph, channels: Channels, samples: Arrays, count: int, context: Context) -> np.ndarray:
    """What the loss would change to first order (Molchanov et al., Importance estimation, CVPR 2019).

    The loss is the cross-entropy with labels drawn from what the network itself predicts, so that none are needed.
    """
    tensors = _read_tensors(graph, channels)
    try:
        network = Gradients(graph, list(tensors), seed=context.seed, threads=context.threads)
    except NncError as error:
        raise NncError(f"importance 'taylor': {error.message}", "choose another importance") from error
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
