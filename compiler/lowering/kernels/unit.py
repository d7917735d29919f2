"""What schedules depend on."""

from dataclasses import dataclass


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


def lanes_of(unit: Unit) -> int:
    """The float32 lanes of one vector register."""
    return unit.vector_bits // 32
