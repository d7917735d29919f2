"""The walk over a graph that labels every element of every tensor with its channel.

A label array has the rank of its tensor, and every dimension is the tensor's or 1, where the labels don't depend on
that axis. So most of them are [1, C, 1, 1], and moving data is moving labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import Computed
from nnc.channels.labels import Labels, distinct_pairs, varied
from nnc.measure import has_shape
from nnc.model import proto

Role = Literal["producers", "consumers", "others"]


class Stays(Exception):
    """The channels that a node reads can't be traced through it; the message says why."""


@dataclass(frozen=True)
class Slice:
    """An axis of a node's constant, and the label of every index along it."""

    role: Role
    node: gs.Node
    input: int
    axis: int
    labels: np.ndarray


@dataclass(frozen=True)
class Operand:
    """A constant that follows a tensor: its axis `a` is the tensor's axis `a + offset`."""

    node: gs.Node
    input: int
    tensor: gs.Tensor
    offset: int


@dataclass(frozen=True)
class Shuffle:
    """Nodes, one behind the other, whose result is the first one's input in another order along an axis."""

    nodes: tuple[gs.Node, ...]
    axis: int
    order: np.ndarray
    """int64: which channel of the input is at each place of the output."""

    @property
    def input(self) -> gs.Tensor:
        return self.nodes[0].inputs[0]

    @property
    def output(self) -> gs.Tensor:
        return self.nodes[-1].outputs[0]


@dataclass
class Layer:
    """What a Conv, ConvTranspose, Gemm or MatMul reads and writes: a label for every channel or feature."""

    read: np.ndarray
    written: np.ndarray


@dataclass
class Walk:
    """Label arrays by tensor, and what the rules of the operators noted on the way."""

    graph: gs.Graph
    labels: Labels = field(default_factory=Labels)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: dict[str, gs.Tensor] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    operands: list[Operand] = field(default_factory=list)
    layers: dict[str, Layer] = field(default_factory=dict)
    births: list[tuple[int, str]] = field(default_factory=list)
    balanced: list[tuple[np.ndarray, str]] = field(default_factory=list)

    def __getitem__(self, tensor: gs.Tensor) -> np.ndarray:
        """The label array of a tensor with a known shape; all 0 where nothing was traced."""
        return self.arrays.get(tensor.name, np.zeros((1,) * len(tensor.shape), np.int64))

    def put(self, tensor: gs.Tensor, array: np.ndarray) -> None:
        """Label a tensor."""
        kept = varied(array)
        array = array[tuple(slice(None) if axis in kept else slice(1) for axis in range(array.ndim))]
        if array.any() and not tensor.is_empty():
            self.arrays[tensor.name], self.tensors[tensor.name] = array, tensor

    def fresh(self, node: gs.Node, count: int) -> np.ndarray:
        """New labels that are born at `node`, int64 [count]."""
        made = self.labels.fresh(count)
        self.births.append((int(made[0]) if count else 0, node.name))
        return made

    def fix(self, tensor: gs.Tensor, reason: str) -> None:
        """Let all channels of a tensor stay."""
        if tensor.name in self.arrays:
            self.labels.fix(self.arrays[tensor.name], reason)

    def along(self, tensor: gs.Tensor, axis: int) -> np.ndarray:
        """The labels along one axis, int64 [size]; what differs along the others goes together."""
        if axis >= len(tensor.shape):
            raise Stays(f"'{tensor.name}' has no channels")
        array = np.moveaxis(self[tensor], axis, 0).reshape(self[tensor].shape[axis], -1)
        self.labels.unite(array, array[:, :1], f"a part of '{tensor.name}' stays")
        return np.broadcast_to(array[:, 0], tensor.shape[axis])

    def balance(self, rows: np.ndarray, reason: str) -> None:
        """Note that whatever is removed, equally much of all rows is; `reason` is told of what stays for it."""
        if len(rows) > 1:
            self.balanced.append((rows, reason))

    def follow(self, node: gs.Node, index: int, tensor: gs.Tensor, offset: int) -> None:
        """Note that a constant input, where the node has it, follows `tensor`; Stays where it is no constant."""
        if len(node.inputs) <= index or node.inputs[index].is_empty():
            return
        if is_constant(node.inputs[index]):
            self.operands.append(Operand(node, index, tensor, offset))
        elif np.prod(node.inputs[index].shape) != 1:
            raise Stays(f"'{node.inputs[index].name}', which {title(node)} reads, is computed at run time")


Rule = Callable[[Walk, gs.Node], None]


def run(graph: gs.Graph, rules: dict[str, Rule], shuffles: Sequence[Shuffle] = ()) -> Walk:
    """Label all tensors by the rules of the operators, and let go together what must."""
    walk = Walk(graph)
    starts = {id(shuffle.nodes[0]): shuffle for shuffle in shuffles}
    inside = {id(node) for shuffle in shuffles for node in shuffle.nodes}
    for node in graph.nodes:
        if id(node) in starts:
            _shuffle(walk, starts[id(node)])
        elif id(node) not in inside:
            _apply(walk, node, rules)
    for tensor in graph.outputs:
        walk.fix(tensor, f"'{tensor.name}' is an output of the graph")
    _tie_shared(walk)
    _settle(walk)
    return walk


def _shuffle(walk: Walk, shuffle: Shuffle) -> None:
    labels = walk[shuffle.input]
    varies = labels.shape[shuffle.axis] > 1
    walk.put(shuffle.output, labels.take(shuffle.order, shuffle.axis) if varies else labels)


def _apply(walk: Walk, node: gs.Node, rules: dict[str, Rule]) -> None:
    """Label what a node writes, or let stay what it reads."""
    try:
        _rule(node, rules)(walk, node)
    except (Stays, Computed) as reason:
        for tensor in (*node.inputs, *node.outputs):
            walk.fix(tensor, str(reason))


def _rule(node: gs.Node, rules: dict[str, Rule]) -> Rule:
    if node.op not in rules or node.domain not in proto.STANDARD_DOMAINS:
        raise Stays(f"nothing is known of {title(node)}")
    for tensor in (*node.inputs, *node.outputs):
        if not tensor.is_empty() and not has_shape(tensor):
            raise Stays(f"the shape of '{tensor.name}' is not known")
        if not isinstance(tensor, gs.Constant) and not tensor.is_empty() and 0 in tensor.shape:
            raise Stays(f"'{tensor.name}' has no elements")
    return rules[node.op]


def _tie_shared(walk: Walk) -> None:
    """Let go together what layers of the same weights write, and what they read, so that these stay one constant."""
    first: dict[tuple[int, int], Slice] = {}
    for each in walk.slices:
        other = first.setdefault((id(each.node.inputs[each.input]), each.axis), each)
        reason = f"{title(other.node)} and {title(each.node)} share weights, and channels of one of them stay"
        walk.labels.unite(other.labels, each.labels, reason)


def _settle(walk: Walk) -> None:
    """Let labels go together until whatever is removed leaves boxes of tensors, and equal groups of layers."""
    while _make_boxes(walk) or _make_balanced(walk):
        pass


def _make_boxes(walk: Walk) -> bool:
    """Whether a tensor would have been left no box, or nothing at all, before labels went together.

    Channels that differ along two axes at once, as in the middle of a channel shuffle, go together along one of them.
    """
    changed = False
    for name, array in walk.arrays.items():
        roots = walk.labels.roots()[array]
        axes = varied(roots)
        if len(axes) > 1:
            axis = max(axes, key=lambda axis: _separate(walk.labels, roots, axis))
            walk.along(walk.tensors[name], axis)
            changed = True
        elif not axes and roots.any():
            walk.labels.fix(array, f"without it nothing of '{name}' would be left")
            changed = True
    return changed


def _make_balanced(walk: Walk) -> bool:
    """Whether rows would have lost unequally much, before what lies unequally often in them went together."""
    changed = False
    for rows, reason in walk.balanced:
        _, labels = np.unique(walk.labels.roots()[rows], return_inverse=True)
        counts = np.stack([np.bincount(row, minlength=rows.size) for row in labels.reshape(rows.shape)])
        uneven = (counts != counts[0]).any(axis=0)[labels.reshape(rows.shape)]
        if uneven.any():
            left = rows[uneven].reshape(len(rows), -1)
            walk.labels.unite(left, left[:1], reason)
            changed = True
    return changed


def _separate(labels: Labels, roots: np.ndarray, axis: int) -> int:
    """How many channels are left when those that differ along the other axes go together."""
    rows = np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)
    return int(np.count_nonzero(np.unique(labels.merged(distinct_pairs(rows, rows[:, :1]))[rows])))


#: Operators behind a constant that are followed up to it.
PASSING = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Transpose")


def is_constant(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant, or computed from constants by `PASSING`, as the weights of quantized layers."""
    if isinstance(tensor, gs.Constant):
        return True
    maker = tensor.inputs[0] if tensor.inputs else None
    return (
        maker is not None
        and proto.is_standard(maker, *PASSING)
        and not maker.attrs.get("block_size", 0)
        and all(is_constant(each) for each in maker.inputs if not each.is_empty())
    )


def title(node: gs.Node) -> str:
    return f"{node.op} '{node.name}'"
