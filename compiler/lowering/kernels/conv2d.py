"""Direct convolution, float32 or float16, blocked output; the input is blocked or, for images, plain NCHW.

    out[n, o, y, x, lane] = epilogue(sum over i, kh, kw, j of X[n, i, y', x', j] * W[o, i, kh, kw, j, lane])

A register tile is `columns` neighbouring outputs by `vectors` blocks of output channels. Every step of the reduction
broadcasts one input per column, loads one weight vector per block, and multiplies them all. A 1x1 convolution is the
same kernel over an image whose rows are cut to fit the tile: it is a matrix product.

Groups: a block of output channels reads the blocks of input channels that its groups cover. Where groups are narrower
than a block, the weights in between are zero.

Of float16, the products of as many input blocks as HALF_DEPTH allows are added up in float16, of one row of the kernel
where that is large; these sums are added up in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any, Literal

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.convolution import Conv2d, blocked
from nnc.lowering.kernels.gemm import even_share
from nnc.lowering.kernels.registers import (
    CACHE_LINE,
    HALF_DEPTH,
    Epilogue,
    Expr,
    RegisterTile,
    add,
    lane,
    max_rows,
    prefetch,
    splat,
    store,
    sums_of,
)
from nnc.lowering.kernels.unit import Unit, lanes_of
from nnc.lowering.kernels.window import Tiles

FETCH_AHEAD = 4096  # bytes; 120 -> 205 GFLOP/s where 49 pixels read 4 MB of weights


Split = Literal["rows", "channels"]


@dataclass(frozen=True)
class Plan:
    """The register tile (its rows are columns of the image), and whether threads share rows or output channels."""

    tile: RegisterTile
    split: Split
    ahead: int = FETCH_AHEAD
    """Bytes of weights from here that each step fetches; 0: none."""
    unroll: int = 1
    """Steps of the reduction, input channels, in the body of its loop."""
    loads: Literal["scalars", "vectors"] = "scalars"
    """What is loaded of the input: a scalar for every product, or the channels of `unroll` steps at once."""
    width: int | None = None
    """Of the image that a pointwise convolution computes on; None: its own."""


def best_plan(conv: Conv2d, unit: Unit) -> Plan:
    """The register tile with the fewest cycles; threads share whatever is larger, so that it is read once."""
    tile = min(_tiles(conv, unit), key=lambda tile: (_cycles(conv, tile, unit), -tile.rows))
    return Plan(tile, best_split(conv))


def best_split(conv: Conv2d) -> Split:
    """Threads share whatever is larger, of one input channel."""
    pixels = conv.batch * conv.window.size[0] * conv.window.size[1]
    weights = conv.out_channels * conv.window.kernel[0] * conv.window.kernel[1] // conv.groups
    return "rows" if pixels > weights else "channels"


def flattened(conv: Conv2d, unit: Unit) -> Conv2d:
    """The same pointwise convolution over an image whose width suits the register tile."""
    return min(
        map(conv.of_width, conv.widths()),
        key=lambda each: (_cycles(each, best_plan(each, unit).tile, unit), -each.window.size[1]),
    )


def plans(conv: Conv2d, unit: Unit) -> Iterator[Plan]:
    """Every register tile that fits, with both splits, and each way to write the reduction.

    Wide units broadcast scalars as they load them; those of 128 bits multiply with one lane of a register as well.
    """
    unrolls = [steps for steps in (1, 2, 4) if conv.unrolls(steps)]
    loads = [("scalars", steps) for steps in unrolls]
    if unit.vector_bits == 128 and conv.in_block > 1:
        loads += [("vectors", steps) for steps in unrolls if steps > 1]
    width = conv.window.out_size[1]
    for tile in (each for each in _tiles(conv, unit) if each.rows == ceil(width / ceil(width / each.rows))):
        for split, ahead, (load, unroll) in product(("rows", "channels"), (0, FETCH_AHEAD), loads):
            yield Plan(tile, split, ahead, unroll, load)  # type: ignore[arg-type]


def cycles(conv: Conv2d, plan: Plan, unit: Unit) -> float:
    """Cycles of one core for an image, up to a constant; splits and fetches are not told apart."""
    return _cycles(conv, plan.tile, unit)


def _tiles(conv: Conv2d, unit: Unit) -> list[RegisterTile]:
    """The register tiles that fit, or the smallest."""
    width, registers = conv.window.out_size[1], _registers(conv, unit)
    return [
        RegisterTile(columns, vectors, conv.block)
        for vectors in range(1, 9)
        if conv.out_blocks % vectors == 0
        for columns in range(1, min(width, max_rows(vectors, conv.block, unit)) + 1)
        if vectors * registers * (columns + 1) < unit.vector_registers or vectors == columns == 1
    ]


def _registers(conv: Conv2d, unit: Unit) -> int:
    """Vector registers that a block fills."""
    return ceil(conv.block / lanes_of(unit))


FMA_LATENCY = 4.0  # cycles before an accumulator can be added to again
TILE_STEPS = 6.0  # the cost of starting and storing a tile, in steps of the reduction


def _cycles(conv: Conv2d, tile: RegisterTile, unit: Unit) -> float:
    """Cycles for an image, up to a constant: two multiply-adds or two loads in one cycle."""
    most, _ = conv.reads(tile.vectors)
    vectors = tile.vectors * _registers(conv, unit)
    steps = most * conv.in_block * conv.window.kernel[0] * conv.window.kernel[1]
    total = 0.0
    for tiles in conv.window.tiles(tile.rows):
        products, loads = tiles.columns * vectors, tiles.columns + 2 * vectors
        total += tiles.count * (max(products / 2, loads / 2, FMA_LATENCY) * steps + TILE_STEPS * products)
    return total * conv.window.out_size[0] * (conv.out_blocks // tile.vectors)


def pack(W: np.ndarray, conv: Conv2d, plan: Plan) -> np.ndarray:
    """Pack weights `[out, in / groups, kh, kw]` to `[group][in block][kh][kw][in lane][vector][lane]`."""
    arranged = blocked(W.astype(conv.dtype, copy=False), conv, plan.tile.vectors)
    return np.ascontiguousarray(arranged.transpose(0, 1, 3, 4, 2, 5, 6))


def packed_shape(conv: Conv2d, plan: Plan) -> tuple[int, ...]:
    """The shape of `pack`'s result."""
    most, firsts = conv.reads(plan.tile.vectors)
    return len(firsts), most, *conv.window.kernel, conv.in_block, plan.tile.vectors, conv.block


def compute(
    X: te.Tensor,
    W: te.Tensor,
    conv: Conv2d,
    plan: Plan,
    extras: Sequence[te.Tensor] = (),
    epilogue: Epilogue = lambda value, index: value,
    dtype: str = "float32",
) -> te.Tensor:
    """`epilogue(conv(X, W))` as `dtype` `[batch, out block, out height, out width, lane]`, or its pixels of a phase.

    `X` is `[batch, in block, height, width, lane]`, or `[batch, channel, height, width]` for in_block 1, of the type of
    `conv`; the epilogue gets sums in float32.
    """
    kernel = Kernel(conv, plan, epilogue)
    return te.extern(
        [conv.out_shape],
        [X, W, *extras],
        lambda ins, outs: kernel.body(ins[0], ins[1], outs[0]),
        name="conv2d",
        dtype=dtype,
    )


@dataclass(frozen=True)
class Kernel:
    """Emits the loops of one convolution."""

    conv: Conv2d
    plan: Plan
    epilogue: Epilogue

    def body(self, X: Any, W: Any, out: Any) -> Any:
        rows, groups = self.conv.window.out_size[0], packed_shape(self.conv, self.plan)[0]
        with IRBuilder() as builder:
            with T.parallel(0, self.conv.batch * rows * groups) as task:
                if self.plan.split == "rows":
                    n, y, group = task // (groups * rows), task // groups % rows, task % groups
                else:
                    n, y, group = task // rows % self.conv.batch, task % rows, task // (rows * self.conv.batch)
                place = [T.bind(e) for e in (n, y, group)]
                for tiles in self.conv.window.tiles(self.plan.tile.rows):
                    with tiles.loop() as x:
                        self.tile(X, W, out, tiles, place, x)
            return builder.get()

    def tile(self, X: Any, W: Any, out: Any, tiles: Tiles, place: list[Expr], x: Expr) -> None:
        """One register tile: sums from zero, the reduction, the epilogue."""
        (_, y, _), (vectors, block) = place, (self.plan.tile.vectors, self.conv.block)
        sums = sums_of(tiles.columns, vectors, block)
        if self.conv.dtype == "float32":
            self._reduce(X, W, tiles, place, x, sums, (0, self._blocks), self.conv.window.rows(y))
        else:
            with self._part(y) as (blocks, rows):
                few = sums_of(tiles.columns, vectors, block, self.conv.dtype)
                self._reduce(X, W, tiles, place, x, few, blocks, rows)
                add(sums, few, block)
        self._finish(out, tiles, place, x, sums)

    def _finish(self, out: Any, tiles: Tiles, place: list[Expr], x: Expr, sums: list[list[Any]]) -> None:
        """Store the sums of one tile through the epilogue."""
        (n, y, group), (vectors, block) = place, (self.plan.tile.vectors, self.conv.block)
        for c, v in product(range(tiles.columns), range(vectors)):
            at = (n, group * vectors + v, *self.conv.pixel(y, x + c), 0)
            store(out, sums[c][v][lane(block)], at, block, self.epilogue)

    @property
    def _blocks(self) -> int:
        """Input blocks that are read."""
        return self.conv.reads(self.plan.tile.vectors)[0]

    @contextmanager
    def _part(self, y: Expr) -> Iterator[tuple[tuple[Expr, Expr], tuple[Expr, Expr]]]:
        """Emit the loop over what is added up in float16: gives input blocks and kernel rows, first and last."""
        window, blocks = self.conv.window, self._blocks
        most = HALF_DEPTH // (window.kernel[0] * window.kernel[1] * self.conv.in_block)
        if not most:
            first, last = window.rows(y)
            with T.serial(0, blocks) as i, T.serial(0, last - first) as step:
                kh = T.bind(first + step)  # TVM takes loops that start elsewhere for others, one inside of the other
                yield (i, i + 1), (kh, kh + 1)
            return
        share = even_share(blocks, most)
        with T.serial(0, ceil(blocks / share)) as part:
            first = T.bind(part * share)
            yield (first, tirx.min(first + share, blocks)), window.rows(y)

    def _reduce(
        self,
        X: Any,
        W: Any,
        tiles: Tiles,
        place: list[Expr],
        x: Expr,
        sums: list[list[Any]],
        blocks: tuple[Expr, Expr],
        rows: tuple[Expr, Expr],
    ) -> None:
        """Add up the products of one tile, of input blocks and kernel rows from the first up to the last."""
        conv, window, unroll = self.conv, self.conv.window, self.plan.unroll
        n, y, group = place
        with T.serial(*blocks) as i, T.serial(*rows) as kh:
            block = T.bind(conv.first_block(group, self.plan.tile.vectors) + i)
            row = T.bind(window.row(y, kh))
            for tap in tiles.taps():
                with tap.loop() as kw, T.serial(0, self._depth(i) // unroll) as step:
                    first = T.bind(step * unroll) if unroll > 1 else step
                    pixels = {c: (n, block, row, window.column(x + c, kw)) for c in range(*tap.inside)}
                    inputs = self._inputs(X, pixels, first)
                    for k in range(unroll):
                        self._multiply(W, (group, i, kh, kw, first + k), {c: inputs(c, k) for c in pixels}, sums)

    def _inputs(self, X: Any, pixels: Mapping[int, tuple[Expr, ...]], first: Expr) -> Callable[[int, int], Expr]:
        """What gives the input of column c, channel first + k, in every lane."""
        if self.plan.loads == "scalars":
            return lambda c, k: splat(X[(*pixels[c], first + k)[: len(X.shape)]], self.conv.block)
        along = T.ramp(first, 1, self.plan.unroll)
        loaded = {c: T.bind(T.buffer_proxy(X)[(*pixel, along)]) for c, pixel in pixels.items()}
        return lambda c, k: splat(tirx.Shuffle([loaded[c]], [k]), self.conv.block)

    def _multiply(self, W: Any, place: Sequence[Expr], inputs: Mapping[int, Expr], sums: list[list[Any]]) -> None:
        """One step: add the products of an input channel."""
        index = lane(self.conv.block)
        weights = [T.bind(T.buffer_proxy(W)[(*place, v, index)]) for v in range(self.plan.tile.vectors)]
        self._fetch_ahead(W, place)
        for c, value in inputs.items():
            scalar = T.bind(value)
            for total, weight in zip(sums[c], weights, strict=True):
                total[index] = total[index] + scalar * weight

    def _fetch_ahead(self, W: Any, place: Sequence[Expr]) -> None:
        """Prefetch weights; where they stay in the first-level cache anyway, this costs next to nothing."""
        if not self.plan.ahead:
            return
        size = np.dtype(self.conv.dtype).itemsize
        for lane_ in range(0, self.plan.tile.vectors * self.conv.block, CACHE_LINE // size):
            prefetch(W, (*place, 0, self.plan.ahead // size + lane_), level=1)

    def _depth(self, i: Expr) -> Expr:
        """The channels of an input block that the reduction goes through: the padding of the last one is skipped."""
        conv = self.conv
        if conv.groups > 1 or conv.in_channels % conv.in_block == 0:
            return conv.in_block
        return tirx.min(conv.in_block, conv.in_channels - i * conv.in_block)
