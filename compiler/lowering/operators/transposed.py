"""Transposed convolutions, as convolutions without strides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from tvm import te, tirx

from nnc.attributes import window_pads
from nnc.lowering.operators.sliding import Sliding
from nnc.lowering.pieces import Value, Work, constant

Expr = Any


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
    more = work.attribute("output_padding", [0] * len(slide.kernel))
    sizes = [out - extra for out, extra in zip(work.shape()[2:], more, strict=True)]
    return window_pads(work.node, slide.kernel, sizes, work.input(0).shape[2:])[0]


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


OPERATORS = {"ConvTranspose": transposed_convolution}
