"""What is held in registers: the micro-kernel that every dense template shares, and what bodies in TIR are made of.

A *register tile* is a block of `rows` x `vectors` accumulators that stays in registers while the reduction runs: each
step broadcasts one scalar per row, loads one weight vector per column and issues `rows * vectors` multiply-adds (Goto
and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008).

Of float16, at most HALF_DEPTH products are added up in float16; these sums are added up in float32. Sums of k values
in float16 lose about sqrt(k) / 2^12 of their size: over thousands of channels that is as much as int8 loses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, Literal

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.unit import Unit, lanes_of

Expr = Any  # a TIR expression: scalar, or float32 vector of `lanes` lanes
Epilogue = Callable[[Expr, Sequence[Expr]], Expr]
CACHE_LINE = 64
FMA_CHAINS = 8  # sums in flight that keep two pipes of latency 4 busy
HALF_DEPTH = 128  # products of float16 that are added up in float16


@dataclass(frozen=True)
class RegisterTile:
    """Accumulators held in registers: `rows` broadcast operands by `vectors` vectors of `lanes` lanes."""

    rows: int
    vectors: int
    lanes: int


def max_rows(vectors: int, lanes: int, unit: Unit) -> int:
    """The most rows of a register tile: what the weights and one broadcast leave of the registers."""
    per_row = vectors * -(-lanes // lanes_of(unit))
    return max(1, (unit.vector_registers - per_row - 1) // per_row)


# LLVM doesn't keep what TVM calls local in registers; threads of a GPU have nothing else.
_SMALL_SCOPE = ContextVar("scope of small buffers", default="global")


@contextmanager
def scratch_of_threads() -> Iterator[None]:
    """Let small buffers belong to one thread of a GPU."""
    token = _SMALL_SCOPE.set("local")
    try:
        yield
    finally:
        _SMALL_SCOPE.reset(token)


def scratch(*shape: int, dtype: str = "float32") -> Any:
    """A buffer of the enclosing loop. Below 1 KB it is on the stack, and with constant indices in registers."""
    return T.buffer_proxy(memory(*shape, dtype=dtype))


def memory(*shape: int, dtype: str = "float32") -> Any:
    """What `scratch` is in. TVM takes what is in scope "local" from the heap on CPUs, and from registers on GPUs."""
    small = prod(shape) * np.dtype(dtype).itemsize < 1024
    return T.alloc_buffer(shape, dtype, scope=_SMALL_SCOPE.get() if small else "global")


def lane(lanes: int) -> Expr:
    """The index of a whole vector: lanes 0, 1, ..."""
    return T.ramp(0, 1, lanes)


def splat(value: float | Expr, lanes: int, dtype: str = "float32") -> Expr:
    """A vector with one value in every lane; `dtype` is that of a number."""
    return T.broadcast(tirx.const(value, dtype) if isinstance(value, int | float) else value, lanes)


def as_float(vector: Expr, lanes: int, zero: int = 0) -> Expr:
    """A vector of bytes, less their zero point, or of float16 as float32; float32 as it is."""
    if str(vector.ty.dtype).startswith("float"):
        return vector.astype(f"float32x{lanes}")
    wide = vector.astype(f"int32x{lanes}").astype(f"float32x{lanes}")
    return wide - splat(float(zero), lanes) if zero else wide


@contextmanager
def when(condition: Expr | None) -> Iterator[None]:
    """Emit the statements inside under a condition; None is always."""
    if condition is None:
        yield
        return
    with T.If(condition), T.Then():
        yield


def prefetch(buffer: Any, index: Sequence[Expr], level: Literal[1, 2] = 2) -> None:
    """Ask for one cache line of `buffer` in a level of the caches. Addresses past the end are harmless."""
    locality = 4 - level  # as in LLVM
    T.evaluate(tirx.call_intrin("void", "tirx.prefetch", T.address_of(buffer[tuple(index)]), 0, locality, 1))


def accumulate(
    tile: RegisterTile,
    depth: tuple[Expr, Expr],
    left: Callable[[int, Expr, Expr], Expr],
    right: Callable[[int, Expr, Expr], Expr],
    initial: Callable[[int, int], Expr] | None = None,
    ahead: Callable[[Expr, Expr], None] | None = None,
    halves: int | None = None,
) -> list[list[Expr]]:
    """Emit `sum over (i, j) of left(row, i, j) * right(vector, i, j)` for a register tile.

    `depth` are the extents of i and j, `left` gives scalars, `right` vectors, `initial` what the sums start from
    (default zero), and `ahead` may prefetch in each step. With `halves`, both give float16, and the products of so many
    i are added up in float16. Returns the sums as `[row][vector]` vector expressions in float32.
    """
    index = lane(tile.lanes)

    def steps(sums: list[list[Any]], first: Expr, last: Expr) -> None:
        with T.serial(first, last) as i, T.serial(0, depth[1]) as j:
            weights = [T.bind(right(c, i, j)) for c in range(tile.vectors)]
            if ahead:
                ahead(i, j)
            for r, row in enumerate(sums):
                scalar = T.bind(splat(left(r, i, j), tile.lanes))
                for total, weight in zip(row, weights, strict=True):
                    total[index] = total[index] + scalar * weight

    totals = sums_of(tile.rows, tile.vectors, tile.lanes, initial=initial)
    if halves is None:
        steps(totals, 0, depth[0])
    else:
        with T.serial(0, tirx.floordiv(depth[0] + halves - 1, halves)) as part:
            few, first = sums_of(tile.rows, tile.vectors, tile.lanes, "float16"), T.bind(part * halves)
            steps(few, first, tirx.min(first + halves, depth[0]))
            add(totals, few, tile.lanes)
    return [[total[index] for total in row] for row in totals]


def sums_of(
    rows: int,
    vectors: int,
    lanes: int,
    dtype: str = "float32",
    initial: Callable[[int, int], Expr] | None = None,
) -> list[list[Any]]:
    """Emit the accumulators of a register tile, `[row][vector]`, with what they start from (default zero)."""
    sums = [[scratch(lanes, dtype=dtype) for _ in range(vectors)] for _ in range(rows)]
    for r, row in enumerate(sums):
        for c, total in enumerate(row):
            total[lane(lanes)] = initial(r, c) if initial else splat(0.0, lanes, dtype)
    return sums


def add(totals: Sequence[Sequence[Any]], sums: Sequence[Sequence[Any]], lanes: int) -> None:
    """Emit `totals += sums` of accumulators in float32 and in float16."""
    index = lane(lanes)
    for total, part in zip(chain(*totals), chain(*sums), strict=True):
        total[index] = total[index] + as_float(part[index], lanes)


def store(
    out: Any,
    value: Expr,
    index: Sequence[Expr],
    lanes: int,
    epilogue: Epilogue,
    valid: int | None = None,
    dtype: str = "float32",
) -> None:
    """Apply the epilogue to a vector of `dtype`, store its first `valid` lanes; the last index is that of lane 0."""
    vector = scratch(lanes, dtype=dtype)
    vector[lane(lanes)] = value
    with T.vectorized(0, valid or lanes) as k:
        at = [*index[:-1], index[-1] + k]
        T.buffer_store(out, epilogue(vector[k], at), at)
