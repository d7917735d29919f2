"""What a thread of a matrix product multiplies and adds up: floats, or words of four int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from nnc.lowering.gpu.tile import LANES, Tile

Expr = Any


def local(*shape: int, dtype: str = "float32") -> Any:
    """Registers of one thread."""
    return T.buffer_proxy(T.alloc_buffer(shape, dtype, scope="local"))


def shared(*shape: int, dtype: str = "float32") -> Any:
    """Memory of a group of threads."""
    return T.buffer_proxy(T.alloc_buffer(shape, dtype, scope="shared"))


def vector(index: Expr = 0) -> Expr:
    """The index of a whole vector."""
    return T.ramp(index, 1, LANES)


def splat(value: Expr | float) -> Expr:
    return T.broadcast(tirx.const(value, "float32") if isinstance(value, int | float) else value, LANES)


@dataclass(frozen=True)
class Floats:
    """Sums of one thread in vectors of floats."""

    tile: Tile
    element: ClassVar[str] = "float32"
    """Type of the operands."""
    sum: ClassVar[str] = "float32x4"
    """Type of what the sums are kept in."""

    @property
    def count(self) -> int:
        """How many of these there are."""
        return self.tile.rows * self.tile.vectors

    def nothing(self) -> Expr:
        """What a sum starts from."""
        return splat(0.0)

    def multiply(self, sums: Any, left: Callable[[Expr], Expr], right: Callable[[Expr], Expr]) -> None:
        """Add the products of one step: `left(row)` is a scalar, `right(vector)` a vector."""
        weights = local(self.tile.vectors, dtype="float32x4")
        with T.unroll(0, self.tile.vectors) as v:
            weights[v] = right(v)
        with T.unroll(0, self.tile.rows) as r, T.unroll(0, self.tile.vectors) as v:
            place = r * self.tile.vectors + v
            sums[place] = sums[place] + splat(left(r)) * weights[v]

    def take(self, sums: Any, place: Expr, value: Any) -> None:
        """Copy the sums of a vector, `place`, into `value`."""
        value[vector()] = sums[place]


class Words(Floats):
    """The same of words of four int8; every column has its own sum, int32."""

    element: ClassVar[str] = "int32"
    sum: ClassVar[str] = "int32"

    @property
    def count(self) -> int:
        return self.tile.rows * self.tile.vectors * LANES

    def nothing(self) -> Expr:
        return tirx.const(0, "int32")

    def multiply(self, sums: Any, left: Callable[[Expr], Expr], right: Callable[[Expr], Expr]) -> None:
        words, weights = local(self.tile.rows, dtype="int32"), local(self.tile.vectors * LANES, dtype="int32")
        with T.unroll(0, self.tile.rows) as r:  # compilers load again what an intrinsic reads
            words[r] = left(r)
        with T.unroll(0, self.tile.vectors) as v:
            weights[vector(v * LANES)] = right(v)
        with T.unroll(0, self.tile.rows) as r, T.unroll(0, self.tile.vectors * LANES) as column:
            place = r * self.tile.vectors * LANES + column
            sums[place] = dp4a(words[r], weights[column], sums[place])

    def take(self, sums: Any, place: Expr, value: Any) -> None:
        with T.unroll(0, LANES) as lane:
            value[lane] = sums[place * LANES + lane]


def dp4a(a: Expr, b: Expr, total: Expr) -> Expr:
    """`total` and the products of the four int8 of two words (CUDA's intrinsic; build.py has one in OpenCL C)."""
    return tirx.call_pure_extern("int32", "__dp4a", a, b, total)
