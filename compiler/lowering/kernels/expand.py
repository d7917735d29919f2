"""A pointwise convolution and the depthwise one that reads it, row by row: what is between them stays in the caches.

    out[n, c] = epilogue(depthwise(between[n, c]))        between[n, c] = first epilogue(conv(X[n])[c])

A task computes some blocks of channels in a band of rows. It keeps as many rows of the image between as the depthwise
kernel is high, in a ring: every row is computed once per band, from all channels of X, and read while it is still in
the first-level cache. So the largest images of inverted residual blocks are neither written to memory nor read again
(Lin et al., "MCUNetV2: Memory-Efficient Patch-based Inference for Tiny Deep Learning", 2021, has the same in patches).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels import conv2d, depthwise
from nnc.lowering.kernels.convolution import Conv2d
from nnc.lowering.kernels.depthwise import Depthwise
from nnc.lowering.kernels.registers import Epilogue, Expr, lane, scratch
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.kernels.window import Tiles

BANDS = (1, 2, 4, 8)
"""Into how many bands of rows an image is cut."""


@dataclass(frozen=True)
class Expand:
    """A pointwise convolution with as many channels as the depthwise one, and what is between them as `dtype`."""

    conv: Conv2d
    depthwise: Depthwise

    @property
    def dtype(self) -> str:
        return self.conv.dtype

    @property
    def ring(self) -> int:
        """Rows of the image between that one row of outputs reads."""
        window = self.depthwise.window
        return (window.kernel[0] - 1) * window.dilations[0] + 1


@dataclass(frozen=True)
class ExpandPlan:
    """The plan of the pointwise convolution, the columns of the depthwise tile, and the bands of rows."""

    expand: conv2d.Plan
    columns: int
    bands: int


def best_plan(problem: Expand, unit: Unit) -> ExpandPlan:
    """The best plans of both, in as few bands as leave every thread a task."""
    expand = replace(conv2d.best_plan(problem.conv, unit), split="rows")  # bands are what its tasks share
    groups = problem.conv.batch * problem.conv.out_blocks // expand.tile.vectors
    bands = next((count for count in BANDS if groups * count % unit.threads == 0), BANDS[-1])
    return ExpandPlan(expand, depthwise.best_plan(problem.depthwise, unit).columns, bands)


def plans(problem: Expand, unit: Unit) -> Iterator[ExpandPlan]:
    """Every tile of the pointwise convolution, with the widest two of the depthwise one."""
    widest = sorted({plan.columns for plan in depthwise.plans(problem.depthwise, unit)}, reverse=True)[:2]
    for expand in conv2d.plans(problem.conv, unit):
        if expand.split == "rows" and expand.tile.vectors <= 2:
            yield from (ExpandPlan(expand, columns, bands) for columns, bands in product(widest, BANDS))


def cycles(problem: Expand, plan: ExpandPlan, unit: Unit) -> float:
    """What a plan is expected to take, up to a constant: rows at the ends of bands are computed twice."""
    rows = problem.conv.window.out_size[0]
    twice = (plan.bands - 1) * max(0, problem.ring - problem.depthwise.window.strides[0])
    tasks = problem.conv.batch * problem.conv.out_blocks // plan.expand.tile.vectors * plan.bands
    idle = ceil(tasks / unit.threads) * unit.threads / tasks
    return conv2d.cycles(problem.conv, plan.expand, unit) * (1 + twice / rows) * idle


def compute(
    X: te.Tensor,
    W: te.Tensor,
    D: te.Tensor,
    problem: Expand,
    plan: ExpandPlan,
    between: tuple[Sequence[te.Tensor], Epilogue, str],
    extras: Sequence[te.Tensor] = (),
    epilogue: Epilogue = lambda value, index: value,
    dtype: str = "float32",
) -> te.Tensor:
    """`epilogue` of the depthwise convolution as `dtype` `[batch, block, out height, out width, lane]`.

    `X`, `W` and `D` are those of `conv2d.compute` and `depthwise.compute`; `between` is what the first epilogue reads,
    the epilogue, and the type of what it makes.
    """
    read, first, kind = between
    kernel = _Kernel(problem, plan, first, kind, epilogue)
    conv = problem.depthwise
    return te.extern(
        [(conv.batch, conv.blocks, *conv.window.out_size, conv.block)],
        [X, W, D, *read, *extras],
        lambda ins, outs: kernel.body(ins[0], ins[1], ins[2], outs[0]),
        name="expand_depthwise",
        dtype=dtype,
    )


@dataclass(frozen=True)
class _Kernel:
    """Emits the loops of both convolutions."""

    problem: Expand
    plan: ExpandPlan
    first: Epilogue
    between: str
    epilogue: Epilogue

    def body(self, X: Any, W: Any, D: Any, out: Any) -> Any:
        problem, bands, vectors = self.problem, self.plan.bands, self.plan.expand.tile.vectors
        groups, height = problem.conv.out_blocks // vectors, problem.depthwise.window.out_size[0]
        rows, width = ceil(height / bands), problem.conv.window.out_size[1]
        with IRBuilder() as builder:
            with T.parallel(0, problem.conv.batch * groups * bands) as task:
                n, group, band = (T.bind(e) for e in (task // (groups * bands), task // bands % groups, task % bands))
                ring = scratch(vectors, problem.ring, width, problem.conv.block, dtype=self.between)
                first = T.bind(band * rows)
                with T.serial(0, tirx.max(0, tirx.min(rows, height - first))) as step:
                    y = T.bind(first + step)
                    start, end = self._new_rows(y, step)
                    with T.serial(0, end - start) as new:
                        self._expand(X, W, ring, n, T.bind(start + new), group)
                    for vector in range(vectors):
                        self._depthwise(ring, D, out, n, group * vectors + vector, y, vector)
            return builder.get()

    def _new_rows(self, y: Expr, step: Expr) -> tuple[Expr, Expr]:
        """The rows between that output row y, in some step of a band, reads and the one before it did not."""
        window, extent = self.problem.depthwise.window, self.problem.ring
        top = window.row(y, 0)
        end = T.bind(tirx.max(0, tirx.min(top + extent, window.size[0])))
        start = tirx.Select(step == 0, top, tirx.max(top, top - window.strides[0] + extent))
        return T.bind(tirx.min(tirx.max(0, start), end)), end

    def _expand(self, X: Any, W: Any, ring: Any, n: Expr, row: Expr, group: Expr) -> None:
        kernel = _Row(self.problem.conv, self.plan.expand, self.first, self.problem.ring)
        for tiles in self.problem.conv.window.tiles(self.plan.expand.tile.rows):
            with tiles.loop() as x:
                kernel.tile(X, W, ring, tiles, [n, row, group], x)

    def _depthwise(self, ring: Any, D: Any, out: Any, n: Expr, block: Expr, y: Expr, vector: int) -> None:
        plan = depthwise.Plan(self.plan.columns)
        kernel = _FromRing(self.problem.depthwise, plan, self.epilogue, self.problem.ring, vector)
        for tiles in self.problem.depthwise.window.tiles(self.plan.columns):
            with tiles.loop() as x:
                kernel.tile(ring, D, out, tiles, [n, block, y], x)


@dataclass(frozen=True)
class _Row(conv2d.Kernel):
    """Computes tiles of a row into its place in the ring."""

    ring: int

    def _finish(self, out: Any, tiles: Tiles, place: list[Expr], x: Expr, sums: list[list[Any]]) -> None:
        (n, row, group), (vectors, block) = place, (self.plan.tile.vectors, self.conv.block)
        for c, v in product(range(tiles.columns), range(vectors)):
            value = scratch(block)
            value[lane(block)] = sums[c][v][lane(block)]
            with T.vectorized(0, block) as k:
                made = self.epilogue(value[k], [n, group * vectors + v, row, x + c, k])
                out[v, row % self.ring, x + c, k] = made


@dataclass(frozen=True)
class _FromRing(depthwise.Kernel):
    """Reads rows where the ring holds them."""

    ring: int
    vector: int

    def _pixels(self, X: Any, place: tuple[Expr, ...]) -> Expr:
        _, _, row, column, index = place
        return X[self.vector, row % self.ring, column, index]


def packed_shapes(problem: Expand, plan: ExpandPlan) -> list[tuple[int, ...]]:
    """The shapes of the packed weights of both."""
    return [conv2d.packed_shape(problem.conv, plan.expand), depthwise.packed_shape(problem.depthwise)]


def packs(W: np.ndarray, D: np.ndarray, problem: Expand, plan: ExpandPlan) -> list[Callable[[], np.ndarray]]:
    """What packs the weights of both, `[out, in, 1, 1]` and `[out, 1, kh, kw]`, in the order in which they are read."""
    return [partial(conv2d.pack, W, problem.conv, plan.expand), partial(depthwise.pack, D, problem.depthwise)]
