"""What a chip draws while cores of one of its units compute, from the figures of its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nnc.hardware.chip import Dtype, Memory, Unit
from nnc.simulation.machine import fastest


@dataclass(frozen=True)
class Power:
    """Idle power for as long as an inference takes, and above it the cores for as long as they are busy, and what every
    MAC and every byte of memory traffic takes.

    A figure that a target leaves out counts nothing: of the units of many chips only one of watts per core and energy
    per MAC is known.
    """

    idle_watts: float
    """Of the whole board."""
    active_watts: float
    """Of all cores that take part, above idle."""
    picojoule_per_mac: Mapping[Dtype, float]
    picojoule_per_byte: float

    def above_idle_mj(self, busy_seconds: float, macs: Mapping[Dtype, float], dram_bytes: float) -> float:
        """Millijoules above idle; `macs` by the type that they are computed in."""
        computed = sum(count * self.picojoule_per_mac[dtype] for dtype, count in macs.items())
        return self.active_watts * busy_seconds * 1e3 + (computed + dram_bytes * self.picojoule_per_byte) * 1e-9


def power(unit: Unit, dram: Memory, idle_watts: float | None, threads: int) -> Power | None:
    """With the fastest `threads` cores of the unit; None where the target does not tell it of the board, its memory and
    each of these cores.
    """
    cores = fastest(unit.clusters, threads)
    unknown = any(core.active_watts is None and core.picojoule_per_mac is None for core in cores)
    if idle_watts is None or dram.picojoule_per_byte is None or unknown:
        return None
    energies = [core.picojoule_per_mac or {} for core in cores]
    return Power(
        idle_watts=idle_watts,
        active_watts=sum(core.active_watts or 0.0 for core in cores),
        picojoule_per_mac={dtype: sum(each.get(dtype, 0.0) for each in energies) / len(cores) for dtype in unit.dtypes},
        picojoule_per_byte=dram.picojoule_per_byte,
    )
