"""What the nodes of layers say: inputs, constants, sliding windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import window_pads
from nnc.lowering.kernels.window import Window
from nnc.lowering.shapes import shape_of

if TYPE_CHECKING:
    from nnc.lowering.lowering import Lowering


def input_of(node: gs.Node, index: int) -> gs.Tensor | None:
    """An input, or None where it is omitted."""
    return node.inputs[index] if len(node.inputs) > index and not node.inputs[index].is_empty() else None


def array_of(node: gs.Node, index: int) -> np.ndarray | None:
    """The values of a constant input."""
    tensor = input_of(node, index)
    return tensor.values if isinstance(tensor, gs.Constant) else None


def used_outputs(node: gs.Node) -> list[gs.Tensor]:
    return [tensor for tensor in node.outputs if tensor.name]


def bias_of(lowering: Lowering, node: gs.Node) -> gs.Tensor | np.ndarray | None:
    """The bias `[channels]` of a layer of images as `[1, channels, 1, 1]`, which broadcasts over its output."""
    bias = input_of(node, 2)
    if bias is None or isinstance(bias, gs.Constant):
        return None if bias is None else bias.values.reshape(1, -1, 1, 1)
    shape = (1, *shape_of(bias), 1, 1)
    image = gs.Variable(bias.name, bias.dtype, list(shape))
    lowering.define(image, lowering.plain(bias).view(shape))
    return image


def window_of(node: gs.Node, kernel: Sequence[int]) -> Window | None:
    """The sliding window of a convolution or pool over images; None for other ranks and negative padding."""
    shape, out = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if len(shape) != 4 or len(kernel) != 2:
        return None
    window = Window(
        two(shape[2:]),
        two(kernel),
        two(node.attrs.get("strides", (1, 1))),
        two(node.attrs.get("dilations", (1, 1))),
        (0, 0),
        two(out[2:]),
    )
    pads = pads_of(node, window)
    return replace(window, origin=pads[:2]) if min(pads) >= 0 else None


def pads_of(node: gs.Node, window: Window) -> tuple[int, int, int, int]:
    """Top, left, bottom, right."""
    (top, left), (bottom, right) = window_pads(node, window.kernel, window.size, window.out_size)
    return top, left, bottom, right


def two(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
