"""Pools, their opposite, and the normalization by neighbouring channels."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from nnc.lowering import scalar
from nnc.lowering.operators import arithmetic
from nnc.lowering.operators.sliding import Sliding
from nnc.lowering.pieces import Value, Work, constant

Expr = Any


def pool(work: Work) -> list[Value] | None:
    """MaxPool, AveragePool, LpPool: with explicit padding as TVM has them, and the places of the maxima."""
    x, slide = work.input(0), Sliding.of(work, work.attribute("kernel_shape"))
    rest = {
        key: work.attribute(key)
        for key in work.node.attrs
        if key not in ("auto_pad", "pads", "kernel_shape", "strides", "dilations", "storage_order")
    }
    attributes = {key: each for key, each in slide.attributes.items() if key != "dilations" or set(each) != {1}}
    if work.attribute("auto_pad", "NOTSET") != "NOTSET" or len(work.node.outputs) > 1:
        values = work.apply(work.node.op, x, **rest, **attributes)[0]
        return [values, *([_places(work, x, values, slide)] if len(work.node.outputs) > 1 else [])]
    return None


def _places(work: Work, x: Value, values: Value, slide: Sliding) -> Value:
    """Where in the whole input the first element of each window lies that is its maximum."""
    sizes = x.shape[2:]
    column_major = work.attribute("storage_order", 0)
    flat = x.view(prod(x.shape[:2]), *sizes)
    results = values.view(prod(x.shape[:2]), *values.shape[2:])

    def compute(X: te.Tensor, Y: te.Tensor) -> te.Tensor:
        taps = [te.reduce_axis((0, size), f"k{axis}") for axis, size in enumerate(slide.kernel)]

        def at(c: Expr, *place: Expr) -> Expr:
            source = [
                y * stride + k * dilation - start
                for y, stride, k, dilation, start in zip(
                    place, slide.strides, taps, slide.dilations, slide.starts, strict=True
                )
            ]
            inside = tirx.all(*(tirx.all(i >= 0, i < size) for i, size in zip(source, sizes, strict=True)))
            held = [tirx.max(tirx.min(i, size - 1), 0) for i, size in zip(source, sizes, strict=True)]
            number: Expr = 0
            order = range(len(sizes))[::-1] if column_major else range(len(sizes))
            for axis in order:
                number = number * sizes[axis] + held[axis]
            number = (c * prod(sizes) + number).astype("int64")
            found = tirx.all(inside, X[(c, *held)] == Y[(c, *place)])
            return te.min(tirx.Select(found, number, tirx.max_value("int64")), axis=taps)

        return te.compute(results.shape, at, "places")

    return work.compute([flat, results], compute)


def unpool(work: Work) -> list[Value]:
    """MaxUnpool: zeros, and the values at the places that MaxPool found them at."""
    x, places, shape = work.input(0), work.input(1), work.shape()
    images, size = prod(shape[:2]), prod(shape[2:])
    flat = places.view(images, prod(places.shape[2:]))
    beside = work.compute(
        [flat], lambda P: te.compute(flat.shape, lambda c, i: P[c, i] - (c * size).astype("int64"), "beside")
    )
    zeros = constant(np.zeros((images, size), x.dtype))
    return work.apply("ScatterElements", zeros, beside, x.view(*flat.shape), axis=1)


def local_response_normalization(work: Work) -> list[Value] | None:
    """x / (bias + alpha / size * sum of the squares of neighbouring channels)^beta."""
    x, size = work.input(0), work.attribute("size")
    if x.dtype != "float32":
        return None
    n, channels = x.shape[:2]
    flat = x.view(n, channels, prod(x.shape[2:]))
    alpha, beta, bias = (float(work.attribute(*each)) for each in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))

    def squares(X: te.Tensor) -> te.Tensor:
        near = te.reduce_axis((0, size), "near")

        def at(image: Expr, c: Expr, p: Expr) -> Expr:
            source = c + near - (size - 1) // 2
            value = X[image, tirx.max(tirx.min(source, channels - 1), 0), p]
            return te.sum(tirx.Select(tirx.all(source >= 0, source < channels), value * value, scalar.real(0)), near)

        return te.compute(flat.shape, at, "squares")

    def normalized(value: Expr, total: Expr) -> Expr:
        return value * scalar.power(total * scalar.real(alpha / size) + scalar.real(bias), scalar.real(-beta))

    return [arithmetic.apply(work, normalized, [flat, work.compute([flat], squares)], "float32", flat.shape)]


OPERATORS = {
    "AveragePool": pool,
    "LRN": local_response_normalization,
    "LpPool": pool,
    "MaxPool": pool,
    "MaxUnpool": unpool,
}
