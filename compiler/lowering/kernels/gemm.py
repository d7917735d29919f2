"""Matrix products in registers: the micro-kernel that every dense template shares, and Gemm itself.

A *register tile* is a block of `rows` x `vectors` accumulators that stays in registers while the reduction runs: each
step broadcasts one scalar per row, loads one weight vector per column and issues `rows * vectors` multiply-adds (Goto
and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). The weights are packed at compile time
into panels `[panel][k][vector][lane]`, in the order in which they are read, so that every thread streams its own
contiguous part of memory.

The bodies are written as TIR and handed to `te.extern`: nothing is left to schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tvm import te, tirx  # noqa: TID253
from tvm.script.ir_builder import IRBuilder  # noqa: TID253
from tvm.script.ir_builder import tirx as T  # noqa: TID253

Expr = Any  # a TIR expression: scalar, or float32 vector of `lanes` lanes
Epilogue = Callable[[Expr, Sequence[Expr]], Expr]
CACHE_LINE = 64


class Unit(Protocol):
    """The figures of a compute unit that choose a register tile and a blocking."""

    vector_bits: int
    vector_registers: int
    threads: int
    l1d_bytes: int
    l2_bytes: int


@dataclass(frozen=True)
class RegisterTile:
    """Accumulators held in registers: `rows` broadcast operands by `vectors` vectors of `lanes` lanes."""

    rows: int
    vectors: int
    lanes: int


def lanes_of(unit: Unit) -> int:
    """The float32 lanes of one vector register."""
    return unit.vector_bits // 32


def max_rows(vectors: int, lanes: int, unit: Unit) -> int:
    """The most rows of a register tile: what the weights and one broadcast leave of the registers."""
    per_row = vectors * -(-lanes // lanes_of(unit))
    return max(1, (unit.vector_registers - per_row - 1) // per_row)


def scratch(*shape: int) -> Any:
    """A float32 buffer of the enclosing loop. Below 1 KB it is on the stack, and with constant indices in registers."""
    return T.buffer_proxy(T.alloc_buffer(shape, "float32"))


def lane(lanes: int) -> Expr:
    """The index of a whole vector: lanes 0, 1, ..."""
    return T.ramp(0, 1, lanes)


def splat(value: float | Expr, lanes: int) -> Expr:
    """A vector with one value in every lane."""
    return T.broadcast(tirx.const(value, "float32") if isinstance(value, int | float) else value, lanes)


@contextmanager
def when(condition: Expr | None) -> Iterator[None]:
    """Emit the statements inside under a condition; None is always."""
    if condition is None:
        yield
        return
    with T.If(condition), T.Then():
        yield


def prefetch(buffer: Any, index: Sequence[Expr]) -> None:
    """Ask for one cache line of `buffer` in the second-level cache. Addresses past the end are harmless."""
    T.evaluate(tirx.call_intrin("void", "tirx.prefetch", T.address_of(buffer[tuple(index)]), 0, 2, 1))


def accumulate(
    tile: RegisterTile,
    depth: tuple[int, int],
    left: Callable[[int, Expr, Expr], Expr],
    right: Callable[[int, Expr, Expr], Expr],
    initial: Callable[[int, int], Expr] | None = None,
    ahead: Callable[[Expr, Expr], None] | None = None,
) -> list[list[Expr]]:
    """Emit `sum over (i, j) of left(row, i, j) * right(vector, i, j)` for a register tile.

    `depth` are the extents of i and j, `left` gives scalars, `right` vectors, `initial` what the sums start from
    (default zero), and `ahead` may prefetch in each step. Returns the sums as `[row][vector]` vector expressions.
    """
    index = lane(tile.lanes)
    sums = [[scratch(tile.lanes) for _ in range(tile.vectors)] for _ in range(tile.rows)]
    for r, row in enumerate(sums):
        for c, total in enumerate(row):
            total[index] = initial(r, c) if initial else splat(0.0, tile.lanes)
    with T.serial(0, depth[0]) as i, T.serial(0, depth[1]) as j:
        weights = [T.bind(right(c, i, j)) for c in range(tile.vectors)]
        if ahead:
            ahead(i, j)
        for r, row in enumerate(sums):
            scalar = T.bind(splat(left(r, i, j), tile.lanes))
            for total, weight in zip(row, weights, strict=True):
                total[index] = total[index] + scalar * weight
    return [[total[index] for total in row] for row in sums]


def store(out: Any, value: Expr, index: Sequence[Expr], lanes: int, epilogue: Epilogue, valid: int | None = None) -> None:
    """Apply the epilogue to a vector and store its first `valid` lanes; the last index is that of lane 0."""
    vector = scratch(lanes)
    vector[lane(lanes)] = value
    with T.vectorized(0, valid or lanes) as k:
        at = [*index[:-1], index[-1] + k]
        T.buffer_store(out, epilogue(vector[k], at), at)


@dataclass(frozen=True)
class GemmPlan:
    """How `[rows, depth] x [depth, columns]` is blocked: register tile, rows per task, depth per pass over the cache."""

    tile: RegisterTile
    row_block: int
    depth_block: int

    @property
    def panel(self) -> int:
        """Columns of one panel of packed weights."""
        return self.tile.vectors * self.tile.lanes


def plan(rows: int, columns: int, depth: int, unit: Unit) -> GemmPlan:
    """The blocking of a product from its shape and the unit.

    Few rows: the weights are read once, so memory is the limit and the panel is as wide as the registers allow.
    Many rows: two vectors per row, and a depth block whose weights stay in half of the first-level cache.
    """
    lanes = lanes_of(unit)
    if rows <= max_rows(2, lanes, unit):
        tile = RegisterTile(rows, _panel_vectors(rows, columns, unit), lanes)
        return GemmPlan(tile, rows, depth)
    most = max_rows(2, lanes, unit)
    tile = RegisterTile(-(-rows // -(-rows // most)), 2, lanes)
    depth_block = max(64, unit.l1d_bytes // 2 // (4 * 2 * lanes))
    panels = -(-columns // (2 * lanes))
    row_tiles = -(-rows // tile.rows)
    tasks_per_panel = min(row_tiles, max(1, -(-4 * unit.threads // panels)))
    row_block = -(-row_tiles // tasks_per_panel) * tile.rows
    return GemmPlan(tile, row_block, -(-depth // -(-depth // depth_block)))


def _panel_vectors(rows: int, columns: int, unit: Unit) -> int:
    """The panel width, in vectors, with the least work for the busiest thread; at equal work the widest."""
    lanes = lanes_of(unit)
    most = max(1, min(8, (unit.vector_registers - 1) // (rows + 1)))

    def busiest(vectors: int) -> int:
        panels = -(-columns // (vectors * lanes))
        return -(-panels // unit.threads) * vectors

    return min(range(1, most + 1), key=lambda vectors: (busiest(vectors) + most // vectors // 2, -vectors))


def pack(W: np.ndarray, plan: GemmPlan) -> np.ndarray:
    """Pack weights `[depth, columns]` into panels `[panel, depth, vector, lane]`, padded with zero columns."""
    depth, columns = W.shape
    panels = -(-columns // plan.panel)
    padded = np.zeros((depth, panels * plan.panel), np.float32)
    padded[:, :columns] = W
    tiled = padded.reshape(depth, panels, plan.tile.vectors, plan.tile.lanes)
    return np.ascontiguousarray(tiled.transpose(1, 0, 2, 3))


def packed_shape(depth: int, columns: int, plan: GemmPlan) -> tuple[int, int, int, int]:
    """The shape of `pack`'s result."""
    return -(-columns // plan.panel), depth, plan.tile.vectors, plan.tile.lanes


def compute(
    A: te.Tensor,
    W: te.Tensor,
    columns: int,
    plan: GemmPlan,
    extras: Sequence[te.Tensor] = (),
    epilogue: Epilogue = lambda value, index: value,
) -> te.Tensor:
    """`epilogue(A @ W)` as float32 `[rows, columns]`, parallel over panels and row blocks.

    `A` is float32 `[rows, depth]`, `W` the packed weights, `extras` the tensors that the epilogue closes over, and
    `epilogue(value, (row, column))` a scalar expression.
    """
    product = _Product(int(A.shape[0]), columns, int(A.shape[1]), plan, epilogue)
    return te.extern(
        [(product.rows, columns)], [A, W, *extras], lambda ins, outs: product.body(*ins[:2], outs[0]),
        name="gemm", dtype="float32",
    )


@dataclass(frozen=True)
class _Product:
    """Emits the loops of one product."""

    rows: int
    columns: int
    depth: int
    plan: GemmPlan
    epilogue: Epilogue

    def body(self, A: Any, W: Any, out: Any) -> Any:
        panels = -(-self.columns // self.plan.panel)
        row_blocks = -(-self.rows // self.plan.row_block)
        with IRBuilder() as builder:
            with T.parallel(0, panels * row_blocks) as task:
                panel, block = T.bind(task // row_blocks), T.bind(task % row_blocks)
                self._row_block(A, W, out, panel, block * self.plan.row_block)
            return builder.get()

    def _row_block(self, A: Any, W: Any, out: Any, panel: Expr, first: Expr) -> None:
        tile, step = self.plan.tile, self.plan.depth_block
        blocks = -(-self.depth // step)
        partial = scratch(self.plan.row_block, tile.vectors, tile.lanes) if blocks > 1 else None
        for block in range(blocks):
            span = (block * step, min(self.depth, (block + 1) * step))
            tail = self.rows % tile.rows
            with T.serial(0, self.plan.row_block // tile.rows) as t:
                row = T.bind(first + t * tile.rows)
                with when(row + tile.rows <= self.rows if self.rows % self.plan.row_block else None):
                    self._tile(A, W, out, partial, panel, row, row - first, tile, span)
                if tail:
                    with when(tirx.all(row < self.rows, row + tile.rows > self.rows)):
                        self._tile(A, W, out, partial, panel, row, row - first,
                                   RegisterTile(tail, tile.vectors, tile.lanes), span)

    def _tile(self, A: Any, W: Any, out: Any, partial: Any, panel: Expr, row: Expr, slot: Expr,
              tile: RegisterTile, span: tuple[int, int]) -> None:
        index = lane(tile.lanes)
        start, stop = span
        sums = accumulate(
            tile, (stop - start, 1),
            left=lambda r, k, _: A[row + r, start + k],
            right=lambda c, k, _: W[panel, start + k, c, index],
            initial=(lambda r, c: partial[slot + r, c, index]) if start else None,
        )
        for r in range(tile.rows):
            for c in range(tile.vectors):
                if stop < self.depth:
                    partial[slot + r, c, index] = sums[r][c]
                else:
                    self._finish(out, sums[r][c], row + r, panel, c)

    def _finish(self, out: Any, value: Expr, row: Expr, panel: Expr, vector: int) -> None:
        """Store a vector of the output, cut off where the columns end."""
        lanes, ragged = self.plan.tile.lanes, self.columns % self.plan.panel
        column = panel * self.plan.panel + vector * lanes
        with when(column + lanes <= self.columns if ragged else None):
            store(out, value, (row, column), lanes, self.epilogue)
        if ragged % lanes and ragged // lanes == vector:
            with when(tirx.all(column < self.columns, column + lanes > self.columns)):
                store(out, value, (row, column), lanes, self.epilogue, valid=ragged % lanes)
