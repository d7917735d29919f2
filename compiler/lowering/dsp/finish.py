"""What kernels do with registers of 32 sums: make bytes of them, four registers at once, and store them.

An output is seen as rows of pixels: `[rows, pixels, 32 channels]`, a row for each image and block of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from nnc.lowering.dsp import hvx
from nnc.lowering.dsp.fixed import FixedPoint
from nnc.lowering.dsp.hvx import Expr, Vector
from nnc.lowering.dsp.unit import LANES, VECTOR_BYTES
from nnc.lowering.kernels.loops import reshaped
from nnc.lowering.kernels.registers import lane, scratch
from nnc.lowering.program import Operand
from nnc.lowering.tail import Tail

PIXELS = VECTOR_BYTES // LANES
"""Pixels of a block whose bytes fill a register."""


@dataclass(frozen=True)
class Finish:
    """Fixed-point steps, or, where there are none, a tail in floats, one value at a time.

    Operands of fixed-point steps are bytes `[rows, pixels or 1, 32]`, then constants, int32: `[rows, 32]`, which
    may come again and again, or `[1, 1]`.
    """

    steps: FixedPoint | Tail
    operands: tuple[Operand, ...]

    @property
    def dtype(self) -> str:
        return self.steps.dtype if isinstance(self.steps, Tail) else "uint8"

    @property
    def key(self) -> Hashable:
        if isinstance(self.steps, Tail):
            return self.steps.key
        return self.steps, tuple(tuple(operand.shape) for operand in self.operands)

    def fits(self, height: int, width: int) -> bool:
        """Whether rows and columns can be reshaped."""
        return not isinstance(self.steps, Tail) or self.steps.fits(height, width)

    def reshaped(self, height: int, width: int) -> Finish:
        """The same over images of another height and width, with as many pixels."""
        if not isinstance(self.steps, Tail):
            return self
        tail = self.steps.reshaped(height, width)
        return Finish(tail, tail.operands)

    def writer(self, extras: Sequence[Any], out: Any) -> Writer:
        """What stores into `out`; `extras` are the buffers of the operands."""
        if isinstance(self.steps, Tail):
            return ScalarWriter(self.steps, extras, out)
        return ByteWriter(self.steps, extras, out)


class Writer:
    """Stores the values of up to four neighbouring pixels of a row."""

    def write(self, row: Expr, pixel: Expr, index: Sequence[Expr], sums: Sequence[Vector]) -> None:
        """`sums` has a register for each pixel; `index` is where the first one is in the output, without the lane."""
        raise NotImplementedError


@dataclass(frozen=True)
class ByteWriter(Writer):
    """Packs four pixels into a register of bytes."""

    steps: FixedPoint
    extras: Sequence[Any]
    out: Any

    def write(self, row: Expr, pixel: Expr, index: Sequence[Expr], sums: Sequence[Vector]) -> None:
        self.store(row, pixel, self.words(row, pixel, sums), len(sums) * LANES)

    def words(self, row: Expr, pixel: Expr, sums: Sequence[Vector]) -> list[Vector]:
        """The results of neighbouring pixels as words."""
        read = [self._pixels(extra, row, pixel, len(sums)) for extra in self.extras]
        return [self.steps.emit([total, *(each(p) for each in read)], T.bind) for p, total in enumerate(sums)]

    def words_alone(self, row: Expr, pixel: Expr) -> list[Vector]:
        """The same of four pixels that are computed from the operands alone."""
        read = [self._pixels(extra, row, pixel, PIXELS) for extra in self.extras]
        return [self.steps.emit([each(p) for each in read], T.bind) for p in range(PIXELS)]

    def store(self, row: Expr, pixel: Expr, words: Sequence[Vector], size: int) -> None:
        """Pack words into bytes, and store the first `size` of them."""
        packed = T.bind(hvx.packed([*words, *[words[-1]] * (PIXELS - len(words))]))
        store_bytes(self._rows(self.out), packed, row, pixel * LANES, size)

    def _pixels(self, extra: Any, row: Expr, pixel: Expr, count: int) -> Callable[[int], Vector]:
        """The words of an operand, by pixel."""
        if str(extra.dtype) == "int32":
            constants = [T.bind(self._constant(extra, row, pixel + p)) for p in range(self._distinct(extra, count))]
            return lambda p: constants[p % len(constants)]
        if int(extra.shape[1]) == 1 and self._rows(self.out).shape[1] != LANES:
            (word,) = hvx.widened(T.bind(hvx.load(self._rows(extra), row, 0)), 1)
            return lambda p: word
        words = hvx.widened(T.bind(hvx.load(self._rows(extra), row, pixel * LANES)), count)
        return lambda p: words[p]

    def _distinct(self, extra: Any, count: int) -> int:
        """The registers of a constant that `count` pixels read: columns of a product have their own."""
        return count if int(extra.shape[1]) > LANES else 1

    def _constant(self, extra: Any, row: Expr, place: Expr) -> Vector:
        (rows, lanes), extra = (int(size) for size in extra.shape), T.buffer_proxy(extra)
        if lanes == 1:
            return hvx.splat(extra[0, 0])
        return hvx.load(extra, row % rows if rows > 1 else 0, place * LANES if lanes > LANES else 0)

    def _rows(self, buffer: Any) -> Any:
        """A buffer of bytes as `[rows, bytes]`."""
        sizes = [int(size) for size in buffer.shape]
        rows = int(np.prod(sizes[:2])) if len(sizes) == 5 else sizes[0]
        return reshaped(buffer, (rows, int(np.prod(sizes)) // rows))


def store_bytes(rows: Any, packed: Vector, row: Expr, start: Expr, size: int) -> None:
    """Store the first `size` bytes of a register into `[rows, bytes]`, from `start` on."""
    if size == VECTOR_BYTES:
        hvx.store(rows, packed, row, start)
        return
    # One by one: behind them are others, which may be there already.
    width = 4 if size % 4 == 0 and int(rows.shape[1]) % 4 == 0 else 1
    kind = "int32" if width == 4 else "uint8"
    held = scratch(VECTOR_BYTES // width, dtype=kind)
    held[lane(VECTOR_BYTES // width)] = tirx.reinterpret(f"{kind}x{VECTOR_BYTES // width}", packed)
    target = reshaped_as(rows, kind, (int(rows.shape[0]), int(rows.shape[1]) // width))
    with T.serial(0, size // width) as place:
        target[row, start // width + place] = held[place]


def reshaped_as(buffer: Any, dtype: str, shape: Sequence[int]) -> Any:
    """The same memory under another shape and type."""
    return T.buffer_proxy(T.decl_buffer(tuple(shape), dtype, data=buffer.data))


@dataclass(frozen=True)
class ScalarWriter(Writer):
    """Computes the tail of every value by itself."""

    tail: Tail
    extras: Sequence[Any]
    out: Any

    def write(self, row: Expr, pixel: Expr, index: Sequence[Expr], sums: Sequence[Vector]) -> None:
        epilogue = self.tail.epilogue(self.extras)
        *front, x = index
        for p, total in enumerate(sums):
            held = scratch(LANES, dtype="int32")
            held[lane(LANES)] = total
            with T.serial(0, LANES) as k:  # written out, it takes the compiler minutes
                at = (*front, x + p, k)
                T.buffer_store(self.out, epilogue(held[k], at), at)
