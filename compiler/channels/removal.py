"""Taking channels out of a graph: constants are sliced, and what nodes are told of sizes is adapted."""

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.attributes import integers, pads, permutation, slices
from nnc.channels.groups import Channels
from nnc.model import proto

#: The indices that are kept along some axes, as booleans.
Kept = dict[int, np.ndarray]

PartKey = tuple[int, tuple[tuple[int, bytes], ...]]


def remove(graph: gs.Graph, channels: Channels, ids: Collection[int], *, hollow: bool = False) -> None:
    """Remove channels from the graph that `channels` was traced in, or from a copy of it, in place.

    Other layers compute what they did if these channels were 0 everywhere. Sliced constants are new ones; those that
    were shared and are sliced alike stay shared. `hollow` makes them dummies that take no memory, for figures of the
    graph without the work of copying. Raises ValueError for ids that are no channel or would leave a tensor none.
    """
    removal = _Removal(graph, channels, _removed(channels, ids), hollow)
    for name, (_, kept) in removal.kept.items():
        if not kept.any():
            raise ValueError(f"no channel of '{name}' would be left")
    removal.slice_constants()
    for node in list(graph.nodes):
        if node.op in ADAPTED and proto.is_standard(node, node.op) and removal.touches(node):
            ADAPTED[node.op](removal, node)
    removal.replace_shuffles()
    removal.finish()


def _removed(channels: Channels, ids: Collection[int]) -> np.ndarray:
    """For every id whether the channel is removed, bool."""
    known = np.concatenate([np.zeros(0, np.int64), *(group.ids for group in channels.groups)])
    given = np.fromiter(ids, np.int64, len(ids))
    unknown = np.setdiff1d(given, known)
    if unknown.size:
        raise ValueError(f"{unknown[0]} is no channel that can be removed")
    removed = np.zeros(known.max(initial=0) + 1, bool)
    removed[given] = True
    return removed


@dataclass
class _Removal:
    graph: gs.Graph
    channels: Channels
    removed: np.ndarray
    hollow: bool
    added: dict[int, list[gs.Node]] = field(default_factory=lambda: defaultdict(list))
    parts: dict[PartKey, tuple[gs.Tensor, gs.Tensor]] = field(default_factory=dict)
    """Constants, and what is computed from them, with the part of them that is kept; named at the end."""
    twins: list[tuple[gs.Node, gs.Node]] = field(default_factory=list)
    """The nodes that compute it, likewise."""

    def __post_init__(self) -> None:
        self.names = graphs.tensor_names(self.graph)
        self.node_names = {node.name for node in self.graph.nodes}
        self.kept = {
            name: (axis, kept)
            for name, (axis, ids) in self.channels.axes.items()
            if not (kept := self.stays(ids)).all()
        }

    def stays(self, ids: np.ndarray) -> np.ndarray:
        """Which indices along an axis with these channels are kept, bool."""
        return ~self.removed[ids]

    def touches(self, node: gs.Node) -> bool:
        """Whether something is removed from a tensor that the node reads or writes."""
        return any(tensor.name in self.kept for tensor in (*node.inputs, *node.outputs))

    def along(self, tensor: gs.Tensor) -> tuple[int, np.ndarray]:
        """The channel axis and what is kept of it; axis -1 where nothing is removed."""
        return self.kept.get(tensor.name, (-1, np.ones(0, bool)))

    def shape(self, tensor: gs.Tensor) -> list[int]:
        """The shape that a tensor is about to get."""
        return _shape(tensor, dict([self.along(tensor)]))

    def tell(self, node: gs.Node, index: int, values: object) -> None:
        """Give a node integers as its input `index`."""
        while len(node.inputs) <= index:
            node.inputs.append(gs.Variable.empty())
        name = graphs.unique(f"{node.outputs[0].name}.{index}", self.names)
        node.inputs[index] = gs.Constant(name, np.array(values, np.int64))

    def gather(self, node: gs.Node, axis: int, indices: np.ndarray) -> None:
        """Let a node read these indices of its first input."""
        x = node.inputs[0]
        name = graphs.unique(f"{node.outputs[0].name}/Gather", self.names)
        shape = self.shape(x)
        shape[axis] = len(indices)
        picked = gs.Variable(name, x.dtype, shape)
        made = gs.Node("Gather", graphs.unique(f"{node.name}/Gather", self.node_names), {"axis": axis}, [x], [picked])
        self.tell(made, 1, indices)
        node.inputs[0] = picked
        self.added[id(node)].append(made)

    def slice_constants(self) -> None:
        """Give every reader of a constant the part of it that is kept."""
        nodes = {node.name: node for node in self.graph.nodes}
        wanted: dict[tuple[str, int], Kept] = defaultdict(dict)
        for use in self.channels.uses:
            kept = self.stays(use.ids)
            if not kept.all():
                wanted[use.node.name, use.input][use.axis] = kept
        for (name, index), axes in wanted.items():
            nodes[name].inputs[index] = self._part(nodes[name], nodes[name].inputs[index], axes)

    def _part(self, reader: gs.Node, tensor: gs.Tensor, kept: Kept) -> gs.Tensor:
        """What is kept of a constant, or of what is computed from constants; asked twice, the same tensor."""
        if not kept:
            return tensor
        key = (id(tensor), tuple((axis, kept[axis].tobytes()) for axis in sorted(kept)))
        if key not in self.parts:
            if isinstance(tensor, gs.Constant):
                part: gs.Tensor = gs.Constant(tensor.name, self._values(tensor, kept))
            else:
                part = gs.Variable(tensor.name, tensor.dtype, _shape(tensor, kept))
                self.added[id(reader)].append(self._twin(reader, tensor.inputs[0], part, kept))
            self.parts[key] = tensor, part
        return self.parts[key][1]

    def _values(self, constant: gs.Constant, kept: Kept) -> np.ndarray:
        if self.hollow:
            return np.broadcast_to(np.zeros((), constant.dtype), _shape(constant, kept))
        values = constant.values
        for axis, mask in kept.items():
            values = values.compress(mask, axis)
        return values

    def _twin(self, reader: gs.Node, maker: gs.Node, output: gs.Tensor, kept: Kept) -> gs.Node:
        """A node that computes a part of what `maker` computes from constants."""
        x, *scales = maker.inputs
        if maker.op == "Transpose":
            perm = permutation(maker)
            kept = {perm[axis]: mask for axis, mask in kept.items()}
        inputs = [self._part(reader, x, kept)]
        axis = maker.attrs.get("axis", 1) % max(len(x.shape), 1)
        for scale in scales:
            follows = axis in kept and not scale.is_empty() and list(scale.shape) == [x.shape[axis]]
            inputs.append(self._part(reader, scale, {0: kept[axis]} if follows else {}))
        twin = gs.Node(maker.op, maker.name, dict(maker.attrs), inputs, [output], maker.domain)
        self.twins.append((maker, twin))
        return twin

    def replace_shuffles(self) -> None:
        """Write channel shuffles of which something is removed as one Gather."""
        nodes = {node.name: node for node in self.graph.nodes}
        for shuffle in self.channels.shuffles:
            x, last = nodes[shuffle.nodes[0].name].inputs[0], nodes[shuffle.nodes[-1].name]
            axis, before = self.along(x)
            if axis == shuffle.axis:
                last.op, last.attrs, last.inputs = "Gather", {"axis": axis}, [x]
                self.tell(last, 1, _renumbered(before, shuffle.order, self.along(last.outputs[0])[1]))

    def finish(self) -> None:
        """Note the new shapes, put new nodes in their places, and drop those that nobody reads any more."""
        for node in self.graph.nodes:
            for tensor in node.outputs:
                if tensor.name in self.kept:
                    tensor.shape = self.shape(tensor)
        self.graph.nodes = [each for node in self.graph.nodes for each in (*self.added[id(node)], node)]
        outputs = {id(tensor) for tensor in self.graph.outputs}
        for node in reversed(self.graph.nodes):
            if not any(tensor.outputs or id(tensor) in outputs for tensor in node.outputs):
                node.inputs.clear()
                node.outputs.clear()
        self.graph.nodes = [node for node in self.graph.nodes if node.outputs]
        _take_names(self.parts.values(), self.names)
        _take_names(self.twins, self.node_names)


def _take_names(
    pairs: Collection[tuple[gs.Tensor, gs.Tensor]] | Collection[tuple[gs.Node, gs.Node]], names: set[str]
) -> None:
    """Call parts like the whole: the first one takes the name of a whole that is not read any more."""
    names -= {whole.name for whole, _ in pairs if not whole.outputs}
    for whole, part in pairs:
        part.name = graphs.unique(whole.name, names)


def _shape(tensor: gs.Tensor, kept: Kept) -> list[int]:
    return [int(kept[axis].sum()) if axis in kept else size for axis, size in enumerate(tensor.shape)]


def _convolution(removal: _Removal, node: gs.Node) -> None:
    if node.attrs.get("group", 1) > 1:
        whole = removal.shape(node.outputs[0] if node.op == "ConvTranspose" else node.inputs[0])[1]
        node.attrs["group"] = whole // node.inputs[1].shape[1]


def _resized(removal: _Removal, node: gs.Node) -> None:
    """Reshape and Expand: the target."""
    removal.tell(node, 1, removal.shape(node.outputs[0]))


def _squeeze(removal: _Removal, node: gs.Node) -> None:
    """A single channel that is left is not squeezed."""
    if len(node.inputs) < 2:
        removal.tell(node, 1, [axis for axis, size in enumerate(node.inputs[0].shape) if size == 1])


def _split(removal: _Removal, node: gs.Node) -> None:
    axis = node.attrs.get("axis", 0) % len(node.inputs[0].shape)
    node.attrs.pop("num_outputs", None)
    removal.tell(node, 1, [removal.shape(tensor)[axis] for tensor in node.outputs])


def _slice(removal: _Removal, node: gs.Node) -> None:
    kept, (axis, before) = slices(node, node.inputs[0].shape), removal.along(node.inputs[0])
    if axis not in kept:
        return
    indices = _renumbered(before, np.array(kept.pop(axis)), removal.along(node.outputs[0])[1])
    steps = np.unique(np.diff(indices))
    if len(steps) > 1:
        removal.gather(node, axis, indices)
    else:
        kept[axis] = range(int(indices[0]), int(indices[-1]) + int(np.sign(_step(steps))), _step(steps))
    _tell_bounds(removal, node, kept)


def _step(steps: np.ndarray) -> int:
    return int(steps[0]) if steps.size else 1


def _tell_bounds(removal: _Removal, node: gs.Node, kept: dict[int, range]) -> None:
    axes = sorted(kept)
    removal.tell(node, 1, [kept[axis].start for axis in axes])
    removal.tell(node, 2, [stop if (stop := kept[axis].stop) >= 0 else np.iinfo(np.int64).min for axis in axes])
    removal.tell(node, 3, axes)
    removal.tell(node, 4, [kept[axis].step for axis in axes])


def _renumbered(before: np.ndarray, indices: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where the kept ones of some indices are among those that are kept of what they index."""
    return (np.cumsum(before) - 1)[indices[after] if after.size else indices]


def _gather(removal: _Removal, node: gs.Node) -> None:
    axis = node.attrs.get("axis", 0) % len(node.inputs[0].shape)
    channel, before = removal.along(node.inputs[0])
    if channel != axis:
        return
    indices = node.inputs[1].values
    place, after = removal.along(node.outputs[0])
    if after.size:
        indices = indices.compress(after, place - axis)
    removal.tell(node, 1, (np.cumsum(before) - 1)[indices])


def _pad(removal: _Removal, node: gs.Node) -> None:
    x, amounts = node.inputs[0], pads(node)
    axis, after = removal.along(node.outputs[0])
    if axis not in amounts:
        return
    front, back = amounts[axis]
    size = x.shape[axis]
    if node.attrs.get("mode", "constant") == "constant":
        amounts[axis] = (int(after[:front].sum()), int(after[front + size :].sum()))
    else:
        indices = np.pad(np.arange(size), (front, back), node.attrs["mode"])
        before = removal.along(x)[1]
        removal.gather(node, axis, _renumbered(before, indices, after))
        del amounts[axis]
    axes = range(len(x.shape))
    removal.tell(node, 1, [amounts.get(axis, (0, 0))[side] for side in (0, 1) for axis in axes])
    if len(node.inputs) > 3:
        node.inputs[3] = gs.Variable.empty()


def _resize(removal: _Removal, node: gs.Node) -> None:
    if integers(node, 3):
        sizes = removal.shape(node.outputs[0])
        removal.tell(node, 3, [sizes[axis] for axis in node.attrs.get("axes", range(len(sizes)))])


#: Operators that are told of sizes along the axis of channels, and what tells them of others.
ADAPTED: dict[str, Callable[[_Removal, gs.Node], None]] = {
    "Conv": _convolution, "ConvTranspose": _convolution, "Reshape": _resized, "Expand": _resized, "Squeeze": _squeeze,
    "Split": _split, "Slice": _slice, "Gather": _gather, "Pad": _pad, "Resize": _resize,
}  # fmt: skip
