"""Rules of element-wise operators, selections, reductions and softmax."""

import math
from collections.abc import Callable

import numpy as np

from nnc.attributes import reduced_axes
from nnc.gradient.step import NoGradient, Rule, Step, first
from nnc.gradient.value import Value, apply, exp, sigmoid, tanh


def _elementwise(derivative: Callable[[Step, Value, Value], Value]) -> Rule:
    """The rule of y = f(x) with the derivative f'(x), given x and y."""
    return first(lambda step: step.g * derivative(step, step.x[0], step.y[0]))


def _hard_sigmoid(step: Step, x: Value, y: Value) -> Value:
    return (y > 0.0) * (y < 1.0) * step.attr("alpha", 0.2)


def _hard_swish(step: Step, x: Value, y: Value) -> Value:
    inside = (x > -3.0) * (x < 3.0)
    return inside * (x / 3.0 + 0.5) + (1.0 - inside) * (x > 0.0)


def _gelu(step: Step, x: Value, y: Value) -> Value:
    if step.attr("approximate", "none") == "tanh":
        t = tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
        return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * (math.sqrt(2 / math.pi) * (1.0 + 3 * 0.044715 * x * x))
    density = exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return 0.5 * (1.0 + apply("Erf", x / math.sqrt(2))) + x * density


def _mish(step: Step, x: Value, y: Value) -> Value:
    t = tanh(apply("Softplus", x))
    return t + x * sigmoid(x) * (1.0 - t * t)


def _leaky(x: Value, slope: Value | float) -> Value:
    positive = x > 0.0
    return positive + (1.0 - positive) * slope


def _selu(step: Step, x: Value, y: Value) -> Value:
    alpha, gamma = step.attr("alpha", 1.6732632423543772), step.attr("gamma", 1.0507009873554805)
    positive = x > 0.0
    return positive * gamma + (1.0 - positive) * (y + alpha * gamma)


_DERIVATIVES: dict[str, Callable[[Step, Value, Value], Value]] = {
    "Abs": lambda step, x, y: apply("Sign", x),
    "Celu": lambda step, x, y: _leaky(x, y / step.attr("alpha", 1.0) + 1.0),
    "Clip": lambda step, x, y: x.equals(y),
    "Cos": lambda step, x, y: -apply("Sin", x),
    "Elu": lambda step, x, y: _leaky(x, y + step.attr("alpha", 1.0)),
    "Erf": lambda step, x, y: 2 / math.sqrt(math.pi) * exp(-(x * x)),
    "Exp": lambda step, x, y: y,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": lambda step, x, y: _leaky(x, step.attr("alpha", 0.01)),
    "Log": lambda step, x, y: 1.0 / x,
    "Mish": _mish,
    "Reciprocal": lambda step, x, y: -(y * y),
    "Relu": lambda step, x, y: y > 0.0,
    "Selu": _selu,
    "Sigmoid": lambda step, x, y: y * (1.0 - y),
    "Sin": lambda step, x, y: apply("Cos", x),
    "Softplus": lambda step, x, y: sigmoid(x),
    "Softsign": lambda step, x, y: 1.0 / ((1.0 + apply("Abs", x)) * (1.0 + apply("Abs", x))),
    "Sqrt": lambda step, x, y: 0.5 / y,
    "Tanh": lambda step, x, y: 1.0 - y * y,
    "ThresholdedRelu": lambda step, x, y: x > step.attr("alpha", 1.0),
}


def _prelu(step: Step, index: int) -> Value:
    x, slope = step.x
    return step.g * (_leaky(x, slope) if index == 0 else (x < 0.0) * x)


def _sub(step: Step, index: int) -> Value:
    return step.g if index == 0 else -step.g


def _mul(step: Step, index: int) -> Value:
    return step.g * step.x[1 - index]


def _div(step: Step, index: int) -> Value:
    return step.g / step.x[1] if index == 0 else -(step.g * step.y[0] / step.x[1])


def _pow(step: Step) -> Value:
    """d/dx x^p = p * x^(p - 1)"""
    x, p = step.x[0], step.x[1].cast(step.x[0].dtype)
    return step.g * p * apply("Pow", x, p - 1.0)


def _mean(step: Step, index: int) -> Value:
    return step.g / float(len(step.x))


def _extreme(step: Step, index: int) -> Value:
    """To the inputs that are the maximum or minimum, in equal parts."""
    y = step.y[0]
    chosen = [x.equals(y) for x in step.x]
    return step.g * chosen[index] / (apply("Sum", *chosen) if len(chosen) > 1 else chosen[0])


def _where(step: Step, index: int) -> Value:
    zero = step.g.writer.constant(np.zeros((), step.g.dtype))
    return apply("Where", step.x[0], *((step.g, zero) if index == 1 else (zero, step.g)))


def _cast(step: Step) -> Value | None:
    """Numbers that a cast rounds to integers have no gradient; those that it reads as floats may have been floats."""
    x, y = step.x[0], step.y[0]
    if y.dtype.kind != "f":
        return None
    return step.g.cast(x.dtype) if x.dtype.kind == "f" else step.g


def _reduced(step: Step, value: Value) -> Value:
    """A value in the shape of the result of a reduction, with an axis of one element for every axis that is reduced."""
    axes = reduced_axes(step.node, step.told)
    return value.reshape([1 if axis in axes else size for axis, size in enumerate(step.x[0].shape)])


def _sum(step: Step) -> Value:
    return _reduced(step, step.g).broadcast(step.x[0].shape)


def _average(step: Step) -> Value:
    count = math.prod(step.x[0].shape[axis] for axis in reduced_axes(step.node, step.told))
    return (_reduced(step, step.g) / float(count)).broadcast(step.x[0].shape)


def _sum_of(derivative: Callable[[Value], Value]) -> Rule:
    """The rule of a sum of f(x), given f'(x)."""
    return first(lambda step: _reduced(step, step.g) * derivative(step.x[0]))


def _reduction(derivative: Callable[[Value, Value], Value]) -> Rule:
    """The rule of a reduction y of x, given its derivative with respect to an element."""
    return first(lambda step: _reduced(step, step.g) * derivative(step.x[0], _reduced(step, step.y[0])))


def _shared(x: Value, y: Value) -> Value:
    """To the elements that are the maximum or minimum, in equal parts."""
    chosen = x.equals(y)
    return chosen / chosen.sum([axis for axis, size in enumerate(y.shape) if size == 1])


def _global_max(step: Step) -> Value:
    return step.g * _shared(step.x[0], step.y[0])


def _softmax(step: Step) -> Value:
    y, axis = step.y[0], step.attr("axis", -1)
    weighted = step.g * y
    return weighted - y * weighted.sum([axis])


def _log_softmax(step: Step) -> Value:
    return step.g - exp(step.y[0]) * step.g.sum([step.attr("axis", -1)])


def _quantize(step: Step) -> Value:
    """Straight through (Bengio et al. 2013, arXiv:1308.3432) where the range holds the value, zero outside."""
    x, scale = step.x[0], _per_axis(step, 1)
    limits = np.iinfo(step.y[0].dtype)
    zero = _per_axis(step, 2).cast(x.dtype) if step.has(2) else 0.0
    level = x / scale + zero
    return step.g / scale * ((level > limits.min - 0.5) * (level < limits.max + 0.5))


def _dequantize(step: Step) -> Value:
    return step.g * _per_axis(step, 1)


def _per_axis(step: Step, index: int) -> Value:
    """Scale or zero point in a shape that is broadcast to the input."""
    x, value = step.x[0], step.x[index]
    if step.attr("block_size", 0):
        raise NoGradient("with a scale per block")
    if math.prod(value.shape) == 1:
        return value.reshape([])
    axis = step.attr("axis", 1) % len(x.shape)
    return value.reshape([size if each == axis else 1 for each, size in enumerate(x.shape)])


RULES: dict[str, Rule] = {
    **{op: _elementwise(derivative) for op, derivative in _DERIVATIVES.items()},
    **dict.fromkeys(("Ceil", "Floor", "Round", "Sign"), lambda step, index: None),
    "Add": lambda step, index: step.g,
    "Cast": first(_cast),
    "CastLike": lambda step, index: _cast(step) if index == 0 else None,
    "DequantizeLinear": first(_dequantize),
    "Div": _div,
    "GlobalAveragePool": first(
        lambda step: (step.g / float(math.prod(step.x[0].shape[2:]))).broadcast(step.x[0].shape)
    ),
    "GlobalMaxPool": first(_global_max),
    "LogSoftmax": first(_log_softmax),
    "Max": _extreme,
    "Mean": _mean,
    "Min": _extreme,
    "Mul": _mul,
    "Neg": first(lambda step: -step.g),
    "PRelu": _prelu,
    "Pow": first(_pow),
    "QuantizeLinear": first(_quantize),
    "ReduceL1": _sum_of(lambda x: apply("Sign", x)),
    "ReduceL2": _reduction(lambda x, y: x / y),
    "ReduceLogSum": _reduction(lambda x, y: exp(-y).broadcast(x.shape)),
    "ReduceLogSumExp": _reduction(lambda x, y: exp(x - y)),
    "ReduceMax": _reduction(_shared),
    "ReduceMean": first(_average),
    "ReduceMin": _reduction(_shared),
    "ReduceSum": first(_sum),
    "ReduceSumSquare": _sum_of(lambda x: 2.0 * x),
    "Softmax": first(_softmax),
    "Sub": _sub,
    "Sum": lambda step, index: step.g,
    "Where": _where,
}
