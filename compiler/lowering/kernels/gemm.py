"""Matrix products `[rows, depth] x [depth, columns]` with constant weights: Gemm, and what convolutions become.

The weights are packed at compile time into panels `[panel][k][vector][lane]`, in the order in which they are read, so
that every thread streams its own contiguous part of memory. A task multiplies some rows with one panel, register tile
after register tile.

Weights may be int8: a quarter of the memory is read, and they become floats on the way into registers. What they are
worth is the epilogue's work, or, where groups of the depth have scales of their own, done between blocks of the depth.

The bodies are written as TIR and handed to `te.extern`: nothing is left to schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.registers import (
    CACHE_LINE,
    FMA_CHAINS,
    HALF_DEPTH,
    Epilogue,
    Expr,
    RegisterTile,
    accumulate,
    as_float,
    lane,
    max_rows,
    prefetch,
    scratch,
    splat,
    store,
    when,
)
from nnc.lowering.kernels.unit import Unit, lanes_of

FEW_ROWS = 8
STREAM_AHEAD = 8192  # bytes; weights read once come up to twice as fast when fetched this far ahead


@dataclass(frozen=True)
class GemmPlan:
    """How `[rows, depth] x [depth, columns]` is blocked: the register tile, and the rows and the depth of a block."""

    tile: RegisterTile
    row_block: int
    depth_block: int

    @property
    def panel(self) -> int:
        """Columns of one panel of packed weights."""
        return self.tile.vectors * self.tile.lanes


@dataclass(frozen=True)
class Gemm:
    """A product `[rows, depth] x [depth, columns]` with constant weights."""

    rows: int
    columns: int
    depth: int
    dtype: str = "float32"
    """Of the weights, and with float16 of the rows too."""
    group: int | None = None
    """Rows of the weights that share scales, where these differ along the depth."""


def plans(problem: Gemm, unit: Unit) -> Iterator[GemmPlan]:
    """Every register tile, with its share of the rows in one to four tasks per thread, and the depth in blocks.

    Few rows stay in one tile: then the weights are fetched ahead of their one use.
    """
    lanes, few = lanes_of(unit), problem.rows <= FEW_ROWS
    depths = {even_share(problem.depth, unit.l2_bytes // share) for share in (1 << 8, 1 << 10)} | {problem.depth}
    for vectors in range(1, 9):
        most = min(problem.rows, max_rows(vectors, lanes, unit))
        for rows in range(problem.rows if few else 1, most + 1):
            tiles = ceil(problem.rows / rows)
            for parts in {min(tiles, unit.threads * each) for each in (1, 2, 4)}:
                block = even_share(tiles, ceil(tiles / parts)) * rows
                for depth in [problem.group] if problem.group else sorted(depths):
                    yield GemmPlan(RegisterTile(rows, vectors, lanes), block, depth)


def best_plan(rows: int, columns: int, depth: int, unit: Unit) -> GemmPlan:
    """The blocking of a product from its shape and the unit.

    Few rows: the weights are read once, so memory is the limit, and one tile takes all rows.
    Many rows: two vectors per row. The weights of a panel stay in half of the second-level cache while the rows pass.
    """
    lanes = lanes_of(unit)
    if rows <= FEW_ROWS:
        return GemmPlan(RegisterTile(rows, _panel_vectors(rows, columns, unit), lanes), rows, depth)
    tile_rows = even_share(rows, max_rows(2, lanes, unit))
    row_tiles = ceil(rows / tile_rows)
    panels = ceil(columns / (2 * lanes))
    row_blocks = min(row_tiles, ceil(4 * unit.threads / panels))
    depth_block = unit.l2_bytes // 2 // (4 * 2 * lanes)
    return GemmPlan(
        RegisterTile(tile_rows, 2, lanes),
        even_share(row_tiles, ceil(row_tiles / row_blocks)) * tile_rows,
        even_share(depth, depth_block),
    )


def even_share(total: int, most: int) -> int:
    """The size of the parts of `total` when it is cut evenly into parts of at most `most`."""
    return ceil(total / ceil(total / most))


def _panel_vectors(rows: int, columns: int, unit: Unit) -> int:
    """The widest panel, in vectors, that the registers hold and that leaves the busiest thread the least work."""
    most = max(1, min(8, (unit.vector_registers - 2) // (rows + 1)))
    vectors = ceil(columns / lanes_of(unit))

    def busiest(width: int) -> int:
        return ceil(ceil(vectors / width) / unit.threads) * width

    # A narrow panel has too few sums in flight: it must save more work than it wastes waiting.
    return min(range(1, most + 1), key=lambda width: (busiest(width) * max(1.0, FMA_CHAINS / (rows * width)), -width))


def pack(W: np.ndarray, plan: GemmPlan) -> np.ndarray:
    """Pack weights, or scales, `[depth, columns]` into panels `[panel, depth, vector, lane]`, padded with zeros."""
    depth, columns = W.shape
    panels = -(-columns // plan.panel)
    packed = np.zeros((panels, depth, plan.panel), W.dtype)
    for panel, first in zip(packed, range(0, columns, plan.panel), strict=True):  # no other copy of large weights
        part = W[:, first : first + plan.panel]
        panel[:, : part.shape[1]] = part
    return packed.reshape(panels, depth, plan.tile.vectors, plan.tile.lanes)


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
    dtype: str = "float32",
    scales: te.Tensor | None = None,
) -> te.Tensor:
    """`epilogue(A @ W)` as `dtype` `[rows, columns]`, parallel over panels and row blocks.

    `A` is float32 or float16 `[rows, depth]`, `W` the packed weights, of the same type or int8, `extras` the tensors
    that the epilogue closes over, and `epilogue(value, (row, column))` a scalar expression. `scales`, packed like the
    weights, are what the weights of every block of the depth are worth.
    """
    kernel = Product(int(A.shape[0]), columns, int(A.shape[1]), plan, epilogue)
    given = [] if scales is None else [scales]
    return te.extern(
        [(kernel.rows, columns)],
        [A, W, *given, *extras],
        lambda ins, outs: kernel.body(ins[0], ins[1], outs[0], ins[2] if given else None),
        name="gemm",
        dtype=dtype,
    )


@dataclass(frozen=True)
class Product:
    """Emits the loops of one product."""

    rows: int
    columns: int
    depth: int
    plan: GemmPlan
    epilogue: Epilogue
    sums: str = "float32"
    """Type of the sums."""

    def body(self, A: Any, W: Any, out: Any, scales: Any = None) -> Any:
        return self.tasks(lambda panel, first: self._row_block(A, W, out, scales, panel, first))

    def tasks(self, row_block: Callable[[Expr, Expr], None]) -> Any:
        """`row_block(panel, first row)` for every task."""
        panels = ceil(self.columns / self.plan.panel)
        row_blocks = ceil(self.rows / self.plan.row_block)
        with IRBuilder() as builder:
            with T.parallel(0, panels * row_blocks) as task:
                panel, block = T.bind(task // row_blocks), T.bind(task % row_blocks)
                row_block(panel, block * self.plan.row_block)
            return builder.get()

    def _row_block(self, A: Any, W: Any, out: Any, scales: Any, panel: Expr, first: Expr) -> None:
        """The rows of one task. Where the depth is cut into blocks, the sums wait in `partial` for the next block."""
        tile, step = self.plan.tile, self.plan.depth_block
        if step >= self.depth and scales is None:
            self.row_tiles(first, lambda row, rows: self.finish(out, self._sums(A, W, panel, row, rows), row, panel))
            return
        partial, index = scratch(self.plan.row_block, tile.vectors, tile.lanes), lane(tile.lanes)
        with T.serial(0, self.plan.row_block) as row, T.serial(0, tile.vectors) as c:
            partial[row, c, index] = splat(0.0, tile.lanes)
        with T.serial(0, ceil(self.depth / step)) as block:
            start = T.bind(block * step)
            span = (start, T.bind(tirx.min(step, self.depth - start)))

            def add(row: Expr, rows: int) -> None:
                def before(r: int, c: int) -> Expr:
                    return partial[row - first + r, c, index]

                sums = self._sums(A, W, panel, row, rows, span, before if scales is None else None)
                for r, c in product(range(rows), range(tile.vectors)):
                    if scales is not None:
                        sums[r][c] = before(r, c) + sums[r][c] * scales[panel, block, c, index]
                    partial[row - first + r, c, index] = sums[r][c]

            self.row_tiles(first, add)
        with T.serial(0, self.plan.row_block) as r, when(first + r < self.rows if self._ragged else None):
            self.finish(out, [[partial[r, c, index] for c in range(tile.vectors)]], first + r, panel)

    @property
    def _ragged(self) -> bool:
        return self.rows % self.plan.row_block != 0

    def row_tiles(self, first: Expr, emit: Callable[[Expr, int], None]) -> None:
        """Emit a loop over the register tiles of a row block; the last one may have fewer rows."""
        most, tail = self.plan.tile.rows, self.rows % self.plan.tile.rows
        with T.serial(0, self.plan.row_block // most) as t:
            row = T.bind(first + t * most)
            with when(row + most <= self.rows if self._ragged else None):
                emit(row, most)
            if tail:
                with when(tirx.all(row < self.rows, row + most > self.rows)):
                    emit(row, tail)

    def _sums(
        self,
        A: Any,
        W: Any,
        panel: Expr,
        row: Expr,
        rows: int,
        span: tuple[Expr, Expr] | None = None,
        initial: Callable[[int, int], Expr] | None = None,
    ) -> list[list[Expr]]:
        """One register tile: the products over `span`, first and number of steps, of the depth."""
        tile, index = self.plan.tile, lane(self.plan.tile.lanes)
        start, steps = span or (0, self.depth)
        is_half = str(A.dtype) == "float16"

        def weights(c: int, k: Expr, _: Expr) -> Expr:
            loaded = W[panel, start + k, c, index]
            return loaded if is_half else as_float(loaded, tile.lanes)

        return accumulate(
            RegisterTile(rows, tile.vectors, tile.lanes),
            (steps, 1),
            left=lambda r, k, _: A[row + r, start + k],
            right=weights,
            initial=initial,
            ahead=(lambda k, _: self._stream(W, panel, start + k)) if self.rows == tile.rows else None,
            halves=HALF_DEPTH if is_half else None,
        )

    def _stream(self, W: Any, panel: Expr, k: Expr) -> None:
        """Prefetch what one step will read of weights that are read only once."""
        size = np.dtype(str(W.dtype)).itemsize
        step = size * self.plan.panel
        for byte in range(0, step, CACHE_LINE):
            prefetch(W, (panel, k, 0, (STREAM_AHEAD // step * step + byte) // size))

    def finish(self, out: Any, sums: list[list[Expr]], row: Expr, panel: Expr) -> None:
        for r, values in enumerate(sums):
            for c, value in enumerate(values):
                self._store(out, value, row + r, panel, c)

    def _store(self, out: Any, value: Expr, row: Expr, panel: Expr, vector: int) -> None:
        """Store a vector of the output, cut off where the columns end."""
        lanes, last = self.plan.tile.lanes, self.columns % self.plan.panel
        column = panel * self.plan.panel + vector * lanes
        with when(column + lanes <= self.columns if last else None):
            store(out, value, (row, column), lanes, self.epilogue, dtype=self.sums)
        if last % lanes and last // lanes == vector:
            with when(tirx.all(column < self.columns, column + lanes > self.columns)):
                store(out, value, (row, column), lanes, self.epilogue, last % lanes, self.sums)
