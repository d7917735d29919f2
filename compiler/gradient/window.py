"""Rules of convolutions and pools: what slides a window over spatial axes.

The gradient of a convolution is its transpose (Dumoulin and Visin 2016, arXiv:1603.07285), with the same weights.
"""

import math

import numpy as np
import onnx_graphsurgeon as gs

from nnc.gradient.step import Rule, Step, first
from nnc.gradient.value import Value, apply, apply_all, scatter_add
from nnc.window import Window


def _attrs(window: Window) -> dict[str, list[int]]:
    return {
        "kernel_shape": list(window.kernel), "strides": list(window.strides), "dilations": list(window.dilations)
    }  # fmt: skip


def _conv(step: Step) -> Value:
    x, W = step.x[:2]
    window = Window.of(step.node, W.shape[2:], x.shape[2:], step.y[0].shape[2:])
    return _spread(step.g, W, window, step.attr("group", 1))


def _spread(g: Value, W: Value, window: Window, group: int) -> Value:
    """Every element of g times W, added up over the windows: the transpose of a convolution with W."""
    rest = [extent - 1 - pad for extent, pad in zip(window.extents * 2, (*window.begins, *window.ends), strict=True)]
    if set(window.strides) == {1} and min(rest) >= 0 and isinstance(W.tensor, gs.Constant):
        # A convolution too, which onnxruntime computes up to three times as fast as a transposed one.
        return apply("Conv", g, _turned(W.tensor.values, group), group=group, pads=rest, **_attrs(window))
    pads = [*window.begins, *(max(end, 0) for end in window.ends)]
    more = [max(-end, 0) for end in window.ends]
    return apply("ConvTranspose", g, W, group=group, pads=pads, output_padding=more, **_attrs(window))


def _turned(W: np.ndarray, group: int) -> np.ndarray:
    """The weights with which a convolution of stride 1 is the transpose of one with W [K, C / group, ...]."""
    K, C, *kernel = W.shape
    swapped = np.swapaxes(W.reshape(group, K // group, C, *kernel), 1, 2).reshape(group * C, K // group, *kernel)
    return np.ascontiguousarray(np.flip(swapped, tuple(range(2, W.ndim))))


def _conv_transpose(step: Step) -> Value:
    x, W, y = step.x[0], step.x[1], step.y[0]
    more = step.attr("output_padding", [0] * len(x.shape[2:]))
    reached = [size - extra for size, extra in zip(y.shape[2:], more, strict=True)]
    window = Window.of(step.node, W.shape[2:], reached, x.shape[2:])
    pads = [*window.begins, *(max(end, 0) for end in window.ends)]
    return apply("Conv", step.g, W, group=step.attr("group", 1), pads=pads, **_attrs(window))


def _average_pool(step: Step) -> Value:
    x, y = step.x[0], step.y[0]
    window = Window.of(step.node, step.attr("kernel_shape"), x.shape[2:], y.shape[2:])
    channels, kernel = x.shape[1], list(window.kernel)
    ones = step.g.writer.constant(np.ones([channels, 1, *kernel], x.dtype))
    shares = window.shares(step.node) * math.prod(kernel)
    return _spread(step.g * step.g.writer.constant((1 / shares).astype(x.dtype)), ones, window, channels)


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
