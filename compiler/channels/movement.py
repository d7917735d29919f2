"""Operators that move elements, and what becomes of the labels."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import Computed, integers, pads, slices
from nnc.channels.walk import Rule, Stays, Walk, is_constant, title


def _same(walk: Walk, node: gs.Node) -> None:
    walk.put(node.outputs[0], walk[node.inputs[0]])


def _view(walk: Walk, node: gs.Node) -> None:
    if node.op == "Reshape":
        integers(node, 1)
    walk.put(node.outputs[0], moved(node, walk[node.inputs[0]]))


VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")


def moved(node: gs.Node, labels: np.ndarray) -> np.ndarray:
    """The labels behind a node of `VIEWS`."""
    if node.op == "Transpose":
        return labels.transpose(node.attrs.get("perm"))
    return reshaped(labels, node.inputs[0].shape, node.outputs[0].shape)


def reshaped(labels: np.ndarray, old: Sequence[int], new: Sequence[int]) -> np.ndarray:
    """The labels of a tensor of shape `old` after its Reshape to `new`; only axes that have labels are written out."""
    full, target = list(labels.shape), [1] * len(new)
    for before, after in _blocks(old, new):
        if any(labels.shape[axis] > 1 for axis in before):
            for axis in before:
                full[axis] = old[axis]
            for axis in after:
                target[axis] = new[axis]
    return np.broadcast_to(labels, full).reshape(target)


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The smallest runs of axes of both shapes that hold the same elements."""
    i = j = 0
    while i < len(old) or j < len(new):
        start, left, right = (i, j), 1, 1
        while left != right or (i, j) == start:
            if left <= right and i < len(old):
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        yield range(start[0], i), range(start[1], j)


def _concat(walk: Walk, node: gs.Node) -> None:
    y = node.outputs[0]
    axis = node.attrs["axis"] % len(y.shape)
    parts = [np.repeat(walk[x], x.shape[axis] // walk[x].shape[axis], axis) for x in node.inputs]
    dims = np.broadcast_shapes(*(part.take([0], axis).shape for part in parts))
    constant = [index for index, x in enumerate(node.inputs) if is_constant(x)] if max(dims) > 1 else []
    for index in constant:  # joined along another axis than that of the channels
        like = next(part for part in parts if part.any()).take([0], axis)
        parts[index] = np.repeat(like, parts[index].shape[axis], axis)
        walk.follow(node, index, y, 0)
    joined = np.concatenate(
        [np.broadcast_to(part, (*dims[:axis], part.shape[axis], *dims[axis + 1 :])) for part in parts], axis
    )
    if constant:
        walk.labels.unite(joined, joined.take([0], axis), f"{title(node)} joins it with a part that stays")
    walk.put(y, joined)


def _split(walk: Walk, node: gs.Node) -> None:
    integers(node, 1)
    x, start = node.inputs[0], 0
    axis = node.attrs.get("axis", 0) % len(x.shape)
    for y in node.outputs:
        part = range(start, start + y.shape[axis])
        walk.put(y, _taken(walk[x], part, axis))
        start = part.stop


def _taken(labels: np.ndarray, indices: Sequence[int] | np.ndarray, axis: int) -> np.ndarray:
    """The labels at these indices along an axis."""
    return labels.take(indices if labels.shape[axis] > 1 else np.zeros_like(indices), axis)


def _slice(walk: Walk, node: gs.Node) -> None:
    labels = walk[node.inputs[0]]
    for axis, indices in slices(node, node.inputs[0].shape).items():
        labels = _taken(labels, indices, axis)
    walk.put(node.outputs[0], labels)


def _gather(walk: Walk, node: gs.Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    axis = node.attrs.get("axis", 0) % len(x.shape)
    if walk[node.inputs[1]].any():
        raise Stays(f"{title(node)} takes them for indices")
    if walk[x].shape[axis] > 1:
        indices = np.array(integers(node, 1)).reshape(node.inputs[1].shape)
        walk.put(y, walk[x].take(indices, axis))
    else:
        rank = len(node.inputs[1].shape)
        walk.put(y, walk[x].take(np.zeros((1,) * rank, np.int64), axis))


def _expand(walk: Walk, node: gs.Node) -> None:
    integers(node, 1)
    x, y = node.inputs[0], node.outputs[0]
    added = (1,) * (len(y.shape) - len(x.shape))
    labels, size = walk[x].reshape(added + walk[x].shape), [*added, *x.shape]
    if labels.size == 1 and len(size) > 1 and size[1] == 1 != y.shape[1]:
        labels = walk.fresh(node, y.shape[1]).reshape([-1 if axis == 1 else 1 for axis in range(len(size))])
    walk.put(y, labels)


def _tile(walk: Walk, node: gs.Node) -> None:
    repeats = integers(node, 1)
    labels = walk[node.inputs[0]]
    assert repeats is not None
    counts = [count if size > 1 else 1 for count, size in zip(repeats, labels.shape, strict=True)]
    walk.put(node.outputs[0], np.tile(labels, counts))


def _pad(walk: Walk, node: gs.Node) -> None:
    x, mode = node.inputs[0], node.attrs.get("mode", "constant")
    labels = walk[x]
    for axis, (before, after) in pads(node).items():
        if labels.shape[axis] == 1:
            continue
        if min(before, after) < 0:
            raise Stays(f"{title(node)} cuts off channels")
        if mode == "constant" and labels.size == labels.shape[axis]:
            labels = _with_new(walk, node, labels, axis, before, after)
        else:
            width = [(before, after) if each == axis else (0, 0) for each in range(labels.ndim)]
            labels = np.pad(labels, width, mode)
    walk.put(node.outputs[0], labels)


def _with_new(walk: Walk, node: gs.Node, labels: np.ndarray, axis: int, before: int, after: int) -> np.ndarray:
    """The labels with new ones in front and behind."""
    dims = [-1 if each == axis else 1 for each in range(labels.ndim)]
    front, back = (walk.fresh(node, count).reshape(dims) for count in (before, after))
    return np.concatenate([front, labels, back], axis)


def _depth_to_space(walk: Walk, node: gs.Node) -> None:
    side = node.attrs["blocksize"]
    labels = walk.along(node.inputs[0], 1)
    if node.attrs.get("mode", "DCR") == "DCR":
        rows = labels.reshape(side * side, -1)
    else:
        rows = labels.reshape(-1, side * side).T
    walk.labels.unite(rows, rows[:1], f"a part of '{node.inputs[0].name}' stays")
    walk.put(node.outputs[0], rows[0].reshape(1, -1, 1, 1))


def _space_to_depth(walk: Walk, node: gs.Node) -> None:
    labels = walk.along(node.inputs[0], 1)
    walk.put(node.outputs[0], np.tile(labels, node.attrs["blocksize"] ** 2).reshape(1, -1, 1, 1))


def _resize(walk: Walk, node: gs.Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    for index in range(1, len(node.inputs)):
        if not (node.inputs[index].is_empty() or isinstance(node.inputs[index], gs.Constant)):
            raise Computed(node, index)
    if any(size != y.shape[axis] and walk[x].shape[axis] > 1 for axis, size in enumerate(x.shape)):
        raise Stays(f"{title(node)} resizes along the channels")
    walk.put(y, walk[x])


def _shape(walk: Walk, node: gs.Node) -> None:
    raise Stays(f"{title(node)} reads the size of '{node.inputs[0].name}': simplify-shapes writes it down")


RULES: dict[str, Rule] = {
    "Identity": _same, "Cast": _same, "CastLike": _same,
    **dict.fromkeys(VIEWS, _view),
    "Concat": _concat, "Split": _split, "Slice": _slice, "Gather": _gather, "Expand": _expand, "Tile": _tile,
    "Pad": _pad, "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth, "Resize": _resize,
    "Shape": _shape, "Size": _shape,
}  # fmt: skip
