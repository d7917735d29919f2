"""Between plain NCHW and blocks of channels: bytes of as many planes as a block has, interleaved by shuffles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.dsp import hvx
from nnc.lowering.dsp.hvx import Expr, Vector
from nnc.lowering.dsp.unit import VECTOR_BYTES
from nnc.lowering.kernels.loops import reshaped, shared
from nnc.lowering.kernels.registers import when
from nnc.lowering.kernels.relayout import blocked_shape
from nnc.lowering.kernels.unit import Unit

Shape = tuple[int, ...]
Place = tuple[Expr, Expr, Expr]  # image, block of channels, first pixel


def to_blocked(X: te.Tensor, shape: Shape, block: int) -> te.Tensor:
    """Plain values of `shape` to blocked; the channels that fill the last block are zero."""

    def tile(plain: Any, blocked: Any, place: Place, valid: int) -> None:
        image, group, pixel = place
        read = [T.bind(hvx.load(plain, image, group * block + c, pixel)) for c in range(valid)]
        for r, register in enumerate(interleaved([*read, *[hvx.splat(0)] * (block - valid)])):
            hvx.store(blocked, register, image, group, pixel * block + r * VECTOR_BYTES)

    def value(plain: Any, blocked: Any, place: Place, valid: int) -> None:
        image, group, pixel = place
        with T.serial(0, valid) as c:
            blocked[image, group, pixel * block + c] = plain[image, group * block + c, pixel]
        if valid < block:
            with T.serial(valid, block) as c:
                blocked[image, group, pixel * block + c] = tirx.const(0, str(X.dtype))

    return hvx.extern(
        blocked_shape(shape, block),
        [X],
        lambda ins, out: _body(ins[0], out, shape, block, tile, value),
        "dsp_to_blocked",
        str(X.dtype),
    )


def to_plain(X: te.Tensor, shape: Shape, block: int, unit: Unit) -> te.Tensor:
    """Blocked values to plain NCHW of `shape`."""

    def tile(plain: Any, blocked: Any, place: Place, valid: int) -> None:
        image, group, pixel = place
        read = [T.bind(hvx.load(blocked, image, group, pixel * block + r * VECTOR_BYTES)) for r in range(block)]
        for c, register in enumerate(separated(read)[:valid]):
            hvx.store(plain, register, image, group * block + c, pixel)

    def value(plain: Any, blocked: Any, place: Place, valid: int) -> None:
        image, group, pixel = place
        with T.serial(0, valid) as c:
            plain[image, group * block + c, pixel] = blocked[image, group, pixel * block + c]

    return hvx.extern(
        shape, [X], lambda ins, out: _body(out, ins[0], shape, block, tile, value), "dsp_to_plain", str(X.dtype)
    )


Move = Callable[[Any, Any, Place, int], None]


def _body(plain: Any, blocked: Any, shape: Shape, block: int, tile: Move, value: Move) -> Any:
    """Move bytes in tiles of 128 pixels, the last of which ends with the image; what is smaller, pixel by pixel."""
    n, channels, height, width = shape
    pixels, blocks, last = height * width, ceil(channels / block), channels % block or block
    wide = pixels >= VECTOR_BYTES and str(plain.dtype) == "uint8"
    with IRBuilder() as builder:
        with shared(n * blocks, n * channels * pixels) as task:
            rows = reshaped(plain, (n, channels, pixels))
            columns = reshaped(blocked, (n, blocks, pixels * block))
            image, group = T.bind(task // blocks), T.bind(task % blocks)
            parts = [(block, group < blocks - 1), (last, group == blocks - 1)]
            for valid, condition in [(block, None)] if last == block else parts[blocks == 1 :]:
                with when(condition), T.serial(0, ceil(pixels / VECTOR_BYTES) if wide else pixels) as step:
                    pixel = T.bind(tirx.min(step * VECTOR_BYTES, pixels - VECTOR_BYTES)) if wide else step
                    (tile if wide else value)(rows, columns, (image, group, pixel), valid)
        return builder.get()


def interleaved(streams: Sequence[Vector]) -> list[Vector]:
    """Registers of the first bytes of all streams, then their second bytes, and so on; a power of two of them."""
    count = len(streams)
    if count == 1:
        return list(streams)
    low, high = interleaved(streams[: count // 2]), interleaved(streams[count // 2 :])
    return [each for pair in zip(low, high, strict=True) for each in hvx.shuffled(*pair, count // 2)]


def separated(registers: Sequence[Vector]) -> list[Vector]:
    """The reverse of `interleaved`."""
    count = len(registers)
    if count == 1:
        return list(registers)
    halves = [hvx.dealt(registers[i], registers[i + 1], count // 2) for i in range(0, count, 2)]
    return [each for part in zip(*halves, strict=True) for each in separated(part)]
