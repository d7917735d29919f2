"""Instructions of HVX that kernels name, on registers of 32 words: what LLVM takes a register for.

Names and semantics are those of the "Qualcomm Hexagon V65 HVX Programmer's Reference Manual".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from nnc.lowering.dsp.unit import LANES, VECTOR_BYTES

Expr = Any
Vector = Any  # int32x32, whatever its bytes stand for

_WORDS = f"int32x{LANES}"


def call(name: str, *operands: Expr, dtype: str = _WORDS) -> Expr:
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.hexagon.V6.{name}.128B", *operands)


def splat(value: int | Expr) -> Vector:
    """A word in every lane."""
    return T.broadcast(tirx.const(value, "int32") if isinstance(value, int) else value, LANES)


def splat_byte(value: int) -> Vector:
    """A byte, 0 to 255, in every lane of bytes."""
    word = value * 0x01010101
    return splat(word - 2**32 if word >= 2**31 else word)


def load(buffer: Any, *index: Expr) -> Vector:
    """The register that begins at a place of a buffer of bytes or of words."""
    *front, first = index
    count = VECTOR_BYTES if str(buffer.dtype).endswith("int8") else LANES
    read = buffer[(*front, T.ramp(first, 1, count))]
    return read if count == LANES else tirx.reinterpret(_WORDS, read)


def store(buffer: Any, vector: Vector, *index: Expr) -> None:
    """Store a register of bytes."""
    *front, first = index
    buffer[(*front, T.ramp(first, 1, VECTOR_BYTES))] = tirx.reinterpret(f"{buffer.dtype}x{VECTOR_BYTES}", vector)


def multiplied(sums: Vector, unsigned: Vector, signed: Vector) -> Vector:
    """The sums with the products of four bytes more in every lane."""
    return call("vrmpybusv.acc", sums, unsigned, signed)


def high_product(x: Vector, factor: Vector) -> Vector:
    """x * factor / 2^31, rounded."""
    return call("vmpyowh.rnd.sacc", call("vmpyewuh", x, factor), x, factor)


def shifted_right(x: Vector, bits: int) -> Vector:
    return call("vasrw", x, tirx.const(bits, "int32")) if bits else x


def shifted_left(x: Vector, bits: int) -> Vector:
    return call("vaslw", x, tirx.const(bits, "int32")) if bits else x


def clipped(x: Vector, low: int, high: int) -> Vector:
    return call("vminw", call("vmaxw", x, splat(low)), splat(high))


def packed(words: Sequence[Vector]) -> Vector:
    """Four registers of words as one of unsigned bytes in the same order, saturated."""
    low, high = (T.bind(call("vpackwh.sat", words[i + 1], words[i])) for i in (0, 2))
    return call("vpackhub.sat", high, low)


def widened(bytes_: Vector, count: int = 4) -> list[Vector]:
    """Unsigned bytes as registers of words, the first `count` of four."""
    halves = T.bind(call("vunpackub", bytes_, dtype=f"int32x{2 * LANES}"))
    words = []
    for half in ("lo", "hi")[: -(-count // 2)]:
        pair = T.bind(call("vunpackuh", call(half, halves), dtype=f"int32x{2 * LANES}"))
        words += [T.bind(call(part, pair)) for part in ("lo", "hi")]
    return words[:count]


def shuffled(low: Vector, high: Vector, size: int) -> tuple[Vector, Vector]:
    """Two registers with their elements of `size` bytes in turns: low[0], high[0], low[1], ... ."""
    pair = T.bind(call("vshuffvdd", high, low, tirx.const(-size, "int32"), dtype=f"int32x{2 * LANES}"))
    return T.bind(call("lo", pair)), T.bind(call("hi", pair))


def dealt(low: Vector, high: Vector, size: int) -> tuple[Vector, Vector]:
    """The reverse: every other element of `size` bytes of two registers, and the others."""
    pair = T.bind(call("vdealvdd", high, low, tirx.const(-size, "int32"), dtype=f"int32x{2 * LANES}"))
    return T.bind(call("lo", pair)), T.bind(call("hi", pair))


def extern(shape: Sequence[int], operands: Sequence[te.Tensor], body: Any, name: str, dtype: str) -> te.Tensor:
    """`te.extern` whose arrays all begin at a whole register, so that its loads need not be put together from two."""
    inputs = [tirx.decl_buffer(x.shape, x.dtype, x.op.name, data_alignment=VECTOR_BYTES) for x in operands]
    output = tirx.decl_buffer(tuple(shape), dtype, name, data_alignment=VECTOR_BYTES)
    return te.extern(
        [tuple(shape)],
        list(operands),
        lambda ins, outs: body(ins, outs[0]),
        name=name,
        in_buffers=inputs,
        out_buffers=[output],
    )
