"""Seconds that kernels take on a machine, by cause, from few coefficients of how well an engine's code uses it.

The roofline of Williams, Waterman and Patterson (CACM 2009) with one roof per resource. Nothing overlaps perfectly: the
times of the resources add up, which fits the measurements better than the longest of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnc.efficiency import Efficiency
from nnc.simulation.machine import Machine
from nnc.simulation.work import CLASSES, Work

# Share of the caches that a network can count on from one inference to the next.
_RESIDENT = 0.7

# Kernels that write fewer values are computed by one thread: none is woken up for them.
_WORTH_SHARING = 4096

CAUSES = ("compute", "cache", "memory", "dispatch")


@dataclass(frozen=True)
class Cost:
    """Seconds of every kernel by cause, arrays [kernels]; and its bytes of memory traffic."""

    compute: np.ndarray
    cache: np.ndarray
    memory: np.ndarray
    dispatch: np.ndarray
    dram_bytes: np.ndarray

    @property
    def seconds(self) -> np.ndarray:
        return self.compute + self.cache + self.memory + self.dispatch


def cost(work: Work, machine: Machine, efficiency: Efficiency, resident: bool | np.ndarray) -> Cost:
    """What the kernels cost; `resident`: the weights stay in the caches from one inference to the next."""
    dram = _dram_bytes(work, machine, resident)
    everyone = machine.dram_bytes_per_second * efficiency.dram
    bandwidth = np.minimum(everyone, machine.alone_bytes_per_second * efficiency.alone)
    computes = work.macs + work.operations > 0  # copies are left to one thread
    spread = (machine.threads > 1) & (work.written >= _WORTH_SHARING) & computes
    starts = work.starts * (1 + efficiency.regroup * (work.groups - 1))
    return Cost(
        compute=_compute(work, machine, efficiency),
        cache=_cache(work, machine) / efficiency.cache,
        memory=dram / bandwidth,
        dispatch=1e-6 * starts * (efficiency.kernel_us + spread * efficiency.sync_us * np.log2(machine.threads)),
        dram_bytes=dram,
    )


def is_resident(weight_bytes: float | np.ndarray, machine: Machine) -> bool | np.ndarray:
    """Whether the caches hold all weights of a network, which take so many bytes."""
    return weight_bytes < _RESIDENT * machine.cache_bytes


def _compute(work: Work, machine: Machine, efficiency: Efficiency) -> np.ndarray:
    macs = work.macs * _slowness(work, efficiency)
    padded = np.ceil(work.channels / machine.multiple) * machine.multiple / work.channels
    moved = (work.read + work.written + work.operations) * efficiency.element
    busy = (macs * padded + moved) / machine.slots**efficiency.issue
    idle = macs * efficiency.occupancy * machine.lanes / np.maximum(work.written, 1)
    spread = efficiency.serial + (1 - efficiency.serial) / machine.threads
    return (busy + idle) / machine.macs_per_second * spread


def _slowness(work: Work, efficiency: Efficiency) -> np.ndarray:
    """How many times longer than at peak a multiplication takes: half of a share is reached at `narrow` terms."""
    shares = np.array([getattr(efficiency, name, 1.0) for name in CLASSES])[work.kind.astype(int)]
    dense = work.kind < CLASSES.index("depthwise")
    slowness = (1 + dense * efficiency.narrow / work.terms) / shares
    # Winograd multiplies matrices of channels at each of nine places; with too few of them, it is left.
    transformed = (1 + 9 * efficiency.narrow / work.terms) / efficiency.winograd
    direct = (1 + efficiency.narrow / work.terms) / efficiency.conv
    return np.where(work.kind == CLASSES.index("winograd"), np.minimum(transformed, direct), slowness)


def _cache(work: Work, machine: Machine) -> np.ndarray:
    """Cores share out the activations, and read what others wrote from the last level, and what is too large."""
    beyond = (machine.threads > 1) | (work.streamed_bytes > machine.private_bytes)
    private = work.streamed_bytes / machine.threads / machine.private_bytes_per_second
    return private + beyond * work.streamed_bytes / machine.shared_bytes_per_second


def _dram_bytes(work: Work, machine: Machine, resident: bool | np.ndarray) -> np.ndarray:
    streamed = np.where(work.streamed_bytes > machine.cache_bytes, work.streamed_bytes, 0.0)
    return streamed + np.where(resident, 0.0, work.weight_bytes)
