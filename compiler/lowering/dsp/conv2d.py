"""Direct convolution of bytes: the loops and register tiles of `int8_conv2d`, and bytes made of four pixels at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te

from nnc.lowering.dsp import hvx
from nnc.lowering.dsp.finish import PIXELS, Finish, Writer
from nnc.lowering.dsp.hvx import Expr
from nnc.lowering.kernels import int8_conv2d
from nnc.lowering.kernels.int8_conv2d import Int8Conv2d, Int8Plan
from nnc.lowering.kernels.registers import lane
from nnc.lowering.kernels.window import Tiles


def compute(
    X: te.Tensor,
    W: te.Tensor,
    S: te.Tensor,
    problem: Int8Conv2d,
    plan: Int8Plan,
    finish: Finish,
    extras: Sequence[te.Tensor],
) -> te.Tensor:
    """`finish(conv(X - zero, W))` `[batch, out block, out height, out width, 32]`.

    `X` holds unsigned bytes `[batch, in block, height, width, lane]`, `W` and `S` are those of `int8_conv2d.pack` and
    `starts`.
    """

    def body(ins: Sequence[Any], out: Any) -> Any:
        return _Kernel(problem, plan, finish.writer(ins[3:], out)).body(ins, out)

    return hvx.extern(problem.conv.out_shape, [X, W, S, *extras], body, "dsp_conv2d", finish.dtype)


@dataclass(frozen=True)
class _Kernel(int8_conv2d.Kernel):
    """Emits the loops of one convolution; its epilogue is a Writer."""

    epilogue: Writer

    def _finish(self, out: Any, tiles: Tiles, place: list[Expr], x: Expr, sums: list[list[Any]]) -> None:
        conv, (n, y, group) = self.problem.conv, place
        together = PIXELS if conv.phase is None or conv.phase.strides[1] == 1 else 1
        for v in range(self.plan.tile.vectors):
            block = group * self.plan.tile.vectors + v
            for c in range(0, tiles.columns, together):
                row, column = conv.pixel(y, x + c)
                totals = [each[v][lane(conv.block)] for each in sums[c : c + together]]
                pixel = row * conv.out_shape[3] + column
                self.epilogue.write(n * conv.out_blocks + block, pixel, (n, block, row, column), totals)

    def _fetch_ahead(self, W: Any, place: Sequence[Expr]) -> None:
        """Nothing: vectors are loaded from the second-level cache, past the first."""
