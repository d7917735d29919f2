"""Machines of chips that no target describes: from the type of their cores, a clock and a number of cores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from nnc import toml
from nnc.hardware.chip import Cluster, Dtype, Memory, Unit
from nnc.simulation.machine import HOST_GHZ, Machine, machine


class Core(toml.Table):
    """The figures of one core of a type, and what chips with such cores usually have around them."""

    name: str
    names: Annotated[tuple[str, ...], Field(strict=False)]
    """What tables call it."""
    kind: Literal["cpu", "gpu", "dsp"]
    family: str
    """Of instruction sets: the first part of the names of profiles."""
    vector_bits: PositiveInt
    issue_width: PositiveInt | None = None
    macs_per_cycle: dict[Dtype, PositiveFloat]
    l1d_bytes: PositiveInt
    l2_bytes: PositiveInt
    l2_shared_by: PositiveInt = 1
    l2_bytes_per_cycle: PositiveFloat
    l3_bytes: Annotated[int, Field(ge=0)] = 0
    l3_bytes_per_cycle: PositiveFloat = 16.0
    """From the last level into all cores together."""
    dram_gbps: PositiveFloat
    """What streaming code sees of the whole memory."""
    core_dram_gbps: PositiveFloat | None = None
    count: PositiveInt | None = None
    """Cores that take part, where this doesn't depend on the row: those of a GPU."""
    clock_ghz: PositiveFloat | None = None
    """Where rows give none."""
    host_ghz: PositiveFloat = HOST_GHZ
    """Of the CPU of chips with such a GPU."""
    mca: str | None = None
    """LLVM's name of the core, or of one that stands for it, whose scheduling model `nnc.simulation.emulated` asks."""
    window: Annotated[int, Field(ge=0)] = 0
    """Instructions among which the core finds several misses to wait for at the same time; 0 where it runs in order."""
    l1d_ways: PositiveInt = 4
    l2_ways: PositiveInt = 8

    def cluster(self, count: int, clock_ghz: float) -> Cluster:
        return Cluster.model_construct(
            name="core",
            core=self.name,
            count=count,
            clock_ghz=clock_ghz,
            macs_per_cycle=self.macs_per_cycle,
            issue_width=self.issue_width,
            l1d_bytes=self.l1d_bytes,
            l2_bytes=self.l2_bytes,
            l2_shared_by=self.l2_shared_by,
            l2_bytes_per_cycle=self.l2_bytes_per_cycle,
            dram_gbps=self.core_dram_gbps,
        )


def chip(clusters: list[tuple[Core, int, float]], threads: int, dtype: Dtype) -> Machine:
    """`threads` cores of clusters (core, count, clock in GHz), fastest first."""
    first, _, clock = clusters[0]
    lanes = first.vector_bits // 32
    host_ghz = clock if first.kind == "cpu" else first.host_ghz
    unit = Unit.model_construct(
        clusters=tuple(core.cluster(count, clock) for core, count, clock in clusters),
        vector_bits=first.vector_bits,
        channel_multiple=lanes,
        l3_bytes=first.l3_bytes,
        l3_gbps=first.l3_bytes_per_cycle * clock,
    )
    return machine(unit, Memory(gbps=first.dram_gbps, efficiency=1.0), threads, dtype, host_ghz)


def find(kind: str, core_type: str) -> Core | None:
    """The core type whose name is in `core_type`, the longest where there are several."""
    found = [(len(name), core) for name, core in _by_name(kind).items() if _names(name, core_type)]
    return max(found, key=lambda each: each[0])[1] if found else None


def _names(name: str, core_type: str) -> bool:
    # "A7" is not in "A78", and "X1" not in "X16".
    return re.search(rf"(?<![0-9A-Za-z]){re.escape(name)}(?![0-9])", core_type, re.IGNORECASE) is not None


def _by_name(kind: str) -> Mapping[str, Core]:
    return {name: core for core in cores() if core.kind == kind for name in core.names}


@cache
def cores() -> tuple[Core, ...]:
    """The core types of targets/cores.toml."""
    text = resources.files("nnc.targets").joinpath("cores.toml").read_text("utf-8")
    return tuple(Core.model_validate(table) for table in toml.parse(text, "targets/cores.toml")["core"])
