"""Elementwise kernels of any rank: each operand has the output's shape, or size 1 where it is broadcast.

Neighbouring axes that all operands treat alike are merged first, so that the loop over vectors is long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tvm import te
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.gemm import Expr, Unit, lanes_of

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
    operands: Sequence[te.Tensor], shape: Shape, unit: Unit, function: Callable[[list[Expr]], Expr]
) -> te.Tensor:
    """`function(operands)` as float32 of `shape`, parallel over vectors. The shapes are `merged` ones."""
    return te.extern(
        [shape],
        list(operands),
        lambda ins, outs: _body(ins, outs[0], shape, lanes_of(unit), function),
        name="elementwise",
        dtype="float32",
    )


def _body(ins: Sequence[Any], out: Any, shape: Shape, lanes: int, function: Callable[[list[Expr]], Expr]) -> Any:
    outer, length = prod(shape[:-1]), shape[-1]

    def vector(task: Expr, start: Expr, width: int) -> None:
        place = _unravel(task, shape[:-1])
        with T.vectorized(0, width) as k:
            index = [*place, start + k]
            values = [
                buffer[tuple(0 if n == 1 else i for n, i in zip(_sizes(buffer), index, strict=True))] for buffer in ins
            ]
            T.buffer_store(out, function(values), index)

    with IRBuilder() as builder:
        with T.serial(0, 1):  # the builder wants one statement at the top
            if length >= lanes:
                with T.parallel(0, outer * (length // lanes)) as task:
                    vector(task // (length // lanes), task % (length // lanes) * lanes, lanes)
            if length % lanes:
                with T.parallel(0, outer) as task:
                    vector(task, length - length % lanes, length % lanes)
        return builder.get()


def _sizes(buffer: Any) -> list[int]:
    return [int(size) for size in buffer.shape]


def _unravel(index: Expr, shape: Shape) -> list[Expr]:
    place = []
    for size in reversed(shape):
        place.append(T.bind(index % size))
        index = T.bind(index // size)
    return place[::-1]
