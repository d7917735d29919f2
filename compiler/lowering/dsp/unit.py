"""What schedules for a DSP depend on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from nnc.lowering.kernels.unit import Unit
from nnc.target import Target

VECTOR_BYTES = 128
"""Of one HVX register in the mode that code is generated for."""

LANES = VECTOR_BYTES // 4
"""Sums of one register, and the channels of a block."""

_PAIR_BITS, _PAIRS = 64, 14
"""Pairs of the general registers r0 to r27, which hold floats too; the others have fixed uses (V65 manual)."""


@dataclass(frozen=True)
class Dsp(Unit):
    """The figures of the scalar core, which computes floats one by one, and `vectors`: those of the vector unit."""

    alignment: ClassVar[int] = VECTOR_BYTES

    vectors: Unit = field(kw_only=True)


def dsp_unit(target: Target, threads: int) -> Dsp:
    """The figures of the first `threads` vector contexts of a target's DSP."""
    unit, memory = target.unit, target.dram.gbps * target.dram.efficiency
    per_cycle = memory / threads / unit.clusters[0].clock_ghz
    memory_figures = (unit.l1d_bytes, unit.l2_bytes, per_cycle)
    vectors = Unit(8 * VECTOR_BYTES, unit.vector_registers, threads, *memory_figures, "vrmpy")
    return Dsp(_PAIR_BITS, _PAIRS, threads, *memory_figures, "vrmpy", vectors=vectors)
