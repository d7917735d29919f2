"""The simulator against published measurements: `nnc validate`, and the fit that its coefficients come from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nnc import target as targets
from nnc.errors import NncError
from nnc.hardware import efficiency
from nnc.hardware.efficiency import Efficiency
from nnc.target import Target
from nnc.validation import settings, table
from nnc.validation.comparison import compare
from nnc.validation.fitting import ANY
from nnc.validation.samples import Excluded, Progress, Sample, Stack, main_reason, samples
from nnc.validation.table import Row
from nnc.validation.workloads import Workloads


def validate(path: Path, spec: str | None, models: Path | None, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """The table at `path` against predictions, as `comparison.compare` describes it.

    Rows are predicted as their engine's profile and their chip's figures say. With a target, only the rows of its chip
    count, with the coefficients that the target itself has: as accurate as a compile for it will be. `models` is a
    folder with <model_id>.onnx. Raises NncError where there is nothing to compare.
    """
    rows = table.read(path)
    chip = None if spec is None else targets.load(spec)
    taken = rows if chip is None else _of_chip(rows, chip, path)
    among = (chip,) if chip else settings.known_targets()
    kept, excluded = samples(taken, among, Workloads(models), progress)
    predicted = predict_ms(kept, chip)
    known = np.isfinite(predicted)
    for each in [each for each, is_known in zip(kept, known, strict=True) if not is_known]:
        excluded.append(Excluded(each.row, f"no profile is like {each.profile}"))
    kept = [each for each, is_known in zip(kept, known, strict=True) if is_known]
    if not kept:
        hint = "'nnc network list' shows the reference networks"
        raise NncError(f"{path}: nothing to compare: {main_reason(excluded)}", hint)
    return {"table": path.name, "target": chip.label if chip else None} | compare(kept, predicted[known], excluded)


def predict_ms(kept: Sequence[Sample], chip: Target | None = None) -> np.ndarray:
    """Milliseconds of every row; not a number where no profile is near."""
    predicted = np.full(len(kept), np.nan)
    groups: dict[Efficiency, list[int]] = {}
    for index, each in enumerate(kept):
        if coefficients := _of_target(each, chip) if chip else _fitted(each):
            groups.setdefault(coefficients, []).append(index)
    for coefficients, members in groups.items():
        predicted[members] = Stack([kept[index] for index in members]).predict_ms(coefficients)
    return predicted


def _of_chip(rows: Sequence[Row], chip: Target, path: Path) -> list[Row]:
    taken = [row for row in rows if row.chip in (chip.name, *chip.chips)]
    if not taken:
        names = ", ".join(sorted({row.chip for row in rows}))
        hint = f'say in the target which of these it is, such as chips = ["..."]: {names}'
        raise NncError(f"{path}: no row is of the chip '{chip.name}'", hint)
    return taken


def _of_target(each: Sample, chip: Target) -> Efficiency | None:
    unit = next((unit for unit in chip.units if unit.kind == each.row.unit), None)
    return unit.efficiency.get(each.setting.dtype) if unit else None


def _fitted(each: Sample) -> Efficiency | None:
    """The engine's profile, or the family's of all engines."""
    for name in (each.profile, f"{each.setting.family}/{ANY}"):
        if name in efficiency.names():
            return _profile(name, each.setting.dtype)
    return None


@cache
def _profile(name: str, dtype: str) -> Efficiency:
    return Efficiency.model_validate(efficiency.profile(name)[dtype])
