"""Depthwise convolution of bytes, and averages, which have weights of one: the same in NCHW32c.

    out[n, c, y, x, lane] = finish(sum over kh, kw of (X[n, c, y', x', lane] - zero) * W[c, kh, kw, lane])

Four taps of a kernel row are shuffled into the words of a register, so that vrmpy multiplies and adds all four. Pixels
outside of the image are worth the zero point, and so add nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from tvm import te
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.dsp import hvx
from nnc.lowering.dsp.finish import PIXELS, Finish, Writer
from nnc.lowering.dsp.hvx import Expr
from nnc.lowering.dsp.rows import Rows
from nnc.lowering.dsp.unit import LANES, VECTOR_BYTES
from nnc.lowering.kernels.depthwise import Depthwise
from nnc.lowering.kernels.registers import lane, scratch

_TAPS = 4
"""Of one vrmpy."""

_UNROLLED = 4
"""Groups of taps in a row that are written out; more of them become a loop."""


def pack(W: np.ndarray, conv: Depthwise) -> np.ndarray:
    """Pack weights `[channels, 1, kh, kw]` to int8 `[block][kh][four kw][lane * 4]`.

    Those of int16 become two bytes that are added up, `[block][kh][four kw][2 * lane * 4]`.
    """
    if W.dtype == np.int16:
        low = np.clip(W, -128, 127)
        return np.concatenate([pack(part.astype(np.int8), conv) for part in (low, W - low)], axis=-1)
    groups = ceil(conv.window.kernel[1] / _TAPS)
    padded = np.zeros((conv.blocks * LANES, conv.window.kernel[0], groups * _TAPS), np.int8)
    padded[: conv.channels, :, : conv.window.kernel[1]] = W[:, 0]
    split = padded.reshape(conv.blocks, LANES, conv.window.kernel[0], groups, _TAPS)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 1, 4)).reshape(*split.shape[:1], *split.shape[2:4], -1)


def starts(W: np.ndarray, conv: Depthwise) -> np.ndarray:
    """What the sums start from, int32 `[block][lane]`: minus the zero point times the sum of the weights."""
    sums = np.zeros(conv.blocks * LANES, np.int64)
    sums[: conv.channels] = -(conv.zero or 0) * W.astype(np.int64).sum((1, 2, 3))
    return sums.astype(np.int32).reshape(conv.blocks, LANES)


def compute(
    X: te.Tensor, W: te.Tensor, S: te.Tensor, conv: Depthwise, finish: Finish, extras: Sequence[te.Tensor]
) -> te.Tensor:
    """`finish(conv(X - zero, W))` `[batch, block, out height, out width, 32]`; `X` has the same layout, of bytes."""
    shape = (conv.batch, conv.blocks, *conv.window.out_size, LANES)

    def body(ins: Sequence[Any], out: Any) -> Any:
        return _Kernel(conv, finish.writer(ins[3:], out)).body(*ins[:3])

    return hvx.extern(shape, [X, W, S, *extras], body, "dsp_depthwise", finish.dtype)


@dataclass(frozen=True)
class _Kernel:
    """Emits the loops of one depthwise convolution."""

    conv: Depthwise
    writer: Writer

    @property
    def rows(self) -> Rows:
        return Rows(self.conv.window, self.conv.zero or 0)

    def body(self, X: Any, W: Any, S: Any) -> Any:
        height, width = self.conv.window.out_size
        with IRBuilder() as builder:
            with T.parallel(0, prod((self.conv.batch, self.conv.blocks, height))) as task:
                n, block, y = (
                    T.bind(each)
                    for each in (
                        task // (self.conv.blocks * height),
                        task // height % self.conv.blocks,
                        task % height,
                    )
                )
                held = self.rows.prepared(X, n, block, y)
                if width >= PIXELS:
                    with T.serial(0, width // PIXELS) as step:
                        self._pixels(held, W, S, (n, block, y), T.bind(step * PIXELS), PIXELS)
                if width % PIXELS:
                    self._pixels(held, W, S, (n, block, y), width - width % PIXELS, width % PIXELS)
            return builder.get()

    def _pixels(self, held: Any, W: Any, S: Any, place: tuple[Expr, Expr, Expr], x: Expr, count: int) -> None:
        """Up to four outputs of a row."""
        (n, block, y), index = place, lane(LANES)
        sums = [scratch(LANES, dtype="int32") for _ in range(count)]
        for total in sums:
            total[index] = T.buffer_proxy(S)[block, index]
        groups = ceil(self.conv.window.kernel[1] / _TAPS)
        with T.serial(0, self.conv.window.kernel[0]) as kh:
            if groups <= _UNROLLED:
                for group in range(groups):
                    self._taps(held, W, (block, kh, group), x, sums)
            else:
                with T.serial(0, groups) as group:
                    self._taps(held, W, (block, kh, group), x, sums)
        width = self.conv.window.out_size[1]
        row, pixel = n * self.conv.blocks + block, y * width + x
        self.writer.write(row, pixel, (n, block, y, x), [total[index] for total in sums])

    def _taps(self, held: Any, W: Any, place: tuple[Expr, Expr, Expr], x: Expr, sums: list[Any]) -> None:
        """Add four taps of a kernel row, those behind its end with weights of zero."""
        _, kh, group = place
        left = self.conv.window.kernel[1] - group * _TAPS if isinstance(group, int) else _TAPS
        read = [T.bind(self.rows.read(held, kh, group * _TAPS + tap, x)) for tap in range(min(left, _TAPS))]
        first, second, third, fourth = (*read, *[read[0]] * (_TAPS - len(read)))
        pairs = zip(hvx.shuffled(first, second, 1), hvx.shuffled(third, fourth, 1), strict=True)
        words = [word for pair in pairs for word in hvx.shuffled(*pair, 2)]
        for first in range(0, int(W.shape[-1]), VECTOR_BYTES):
            weights = T.bind(hvx.load(T.buffer_proxy(W), *place, first))
            for total, word in zip(sums, words, strict=False):
                total[lane(LANES)] = hvx.multiplied(total[lane(LANES)], word, weights)
