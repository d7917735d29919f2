"""What the layers of a network cost as the widths of channel groups and the chains in place of layers change.

The cost of a layer is a C K + b C + c K + d of its input channels C and output channels K, whether it is one
convolution or a chain of them: these four numbers are all that an allocation needs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from scipy.optimize import nnls

from nnc.channels import Channels, Group
from nnc.compression.budget import Metric
from nnc.factorize import Stage
from nnc.layers import Layer
from nnc.measure import macs

#: The widths of all groups, and the milliseconds of every layer by its name.
Latencies: TypeAlias = tuple[np.ndarray, Mapping[str, float]]

#: Shares of their units that groups have where latencies are predicted.
_PREDICTED = (1.0, 0.5, 0.25)


@dataclass(frozen=True)
class Layers:
    """The layers of a graph, with the share that every unit of a group has in their channels."""

    names: list[str]
    fixed: np.ndarray
    """Channels that no group has, [2, layers]: read, written."""
    shares: np.ndarray
    """Channels per unit, [2, layers, groups]."""
    dense: np.ndarray
    """Cost coefficients [layers, 4] of every layer as it is."""

    def channels(self, widths: np.ndarray) -> np.ndarray:
        """Channels read and written [2, layers] for the widths [groups]."""
        return self.fixed + self.shares @ widths

    def of_group(self, group: int, options: np.ndarray, widths: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """The cost of all layers that touch the group, for each of its widths `options`, the others as in `widths`."""
        touched = np.flatnonzero(self.shares[:, :, group].any(0))
        now = self.channels(widths)[:, touched]
        moved = self.shares[:, touched, group, None] * (options - widths[group])
        return self._least(touched, coefficients[touched, None], now[:, :, None] + moved).sum(0)

    def of_layer(self, layer: int, options: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """The cost of a layer for each of the coefficients `options` [options, 4]."""
        return self._least([layer], options[None], self.channels(widths)[:, [layer], None])[0]

    def total(self, widths: np.ndarray, coefficients: np.ndarray, some: Sequence[int] | None = None) -> float:
        """The cost of all layers, or of some, at the widths [groups] and the coefficients [layers, 4]."""
        rows = np.arange(len(self.names)) if some is None else np.asarray(some, np.int64)
        return float(self._least(rows, coefficients[rows, None], self.channels(widths)[:, rows, None]).sum())

    def without(self, some: Sequence[int]) -> "Layers":
        """The layers when some of them are not there: they have channels, and cost nothing."""
        dense = self.dense.copy()
        dense[list(some)] = 0.0
        return replace(self, dense=dense)

    def _least(self, layers: Sequence[int] | np.ndarray, coefficients: np.ndarray, channels: np.ndarray) -> np.ndarray:
        """Costs [layers, options] of chains, or of the layers as they are where the chains cost more by now."""
        return np.minimum(cost(coefficients, *channels), cost(self.dense[np.asarray(layers)][:, None], *channels))


def coefficients(
    layer: Layer, stages: Sequence[Stage], metric: Metric, latency_ms: float = 0.0, least_ms: float = 0.0
) -> np.ndarray:
    """The coefficients of a chain of all the layer's groups.

    The first stage reads the layer's channels and the last one writes them; what is between has the width of a rank.
    Of the chain's latency every stage takes what the layer takes at any width, and the rest is shared out like MACs.
    """
    sizes = [math.prod(stage.shape) for stage in stages]
    if metric != "params":
        sizes = [size * place for size, place in zip(sizes, _positions(layer, stages), strict=True)]
    least = min(latency_ms, len(sizes) * least_ms) if metric == "latency" else 0.0
    scale = (latency_ms - least) / (sum(sizes) or 1) if metric == "latency" else 1.0
    first, *middle, last = (size * scale for size in sizes)
    return np.array([0.0, first / layer.inputs, last / layer.outputs, least + sum(middle)])


def _positions(layer: Layer, stages: Sequence[Stage]) -> list[int]:
    """Places at which every stage of a chain is applied, over the batch."""
    if not layer.is_conv:
        return [math.prod(layer.node.outputs[0].shape[:-1])] * len(stages)
    read, written = list(layer.node.inputs[0].shape[2:]), layer.node.outputs[0].shape
    places = []
    for stage in stages:
        for axis in stage.axes:
            read[axis] = written[2 + axis]
        places.append(written[0] * math.prod(read))
    return places


def cost(coefficients: np.ndarray, read: np.ndarray, written: np.ndarray) -> np.ndarray:
    """a C K + b C + c K + d for coefficients [..., 4]."""
    a, b, c, d = np.moveaxis(coefficients, -1, 0)
    return a * read * written + b * read + c * written + d


def layers(
    graph: gs.Graph, channels: Channels, groups: Sequence[Group], metric: Metric, predicted: Sequence[Latencies] = ()
) -> Layers:
    """The layers of a graph whose channels are traced, as they cost by `metric`; latency as `predicted` at widths."""
    nodes = [node for node in graph.nodes if node.name in channels.layers and macs(node)]
    group_of = np.full(1 + max([0, *(int(group.ids.max()) for group in groups)]), -1)
    for index, group in enumerate(groups):
        group_of[group.ids] = index
    fixed, shares = np.zeros((2, len(nodes))), np.zeros((2, len(nodes), len(groups)))
    for index, node in enumerate(nodes):
        for side, ids in enumerate((channels.read(node), channels.written(node))):
            owners = np.where(ids < len(group_of), group_of[np.minimum(ids, len(group_of) - 1)], -1)
            fixed[side, index] = np.count_nonzero(owners < 0)
            counts = np.bincount(owners[owners >= 0], minlength=len(groups))
            shares[side, index] = counts / [len(group.ids) for group in groups]
    found = Layers([node.name for node in nodes], fixed, shares, np.zeros((len(nodes), 4)))
    if metric != "latency":
        return replace(found, dense=np.array([_dense(node, channels, metric) for node in nodes]).reshape(-1, 4))
    at = [found.channels(widths) for widths, _ in predicted]
    for index, node in enumerate(nodes):
        times = [latencies.get(node.name, 0.0) for _, latencies in predicted]
        found.dense[index] = _timed([each[:, index] for each in at], times, _loses_whole_groups(node, channels))
    return found


def narrowed(options: Sequence[np.ndarray], by_layer: Callable[[list[int]], Mapping[str, float]]) -> list[Latencies]:
    """Latencies of the layers where all groups are about as much narrower, by the state that they are in.

    `options` has the widths of each group, the first being that which it has.
    """
    states = [[int(np.argmin(np.abs(each - share * each[0]))) for each in options] for share in _PREDICTED]
    return [
        (np.array([each[option] for each, option in zip(options, state, strict=True)]), by_layer(state))
        for state in states
    ]


def _dense(node: gs.Node, channels: Channels, metric: Metric) -> np.ndarray:
    """The coefficients of a Conv, ConvTranspose, Gemm or MatMul as it is; weights that several share count once."""
    read, written = len(channels.read(node)), len(channels.written(node))
    total = float(macs(node)) if metric == "macs" else math.prod(node.inputs[1].shape) / len(node.inputs[1].outputs)
    if _loses_whole_groups(node, channels):
        return np.array([0.0, 0.0, total / written, 0.0])
    return np.array([total / (read * written), 0.0, 0.0, 0.0])


def _timed(channels: Sequence[np.ndarray], times: Sequence[float], by_group: bool) -> np.ndarray:
    """The coefficients of a layer that takes these times where it reads and writes so many channels.

    Least squares, none of them negative. Narrow layers take longer than their share of the computation: they are as
    many, fill no vectors, and move as much per channel.
    """
    (read, written), *_ = channels
    scale = np.array([read * written, read + written, 1.0])
    rows = np.array([[0.0 if by_group else c * k, k if by_group else c + k, 1.0] for c, k in channels]) / scale
    (product, each, least), _ = nnls(rows, np.array(times))
    each, product = each / scale[1], product / scale[0]
    return np.array([product, 0.0 if by_group else each, each, least])


def _loses_whole_groups(node: gs.Node, channels: Channels) -> bool:
    """Whether a grouped convolution, when it loses channels, loses groups, and keeps the inputs of the others."""
    if node.attrs.get("group", 1) == 1:
        return False
    axis = 1 if node.op == "Conv" else 0
    return not any(use.node.name == node.name and use.input == 1 and use.axis == axis for use in channels.uses)
