"""Products of bytes with constant int8 weights: the loops of `int8_gemm`, and bytes of 128 columns at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from nnc.lowering.dsp import hvx
from nnc.lowering.dsp.finish import PIXELS, ByteWriter, Finish
from nnc.lowering.dsp.hvx import Expr
from nnc.lowering.dsp.unit import LANES
from nnc.lowering.kernels import int8_gemm
from nnc.lowering.kernels.gemm import GemmPlan
from nnc.lowering.kernels.int8_dot import Dot
from nnc.lowering.kernels.registers import when
from nnc.lowering.tail import Tail


def compute(
    A: te.Tensor,
    W: te.Tensor,
    S: te.Tensor,
    columns: int,
    plan: GemmPlan,
    dot: Dot,
    finish: Finish,
    extras: Sequence[te.Tensor],
) -> te.Tensor:
    """`finish((A - zero) @ W)` `[rows, columns]`; `A` holds unsigned bytes, `W` and `S` are those of `int8_gemm`."""
    rows, depth = (int(size) for size in A.shape)

    def body(ins: Sequence[Any], out: Any) -> Any:
        steps = finish.steps
        if isinstance(steps, Tail):
            return _Product(rows, columns, depth, plan, steps.epilogue(ins[3:]), "int32", dot).parallel(ins, out)
        packed = _Packed(rows, columns, depth, plan, lambda value, index: value, "int32", dot)
        return packed.with_writer(ByteWriter(steps, ins[3:], out)).parallel(ins, out)

    return hvx.extern((rows, columns), [A, W, S, *extras], body, "dsp_gemm", finish.dtype)


@dataclass(frozen=True)
class _Product(int8_gemm.Int8Product):
    """Emits the loops of one product."""

    def _stream_bytes(self, W: Any, panel: Expr, step: Expr) -> None:
        """Nothing: vectors are loaded from the second-level cache, past the first."""


@dataclass(frozen=True)
class _Packed(_Product):
    """The same, whose sums become bytes of whole registers."""

    writer: ByteWriter | None = None

    def with_writer(self, writer: ByteWriter) -> _Packed:
        return _Packed(**{**vars(self), "writer": writer})

    def finish(self, out: Any, sums: list[list[Expr]], row: Expr, panel: Expr) -> None:
        for r, values in enumerate(sums):
            for v in range(0, len(values), PIXELS):
                self._write(row + r, panel, v, values[v : v + PIXELS])

    def _write(self, row: Expr, panel: Expr, v: int, sums: list[Expr]) -> None:
        """Store neighbouring vectors of columns, from the v-th of a panel on, cut off where the columns end."""
        assert self.writer is not None
        place, size = T.bind(panel * self.plan.tile.vectors + v), len(sums) * LANES
        last = self.columns % self.plan.panel
        with when((place + len(sums)) * LANES <= self.columns if last else None):
            self.writer.write(row, place, (), sums)
        if 0 < last - v * LANES < size:
            with when(tirx.all(place * LANES < self.columns, (place + len(sums)) * LANES > self.columns)):
                self.writer.store(row, place, self.writer.words(row, place, sums), last - v * LANES)
