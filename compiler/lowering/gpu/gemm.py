"""Products of rows with constant weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te
from tvm.script.ir_builder import tirx as T

from nnc.lowering.gpu import product
from nnc.lowering.gpu.arithmetic import vector
from nnc.lowering.gpu.tile import LANES, Shape, Tile, best_tile
from nnc.lowering.gpu.unit import Gpu
from nnc.lowering.kernels.registers import Epilogue, when

Expr = Any


def shape_of(rows: int, columns: int, depth: int) -> Shape:
    """The sizes of the product; the depth is read in vectors where it is a multiple of them."""
    lanes = LANES if depth % LANES == 0 else 1
    return Shape(rows, -(-columns // LANES), (depth // lanes,), lanes)


def best_plan(rows: int, columns: int, depth: int, unit: Gpu) -> Tile:
    return best_tile(shape_of(rows, columns, depth), unit)


def pack(W: np.ndarray, tile: Tile) -> np.ndarray:
    """Pack weights, or words, `[depth, columns]`."""
    return product.pack(W, tile)


def compute(
    A: te.Tensor,
    W: te.Tensor,
    columns: int,
    tile: Tile,
    extras: Sequence[te.Tensor] = (),
    epilogue: Epilogue = lambda value, index: value,
    dtype: str = "float32",
) -> te.Tensor:
    """`epilogue(A @ W)` as `dtype` `[rows, columns]`; `A` is float32 `[rows, depth]`, or words."""
    rows, depth = (int(size) for size in A.shape)

    def body(ins: list[Any], outs: list[Any]) -> Any:
        operands = _Rows(columns, shape_of(rows, columns, depth), T.buffer_proxy(ins[0]), outs[0], epilogue)
        return product.emit(operands.shape, tile, operands, T.buffer_proxy(ins[1]))

    return te.extern([(rows, columns)], [A, W, *extras], body, name="gemm", dtype=dtype)


@dataclass(frozen=True)
class _Rows:
    """The operands of the product."""

    columns: int
    shape: Shape
    A: Any
    out: Any
    epilogue: Epilogue

    def row(self, row: Expr, group: Expr) -> list[Expr]:
        return [row]

    def left(self, row: Sequence[Expr], unit: Sequence[Expr], column: Expr) -> Expr:
        (index,), (step,) = row, unit
        return self.A[index, step] if self.shape.lanes == 1 else self.A[index, vector(step * LANES)]

    def store(self, row: Expr, column: Expr, lane: Expr, value: Expr) -> None:
        index = (row, column * LANES + lane)
        with when(index[1] < self.columns if self.columns % LANES else None):
            T.buffer_store(self.out, self.epilogue(value, index), index)
