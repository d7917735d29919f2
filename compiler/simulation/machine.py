"""The cores of a unit that take part in an inference, as the figures that a roofline needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from nnc.hardware.chip import Cluster, Dtype, Memory, Unit

WIDTHS: dict[Dtype, int] = {"float32": 4, "float16": 2, "int8": 1}

#: Instructions that a loop of multiplications wants to issue per multiplication: itself, and its loads and its counter.
_SLOTS = 3.0

#: The clock of a host that nothing is known of, and that for which coefficients tell how long a kernel takes to start.
HOST_GHZ = 2.0


@dataclass(frozen=True)
class Machine:
    """Numbers, or arrays with one entry per kernel."""

    threads: float | np.ndarray
    macs_per_second: float | np.ndarray
    """Of one core, the slowest that takes part: work is split evenly, and everyone waits for it."""
    vector_macs_per_second: float | np.ndarray
    """Of one core without tensor cores, which only what sums over channels makes use of."""
    lanes: float | np.ndarray
    """Multiply-accumulates per cycle of all cores together: outputs that are computed at the same time."""
    slots: float | np.ndarray
    """Instructions that a core issues per multiplication, as a share of those that a loop wants; 1 is enough."""
    multiple: float | np.ndarray
    """Channels that one vector holds."""
    private_bytes: float | np.ndarray
    """Caches that belong to the cores, all together."""
    cache_bytes: float | np.ndarray
    """Of the last level, or of the private ones where these hold more."""
    private_bytes_per_second: float | np.ndarray
    """From the private cache into one core."""
    shared_bytes_per_second: float | np.ndarray
    """From the last level into all cores together."""
    dram_bytes_per_second: float | np.ndarray
    """From the memory into all cores that there are."""
    alone_bytes_per_second: float | np.ndarray
    """From the memory into as many cores as take part, by what each can draw."""
    host_ghz: float | np.ndarray
    """Clock of the core that starts the kernels."""


def machine(unit: Unit, dram: Memory, threads: int, dtype: Dtype, host_ghz: float) -> Machine:
    """The first `threads` cores of a unit, which computes in `dtype` what a core of `host_ghz` starts."""
    cores = fastest(unit.clusters, threads)
    slowest, count = cores[-1], len(cores)
    hertz = slowest.clock_ghz * 1e9
    private = sum(core.l2_bytes / core.l2_shared_by for core in cores)
    alone = sum(core.dram_gbps or math.inf for core in cores)
    from_private = slowest.l2_bytes_per_cycle * hertz
    return Machine(
        threads=count,
        macs_per_second=slowest.macs_per_cycle[dtype] * hertz,
        vector_macs_per_second=_vector_macs(slowest, dtype) * hertz,
        lanes=slowest.macs_per_cycle[dtype] * count,
        slots=_slots(slowest, unit.vector_bits),
        multiple=unit.channel_multiple,
        private_bytes=private,
        cache_bytes=max(private, unit.l3_bytes),
        private_bytes_per_second=from_private,
        # A level 2 that all cores share is the last level; it gives each of them what it gives one.
        shared_bytes_per_second=unit.l3_gbps * 1e9 if unit.l3_bytes and unit.l3_gbps else from_private * count,
        dram_bytes_per_second=dram.gbps * dram.efficiency * 1e9,
        alone_bytes_per_second=alone * 1e9,
        host_ghz=host_ghz,
    )


def host_ghz(unit: Unit, units: Iterable[Unit]) -> float:
    """The clock of what starts the kernels of `unit`: a CPU itself, the chip's CPU for its GPU."""
    hosts = [unit] if unit.kind == "cpu" else [each for each in units if each.kind == "cpu" and unit.kind == "gpu"]
    return hosts[0].clusters[0].clock_ghz if hosts else HOST_GHZ


def stacked(machines: Sequence[Machine], kernels: Sequence[int]) -> Machine:
    """Each machine repeated for its number of kernels."""
    return Machine(
        *(np.repeat([float(getattr(each, field.name)) for each in machines], kernels) for field in fields(Machine))
    )


def fastest(clusters: tuple[Cluster, ...], threads: int) -> list[Cluster]:
    """The cluster of each of the first `threads` cores; clusters are listed fastest first."""
    return [cluster for cluster in clusters for _ in range(cluster.count)][:threads]


def _vector_macs(core: Cluster, dtype: Dtype) -> float:
    """Multiply-accumulates of vectors per cycle: as many times those of float32 as the values are narrower."""
    peak, floats = core.macs_per_cycle[dtype], core.macs_per_cycle.get("float32")
    return min(peak, floats * WIDTHS["float32"] / WIDTHS[dtype]) if floats else peak


def _slots(core: Cluster, vector_bits: int) -> float:
    if core.issue_width is None:
        return 1.0
    macs = next(core.macs_per_cycle[dtype] * WIDTHS[dtype] for dtype in WIDTHS if dtype in core.macs_per_cycle)
    return min(1.0, core.issue_width / (macs * 8 / vector_bits) / _SLOTS)
