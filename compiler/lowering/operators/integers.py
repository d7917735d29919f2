"""Convolutions and products of integers, in the operators of ONNX that are not QDQ pairs."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import te, topi

from nnc.lowering.operators import arithmetic
from nnc.lowering.operators.sliding import Sliding
from nnc.lowering.pieces import Value, Work, constant

Expr = Any


def quantized_convolution(work: Work) -> list[Value]:
    """QLinearConv: what it stands for, on the numbers that its integers stand for."""
    x = work.apply("DequantizeLinear", *work.inputs()[:3])[0]
    W = work.apply("DequantizeLinear", *work.inputs()[3:6], axis=0)[0]
    operands = [x, W]
    if work.has(8):
        scale = (work.array(1) * work.array(4)).reshape(-1).astype(np.float32)
        operands.append(constant(work.array(8).astype(np.float32) * scale))
    return work.apply("QuantizeLinear", work.apply("Conv", *operands, **work.node.attrs)[0], *work.inputs()[6:8])


def quantized_product(work: Work) -> list[Value]:
    """QLinearMatMul, likewise: rows of `a` may have a scale each, and columns of `b`."""
    a = work.apply("DequantizeLinear", *work.inputs()[:3], axis=-2)[0]
    b = work.apply("DequantizeLinear", *work.inputs()[3:6], axis=-1)[0]
    return work.apply("QuantizeLinear", work.apply("MatMul", a, b)[0], *work.inputs()[6:8])


def integer_convolution(work: Work) -> list[Value]:
    """ConvInteger: exact, with 32 bits."""
    shifted = [_without_zero_point(work, place) for place in (0, 1)]
    slide = Sliding.of(work, shifted[1].shape[2:])

    def conv(X: te.Tensor, W: te.Tensor) -> te.Tensor:
        pads = [*slide.starts, *slide.ends]
        axes = "DHW"[-len(slide.kernel) :]
        return topi.nn.conv(X, W, slide.strides, pads, slide.dilations, slide.groups, f"NC{axes}", f"OI{axes}", "int32")

    return [work.compute(shifted, conv)]


def _without_zero_point(work: Work, place: int) -> Value:
    """An operand of ConvInteger less its zero point, of which the weights may have one per output channel."""
    value, operands = work.input(place), [work.input(place)]
    if work.has(place + 2):
        zero = work.input(place + 2)
        operands.append(zero.view(prod(zero.shape), *[1] * (len(value.shape) - 1)))

    def difference(number: Expr, zero: Expr = None) -> Expr:
        return number.astype("int32") if zero is None else number.astype("int32") - zero.astype("int32")

    return arithmetic.apply(work, difference, operands, "int32", value.shape)


OPERATORS = {
    "ConvInteger": integer_convolution,
    "QLinearConv": quantized_convolution,
    "QLinearMatMul": quantized_product,
}
