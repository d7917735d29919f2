"""Images between plain NCHW and blocks of channels: a thread moves one vector."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.gpu.product import unravelled
from nnc.lowering.gpu.threads import elements
from nnc.lowering.kernels.relayout import blocked_shape
from nnc.lowering.kernels.unit import Unit

Shape = tuple[int, ...]


def to_blocked(X: te.Tensor, shape: Shape, block: int) -> te.Tensor:
    """Plain `[n, channels, height, width]` -> `[n, blocks, height, width, block]`, with zeros in the padding."""
    blocked = blocked_shape(shape, block)

    def body(ins: list[Any], outs: list[Any]) -> Any:
        source, out = T.buffer_proxy(ins[0]), T.buffer_proxy(outs[0])
        with IRBuilder() as builder:
            with elements(_pixels(blocked)) as task:
                n, group, y, x = unravelled(task, blocked[:4])
                for lane in range(block):
                    channel = group * block + lane
                    value = source[n, channel, y, x]
                    if lane >= shape[1] % block > 0:
                        value = tirx.if_then_else(channel < shape[1], value, tirx.const(0, X.dtype))
                    out[n, group, y, x, lane] = value
            return builder.get()

    return te.extern([blocked], [X], body, name="to_blocked", dtype=str(X.dtype))


def to_plain(X: te.Tensor, shape: Shape, block: int, unit: Unit) -> te.Tensor:
    """The opposite."""

    def body(ins: list[Any], outs: list[Any]) -> Any:
        source, out = T.buffer_proxy(ins[0]), T.buffer_proxy(outs[0])
        with IRBuilder() as builder:
            with elements(shape[0] * shape[1] * shape[2] * shape[3]) as task:
                n, channel, y, x = unravelled(task, shape)
                out[n, channel, y, x] = source[n, channel // block, y, x, channel % block]
            return builder.get()

    return te.extern([shape], [X], body, name="to_plain", dtype=str(X.dtype))


def _pixels(blocked: Shape) -> int:
    n, blocks, height, width, _ = blocked
    return n * blocks * height * width
