"""Rules of convolutions and pools: what slides a window over spatial axes.

The gradient of a convolution is its transpose (Dumoulin and Visin 2016, arXiv:1603.07285), with the same weights.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import window_pads
from nnc.gradient.step import Rule, Step, first
from nnc.gradient.value import Value, apply, apply_all, scatter_add


@dataclass(frozen=True)
class Window:
    """A window that moves over `sizes` in steps and stops at `stops` places, per spatial axis."""

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    begins: list[int]
    """Padding in front."""
    sizes: Sequence[int]
    stops: Sequence[int]

    @property
    def attrs(self) -> dict[str, list[int]]:
        return {"kernel_shape": list(self.kernel), "strides": list(self.strides), "dilations": list(self.dilations)}

    @property
    def ends(self) -> list[int]:
        """Padding behind that is just as large as the windows need; negative where the last window ends earlier."""
        return [reach - begin - size for reach, begin, size in zip(self._reach(), self.begins, self.sizes, strict=True)]

    def _reach(self) -> list[int]:
        """The extent from the begin of the first window to the end of the last."""
        return [
            stride * (stops - 1) + extent
            for stride, stops, extent in zip(self.strides, self.stops, self.extents, strict=True)
        ]

    @property
    def extents(self) -> list[int]:
        return [dilation * (size - 1) + 1 for dilation, size in zip(self.dilations, self.kernel, strict=True)]

    def counts(self, begins: Sequence[int], ends: Sequence[int]) -> np.ndarray:
        """How many elements each window holds of the axes and of so much padding: an array of the shape `stops`."""
        per_axis = []
        for axis, stops in enumerate(self.stops):
            first = np.arange(stops) * self.strides[axis] - self.begins[axis]
            places = first[:, None] + np.arange(self.kernel[axis]) * self.dilations[axis]
            inside = (places >= -begins[axis]) & (places < self.sizes[axis] + ends[axis])
            per_axis.append(inside.sum(axis=1))
        return functools.reduce(np.multiply.outer, per_axis)


def _window(step: Step, kernel: Sequence[int], large: Sequence[int], small: Sequence[int]) -> Window:
    """The window that takes the sizes `large` to `small`, padded as the node's attributes say."""
    rank = len(kernel)
    strides, dilations = step.attr("strides", [1] * rank), step.attr("dilations", [1] * rank)
    begins, _ = window_pads(step.node, kernel, large, small)
    return Window(kernel, strides, dilations, begins, large, small)


def _conv(step: Step) -> Value:
    x, W = step.x[:2]
    window = _window(step, W.shape[2:], x.shape[2:], step.y[0].shape[2:])
    return _spread(step.g, W, window, step.attr("group", 1))


def _spread(g: Value, W: Value, window: Window, group: int) -> Value:
    """Every element of g times W, added up over the windows: the transpose of a convolution with W."""
    rest = [extent - 1 - pad for extent, pad in zip(window.extents * 2, window.begins + window.ends, strict=True)]
    if set(window.strides) == {1} and min(rest) >= 0 and isinstance(W.tensor, gs.Constant):
        # A convolution too, which onnxruntime computes up to three times as fast as a transposed one.
        return apply("Conv", g, _turned(W.tensor.values, group), group=group, pads=rest, **window.attrs)
    pads = [*window.begins, *(max(end, 0) for end in window.ends)]
    more = [max(-end, 0) for end in window.ends]
    return apply("ConvTranspose", g, W, group=group, pads=pads, output_padding=more, **window.attrs)


def _turned(W: np.ndarray, group: int) -> np.ndarray:
    """The weights with which a convolution of stride 1 is the transpose of one with W [K, C / group, ...]."""
    K, C, *kernel = W.shape
    swapped = np.swapaxes(W.reshape(group, K // group, C, *kernel), 1, 2).reshape(group * C, K // group, *kernel)
    return np.ascontiguousarray(np.flip(swapped, tuple(range(2, W.ndim))))


def _conv_transpose(step: Step) -> Value:
    x, W, y = step.x[0], step.x[1], step.y[0]
    more = step.attr("output_padding", [0] * len(x.shape[2:]))
    reached = [size - extra for size, extra in zip(y.shape[2:], more, strict=True)]
    window = _window(step, W.shape[2:], reached, x.shape[2:])
    pads = [*window.begins, *(max(end, 0) for end in window.ends)]
    return apply("Conv", step.g, W, group=step.attr("group", 1), pads=pads, **window.attrs)


def _average_pool(step: Step) -> Value:
    x, y = step.x[0], step.y[0]
    window = _window(step, step.attr("kernel_shape"), x.shape[2:], y.shape[2:])
    channels, kernel = x.shape[1], list(window.kernel)
    ones = step.g.writer.constant(np.ones([channels, 1, *kernel], x.dtype))
    share = step.g.writer.constant((1 / _divisors(step, window)).astype(x.dtype))
    return _spread(step.g * share, ones, window, channels)


def _divisors(step: Step, window: Window) -> np.ndarray:
    """By how much AveragePool divides the sum of each window."""
    nothing = [0] * len(window.kernel)
    if not step.attr("count_include_pad", 0):
        return window.counts(nothing, nothing)
    _, ends = window_pads(step.node, window.kernel, window.sizes, window.stops)
    return window.counts(window.begins, ends)


def _max_pool(step: Step) -> Value:
    """To the first maximum of each window, whose place in the whole tensor MaxPool tells."""
    x = step.x[0]
    attrs = {key: value for key, value in step.node.attrs.items() if key != "storage_order"}
    _, places = apply_all("MaxPool", x, outputs=2, **attrs)
    places, g = places.reshape([-1]), step.g.reshape([-1])
    return scatter_add("ScatterElements", [math.prod(x.shape)], places, g, axis=0).reshape(x.shape)


RULES: dict[str, Rule] = {
    "AveragePool": first(_average_pool),
    "Conv": first(_conv),
    "ConvTranspose": first(_conv_transpose),
    "MaxPool": first(_max_pool),
}
