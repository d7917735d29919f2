"""Convolutions and pools: a window that slides over spatial axes."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # as everybody calls it

from nnc.training.site import Compute, Operator, Site, Tensor
from nnc.window import Window

_CONV: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _is_symmetric(window: Window) -> bool:
    """Whether torch's own padding does it: the same on both sides, at most half of the kernel for pools."""
    half = all(2 * begin <= size for begin, size in zip(window.begins, window.kernel, strict=True))
    return half and all(end <= begin for begin, end in zip(window.begins, window.ends, strict=True)) and _exact(window)


def _exact(window: Window) -> bool:
    """Whether the same padding behind as in front leads to no further stop."""
    room = zip(window.sizes, window.begins, window.reach, window.strides, strict=True)
    return all(size + 2 * begin - reach < stride for size, begin, reach, stride in room)


def _padded(x: Tensor, window: Window, value: float) -> Tensor:
    """x with just as much padding as the windows need."""
    pads = [each for pair in zip(window.begins, window.ends, strict=True) for each in reversed(pair)][::-1]
    return F.pad(x, pads, value=value) if any(pads) else x


def _conv(site: Site) -> Compute:
    kernel, group = site.shape(1)[2:], site.attr("group", 1)
    window = Window.of(site.node, kernel, site.shape()[2:], site.result[2:])
    function = _CONV[len(kernel) - 1]
    strides, dilations = tuple(window.strides), tuple(window.dilations)
    if _is_symmetric(window):
        pads = tuple(window.begins)
        return lambda x, W, B=None: function(x, W, B, strides, pads, dilations, group)
    return lambda x, W, B=None: function(_padded(x, window, 0.0), W, B, strides, 0, dilations, group)


def _conv_transpose(site: Site) -> Compute:
    kernel, group, sizes = site.shape(1)[2:], site.attr("group", 1), site.result[2:]
    more = site.attr("output_padding", [0] * len(kernel))
    reached = [size - extra for size, extra in zip(sizes, more, strict=True)]
    window = Window.of(site.node, kernel, reached, site.shape()[2:])
    function, cuts = _TRANSPOSED[len(kernel) - 1], list(zip(window.begins, sizes, strict=True))
    extra = [max(0, begin + size - reach) for (begin, size), reach in zip(cuts, window.reach, strict=True)]
    strides, dilations = tuple(window.strides), tuple(window.dilations)
    places = (slice(None), slice(None), *(slice(begin, begin + size) for begin, size in cuts))

    def compute(x: Tensor, W: Tensor, B: Tensor | None = None) -> Tensor:
        return function(x, W, B, strides, 0, extra, group, dilations)[places]

    return compute


def _max_pool(site: Site) -> Compute:
    window = _pool(site)
    function = _MAX[len(window.kernel) - 1]
    kernel, strides, dilations = tuple(window.kernel), tuple(window.strides), tuple(window.dilations)
    if _is_symmetric(window):
        return lambda x: function(x, kernel, strides, tuple(window.begins), dilations)
    return lambda x: function(_padded(x, window, -torch.inf), kernel, strides, 0, dilations)


def _average_pool(site: Site) -> Compute:
    """The sum of a window divided by how many of its values count: those of the input, or of the padding, too."""
    window = _pool(site)
    if set(window.dilations) != {1}:
        raise site.refused("with dilations")
    function = _AVERAGE[len(window.kernel) - 1]
    kernel, strides = tuple(window.kernel), tuple(window.strides)
    if not any(window.begins) and max(window.ends) <= 0:
        return lambda x: function(x, kernel, strides)
    shares = torch.from_numpy(window.shares(site.node))
    return lambda x: function(_padded(x, window, 0.0), kernel, strides) / shares.to(x.device, x.dtype)


def _pool(site: Site) -> Window:
    if len(site.node.outputs) > 1:
        raise site.refused("with the places of the maxima")
    return Window.of(site.node, site.attr("kernel_shape"), site.shape()[2:], site.result[2:])


def _over_space(function: Any) -> Operator:
    return lambda site: lambda x: function(x, tuple(range(2, site.rank)), keepdim=True)


OPERATORS: dict[str, Operator] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _over_space(torch.mean),
    "GlobalMaxPool": _over_space(torch.amax),
    "MaxPool": _max_pool,
}
