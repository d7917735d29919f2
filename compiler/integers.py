"""Which parts of a QDQ graph compute with integers.

QuantizeLinear and DequantizeLinear in ONNX say what a tensor is worth, not how a node computes. A Conv that reads
DequantizeLinear on both sides multiplies integers; a MaxPool between them only moves them. `layer`
says what a node of the first kind multiplies, or why it does not; nnc.lowering.settle rewrites a graph so that the
second kind really reads integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import output_axis
from nnc.model.proto import is_standard

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply integers."""

PRODUCTS = ("Gemm", "MatMul")
"""Operators whose weights can be integers while activations stay floats."""

MOVES: dict[str, int | None] = {
    "Concat": None, "DepthToSpace": 1, "Expand": 1, "Flatten": 1, "Gather": 1, "GlobalMaxPool": 1, "Identity": 1,
    "MaxPool": 1, "Pad": 1, "Reshape": 1, "Resize": 1, "Slice": 1, "SpaceToDepth": 1, "Split": 1, "Squeeze": 1,
    "Tile": 1, "Transpose": 1, "Unsqueeze": 1,
}  # fmt: skip
"""Operators whose outputs hold values of their inputs, or the largest of some, and how many of these are data (None:
all): both commute with rounding to a grid."""


@dataclass(frozen=True)
class Quantization:
    """What the integers of a tensor stand for: `(q - zero) * scale`."""

    dtype: str
    scale: float
    zero: int

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest integer."""
        limits = np.iinfo(self.dtype)
        return int(limits.min), int(limits.max)


@dataclass(frozen=True)
class Layer:
    """The integers that a layer multiplies."""

    x: gs.Tensor
    quantization: Quantization
    W: np.ndarray
    """int8, in the layout of the node's weights; zero stands for zero. int16 where wide ones do not fit."""
    scales: np.ndarray
    """float32 [channels] of the weights, by output channel."""


@dataclass(frozen=True)
class Weights:
    """The integers that a product of floats has for weights."""

    W: np.ndarray
    """int8 [depth, columns]; zero stands for zero."""
    scales: np.ndarray
    """float32 [groups, columns]."""
    group: int
    """Inputs, one behind the other, that share their scales; the last group may have fewer."""


def of(node: gs.Node) -> Quantization | None:
    """What a QuantizeLinear or DequantizeLinear with one 8-bit scale and zero point says; None for all others."""
    if not is_standard(node, "QuantizeLinear", "DequantizeLinear"):
        return None
    parameters = [tensor for tensor in node.inputs[1:] if not tensor.is_empty()]
    if not all(isinstance(each, gs.Constant) and each.values.size == 1 for each in parameters):
        return None
    integers = node.inputs[0] if node.op == "DequantizeLinear" else node.outputs[0]
    scale, *zero = (each.values.reshape(()) for each in parameters)
    dtype = zero[0].dtype if zero else np.dtype(integers.dtype or np.uint8)
    if dtype.kind not in "iu" or dtype.itemsize != 1 or scale.dtype != np.float32:
        return None
    return Quantization(dtype.name, float(scale), int(zero[0]) if zero else 0)


def dequantized(tensor: gs.Tensor) -> tuple[gs.Tensor, Quantization] | None:
    """The integers that a value is made of, and what they stand for; None where it is not DequantizeLinear's."""
    if isinstance(tensor, gs.Constant) or len(tensor.inputs) != 1 or tensor.inputs[0].op != "DequantizeLinear":
        return None
    quantization, source = of(tensor.inputs[0]), tensor.inputs[0].inputs[0]
    return None if quantization is None or isinstance(source, gs.Constant) else (source, quantization)


# -- layers


def layer(node: gs.Node, wide: bool = False) -> Layer | str | None:
    """The integers that a layer multiplies, or the reason why it computes in floats.

    None for other operators, and for a layer that has nothing to do with integers. `wide`: whether weights may be the
    sums of two bytes, as those of eight bits less their zero point are.
    """
    if not is_standard(node, *LAYERS) or len(node.inputs) < 2:
        return None
    x, weights = dequantized(node.inputs[0]), node.inputs[1]
    stored = _stored(weights)
    if x is None and stored is None:
        return None
    if x is None:
        if weights_of(node):
            return None
        is_dynamic = _has_computed_scale(node.inputs[0])
        return "the scale of its input is computed" if is_dynamic else "its input is not quantized"
    if stored is None:
        return "its weights are not quantized" if _is_constant(weights) else "both of its inputs are computed"
    return _layer(node, *x, stored, wide)


def _has_computed_scale(x: gs.Tensor) -> bool:
    """Whether integers stand for a value in a way that is not known before, as in dynamic quantization."""
    maker = x.inputs[0] if x.inputs else None
    return maker is not None and is_standard(maker, "DequantizeLinear") and not isinstance(maker.inputs[1], gs.Constant)


def _is_constant(tensor: gs.Tensor) -> bool:
    """Whether a tensor is one, or computed from nothing else in one step."""
    if isinstance(tensor, gs.Constant):
        return True
    return bool(tensor.inputs) and all(isinstance(each, gs.Constant) for each in tensor.inputs[0].inputs)


@dataclass(frozen=True)
class _Stored:
    """Weights as integers around zero, int8 or int16, their scales, and the axis that the scales are along."""

    W: np.ndarray
    scales: np.ndarray
    axis: int
    block: int
    """Neighbours along the axis that share a scale, which has the rank of W then; 0 where each has its own."""

    @property
    def fits_int8(self) -> bool:
        return bool(self.W.min(initial=0) >= -128 and self.W.max(initial=0) <= 127)

    @property
    def fits_two(self) -> bool:
        """Whether every integer is the sum of two that fit into int8."""
        return bool(self.W.min(initial=0) >= -256 and self.W.max(initial=0) <= 254)


def _stored(weights: gs.Tensor) -> _Stored | None:
    """What DequantizeLinear makes weights of, if that is constant and has 8 bits."""
    if isinstance(weights, gs.Constant) or len(weights.inputs) != 1 or weights.inputs[0].op != "DequantizeLinear":
        return None
    node = weights.inputs[0]
    given = [tensor for tensor in node.inputs if not tensor.is_empty()]
    if not all(isinstance(each, gs.Constant) for each in given):
        return None
    values, scale, *zero = (each.values for each in given)
    if values.dtype not in (np.int8, np.uint8):
        return None
    axis, block = node.attrs.get("axis", 1) % max(values.ndim, 1), node.attrs.get("block_size", 0)
    if values.dtype == np.uint8 or any(map(np.any, zero)):
        values = values.astype(np.int16)
        if zero:
            values = values - spread(zero[0].astype(np.int16), values.shape, axis, block)
    return _Stored(values, scale if block else scale.reshape(-1), axis, block)


def spread(parameters: np.ndarray, shape: Sequence[int], axis: int | None, block: int = 0) -> np.ndarray:
    """Scales or zero points of DequantizeLinear so that they broadcast against values of `shape`.

    They are one for all or along `axis`, where `block` neighbours share one.
    """
    if block and axis is not None:
        return np.repeat(parameters, block, axis).take(range(shape[axis]), axis)
    if axis is None or parameters.size == 1:
        return parameters.reshape(())
    return parameters.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])


def weights_of(node: gs.Node) -> Weights | None:
    """The integers that a Gemm or MatMul multiplies floats with, if it does and there is a kernel for it."""
    if not is_standard(node, *PRODUCTS) or len(node.inputs) < 2:
        return None
    x, stored = node.inputs[0], _stored(node.inputs[1])
    if stored is None or isinstance(x, gs.Constant) or x.dtype != np.float32 or dequantized(x) is not None:
        return None
    if _unlike_others(node, stored.W) or not stored.fits_int8 or _has_computed_share(node):
        return None
    W, scales, outputs = stored.W.astype(np.int8, copy=False), stored.scales, output_axis(node)
    depth, columns = W.shape[1 - outputs], W.shape[outputs]
    if stored.block:
        if stored.axis == outputs:
            return None
        scales = scales if outputs == 1 else scales.T
    elif scales.size > 1 and (stored.axis != outputs or scales.size != columns):
        return None
    groups = len(scales) if stored.block else 1
    wide = np.broadcast_to(scales.astype(np.float32), (groups, columns))
    return Weights(W if outputs == 1 else W.T, wide, stored.block or depth)


def _has_computed_share(node: gs.Node) -> bool:
    """Whether a Gemm adds a part of something that is computed."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return not (bias is None or bias.is_empty() or isinstance(bias, gs.Constant)) and node.attrs.get("beta", 1.0) != 1.0


def _layer(node: gs.Node, x: gs.Tensor, quantization: Quantization, stored: _Stored, wide: bool) -> Layer | str:
    W, scales, outputs = stored.W, stored.scales, output_axis(node)
    if reason := _unlike_others(node, W):
        return reason
    if stored.block:
        return "its weights have scales for blocks of inputs"
    if scales.size > 1 and (stored.axis != outputs or scales.size != W.shape[outputs]):
        return "its weights have scales along another axis than the output channels"
    if not stored.fits_int8 and not (wide and stored.fits_two):
        return "its weights less their zero point do not fit into int8"
    if W.size // W.shape[outputs] > 2**31 // (255 * (128 if stored.fits_int8 else 256)):
        return "its sums do not fit into int32"
    along = np.broadcast_to(scales.astype(np.float32), W.shape[outputs])
    if node.op == "ConvTranspose":  # whose groups share them
        along = np.tile(along, node.attrs.get("group", 1))
    integers = W.astype(np.int8 if stored.fits_int8 else np.int16, copy=False)
    return Layer(x, quantization, integers, np.ascontiguousarray(along))


def _unlike_others(node: gs.Node, W: np.ndarray) -> str:
    """Why a layer has no kernel for integers, as few networks have it; nothing where it has one."""
    if node.op == "Gemm":
        return "its input is transposed" if node.attrs.get("transA", 0) else ""
    if node.op == "MatMul":
        return "" if W.ndim == 2 and len(node.inputs[0].shape or ()) > 1 else "its weights are more than a matrix"
    if W.ndim not in (3, 4):
        return "its window has more than two axes"
    if min(node.attrs.get("pads", (0,)), default=0) < 0:
        return "its padding is negative"
    if node.op == "Conv":
        return ""
    strides, dilations = (node.attrs.get(key, [1] * (W.ndim - 2)) for key in ("strides", "dilations"))
    if set(dilations) != {1} or any(stride > taps for stride, taps in zip(strides, W.shape[2:], strict=True)):
        return "its window has gaps"
    return ""


def is_move(node: gs.Node) -> bool:
    """Whether a node only moves 8-bit integers as well as it moves floats."""
    if not is_standard(node, *MOVES):
        return False
    if node.outputs[0].dtype != np.float32 or sum(bool(tensor.name) for tensor in node.outputs) != 1:
        return False
    if node.op == "Resize":
        return node.attrs.get("mode", "nearest") == "nearest"
    if node.op == "Pad":
        value = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
        is_zero = value is None or (isinstance(value, gs.Constant) and not np.any(value.values))
        return is_zero and len(node.inputs) > 1 and node.attrs.get("mode", "constant") == "constant"
    return True
