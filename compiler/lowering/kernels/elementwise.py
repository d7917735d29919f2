"""Elementwise kernels of any rank: each operand has the output's shape, or size 1 where it is broadcast.

Neighbouring axes that all operands treat alike are merged first, so that the loop over vectors is long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

from tvm import te
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.loops import TASKS, nest, shared, unravel, vectors
from nnc.lowering.kernels.registers import Expr
from nnc.lowering.kernels.unit import Unit, lanes_of

Shape = tuple[int, ...]


def merged(shape: Shape, operands: Sequence[Shape]) -> tuple[Shape, list[Shape]]:
    """The output's and the operands' shapes with as few axes as possible.

    ((1, 4, 7, 7, 16), [(1, 4, 7, 7, 16), (1, 4, 1, 1, 16)])  ->  ((4, 49, 16), [(4, 49, 16), (4, 1, 16)])
    """
    padded = [(1,) * (len(shape) - len(operand)) + operand for operand in operands]
    axes: list[tuple[int, tuple[bool, ...]]] = []
    for axis, size in enumerate(shape):
        full = tuple(operand[axis] == size for operand in padded)
        if size == 1:
            continue
        if axes and axes[-1][1] == full:
            axes[-1] = axes[-1][0] * size, full
        else:
            axes.append((size, full))
    axes = axes or [(1, (True,) * len(operands))]
    sizes = tuple(size for size, _ in axes)
    return sizes, [tuple(size if full[i] else 1 for size, full in axes) for i in range(len(operands))]


def compute(
    operands: Sequence[te.Tensor],
    shape: Shape,
    unit: Unit,
    function: Callable[[list[Expr]], Expr],
    dtype: str = "float32",
) -> te.Tensor:
    """`function(operands)` as an array of `shape`, in vectors along its last axis. The shapes are `merged` ones."""
    return te.extern(
        [shape],
        list(operands),
        lambda ins, outs: _body(ins, outs[0], shape, unit, function),
        name="elementwise",
        dtype=dtype,
    )


def _body(ins: Sequence[Any], out: Any, shape: Shape, unit: Unit, function: Callable[[list[Expr]], Expr]) -> Any:
    lanes, length, tasks = lanes_of(unit), shape[-1], TASKS * unit.threads
    axes = next((n for n in range(len(shape)) if prod(shape[:n]) >= tasks), len(shape) - 1)  # that tasks are made of
    rows = prod(shape[:axes])
    chunk = _chunk(length, rows, tasks, lanes) if axes == len(shape) - 1 else length
    parts = ceil(length / chunk)

    def vector(place: Sequence[Expr], start: Expr, width: int) -> None:
        with T.vectorized(0, width) as k:
            index = [*place, start + k]
            values = [
                buffer[tuple(0 if n == 1 else i for n, i in zip(_sizes(buffer), index, strict=True))] for buffer in ins
            ]
            T.buffer_store(out, function(values), index)

    with IRBuilder() as builder:
        with shared(rows * parts, prod(shape)) as task:
            place = unravel(T.bind(task // parts) if parts > 1 else task, shape[:axes])
            start = T.bind(task % parts * chunk) if parts > 1 else 0
            with nest(shape[axes:-1]) as inner:
                vectors(start, chunk, length, lanes, lambda first, width: vector([*place, *inner], first, width))
        return builder.get()


def _chunk(length: int, rows: int, tasks: int, lanes: int) -> int:
    """Elements of a row per task, so that there are enough tasks: whole vectors, all parts but the last alike."""
    vectors = ceil(length / lanes)
    parts = min(ceil(tasks / rows), vectors)
    return min(length, ceil(vectors / parts) * lanes)


def _sizes(buffer: Any) -> list[int]:
    return [int(size) for size in buffer.shape]
