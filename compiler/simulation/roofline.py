"""Seconds that kernels take on a machine, by cause, from few coefficients of how well an engine's code uses it.

The roofline of Williams, Waterman and Patterson (CACM 2009) with one roof per resource. Nothing overlaps perfectly: the
times of the resources add up, which fits the measurements better than the longest of them; only memory traffic is
hidden behind multiplications to a part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnc.hardware.efficiency import Efficiency
from nnc.simulation.machine import HOST_GHZ, Machine
from nnc.simulation.work import CLASSES, Work

# Share of the caches that a network can count on from one inference to the next.
_RESIDENT = 0.7

# Kernels with less to do, in multiplications and values, wake up no thread that has gone to sleep.
_WORTH_SHARING = 32_768

# The exponent of the norm of computing and memory traffic: 1 adds the two up, infinity is the longer one.
_OVERLAP = 1.5

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
        computed = (self.compute**_OVERLAP + self.memory**_OVERLAP) ** (1 / _OVERLAP)
        return computed + self.cache + self.dispatch


def cost(work: Work, machine: Machine, efficiency: Efficiency, resident: float | np.ndarray) -> Cost:
    """What the kernels cost; `resident`: the share of the weights that stays in the caches between inferences."""
    dram = _dram_bytes(work, machine, resident)
    everyone = machine.dram_bytes_per_second * efficiency.dram
    bandwidth = np.minimum(everyone, machine.alone_bytes_per_second * efficiency.alone)
    amount = work.macs + work.read + work.written + work.operations
    spread = (machine.threads > 1) & _is_shared(work) & (amount >= _WORTH_SHARING)
    starts = efficiency.unfused * work.followers + work.starts * (1 + efficiency.regroup * (work.groups - 1))
    start_us = efficiency.kernel_us * HOST_GHZ / machine.host_ghz
    return Cost(
        compute=_compute(work, machine, efficiency),
        cache=_cache(work, machine, efficiency) / efficiency.cache,
        memory=dram / bandwidth,
        dispatch=1e-6 * starts * (start_us + spread * efficiency.sync_us * np.log2(machine.threads)),
        dram_bytes=dram,
    )


def resident_share(weight_bytes: float | np.ndarray, machine: Machine) -> float | np.ndarray:
    """The share of a network's weights, so many bytes, that the caches keep: none of twice what they hold."""
    return np.clip(2 - weight_bytes / (_RESIDENT * machine.cache_bytes), 0, 1)


def _is_shared(work: Work) -> np.ndarray:
    """Which kernels all threads take part in; copies are left to one."""
    return work.macs + work.operations > 0


def _compute(work: Work, machine: Machine, efficiency: Efficiency) -> np.ndarray:
    channels = np.ceil(work.channels / machine.multiple) * machine.multiple  # of whole vectors
    padded = work.macs * channels / work.channels
    slowness = _slowness(work, np.inf, work.tiles, efficiency)  # of multiplying alone
    vectors = machine.vector_macs_per_second
    rate = np.where(_is_dense(work), machine.macs_per_second, vectors)
    moved = (_passed(work, efficiency) + work.operations) * efficiency.element + work.functions * efficiency.function
    issued = machine.slots**efficiency.issue
    busy = (padded * _slowness(work, channels, work.tiles, efficiency) + moved * rate / vectors) / issued
    waiting = work.macs * _slowness(work, np.inf, 1.0, efficiency)  # for one sum
    # One step of a tensor core sums up several terms.
    lanes = machine.lanes * vectors / machine.macs_per_second
    idle = waiting * efficiency.occupancy * lanes / np.maximum(work.written, 1)
    tasks = channels / machine.multiple
    uneven = (np.ceil(tasks / machine.threads) * machine.threads / tasks) ** efficiency.uneven
    parallel = busy + (uneven - 1) * padded * slowness / issued + idle  # what is moved is shared out evenly
    spread = efficiency.serial * (busy + idle) + (1 - efficiency.serial) / machine.threads * parallel
    return np.where(_is_shared(work), spread, busy + idle) / rate


def _is_dense(work: Work) -> np.ndarray:
    """Which kernels are products of matrices: they sum over channels."""
    return work.kind < CLASSES.index("depthwise")


def _passed(work: Work, efficiency: Efficiency) -> np.ndarray:
    """Values that are read and written, those of nodes that follow and are not fused too."""
    return work.read + work.written + efficiency.unfused * work.followed


def _slowness(
    work: Work, channels: float | np.ndarray, tiles: float | np.ndarray, efficiency: Efficiency
) -> np.ndarray:
    """How many times longer than at peak a multiplication takes: half of a share is reached at `narrow` terms."""
    shares = np.array([getattr(efficiency, name, 1.0) for name in CLASSES])[work.kind.astype(int)]
    dense = _is_dense(work)
    # Every input of a 1x1 convolution is moved once, of others once per place of the window.
    rearranged = efficiency.packing / channels * np.where(work.kind == CLASSES.index("pointwise"), 0.25, 1.0)
    slowness = (1 + dense * (efficiency.narrow / work.terms + rearranged)) / shares
    # Winograd multiplies matrices of channels at each of nine places; with too few of them, it is left.
    transformed = tiles * (1 + 9 * efficiency.narrow / work.terms + rearranged) / efficiency.winograd
    direct = (1 + efficiency.narrow / work.terms + rearranged) / efficiency.conv
    return np.where(work.kind == CLASSES.index("winograd"), np.minimum(transformed, direct), slowness)


def _cache(work: Work, machine: Machine, efficiency: Efficiency) -> np.ndarray:
    """Cores share out the activations, and read what others wrote from the last level, and what is too large.

    What works channel by channel reads what the same core wrote.
    """
    by_channel = (work.kind >= CLASSES.index("depthwise")) & (work.macs + work.operations > 0)
    beyond = ((machine.threads > 1) & ~by_channel) | (work.streamed_bytes > machine.private_bytes)
    streamed = work.streamed_bytes * _passed(work, efficiency) / np.maximum(work.read + work.written, 1)
    private = streamed / np.where(_is_shared(work), machine.threads, 1) / machine.private_bytes_per_second
    return private + beyond * streamed / machine.shared_bytes_per_second


def _dram_bytes(work: Work, machine: Machine, resident: float | np.ndarray) -> np.ndarray:
    streamed = np.where(work.streamed_bytes > machine.cache_bytes, work.streamed_bytes, 0.0)
    return streamed + (1 - resident) * work.weight_bytes
