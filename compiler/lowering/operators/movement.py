"""Operators that move elements of any type: transposes, padding, gathering, scattering, concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from nnc.lowering.gpu.unit import Gpu
from nnc.lowering.kernels import relayout, scatter
from nnc.lowering.kernels.scatter import clamped
from nnc.lowering.kernels.unit import lanes_of
from nnc.lowering.pieces import Shape, Value, Work, constant

Expr = Any


def reshape(work: Work) -> list[Value]:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same memory."""
    return [work.input(0).view(*work.shape())]


# -- transposes


def transpose(work: Work) -> list[Value]:
    x = work.input(0)
    order = [int(axis) for axis in work.attribute("perm", range(len(x.shape))[::-1])]
    return [transposed(work, x, order)]


def transposed(work: Work, x: Value, order: Sequence[int]) -> Value:
    """`x` with its axes in another order, those that stay together as one."""
    groups = _groups(x.shape, order)
    sizes = [prod(x.shape[axis] for axis in group) for group in sorted(groups)]
    places = [sorted(groups).index(group) for group in groups]
    shape = tuple(x.shape[axis] for axis in order)
    if len(groups) <= 1 or places == list(range(len(groups))):
        return x.view(*shape)
    view, lanes = x.view(*sizes), lanes_of(work.unit)
    last = len(sizes) - 1
    in_registers = np.dtype(x.dtype).itemsize == 4 and not isinstance(work.unit, Gpu)
    if in_registers and places[-1] != last and min(sizes[last], sizes[places[-1]]) >= lanes:
        return work.kernel([view], lambda X: relayout.transpose(X, places, work.unit)).view(*shape)

    def moved(X: te.Tensor) -> te.Tensor:
        def read(*index: Expr) -> Expr:
            return X[tuple(index[places.index(axis)] for axis in range(len(sizes)))]

        return te.compute([sizes[axis] for axis in places], read, "transpose")

    return work.compute([view], moved).view(*shape)


def _groups(shape: Shape, order: Sequence[int]) -> list[tuple[int, ...]]:
    """The axes in their new order: those that stay neighbours together, those of one element left out."""
    groups: list[tuple[int, ...]] = []
    for axis in (axis for axis in order if shape[axis] != 1):
        between = range(groups[-1][-1] + 1, axis) if groups else range(0)
        if groups and axis > groups[-1][-1] and all(shape[skipped] == 1 for skipped in between):
            groups[-1] = (*groups[-1], axis)
        else:
            groups.append((axis,))
    return groups


# -- padding


def pad(work: Work) -> list[Value]:
    x, mode = work.input(0), work.attribute("mode", "constant")
    rank = len(x.shape)
    axes = [int(axis) % rank for axis in work.array(3, range(rank))]
    pads = [int(each) for each in work.array(1)]
    before = dict(zip(axes, pads[: len(axes)], strict=True))
    starts = [before.get(axis, 0) for axis in range(rank)]
    shape = work.shape()
    if mode == "constant":
        fill = work.input(2).view(1) if work.has(2) else constant(np.zeros(1, x.dtype))
        if fill.values is not None:
            number = tirx.const(fill.values.item(), x.dtype)
            return [work.compute([x], lambda X: _filled(X, number, shape, starts))]
        return [work.compute([x, fill], lambda X, V: _filled(X, V[0], shape, starts))]
    inside = {
        "edge": lambda i, n: tirx.max(tirx.min(i, n - 1), 0),
        "reflect": lambda i, n: n - 1 - tirx.abs(n - 1 - tirx.abs(i)),
        "wrap": lambda i, n: tirx.floormod(i, n),
    }[mode]

    def read(X: te.Tensor) -> te.Tensor:
        def at(*index: Expr) -> Expr:
            return X[
                tuple(
                    i if size == wanted and not start else inside(i - start, size)
                    for i, start, size, wanted in zip(index, starts, x.shape, shape, strict=True)
                )
            ]

        return te.compute(shape, at, "pad")

    return [work.compute([x], read)]


def _filled(X: te.Tensor, fill: Expr, shape: Shape, starts: Sequence[int]) -> te.Tensor:
    def at(*index: Expr) -> Expr:
        source = [i - start for i, start in zip(index, starts, strict=True)]
        tests = []
        for i, size, start, wanted in zip(source, X.shape, starts, shape, strict=True):
            tests += [i >= 0] if start > 0 else []
            tests += [i < size] if wanted - start > size else []
        return tirx.if_then_else(tirx.all(*tests), X[tuple(source)], fill) if tests else X[tuple(source)]

    return te.compute(shape, at, "pad")


def concat(work: Work) -> list[Value]:
    parts = [each for each in work.inputs() if prod(each.shape)]
    if len(parts) == 1:
        return [parts[0]]
    axis = work.axis()
    views = [each.view(prod(each.shape[:axis]), prod(each.shape[axis:])) for each in parts]
    return [work.kernel(views, lambda *ins: scatter.concatenate(list(ins), work.unit))]


def tile(work: Work) -> list[Value]:
    """Each axis seen as two: which repetition, and where in it."""
    x = work.input(0)
    repeats = [int(each) for each in work.array(1)]
    pairs = [(count, size) for count, size in zip(repeats, x.shape, strict=True) if count * size > 1]
    sizes = [size for _, size in pairs]

    def compute(X: te.Tensor) -> te.Tensor:
        return te.compute([n for pair in pairs for n in pair], lambda *index: X[index[1::2]], "tile")

    return [work.compute([x.view(*sizes)], compute) if pairs else x]


# -- gathering


def gather(work: Work) -> list[Value]:
    x, indices = work.input(0), _indices(work.input(1))
    axis = work.axis(0)
    outer, size, inner = prod(x.shape[:axis]), x.shape[axis], prod(x.shape[axis + 1 :])
    flat = indices.view(prod(indices.shape))

    def compute(X: te.Tensor, places: te.Tensor) -> te.Tensor:
        return te.compute((outer, flat.shape[0], inner), lambda o, i, k: X[o, clamped(places[i], size), k], "gather")

    return [work.compute([x.view(outer, size, inner), flat], compute)]


def gather_elements(work: Work) -> list[Value]:
    x, indices, axis = work.input(0), _indices(work.input(1)), work.axis(0)

    def compute(X: te.Tensor, places: te.Tensor) -> te.Tensor:
        def at(*index: Expr) -> Expr:
            return X[(*index[:axis], clamped(places[index], x.shape[axis]), *index[axis + 1 :])]

        return te.compute(indices.shape, at, "gather_elements")

    return [work.compute([x, indices], compute)]


def gather_nd(work: Work) -> list[Value]:
    x, indices, batch = work.input(0), _indices(work.input(1)), work.attribute("batch_dims", 0)
    depth = indices.shape[-1]
    sizes = x.shape[batch : batch + depth]
    outer, inner = prod(x.shape[:batch]), prod(x.shape[batch + depth :])
    rows = prod(indices.shape[batch:-1])

    def compute(X: te.Tensor, places: te.Tensor) -> te.Tensor:
        def at(o: Expr, i: Expr, k: Expr) -> Expr:
            return X[(o, *(clamped(places[o, i, d], size) for d, size in enumerate(sizes)), k)]

        return te.compute((outer, rows, inner), at, "gather_nd")

    return [work.compute([x.view(outer, *sizes, inner), indices.view(outer, rows, depth)], compute)]


def one_hot(work: Work) -> list[Value]:
    """`values[1]` where a place along the new axis is the index, `values[0]` elsewhere."""
    indices, values = work.input(0), work.input(2)
    depth, axis = int(work.array(1).reshape(())), work.axis(rank=len(indices.shape) + 1)
    outer, inner = prod(indices.shape[:axis]), prod(indices.shape[axis:])

    def compute(places: te.Tensor, off_on: te.Tensor) -> te.Tensor:
        def at(o: Expr, k: Expr, i: Expr) -> Expr:
            index = places[o, i].astype("int64")
            from_end = tirx.Select(index < 0, index + depth, index)
            return tirx.Select(from_end == k.astype("int64"), off_on[1], off_on[0])

        return te.compute((outer, depth, inner), at, "one_hot")

    return [work.compute([indices.view(outer, inner), values], compute)]


def reverse_sequence(work: Work) -> list[Value]:
    """The first `lengths[b]` elements along the time axis of each batch, backwards."""
    x, lengths = work.input(0), _indices(work.input(1))
    batch, time = work.attribute("batch_axis", 1), work.attribute("time_axis", 0)

    def compute(X: te.Tensor, counts: te.Tensor) -> te.Tensor:
        def at(*index: Expr) -> Expr:
            count = tirx.min(counts[index[batch]].astype("int32"), x.shape[time])
            place = tirx.Select(index[time] < count, count - 1 - index[time], index[time])
            return X[(*index[:time], place, *index[time + 1 :])]

        return te.compute(x.shape, at, "reverse_sequence")

    return [work.compute([x, lengths], compute)]


def _indices(value: Value) -> Value:
    """Constant indices with 32 bits."""
    return value if value.values is None else constant(value.values.astype(np.int32))


# -- scattering

_COMBINE: dict[str, Callable[[Expr, Expr], Expr] | None] = {
    "none": None,
    "add": lambda x, y: x + y,
    "max": tirx.max,
    "min": tirx.min,
    "mul": lambda x, y: x * y,
}


def scatter_nd(work: Work) -> list[Value]:
    x, indices, updates = work.input(0), _indices(work.input(1)), work.input(2)
    depth, combine = indices.shape[-1], _COMBINE[work.attribute("reduction", "none")]
    rows, length = prod(indices.shape[:-1]), prod(x.shape[depth:])
    operands = [x.view(*x.shape[:depth], length), indices.view(rows, depth), updates.view(rows, length)]
    return [work.kernel(operands, lambda X, P, U: scatter.scatter_rows(X, P, U, work.unit, combine))]


def scatter_elements(work: Work) -> list[Value]:
    x, indices, updates, axis = work.input(0), _indices(work.input(1)), work.input(2), work.axis(0)
    combine = _COMBINE[work.attribute("reduction", "none")]
    return [
        work.kernel([x, indices, updates], lambda X, P, U: scatter.scatter_elements(X, P, U, axis, work.unit, combine))
    ]


OPERATORS = {
    "Concat": concat,
    "Flatten": reshape,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "Pad": pad,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
