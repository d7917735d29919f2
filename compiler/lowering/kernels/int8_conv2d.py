"""Direct convolution of bytes, in blocked layout: int32 sums, and an epilogue that makes bytes or floats of them.

    out[n, o, y, x, lane] = epilogue(sum over i, kh, kw, j of (X[n, i, y', x', j] - zero) * W[o, i, kh, kw, j, lane])

The loops and register tiles are those of `conv2d.py`, with two or four input channels in every step. Where they are
multiplied in 16 bits, a task widens the rows that it reads once, for all output channels that it computes.

Pixels outside of the image are worth zero, so that the zero point counts only for what is inside: each output starts
from minus the zero point times the sum of the weights that meet the image. Rows and columns that meet it alike share
one start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from math import ceil
from typing import Any, get_args

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.conv2d import FETCH_AHEAD, Plan, Split, best_split
from nnc.lowering.kernels.convolution import Conv2d, blocked
from nnc.lowering.kernels.int8_dot import Dot
from nnc.lowering.kernels.loops import TASKS, reshaped, vectors
from nnc.lowering.kernels.pool import lookup
from nnc.lowering.kernels.registers import CACHE_LINE, Epilogue, Expr, RegisterTile, lane, prefetch, scratch, store
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.kernels.window import Tiles

DOT_LATENCY = 5.0  # cycles before an accumulator can be added to again
TILE_STEPS = 6.0  # the cost of starting, requantizing and storing a tile, in steps of the reduction


@dataclass(frozen=True)
class Int8Conv2d:
    """A convolution of integers around `zero`; the blocks of its input hold whole steps of `dot`."""

    conv: Conv2d
    zero: int
    dot: Dot
    winograd: tuple[int, ...] = ()
    """The m of the F(m x m, 3 x 3) that are exact for the weights, of `int8_winograd`."""

    @property
    def in_steps(self) -> int:
        """Steps through a block of input channels."""
        return self.conv.in_block // self.dot.depth

    def of_width(self, width: int | None) -> Int8Conv2d:
        """The same pointwise convolution over an image with rows of `width` pixels; None: as it is."""
        return replace(self, conv=self.conv.of_width(width)) if width else self


@dataclass(frozen=True)
class Int8Plan(Plan):
    """The plan of a convolution, and how many groups of output channels share what a task widens."""

    share: int = 1


def best_plan(problem: Int8Conv2d, unit: Unit) -> Int8Plan:
    """The register tile with the fewest cycles; threads share whatever is larger, so that it is read once."""
    tile = min(_tiles(problem, unit), key=lambda tile: (cycles(problem, tile), -tile.rows))
    plan = Int8Plan(tile, best_split(problem.conv))
    return replace(plan, share=_share(problem, plan, unit)) if problem.dot.widens else plan


def best_flat_plan(problem: Int8Conv2d, unit: Unit) -> Int8Plan:
    """The best plan of a pointwise convolution over an image whose width suits the register tile."""
    widths = problem.conv.widths()
    flat = {width: best_plan(problem.of_width(width), unit) for width in widths}
    width = min(widths, key=lambda width: (cycles(problem.of_width(width), flat[width].tile), -width))
    return replace(flat[width], width=width)


def plans(problem: Int8Conv2d, unit: Unit) -> Iterator[Int8Plan]:
    """Every register tile that fits, with both splits and ways to share what a task widens."""
    conv = problem.conv
    width = conv.window.out_size[1]
    for tile in (each for each in _tiles(problem, unit) if each.rows == ceil(width / ceil(width / each.rows))):
        for split in get_args(Split):
            plan = Int8Plan(tile, split)
            most = _share(problem, plan, unit) if problem.dot.widens else 1
            yield from (replace(plan, share=share) for share in {1, most})


def _tiles(problem: Int8Conv2d, unit: Unit) -> list[RegisterTile]:
    """The register tiles that fit."""
    conv = problem.conv
    return [
        RegisterTile(columns, vectors, conv.block)
        for vectors in range(1, 9)
        if conv.out_blocks % vectors == 0
        for columns in range(1, conv.window.out_size[1] + 1)
        if problem.dot.fits(columns, vectors, unit.vector_registers) or (columns, vectors) == (1, 1)
    ]


def _share(problem: Int8Conv2d, plan: Plan, unit: Unit) -> int:
    """As many groups as leave every thread enough tasks, and whose weights stay in the second-level cache."""
    conv, vectors = problem.conv, plan.tile.vectors
    most, firsts = conv.reads(vectors)
    groups, rows = len(firsts), conv.batch * conv.window.out_size[0]
    weights = most * conv.in_block * conv.window.kernel[0] * conv.window.kernel[1] * vectors * conv.block

    def suits(share: int) -> bool:
        near = plan.split == "rows" or share * weights <= unit.l2_bytes // 2
        return groups % share == 0 and rows * groups // share >= TASKS * unit.threads and near

    return 1 if any(firsts) else max(filter(suits, range(1, groups + 1)), default=1)


def cycles(problem: Int8Conv2d, tile: RegisterTile) -> float:
    """Cycles of one core for an image, up to a constant."""
    conv = problem.conv
    most, _ = conv.reads(tile.vectors)
    steps = most * problem.in_steps * conv.window.kernel[0] * conv.window.kernel[1]
    total = 0.0
    for tiles in conv.window.tiles(tile.rows):
        step = step_cycles(problem.dot, tiles.columns, tile.vectors)
        total += tiles.count * (step * steps + TILE_STEPS * tiles.columns * tile.vectors)
    return total * conv.window.out_size[0] * (conv.out_blocks // tile.vectors)


def step_cycles(dot: Dot, columns: int, vectors: int) -> float:
    """Cycles of a step of the reduction: two products or two loads in one, or three of any vector operations."""
    products, loads = columns * vectors, columns + 2 * vectors
    if dot.widens:
        return (2 * products + vectors) / 3 + (columns + vectors) / 8
    if dot.in_pairs:
        return max((4 * products + 3 * columns + 2 * vectors) / 2, DOT_LATENCY)
    return max(products / 2, loads / 2, DOT_LATENCY)


# -- constants


def pack(W: np.ndarray, problem: Int8Conv2d, plan: Plan) -> np.ndarray:
    """Pack int8 weights `[out, in / groups, kh, kw]` to `[group][in block][kh][kw][step][vector][4 * lanes]`."""
    dense = blocked(W, problem.conv, plan.tile.vectors)
    arranged = problem.dot.arrange(dense.transpose(0, 1, 3, 4, 5, 2, 6))
    return np.ascontiguousarray(arranged.swapaxes(-2, -3))


def packed_shape(problem: Int8Conv2d, plan: Plan) -> tuple[int, ...]:
    """The shape of `pack`'s result."""
    conv, vectors = problem.conv, plan.tile.vectors
    most, firsts = conv.reads(vectors)
    return len(firsts), most, *conv.window.kernel, problem.in_steps, vectors, problem.dot.depth * conv.block


def starts_shape(problem: Int8Conv2d, plan: Plan) -> tuple[int, ...]:
    """The shape of `starts`' result."""
    rows, columns = _kinds(problem)
    vectors = plan.tile.vectors
    return len(rows), len(columns), problem.conv.out_blocks // vectors, vectors, problem.conv.block


def starts(W: np.ndarray, problem: Int8Conv2d, plan: Plan) -> np.ndarray:
    """What the sums start from, int32 `[kind of row][kind of column][group][vector][lane]`."""
    conv, window = problem.conv, problem.conv.window
    rows, columns = _kinds(problem)
    groups = conv.out_blocks // plan.tile.vectors
    sums = np.zeros((*window.kernel, groups * plan.tile.vectors * conv.block), np.int64)
    sums[..., : conv.out_channels] = W.astype(np.int64).sum(1).transpose(1, 2, 0)
    table = [[-problem.zero * sums[np.ix_(list(kh), list(kw))].sum((0, 1)) for kw in columns] for kh in rows]
    return np.array(table, np.int64).astype(np.int32).reshape(starts_shape(problem, plan))


def _kinds(problem: Int8Conv2d) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The different sets of kernel rows, and of kernel columns, that outputs read inside of the image."""
    row, column = (list(dict.fromkeys(_taps(problem, axis))) for axis in (0, 1))
    return row, column


def _taps(problem: Int8Conv2d, axis: int) -> list[tuple[int, ...]]:
    """For every output along an axis, the kernel's taps inside of the image."""
    window = problem.conv.window

    def inside(place: int, tap: int) -> bool:
        at = place * window.strides[axis] + tap * window.dilations[axis] - window.origin[axis]
        return 0 <= at < window.size[axis]

    return [
        tuple(tap for tap in range(window.kernel[axis]) if inside(place, tap)) for place in range(window.out_size[axis])
    ]


# -- the kernel


def compute(
    X: te.Tensor,
    W: te.Tensor,
    S: te.Tensor,
    problem: Int8Conv2d,
    plan: Int8Plan,
    dtype: str,
    extras: Sequence[te.Tensor],
    epilogue: Epilogue,
) -> te.Tensor:
    """`epilogue(conv(X - zero, W))` as `dtype` `[batch, out block, out height, out width, lane]`.

    `X` holds bytes `[batch, in block, height, width, lane]`, `W` and `S` are those of `pack` and `starts`; the epilogue
    gets int32 sums.
    """
    kernel = Kernel(problem, plan, epilogue)
    return te.extern(
        [problem.conv.out_shape],
        [X, W, S, *extras],
        lambda ins, outs: kernel.body(ins, outs[0]),
        name="int8_conv2d",
        dtype=dtype,
    )


Read = Callable[[Expr, Expr, Expr, Expr, int], Expr]
"""Input block of a group, kernel row, column of the image, first lane and how many -> activations."""


@dataclass(frozen=True)
class Kernel:
    """Emits the loops of one convolution."""

    problem: Int8Conv2d
    plan: Int8Plan
    epilogue: Any

    def body(self, operands: Sequence[Any], out: Any) -> Any:
        X, W, S = map(T.buffer_proxy, operands[:3])
        conv = self.problem.conv
        rows, parts = conv.window.out_size[0], conv.out_blocks // self.plan.tile.vectors // self.plan.share
        with IRBuilder() as builder:
            with T.parallel(0, conv.batch * rows * parts) as task:
                if self.plan.split == "rows":
                    n, y, part = task // (parts * rows), task // parts % rows, task % parts
                else:
                    n, y, part = task // rows % conv.batch, task % rows, task // (rows * conv.batch)
                n, y, part = (T.bind(e) for e in (n, y, part))
                read = self._reader(X, n, y, part)
                with T.serial(0, self.plan.share) as each:
                    group = T.bind(part * self.plan.share + each)
                    for tiles in conv.window.tiles(self.plan.tile.rows):
                        with tiles.loop() as x:
                            self._tile(read, W, S, out, tiles, [n, y, group], x)
            return builder.get()

    def _reader(self, X: Any, n: Expr, y: Expr, part: Expr) -> Read:
        """How a task gets at its activations."""
        conv, tile = self.problem.conv, self.plan.tile
        window, first = conv.window, conv.first_block(part * self.plan.share, tile.vectors)
        if not self.problem.dot.widens:
            return lambda i, kh, x, j, count: X[n, first + i, window.row(y, kh), x, T.ramp(j, 1, count)]
        block, size = conv.in_block, conv.in_block * window.size[1]
        most, _ = conv.reads(tile.vectors)
        wide = scratch(most, window.kernel[0], size, dtype="int16")
        rows = reshaped(X, (*X.shape[:3], size))
        with T.serial(0, most) as i, T.serial(*window.rows(y)) as kh:
            row = T.bind(window.row(y, kh))

            def widen(start: Expr, width: int) -> None:
                along = T.ramp(start, 1, width)
                wide[i, kh, along] = rows[n, first + i, row, along].astype(f"int16x{width}")

            vectors(0, size, size, 2 * self.problem.dot.lanes, widen)
        return lambda i, kh, x, j, count: wide[i, kh, T.ramp(x * block + j, 1, count)]

    def _tile(self, read: Read, W: Any, S: Any, out: Any, tiles: Tiles, place: list[Expr], x: Expr) -> None:
        """One register tile: the starts, the reduction, the epilogue."""
        _, y, group = place
        vectors, block = self.plan.tile.vectors, self.problem.conv.block
        sums = [[scratch(block, dtype="int32") for _ in range(vectors)] for _ in range(tiles.columns)]
        self._start(S, tiles, y, group, sums)
        self._reduce(read, W, tiles, place, x, sums)
        self._finish(out, tiles, place, x, sums)

    def _finish(self, out: Any, tiles: Tiles, place: list[Expr], x: Expr, sums: list[list[Any]]) -> None:
        """Store the sums of one tile through the epilogue."""
        (n, y, group), (vectors, block) = place, (self.plan.tile.vectors, self.problem.conv.block)
        for c, v in product(range(tiles.columns), range(vectors)):
            index = (n, group * vectors + v, *self.problem.conv.pixel(y, x + c), 0)
            store(out, sums[c][v][lane(block)], index, block, self.epilogue, dtype="int32")

    def _start(self, S: Any, tiles: Tiles, y: Expr, group: Expr, sums: list[list[Any]]) -> None:
        index = lane(self.problem.conv.block)
        if self.problem.zero == 0:
            for total in chain.from_iterable(sums):
                total[index] = T.broadcast(tirx.const(0, "int32"), self.problem.conv.block)
            return
        rows, columns = _kinds(self.problem)
        row = T.bind(lookup([rows.index(taps) for taps in _taps(self.problem, 0)], y, lambda kind: kind))
        for c, totals in enumerate(sums):
            kind = columns.index(tuple(kw for kw, span in enumerate(tiles.inside) if span[0] <= c < span[1]))
            for v, total in enumerate(totals):
                total[index] = S[row, kind, group, v, index]

    def _reduce(self, read: Read, W: Any, tiles: Tiles, place: list[Expr], x: Expr, sums: list[list[Any]]) -> None:
        """Add up the products of one tile."""
        conv, window, dot = self.problem.conv, self.problem.conv.window, self.problem.dot
        _, y, group = place
        index, count = lane(conv.block), self.plan.tile.vectors
        with T.serial(0, conv.reads(count)[0]) as i, T.serial(*window.rows(y)) as kh:
            for tap in tiles.taps():
                with tap.loop() as kw, T.serial(0, self._steps(i)) as j:
                    packed = [W[group, i, kh, kw, j, v, lane(dot.width)] for v in range(count)]
                    weights = [dot.weights(each) for each in packed]
                    self._fetch_ahead(W, (group, i, kh, kw, j))
                    for c in range(*tap.inside):
                        column = window.column(x + c, kw)

                        def load(first: int, width: int, column: Expr = column, j: Expr = j) -> Expr:
                            return read(i, kh, column, j * dot.depth + first, width)

                        values = dot.spread(load)
                        for total, weight in zip(sums[c], weights, strict=True):
                            total[index] = dot.add(total[index], values, weight)

    def _fetch_ahead(self, W: Any, place: Sequence[Expr]) -> None:
        """Prefetch weights; where they stay in the first-level cache anyway, this costs next to nothing."""
        for byte in range(0, self.plan.tile.vectors * self.problem.conv.block * self.problem.dot.depth, CACHE_LINE):
            prefetch(W, (*place, 0, FETCH_AHEAD + byte), level=1)

    def _steps(self, i: Expr) -> Expr:
        """The steps through an input block: the padding of the last one is skipped."""
        conv = self.problem.conv
        if conv.groups > 1 or conv.in_channels % conv.in_block == 0:
            return self.problem.in_steps
        left = conv.in_channels - i * conv.in_block
        return tirx.min(self.problem.in_steps, (left + self.problem.dot.depth - 1) // self.problem.dot.depth)
