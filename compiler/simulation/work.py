"""What the kernels of a network have to do, as columns of numbers: what a roofline is computed from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import onnx_graphsurgeon as gs

from nnc import measure
from nnc.simulation.kernels import Kernel, elements, tensor_bytes

#: Classes of operators that reach different shares of a machine's peak. The last one multiplies nothing.
CLASSES = ("winograd", "conv", "pointwise", "grouped", "depthwise", "other")

# Operators that only move data, and those that cost nothing: they give the same values another shape.
# fmt: off
_COPIES = {
    "Cast", "Concat", "DepthToSpace", "Expand", "Gather", "Pad", "Slice", "SpaceToDepth", "Split", "Tile", "Transpose",
}
# fmt: on
# Those that compute an exponential, a logarithm or a power of every value.
_TRANSCENDENTAL = {
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "LRN",
    "Log",
    "LogSoftmax",
    "Mish",
    "Pow",
    "Selu",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Swish",
    "Tanh",
}
# Rows and columns of a tile that Winograd's algorithm computes at once: F(4x4, 3x3), what engines take most often.
_TILE = 4

# Those that every engine computes with the layer in front of them; a sum or product with a constant is a bias or scale.
_FUSED = {"BatchNormalization", "Cast", "Clip", "DequantizeLinear", "LeakyRelu", "PRelu", "QuantizeLinear", "Relu"}

_VIEWS = {"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Work:
    """One row per kernel, each figure an array [kernels]."""

    kind: np.ndarray
    """Index into CLASSES."""
    macs: np.ndarray
    terms: np.ndarray
    """Products that are summed up for one output value."""
    channels: np.ndarray
    """Output channels of a layer, and of what works on images; 1 where there are none."""
    operations: np.ndarray
    """Of a kernel without MACs, beyond reading and writing: values in its windows."""
    functions: np.ndarray
    """Values that an exponential, a logarithm or a power is computed of."""
    read: np.ndarray
    """Values of activations read from memory."""
    written: np.ndarray
    weights: np.ndarray
    """Values of constants."""
    streamed_bytes: np.ndarray
    """Of what is read and written."""
    weight_bytes: np.ndarray
    starts: np.ndarray
    """1 where something has to be started, 0 for another view of the same values."""
    groups: np.ndarray
    """Of a convolution of the class "grouped"; 1 of everything else."""
    followers: np.ndarray
    """Nodes that join the anchor, without those that every engine fuses with it."""
    followed: np.ndarray
    """Values that they would read and write as kernels of their own."""
    tiles: np.ndarray
    """Values of the whole tiles that Winograd's algorithm computes, per value that is wanted; 1 of other classes."""

    def __len__(self) -> int:
        return len(self.macs)

    def cast(self, value_bytes: int) -> Work:
        """The same kernels with values of another width."""
        streamed = (self.read + self.written) * value_bytes
        return replace(self, streamed_bytes=streamed, weight_bytes=self.weights * value_bytes)


def work(executed: Sequence[Kernel]) -> Work:
    """The columns of kernels whose tensors have static shapes."""
    return Work(*np.array([_row(kernel) for kernel in executed], float).reshape(-1, len(fields(Work))).T)


def joined(works: Iterable[Work]) -> Work:
    """The kernels of several networks, one after the other."""
    columns = zip(*([getattr(each, field.name) for field in fields(Work)] for each in works), strict=True)
    return Work(*map(np.concatenate, columns))


def _row(kernel: Kernel) -> tuple[float, ...]:
    node = kernel.anchor
    kind = _class(node)
    followers = [each for each in kernel.nodes[1:] if not _is_always_fused(each)]
    multiplies = measure.macs(node)  # the anchor itself, not what joined it
    read, written = sum(map(elements, kernel.activations)), sum(map(elements, kernel.outputs))
    return (
        CLASSES.index(kind),
        kernel.macs,
        _terms(node) if multiplies else 1,
        _channels(node) if multiplies or len(node.outputs[0].shape or ()) == 4 else 1,
        0 if multiplies else _operations(node),
        sum(elements(each.outputs[0]) for each in kernel.nodes if each.op in _TRANSCENDENTAL),
        read,
        written,
        sum(map(elements, kernel.weights)),
        sum(map(tensor_bytes, kernel.activations)) + sum(map(tensor_bytes, kernel.outputs)),
        sum(map(tensor_bytes, kernel.weights)),
        node.op not in _VIEWS,
        node.attrs["group"] if kind == "grouped" else 1,
        len(followers),
        sum(map(_moved, followers)),
        _tiles(node) if kind == "winograd" else 1,
    )


def _is_always_fused(node: gs.Node) -> bool:
    return node.op in _FUSED | _VIEWS or (node.op in ("Add", "Mul") and len(_variables(node)) == 1)


def _moved(node: gs.Node) -> int:
    return sum(map(elements, [*_variables(node), node.outputs[0]]))


def _variables(node: gs.Node) -> list[gs.Variable]:
    return [tensor for tensor in node.inputs if isinstance(tensor, gs.Variable) and not tensor.is_empty()]


def _class(node: gs.Node) -> str:
    if not measure.macs(node):
        return "other"
    if node.op in measure.PRODUCTS:
        return "pointwise"
    depth, kernel = node.inputs[1].shape[1], list(node.inputs[1].shape[2:])
    grouped = node.attrs.get("group", 1) > 1
    if grouped and depth == 1:
        return "depthwise"
    if grouped:
        return "grouped"
    if math.prod(kernel) == 1:
        return "pointwise"
    strided = any(step != 1 for step in (*node.attrs.get("strides", ()), *node.attrs.get("dilations", ())))
    return "winograd" if node.op == "Conv" and kernel == [3, 3] and not strided else "conv"


def _channels(node: gs.Node) -> int:
    shape: Sequence[int] = node.outputs[0].shape or (1,)  # the product of two vectors is a number
    return max(1, shape[-1] if node.op in measure.PRODUCTS else shape[1])  # there may be none


def _terms(node: gs.Node) -> int:
    if node.op in measure.PRODUCTS:
        return node.inputs[0].shape[0 if node.attrs.get("transA") else -1]
    channels, *window = node.inputs[1].shape[1:]
    if node.op == "ConvTranspose":
        channels = node.inputs[1].shape[0] // node.attrs.get("group", 1)
    return channels * math.prod(window)


def _tiles(node: gs.Node) -> float:
    height, width = node.outputs[0].shape[2:]
    return math.ceil(height / _TILE) * math.ceil(width / _TILE) * _TILE**2 / (height * width)


def _operations(node: gs.Node) -> int:
    if node.op in _COPIES | _VIEWS:
        return 0
    return elements(node.outputs[0]) * math.prod(node.attrs.get("kernel_shape", [1]))
