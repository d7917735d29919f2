"""Depthwise convolution: a thread computes `columns` neighbouring outputs of a block of channels.

The pixels of an input row serve all of them, and all taps, from registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from tvm import te
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.gpu.arithmetic import local, splat, vector
from nnc.lowering.gpu.conv2d import guarded
from nnc.lowering.gpu.product import unravelled
from nnc.lowering.gpu.threads import elements
from nnc.lowering.gpu.tile import LANES, RESIDENT_PER_LANE
from nnc.lowering.gpu.unit import Gpu
from nnc.lowering.kernels import depthwise
from nnc.lowering.kernels.depthwise import Depthwise, Plan
from nnc.lowering.kernels.registers import Epilogue, as_float, when

Expr = Any


def best_plan(conv: Depthwise, unit: Gpu) -> Plan:
    """As many columns as the registers hold, as long as there are threads enough to fill the unit."""
    rows = conv.batch * conv.blocks * conv.window.out_size[0]
    wanted = RESIDENT_PER_LANE * unit.macs_per_cycle * unit.cores / LANES
    columns = 1
    while (
        columns < 8
        and _inputs(conv, 2 * columns) + 2 * columns <= unit.vectors_per_thread // 4
        and rows * ceil(conv.window.out_size[1] / (2 * columns)) >= wanted
    ):
        columns *= 2
    return Plan(min(columns, conv.window.out_size[1]))


def _inputs(conv: Depthwise, columns: int) -> int:
    """The pixels of a row that so many outputs read."""
    window = conv.window
    return (columns - 1) * window.strides[1] + (window.kernel[1] - 1) * window.dilations[1] + 1


def pack(W: np.ndarray, conv: Depthwise) -> np.ndarray:
    """As on a CPU."""
    return depthwise.pack(W, conv)


def compute(
    X: te.Tensor,
    W: te.Tensor,
    conv: Depthwise,
    plan: Plan,
    extras: Sequence[te.Tensor] = (),
    epilogue: Epilogue = lambda value, index: value,
    dtype: str = "float32",
) -> te.Tensor:
    """As `nnc.lowering.kernels.depthwise.compute`."""
    kernel = _Kernel(conv, plan, epilogue)
    return te.extern(
        [(conv.batch, conv.blocks, *conv.window.out_size, conv.block)],
        [X, W, *extras],
        lambda ins, outs: kernel.body(T.buffer_proxy(ins[0]), T.buffer_proxy(ins[1]), outs[0]),
        name="depthwise",
        dtype=dtype,
    )


@dataclass(frozen=True)
class _Kernel:
    conv: Depthwise
    plan: Plan
    epilogue: Epilogue

    def body(self, X: Any, W: Any, out: Any) -> Any:
        conv, window, columns = self.conv, self.conv.window, self.plan.columns
        tiles = ceil(window.out_size[1] / columns)
        with IRBuilder() as builder:
            with elements(conv.batch * conv.blocks * window.out_size[0] * tiles) as task:
                place = unravelled(task, (conv.batch, conv.blocks, window.out_size[0], tiles))
                n, block, y = place[:3]
                x = T.bind(place[3] * columns)
                sums = self._sums(X, W, n, block, y, x)
                for c in range(columns):
                    ragged = window.out_size[1] % columns != 0 and c > 0
                    with when(x + c < window.out_size[1] if ragged else None):
                        value = local(LANES)
                        value[vector()] = sums[c]
                        with T.vectorized(0, LANES) as lane:
                            index = (n, block, y, x + c, lane)
                            T.buffer_store(out, self.epilogue(value[lane], index), index)
            return builder.get()

    def _sums(self, X: Any, W: Any, n: Expr, block: Expr, y: Expr, x: Expr) -> Any:
        """The sums of `columns` outputs."""
        window, columns = self.conv.window, self.plan.columns
        sums = local(columns, dtype="float32x4")
        for c in range(columns):
            sums[c] = splat(0.0)
        readers = self._readers()
        with T.serial(0, window.kernel[0]) as kh:
            row = T.bind(window.row(y, kh))
            weights = local(window.kernel[1], dtype="float32x4")
            for kw in range(window.kernel[1]):
                weights[kw] = W[block, kh, kw, vector()]
            for offset, reading in readers.items():
                at = T.bind(window.column(x, 0) + offset)
                loaded = as_float(X[n, block, row, at, vector()], LANES, self.conv.zero or 0)
                pixel = local(1, dtype="float32x4")
                pixel[0] = guarded(window, row, at, loaded, splat(0.0), columns)
                for c, kw in reading:
                    sums[c] = sums[c] + pixel[0] * weights[kw]
        return sums

    def _readers(self) -> dict[int, list[tuple[int, int]]]:
        """Who reads a pixel: its offset from the first -> (output, tap)."""
        window = self.conv.window
        found: dict[int, list[tuple[int, int]]] = {}
        for c in range(self.plan.columns):
            for kw in range(window.kernel[1]):
                found.setdefault(c * window.strides[1] + kw * window.dilations[1], []).append((c, kw))
        return dict(sorted(found.items()))
