"""The rows of an image that a row of outputs reads, laid out so that neighbouring outputs read neighbouring pixels.

Rows are padded, and their columns dealt out by stride: what tap kw of the outputs x to x + 3 reads is one register.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from nnc.lowering.dsp import hvx
from nnc.lowering.dsp.finish import PIXELS, reshaped_as
from nnc.lowering.dsp.hvx import Expr, Vector
from nnc.lowering.dsp.unit import LANES, VECTOR_BYTES
from nnc.lowering.kernels.registers import scratch
from nnc.lowering.kernels.window import Window

_WORDS = LANES // 4
"""Words of a pixel."""


@dataclass(frozen=True)
class Rows:
    """The rows under a window; pixels outside of the image are `fill`."""

    window: Window
    fill: int

    @property
    def phases(self) -> int:
        """Every output reads some columns of each: column c of the padded row is pixel c / phases of c % phases."""
        return self.window.strides[1]

    @property
    def pixels(self) -> int:
        """Of one phase, up to the last one that four outputs at the end read."""
        outputs = ceil(self.window.out_size[1] / PIXELS) * PIXELS
        return outputs + (self.window.kernel[1] - 1) * self.window.dilations[1] // self.phases

    def prepared(self, X: Any, n: Expr, block: Expr, y: Expr) -> Any:
        """Emit the copy of all rows that outputs y read: bytes `[kernel row, phase, pixel * 32]`."""
        window, size = self.window, ceil(self.pixels * LANES / VECTOR_BYTES) * VECTOR_BYTES
        held = scratch(window.kernel[0], self.phases, size, dtype="uint8")
        source = reshaped_as(X, "uint8", (*(int(s) for s in X.shape[:3]), window.size[1] * LANES))
        with T.serial(0, window.kernel[0]) as kh:
            with T.serial(0, self.phases) as phase, T.serial(0, size // VECTOR_BYTES) as register:
                hvx.store(held, hvx.splat_byte(self.fill), kh, phase, register * VECTOR_BYTES)
            row = T.bind(window.row(y, kh))
            with T.If(tirx.all(row >= 0, row < window.size[0])), T.Then():
                self._copy(source, (n, block, row), held, kh)
        return held

    def read(self, held: Any, kh: Expr, kw: Expr, pixel: Expr) -> Vector:
        """What tap (kh, kw) of four outputs from `pixel` on reads."""
        column = kw * self.window.dilations[1]
        return hvx.load(held, kh, column % self.phases, (pixel + column // self.phases) * LANES)

    def _copy(self, source: Any, place: tuple[Expr, ...], held: Any, kh: Expr) -> None:
        """One row: registers of neighbouring pixels as far as they go, then words."""
        width, left = self.window.size[1], self.window.origin[1]
        first = ceil(left / self.phases)  # the first pixel that all phases have
        count = min(self.pixels - first, (width + left) // self.phases - first)
        whole = count // PIXELS if self.phases <= 2 else 0
        if whole > 0:
            with T.serial(0, whole) as step:
                self._registers(source, place, held, kh, T.bind(first + step * PIXELS))
        for phase in range(self.phases):
            inside = [i for i in range(self.pixels) if 0 <= i * self.phases + phase - left < width]
            rest = [i for i in inside if not first <= i < first + max(whole, 0) * PIXELS]
            for start, end in _runs(rest):
                self._words(source, place, held, (kh, phase), start, end)

    def _registers(self, source: Any, place: tuple[Expr, ...], held: Any, kh: Expr, pixel: Expr) -> None:
        """Four pixels of every phase, of which there are one or two."""
        column = pixel * self.phases - self.window.origin[1]
        low = T.bind(hvx.load(source, *place, column * LANES))
        if self.phases == 1:
            hvx.store(held, low, kh, 0, pixel * LANES)
            return
        high = T.bind(hvx.load(source, *place, (column + PIXELS) * LANES))
        for phase, dealt in enumerate(hvx.dealt(low, high, LANES)):
            hvx.store(held, dealt, kh, phase, pixel * LANES)

    def _words(
        self, source: Any, place: tuple[Expr, ...], held: Any, target: tuple[Expr, Expr], start: int, end: int
    ) -> None:
        """Pixels `start` to `end` of one phase, a word at a time."""
        words = reshaped_as(source, "int32", (*(int(s) for s in source.shape[:3]), int(source.shape[3]) // 4))
        kept = reshaped_as(held, "int32", (*(int(s) for s in held.shape[:2]), int(held.shape[2]) // 4))
        with T.serial(start, end) as pixel, T.serial(0, _WORDS) as word:
            column = pixel * self.phases + target[1] - self.window.origin[1]
            kept[(*target, pixel * _WORDS + word)] = words[(*place, column * _WORDS + word)]


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as spans: first, and one past the last."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number:
            spans[-1] = spans[-1][0], number + 1
        else:
            spans.append((number, number + 1))
    return spans
