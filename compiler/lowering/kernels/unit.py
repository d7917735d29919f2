"""What schedules depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from nnc.lowering.kernels.int8_dot import Dot, Instruction


@dataclass(frozen=True)
class Unit:
    """The figures of the cores that share each kernel: they choose register tiles and blockings."""

    alignment: ClassVar[int] = 64
    """Bytes; of every tensor that a kernel reads or writes."""

    vector_bits: int
    vector_registers: int
    threads: int
    l1d_bytes: int
    l2_bytes: int
    memory_bytes_per_cycle: float
    """What one thread gets from memory while all of them read."""
    dot: Instruction = "vpmaddwd"
    """What multiplies bytes."""
    halves: bool = False
    """Whether it computes in float16."""
    element_bits: int = 32
    """Of the floats that kernels compute in."""

    def of(self, dtype: str) -> Self:
        """The same unit, as kernels that compute in `dtype` see it."""
        return replace(self, element_bits=16 if dtype == "float16" else 32)


def lanes_of(unit: Unit) -> int:
    """The lanes of one vector register: of float32, or of float16 where that is computed in."""
    return unit.vector_bits // unit.element_bits


def dot_of(unit: Unit) -> Dot:
    """The instruction that multiplies bytes, on vectors of the unit."""
    return Dot(unit.dot, lanes_of(unit))
