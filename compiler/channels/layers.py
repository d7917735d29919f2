"""Operators that compute with channels as a whole: layers that write new ones, normalizations, pools and reductions."""

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import integers, reduced_axes
from nnc.channels.labels import varied
from nnc.channels.walk import Layer, Role, Rule, Slice, Stays, Walk, is_constant, title


def _convolution(walk: Walk, node: gs.Node) -> None:
    """Conv with W [M, C / group, ...] and ConvTranspose with W [C, M / group, ...]."""
    x, y, groups = node.inputs[0], node.outputs[0], node.attrs.get("group", 1)
    read, made = walk.along(x, 1), y.shape[1]
    if not is_constant(node.inputs[1]):
        _stop(walk, node, read, made, reason := f"the weights of {title(node)} are computed at run time")
        raise Stays(reason)
    if 1 < groups == len(read):
        written = np.repeat(read, made // groups)
        _note(walk, node, "others", 0, written if node.op == "Conv" else read)
    elif 1 < groups >= max(len(read), made) // groups and read.any():
        written = _whole_groups(walk, node, read, made)
    else:
        written = (_conv if node.op == "Conv" else _conv_transpose)(walk, node, read, made)
    walk.layers[node.name] = Layer(read, written)
    walk.put(y, _at(written, 1, len(y.shape)))
    walk.follow(node, 2, y, 1)


def _whole_groups(walk: Walk, node: gs.Node, read: np.ndarray, made: int) -> np.ndarray:
    """Many small groups: what one of them reads and writes is one channel."""
    units = walk.fresh(node, node.attrs["group"])
    walk.labels.unite(np.repeat(units, len(read) // len(units)), read, _mixed(node))
    written = np.repeat(units, made // len(units))
    _note(walk, node, "producers", 0, written if node.op == "Conv" else read)
    return written


def _conv(walk: Walk, node: gs.Node, read: np.ndarray, made: int) -> np.ndarray:
    """Groups read the same of their channels, a column of W, and write equally many."""
    columns = read.reshape(node.attrs.get("group", 1), -1)
    walk.labels.unite(columns, columns[:1], _mixed(node))
    written = walk.fresh(node, made)
    _note(walk, node, "producers", 0, written)
    _note(walk, node, "consumers", 1, columns[0])
    walk.balance(written.reshape(len(columns), -1), _mixed(node))
    return written


def _conv_transpose(walk: Walk, node: gs.Node, read: np.ndarray, made: int) -> np.ndarray:
    """Groups read equally many channels, and write the same of theirs, a column of W."""
    groups = node.attrs.get("group", 1)
    columns = walk.fresh(node, made // groups)
    _note(walk, node, "producers", 1, columns)
    _note(walk, node, "consumers", 0, read)
    walk.balance(read.reshape(groups, -1), _mixed(node))
    return np.tile(columns, groups)


def _mixed(node: gs.Node) -> str:
    return f"the groups of {title(node)} are equally wide, and a part of one stays"


def _gemm(walk: Walk, node: gs.Node) -> None:
    turned = [int(node.attrs.get(key, 0)) for key in ("transA", "transB")]
    _product(walk, node, (0, 1 - turned[0]), (1, turned[1], 1 - turned[1]), 1)
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        walk.follow(node, 2, node.outputs[0], 2 - len(node.inputs[2].shape))


def _matmul(walk: Walk, node: gs.Node) -> None:
    ranks, rank = [len(tensor.shape) for tensor in node.inputs], len(node.outputs[0].shape)
    left, right = map(is_constant, node.inputs)
    if right and ranks[1] == 2 and ranks[0] > 1:
        _product(walk, node, (0, rank - 1), (1, 0, 1), rank - 1)
    elif left and ranks[0] == 2 and ranks[1] > 1:
        _product(walk, node, (1, rank - 2), (0, 1, 0), rank - 2)
    else:
        raise Stays(f"{title(node)} is no product with a constant matrix")


def _product(walk: Walk, node: gs.Node, read: tuple[int, int], weight: tuple[int, int, int], axis: int) -> None:
    """Sums over an axis of x, `read` (input, axis), by a `weight` (input, axis in, axis out), which are `axis` of y."""
    x, y = node.inputs[read[0]], node.outputs[0]
    made = y.shape[axis]
    if not is_constant(node.inputs[weight[0]]):
        raise Stays(f"the weights of {title(node)} are computed at run time")
    labels = walk[x]
    if labels.size > 1 == labels.shape[read[1]]:
        _stop(walk, node, np.zeros(x.shape[read[1]], np.int64), made, "its input has the channels along another axis")
        walk.put(y, labels.transpose() if node.attrs.get("transA", 0) else labels)
        return
    ins, written = walk.along(x, read[1]), walk.fresh(node, made)
    walk.layers[node.name] = Layer(ins, written)
    _note(walk, node, "producers", weight[2], written, weight[0])
    _note(walk, node, "consumers", weight[1], ins, weight[0])
    walk.put(y, _at(written, axis, len(y.shape)))


def _stop(walk: Walk, node: gs.Node, read: np.ndarray, made: int, reason: str) -> None:
    """Let what a layer writes stay."""
    walk.layers[node.name] = Layer(read, walk.fresh(node, made))
    walk.labels.fix(walk.layers[node.name].written, reason)


def _note(walk: Walk, node: gs.Node, role: Role, axis: int, labels: np.ndarray, index: int = 1) -> None:
    walk.slices.append(Slice(role, node, index, axis, labels))


def _at(labels: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Labels of one axis as a label array."""
    return labels.reshape([-1 if each == axis else 1 for each in range(rank)])


def _per_channel(walk: Walk, node: gs.Node) -> None:
    """Operators over all but the first two axes: every channel of its own, perhaps with constants for each."""
    x, y = node.inputs[0], node.outputs[0]
    if any(not tensor.is_empty() and tensor.outputs for tensor in node.outputs[1:]):
        raise Stays(f"the further outputs of {title(node)} are read")
    walk.put(y, _at(walk.along(x, 1), 1, len(y.shape)))
    for index in range(1, len(node.inputs)):
        walk.follow(node, index, y, 1)


def _sampled(walk: Walk, node: gs.Node) -> None:
    """Pictures that are read at positions, which further inputs tell."""
    x, y = node.inputs[0], node.outputs[0]
    for tensor in node.inputs[1:]:
        walk.fix(tensor, f"it is what {title(node)} takes for positions")
    walk.put(y, _at(walk.along(x, 1), 1, len(y.shape)))


def _reduce(walk: Walk, node: gs.Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    labels, axes = walk[x], reduced_axes(node)
    across, kept = [axis for axis in varied(labels) if axis in axes], [a for a in varied(labels) if a not in axes]
    if across and not kept and node.op not in _ADDS:
        raise Stays(f"{title(node)} mixes the channels of '{x.name}'")
    for axis in across:
        if kept:
            first = labels.take([0], axis)
            walk.labels.unite(labels, first, f"{title(node)} mixes it with a part of '{x.name}' that stays")
        labels = labels.take([0], axis) if kept else np.zeros_like(labels.take([0], axis))
    if not node.attrs.get("keepdims", 1):
        labels = labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in axes])
    walk.put(y, labels)


#: Reductions to which zeros add nothing.
_ADDS = {"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"}


def _over(walk: Walk, node: gs.Node) -> None:
    """Operators whose every result depends on all elements along some axes."""
    x = node.inputs[0]
    axes = _normalized_axes(node, len(x.shape))
    if any(walk[x].shape[axis] > 1 for axis in axes):
        raise Stays(f"{title(node)} mixes the channels of '{x.name}'")
    if any(walk[tensor].any() for tensor in node.inputs[1:] if not tensor.is_empty()):
        raise Stays(f"{title(node)} is told by them what to do")
    for y in node.outputs:
        if not y.is_empty() and len(y.shape) == len(x.shape):
            walk.put(y, walk[x])


def _normalized_axes(node: gs.Node, rank: int) -> list[int]:
    match node.op:
        case "LRN":
            return [1]
        case "MeanVarianceNormalization":
            return [axis % rank for axis in node.attrs.get("axes", [0, 2, 3])]
        case "LayerNormalization" | "RMSNormalization":
            return list(range(node.attrs.get("axis", -1) % rank, rank))
        case "CumSum":
            return [axis % rank for axis in integers(node, 1) or []]
    return [node.attrs.get("axis", -1) % rank]


_LAYERS: dict[str, Rule] = {
    "Conv": _convolution, "ConvTranspose": _convolution, "Gemm": _gemm, "MatMul": _matmul,
}  # fmt: skip

_CHANNEL_WISE = (
    "AveragePool", "BatchNormalization", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "InstanceNormalization",
    "LpPool", "MaxPool",
)  # fmt: skip

_REDUCTIONS = (
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

_MIXING = (
    "CumSum", "Hardmax", "LRN", "LayerNormalization", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization",
    "RMSNormalization", "Softmax", "TopK",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **_LAYERS,
    **dict.fromkeys(_CHANNEL_WISE, _per_channel),
    **dict.fromkeys(("GridSample", "RoiAlign"), _sampled),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_MIXING, _over),
}
