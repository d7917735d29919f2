"""Max and average pooling, blocked layout, of float32, float16 or bytes.

The maximum of bytes is a byte; their average is that of `byte - zero`, in float32, whose sums are exact. float16 is
averaged in float32 too. Pixels outside of the image never count for the maximum; an average divides by the pixels
inside of the image, or, with `count_padding`, by those inside of the padded image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.registers import FMA_CHAINS, Epilogue, Expr, as_float, lane, scratch, splat, store
from nnc.lowering.kernels.unit import Unit, lanes_of
from nnc.lowering.kernels.window import Tiles, Window

Kind = Literal["max", "average"]


@dataclass(frozen=True)
class Pool:
    """A pool over `channels` channels in blocks of `block`."""

    kind: Kind
    batch: int
    channels: int
    window: Window
    block: int
    padded_end: tuple[int, int] | None = None
    """Of an average that counts padding: where the padded image ends, (row, column) from the image's origin."""
    dtype: str = "float32"
    """Of the input."""
    zero: int = 0
    """The zero point of bytes that are averaged."""

    @property
    def blocks(self) -> int:
        return ceil(self.channels / self.block)

    @property
    def sums(self) -> str:
        """Type of the values that are combined."""
        return self.dtype if self.kind == "max" else "float32"

    @property
    def is_global(self) -> bool:
        """Whether the window is the whole image."""
        return self.window.out_size == (1, 1) and self.window.kernel == self.window.size

    def counted(self, axis: int, place: int) -> int:
        """How many pixels along an axis the average at output `place` divides by."""
        window = self.window
        start = place * window.strides[axis] - window.origin[axis]
        taps = [start + tap * window.dilations[axis] for tap in range(window.kernel[axis])]
        first, end = (0, window.size[axis])
        if self.padded_end:
            first, end = -window.origin[axis], self.padded_end[axis]
        return sum(first <= tap < end for tap in taps)


def compute(
    X: te.Tensor,
    pool: Pool,
    unit: Unit,
    extras: Sequence[te.Tensor] = (),
    epilogue: Epilogue = lambda value, index: value,
    dtype: str = "float32",
) -> te.Tensor:
    """`epilogue(pool(X))` as `dtype` `[batch, block, out height, out width, lane]`; `X` has the same layout."""
    kernel = _Kernel(pool, unit, epilogue)
    body = kernel.global_average if pool.is_global and pool.kind == "average" else kernel.body
    return te.extern(
        [(pool.batch, pool.blocks, *pool.window.out_size, pool.block)],
        [X, *extras],
        lambda ins, outs: body(T.buffer_proxy(ins[0]), outs[0]),
        name=f"{pool.kind}_pool",
        dtype=dtype,
    )


@dataclass(frozen=True)
class _Kernel:
    """Emits the loops of one pool."""

    pool: Pool
    unit: Unit
    epilogue: Epilogue

    @property
    def columns(self) -> int:
        per_vector = ceil(self.pool.block / lanes_of(self.unit.of(self.pool.sums)))
        return max(1, min(self.unit.vector_registers // per_vector - 4, self.pool.window.out_size[1]))

    def body(self, X: Any, out: Any) -> Any:
        pool, rows = self.pool, self.pool.window.out_size[0]
        with IRBuilder() as builder:
            with T.parallel(0, pool.batch * pool.blocks * rows) as task:
                place = (task // (pool.blocks * rows), task // rows % pool.blocks, task % rows)
                n, block, y = (T.bind(e) for e in place)
                for tiles in pool.window.tiles(self.columns):
                    with tiles.loop() as x:
                        self._tile(X, out, tiles, (n, block, y), x)
            return builder.get()

    def _tile(self, X: Any, out: Any, tiles: Tiles, place: tuple[Expr, Expr, Expr], x: Expr) -> None:
        pool, window, index = self.pool, self.pool.window, lane(self.pool.block)
        n, block, y = place
        totals = [scratch(pool.block, dtype=pool.sums) for _ in range(tiles.columns)]
        for total in totals:
            total[index] = splat(self._start(), pool.block, pool.sums)
        with T.serial(*window.rows(y)) as kh:
            row = T.bind(window.row(y, kh))
            for column, readers in tiles.readers(window).items():
                pixel = T.bind(self._value(X[n, block, row, x * window.strides[1] + column, index]))
                for c, _ in readers:
                    total = totals[c][index]
                    totals[c][index] = total + pixel if pool.kind == "average" else tirx.max(total, pixel)
        for c, total in enumerate(totals):
            value = total[index]
            if pool.kind == "average":
                value = value * T.broadcast(self._scale(y, x, c, tiles), pool.block)
            store(out, value, (n, block, y, x + c, 0), pool.block, self.epilogue, dtype=pool.sums)

    def _start(self) -> Expr:
        """What the maximum or the sum of nothing is."""
        if self.pool.kind == "average":
            return 0.0
        return float("-inf") if self.pool.dtype.startswith("float") else tirx.min_value(self.pool.dtype)

    def _value(self, vector: Expr) -> Expr:
        """A loaded vector as it is combined."""
        return vector if self.pool.kind == "max" else as_float(vector, self.pool.block, self.pool.zero)

    def _scale(self, y: Expr, x: Expr, c: int, tiles: Tiles) -> Expr:
        """One divided by the pixels that an average counts."""
        columns = [self.pool.counted(1, tiles.first + t * tiles.columns + c) for t in range(tiles.count)]
        rows = [self.pool.counted(0, row) for row in range(self.pool.window.out_size[0])]
        return lookup(rows, y, lambda r: lookup(columns, (x - tiles.first) // tiles.columns, lambda c: 1.0 / (r * c)))

    def global_average(self, X: Any, out: Any) -> Any:
        """One block per task; several sums at once, since each addition waits for the one before."""
        pool, index = self.pool, lane(self.pool.block)
        height, width = pool.window.size
        with IRBuilder() as builder:
            with T.parallel(0, pool.batch * pool.blocks) as task:
                n, block = T.bind(task // pool.blocks), T.bind(task % pool.blocks)
                sums = [scratch(pool.block) for _ in range(min(FMA_CHAINS, width))]
                for total in sums:
                    total[index] = splat(0.0, pool.block)
                with T.serial(0, height) as y:
                    with T.serial(0, width // len(sums)) as part:
                        for c, total in enumerate(sums):
                            total[index] = total[index] + self._value(X[n, block, y, part * len(sums) + c, index])
                    for c in range(width % len(sums)):
                        sums[c][index] = sums[c][index] + self._value(X[n, block, y, width - 1 - c, index])
                value = sum((total[index] for total in sums[1:]), start=sums[0][index])
                scaled = value * splat(1.0 / (height * width), pool.block)
                store(out, scaled, (n, block, 0, 0, 0), pool.block, self.epilogue)
            return builder.get()


def lookup(values: Sequence[int], place: Expr, leaf: Any) -> Expr:
    """`leaf(values[place])`, an integer or a float32, as selects over the runs of equal values."""
    result = _leaf(leaf, values[-1])
    for at in range(len(values) - 2, -1, -1):
        if values[at] != values[at + 1]:
            result = tirx.Select(place <= at, _leaf(leaf, values[at]), result)
    return result


def _leaf(leaf: Any, value: int) -> Expr:
    found = leaf(value)
    kind = {float: "float32", int: "int32"}.get(type(found))
    return tirx.const(found, kind) if kind else found
