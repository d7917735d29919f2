"""The machine and the engine of a measured row: from a target that knows the chip, or from the type of its cores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from nnc import target as targets
from nnc.display import units
from nnc.hardware.chip import Cluster, Dtype, Unit
from nnc.hardware.efficiency import Efficiency
from nnc.simulation import cores
from nnc.simulation.machine import Machine, host_ghz, machine
from nnc.simulation.power import Power, power
from nnc.target import Target
from nnc.validation.table import Row

# So many cores of a kind, as in 4xA73.
_COUNTED = re.compile(r"\s*([1-9]\d{0,3})x\s*([A-Za-z][\w -]*?)\s*")

# Engines whose products of half-precision values are summed up in float32, which only tensor cores do at full rate:
# cuDNN's descriptors in PyTorch (aten/src/ATen/cudnn/Descriptors.h) and in TensorFlow ask for it.
_SUM_IN_FLOAT32 = {"pytorch", "tensorflow"}

Kind = tuple[int | None, str]
"""How many cores of a row, and what they are called."""


@dataclass(frozen=True)
class Setting:
    """What a network was measured on."""

    machine: Machine
    family: str
    """Of instruction sets: "arm", "x86", "nvidia", "adreno"..."""
    dtype: Dtype
    efficiency: Efficiency | None = None
    """The unit's own coefficients, whatever the row's engine; None where no target describes the chip."""
    power: Power | None = None
    """Where the target gives figures of it."""


def setting(row: Row, among: Sequence[Target]) -> Setting | str:
    """The row's machine, or why there is none; `among` are targets that may describe the chip, the first that does."""
    dtype = row.arithmetic
    if dtype is None:
        return f"'{row.dtype}' is not one type of arithmetic"
    kinds, threads = _kinds(row), _threads(row)
    if isinstance(kinds, str):
        return kinds
    if row.unit == "cpu" and threads is None:
        return f"cores_used is '{row.cores_used}'"
    named = [chip for chip in among if row.chip in (*chip.chips, chip.name)]
    described = next((found for chip in named for found in _units(chip, row)), None)
    if described:
        return _described(row, *described, kinds, threads, dtype)
    return _from_cores(row, kinds, threads, dtype)


def known_targets() -> tuple[Target, ...]:
    """The shipped targets that say how tables call their chip."""
    return tuple(chip for name in targets.names() for chip in [_load(name)] if chip.chips)


_load = cache(targets.load)


def _units(chip: Target, row: Row) -> list[tuple[Target, Unit]]:
    return [(chip, unit) for unit in chip.units if unit.kind == row.unit]


def _threads(row: Row) -> int | None:
    return int(row.cores_used) if re.fullmatch("[1-9][0-9]{0,3}", row.cores_used) else None


def _clocks(row: Row) -> list[float]:
    """'2.36+1.84' -> [2.36, 1.84]; a lone number is that of all cores."""
    parts = row.clock_ghz.split("+")
    clocks = [float(part) for part in parts if re.fullmatch(r"\d+(\.\d+)?", part)]
    return clocks if len(clocks) == len(parts) and all(clocks) else []


def _kinds(row: Row) -> list[Kind] | str:
    """'4xA73+4xA53 (some phone)' -> [(4, 'A73'), (4, 'A53')]; None for a number that it does not say."""
    if row.unit != "cpu":
        return [(None, row.core_type)]
    outside, *inside = re.split("[()]", row.core_type)
    for text in (outside, *(each for each in inside if "+" in each)):
        counted = [found for part in text.split("+") if (found := _COUNTED.fullmatch(part))]
        if len(counted) == text.count("+") + 1:
            return [(int(found[1]), found[2]) for found in counted]
    if re.search("[+|/]", row.core_type):
        return f"'{row.core_type}' does not say which cores took part"
    return [(None, row.core_type)]


def _too_few(row: Row, count: int) -> str:
    return f"cores_used is '{row.cores_used}', of {units.plural(count, 'core')}"


def _described(
    row: Row, chip: Target, unit: Unit, kinds: Sequence[Kind], threads: int | None, dtype: Dtype
) -> Setting | str:
    if dtype not in unit.dtypes:
        return f"{chip.name}:{unit.name} does not compute in {dtype}"
    clusters = _named(unit, kinds) if unit.kind == "cpu" else list(unit.clusters)
    threads = threads if unit.kind == "cpu" and threads else unit.threads
    count = sum(each.count for each in clusters)
    if threads > count:
        return _too_few(row, count)
    if clocks := _clocks(row):
        clusters = [
            targets.clocked(each, each.count, clocks[min(index, len(clocks) - 1)])
            for index, each in enumerate(clusters)
        ]
    clusters.sort(key=lambda each: -each.macs_per_cycle[dtype] * each.clock_ghz)  # whatever the row's order
    on = unit.model_copy(update={"clusters": tuple(clusters)})
    rate = _rate(row, clusters[0].macs_per_cycle, dtype)
    return Setting(
        machine(on, chip.dram, threads, rate, host_ghz(on, chip.units)),
        _family(unit),
        dtype,
        unit.efficiency[dtype],
        power(on, chip.dram, chip.idle_watts, threads),
    )


def _named(unit: Unit, kinds: Sequence[Kind]) -> list[Cluster]:
    """The clusters that a row names, with as many cores as it says; all of the unit where it names others."""
    left, named = list(unit.clusters), []
    for number, name in kinds:
        same = [each for each in left if _is_named(each, name)]
        for each in same[:1] if number else same:
            left.remove(each)
            named.append(each.model_copy(update={"count": min(number or each.count, each.count)}))
    return named if len(named) >= len(kinds) else list(unit.clusters)


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


def _from_cores(row: Row, kinds: Sequence[Kind], threads: int | None, dtype: Dtype) -> Setting | str:
    found = [(number, core) for number, name in kinds if (core := cores.find(row.unit, name))]
    if len(found) < len(kinds):
        return f"no core type is known for the {row.unit} '{row.core_type}'"
    clocks = _clocks(row) or [core.clock_ghz for _, core in found if core.clock_ghz]
    if not clocks:
        return f"clock_ghz is '{row.clock_ghz}'"
    clusters = [
        (core, number or core.count or threads or 1, clocks[min(index, len(clocks) - 1)])
        for index, (number, core) in enumerate(found)
    ]
    if lacking := [core.name for core, _, _ in clusters if dtype not in core.macs_per_cycle]:
        return f"{lacking[0]} does not compute in {dtype}"
    clusters.sort(key=lambda each: -each[0].macs_per_cycle[dtype] * each[2])  # whatever the row's order
    first = clusters[0][0]
    count = sum(number for _, number, _ in clusters)
    taken = threads if first.kind == "cpu" and threads else count
    if taken > count:
        return _too_few(row, count)
    return Setting(cores.chip(clusters, taken, _rate(row, first.macs_per_cycle, dtype)), first.family, dtype)
