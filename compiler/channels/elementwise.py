"""Element-wise operators: what lies at the same place of their inputs goes together."""

import numpy as np
import onnx_graphsurgeon as gs

from nnc.channels.labels import varied
from nnc.channels.walk import Rule, Stays, Walk, is_constant, title


def _elementwise(walk: Walk, node: gs.Node) -> None:
    y = node.outputs[0]
    rank = len(y.shape)
    operands = [tensor for tensor in node.inputs if not tensor.is_empty() and not is_constant(tensor)]
    arrays = {tensor.name: _aligned(walk[tensor], rank) for tensor in operands}
    axes = {axis for array in arrays.values() for axis in varied(array)}
    whole = [tensor for tensor in operands if all(_size(tensor, axis, rank) == y.shape[axis] for axis in axes)]
    for tensor in operands:
        if tensor not in whole:
            walk.fix(tensor, f"{title(node)} broadcasts '{tensor.name}' along other channels")
    for tensor in whole[1:]:
        reason = _unlike(node, next((each for each in whole if not arrays[each.name].any()), tensor))
        walk.labels.unite(arrays[whole[0].name], arrays[tensor.name], reason)
    shape = np.broadcast_shapes(*(arrays[tensor.name].shape for tensor in whole)) if whole else ()
    for output in (each for each in node.outputs if axes and whole and not each.is_empty()):
        walk.put(output, np.broadcast_to(arrays[whole[0].name], shape))
    for index, tensor in enumerate(node.inputs):
        if not tensor.is_empty() and is_constant(tensor):
            walk.follow(node, index, y, rank - len(tensor.shape))


def _aligned(labels: np.ndarray, rank: int) -> np.ndarray:
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def _size(tensor: gs.Tensor, axis: int, rank: int) -> int:
    """The size of a tensor along an axis of the `rank` that it is broadcast to."""
    place = axis - rank + len(tensor.shape)
    return tensor.shape[place] if place >= 0 else 1


def _unlike(node: gs.Node, tensor: gs.Tensor) -> str:
    return f"{title(node)} combines it with '{tensor.name}', a part of which stays"


def _quantize(walk: Walk, node: gs.Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    if is_constant(x) and is_constant(y):
        return
    if node.attrs.get("block_size", 0):
        raise Stays(f"{title(node)} has a scale for every block of '{x.name}'")
    walk.put(y, walk[x])
    for index in (1, 2):
        walk.follow(node, index, y, node.attrs.get("axis", 1) % max(len(x.shape), 1))


_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Cos", "Cosh", "Dropout",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish",
    "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
    "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip

_BROADCASTING = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Clip", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum",
    "Where", "Xor",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys((*_UNARY, *_BROADCASTING), _elementwise),
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _quantize,
}
