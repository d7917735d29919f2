"""Resize and Upsample, one axis after the other: every result is a weighted sum of a few elements along the axis.

Which elements and with which weights depends on shapes alone: both are tables made here. The arithmetic follows
onnxruntime in float32, since rounding decides which neighbour is the nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from nnc.lowering.pieces import Value, Work, constant

Expr = Any
F = np.float32


@dataclass(frozen=True)
class Axis:
    """How one axis is resized."""

    place: int
    size: int
    result: int
    scale: np.float32
    start: np.float32
    """The part of the axis that tf_crop_and_resize takes."""
    end: np.float32

    def source(self, mode: str) -> np.ndarray:
        """The coordinate in the input of every result, float32 [result]."""
        x, one, half = np.arange(self.result, dtype=F), F(1), F(0.5)
        if mode == "asymmetric":
            return x / self.scale
        if mode == "align_corners":
            steps = F(self.result - 1)
            return x * F(self.size - 1) / steps if self.result > 1 else np.zeros(1, F)
        if mode == "tf_crop_and_resize":
            if self.result == 1:
                return np.array([half * (self.start + self.end) * F(self.size - 1)], F)
            step = (self.end - self.start) * F(self.size - 1) / F(self.result - 1)
            return self.start * F(self.size - 1) + x * step
        if mode == "pytorch_half_pixel" and self.result == 1:
            return np.zeros(1, F)
        centred = (x + half) / self.scale - half
        if mode == "half_pixel_symmetric":
            adjusted = F(self.result) / (self.scale * F(self.size))
            return F(self.size) * half * (one - adjusted) + centred
        return centred


@dataclass(frozen=True)
class Table:
    """`places` and `weights` of the elements of a sum, [result, taps]."""

    places: np.ndarray
    weights: np.ndarray
    inside: np.ndarray
    """Whether a result is computed from the input at all, [result]."""


def nearest(axis: Axis, x: np.ndarray, rounding: str) -> Table:
    below = np.floor(x)
    rounded = {
        "round_prefer_floor": np.where(x == below + F(0.5), below, np.floor(x + F(0.5))),
        "round_prefer_ceil": np.floor(x + F(0.5)),
        "floor": below,
        "ceil": np.ceil(x),
    }
    places = np.clip(rounded[rounding].astype(np.int64), 0, axis.size - 1)
    return Table(places[:, None], np.ones((axis.result, 1), F), _inside(axis, x))


def linear(axis: Axis, x: np.ndarray) -> Table:
    clipped = np.clip(x, 0, axis.size - 1).astype(F)
    left = np.minimum(clipped.astype(np.int64), axis.size - 1)
    right = np.minimum(left + 1, axis.size - 1)
    share = clipped - left.astype(F)
    return Table(np.stack([left, right], 1), np.stack([F(1) - share, share], 1), _inside(axis, x))


def cubic(axis: Axis, x: np.ndarray, a: float, exclude: bool) -> Table:
    left = np.floor(x)
    places = left.astype(np.int64)[:, None] + np.arange(-1, 3)
    weights = _cubic((x - left)[:, None] - np.arange(-1, 3, dtype=F), a).astype(F)
    if exclude:
        weights = np.where((places >= 0) & (places < axis.size), weights, F(0))
        weights /= weights.sum(1, keepdims=True)
    return Table(np.clip(places, 0, axis.size - 1), weights, _inside(axis, x))


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def smoothed(
    axis: Axis, x: np.ndarray, reach: float, kernel: Callable[[np.ndarray], np.ndarray], exclude: bool
) -> Table:
    """The filter of an interpolation, stretched over all elements that a smaller result stands for."""
    stretch = max(1.0, 1.0 / float(axis.scale))
    centre = x.astype(np.float64) + 0.5
    first = np.floor(centre - reach * stretch + 0.5).astype(np.int64)
    end = np.floor(centre + reach * stretch + 0.5).astype(np.int64)
    places = first[:, None] + np.arange((end - first).max())
    weights = kernel((places - centre[:, None] + 0.5) / stretch) * (places < end[:, None])
    if exclude:
        weights = weights * ((places >= 0) & (places < axis.size))
    weights /= weights.sum(1, keepdims=True)
    return Table(np.clip(places, 0, axis.size - 1), weights.astype(F), _inside(axis, x))


def _inside(axis: Axis, x: np.ndarray) -> np.ndarray:
    return (x >= 0) & (x <= axis.size - 1)


# -- the operators


def resize(work: Work) -> list[Value] | None:
    x, mode = work.input(0), work.attribute("mode", "nearest")
    how = work.attribute("coordinate_transformation_mode", "half_pixel")
    if mode != "nearest" and x.dtype != "float32":
        return None
    fill = float(work.attribute("extrapolation_value", 0.0)) if how == "tf_crop_and_resize" else None
    axes = [axis for axis in _axes(work) if axis.size != axis.result or axis.start != 0 or axis.end != 1]
    for axis in sorted(axes, key=lambda each: (each.result / each.size, -each.place)):
        x = _resized(work, x, axis.place, _table(work, axis, mode, how), fill)
    return [x]


def _table(work: Work, axis: Axis, mode: str, how: str) -> Table:
    x = axis.source(how)
    if mode == "nearest":
        return nearest(axis, x, work.attribute("nearest_mode", "round_prefer_floor"))
    a, exclude = work.attribute("cubic_coeff_a", -0.75), bool(work.attribute("exclude_outside", 0))
    if work.attribute("antialias", 0) and axis.scale < 1:
        if mode == "linear":
            return smoothed(axis, x, 1.0, lambda d: np.maximum(0, 1 - np.abs(d)), exclude)
        return smoothed(axis, x, 2.0, lambda d: _cubic(d, a), exclude)
    return linear(axis, x) if mode == "linear" else cubic(axis, x, a, exclude)


def _axes(work: Work) -> list[Axis]:
    """Every axis of the input. Scales are those given, or follow from the sizes given."""
    shape, result = work.input(0).shape, work.shape()
    rank = len(shape)
    named = [int(axis) % rank for axis in work.attribute("axes", range(rank))]
    region = work.array(1, np.zeros(0, F))
    starts, ends = np.zeros(rank, F), np.ones(rank, F)
    if work.attribute("coordinate_transformation_mode") == "tf_crop_and_resize":
        starts[named], ends[named] = region[: len(named)], region[len(named) :]
    scales = np.array([F(new) / F(old) for new, old in zip(result, shape, strict=True)], F)
    given = work.array(2, np.zeros(0, F))
    if given.size:
        scales[named] = given
    elif work.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        wanted = work.array(3)
        ratios = [F(size) / F(shape[axis]) for size, axis in zip(wanted, named, strict=True)]
        scales[named] = min(ratios) if work.attribute("keep_aspect_ratio_policy") == "not_larger" else max(ratios)
    return [Axis(i, shape[i], result[i], scales[i], starts[i], ends[i]) for i in range(rank)]


def upsample(work: Work) -> list[Value] | None:
    """Upsample of opset 9: coordinates are divided by the scales, and cut off."""
    x, mode = work.input(0), work.attribute("mode", "nearest")
    if mode != "nearest" and x.dtype != "float32":
        return None
    for place, scale in enumerate(work.array(1)):
        axis = Axis(place, x.shape[place], work.shape()[place], F(scale), F(0), F(1))
        if axis.size != axis.result:
            source = axis.source("asymmetric")
            table = nearest(axis, source, "floor") if mode == "nearest" else linear(axis, source)
            x = _resized(work, x, place, table, None)
    return [x]


def _resized(work: Work, x: Value, axis: int, table: Table, fill: float | None) -> Value:
    """`x` with one axis resized; `fill` is what stands outside of the input."""
    count, taps = table.places.shape
    outer, size, inner = prod(x.shape[:axis]), x.shape[axis], prod(x.shape[axis + 1 :])
    operands = [x.view(outer, size, inner), constant(np.ascontiguousarray(table.places.T.astype(np.int32)))]
    if taps > 1:
        operands.append(constant(np.ascontiguousarray(table.weights.T)))
    outside = fill is not None and not table.inside.all()
    if outside:
        operands.append(constant(table.inside.astype(np.int32)))

    def compute(X: te.Tensor, places: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        def at(o: Expr, j: Expr, i: Expr) -> Expr:
            read = [X[o, places[tap, j], i] for tap in range(taps)]
            value = read[0]
            if taps > 1:
                value = sum((read[t] * rest[0][t, j] for t in range(1, taps)), read[0] * rest[0][0, j])
            return tirx.Select(rest[-1][j] != 0, value, tirx.const(fill, x.dtype)) if outside else value

        return te.compute((outer, count, inner), at, "resize")

    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    return work.compute(operands, compute).view(*shape)


OPERATORS = {"Resize": resize, "Upsample": upsample}
