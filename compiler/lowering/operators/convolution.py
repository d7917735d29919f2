"""Convolutions of one, two and three axes with constant weights, on the templates of images."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from nnc.lowering import scalar
from nnc.lowering.kernels import depthwise
from nnc.lowering.kernels.convolution import Conv2d
from nnc.lowering.kernels.unit import lanes_of
from nnc.lowering.kernels.window import Window
from nnc.lowering.operators import movement
from nnc.lowering.operators.sliding import Sliding
from nnc.lowering.pieces import Shape, Value, Work, constant
from nnc.lowering.templates import templates_of

Expr = Any


def convolution(work: Work) -> list[Value] | None:
    x, weights = work.input(0), work.input(1)
    if x.dtype != "float32" or weights.values is None or (work.has(2) and work.input(2).values is None):
        return None
    W, bias = weights.values, work.array(2)
    slide = Sliding.of(work, W.shape[2:])
    if min(*slide.starts, *slide.ends) < 0:
        return None
    if len(slide.kernel) == 1:
        flat = x.view(*x.shape[:2], 1, x.shape[2])
        window = _window((1, x.shape[2]), slide, (1, work.shape()[2]))
        return [_image(work, flat, W[:, :, None], bias, window, slide.groups)]
    if len(slide.kernel) == 2:
        return [_image(work, x, W, bias, _window(x.shape[2:], slide, work.shape()[2:]), slide.groups)]
    if len(slide.kernel) == 3 and W.shape[1] > 1:
        return [_volume(work, x, W, bias, slide)]
    return None


def _window(size: Sequence[int], slide: Sliding, out: Sequence[int]) -> Window:
    """The window over the last two axes; a single axis is an image of one row."""

    def two(values: Shape, first: int) -> tuple[int, int]:
        return (first, values[0]) if len(values) == 1 else (values[-2], values[-1])

    return Window(
        (size[0], size[1]),
        two(slide.kernel, 1),
        two(slide.strides, 1),
        two(slide.dilations, 1),
        two(slide.starts, 0),
        (out[0], out[1]),
    )


def _image(work: Work, x: Value, W: np.ndarray, bias: np.ndarray | None, window: Window, groups: int) -> Value:
    """The convolution of plain images `[n, channels, height, width]`, through blocks of channels."""
    block, templates = lanes_of(work.unit), templates_of(work.unit)
    shape: tuple[int, int, int, int] = x.shape  # type: ignore[assignment]
    n, channels = shape[:2]
    padded = np.zeros(-(-W.shape[0] // block) * block, np.float32)
    if bias is not None:
        padded[: W.shape[0]] = bias
    rows = constant(padded.reshape(-1, block))
    deep = groups == W.shape[0] == channels
    in_block = 1 if channels < block and not deep else block
    read = x if in_block == 1 else work.kernel([x], lambda X: templates.relayout.to_blocked(X, shape, block))
    if deep:
        problem = depthwise.Depthwise(n, channels, window, block)
        plan = templates.depthwise.best_plan(problem, work.unit)
        packed = constant(templates.depthwise.pack(W, problem))
        result = work.kernel(
            [read, packed, rows],
            lambda X, P, B: templates.depthwise.compute(
                X, P, problem, plan, [B], lambda value, at: value + B[at[1], at[4]]
            ),
        )
    else:
        conv = Conv2d(n, channels, W.shape[0], window, groups, in_block, block)
        tiles = templates.conv2d.best_plan(conv, work.unit)
        packed = constant(templates.conv2d.pack(W, conv, tiles))
        result = work.kernel(
            [read, packed, rows],
            lambda X, P, B: templates.conv2d.compute(X, P, conv, tiles, [B], lambda value, at: value + B[at[1], at[4]]),
        )
    plain = (n, W.shape[0], *window.out_size)
    return work.kernel([result], lambda X: templates.relayout.to_plain(X, plain, block, work.unit))


def _volume(work: Work, x: Value, W: np.ndarray, bias: np.ndarray | None, slide: Sliding) -> Value:
    """A convolution along three axes: one of images for each depth, whose channels are those of all slices it reads."""
    n, channels, depth, height, width = x.shape
    out = work.shape()
    taps, step, dilation, start = (each[0] for each in (slide.kernel, slide.strides, slide.dilations, slide.starts))

    def slices(X: te.Tensor) -> te.Tensor:
        def at(image: Expr, z: Expr, c: Expr, k: Expr, p: Expr) -> Expr:
            source = z * step + k * dilation - start
            inside = tirx.all(source >= 0, source < depth)
            return tirx.if_then_else(inside, X[image, c, source, p], scalar.real(0))

        return te.compute((n, out[2], channels, taps, height * width), at, "slices")

    stacked = work.compute([x.view(n, channels, depth, height * width)], slices)
    window = _window((height, width), slide, out[3:])
    images = stacked.view(n * out[2], channels * taps, height, width)
    result = _image(work, images, W.reshape(W.shape[0], -1, *W.shape[3:]), bias, window, slide.groups)
    return movement.transposed(work, result.view(n, out[2], W.shape[0], prod(out[3:])), [0, 2, 1, 3])


OPERATORS = {"Conv": convolution}
