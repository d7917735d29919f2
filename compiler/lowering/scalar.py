"""Elementwise ONNX operators as TIR expressions on one float32 value, vectorized by the loop around them.

Transcendental functions are polynomials here: calls into the C library would be one scalar call per element. The
coefficients of `exp` are those of Cephes (Moshier), with an error below 1 ulp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

Expr = Any
Attributes = Mapping[str, Any]


def real(value: float) -> Expr:
    """A float32 constant."""
    return tirx.const(float(value), "float32")


def exp(x: Expr) -> Expr:
    """e^x = 2^n * e^r with n = round(x / ln 2); saturates where float32 does."""
    x = T.bind(tirx.max(tirx.min(x, real(88.7)), real(-87.3)))
    n = T.bind(tirx.floor(x * real(math.log2(math.e)) + real(0.5)))
    r = T.bind(x - n * real(0.693359375) + n * real(2.12194440e-4))  # ln 2 in two parts
    coefficients = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
    p = _polynomial(coefficients, r)
    return (p * r * r + r + real(1)) * tirx.reinterpret("float32", (n.astype("int32") + 127) << 23)


def log1p_exp(x: Expr) -> Expr:
    """log(1 + e^x), without overflow."""
    return tirx.max(x, real(0)) + tirx.log(real(1) + exp(-tirx.abs(x)))


def sigmoid(x: Expr) -> Expr:
    return real(1) / (real(1) + exp(-x))


def tanh(x: Expr) -> Expr:
    """Near zero by its odd polynomial (Cephes), elsewhere by exp."""
    x = T.bind(x)
    square = T.bind(x * x)
    coefficients = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
    near = x + x * square * _polynomial(coefficients, square)
    far = real(1) - real(2) / (exp(tirx.abs(x) * real(2)) + real(1))
    return tirx.Select(tirx.abs(x) < real(0.625), near, tirx.Select(x < real(0), -far, far))


def erf(x: Expr) -> Expr:
    """Abramowitz and Stegun 7.1.26 away from zero (error 1.5e-7), the Taylor series near it."""
    x = T.bind(x)
    size, square = T.bind(tirx.abs(x)), T.bind(x * x)
    t = T.bind(real(1) / (real(1) + real(0.3275911) * size))
    tail = _polynomial((1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592), t) * t
    far = real(1) - tail * exp(-square)
    series = [(-1) ** k / (math.factorial(k) * (2 * k + 1)) for k in range(6, -1, -1)]
    near = x * real(2 / math.sqrt(math.pi)) * _polynomial(series, square)
    return tirx.Select(size < real(0.5), near, tirx.Select(x < real(0), -far, far))


def round_half_even(x: Expr) -> Expr:
    """To the nearest integer, ties to even: adding 1.5 * 2^23 leaves no bits for the fraction."""
    magic = real(12582912.0)
    rounded = T.bind((x + magic) - magic)
    return tirx.Select(tirx.abs(x) < real(4194304.0), rounded, x)


def clip(x: Expr, low: Expr, high: Expr) -> Expr:
    return tirx.min(tirx.max(x, low), high)


def hard_sigmoid(x: Expr, alpha: float = 0.2, beta: float = 0.5) -> Expr:
    return clip(x * real(alpha) + real(beta), real(0), real(1))


def _polynomial(coefficients: Any, x: Expr) -> Expr:
    """Horner's rule, the highest power first."""
    return reduce(lambda total, c: total * x + real(c), coefficients[1:], real(coefficients[0]))


def _elu(x: Expr, alpha: float = 1.0, gamma: float = 1.0) -> Expr:
    x = T.bind(x)
    return real(gamma) * tirx.Select(x > real(0), x, real(alpha) * (exp(x) - real(1)))


def _gelu(x: Expr, approximate: str = "none") -> Expr:
    x = T.bind(x)
    if approximate == "tanh":
        inner = tanh(real(math.sqrt(2 / math.pi)) * (x + real(0.044715) * x * x * x))
    else:
        inner = erf(x * real(math.sqrt(0.5)))
    return real(0.5) * x * (real(1) + inner)


def _times(function: Callable[..., Expr]) -> Callable[..., Expr]:
    """x * function(x)."""

    def product(x: Expr, **attributes: Any) -> Expr:
        x = T.bind(x)
        return x * function(x, **attributes)

    return product


def _leaky(x: Expr, alpha: float = 0.01) -> Expr:
    return _prelu(x, real(alpha))


def _prelu(x: Expr, slope: Expr) -> Expr:
    x = T.bind(x)
    return tirx.Select(x < real(0), x * slope, x)


def _fake_quantize(x: Expr, scale: Expr, zero: Expr, low: float, high: float) -> Expr:
    """The integers of QuantizeLinear, as float32."""
    return clip(round_half_even(x / scale) + zero, real(low), real(high))


FUNCTIONS: dict[str, Callable[..., Expr]] = {
    "Abs": tirx.abs,
    "Add": lambda x, y: x + y,
    "Affine": lambda x, scale, shift: x * scale + shift,
    "Ceil": tirx.ceil,
    "Clip": clip,
    "Dequantize": lambda x, scale, zero: (x - zero) * scale,
    "Div": lambda x, y: x / y,
    "Elu": _elu,
    "Erf": erf,
    "Exp": exp,
    "Floor": tirx.floor,
    "Gelu": _gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": _times(lambda x: hard_sigmoid(x, 1 / 6, 0.5)),
    "Identity": lambda x: x,
    "LeakyRelu": _leaky,
    "Max": lambda *xs: reduce(tirx.max, xs),
    "Min": lambda *xs: reduce(tirx.min, xs),
    "Mish": _times(lambda x: tanh(log1p_exp(x))),
    "Mul": lambda x, y: x * y,
    "Neg": lambda x: -x,
    "PRelu": _prelu,
    "Quantize": _fake_quantize,
    "Reciprocal": lambda x: real(1) / x,
    "Relu": lambda x: tirx.max(x, real(0)),
    "Round": round_half_even,
    "Selu": lambda x, alpha=1.67326319, gamma=1.05070098: _elu(x, alpha, gamma),
    "Sigmoid": sigmoid,
    "Softplus": log1p_exp,
    "Softsign": lambda x: x / (real(1) + tirx.abs(x)),
    "Sqrt": tirx.sqrt,
    "Sub": lambda x, y: x - y,
    "Sum": lambda *xs: reduce(lambda x, y: x + y, xs),
    "Swish": _times(lambda x, alpha=1.0: sigmoid(real(alpha) * x)),
    "Tanh": tanh,
    "ThresholdedRelu": lambda x, alpha=1.0: tirx.Select(x > real(alpha), x, real(0)),
}
"""Operator of a step -> function of its arguments, with the attributes as keywords."""

FINITE = {"Abs", "Add", "Affine", "Clip", "Dequantize", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Identity"} | {
    "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Quantize", "Relu", "Round", "Selu", "Sigmoid",
    "Softplus", "Softsign", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Ceil", "Floor", "Erf",
}  # fmt: skip
"""Those whose value is finite for every finite argument: the others must not run on the padding of channels."""
