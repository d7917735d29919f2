"""Energies of measured rows, and what a target's figures of power make of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnc.hardware.efficiency import Efficiency
from nnc.simulation import roofline
from nnc.simulation.power import Power
from nnc.validation.samples import Excluded, Sample

# What the column power_scope begins with where it means what the idle power of targets does.
_WHOLE = "whole board"


@dataclass(frozen=True)
class Metered:
    """A row whose energy can be compared."""

    sample: Sample
    measured_mj: float
    power: Power
    busy_seconds: float
    """How long the cores draw power: as long as the target's own code is predicted to take.

    An engine that takes longer waits: on a Jetson AGX Xavier, Arm NN takes twice as long as TFLite for the same network
    (median), and as much energy above idle: 0.8 times in floats, 1.1 times in integers.
    """
    dram_bytes: float

    @property
    def above_idle_mj(self) -> float:
        macs = {self.sample.setting.dtype: float(self.sample.work.macs.sum())}
        return self.power.above_idle_mj(self.busy_seconds, macs, self.dram_bytes)

    def predicted_mj(self, predicted_ms: float) -> float:
        """Millijoules of an inference that is predicted to take so long."""
        return self.power.idle_watts * predicted_ms + self.above_idle_mj


def metered(sample: Sample) -> Metered | str | None:
    """The energy of a sample, or why it can't be compared; None where it was not measured."""
    row, place = sample.row, sample.setting
    if row.energy_mj is None:
        return None
    if not row.power_scope.lower().startswith(_WHOLE):
        return f"power_scope is '{row.power_scope}', not '{_WHOLE}'"
    if place.power is None or place.efficiency is None:
        return f"no figures of power for the {row.unit} of '{row.chip}'"
    busy_seconds, dram_bytes = _cost(sample, place.efficiency)
    return Metered(sample, row.energy_mj, place.power, busy_seconds, dram_bytes)


def predict_mj(kept: Sequence[Sample], predicted_ms: np.ndarray) -> tuple[np.ndarray, list[Excluded]]:
    """Millijoules of every sample, not a number where none can be compared; and the rows that were measured all the
    same.
    """
    predicted, excluded = np.full(len(kept), np.nan), []
    for index, each in enumerate(kept):
        found = metered(each)
        if isinstance(found, Metered):
            predicted[index] = found.predicted_mj(float(predicted_ms[index]))
        elif found:
            excluded.append(Excluded(each.row, found))
    return predicted, excluded


@dataclass(frozen=True)
class Derived:
    """What rows of one unit say of its figures of power; not a number where no row tells."""

    idle_watts: float
    """The mean of what the board drew before the runs."""
    correction: float
    """What to multiply the active watts with, so that half of the rows take more energy above idle than predicted."""

    def applied(self, each: Metered) -> Metered:
        active = each.power.active_watts * self.correction
        return replace(each, power=replace(each.power, idle_watts=self.idle_watts, active_watts=active))


def derive(among: Iterable[Metered]) -> Derived:
    """The figures that explain the rows of one unit."""
    idle, corrections = [], []
    for each in among:
        if each.sample.row.idle_power_w is not None:
            idle.append(each.sample.row.idle_power_w)
        if (factor := _correction(each)) is not None:
            corrections.append(factor)
    return Derived(
        float(np.mean(idle)) if idle else np.nan,
        float(np.median(corrections)) if corrections else np.nan,
    )


def left_out(among: Sequence[Metered], attribute: str) -> list[Metered]:
    """Each with the figures that rows of the same unit, but of other models or engines, say: cross-validation."""
    derived: dict[tuple[str, ...], Derived] = {}
    for each in among:
        unit, label = _key(each), _key(each, attribute)
        if label not in derived:
            derived[label] = derive(other for other in among if _key(other) == unit and _key(other, attribute) != label)
    return [derived[_key(each, attribute)].applied(each) for each in among]


def _key(each: Metered, *attributes: str) -> tuple[str, ...]:
    return tuple(getattr(each.sample.row, name) for name in ("chip", "unit", *attributes))


def _cost(sample: Sample, efficiency: Efficiency) -> tuple[float, float]:
    """Seconds, and bytes of memory traffic."""
    machine = sample.setting.machine
    resident = roofline.resident_share(sample.work.weight_bytes.sum(), machine)
    cost = roofline.cost(sample.work, machine, efficiency, resident)
    return float(cost.seconds.sum()) + efficiency.network_us * 1e-6, float(cost.dram_bytes.sum())


def _correction(each: Metered) -> float | None:
    row, by_cores = each.sample.row, each.power.active_watts * each.busy_seconds * 1e3
    if row.avg_power_w is None or row.idle_power_w is None or not by_cores:
        return None
    above_idle = each.measured_mj * (1 - row.idle_power_w / row.avg_power_w)
    return (above_idle - (each.above_idle_mj - by_cores)) / by_cores
