"""Convolution as a product of pixels and weights that is never laid out: rows are output pixels, the depth input blocks
and taps (Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014). Same problem and layouts as on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from nnc.lowering.gpu import product
from nnc.lowering.gpu.arithmetic import splat, vector
from nnc.lowering.gpu.tile import LANES, Shape, Tile, best_tile, cycles
from nnc.lowering.gpu.unit import Gpu
from nnc.lowering.kernels import conv2d
from nnc.lowering.kernels.convolution import Conv2d
from nnc.lowering.kernels.registers import Epilogue, RegisterTile, as_float
from nnc.lowering.kernels.window import Window

Expr = Any


@dataclass(frozen=True)
class Convolution(Conv2d):
    """A convolution that may read bytes, or words of four int8, which are channels then: `dtype` is int32."""

    zero: int = 0
    """The zero point of bytes."""


def shape_of(conv: Conv2d, tile: Tile | None = None) -> Shape:
    """The sizes of the product; how much of the input a group of output blocks reads depends on how many these are."""
    blocks, _ = conv.reads(tile.group_vectors if tile else 1)
    height, width = conv.window.out_size
    return Shape(conv.batch * height * width, conv.out_blocks, (blocks, *conv.window.kernel), conv.in_block)


def best_plan(conv: Conv2d, unit: Gpu) -> Tile:
    """Grouped convolutions take narrow tiles: a wide one would read the inputs of many groups."""
    shape = shape_of(conv)
    if conv.groups == 1:
        return best_tile(shape, unit)
    tiles = {best_tile(Shape(shape.rows, v, shape.units, shape.lanes), unit) for v in (1, 2, 4, shape.vectors)}
    return min(tiles, key=lambda tile: (cycles(shape_of(conv, tile), tile, unit), tile.size))


def pack(W: np.ndarray, conv: Conv2d, tile: Tile) -> np.ndarray:
    """Pack weights `[out, in / groups, kh, kw]` to `[group][in block, kh, kw, in lane][vector][lane]`."""
    plan = conv2d.Plan(RegisterTile(1, tile.group_vectors, conv.block), "rows")
    packed = conv2d.pack(W, conv, plan)
    return packed.reshape(packed.shape[0], -1, tile.group_vectors, conv.block)


def compute(
    X: te.Tensor,
    W: te.Tensor,
    conv: Conv2d,
    tile: Tile,
    extras: Sequence[te.Tensor] = (),
    epilogue: Epilogue = lambda value, index: value,
    dtype: str = "float32",
) -> te.Tensor:
    """As `nnc.lowering.kernels.conv2d.compute`."""

    def body(ins: list[Any], outs: list[Any]) -> Any:
        pixels = _Pixels(conv, tile, T.buffer_proxy(ins[0]), outs[0], epilogue)
        return product.emit(shape_of(conv, tile), tile, pixels, T.buffer_proxy(ins[1]))

    return te.extern([conv.out_shape], [X, W, *extras], body, name="conv2d", dtype=dtype)


@dataclass(frozen=True)
class _Pixels:
    """The operands of the product."""

    conv: Conv2d
    tile: Tile
    X: Any
    out: Any
    epilogue: Epilogue

    def row(self, row: Expr, group: Expr) -> list[Expr]:
        """Image, first input block, and row and column of the first pixel that the window covers."""
        height, width = self.conv.window.out_size
        n, y, x = product.unravelled(row, (self.conv.batch, height, width))
        first = T.bind(self.conv.first_block(group, self.tile.group_vectors))
        return [n, first, T.bind(self.conv.window.row(y, 0)), T.bind(self.conv.window.column(x, 0))]

    def left(self, row: Sequence[Expr], unit: Sequence[Expr], column: Expr) -> Expr:
        (n, first, top, start), (block, kh, kw) = row, unit
        window = self.conv.window
        y, x = T.bind(top + kh * window.dilations[0]), T.bind(start + kw * window.dilations[1])
        zero = self.conv.zero if isinstance(self.conv, Convolution) else 0
        if self.conv.in_block == 1:
            pixel = self.X[n, first + block, y, x]
            pixel = pixel if self.conv.dtype == "int32" else _as_float(pixel, zero)
            return guarded(window, y, x, pixel, tirx.const(0, self.conv.dtype))
        pixel = as_float(self.X[n, first + block, y, x, vector()], LANES, zero)
        return guarded(window, y, x, pixel, splat(0.0))

    def store(self, row: Expr, column: Expr, lane: Expr, value: Expr) -> None:
        height, width = self.conv.window.out_size
        n, y, x = product.unravelled(row, (self.conv.batch, height, width))
        index = (n, column, *self.conv.pixel(y, x), lane)
        T.buffer_store(self.out, self.epilogue(value, index), index)


def _as_float(value: Expr, zero: int) -> Expr:
    """A byte, less its zero point, as float32; float32 as it is."""
    if str(value.ty.dtype) == "float32":
        return value
    return (value.astype("int32") - zero).astype("float32")


def guarded(window: Window, y: Expr, x: Expr, value: Expr, outside: Expr, columns: int = 1) -> Expr:
    """A pixel of the image, or `outside`; rows and columns that can't lie outside are not asked for.

    Outputs are computed in runs of `columns`, which may reach beyond the last.
    """
    tests = []
    for axis, place in enumerate((y, x)):
        outputs = window.out_size[axis] + (-window.out_size[axis] % columns if axis else 0)
        span = (outputs - 1) * window.strides[axis] - window.origin[axis]
        span += (window.kernel[axis] - 1) * window.dilations[axis]
        tests += [place >= 0] if window.origin[axis] > 0 else []
        tests += [place < window.size[axis]] if span >= window.size[axis] else []
    return tirx.if_then_else(tirx.all(*tests), value, outside) if tests else value
