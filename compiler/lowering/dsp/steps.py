"""What follows a layer on the DSP: in fixed point where it is integers again, otherwise a tail in floats."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from nnc.integers import Quantization
from nnc.lowering.dsp.finish import Finish
from nnc.lowering.dsp.fixed import FixedPoint, fixed_point
from nnc.lowering.dsp.unit import LANES
from nnc.lowering.expression import Builder
from nnc.lowering.fuse import Group
from nnc.lowering.program import Tensor
from nnc.lowering.shapes import dtype_of, shape_of

if TYPE_CHECKING:
    from nnc.lowering.lowering import Lowering

Shape = tuple[int, ...]
Bias: TypeAlias = gs.Tensor | np.ndarray | None

_BYTE = 255


def largest_sum(W: np.ndarray, quantization: Quantization, axis: int = 0) -> int:
    """The largest magnitude of a sum of products with weights of which one output has all but `axis`."""
    weights = np.abs(W.astype(np.int64)).sum(tuple(each for each in range(W.ndim) if each != axis % W.ndim))
    return int(weights.max(initial=0)) * max(quantization.zero, _BYTE - quantization.zero)


def of_image(lowering: Lowering, group: Group, bias: Bias, worth: np.ndarray | float, largest: int) -> Finish:
    """What follows the sums of a layer of images, which are worth `worth` and at most `largest`."""
    shape = shape_of(group.root.outputs[0])
    found = _fixed(lowering.steps(group, bias, worth), largest, lambda each: _is_image_like(each, shape))
    if found is None:
        tail = lowering.tail(group, bias, LANES, shape, worth, "int32")
        return Finish(tail, tail.operands)
    steps, read, constants = found
    return Finish(steps, (*(blocked(lowering, each) for each in read), *map(in_blocks, constants)))


def of_rows(lowering: Lowering, group: Group, bias: Bias, worth: np.ndarray, largest: int, rows: int) -> Finish | None:
    """What follows the sums of a product of rows; None where it reads something that has other rows."""
    shape = shape_of(group.root.outputs[0])
    found = _fixed(lowering.steps(group, bias, worth), largest, lambda each: False)
    if found is not None:
        steps, _, constants = found
        return Finish(steps, tuple(map(_along_columns, constants)))
    tail = lowering.tail(group, bias, 1, shape, worth, "int32").as_rows(rows, shape)
    return None if tail is None else Finish(tail, tail.operands)


def of_bytes(lowering: Lowering, builder: Builder, shape: Shape, in_blocks_: bool) -> Finish | None:
    """Steps between bytes alone, in blocks of channels or on plain arrays; None where they are none."""
    found = _fixed(builder, None, lambda each: _is_image_like(each, shape) if in_blocks_ else shape_of(each) == shape)
    if found is None:
        return None
    steps, read, constants = found
    if in_blocks_:
        return Finish(steps, (*(blocked(lowering, each) for each in read), *map(in_blocks, constants)))
    if any(constant.size > 1 for constant in constants):
        return None
    plain = (lowering.plain(each).view((1, prod(shape), 1)) for each in read)
    return Finish(steps, (*plain, *(constant.reshape(1, 1) for constant in constants)))


Found = tuple[FixedPoint, list[gs.Tensor], list[np.ndarray]]


def _fixed(builder: Builder, largest: int | None, suits: Callable[[gs.Tensor], bool]) -> Found | None:
    """The steps in fixed point, the bytes that they read beside the root's sums, and their constants."""
    first = 0 if largest is None else 1
    bounds: dict[int, int] = {} if largest is None else {0: max(largest, 1)}
    read, constants = [], {}
    for slot, operand in enumerate(builder.operands, first):
        if isinstance(operand, np.ndarray):
            constants[slot] = operand
        elif dtype_of(operand) == "uint8" and suits(operand):
            bounds[slot] = _BYTE
            read.append(operand)
    found = fixed_point(builder.expression(), bounds, constants)
    if found is None or not all(_is_along_channels(constant) for constant in found[1]):
        return None
    return found[0], read, found[1]


def _is_image_like(tensor: gs.Tensor, shape: Shape) -> bool:
    """Whether a tensor has the shape of an image, or one pixel of it."""
    own = shape_of(tensor)
    return own == shape or (len(own) == 4 and own == (*shape[:2], 1, 1))


def _is_along_channels(constant: np.ndarray) -> bool:
    axis = 1 if constant.ndim == 4 else constant.ndim - 1
    return constant.size == 1 or constant.size == constant.shape[axis]


def blocked(lowering: Lowering, tensor: gs.Tensor) -> Tensor:
    """Bytes of an image as `[rows, pixels, 32]`."""
    made = lowering.blocked(tensor)
    n, blocks, height, width, lanes = made.shape
    return made.view((n * blocks, height * width, lanes))


def in_blocks(constant: np.ndarray) -> np.ndarray:
    """A constant along channels as `[blocks, 32]`, or `[1, 1]`."""
    if constant.size == 1:
        return constant.reshape(1, 1)
    return np.pad(constant.reshape(-1), (0, -constant.size % LANES)).reshape(-1, LANES)


def _along_columns(constant: np.ndarray) -> np.ndarray:
    """A constant along columns as `[1, columns]` up to a whole register, and on to where a product's panel may end."""
    if constant.size == 1:
        return constant.reshape(1, 1)
    return np.pad(constant.reshape(-1), (0, -constant.size % LANES + _PANEL)).reshape(1, -1)


_PANEL = 8 * LANES
"""The most columns that one tile of a product has."""
