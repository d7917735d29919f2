"""Direct convolution of bytes, in blocked layout: int32 sums, and an epilogue that makes bytes or floats of them.

    out[n, o, y, x, lane] = epilogue(sum over i, kh, kw, j of (X[n, i, y', x', j] - zero) * W[o, i, kh, kw, j, lane])

The loops and register tiles are those of `conv2d.py`, with four input channels in every step. Pixels outside of the
image are worth zero, so that the zero point counts only for what is inside: each output starts from minus the zero
point times the sum of the weights that meet the image. Rows and columns that meet it alike share one start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.conv2d import FETCH_AHEAD, Conv2d, Plan
from nnc.lowering.kernels.gemm import CACHE_LINE, Epilogue, Expr, RegisterTile, lane, prefetch, scratch, store
from nnc.lowering.kernels.int8_dot import DEPTH, Dot
from nnc.lowering.kernels.pool import lookup
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

    @property
    def in_steps(self) -> int:
        """Steps through a block of input channels."""
        return self.conv.in_block // DEPTH

    def flattened(self, unit: Unit) -> Int8Conv2d:
        """The same pointwise convolution over an image whose width suits the register tile."""
        window = self.conv.window
        if not window.is_pointwise:
            return self
        pixels = window.size[0] * window.size[1]
        widths = [w for w in range(1, min(pixels, 64) + 1) if pixels % w == 0] + [window.size[1]]

        def reshaped(width: int) -> Int8Conv2d:
            size = (pixels // width, width)
            return replace(self, conv=replace(self.conv, window=replace(window, size=size, out_size=size)))

        return min(map(reshaped, widths), key=lambda p: (_cycles(p, best_plan(p, unit).tile), -p.conv.window.size[1]))


def best_plan(problem: Int8Conv2d, unit: Unit) -> Plan:
    """The register tile with the fewest cycles; threads share whatever is larger, so that it is read once."""
    conv = problem.conv
    held = unit.vector_registers - (2 if problem.dot.in_pairs else 1)
    tiles = [
        RegisterTile(columns, vectors, conv.block)
        for vectors in range(1, 9)
        if conv.out_blocks % vectors == 0
        for columns in range(1, conv.window.out_size[1] + 1)
        if vectors * (columns + (2 if problem.dot.in_pairs else 1)) <= held or (columns, vectors) == (1, 1)
    ]
    tile = min(tiles, key=lambda tile: (_cycles(problem, tile), -tile.rows))
    pixels = conv.batch * conv.window.size[0] * conv.window.size[1]
    weights = conv.out_channels * conv.window.kernel[0] * conv.window.kernel[1] // conv.groups
    return Plan(tile, "rows" if pixels > weights else "channels")


def _cycles(problem: Int8Conv2d, tile: RegisterTile) -> float:
    """Cycles for a row of outputs, up to a constant: two products or two loads in one cycle."""
    conv, per_step = problem.conv, 4 if problem.dot.in_pairs else 1
    most, _ = conv.reads(tile.vectors)
    steps = most * problem.in_steps * conv.window.kernel[0] * conv.window.kernel[1]
    total = 0.0
    for tiles in conv.window.tiles(tile.rows):
        products = tiles.columns * tile.vectors
        loads = tiles.columns * (3 if problem.dot.in_pairs else 1) + 2 * tile.vectors
        issued = max(products * per_step / 2, loads / 2, DOT_LATENCY)
        if problem.dot.in_pairs:
            issued = max((products * per_step + loads) / 2, DOT_LATENCY)
        total += tiles.count * (issued * steps + TILE_STEPS * products)
    return total * conv.window.out_size[0] * (conv.out_blocks // tile.vectors)


# -- constants


def pack(W: np.ndarray, problem: Int8Conv2d, plan: Plan) -> np.ndarray:
    """Pack int8 weights `[out, in / groups, kh, kw]` to `[group][in block][kh][kw][step][vector][4 * lanes]`."""
    conv = problem.conv
    dense = _dense(W, problem, plan)
    groups, most = dense.shape[0], dense.shape[1] // conv.in_block
    blocked = dense.reshape(groups, most, conv.in_block, *conv.window.kernel, plan.tile.vectors, conv.block)
    arranged = problem.dot.arrange(blocked.transpose(0, 1, 3, 4, 5, 2, 6))
    return np.ascontiguousarray(arranged.swapaxes(-2, -3))


def _dense(W: np.ndarray, problem: Int8Conv2d, plan: Plan) -> np.ndarray:
    """Weights int8 `[group][in channel that it reads][kh][kw][out channel]`; between groups they are zero."""
    conv, width = problem.conv, plan.tile.vectors * problem.conv.block
    most, firsts = conv.reads(plan.tile.vectors)
    ins, outs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    dense = np.zeros((len(firsts), most * conv.in_block, *conv.window.kernel, width), np.int8)
    for o in range(conv.out_channels):
        start = o // outs * ins - firsts[o // width] * conv.in_block
        dense[o // width, start : start + ins, :, :, o % width] = W[o]
    return dense


def starts(W: np.ndarray, problem: Int8Conv2d, plan: Plan) -> np.ndarray:
    """What the sums start from, int32 `[kind of row][kind of column][group][vector][lane]`."""
    conv, window = problem.conv, problem.conv.window
    rows, columns = _kinds(problem)
    groups = conv.out_blocks // plan.tile.vectors
    sums = np.zeros((*window.kernel, groups * plan.tile.vectors * conv.block), np.int64)
    sums[..., : conv.out_channels] = W.astype(np.int64).sum(1).transpose(1, 2, 0)
    table = [[-problem.zero * sums[np.ix_(list(kh), list(kw))].sum((0, 1)) for kw in columns] for kh in rows]
    shape = (len(rows), len(columns), groups, plan.tile.vectors, conv.block)
    return np.array(table, np.int64).astype(np.int32).reshape(shape)


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
    plan: Plan,
    dtype: str,
    extras: Sequence[te.Tensor],
    epilogue: Epilogue,
) -> te.Tensor:
    """`epilogue(conv(X - zero, W))` as `dtype` `[batch, out block, out height, out width, lane]`.

    `X` holds bytes `[batch, in block, height, width, lane]`, `W` and `S` are those of `pack` and `starts`; the epilogue
    gets int32 sums.
    """
    kernel = _Kernel(problem, plan, epilogue)
    return te.extern(
        [problem.conv.out_shape],
        [X, W, S, *extras],
        lambda ins, outs: kernel.body(ins, outs[0]),
        name="int8_conv2d",
        dtype=dtype,
    )


@dataclass(frozen=True)
class _Kernel:
    """Emits the loops of one convolution."""

    problem: Int8Conv2d
    plan: Plan
    epilogue: Epilogue

    @property
    def groups(self) -> int:
        return self.problem.conv.out_blocks // self.plan.tile.vectors

    def body(self, operands: Sequence[Any], out: Any) -> Any:
        X, W, S = map(T.buffer_proxy, operands[:3])
        conv = self.problem.conv
        rows = conv.window.out_size[0]
        with IRBuilder() as builder:
            with T.parallel(0, conv.batch * rows * self.groups) as task:
                if self.plan.split == "rows":
                    n, y, group = task // (self.groups * rows), task // self.groups % rows, task % self.groups
                else:
                    n, y, group = task // rows % conv.batch, task % rows, task // (rows * conv.batch)
                place = [T.bind(e) for e in (n, y, group)]
                for tiles in conv.window.tiles(self.plan.tile.rows):
                    with tiles.loop() as x:
                        self._tile(X, W, S, out, tiles, place, x)
            return builder.get()

    def _tile(self, X: Any, W: Any, S: Any, out: Any, tiles: Tiles, place: list[Expr], x: Expr) -> None:
        """One register tile: the starts, the reduction, the epilogue."""
        n, y, group = place
        vectors, block = self.plan.tile.vectors, self.problem.conv.block
        sums = [[scratch(block, dtype="int32") for _ in range(vectors)] for _ in range(tiles.columns)]
        self._start(S, tiles, y, group, sums)
        self._reduce(X, W, tiles, place, x, sums)
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

    def _reduce(self, X: Any, W: Any, tiles: Tiles, place: list[Expr], x: Expr, sums: list[list[Any]]) -> None:
        """Add up the products of one tile."""
        conv, window, dot = self.problem.conv, self.problem.conv.window, self.problem.dot
        n, y, group = place
        index, vectors = lane(conv.block), self.plan.tile.vectors
        with T.serial(0, conv.reads(vectors)[0]) as i, T.serial(*window.rows(y)) as kh:
            block, row = T.bind(self._first_block(group) + i), T.bind(window.row(y, kh))
            for tap in tiles.taps():
                with tap.loop() as kw, T.serial(0, self._steps(i)) as j:
                    bytes_ = [W[group, i, kh, kw, j, v, lane(DEPTH * conv.block)] for v in range(vectors)]
                    weights = [dot.weights(each) for each in bytes_]
                    self._fetch_ahead(W, (group, i, kh, kw, j))
                    for c in range(*tap.inside):
                        column = window.column(x + c, kw)

                        def load(first: int, count: int, column: Expr = column, j: Expr = j) -> Expr:
                            return X[n, block, row, column, T.ramp(j * DEPTH + first, 1, count)]

                        values = dot.spread(load)
                        for total, weight in zip(sums[c], weights, strict=True):
                            total[index] = dot.add(total[index], values, weight)

    def _fetch_ahead(self, W: Any, place: Sequence[Expr]) -> None:
        """Prefetch weights; where they stay in the first-level cache anyway, this costs next to nothing."""
        for byte in range(0, self.plan.tile.vectors * self.problem.conv.block * DEPTH, CACHE_LINE):
            prefetch(W, (*place, 0, FETCH_AHEAD + byte), level=1)

    def _first_block(self, group: Expr) -> Expr:
        """The first input block that a group of output blocks reads, as `Conv2d.reads` counts it."""
        conv, width = self.problem.conv, self.plan.tile.vectors * self.problem.conv.block
        most, firsts = conv.reads(self.plan.tile.vectors)
        if not any(firsts):
            return 0
        ins, outs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        return tirx.min(group * width // outs * ins // conv.in_block, conv.in_blocks - most)

    def _steps(self, i: Expr) -> Expr:
        """The steps through an input block: the padding of the last one is skipped."""
        conv = self.problem.conv
        if conv.groups > 1 or conv.in_channels % conv.in_block == 0:
            return self.problem.in_steps
        left = conv.in_channels - i * conv.in_block
        return tirx.min(self.problem.in_steps, (left + DEPTH - 1) // DEPTH)
