"""What a node's attributes and constant inputs say of what it does: axes, bounds, padding, biases.

`Computed` is raised where an input that says so is computed at run time.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from nnc.pattern import NoMatch

Told: TypeAlias = Callable[[int], Sequence[int] | None]
"""The integers of an optional input of a node by its place, None where it is left out: `integers` reads constants, and
others may know more."""


class Computed(NoMatch):
    """What an input tells a node is computed at run time; the message says which."""

    def __init__(self, node: gs.Node, index: int) -> None:
        name = node.inputs[index].name
        super().__init__(f"what '{name}' tells {node.op} '{node.name}' is computed: simplify-shapes may write it down")


def number(constant: gs.Constant) -> float:
    """The one value of a constant, of shape [] or [1, ...]."""
    return float(constant.values.reshape(()))


def integers(node: gs.Node, index: int) -> list[int] | None:
    """The integers of an optional constant input, None where it is left out."""
    tensor = _given(node, index)
    return None if tensor is None else [int(value) for value in tensor.values.reshape(-1)]


def bounds(node: gs.Node) -> tuple[float, float]:
    """Between which values a Relu or Clip leaves what it reads; infinite where it has no bound."""
    if node.op == "Relu":
        return 0.0, math.inf
    low, high = _given(node, 1), _given(node, 2)
    return -math.inf if low is None else number(low), math.inf if high is None else number(high)


def slices(node: gs.Node, shape: Sequence[int], told: Told | None = None) -> dict[int, range]:
    """The indices that a Slice of a tensor of this shape keeps of every axis that it names."""
    told = told or partial(integers, node)
    starts, ends, axes, steps = (told(index) or [] for index in range(1, 5))
    each = zip(axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True)
    return {axis % len(shape): _indices(shape[axis], *kept) for axis, *kept in each}


def _indices(size: int, start: int, end: int, step: int) -> range:
    """What a Slice keeps of an axis; backwards it clamps its start to the first element, unlike Python's slices."""
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    least, most = (0, size) if step > 0 else (-1, size - 1)
    return range(min(max(start, 0), most), min(max(end, least), most), step)


def pads(node: gs.Node, told: Told | None = None) -> dict[int, tuple[int, int]]:
    """How much a Pad adds in front of and behind every axis where it does; negative where it cuts off."""
    told = told or partial(integers, node)
    amounts, axes, rank = told(1) or [], told(3), len(node.inputs[0].shape)
    axes = list(range(rank)) if axes is None else axes
    pairs = zip(amounts[: len(axes)], amounts[len(axes) :], strict=True)
    return {axis % rank: pair for axis, pair in zip(axes, pairs, strict=True) if any(pair)}


def window_pads(
    node: gs.Node, kernel: Sequence[int], sizes: Sequence[int], stops: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The padding in front of and behind each spatial axis of a convolution or pool, whose windows have size `kernel`.

    Windows slide over `sizes` and stop at `stops` places: those of the input and the output; of a ConvTranspose, those
    of the output, less `output_padding`, and of the input. With `auto_pad`, or the `output_shape` of a ConvTranspose,
    it is what the windows need, half of it on each side: an odd element is in front, with SAME_UPPER behind.
    """
    rank, automatic = len(kernel), node.attrs.get("auto_pad", "NOTSET")
    if automatic in ("NOTSET", "VALID") and "output_shape" not in node.attrs:
        given = node.attrs.get("pads") if automatic == "NOTSET" else None
        padding = list(given or [0] * 2 * rank)
        return padding[:rank], padding[rank:]
    strides, dilations = (node.attrs.get(name) or [1] * rank for name in ("strides", "dilations"))
    totals = [
        max(0, stride * (count - 1) + dilation * (taps - 1) + 1 - size)
        for size, count, taps, stride, dilation in zip(sizes, stops, kernel, strides, dilations, strict=True)
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (less, more) if automatic == "SAME_UPPER" else (more, less)


def reduced_axes(node: gs.Node, told: Told | None = None) -> list[int]:
    """The axes, from 0, that a reduction, ArgMax or ArgMin reduces."""
    told, rank = told or partial(integers, node), len(node.inputs[0].shape)
    if node.op in ("ArgMax", "ArgMin"):
        return [node.attrs.get("axis", 0) % rank]
    axes = node.attrs["axes"] if "axes" in node.attrs else told(1)
    if axes:
        return [axis % rank for axis in axes]
    return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))


def output_axis(layer: gs.Node) -> int:
    """The axis of a layer's weights that its output channels are along; in a ConvTranspose its groups share it."""
    if layer.op == "Conv":
        return 0
    if layer.op == "Gemm":
        return 0 if layer.attrs.get("transB", 0) else 1
    return 1 if layer.op == "ConvTranspose" else len(layer.inputs[1].shape) - 1


def bias(layer: gs.Node) -> np.ndarray | None:
    """What a layer adds to every output, float64 [outputs], Gemm's beta included.

    None where nothing is added, what is computed, or another number in every row.
    """
    if layer.op == "MatMul" or len(layer.inputs) < 3 or not isinstance(layer.inputs[2], gs.Constant):
        return None
    values, outputs = layer.inputs[2].values, layer.outputs[0].shape[1]
    *rows, columns = values.shape or [1]
    if math.prod(rows) != 1 or columns not in (1, outputs):
        return None
    beta = layer.attrs.get("beta", 1.0) if layer.op == "Gemm" else 1.0
    return np.broadcast_to(beta * values.astype(np.float64).reshape(-1), (outputs,))


def permutation(transpose: gs.Node) -> list[int]:
    """The axes of the input in the order of the output's."""
    if "perm" in transpose.attrs:
        return list(transpose.attrs["perm"])
    if transpose.inputs[0].shape is None:
        raise NoMatch(f"the shape of '{transpose.inputs[0].name}' is not known")
    return list(range(len(transpose.inputs[0].shape)))[::-1]


def _given(node: gs.Node, index: int) -> gs.Constant | None:
    """An optional constant input, None where it is left out."""
    if len(node.inputs) <= index:
        return None
    tensor = node.inputs[index]
    if isinstance(tensor, gs.Constant):
        return tensor
    if not tensor.is_empty():
        raise Computed(node, index)
    return None
