"""Targets: one unit of a chip in one of its power modes, so that the rest of the compiler sees a single machine."""

import re
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from nnc import toml
from nnc.errors import NncError
from nnc.hardware import efficiency
from nnc.hardware.chip import Cluster, Memory, Mode, Unit, listed, parse
from nnc.toml import Table

#: Files of targets/ that describe no chip: the fitted profiles, and the figures of cores.
_NO_CHIPS = (efficiency.FILE, "cores.toml")


class Target(Table):
    """One unit of a chip in one power mode: what a model is compiled for."""

    name: str
    description: str
    unit: Unit
    units: tuple[Unit, ...]
    mode: str | None
    """Name of the power mode; None where the chip has none."""
    modes: tuple[str, ...]
    dram: Memory
    idle_watts: float | None
    chips: tuple[str, ...] = ()
    """What tables of measurements call the chip."""
    given: str = Field("", exclude=True)
    """The path of a board of one's own, as it was given. It is not dumped: a lock says what a board is, not where."""

    @property
    def label(self) -> str:
        """What it is called, as in `jetson-xavier:gpu@30W`."""
        return spelled(self.name, self.unit.name, self.mode)

    @property
    def spec(self) -> str:
        """What --target takes to select it again, as in `jetson-xavier:gpu@30W` and `./my-board.toml:cpu`."""
        return self.of_unit(self.unit.name)

    def of_unit(self, unit: str) -> str:
        """The same of another unit of the chip."""
        return spelled(self.given or self.name, unit, self.mode)

    def require_lowerable(self) -> None:
        """Raise where no library can be built for the selected unit."""
        if not self.unit.lowerable:
            able = [unit.name for unit in self.units if unit.lowerable]
            what = self.unit.architecture if self.unit.kind == "cpu" else f"its {self.unit.name}"
            raise NncError(
                f"{self.name}: no code can be generated for {what} yet",
                f"use --no-lower, or --target {self.of_unit(able[0])}" if able else "use --no-lower",
            )

    def require_threads(self, threads: int | None) -> None:
        """Raise where the selected unit does not have so many cores."""
        if threads is not None and not 1 <= threads <= self.unit.cores:
            raise NncError(
                f"--threads {threads}: {self.label} has {self.unit.cores} cores", f"give 1 to {self.unit.cores}"
            )


Named = TypeVar("Named", Unit, Mode)


def spelled(name: str, unit: str, mode: str | None) -> str:
    """'jetson-xavier:gpu@30W'; the mode is None where the chip has none."""
    return f"{name}:{unit}" + (f"@{mode}" if mode else "")


def names() -> list[str]:
    """The targets that nnc ships, in alphabetical order."""
    files = {file.name for file in _shipped() if file.name.endswith(".toml")}
    return sorted(name.removesuffix(".toml") for name in files.difference(_NO_CHIPS))


def load(spec: str) -> Target:
    """Read `name[:unit][@mode]`, where name is a shipped target or the path of a TOML file.

    The first unit and the first mode of the file are the defaults. Raises NncError for every mistake in the spec or
    in the file.
    """
    chip_name, unit_name, mode_name = _split(spec)
    is_own = chip_name.endswith(".toml")
    if is_own:
        name, place, text = Path(chip_name).stem, chip_name, toml.read(Path(chip_name))
    elif chip_name in names():
        name, place = chip_name, f"targets/{chip_name}.toml"
        text = resources.files("nnc.targets").joinpath(f"{chip_name}.toml").read_text("utf-8")
    else:
        hint = "a file of your own is given by its path, such as ./my-board.toml"
        raise NncError(f"no target '{chip_name}'", toml.nearest(chip_name, names()) or hint)
    chip = parse(text, place)
    mode = _pick("mode", mode_name, chip.modes, name) if chip.modes or mode_name else None
    units = tuple(_in_mode(unit, mode) for unit in chip.units)
    return Target(
        name=name,
        description=chip.description,
        unit=_pick("unit", unit_name, units, name),
        units=units,
        mode=mode.name if mode else None,
        modes=tuple(each.name for each in chip.modes),
        dram=chip.dram.model_copy(update={"gbps": mode.dram_gbps}) if mode else chip.dram,
        idle_watts=chip.idle_watts,
        chips=chip.chips,
        given=chip_name if is_own else "",
    )


def _shipped() -> list[Any]:
    return list(resources.files("nnc.targets").iterdir())


def _split(spec: str) -> tuple[str, str | None, str | None]:
    parts = re.fullmatch(r"(?P<name>.+\.toml|[^@]*?)(:(?P<unit>[^:@/]*))?(@(?P<mode>[^@/]*))?", spec)
    if parts is None or "" in parts.groupdict().values():
        raise NncError(f"'{spec}' is not a target", "write name, name:unit or name:unit@mode, such as qcs605:cpu")
    return parts["name"], parts["unit"], parts["mode"]


def _pick(word: str, name: str | None, among: tuple[Named, ...], chip: str) -> Named:
    """The unit or mode called `name`, or the first."""
    if name is None:
        return among[0]
    for each in among:
        if each.name.lower() == name.lower():
            return each
    known = [each.name for each in among]
    hint = toml.nearest(name, known) or (f"it has {listed(known)}" if known else f"leave out '@{name}'")
    raise NncError(f"{chip} has no {word} '{name}'", hint)


def _in_mode(unit: Unit, mode: Mode | None) -> Unit:
    clocks = mode.unit.get(unit.name, {}) if mode else {}
    clusters = tuple(
        clocked(each, found.count, found.clock_ghz) if (found := clocks.get(each.name)) else each
        for each in unit.clusters
    )
    cores = sum(cluster.count for cluster in clusters)
    return unit.model_copy(update={"clusters": clusters, "threads": min(unit.threads, cores)})


def clocked(cluster: Cluster, count: int, clock_ghz: float) -> Cluster:
    """`count` cores of a cluster at another clock."""
    # Voltage follows frequency, so energy per operation goes with its square: on Xavier's CPU, TFLite ResNet-50 takes
    # 424 pJ per MAC at 2.27 GHz and 126 at 1.2 GHz, a ratio of 3.4 where the clocks squared give 3.6.
    ratio = clock_ghz / cluster.clock_ghz
    per_mac, watts = cluster.picojoule_per_mac, cluster.active_watts
    changes = {
        "count": count,
        "clock_ghz": clock_ghz,
        "active_watts": watts and watts * ratio * ratio * ratio,
        "picojoule_per_mac": per_mac and {dtype: energy * ratio * ratio for dtype, energy in per_mac.items()},
    }
    return cluster.model_copy(update=changes)
