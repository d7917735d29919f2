"""Elementwise kernels of bytes: four pixels of a block at once in fixed point, or 128 bytes through a table."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.dsp import hvx
from nnc.lowering.dsp.finish import PIXELS, ByteWriter, Finish, store_bytes
from nnc.lowering.dsp.fixed import FixedPoint
from nnc.lowering.dsp.hvx import Expr, Vector
from nnc.lowering.dsp.unit import VECTOR_BYTES
from nnc.lowering.kernels.loops import reshaped, shared
from nnc.lowering.kernels.registers import when

_CHUNK = 32
"""Registers of a task."""


def compute(operands: Sequence[te.Tensor], rows: int, size: int, finish: Finish) -> te.Tensor:
    """`finish` of bytes `[rows, size / 32 or 1, 32]` as bytes `[rows, size]`."""

    def body(ins: Sequence[Any], out: Any) -> Any:
        assert isinstance(finish.steps, FixedPoint)
        writer = ByteWriter(finish.steps, ins, out)

        def step(row: Expr, register: Expr, count: int) -> None:
            pixel = T.bind(register * PIXELS)
            writer.store(row, pixel, writer.words_alone(row, pixel), count)

        return registers(rows, size, step)

    return hvx.extern((rows, size), operands, body, "dsp_elementwise", "uint8")


def looked_up(x: te.Tensor, table: te.Tensor) -> te.Tensor:
    """Bytes `[size]` through a table of `arranged`."""
    size = int(x.shape[0])

    def body(ins: Sequence[Any], out: Any) -> Any:
        def step(row: Expr, register: Expr, count: int) -> None:
            source, target = (reshaped(each, (1, size)) for each in (ins[0], out))
            start = T.bind(register * VECTOR_BYTES)
            values = [T.bind(hvx.load(T.buffer_proxy(ins[1]), half, 0)) for half in range(2)]
            store_bytes(target, T.bind(_read(hvx.load(source, row, start), values)), row, start, count)

        return registers(1, size, step)

    return hvx.extern((size,), [x, table], body, "dsp_lookup", "uint8")


def arranged(table: np.ndarray) -> np.ndarray:
    """A table uint8 [256] as `_read` reads it, [2, 128]: 64 entries in the even bytes, and 64 in the odd ones."""
    return np.ascontiguousarray(table.reshape(2, 2, 64).swapaxes(1, 2)).reshape(2, VECTOR_BYTES)


def _read(index: Vector, table: Sequence[Vector]) -> Vector:
    """vlut32 gives the entries of indices whose upper three bits are its number, and zero for the others."""
    index = T.bind(index)
    found = hvx.call("vlutvvb", index, table[0], tirx.const(0, "int32"))
    for part in range(1, 8):
        found = hvx.call("vlutvvb.oracc", found, index, table[part // 4], tirx.const(part, "int32"))
    return found


def registers(rows: int, size: int, step: Any) -> Any:
    """`step(row, register, bytes of it)` for every register of rows of `size` bytes."""
    count, last = ceil(size / VECTOR_BYTES), size % VECTOR_BYTES
    parts = ceil(count / _CHUNK)
    with IRBuilder() as builder:
        with shared(rows * parts, rows * size) as task:
            row, first = T.bind(task // parts), T.bind(task % parts * _CHUNK)
            with T.serial(first, tirx.min(first + _CHUNK, count)) as register:
                with when(register < count - 1 if last else None):
                    step(row, register, VECTOR_BYTES)
                if last:
                    with when(register == count - 1):
                        step(row, register, last)
        return builder.get()
