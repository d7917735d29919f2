"""What the nodes of layers say: inputs, constants, sliding windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from nnc.lowering.kernels.window import Window
from nnc.lowering.shapes import shape_of


def input_of(node: gs.Node, index: int) -> gs.Tensor | None:
    """An input, or None where it is omitted."""
    return node.inputs[index] if len(node.inputs) > index and not node.inputs[index].is_empty() else None


def array_of(node: gs.Node, index: int) -> np.ndarray | None:
    """The values of a constant input."""
    tensor = input_of(node, index)
    return tensor.values if isinstance(tensor, gs.Constant) else None


def used_outputs(node: gs.Node) -> list[gs.Tensor]:
    return [tensor for tensor in node.outputs if tensor.name]


def along_channels(bias: gs.Tensor | None, rank: int) -> gs.Tensor | np.ndarray | None:
    """A bias `[channels]` as an operand that broadcasts over images."""
    return bias.values.reshape(1, -1, *[1] * (rank - 2)) if isinstance(bias, gs.Constant) else bias


def reduced_axes(node: gs.Node) -> list[int]:
    """The axes of a reduction, an attribute before opset 18 and then an input; none where they are not known."""
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        values = array_of(node, 1)
        axes = values.tolist() if values is not None else None
    return sorted(axis % len(shape_of(node.inputs[0])) for axis in axes or ())


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
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", b"NOTSET"):
        return tuple(node.attrs.get("pads", (0, 0, 0, 0)))
    if auto == "VALID":
        return 0, 0, 0, 0
    starts, ends = [], []
    for size, kernel, stride, dilation, out in zip(
        window.size, window.kernel, window.strides, window.dilations, window.out_size, strict=True
    ):
        total = max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size)
        first = total // 2 if auto == "SAME_UPPER" else total - total // 2
        starts.append(first)
        ends.append(total - first)
    return starts[0], starts[1], ends[0], ends[1]


def two(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
