"""Maxima of bytes in NCHW32c, four neighbouring outputs at once."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tvm import te
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.dsp import hvx
from nnc.lowering.dsp.finish import PIXELS, reshaped_as, store_bytes
from nnc.lowering.dsp.hvx import Expr
from nnc.lowering.dsp.rows import Rows
from nnc.lowering.dsp.unit import LANES
from nnc.lowering.kernels.pool import Pool
from nnc.lowering.kernels.registers import lane, scratch


def compute(X: te.Tensor, pool: Pool) -> te.Tensor:
    """The maxima `[batch, block, out height, out width, 32]` of unsigned bytes; `X` has the same layout."""
    rows, (height, width) = Rows(pool.window, 0), pool.window.out_size

    def body(ins: Sequence[Any], out: Any) -> Any:
        with IRBuilder() as builder:
            with T.parallel(0, prod((pool.batch, pool.blocks, height))) as task:
                target = reshaped_as(out, "uint8", (pool.batch * pool.blocks, height * width * LANES))
                row, y = T.bind(task // height), T.bind(task % height)
                held = rows.prepared(ins[0], row // pool.blocks, row % pool.blocks, y)

                def pixels(x: Expr, count: int) -> None:
                    largest = _largest(rows, held, x)
                    store_bytes(target, largest, row, (y * width + x) * LANES, count * LANES)

                if width >= PIXELS:
                    with T.serial(0, width // PIXELS) as step:
                        pixels(T.bind(step * PIXELS), PIXELS)
                if width % PIXELS:
                    pixels(width - width % PIXELS, width % PIXELS)
            return builder.get()

    shape = (pool.batch, pool.blocks, height, width, LANES)
    return hvx.extern(shape, [X], body, "dsp_max_pool", "uint8")


def _largest(rows: Rows, held: Any, x: Expr) -> Any:
    """The maxima of four outputs; pixels outside of the image are zero, the least of all bytes."""
    kernel, index = rows.window.kernel, lane(LANES)
    total = scratch(LANES, dtype="int32")
    total[index] = hvx.splat(0)
    with T.serial(0, kernel[0]) as kh:
        for kw in range(kernel[1]):
            total[index] = hvx.call("vmaxub", total[index], rows.read(held, kh, kw, x))
    return total[index]
