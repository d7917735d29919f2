"""What schedules depend on."""

from dataclasses import dataclass

from nnc.lowering.kernels.int8_dot import Dot, Instruction


@dataclass(frozen=True)
class Unit:
    """The figures of the cores that share each kernel: they choose register tiles and blockings."""

    vector_bits: int
    vector_registers: int
    threads: int
    l1d_bytes: int
    l2_bytes: int
    memory_bytes_per_cycle: float
    """What one thread gets from memory while all of them read."""
    dot: Instruction = "vpmaddwd"
    """What multiplies bytes."""


def lanes_of(unit: Unit) -> int:
    """The float32 lanes of one vector register."""
    return unit.vector_bits // 32


def dot_of(unit: Unit) -> Dot:
    """The instruction that multiplies bytes, on vectors of the unit."""
    return Dot(unit.dot, lanes_of(unit))
