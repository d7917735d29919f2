"""Products of a matrix of bytes with constant int8 weights: int32 sums, and an epilogue that makes bytes or floats.

The loops and register tiles are those of `gemm.py`, with two or four elements of the depth in every step. All of a
panel's weights pass through the second-level cache once per block of rows: they are a quarter as large as floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import Any

import numpy as np
from tvm import te
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.gemm import STREAM_AHEAD, Gemm, GemmPlan, Product
from nnc.lowering.kernels.gemm import best_plan as float_plan
from nnc.lowering.kernels.gemm import plans as float_plans
from nnc.lowering.kernels.int8_dot import DEPTH, Dot
from nnc.lowering.kernels.registers import CACHE_LINE, Epilogue, Expr, lane, prefetch, scratch
from nnc.lowering.kernels.unit import Unit


def best_plan(rows: int, columns: int, depth: int, unit: Unit) -> GemmPlan:
    """The blocking of the product of floats, without blocks of the depth."""
    plan = float_plan(rows, columns, depth, unit)
    return GemmPlan(plan.tile, plan.row_block, depth)


@dataclass(frozen=True)
class Int8Gemm:
    """A product of bytes `[rows, depth] x [depth, columns]` with constant weights, the depth in whole steps."""

    rows: int
    columns: int
    depth: int
    dot: Dot

    @property
    def dtype(self) -> str:
        """Of the rows."""
        return self.dot.dtype


def plans(problem: Int8Gemm, unit: Unit) -> Iterator[GemmPlan]:
    """The blockings of the product of floats, without blocks of the depth, whose tiles fit."""
    for plan in float_plans(Gemm(problem.rows, problem.columns, problem.depth), unit):
        fits = problem.dot.fits(plan.tile.rows, plan.tile.vectors, unit.vector_registers)
        if fits and plan.depth_block == problem.depth:
            yield plan


def pack(W: np.ndarray, plan: GemmPlan, dot: Dot) -> np.ndarray:
    """Pack int8 weights `[depth, columns]` to `[panel][step][vector][dot.width]`, padded with zeros."""
    depth, columns = W.shape
    panels = -(-columns // plan.panel)
    padded = np.zeros((-(-depth // DEPTH) * DEPTH, panels * plan.panel), W.dtype)
    padded[:depth, :columns] = W
    tiled = padded.reshape(-1, panels, plan.tile.vectors, plan.tile.lanes).transpose(1, 2, 0, 3)
    return np.ascontiguousarray(dot.arrange(tiled).swapaxes(1, 2))


def packed_shape(problem: Int8Gemm, plan: GemmPlan) -> tuple[int, ...]:
    """The shape of `pack`'s result."""
    panels, steps = ceil(problem.columns / plan.panel), ceil(problem.depth / DEPTH) * DEPTH // problem.dot.depth
    return panels, steps, plan.tile.vectors, problem.dot.width


def starts_shape(problem: Int8Gemm, plan: GemmPlan) -> tuple[int, ...]:
    """The shape of `starts`' result."""
    return ceil(problem.columns / plan.panel), plan.tile.vectors, plan.tile.lanes


def starts(W: np.ndarray, zero: int, plan: GemmPlan) -> np.ndarray:
    """What the sums start from, int32 `[panel][vector][lane]`: minus the zero point times the sums of the weights."""
    columns = W.shape[1]
    padded = np.zeros(-(-columns // plan.panel) * plan.panel, np.int64)
    padded[:columns] = -zero * W.astype(np.int64).sum(0)
    return padded.astype(np.int32).reshape(-1, plan.tile.vectors, plan.tile.lanes)


def compute(
    A: te.Tensor,
    W: te.Tensor,
    S: te.Tensor,
    columns: int,
    plan: GemmPlan,
    dot: Dot,
    dtype: str,
    extras: Sequence[te.Tensor],
    epilogue: Epilogue,
) -> te.Tensor:
    """`epilogue((A - zero) @ W)` as `dtype` `[rows, columns]`, parallel over panels and row blocks.

    `A` holds bytes `[rows, depth]`, its depth a multiple of 4; `W` and `S` are those of `pack` and `starts`; the
    epilogue gets int32 sums.
    """
    rows, depth = (int(size) for size in A.shape)
    kernel = Int8Product(rows, columns, depth, plan, epilogue, "int32", dot)
    return te.extern(
        [(rows, columns)],
        [A, W, S, *extras],
        lambda ins, outs: kernel.parallel(ins, outs[0]),
        name="int8_gemm",
        dtype=dtype,
    )


@dataclass(frozen=True)
class Int8Product(Product):
    """Emits the loops of one product of bytes."""

    dot: Dot | None = None

    def parallel(self, operands: Sequence[Any], out: Any) -> Any:
        A, W, S = map(T.buffer_proxy, operands[:3])

        def row_block(panel: Expr, first: Expr) -> None:
            self.row_tiles(first, lambda row, rows: self.finish(out, self._tile(A, W, S, panel, row, rows), row, panel))

        return self.tasks(row_block)

    def _tile(self, A: Any, W: Any, S: Any, panel: Expr, row: Expr, rows: int) -> list[list[Expr]]:
        """The sums of one register tile."""
        assert self.dot is not None
        vectors, lanes = self.plan.tile.vectors, self.plan.tile.lanes
        index = lane(lanes)
        sums = [[scratch(lanes, dtype="int32") for _ in range(vectors)] for _ in range(rows)]
        for v, total in chain.from_iterable(map(enumerate, sums)):
            total[index] = S[panel, v, index]
        depth = self.dot.depth
        with T.serial(0, self.depth // depth) as step:
            weights = [self.dot.weights(W[panel, step, v, lane(self.dot.width)]) for v in range(vectors)]
            if self.rows == self.plan.tile.rows:
                self._stream_bytes(W, panel, step)
            for r, totals in enumerate(sums):

                def load(first: int, count: int, r: int = r) -> Expr:
                    return A[row + r, T.ramp(step * depth + first, 1, count)]

                values = self.dot.spread(load)
                for total, weight in zip(totals, weights, strict=True):
                    total[index] = self.dot.add(total[index], values, weight)
        return [[total[index] for total in totals] for totals in sums]

    def _stream_bytes(self, W: Any, panel: Expr, step: Expr) -> None:
        """Prefetch what one step will read of weights that are read only once."""
        assert self.dot is not None
        size = self.dot.depth * self.plan.panel
        for byte in range(0, size, CACHE_LINE):
            prefetch(W, (panel, step, 0, STREAM_AHEAD // size * size + byte))
