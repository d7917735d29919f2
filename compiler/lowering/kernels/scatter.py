"""Copies of an array with some places overwritten, or combined with updates.

Updates of one place take effect in order, so that the threads share what lies beside each other, never the order.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.loops import TASKS, copy, shared, unravel, vectors
from nnc.lowering.kernels.registers import Expr
from nnc.lowering.kernels.unit import Unit, lanes_of

Combine = Callable[[Expr, Expr], Expr]


def clamped(index: Expr, size: int) -> Expr:
    """An index, counted from the end where it is negative. What lies outside is moved inside: memory stays safe."""
    index = index.astype("int32")
    limit = tirx.const(size, "int32")
    from_end = tirx.Select(index < 0, index + limit, index)
    return tirx.max(tirx.min(from_end, limit - 1), tirx.const(0, "int32"))


def scatter_rows(
    data: te.Tensor, indices: te.Tensor, updates: te.Tensor, unit: Unit, combine: Combine | None
) -> te.Tensor:
    """`data` `[d1, ..., dk, n]` with rows of n replaced by `updates` `[m, n]` at the places `indices` `[m, k]`."""

    def body(ins: list[Any], outs: list[Any]) -> Any:
        X, places, U = map(T.buffer_proxy, ins)
        out, sizes = T.buffer_proxy(outs[0]), [int(size) for size in data.shape]
        rows, length = (int(size) for size in updates.shape)
        lanes = lanes_of(unit)
        chunk = min(length, lanes * ceil(length / (TASKS * unit.threads) / lanes))
        with IRBuilder() as builder:
            with T.serial(0, 1):
                copy(X, out, sizes, unit)
                with shared(ceil(length / chunk), rows * length) as part, T.serial(0, rows) as row:
                    at = [T.bind(clamped(places[row, k], size)) for k, size in enumerate(sizes[:-1])]

                    def store(start: Expr, width: int) -> None:
                        with T.vectorized(0, width) as lane:
                            place = (*at, start + lane)
                            update = U[row, start + lane]
                            out[place] = update if combine is None else combine(out[place], update)

                    vectors(part * chunk, chunk, length, lanes, store)
            return builder.get()

    return te.extern([data.shape], [data, indices, updates], body, name="scatter_rows", dtype=str(data.dtype))


def scatter_elements(
    data: te.Tensor, indices: te.Tensor, updates: te.Tensor, axis: int, unit: Unit, combine: Combine | None
) -> te.Tensor:
    """`data` with elements replaced by `updates`, moved along an axis to `indices`, which has the same shape."""

    def body(ins: list[Any], outs: list[Any]) -> Any:
        X, places, U = map(T.buffer_proxy, ins)
        out, sizes = T.buffer_proxy(outs[0]), [int(size) for size in data.shape]
        moved = [int(size) for size in updates.shape]
        others = moved[:axis] + moved[axis + 1 :]
        with IRBuilder() as builder:
            with T.serial(0, 1):
                copy(X, out, sizes, unit)
                with shared(prod(others), prod(moved)) as task:
                    beside = unravel(task, others)
                    with T.serial(0, moved[axis]) as step:
                        source = (*beside[:axis], step, *beside[axis:])
                        place = (*beside[:axis], T.bind(clamped(places[source], sizes[axis])), *beside[axis:])
                        out[place] = U[source] if combine is None else combine(out[place], U[source])
            return builder.get()

    return te.extern([data.shape], [data, indices, updates], body, name="scatter_elements", dtype=str(data.dtype))


def concatenate(parts: list[te.Tensor], unit: Unit) -> te.Tensor:
    """Arrays `[rows, n1]`, `[rows, n2]`, ... side by side."""
    rows, widths = int(parts[0].shape[0]), [int(part.shape[1]) for part in parts]

    def body(ins: list[Any], outs: list[Any]) -> Any:
        out, lanes = T.buffer_proxy(outs[0]), lanes_of(unit)
        with IRBuilder() as builder:
            with shared(rows, rows * sum(widths)) as row:
                for place, part in enumerate(ins):
                    first = sum(widths[:place])

                    def store(start: Expr, width: int, part: Any = part, first: int = first) -> None:
                        with T.vectorized(0, width) as lane:
                            out[row, first + start + lane] = T.buffer_proxy(part)[row, start + lane]

                    vectors(0, widths[place], widths[place], lanes, store)
            return builder.get()

    return te.extern([(rows, sum(widths))], parts, body, name="concatenate", dtype=str(parts[0].dtype))
