"""The machine and the engine of a measured row: from a target that knows the chip, or from the type of its cores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from nnc import target as targets
from nnc.chip import Cluster, Dtype, Unit
from nnc.simulation import cores
from nnc.simulation.machine import Machine, host_ghz, machine
from nnc.target import Target
from nnc.validation.table import Row

# Two clusters at once: 4xA73+4xA53.
_MIXED = re.compile(r"(\d+)x\s*([A-Za-z][\w -]*?)\s*\+\s*(\d+)x\s*([A-Za-z][\w -]*)")

# Engines whose products of half-precision values are summed up in float32, which only tensor cores do at full rate:
# cuDNN's descriptors in PyTorch (aten/src/ATen/cudnn/Descriptors.h) and in TensorFlow ask for it.
_SUM_IN_FLOAT32 = {"pytorch", "tensorflow"}


@dataclass(frozen=True)
class Setting:
    """What a network was measured on."""

    machine: Machine
    family: str
    """Of instruction sets: "arm", "x86", "nvidia", "adreno"..."""
    dtype: Dtype


def setting(row: Row, among: Sequence[Target]) -> Setting | str:
    """The row's machine, or why there is none; `among` are targets that may describe the chip, the first that does."""
    dtype = row.arithmetic
    if dtype is None:
        return f"'{row.dtype}' is not one type of arithmetic"
    threads, clocks = _threads(row), _clocks(row)
    named = [chip for chip in among if row.chip in (*chip.chips, chip.name)]
    described = next((found for chip in named for found in _units(chip, row)), None)
    if described:
        return _described(row, *described, threads, clocks, dtype)
    return _from_cores(row, threads, clocks, dtype)


def known_targets() -> tuple[Target, ...]:
    """The shipped targets that say how tables call their chip."""
    return tuple(chip for name in targets.names() for chip in [_load(name)] if chip.chips)


_load = cache(targets.load)


def _units(chip: Target, row: Row) -> list[tuple[Target, Unit]]:
    return [(chip, unit) for unit in chip.units if unit.kind == row.unit]


def _threads(row: Row) -> int | None:
    return int(row.cores_used) if re.fullmatch("[1-9][0-9]*", row.cores_used) else None


def _clocks(row: Row) -> list[float]:
    """'2.36+1.84' -> [2.36, 1.84]; a lone number is that of all cores."""
    parts = row.clock_ghz.split("+")
    clocks = [float(part) for part in parts if re.fullmatch(r"\d+(\.\d+)?", part)]
    return clocks if len(clocks) == len(parts) and all(clocks) else []


def _described(
    row: Row, chip: Target, unit: Unit, threads: int | None, clocks: Sequence[float], dtype: Dtype
) -> Setting | str:
    if dtype not in unit.dtypes:
        return f"{chip.name}:{unit.name} does not compute in {dtype}"
    clusters = unit.clusters
    if unit.kind == "cpu":
        if threads is None:
            return f"cores_used is '{row.cores_used}'"
        clusters = tuple(each for each in clusters if _is_named(each, row.core_type)) or clusters
    threads = threads if unit.kind == "cpu" and threads else unit.threads
    if clocks:
        clusters = tuple(
            each.model_copy(update={"clock_ghz": clocks[min(index, len(clocks) - 1)]})
            for index, each in enumerate(clusters)
        )
    if threads > sum(each.count for each in clusters):
        clusters = unit.clusters
    on = unit.model_copy(update={"clusters": clusters})
    rate = _rate(row, clusters[0].macs_per_cycle, dtype)
    return Setting(machine(on, chip.dram, threads, rate, host_ghz(on, chip.units)), _family(unit), dtype)


def _rate(row: Row, macs_per_cycle: Mapping[Dtype, float], dtype: Dtype) -> Dtype:
    """The type at whose rate the engine multiplies values of `dtype`."""
    if row.unit != "gpu" or dtype != "float16" or row.engine not in _SUM_IN_FLOAT32:
        return dtype
    if "float32" not in macs_per_cycle:  # then the figures know no slower way to add up
        return dtype
    has_tensor_cores = macs_per_cycle["float16"] > 2 * macs_per_cycle["float32"]
    return dtype if has_tensor_cores else "float32"


def _is_named(cluster: Cluster, core_type: str) -> bool:
    named = cores.find("cpu", core_type)
    return named is not None and named is cores.find("cpu", cluster.core)


def _family(unit: Unit) -> str:
    return (unit.profile or unit.architecture).split("/")[0]


def _from_cores(row: Row, threads: int | None, clocks: Sequence[float], dtype: Dtype) -> Setting | str:
    clusters = _clusters(row, threads, clocks)
    if isinstance(clusters, str):
        return clusters
    first = clusters[0][0]
    if any(dtype not in core.macs_per_cycle for core, _, _ in clusters):
        return f"{first.name} does not compute in {dtype}"
    count = sum(number for _, number, _ in clusters)
    taken = min(threads or count, count) if first.kind == "cpu" else count
    rate = _rate(row, first.macs_per_cycle, dtype)
    return Setting(cores.chip(clusters, taken, rate), first.family, dtype)


def _clusters(row: Row, threads: int | None, clocks: Sequence[float]) -> list[tuple[cores.Core, int, float]] | str:
    """The clusters that take part, fastest first, or what is not known of them."""
    if mixed := _MIXED.search(row.core_type):
        kinds = [(int(mixed[1]), cores.find(row.unit, mixed[2])), (int(mixed[3]), cores.find(row.unit, mixed[4]))]
    elif row.unit == "cpu" and re.search(r"[+|/]", row.core_type):
        return f"'{row.core_type}' does not say which cores took part"
    else:
        kinds = [(0, cores.find(row.unit, row.core_type))]
    if any(core is None for _, core in kinds):
        return f"no core type is known for the {row.unit} '{row.core_type}'"
    if row.unit == "cpu" and threads is None:
        return f"cores_used is '{row.cores_used}'"
    given = clocks or [core.clock_ghz for _, core in kinds if core and core.clock_ghz]
    if not given:
        return f"clock_ghz is '{row.clock_ghz}'"
    return [
        (core, number or core.count or threads or 1, given[min(index, len(given) - 1)])
        for index, (number, core) in enumerate(kinds)
        if core
    ]
