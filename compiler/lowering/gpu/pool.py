"""Pools: a thread per output of a block of channels; of large windows, a group of threads that share the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.gpu.arithmetic import local, shared, vector
from nnc.lowering.gpu.product import threads, unravelled
from nnc.lowering.gpu.threads import GROUP
from nnc.lowering.gpu.tile import LANES
from nnc.lowering.kernels.pool import Pool, lookup
from nnc.lowering.kernels.registers import Epilogue, as_float, when
from nnc.lowering.kernels.unit import Unit

Expr = Any

LARGE = 49
"""Pixels of a window from which on a group of threads shares them."""


def compute(
    X: te.Tensor,
    pool: Pool,
    unit: Unit,
    extras: Sequence[te.Tensor] = (),
    epilogue: Epilogue = lambda value, index: value,
    dtype: str = "float32",
) -> te.Tensor:
    """As `nnc.lowering.kernels.pool.compute`."""
    kernel = _Kernel(pool, epilogue)
    return te.extern(
        [(pool.batch, pool.blocks, *pool.window.out_size, pool.block)],
        [X, *extras],
        lambda ins, outs: kernel.body(T.buffer_proxy(ins[0]), outs[0]),
        name=f"{pool.kind}_pool",
        dtype=dtype,
    )


@dataclass(frozen=True)
class _Kernel:
    pool: Pool
    epilogue: Epilogue

    @property
    def slices(self) -> int:
        """Threads that share a window."""
        pixels = prod(self.pool.window.kernel)
        return min(GROUP // 4, 1 << (pixels // 4).bit_length()) if pixels >= LARGE else 1

    def body(self, X: Any, out: Any) -> Any:
        pool, slices = self.pool, self.slices
        extents = (pool.batch, pool.blocks, *pool.window.out_size)
        count, width = prod(extents), min(prod(extents), GROUP // slices)
        with IRBuilder() as builder:
            with threads((ceil(count / width),), (width, slices)) as ((block,), (x, y)):
                item = T.bind(block * width + x)
                place = unravelled(T.bind(tirx.min(item, count - 1)), extents)
                total = self._combined(X, place, y)
                if slices > 1:
                    self._share(total, x, y, width)
                tests = [item < count] if count % width else []
                tests += [y == 0] if slices > 1 else []
                with when(tirx.all(*tests) if tests else None):
                    self._store(out, total, place)
            return builder.get()

    def _combined(self, X: Any, place: list[Expr], first: Expr) -> Any:
        """What one thread finds in its pixels of a window."""
        pool, window, slices = self.pool, self.pool.window, self.slices
        n, block, y, x = place
        total = local(LANES, dtype=pool.sums)
        total[vector()] = self._start()
        taps = prod(window.kernel)
        with T.serial(0, ceil(taps / slices)) as step:
            tap = T.bind(step * slices + first) if slices > 1 else step
            with when(tap < taps) if taps % slices else nullcontext():
                kh, kw = unravelled(tap, window.kernel)
                row, column = T.bind(window.row(y, kh)), T.bind(window.column(x, kw))
                inside = tirx.all(row >= 0, row < window.size[0], column >= 0, column < window.size[1])
                with when(inside):
                    value = self._value(X[n, block, row, column, vector()])
                    total[vector()] = self._combine(total[vector()], value)
        return total

    def _share(self, total: Any, x: Expr, y: Expr, width: int) -> None:
        """Combine what the threads of a window found."""
        partial = shared(self.slices, width, LANES, dtype=self.pool.sums)
        partial[y, x, vector()] = total[vector()]
        T.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))
        with when(y == 0), T.serial(1, self.slices) as other:
            total[vector()] = self._combine(total[vector()], partial[other, x, vector()])

    def _store(self, out: Any, total: Any, place: list[Expr]) -> None:
        n, block, y, x = place
        if self.pool.kind == "average":
            total[vector()] = total[vector()] * T.broadcast(self._scale(y, x), LANES)
        with T.vectorized(0, LANES) as lane:
            index = (n, block, y, x, lane)
            T.buffer_store(out, self.epilogue(total[lane], index), index)

    def _start(self) -> Expr:
        """What the maximum or the sum of nothing is."""
        if self.pool.kind == "average":
            return T.broadcast(tirx.const(0.0, "float32"), LANES)
        return T.broadcast(tirx.min_value(self.pool.dtype), LANES)

    def _combine(self, total: Expr, value: Expr) -> Expr:
        return total + value if self.pool.kind == "average" else tirx.max(total, value)

    def _value(self, loaded: Expr) -> Expr:
        return loaded if self.pool.kind == "max" else as_float(loaded, LANES, self.pool.zero)

    def _scale(self, y: Expr, x: Expr) -> Expr:
        """One divided by the pixels that an average counts."""
        rows, columns = (
            [self.pool.counted(axis, p) for p in range(self.pool.window.out_size[axis])] for axis in (0, 1)
        )
        return lookup(rows, y, lambda r: lookup(columns, x, lambda c: 1.0 / (r * c)))
