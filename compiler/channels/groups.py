"""The channels of a graph, grouped by the places where they lie."""

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc.channels import elementwise, layers, movement
from nnc.channels.labels import varied
from nnc.channels.shuffles import shuffles
from nnc.channels.walk import Operand, Role, Shuffle, Walk, run

_RULES = {**movement.RULES, **elementwise.RULES, **layers.RULES}


@dataclass(frozen=True)
class Use:
    """Where channels meet a constant of a layer, which the layer may read through DequantizeLinear."""

    node: gs.Node
    input: int
    axis: int
    ids: np.ndarray
    """int64, the channel of every index along the axis; 0 stays."""


@dataclass(frozen=True)
class Group:
    """Channels that lie in the same places: one width.

    They may share these places with other channels: a `Use` tells of all of them.
    """

    name: str
    """The first producing node's name."""
    ids: np.ndarray
    """int64 [units]: what can be removed, one by one."""
    producers: tuple[Use, ...]
    """Layers that write them: output axes of Conv, ConvTranspose, Gemm and MatMul, also in groups of one channel."""
    consumers: tuple[Use, ...]
    """Layers that read them: input axes of Conv, ConvTranspose, Gemm and MatMul."""
    others: tuple[Use, ...]
    """BatchNormalization vectors, biases, slopes, depthwise weights, operands of element-wise operators, scales."""


@dataclass
class Channels:
    """What can be removed from a graph, and where it is. A copy of the graph has the same channels.

    Removing at most all but one channel of every group leaves every layer one channel.
    """

    groups: list[Group]
    """In the order of execution."""
    fixed: dict[str, str]
    """Why output channels of a layer stay, all or some of them, by the node's name."""
    uses: tuple[Use, ...]
    """All places where channels meet constants."""
    axes: dict[str, tuple[int, np.ndarray]]
    """Where channels lie, by the tensor's name: see `of`."""
    layers: dict[str, tuple[np.ndarray, np.ndarray]]
    """What a layer reads and writes, by the node's name: see `read` and `written`."""
    shuffles: tuple[Shuffle, ...]
    """Nodes that together only change the order of channels."""

    def of(self, tensor: gs.Tensor) -> tuple[int, np.ndarray] | None:
        """The channel axis and the channel of every index along it, int64; None where no channel can be removed."""
        return self.axes.get(tensor.name)

    def written(self, node: gs.Node) -> np.ndarray:
        """The channel of every output channel of a Conv, ConvTranspose, Gemm or MatMul, int64; 0 stays.

        Raises KeyError for other nodes, and for a product of tensors that are computed at run time.
        """
        return self.layers[node.name][1]

    def read(self, node: gs.Node) -> np.ndarray:
        """The channel of every input channel or feature, over all groups of a grouped Conv, int64; 0 stays.

        A feature of a flattened map has its channel's id. Raises KeyError as `written` does.
        """
        return self.layers[node.name][0]


def trace(graph: gs.Graph) -> Channels:
    """Find the channels of a graph whose shapes are static."""
    found = tuple(shuffles(graph))
    walk = run(graph, _RULES, found)
    roots = walk.labels.roots()
    located = {name: _axis(walk.tensors[name], roots[array]) for name, array in walk.arrays.items()}
    axes = {name: place for name, place in located.items() if place is not None}
    uses = [*_sliced(walk, roots), *_operands(walk.operands, axes)]
    return Channels(
        groups=_groups(walk, axes, uses),
        fixed=_fixed(walk, roots),
        uses=tuple(use for _, use in uses),
        axes=axes,
        layers={name: (roots[layer.read], roots[layer.written]) for name, layer in walk.layers.items()},
        shuffles=found,
    )


def _axis(tensor: gs.Tensor, roots: np.ndarray) -> tuple[int, np.ndarray] | None:
    """The one axis along which the channels differ, and the channel of every index."""
    axes = varied(roots)
    return (axes[0], np.moveaxis(roots, axes[0], 0).reshape(tensor.shape[axes[0]], -1)[:, 0]) if axes else None


def _sliced(walk: Walk, roots: np.ndarray) -> Iterable[tuple[Role, Use]]:
    for each in walk.slices:
        ids = roots[each.labels]
        if ids.any():
            yield each.role, Use(each.node, each.input, each.axis, ids)


def _operands(operands: Iterable[Operand], axes: dict[str, tuple[int, np.ndarray]]) -> Iterable[tuple[Role, Use]]:
    """The constants that have a value for every channel of the tensor that they follow."""
    for each in operands:
        axis, ids = axes.get(each.tensor.name, (-1, np.zeros(0, np.int64)))
        own, shape = axis - each.offset, each.node.inputs[each.input].shape
        if axis >= 0 and 0 <= own < len(shape) and shape[own] == len(ids):
            yield "others", Use(each.node, each.input, own, ids)


def _fixed(walk: Walk, roots: np.ndarray) -> dict[str, str]:
    reasons = walk.labels.reasons() | {0: "what it reads stays"}
    fixed = {}
    for name, layer in walk.layers.items():
        stays = layer.written[roots[layer.written] == 0]
        if stays.size:
            fixed[name] = reasons[int(stays[0])]
    return fixed


def _groups(walk: Walk, axes: dict[str, tuple[int, np.ndarray]], uses: list[tuple[Role, Use]]) -> list[Group]:
    places = _alike([ids for _, ids in axes.values()], len(walk.labels.roots()))
    members: dict[int, list[int]] = defaultdict(list)
    for one in np.unique(np.concatenate([np.zeros(1, np.int64), *(ids for _, ids in axes.values())]))[1:].tolist():
        members[int(places[one])].append(one)
    found: dict[int, dict[Role, list[Use]]] = {
        group: {"producers": [], "consumers": [], "others": []} for group in members
    }
    for role, use in uses:
        for group in np.unique(places[use.ids[use.ids > 0]]).tolist():
            found[group][role].append(use)
    names = {group: _name(walk, ids[0], found[group]["producers"]) for group, ids in members.items()}
    return [
        Group(names[group], np.array(ids), **{role: tuple(each) for role, each in found[group].items()})
        for group, ids in members.items()
    ]


def _alike(places: Iterable[np.ndarray], count: int) -> np.ndarray:
    """A number for every id, the same for ids that lie equally often in each of the places."""
    numbers, most = np.zeros(count, np.int64), 0
    for ids in places:
        here, times = np.unique(ids, return_counts=True)
        _, inverse = np.unique(np.stack([numbers[here], times]), axis=1, return_inverse=True)
        numbers[here] = most + 1 + inverse.reshape(-1)
        most += len(here)
    return numbers


def _name(walk: Walk, first: int, producers: list[Use]) -> str:
    """The first producer's name, or where there is none the name of the node that the channels come from."""
    if producers:
        return producers[0].node.name
    return walk.births[bisect(walk.births, first, key=lambda birth: birth[0]) - 1][1]
