"""Depthwise convolution, blocked layout: every channel is convolved with its own filter.

    out[n, c, y, x, lane] = epilogue(sum over kh, kw of X[n, c, y', x', lane] * W[c, kh, kw, lane])

A row of the input is loaded once per kernel row and tile, and serves all kernel columns from registers. Bytes are
widened to float32 as they are loaded: the sums of their products are whole numbers that float32 holds exactly, and
multiply-adds of floats are as many per cycle as any of integers that does not saturate. The few products of float16 are
added up in float16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from tvm import te
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.registers import Epilogue, Expr, as_float, lane, store, sums_of
from nnc.lowering.kernels.unit import Unit, lanes_of
from nnc.lowering.kernels.window import Tiles, Window


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution of `channels` channels in blocks of `block`."""

    batch: int
    channels: int
    window: Window
    block: int
    zero: int | None = None
    """The zero point of bytes; None for floats."""
    dtype: str = "float32"
    """Of the input."""

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape of what is read."""
        return self.batch, self.blocks, *self.window.size, self.block

    @property
    def blocks(self) -> int:
        return ceil(self.channels / self.block)

    @property
    def sums(self) -> str:
        """Type of the products and their sums."""
        return self.dtype if self.zero is None else "float32"


@dataclass(frozen=True)
class Plan:
    """The columns of a register tile."""

    columns: int


def best_plan(conv: Depthwise, unit: Unit) -> Plan:
    """As many columns as the registers hold beside the weights of a kernel row and one input."""
    return Plan(most_columns(conv, unit))


def plans(conv: Depthwise, unit: Unit) -> Iterator[Plan]:
    """Every number of columns that the registers hold, if all tiles of a row have as many, or one less."""
    width = conv.window.out_size[1]
    even = {ceil(width / parts) for parts in range(1, width + 1)}
    return (Plan(columns) for columns in range(most_columns(conv, unit), 0, -1) if columns in even)


def most_columns(conv: Depthwise, unit: Unit) -> int:
    """The columns that the registers hold beside the weights of a kernel row and one input."""
    per_vector = ceil(conv.block / lanes_of(unit))
    registers = unit.vector_registers // per_vector
    return min(max(1, registers - conv.window.kernel[1] - 2), conv.window.out_size[1])


def pack(W: np.ndarray, conv: Depthwise) -> np.ndarray:
    """Pack weights `[channels, 1, kh, kw]` to `[block][kh][kw][lane]`."""
    padded = np.zeros((conv.blocks * conv.block, *conv.window.kernel), W.dtype)
    padded[: conv.channels] = W[:, 0]
    return np.ascontiguousarray(padded.reshape(conv.blocks, conv.block, *conv.window.kernel).transpose(0, 2, 3, 1))


def packed_shape(conv: Depthwise) -> tuple[int, ...]:
    """The shape of `pack`'s result."""
    return conv.blocks, *conv.window.kernel, conv.block


def compute(
    X: te.Tensor,
    W: te.Tensor,
    conv: Depthwise,
    plan: Plan,
    extras: Sequence[te.Tensor] = (),
    epilogue: Epilogue = lambda value, index: value,
    dtype: str = "float32",
) -> te.Tensor:
    """`epilogue(conv(X - zero, W))` as `dtype` `[batch, block, out height, out width, lane]`.

    `X` has the same layout; the epilogue gets sums in float32, or of float16 in float16.
    """
    kernel = Kernel(conv, plan, epilogue)
    return te.extern(
        [(conv.batch, conv.blocks, *conv.window.out_size, conv.block)],
        [X, W, *extras],
        lambda ins, outs: kernel.body(ins[0], ins[1], outs[0]),
        name="depthwise",
        dtype=dtype,
    )


@dataclass(frozen=True)
class Kernel:
    """Emits the loops of one depthwise convolution."""

    conv: Depthwise
    plan: Plan
    epilogue: Epilogue

    def body(self, X: Any, W: Any, out: Any) -> Any:
        rows, blocks = self.conv.window.out_size[0], self.conv.blocks
        with IRBuilder() as builder:
            with T.parallel(0, self.conv.batch * blocks * rows) as task:
                place = [T.bind(e) for e in (task // (blocks * rows), task // rows % blocks, task % rows)]
                for tiles in self.conv.window.tiles(self.plan.columns):
                    with tiles.loop() as x:
                        self.tile(X, W, out, tiles, place, x)
            return builder.get()

    def tile(self, X: Any, W: Any, out: Any, tiles: Tiles, place: list[Expr], x: Expr) -> None:
        """One register tile: sums from zero, the taps, the epilogue."""
        window, index = self.conv.window, lane(self.conv.block)
        n, block, y = place
        sums = sums_of(1, tiles.columns, self.conv.block, self.conv.sums)[0]
        with T.serial(*window.rows(y)) as kh:
            row = T.bind(window.row(y, kh))
            taps = range(window.kernel[1])
            weights = [T.bind(self._factor(T.buffer_proxy(W)[block, kh, kw, index])) for kw in taps]
            for column, readers in tiles.readers(window).items():
                loaded = self._pixels(X, (n, block, row, x * window.strides[1] + column, index))
                pixel = T.bind(self._factor(loaded, self.conv.zero or 0))
                for c, kw in readers:
                    sums[c][index] = sums[c][index] + pixel * weights[kw]
        for c, total in enumerate(sums):
            store(out, total[index], (n, block, y, x + c, 0), self.conv.block, self.epilogue, dtype=self.conv.sums)

    def _pixels(self, X: Any, place: tuple[Expr, ...]) -> Expr:
        """The channels of a block at a pixel."""
        return T.buffer_proxy(X)[place]

    def _factor(self, loaded: Expr, zero: int = 0) -> Expr:
        """A loaded vector as it is multiplied."""
        return loaded if self.conv.sums == "float16" else as_float(loaded, self.conv.block, zero)
