"""Nodes that move no values, or whole pieces of memory: reshapes, concatenations, splits, slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from nnc.lowering.fuse import Group
from nnc.lowering.program import Operand, Tensor
from nnc.lowering.shapes import shape_of

if TYPE_CHECKING:
    from nnc.lowering.lowering import Lowering


def reshape(lowering: Lowering, group: Group) -> bool:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same memory."""
    node = group.root
    if isinstance(node.inputs[0], gs.Constant):
        return False
    lowering.define(node.outputs[0], lowering.plain(node.inputs[0]).view(shape_of(node.outputs[0])))
    return True


def concat(lowering: Lowering, group: Group) -> bool:
    """Concat: of whole blocks of channels in blocks, otherwise plain."""
    node, output = group.root, group.root.outputs[0]
    shape = shape_of(output)
    axis = node.attrs["axis"] % len(shape)
    parts = [tensor for tensor in node.inputs if prod(shape_of(tensor))]
    block = lowering.block_of(output)
    blocked = (
        axis == 1
        and len(shape) == 4
        and any(lowering.has_blocks(tensor) for tensor in parts)
        and not any(isinstance(tensor, gs.Constant) for tensor in parts)
        and all(shape_of(tensor)[1] % block == 0 for tensor in parts[:-1])
    )
    sources: list[Operand] = [lowering.blocked(t, block) if blocked else lowering.read(t) for t in parts]
    if blocked:
        shape = (shape[0], sum(source.shape[1] for source in sources), *shape[2:], block)
    result = Tensor(shape, str(sources[0].dtype))
    lowering.define(output, result, block if blocked else 1)
    _join(lowering, node.name, sources, result, axis)
    return True


def _join(lowering: Lowering, name: str, sources: Sequence[Operand], result: Tensor, axis: int) -> None:
    """Place the parts of a concatenation inside of its result, or copy them there."""
    rows, stride = prod(result.shape[:axis]), _bytes(result.shape[axis:], result)
    place = 0
    sources = list(sources)
    if rows == 1:
        place = _adopt_prefix(sources, result, lowering.program.alignment)
    for source in sources:
        size = _bytes(source.shape[axis:], result)
        if not (rows == 1 and _adopt(source, result, place, lowering.program.alignment)):
            piece = Tensor(source.shape, result.dtype, result, place)
            lowering.copy([name], source, piece, rows, size, size, stride)
        place += size


def _adopt_prefix(sources: list[Operand], result: Tensor, alignment: int) -> int:
    """Let `result` take over a concatenation that its first parts are the whole of; returns the bytes placed.

    So the features of a dense block, concatenated again after every layer, lie in one place from the start.
    """
    whole, place = _root(sources[0]), 0
    for count, source in enumerate(sources, 1):
        if whole is None or _root(source) is not whole or source.root()[1] != place:  # type: ignore[union-attr]
            return 0
        place += source.bytes  # type: ignore[union-attr]
        if place == whole.bytes:
            if whole is sources[0] or not _adopt(whole, result, 0, alignment):
                return 0
            del sources[:count]
            return place
    return 0


def _root(source: Operand) -> Tensor | None:
    """The tensor that owns the memory of a source; None for constants."""
    return None if isinstance(source, np.ndarray) else source.root()[0]


def _adopt(part: Operand, result: Tensor, place: int, alignment: int) -> bool:
    """Move a tensor that owns its memory into `result`, where kernels can write it: they ask for alignment."""
    if not isinstance(part, Tensor) or part.base is not None or part.fixed or place % alignment:
        return False
    part.base, part.offset = result, place
    return True


def split(lowering: Lowering, group: Group) -> bool:
    """Split."""
    node = group.root
    if isinstance(node.inputs[0], gs.Constant):
        return False
    shape = shape_of(node.inputs[0])
    axis, first = node.attrs.get("axis", 0) % len(shape), 0
    for output in node.outputs:
        size = shape_of(output)[axis]
        if output.name:
            _take(lowering, node.name, node.inputs[0], output, axis, first)
        first += size
    return True


def slice_(lowering: Lowering, group: Group) -> bool:
    """Slice of one axis in steps of one."""
    node, x = group.root, group.root.inputs[0]
    given = [tensor.values if isinstance(tensor, gs.Constant) else None for tensor in node.inputs[1:]]
    if isinstance(x, gs.Constant) or any(values is None for values in given[:2]):
        return False
    shape = shape_of(x)
    starts = given[0]
    axes = given[2] if len(given) > 2 and given[2] is not None else np.arange(len(starts))  # type: ignore[arg-type]
    steps = given[3] if len(given) > 3 and given[3] is not None else np.ones(len(axes), np.int64)
    changed = [axis for axis in range(len(shape)) if shape[axis] != shape_of(node.outputs[0])[axis]]
    along = {int(axis) % len(shape): index for index, axis in enumerate(axes)}
    if len(changed) != 1 or any(step != 1 for step in steps):
        return False
    size = shape[changed[0]]
    start = int(starts[along[changed[0]]])  # type: ignore[index]
    _take(lowering, node.name, x, node.outputs[0], changed[0], min(max(start + size if start < 0 else start, 0), size))
    return True


def _take(lowering: Lowering, name: str, x: gs.Tensor, output: gs.Tensor, axis: int, first: int) -> None:
    """Define `output` as the elements of `x` from `first` on along an axis: a view where it can be one."""
    shape, block = shape_of(output), lowering.block_of(x)
    whole = axis == 1 and len(shape) == 4 and first % block == 0
    whole &= shape[1] % block == 0 or first + shape[1] == shape_of(x)[1]
    if lowering.has_blocks(x) and whole:
        source = lowering.blocked(x)
        first //= block
        shape = (shape[0], -(-shape[1] // block), *shape[2:], block)
    else:
        source, block = lowering.plain(x), 1
    rows, size = prod(shape[:axis]), _bytes(shape[axis:], source)
    offset = first * _bytes(shape[axis + 1 :], source)
    if rows == 1 and offset % lowering.program.alignment == 0:
        lowering.define(output, source.view(shape, offset), block)
        return
    result = Tensor(shape, source.dtype)
    lowering.copy(
        [name],
        Tensor(shape, source.dtype, source, offset),
        result,
        rows,
        size,
        _bytes(source.shape[axis:], source),
        size,
    )
    lowering.define(output, result, block)


def _bytes(shape: Sequence[int], like: Tensor) -> int:
    return prod(shape) * np.dtype(like.dtype).itemsize


VIEWS: dict[str, Callable[[Lowering, Group], bool]] = {
    "Concat": concat,
    "Flatten": reshape,
    "Reshape": reshape,
    "Slice": slice_,
    "Split": split,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
}
