"""The cores of a target as the emulation needs them: a scheduling model, caches, and how fast these are."""

from __future__ import annotations

from dataclasses import dataclass

from nnc.errors import NncError
from nnc.hardware.chip import Cluster
from nnc.simulation import cores
from nnc.simulation.cores import Core as Type
from nnc.simulation.emulated.isa import BY_ARCHITECTURE, Isa
from nnc.simulation.emulated.mca import Processor
from nnc.target import Target

LINE = 64  # bytes; of every core that targets/ describes

_MOST_CORES = 64  # kMaxCores of caches.h

_L3_WAYS = 16

# What is assumed of a core that targets/cores.toml does not know: it runs ahead as far as LLVM's Cortex-A57 does.
_WINDOW, _L1D_WAYS, _L2_WAYS = 128, 4, 8


@dataclass(frozen=True)
class Core:
    """One core that takes part in an inference."""

    processor: Processor
    hertz: float
    window: int
    """Instructions among which it finds several misses to wait for at the same time; 0 where it runs in order."""
    l1d: tuple[int, int]
    """Sets and ways."""
    l2: tuple[int, int]
    l2_first: int
    """The first of the cores that share its level 2."""
    l2_line_cycles: float
    """Cycles to move a line from level 2."""
    l3_line_cycles: float
    memory_line_cycles: float


@dataclass(frozen=True)
class Chip:
    """The cores that share the work, and what they share."""

    isa: Isa
    cores: tuple[Core, ...]
    l3: tuple[int, int]
    """Sets and ways; zeros where there is none."""
    l3_line_seconds: float
    """To move a line from level 3, all cores together."""
    memory_line_seconds: float

    @property
    def cache_bytes(self) -> int:
        """Of all levels together."""
        shared = {core.l2_first: core.l2 for core in self.cores}
        caches = [*(core.l1d for core in self.cores), *shared.values(), self.l3]
        return sum(sets * ways for sets, ways in caches) * LINE

    @property
    def description(self) -> str:
        """What caches.h reads."""
        own = (f"{_times(core.l1d)}:{_times(core.l2)}:{core.l2_first}" for core in self.cores)
        return "/".join([*own, _times(self.l3)])


def chip(target: Target, threads: int) -> Chip:
    """The first `threads` cores of the target's unit.

    Raises NncError where the unit is no processor whose instructions are known, has wider vectors than QEMU, or where
    there are more threads than the plugin has caches for.
    """
    isa, unit = _isa(target), target.unit
    if threads > _MOST_CORES:
        hint = f"give at most {_MOST_CORES} with --threads"
        raise NncError(f"{target.label}: no more than {_MOST_CORES} cores are emulated, not {threads}", hint)
    memory = LINE / (target.dram.gbps * target.dram.efficiency * 1e9)
    l3 = LINE / (unit.l3_gbps * 1e9) if unit.l3_bytes and unit.l3_gbps else 0.0
    made: list[Core] = []
    for cluster in unit.clusters:
        made += _cores(cluster, target, isa, len(made), l3 or memory, memory)
    return Chip(isa, tuple(made[:threads]), _shape(unit.l3_bytes, _L3_WAYS) if l3 else (0, 0), l3, memory)


def _isa(target: Target) -> Isa:
    unit = target.unit
    isa = BY_ARCHITECTURE.get(unit.architecture) if unit.kind == "cpu" else None
    if isa is None:
        what = unit.architecture if unit.kind == "cpu" else f"a {unit.kind}"
        hint = "leave out --latency emulated, or choose a target with such a processor (nnc targets)"
        raise NncError(f"{target.label}: only code of AArch64 and x86-64 processors is emulated, not {what}", hint)
    if unit.vector_bits > isa.vector_bits:
        hint = 'leave out --latency emulated, or describe a target with mcpu = "x86-64-v3" and vector_bits = 256'
        raise NncError(f"{target.label}: QEMU executes no vectors of {unit.vector_bits} bits", hint)
    return isa


def _cores(cluster: Cluster, target: Target, isa: Isa, first: int, l3: float, memory: float) -> list[Core]:
    """The cores of a cluster, which are number `first` and up; seconds per line of what all share."""
    known, hertz = cores.find("cpu", cluster.core), cluster.clock_ghz * 1e9
    alone = LINE / (cluster.dram_gbps * 1e9) if cluster.dram_gbps else memory
    return [
        Core(
            processor=_processor(known, cluster, target, isa),
            hertz=hertz,
            window=known.window if known else _WINDOW,
            l1d=_shape(cluster.l1d_bytes, known.l1d_ways if known else _L1D_WAYS),
            l2=_shape(cluster.l2_bytes, known.l2_ways if known else _L2_WAYS),
            l2_first=first + index // cluster.l2_shared_by * cluster.l2_shared_by,
            l2_line_cycles=LINE / cluster.l2_bytes_per_cycle,
            l3_line_cycles=l3 * hertz,
            memory_line_cycles=max(alone, memory) * hertz,
        )
        for index in range(cluster.count)
    ]


def _processor(known: Type | None, cluster: Cluster, target: Target, isa: Isa) -> Processor:
    """What llvm-mca is asked about: the core type's model, or that of the core that the code is generated for.

    However many vectors of products the model starts per cycle, the core does not exceed the target's peak.
    """
    cpu = known.mca if known and known.mca else str(target.unit.tvm.get("mcpu", "generic"))
    dtypes = target.unit.dtypes if target.unit.int8_dot else [each for each in target.unit.dtypes if each != "int8"]
    products = [(isa.products[dtype], cluster.macs_per_cycle[dtype]) for dtype in dtypes if dtype in isa.products]
    limits = ((pattern, macs / count) for (pattern, count), macs in products)
    return Processor(cpu, isa.architecture, tuple(limits))


def _shape(size: int, ways: int) -> tuple[int, int]:
    """Sets and ways of a cache of `size` bytes."""
    return max(1, size // (LINE * ways)), ways


def _times(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
