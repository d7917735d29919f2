"""Tiled matrix products, the loop nest of every dense template.

    out[row, column] = sum over k of A[row, k] * W[k, column]

Columns come in vectors of four. A thread computes a *register tile*, `rows` by `vectors` sums, so that every operand it
loads is used many times. Where the unit has memory that a group of threads shares, the group loads the operands of
`depth` steps there first, each once, and all its threads read them from there (Volkov and Demmel, "Benchmarking GPUs
to Tune Dense Linear Algebra", 2008); otherwise they come from the caches. Where there are too few outputs to fill the
unit, `slices` threads share the sums of one tile, each a part of the depth, and add them up in shared memory.

Integers are multiplied four at a time, where the unit has an instruction for that (`arithmetic.py`).

Rows of a group are `rows` runs of `threads[0]` neighbours, so that the threads of a warp read neighbouring memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Protocol

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.gpu.arithmetic import Floats, Words, local, shared, vector
from nnc.lowering.gpu.tile import LANES, Shape, Tile
from nnc.lowering.kernels.loops import nest
from nnc.lowering.kernels.registers import when

Expr = Any


class Operands(Protocol):
    """What differs between the templates."""

    def row(self, row: Expr, group: Expr) -> list[Expr]:
        """What is to be known of a row of A, for a group of columns, to load from it: computed once per thread."""

    def left(self, row: Sequence[Expr], unit: Sequence[Expr], column: Expr) -> Expr:
        """The elements of a row at one unit of the depth: a vector of `lanes`, or one float32 or word."""

    def store(self, row: Expr, vector: Expr, lane: Expr, value: Expr) -> None:
        """Store one result."""


# -- the weights


def pack(W: np.ndarray, tile: Tile) -> np.ndarray:
    """Pack weights, or words, `[depth, columns]` to `[group][depth][vector][lane]`, padded with zero columns."""
    depth, columns = W.shape
    width = tile.group_vectors * LANES
    padded = np.zeros((depth, -(-columns // width) * width), W.dtype)
    padded[:, :columns] = W
    return np.ascontiguousarray(padded.reshape(depth, -1, tile.group_vectors, LANES).transpose(1, 0, 2, 3))


# -- the kernel


def emit(shape: Shape, tile: Tile, operands: Operands, W: Any) -> Any:
    """The loop nest; `W` is packed, `[group, depth, vector, lane]`, of float32 or of words."""
    arithmetic = Floats(tile) if str(W.dtype) == "float32" else Words(tile)
    kernel = (_Staged if tile.depth else _Direct)(shape, tile, operands, W, arithmetic)
    with IRBuilder() as builder:
        with threads(
            (ceil(shape.rows / tile.group_rows), ceil(shape.vectors / tile.group_vectors)),
            (*tile.threads, tile.slices),
        ) as (block, thread):
            kernel.body(block, thread)
        return builder.get()


@contextmanager
def threads(grid: Sequence[int], group: Sequence[int]) -> Iterator[tuple[list[Expr], list[Expr]]]:
    """Emit the loops over groups and over the threads of one."""

    def loops(kind: str, extents: Sequence[int]) -> list[Any]:
        return [
            T.thread_binding(0, extent, thread=f"{kind}.{axis}") for axis, extent in zip("xyz", extents, strict=False)
        ]

    frames = [*loops("blockIdx", grid), *loops("threadIdx", group)]
    entered = [frame.__enter__() for frame in frames]
    yield entered[: len(grid)], entered[len(grid) :]
    for frame in reversed(frames):
        frame.__exit__(None, None, None)


@dataclass(frozen=True)
class _Kernel:
    """What both kinds of kernel share."""

    shape: Shape
    tile: Tile
    operands: Operands
    W: Any
    arithmetic: Floats

    def sums(self) -> Any:
        """The sums of one thread, from nothing."""
        sums = local(self.arithmetic.count, dtype=self.arithmetic.sum)
        with T.unroll(0, self.arithmetic.count) as i:
            sums[i] = self.arithmetic.nothing()
        return sums

    def store(self, sums: Any, rows: Callable[[Expr], Expr], first: Expr) -> None:
        """Store the sums of one thread, less what lies outside."""
        shape, tile = self.shape, self.tile
        with T.unroll(0, tile.rows) as r, T.unroll(0, tile.vectors) as v:
            row, column = T.bind(rows(r)), T.bind(first + v)
            tests = [row < shape.rows] if shape.rows % tile.group_rows else []
            tests += [column < shape.vectors] if shape.vectors % tile.group_vectors else []
            with when(tirx.all(*tests) if tests else None):
                value = local(LANES, dtype=self.arithmetic.element)
                self.arithmetic.take(sums, r * tile.vectors + v, value)
                with T.vectorized(0, LANES) as lane:
                    self.operands.store(row, column, lane, value[lane])


class _Direct(_Kernel):
    """Operands from the caches."""

    def body(self, block: Sequence[Expr], thread: Sequence[Expr]) -> None:
        tile, shape = self.tile, self.shape
        x, y, z = thread
        first = T.bind(block[0] * tile.group_rows + x)
        last = shape.rows - 1
        rows = [T.bind(tirx.min(first + r * tile.threads[0], last)) for r in range(tile.rows)]
        places = [self.operands.row(row, block[1]) for row in rows]
        sums = self.sums()
        outer, *inner = shape.units
        with T.serial(0, ceil(outer / tile.slices)) as step:
            index = T.bind(step * tile.slices + z)
            with when(index < outer if outer % tile.slices else None), nest(inner) as rest:
                self._unit(sums, places, [index, *rest], block[1], y)
        if tile.slices > 1:
            self._reduce(sums, thread)
        with when(z == 0 if tile.slices > 1 else None):
            column = T.bind(block[1] * tile.group_vectors + y * tile.vectors)
            self.store(sums, lambda r: first + r * tile.threads[0], column)

    def _unit(self, sums: Any, places: list[list[Expr]], unit: list[Expr], group: Expr, y: Expr) -> None:
        """One unit of the depth."""
        lanes, left = self.shape.lanes, local(self.tile.rows * self.shape.lanes, dtype=self.arithmetic.element)
        for r, place in enumerate(places):
            if lanes == LANES:
                left[vector(r * LANES)] = self.operands.left(place, unit, 0)
            else:
                for j in range(lanes):
                    left[r * lanes + j] = self.operands.left(place, unit, j)
        at = T.bind(flat(unit, self.shape.units) * lanes)
        with T.unroll(0, lanes) as j:
            self.arithmetic.multiply(
                sums,
                lambda r: left[r * lanes + j],
                lambda v: self.W[group, at + j, y * self.tile.vectors + v, vector()],
            )

    def _reduce(self, sums: Any, thread: Sequence[Expr]) -> None:
        """Add up the sums of the threads that share a tile."""
        x, y, z = thread
        tile, count = self.tile, self.arithmetic.count
        partial = shared(tile.slices - 1, count, prod(tile.threads), dtype=self.arithmetic.sum)
        place = T.bind(y * tile.threads[0] + x)
        with when(z > 0), T.unroll(0, count) as i:
            partial[z - 1, i, place] = sums[i]
        T.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))
        with when(z == 0), T.serial(0, tile.slices - 1) as other, T.unroll(0, count) as i:
            sums[i] = sums[i] + partial[other, i, place]


class _Staged(_Kernel):
    """Operands through shared memory: `left[k][row]` and `right[k][vector]` of `depth` units at a time."""

    def body(self, block: Sequence[Expr], thread: Sequence[Expr]) -> None:
        tile, shape = self.tile, self.shape
        x, y, _ = thread
        steps, size = tile.depth * shape.lanes, prod(tile.threads)
        element = self.arithmetic.element
        left = shared(steps, tile.group_rows, dtype=element)
        right = shared(steps, tile.group_vectors, dtype=f"{element}x{LANES}")
        me = T.bind(y * tile.threads[0] + x)
        loads = self._left_loads(block, me, size)
        sums = self.sums()
        with T.serial(0, ceil(prod(shape.units) / tile.depth)) as part:
            start = T.bind(part * tile.depth)
            for row, offset, place, valid in loads:
                with when(valid):
                    self._load_left(left, row, offset, place, start)
            self._load_right(right, block[1], start, me, size)
            T.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))
            with T.serial(0, steps) as k:
                self.arithmetic.multiply(
                    sums, lambda r: left[k, self._row(x, r)], lambda v: right[k, y * tile.vectors + v]
                )
            T.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))
        base = T.bind(block[0] * tile.group_rows)
        self.store(sums, lambda r: base + self._row(x, r), T.bind(block[1] * tile.group_vectors + y * tile.vectors))

    def _row(self, x: Expr, r: Expr) -> Expr:
        """The r-th row of a thread: runs of four neighbours, which are one load of shared memory."""
        run = min(LANES, self.tile.rows)
        return r // run * run * self.tile.threads[0] + x * run + r % run

    def _left_loads(
        self, block: Sequence[Expr], me: Expr, size: int
    ) -> list[tuple[Expr, Expr, list[Expr], Expr | None]]:
        """What this thread loads in every round: row of the tile, unit, where the row is; under which condition."""
        rows, units = self.tile.group_rows, self.tile.depth
        found = []
        for step in range(ceil(rows * units / size)):
            item = T.bind(me + step * size)
            row, unit = T.bind(item % rows), T.bind(item // rows)
            inside = T.bind(tirx.min(block[0] * rows + row, self.shape.rows - 1))
            place = self.operands.row(inside, block[1])
            found.append((row, unit, place, item < rows * units if (step + 1) * size > rows * units else None))
        return found

    def _load_left(self, left: Any, row: Expr, offset: Expr, place: list[Expr], start: Expr) -> None:
        """One unit of one row; behind the last unit, the weights are zero and what is read does not matter."""
        count, lanes = prod(self.shape.units), self.shape.lanes
        unit = T.bind(tirx.min(start + offset, count - 1) if count % self.tile.depth else start + offset)
        index = unravelled(unit, self.shape.units)
        if lanes == LANES:
            value = local(LANES, dtype=self.arithmetic.element)
            value[vector()] = self.operands.left(place, index, 0)
            for j in range(LANES):
                left[offset * LANES + j, row] = value[j]
        else:
            for j in range(lanes):
                left[offset * lanes + j, row] = self.operands.left(place, index, j)

    def _load_right(self, right: Any, group: Expr, start: Expr, me: Expr, size: int) -> None:
        width, lanes = self.tile.group_vectors, self.shape.lanes
        nothing = T.broadcast(tirx.const(0, self.arithmetic.element), LANES)
        total, ragged = self.tile.depth * lanes * width, prod(self.shape.units) % self.tile.depth != 0
        for step in range(ceil(total / size)):
            item = T.bind(me + step * size)
            k, v = T.bind(item // width), T.bind(item % width)
            at = T.bind(start * lanes + k)
            with when(item < total if (step + 1) * size > total else None):
                value = self.W[group, at, v, vector()]
                right[k, v] = tirx.if_then_else(at < self.shape.depth, value, nothing) if ragged else value


def flat(index: Sequence[Expr], extents: Sequence[int]) -> Expr:
    """The number of a step of nested loops."""
    total: Expr = 0
    for i, extent in zip(index, extents, strict=True):
        total = total * extent + i
    return total


def unravelled(step: Expr, extents: Sequence[int]) -> list[Expr]:
    """The opposite."""
    index = []
    for extent in list(extents)[:0:-1]:
        index.append(T.bind(step % extent) if extent > 1 else 0)
        step = T.bind(step // extent) if extent > 1 else step
    return [step, *index[::-1]]
