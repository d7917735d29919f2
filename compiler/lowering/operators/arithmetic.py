"""Operators on every element by itself, of all types. The functions of float32 are those of `scalar.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from nnc.lowering import scalar
from nnc.lowering.kernels import elementwise
from nnc.lowering.pieces import Refused, Value, Work, constant

Expr = Any
Function = Callable[..., Expr]


def apply(work: Work, function: Function, operands: Sequence[Value], dtype: str, shape: tuple[int, ...]) -> Value:
    """`function(*operands)` for every element, the operands broadcast to `shape`; single constants become code."""
    read = [each for each in operands if not _is_number(each)]
    sizes, merged = elementwise.merged(shape, [each.shape for each in read])

    def emit(values: list[Expr]) -> Expr:
        left = iter(values)
        return function(*(_number(each) if _is_number(each) else next(left) for each in operands))

    views = [each.view(*size) for each, size in zip(read, merged, strict=True)]
    return work.kernel(views, lambda *ins: elementwise.compute(ins, sizes, work.unit, emit, dtype)).view(*shape)


def _is_number(value: Value) -> bool:
    return value.values is not None and value.values.size == 1


def _number(value: Value) -> Expr:
    assert value.values is not None
    return tirx.const(value.values.reshape(()).item(), value.dtype)


def _on_inputs(work: Work, function: Function) -> list[Value]:
    return [apply(work, function, work.inputs(), work.dtype(), work.shape())]


# -- functions of a type


def _is_float(dtype: str) -> bool:
    return dtype.startswith("float")


def _zero(x: Expr) -> Expr:
    return tirx.const(0, x.ty.dtype)


def _divide(dtype: str) -> Function:
    return (lambda x, y: x / y) if _is_float(dtype) else tirx.truncdiv


def _sign(dtype: str) -> Function:
    def function(x: Expr) -> Expr:
        one = tirx.const(1, dtype)
        below = _zero(x) if dtype.startswith("uint") else tirx.Select(x < _zero(x), -one, _zero(x))
        return tirx.Select(x > _zero(x), one, below)

    return function


def _compare(compare: Function) -> Callable[[str], Function]:
    """A comparison; LLVM can't compare the single bits that TVM makes of Booleans."""

    def typed(dtype: str) -> Function:
        if dtype != "bool":
            return compare
        return lambda x, y: compare(x.astype("int8"), y.astype("int8"))

    return typed


def _any_type(function: Function) -> Callable[[str], Function]:
    return lambda dtype: function


TYPED: dict[str, Callable[[str], Function | None]] = {
    "Abs": lambda dtype: (lambda x: x) if dtype.startswith("uint") else tirx.abs,
    "Add": _any_type(lambda x, y: x + y),
    "And": _any_type(tirx.And),
    "BitwiseAnd": _any_type(lambda x, y: x & y),
    "BitwiseNot": _any_type(lambda x: ~x),
    "BitwiseOr": _any_type(lambda x, y: x | y),
    "BitwiseXor": _any_type(lambda x, y: x ^ y),
    "Div": _divide,
    "Equal": _compare(lambda x, y: x == y),
    "Greater": _compare(lambda x, y: x > y),
    "GreaterOrEqual": _compare(lambda x, y: x >= y),
    "Less": _compare(lambda x, y: x < y),
    "LessOrEqual": _compare(lambda x, y: x <= y),
    "Max": _any_type(lambda *xs: reduce(tirx.max, xs)),
    "Min": _any_type(lambda *xs: reduce(tirx.min, xs)),
    "Mul": _any_type(lambda x, y: x * y),
    "Neg": _any_type(lambda x: -x),
    "Not": _any_type(tirx.Not),
    "Or": _any_type(tirx.Or),
    "Relu": _any_type(lambda x: tirx.max(x, _zero(x))),
    "Round": lambda dtype: lambda x: tirx.call_llvm_pure_intrin(dtype, "llvm.nearbyint", x),
    "Sign": _sign,
    "Sub": _any_type(lambda x, y: x - y),
    "Sum": _any_type(lambda *xs: reduce(lambda x, y: x + y, xs)),
    "Where": _any_type(tirx.Select),
    "Xor": _any_type(lambda x, y: x.astype("int8") != y.astype("int8")),
}
"""Operator -> its function for operands of a type."""


def elementwise_operator(work: Work) -> list[Value] | None:
    op, types = work.node.op, {each.dtype for each in work.inputs()}
    if op in scalar.FUNCTIONS and types == {"float32"}:
        return _on_inputs(work, lambda *xs: scalar.FUNCTIONS[op](*xs, **_attributes(work)))
    function = TYPED[op](work.inputs()[-1].dtype) if op in TYPED else None
    return None if function is None else _on_inputs(work, function)


def _attributes(work: Work) -> dict[str, Any]:
    return {key: work.attribute(key) for key in work.node.attrs if key not in ("axis", "consumed_inputs")}


# -- types


def cast(work: Work) -> list[Value]:
    """Cast and CastLike: fractions are cut off, what does not fit wraps around."""
    x, dtype = work.input(0), work.dtype()
    if x.dtype == dtype:
        return [x]
    return [apply(work, lambda value: converted(value, x.dtype, dtype), [x], dtype, x.shape)]


def converted(x: Expr, source: str, dtype: str) -> Expr:
    """A value as another type. Fractions go through 32 or 64 bits: that is what machines convert to."""
    if dtype == "bool":
        return x != tirx.const(0, source)
    if source == "float16" and not dtype.startswith("float"):
        return converted(x.astype("float32"), "float32", dtype)
    if dtype == "float16" and not source.startswith("float"):
        return x.astype("float32").astype("float16")
    if _is_float(source) and dtype in ("int8", "uint8", "int16", "uint16"):
        return x.astype("int32").astype(dtype)
    if _is_float(source) and dtype in ("uint32", "uint64"):
        return x.astype("int64").astype(dtype)
    return x.astype(dtype)


def same(work: Work) -> list[Value]:
    """Identity, and Dropout, which keeps everything."""
    return [work.input(0), *[constant(np.ones(work.shape(1), bool)) for _ in work.node.outputs[1:]]]


def clip(work: Work) -> list[Value]:
    x = work.input(0)
    low, high = (work.input(index) if work.has(index) else None for index in (1, 2))
    bounds = [each for each in (low, high) if each is not None]

    def function(value: Expr, *limits: Expr) -> Expr:
        if low is not None:
            value = tirx.max(value, limits[0])
        return value if high is None else tirx.min(value, limits[-1])

    return [apply(work, function, [x, *(each.view(*[1] * len(x.shape)) for each in bounds)], x.dtype, x.shape)]


# -- numbers of special kinds

_BITS = {"float32": ("int32", 0x7F800000), "float64": ("int64", 0x7FF0000000000000)}


def _magnitude(x: Expr, dtype: str) -> tuple[Expr, Expr]:
    """The bits of |x|, and those of infinity: above are the NaNs."""
    integer, infinity = _BITS[dtype]
    limit = tirx.const(infinity, integer)
    return tirx.reinterpret(integer, tirx.abs(x)), limit


def is_nan(work: Work) -> list[Value]:
    def function(x: Expr) -> Expr:
        bits, infinity = _magnitude(x, work.input(0).dtype)
        return bits > infinity

    return _on_inputs(work, function)


def is_infinite(work: Work) -> list[Value]:
    below, above = (bool(work.attribute(f"detect_{sign}", 1)) for sign in ("negative", "positive"))

    def function(x: Expr) -> Expr:
        bits, infinity = _magnitude(x, work.input(0).dtype)
        found = bits == infinity
        if not below:
            found = tirx.And(found, x > _zero(x))
        return found if above else tirx.And(found, x < _zero(x))

    return _on_inputs(work, function)


def modulo(work: Work) -> list[Value]:
    """With the sign of the divisor, or with fmod = 1 that of the dividend; fractions go through the C library."""
    if _is_float(work.dtype()):
        return _on_inputs(work, tirx.truncmod)
    return _on_inputs(work, tirx.truncmod if work.attribute("fmod", 0) else tirx.floormod)


def shift(work: Work) -> list[Value]:
    left = work.attribute("direction") == "LEFT"
    return _on_inputs(work, (lambda x, y: x << y) if left else (lambda x, y: x >> y))


def power(work: Work) -> list[Value] | None:
    """Pow, whose exponent may have another type."""
    x, y = work.inputs()
    exponent = y.values.reshape(()).item() if _is_number(y) and y.values is not None else None
    if x.dtype == "float32":
        if exponent is not None:
            return [apply(work, lambda v: scalar.power(v, scalar.real(exponent)), [x], x.dtype, x.shape)]
        return _on_inputs(work, lambda v, e: scalar.power(v, e.astype("float32")))
    if exponent is not None and "int" in x.dtype and exponent in range(1, 9):
        return [apply(work, lambda v: reduce(lambda a, b: a * b, [v] * int(exponent)), [x], x.dtype, x.shape)]
    return _on_inputs(work, lambda v, e: tirx.pow(v.astype("float64"), e.astype("float64")).astype(x.dtype))


# -- along channels


def batch_normalization(work: Work) -> list[Value] | None:
    """With the statistics of training, as one multiplication and one addition where they are constant."""
    x = work.input(0)
    if x.dtype != "float32" or work.attribute("training_mode", 0):
        return None
    epsilon, along = float(work.attribute("epsilon", 1e-5)), (1, x.shape[1], *[1] * (len(x.shape) - 2))
    statistics = [work.input(index) for index in range(1, 5)]
    arrays = [each.values for each in statistics if each.values is not None]
    if len(arrays) == 4:
        gamma, beta, mean, variance = (each.astype(np.float64) for each in arrays)
        scale = gamma / np.sqrt(variance + epsilon)
        affine = [constant(each.astype(np.float32).reshape(along)) for each in (scale, beta - mean * scale)]
        return [apply(work, lambda v, a, b: v * a + b, [x, *affine], x.dtype, x.shape)]

    def function(v: Expr, gamma: Expr, beta: Expr, mean: Expr, variance: Expr) -> Expr:
        return (v - mean) * (gamma / tirx.sqrt(variance + scalar.real(epsilon))) + beta

    return [apply(work, function, [x, *(each.view(*along) for each in statistics)], x.dtype, x.shape)]


# -- quantization


def quantize(work: Work) -> list[Value] | None:
    x, dtype = work.input(0), work.dtype()
    if dtype not in ("int8", "uint8", "int16", "uint16") or x.dtype not in ("float32", "int32"):
        return None
    limits = np.iinfo(dtype)
    operands = [x, *(_along_axis(work, each) for each in work.inputs()[1:])]

    def function(value: Expr, scale: Expr, zero: Expr = None) -> Expr:
        steps = scalar.round_half_even(value.astype("float32") / scale)
        shifted = steps if zero is None else steps + zero.astype("float32")
        return scalar.clip(shifted, scalar.real(limits.min), scalar.real(limits.max)).astype("int32").astype(dtype)

    return [apply(work, function, operands, dtype, x.shape)]


def dequantize(work: Work) -> list[Value] | None:
    x, dtype = work.input(0), work.dtype()
    if x.dtype not in ("int8", "uint8", "int16", "uint16", "int32") or dtype != "float32":
        return None
    operands = [x, *(_along_axis(work, each) for each in work.inputs()[1:])]

    def function(value: Expr, scale: Expr, zero: Expr = None) -> Expr:
        shifted = value.astype("int32") if zero is None else value.astype("int32") - zero.astype("int32")
        return shifted.astype("float32") * scale

    return [apply(work, function, operands, dtype, x.shape)]


def _along_axis(work: Work, value: Value) -> Value:
    """A scale or zero point with the axes of what it belongs to: one number, one per channel, or one per block."""
    x, block = work.input(0), work.attribute("block_size", 0)
    if prod(value.shape) == 1:
        return value.view(*[1] * len(x.shape))
    axis = work.axis(1)
    if block:
        if value.values is None:
            raise Refused("scales of blocks have to be constant")
        return constant(np.repeat(value.values, block, axis).take(range(x.shape[axis]), axis))
    return value.view(*(size if place == axis else 1 for place, size in enumerate(x.shape)))


OPERATORS = {
    **dict.fromkeys([*TYPED, *scalar.FUNCTIONS], elementwise_operator),
    "BatchNormalization": batch_normalization,
    "BitShift": shift,
    "Cast": cast,
    "CastLike": cast,
    "Clip": clip,
    "DequantizeLinear": dequantize,
    "Dropout": same,
    "Identity": same,
    "IsInf": is_infinite,
    "IsNaN": is_nan,
    "Mod": modulo,
    "Pow": power,
    "QuantizeLinear": quantize,
}
