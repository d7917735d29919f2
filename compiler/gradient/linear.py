"""Rules of matrix products and of normalizations."""

import math
from collections.abc import Sequence

import numpy as np

from nnc.gradient.step import NoGradient, Rule, Step, first
from nnc.gradient.value import Value, apply, sqrt


def _gemm(step: Step, index: int) -> Value:
    """y = alpha * A' B' + beta * C"""
    A, B, g = step.x[0], step.x[1], step.g
    alpha, ta, tb = step.attr("alpha", 1.0), step.attr("transA", 0), step.attr("transB", 0)
    if index == 2:
        return step.attr("beta", 1.0) * g
    if index == 0:
        left, right, transpose = (B, g, (tb, 1)) if ta else (g, B, (0, 1 - tb))
    else:
        left, right, transpose = (g, A, (1, ta)) if tb else (A, g, (1 - ta, 0))
    return apply("Gemm", left, right, alpha=alpha, transA=transpose[0], transB=transpose[1])


def _matmul(step: Step, index: int) -> Value:
    """A vector is a row on the left and a column on the right."""
    A, B = step.x
    rows = A.shape if len(A.shape) > 1 else (1, *A.shape)
    columns = B.shape if len(B.shape) > 1 else (*B.shape, 1)
    batch = np.broadcast_shapes(rows[:-2], columns[:-2])
    g = step.g.reshape([*batch, rows[-2], columns[-1]])
    if index == 0:
        return _product(g, B.reshape(columns), "right").sum_to(rows).reshape(A.shape)
    return _product(A.reshape(rows), g, "left").sum_to(columns).reshape(B.shape)


def _product(left: Value, right: Value, transposed: str) -> Value:
    """left @ right with one of them transposed."""
    if len(left.shape) == len(right.shape) == 2:
        return apply("Gemm", left, right, transA=int(transposed == "left"), transB=int(transposed == "right"))
    if transposed == "left":
        return apply("MatMul", _swapped(left), right)
    return apply("MatMul", left, _swapped(right))


def _swapped(x: Value) -> Value:
    rank = len(x.shape)
    return x.transpose([*range(rank - 2), rank - 1, rank - 2])


def _batchnorm(step: Step) -> Value:
    if step.attr("training_mode", 0):
        raise NoGradient("in training mode")
    g, gamma, variance = step.g, step.x[1], step.x[4]
    scale = gamma.cast(g.dtype) / sqrt(variance.cast(g.dtype) + step.attr("epsilon", 1e-5))
    return g * _per_channel(scale, len(g.shape))


def _per_channel(value: Value, rank: int) -> Value:
    return value.reshape([-1, *[1] * (rank - 2)])


def _normalized(g: Value, x: Value, axes: Sequence[int], epsilon: float) -> Value:
    """The gradient through (x - mean) / sqrt(variance + epsilon), mean and variance over `axes`."""
    centred = x - x.mean(axes)
    deviation = sqrt((centred * centred).mean(axes) + epsilon)
    unit = centred / deviation
    return (g - g.mean(axes) - unit * (g * unit).mean(axes)) / deviation


def _instance_norm(step: Step) -> Value:
    x, g = step.x[0], step.g
    rank = len(x.shape)
    return _normalized(g * _per_channel(step.x[1], rank), x, range(2, rank), step.attr("epsilon", 1e-5))


def _layer_norm(step: Step) -> Value:
    x, g = step.x[0], step.g
    rank = len(x.shape)
    axes = range(step.attr("axis", -1) % rank, rank)
    return _normalized(g * step.x[1], x, axes, step.attr("epsilon", 1e-5))


def _group_norm(step: Step) -> Value:
    x, groups = step.x[0], step.attr("num_groups")
    grouped = [x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]]
    g = (step.g * _per_channel(step.x[1], len(x.shape))).reshape(grouped)
    return _normalized(g, x.reshape(grouped), range(2, len(grouped)), step.attr("epsilon", 1e-5)).reshape(x.shape)


def _lrn(step: Step) -> Value:
    """y_i = x_i * s_i^-beta with s_i = bias + alpha / size * (sum of x_j^2 over the neighbouring channels j)"""
    x, g = step.x[0], step.g
    size, beta = step.attr("size"), step.attr("beta", 0.75)
    factor = step.attr("alpha", 1e-4) / size
    offsets = np.arange(x.shape[1])[:, None] - np.arange(x.shape[1])
    band = (offsets <= (size - 1) // 2) & (offsets >= -(size // 2))  # [j, i]: x_j is in the window of y_i
    band = band.astype(x.dtype)
    flat = [x.shape[0], x.shape[1], math.prod(x.shape[2:])]
    s = (apply("MatMul", band.T.copy(), (x * x).reshape(flat)) * factor).reshape(x.shape) + step.attr("bias", 1.0)
    through = apply("MatMul", band, (g * step.y[0] / s).reshape(flat)).reshape(x.shape)
    return g * apply("Pow", s, np.array(-beta, x.dtype)) - 2 * factor * beta * x * through


RULES: dict[str, Rule] = {
    "BatchNormalization": first(_batchnorm),
    "Gemm": _gemm,
    "GroupNormalization": first(_group_norm),
    "InstanceNormalization": first(_instance_norm),
    "LayerNormalization": first(_layer_norm),
    "LRN": first(_lrn),
    "MatMul": _matmul,
}
