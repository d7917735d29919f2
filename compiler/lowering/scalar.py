"""Elementwise ONNX operators as TIR expressions on one float32 value, vectorized by the loop around them.

Transcendental functions are polynomials here: calls into the C library would be one scalar call per element. Ranges and
coefficients are those of Cephes (Moshier), with errors of a few units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx.script.builder.frame import ForFrame

from nnc.lowering.kernels.registers import memory

Expr = Any
Attributes = Mapping[str, Any]


def real(value: float) -> Expr:
    """A float32 constant."""
    return tirx.const(float(value), "float32")


def bind(value: Expr) -> Expr:
    """Compute a float32 value once per step of the innermost loop.

    It is kept in a small buffer, which LLVM turns into a register. TVM's own binding would be written out wherever its
    name is used, and what is bound inside of it again: functions of functions would never compile. The buffer is
    declared over its memory, or TVM would let the lanes of a vectorized loop share an element.
    """
    lane, lanes = _innermost_loop()
    held = T.buffer_proxy(T.decl_buffer((lanes,), "float32", data=memory(lanes).data))
    held[lane] = value
    return held[lane]


def _innermost_loop() -> tuple[Expr, int]:
    """The variable of the loop that is being emitted, and its extent."""
    loops = [frame for frame in IRBuilder.current().frames if isinstance(frame, ForFrame)]
    return loops[-1].vars[0], int(loops[-1].doms[0].extent)


def exp(x: Expr) -> Expr:
    """e^x = 2^n * e^r with n = round(x / ln 2); saturates where float32 does."""
    x = bind(tirx.max(tirx.min(x, real(88.37)), real(-87.3)))
    n = bind(tirx.floor(x * real(math.log2(math.e)) + real(0.5)))
    r = bind(x - n * real(0.693359375) + n * real(2.12194440e-4))  # ln 2 in two parts
    coefficients = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
    p = _polynomial(coefficients, r)
    return (p * r * r + r + real(1)) * tirx.reinterpret("float32", (n.astype("int32") + 127) << 23)


def log(x: Expr) -> Expr:
    """x = 2^e * m with m in [sqrt(1/2), sqrt(2)); log x = e * ln 2 + log m. Subnormal numbers are scaled up first."""
    x = bind(x)
    small = x < real(1.17549435e-38)
    bits = tirx.reinterpret("int32", tirx.Select(small, x * real(8388608.0), x))
    e = (bits - 0x3F3504F3) >> 23
    f = bind(tirx.reinterpret("float32", bits - (e << 23)) - real(1))
    shift = bind(e.astype("float32") - tirx.Select(small, real(23), real(0)))
    square = bind(f * f)
    coefficients = (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )  # fmt: skip
    tail = f * square * _polynomial(coefficients, f) - shift * real(2.12194440e-4) - real(0.5) * square
    value = bind(f + tail + shift * real(0.693359375))  # ln 2 in two parts
    outside = tirx.Select(x < real(0), real(math.nan), tirx.Select(x == real(0), real(-math.inf), x))
    return tirx.Select(tirx.all(x > real(0), x < real(math.inf)), value, outside)


def log1p_exp(x: Expr) -> Expr:
    """log(1 + e^x), without overflow."""
    x = bind(x)
    return tirx.max(x, real(0)) + log(real(1) + exp(-tirx.abs(x)))


def sigmoid(x: Expr) -> Expr:
    return real(1) / (real(1) + exp(-x))


def tanh(x: Expr) -> Expr:
    """Near zero by its odd polynomial (Cephes), elsewhere by exp."""
    x = bind(x)
    square = bind(x * x)
    coefficients = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
    near = x + x * square * _polynomial(coefficients, square)
    far = real(1) - real(2) / (exp(tirx.abs(x) * real(2)) + real(1))
    return tirx.Select(tirx.abs(x) < real(0.625), near, tirx.Select(x < real(0), -far, far))


def erf(x: Expr) -> Expr:
    """Abramowitz and Stegun 7.1.26 away from zero (error 1.5e-7), the Taylor series near it."""
    x = bind(x)
    size, square = bind(tirx.abs(x)), bind(x * x)
    t = bind(real(1) / (real(1) + real(0.3275911) * size))
    tail = _polynomial((1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592), t) * t
    far = real(1) - tail * exp(-square)
    series = [(-1) ** k / (math.factorial(k) * (2 * k + 1)) for k in range(6, -1, -1)]
    near = x * real(2 / math.sqrt(math.pi)) * _polynomial(series, square)
    return tirx.Select(size < real(0.5), near, tirx.Select(x < real(0), -far, far))


def round_half_even(x: Expr) -> Expr:
    """To the nearest integer, ties to even: one instruction. TVM's own operator is not vectorized."""
    return tirx.call_llvm_pure_intrin("float32", "llvm.nearbyint", x)


def clip(x: Expr, low: Expr, high: Expr) -> Expr:
    return tirx.min(tirx.max(x, low), high)


def hard_sigmoid(x: Expr, alpha: float = 0.2, beta: float = 0.5) -> Expr:
    return clip(x * real(alpha) + real(beta), real(0), real(1))


def sin(x: Expr) -> Expr:
    return _sine(x, 0)


def cos(x: Expr) -> Expr:
    return _sine(x, 1)


def _sine(x: Expr, quarter: int) -> Expr:
    """sin(x + quarter * pi / 2) = +-sin r or +-cos r, with r in [-pi / 4, pi / 4]; for |x| up to about 10^5."""
    x = bind(x)
    n = bind(tirx.floor(x * real(2 / math.pi) + real(0.5)))
    r = bind(x - n * real(1.5703125) - n * real(4.837512969970703125e-4) - n * real(7.54978995489188216e-8))
    quarters, square = n.astype("int32") + quarter, bind(r * r)
    sine = r + r * square * _polynomial((-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1), square)
    even = _polynomial((2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2), square)
    cosine = real(1) - real(0.5) * square + square * square * even
    value = bind(tirx.Select((quarters & 1) == 0, sine, cosine))
    return tirx.Select((quarters & 2) == 0, value, -value)


def tan(x: Expr) -> Expr:
    x = bind(x)
    return sin(x) / cos(x)


def atan(x: Expr) -> Expr:
    """The angle is reduced to [-pi / 8, pi / 8]: atan x = pi / 2 - atan(1 / x) = pi / 4 + atan((x - 1) / (x + 1))."""
    x = bind(x)
    size = bind(tirx.abs(x))
    steep, middle = size > real(2.414213562373095), size > real(0.4142135623730950)
    above = bind(tirx.Select(steep, real(-1), tirx.Select(middle, size - real(1), size)))
    below = tirx.Select(steep, size, tirx.Select(middle, size + real(1), real(1)))
    base = tirx.Select(steep, real(math.pi / 2), tirx.Select(middle, real(math.pi / 4), real(0)))
    r = bind(above / below)
    square = bind(r * r)
    coefficients = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
    value = bind(base + r + r * square * _polynomial(coefficients, square))
    return tirx.Select(x < real(0), -value, value)


def _small_asin(x: Expr) -> Expr:
    """asin of [0, 1/2]."""
    square = bind(x * x)
    coefficients = (4.2163199048e-2, 2.4181311049e-2, 4.5470025998e-2, 7.4953002686e-2, 1.6666752422e-1)
    return x + x * square * _polynomial(coefficients, square)


def asin(x: Expr) -> Expr:
    """Above 1/2 as pi / 2 - 2 asin(sqrt((1 - x) / 2))."""
    x = bind(x)
    size = bind(tirx.abs(x))
    large = size > real(0.5)
    r = bind(tirx.Select(large, tirx.sqrt(real(0.5) - real(0.5) * size), size))
    value = bind(_small_asin(r))
    value = bind(tirx.Select(large, real(math.pi / 2) - real(2) * value, value))
    return tirx.Select(x < real(0), -value, value)


def acos(x: Expr) -> Expr:
    """Near 1 and -1 from asin(sqrt((1 - |x|) / 2)), which loses no digits there."""
    x = bind(x)
    size = bind(tirx.abs(x))
    large = size > real(0.5)
    r = bind(tirx.Select(large, tirx.sqrt(real(0.5) - real(0.5) * size), x))
    value = bind(_small_asin(r))
    near = tirx.Select(x < real(0), real(math.pi) - real(2) * value, real(2) * value)
    return tirx.Select(large, near, real(math.pi / 2) - value)


def sinh(x: Expr) -> Expr:
    x = bind(x)
    square, e = bind(x * x), bind(exp(tirx.abs(x)))
    near = x + x * square * _polynomial((2.03721912945e-4, 8.33028376239e-3, 1.66667160211e-1), square)
    far = bind(real(0.5) * (e - real(1) / e))
    return tirx.Select(square < real(1), near, tirx.Select(x < real(0), -far, far))


def cosh(x: Expr) -> Expr:
    e = bind(exp(tirx.abs(x)))
    return real(0.5) * (e + real(1) / e)


def asinh(x: Expr) -> Expr:
    x = bind(x)
    size, square = bind(tirx.abs(x)), bind(x * x)
    coefficients = (2.0122003309e-2, -4.2699340972e-2, 7.4847586088e-2, -1.6666288134e-1)
    near = x + x * square * _polynomial(coefficients, square)
    far = bind(log(size + tirx.sqrt(square + real(1))))
    return tirx.Select(size < real(0.5), near, tirx.Select(x < real(0), -far, far))


def acosh(x: Expr) -> Expr:
    x = bind(x)
    z = bind(x - real(1))
    coefficients = (1.7596881071e-3, -7.5272886713e-3, 2.6454905019e-2, -1.1784741703e-1, 1.4142135263)
    near = _polynomial(coefficients, z) * tirx.sqrt(z)
    return tirx.Select(z < real(0.5), near, log(x + tirx.sqrt(x * x - real(1))))


def atanh(x: Expr) -> Expr:
    x = bind(x)
    square = bind(x * x)
    coefficients = (1.81740078349e-1, 8.24370301058e-2, 1.46691431730e-1, 1.99782164500e-1, 3.33337300303e-1)
    near = x + x * square * _polynomial(coefficients, square)
    return tirx.Select(tirx.abs(x) < real(0.5), near, real(0.5) * log((real(1) + x) / (real(1) - x)))


def power(x: Expr, y: Expr) -> Expr:
    """x^y: by multiplications and roots for the usual constants, otherwise e^(y log |x|) with the sign of x^y."""
    if isinstance(y, tirx.FloatImm) and float(y) in _POWERS:
        return _POWERS[float(y)](bind(x))
    x, y = bind(x), bind(y)
    size, whole = bind(exp(y * log(tirx.abs(x)))), bind(tirx.floor(y))
    odd = whole - real(2) * tirx.floor(whole * real(0.5)) == real(1)
    negative = tirx.Select(whole == y, tirx.Select(odd, -size, size), real(math.nan))
    zero = tirx.Select(y > real(0), real(0), tirx.Select(y == real(0), real(1), real(math.inf)))
    return tirx.Select(x == real(0), zero, tirx.Select(x < real(0), negative, size))


_POWERS: dict[float, Callable[[Expr], Expr]] = {
    -1.0: lambda x: real(1) / x,
    -0.5: lambda x: real(1) / tirx.sqrt(x),
    0.0: lambda x: real(1),
    0.5: tirx.sqrt,
    1.0: lambda x: x,
    1.5: lambda x: x * tirx.sqrt(x),
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
    4.0: lambda x: (x * x) * (x * x),
}


def _polynomial(coefficients: Any, x: Expr) -> Expr:
    """Horner's rule, the highest power first."""
    return reduce(lambda total, c: total * x + real(c), coefficients[1:], real(coefficients[0]))


def _elu(x: Expr, alpha: float = 1.0, gamma: float = 1.0) -> Expr:
    x = bind(x)
    return real(gamma) * tirx.Select(x > real(0), x, real(alpha) * (exp(x) - real(1)))


def _celu(x: Expr, alpha: float = 1.0) -> Expr:
    x = bind(x)
    return tirx.Select(x > real(0), x, real(alpha) * (exp(x * real(1 / alpha)) - real(1)))


def _shrink(x: Expr, bias: float = 0.0, lambd: float = 0.5) -> Expr:
    x = bind(x)
    below = tirx.Select(x < real(-lambd), x + real(bias), real(0))
    return tirx.Select(x > real(lambd), x - real(bias), below)


def _sign(x: Expr) -> Expr:
    x = bind(x)
    return tirx.Select(x > real(0), real(1), tirx.Select(x < real(0), real(-1), real(0)))


def _gelu(x: Expr, approximate: str = "none") -> Expr:
    x = bind(x)
    if approximate == "tanh":
        inner = tanh(real(math.sqrt(2 / math.pi)) * (x + real(0.044715) * x * x * x))
    else:
        inner = erf(x * real(math.sqrt(0.5)))
    return real(0.5) * x * (real(1) + inner)


def _times(function: Callable[..., Expr]) -> Callable[..., Expr]:
    """x * function(x)."""

    def product(x: Expr, **attributes: Any) -> Expr:
        x = bind(x)
        return x * function(x, **attributes)

    return product


def _mish(x: Expr) -> Expr:
    """x tanh(log(1 + e)) = x n / (n + 2) with n = e (e + 2) and e = e^x; above 20 that is x."""
    x = bind(x)
    e = bind(exp(tirx.min(x, real(20))))
    n = bind(e * (e + real(2)))
    return x * (n / (n + real(2)))


def _leaky(x: Expr, alpha: float = 0.01) -> Expr:
    return _prelu(x, real(alpha))


def _prelu(x: Expr, slope: Expr) -> Expr:
    x = bind(x)
    return tirx.Select(x < real(0), x * slope, x)


def _quantize(x: Expr, scale: Expr, zero: Expr, low: float, high: float, exact: bool = True) -> Expr:
    """The integers of QuantizeLinear, as float32; not `exact` where a step more or less does no harm: a division
    takes longer than all the rest."""
    return _requantize(x / scale if exact else x * real(1 / float(scale)), zero, low, high)


def _requantize(x: Expr, zero: Expr, low: float, high: float) -> Expr:
    return clip(round_half_even(x) + zero, real(low), real(high))


FUNCTIONS: dict[str, Callable[..., Expr]] = {
    "Abs": tirx.abs,
    "Acos": acos,
    "Acosh": acosh,
    "Add": lambda x, y: x + y,
    "Affine": lambda x, scale, shift: x * scale + shift,
    "Asin": asin,
    "Asinh": asinh,
    "Atan": atan,
    "Atanh": atanh,
    "Ceil": tirx.ceil,
    "Celu": _celu,
    "Clip": clip,
    "Cos": cos,
    "Cosh": cosh,
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
    "Log": log,
    "Max": lambda *xs: reduce(tirx.max, xs),
    "Mean": lambda *xs: reduce(lambda x, y: x + y, xs) * real(1 / len(xs)),
    "Min": lambda *xs: reduce(tirx.min, xs),
    "Mish": _mish,
    "Mul": lambda x, y: x * y,
    "Neg": lambda x: -x,
    "PRelu": _prelu,
    "Pow": power,
    "Quantize": _quantize,
    "Requantize": _requantize,
    "Reciprocal": lambda x: real(1) / x,
    "Relu": lambda x: tirx.max(x, real(0)),
    "Round": round_half_even,
    "Selu": lambda x, alpha=1.67326319, gamma=1.05070098: _elu(x, alpha, gamma),
    "Sigmoid": sigmoid,
    "Shrink": _shrink,
    "Sign": _sign,
    "Sin": sin,
    "Sinh": sinh,
    "Softplus": log1p_exp,
    "Softsign": lambda x: x / (real(1) + tirx.abs(x)),
    "Sqrt": tirx.sqrt,
    "Sub": lambda x, y: x - y,
    "Sum": lambda *xs: reduce(lambda x, y: x + y, xs),
    "Swish": _times(lambda x, alpha=1.0: sigmoid(real(alpha) * x)),
    "Tan": tan,
    "Tanh": tanh,
    "ThresholdedRelu": lambda x, alpha=1.0: tirx.Select(x > real(alpha), x, real(0)),
}
"""Operator of a step -> function of its arguments, with the attributes as keywords."""

FINITE = {
    "Abs", "Add", "Affine", "Asinh", "Atan", "Ceil", "Celu", "Clip", "Cos", "Dequantize", "Elu", "Erf", "Exp", "Floor",
    "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu",
    "Quantize", "Relu", "Requantize", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign",
    "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu",
}  # fmt: skip
"""Those whose value is finite for every finite argument: the others must not run on the padding of channels."""
