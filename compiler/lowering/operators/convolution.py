"""Convolutions and pools that are not images with constant weights: of one and three axes, transposed, of integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from tvm import te, tirx, topi

from nnc.lowering import scalar
from nnc.lowering.kernels import conv2d, depthwise
from nnc.lowering.kernels.unit import lanes_of
from nnc.lowering.kernels.window import Window
from nnc.lowering.operators import arithmetic, movement
from nnc.lowering.pieces import Shape, Value, Work, constant
from nnc.lowering.templates import templates_of

Expr = Any


@dataclass(frozen=True)
class Sliding:
    """The attributes of a convolution or pool, one value per axis that it slides along."""

    kernel: Shape
    strides: Shape
    dilations: Shape
    starts: Shape
    """Padding before each axis, and after it."""
    ends: Shape
    groups: int

    @classmethod
    def of(cls, work: Work, kernel: Sequence[int]) -> Sliding:
        count = len(kernel)
        strides, dilations = (tuple(work.attribute(name, [1] * count)) for name in ("strides", "dilations"))
        pads, auto = work.attribute("pads", [0] * 2 * count), work.attribute("auto_pad", "NOTSET")
        if auto == "VALID":
            pads = [0] * 2 * count
        elif auto != "NOTSET":
            totals = [
                max(0, (out - 1) * stride + (size - 1) * dilation + 1 - axis)
                for axis, out, size, stride, dilation in zip(
                    work.input(0).shape[2:], work.shape()[2:], kernel, strides, dilations, strict=True
                )
            ]
            less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
            pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
        return cls(
            tuple(kernel), strides, dilations, tuple(pads[:count]), tuple(pads[count:]), work.attribute("group", 1)
        )

    @property
    def attributes(self) -> dict[str, Any]:
        """As those of an ONNX node."""
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": [*self.starts, *self.ends],
        }


# -- convolutions with constant weights, on the templates of images


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
        conv = conv2d.Conv2d(n, channels, W.shape[0], window, groups, in_block, block)
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


# -- transposed convolutions


def transposed_convolution(work: Work) -> list[Value] | None:
    """ConvTranspose as a convolution without strides, with channels for each phase of the results, and an interleaving.

    Along an axis with stride s, result y = s q + r - pad gets x[q - t] * W[s t + r], summed over t.
    """
    x, W = work.input(0), work.input(1)
    if x.dtype != "float32":
        return None
    axes = range(len(x.shape) - 2)
    slide, groups = Sliding.of(work, W.shape[2:]), work.attribute("group", 1)
    starts = _transposed_starts(work, slide)
    phases = [_Phases.of(work, slide, axis, starts[axis]) for axis in axes]
    channels = W.shape[1]
    conv = work.apply(
        "Conv",
        x,
        _by_phase(work, W, groups, slide, phases),
        group=groups,
        pads=[*(each.start for each in phases), *(each.end for each in phases)],
    )[0]
    grouped = conv.view(x.shape[0], groups, prod(slide.strides), channels, *conv.shape[2:])
    shape = (x.shape[0], groups, channels, *work.shape()[2:])
    operands = [grouped, *([work.input(2).view(groups, channels)] if work.has(2) else [])]

    def interleaved(C: te.Tensor, *bias: te.Tensor) -> te.Tensor:
        def at(n: Expr, g: Expr, o: Expr, *place: Expr) -> Expr:
            full = [y + start for y, start in zip(place, starts, strict=True)]
            phase: Expr = 0
            for y, stride in zip(full, slide.strides, strict=True):
                phase = phase * stride + tirx.floormod(y, stride)
            source = [
                tirx.floordiv(y, stride) - each.first
                for y, stride, each in zip(full, slide.strides, phases, strict=True)
            ]
            value = C[(n, g, phase, o, *source)]
            return value + bias[0][g, o] if bias else value

        return te.compute(shape, at, "interleaved")

    return [work.compute(operands, interleaved).view(*work.shape())]


@dataclass(frozen=True)
class _Phases:
    """One axis of a transposed convolution as one without stride."""

    taps: int
    first: int
    """The q of its first result."""
    start: int
    """Padding before the input, and after it."""
    end: int

    @classmethod
    def of(cls, work: Work, slide: Sliding, axis: int, start: int) -> _Phases:
        stride, reach = slide.strides[axis], (slide.kernel[axis] - 1) * slide.dilations[axis] + 1
        size, out = work.input(0).shape[axis + 2], work.shape()[axis + 2]
        taps = ceil(reach / stride)
        first, last = min(start // stride, taps - 1), (start + out - 1) // stride
        before = taps - 1 - first
        return cls(taps, first, before, max(0, last - first + taps - size - before))


def _transposed_starts(work: Work, slide: Sliding) -> list[int]:
    """How many results are cut off before each axis."""
    if work.attribute("auto_pad", "NOTSET") == "NOTSET" and work.attribute("output_shape") is None:
        return list(slide.starts)
    extra = work.attribute("output_padding", [0] * len(slide.kernel))
    starts = []
    for axis, (size, out) in enumerate(zip(work.input(0).shape[2:], work.shape()[2:], strict=True)):
        reach = (slide.kernel[axis] - 1) * slide.dilations[axis] + 1
        total = max(0, slide.strides[axis] * (size - 1) + extra[axis] + reach - out)
        starts.append(total // 2 if work.attribute("auto_pad") == "SAME_UPPER" else total - total // 2)
    return starts


def _by_phase(work: Work, W: Value, groups: int, slide: Sliding, phases: Sequence[_Phases]) -> Value:
    """Weights `[in, out / groups, k...]` as `[groups * phases * out / groups, in / groups, taps...]`."""
    ins, outs, count = W.shape[0] // groups, W.shape[1], len(phases)
    zero_at_the_end = np.array([0] * (count + 4) + [1] * count)
    spread = work.apply("Pad", W, constant(zero_at_the_end))[0]
    sizes = [groups, ins, outs]
    for axis, (each, kernel, stride, dilation) in enumerate(
        zip(phases, slide.kernel, slide.strides, slide.dilations, strict=True)
    ):
        places = np.full(each.taps * stride, kernel)  # the zero, except where a tap of the kernel is
        places[np.arange(kernel) * dilation] = np.arange(kernel)
        backwards = places.reshape(each.taps, stride)[::-1].ravel()
        spread = work.apply("Gather", spread, constant(backwards), axis=axis + 2)[0]
        sizes += [each.taps, stride]
    order = [0, *range(4, 4 + 2 * count, 2), 2, 1, *range(3, 3 + 2 * count, 2)]
    ordered = work.apply("Transpose", spread.view(*sizes), perm=order)[0]
    return ordered.view(groups * prod(slide.strides) * outs, ins, *(each.taps for each in phases))


# -- quantized convolutions and products


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
    """QLinearMatMul, likewise."""
    a = work.apply("DequantizeLinear", *work.inputs()[:3])[0]
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


# -- pools


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
    "Conv": convolution,
    "ConvInteger": integer_convolution,
    "ConvTranspose": transposed_convolution,
    "LRN": local_response_normalization,
    "LpPool": pool,
    "MaxPool": pool,
    "MaxUnpool": unpool,
    "QLinearConv": quantized_convolution,
    "QLinearMatMul": quantized_product,
}
