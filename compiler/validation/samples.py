"""Measured rows with what their networks compute and on which machines: what a fit and a validation share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nnc.hardware.efficiency import Efficiency
from nnc.simulation import roofline
from nnc.simulation.machine import WIDTHS, Machine, stacked
from nnc.simulation.work import Work, joined
from nnc.target import Target
from nnc.validation.settings import Setting, setting
from nnc.validation.table import Row
from nnc.validation.workloads import Workloads

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sample:
    """A row that can be predicted."""

    row: Row
    setting: Setting
    work: Work
    """In the type of the row."""

    @property
    def profile(self) -> str:
        return f"{self.setting.family}/{self.row.engine}"

    @property
    def circumstances(self) -> tuple[str, ...]:
        """What samples have in common that only differ in the network; the type comes last."""
        row = self.row
        return row.chip, row.unit, row.framework, row.cores_used, row.core_type, row.clock_ghz, self.setting.dtype


@dataclass(frozen=True)
class Excluded:
    """A row that can't."""

    row: Row
    reason: str


def main_reason(excluded: Sequence[Excluded]) -> str:
    """Why nothing is left of a table: what is said of most of its rows."""
    return Counter(each.reason for each in excluded).most_common(1)[0][0] if excluded else "it has no rows"


def samples(
    rows: Sequence[Row], targets: Sequence[Target], workloads: Workloads, progress: Progress = lambda *_: None
) -> tuple[list[Sample], list[Excluded]]:
    """The rows that can be predicted, and the others with the reason."""
    kept: list[Sample] = []
    excluded: list[Excluded] = []
    for index, row in enumerate(rows):
        progress("build networks", index, len(rows))
        found = _sample(row, targets, workloads)
        if isinstance(found, Sample):
            kept.append(found)
        else:
            excluded.append(found)
    progress("build networks", len(rows), len(rows))
    return kept, excluded


def _sample(row: Row, targets: Sequence[Target], workloads: Workloads) -> Sample | Excluded:
    place = setting(row, targets)
    if isinstance(place, str):
        return Excluded(row, place)
    todo = workloads.of(row)
    if isinstance(todo, str):
        return Excluded(row, todo)
    return Sample(row, place, todo.cast(WIDTHS[place.dtype]))


class Stack:
    """Samples of one profile side by side, so that one evaluation predicts all of them."""

    def __init__(self, among: Sequence[Sample]) -> None:
        counts = [len(each.work) for each in among]
        self.work: Work = joined(each.work for each in among)
        self.machine: Machine = stacked([each.setting.machine for each in among], counts)
        self._ends = np.cumsum([0, *counts])
        self.log_ms = np.log([each.row.latency_ms for each in among])
        self.weights = np.array([each.row.weight for each in among])
        weight_bytes = np.repeat(self._sums(self.work.weight_bytes), counts)
        settings = [each.circumstances for each in among]
        numbers = {each: number for number, each in enumerate(dict.fromkeys(settings))}
        self._setting = np.array([numbers[each] for each in settings])
        self._resident = roofline.resident_share(weight_bytes, self.machine)

    def predict_ms(self, efficiency: Efficiency) -> np.ndarray:
        """Milliseconds of every sample."""
        seconds = roofline.cost(self.work, self.machine, efficiency, self._resident).seconds
        return 1e3 * self._sums(seconds) + 1e-3 * efficiency.network_us

    def without_common(self, errors: np.ndarray, common: float) -> np.ndarray:
        """Errors less what the samples of each setting share, where that varies `common` times as much as they do.

        They become independent of each other: the transformation of generalized least squares.
        """
        counts = np.bincount(self._setting)
        means = np.bincount(self._setting, errors) / counts
        return errors - ((1 - (1 + counts * common**2) ** -0.5) * means)[self._setting]

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, self._ends[:-1])


def by_profile(among: Iterable[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """The samples by (profile, dtype)."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for each in among:
        groups.setdefault((each.profile, each.setting.dtype), []).append(each)
    return groups
