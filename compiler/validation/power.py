"""Figures of power for target files from a table of measurements.

    python -m nnc.validation.power measured.csv [--target ./my-board.toml] [--models DIR]

prints for every unit `idle_watts`, the mean of what the board drew before the runs, and `active_watts` of its cores,
with which half of the rows take more energy above idle than predicted, and half less. The file must have some
`active_watts`, any, of which these are a multiple. Errors are mean absolute relative errors of the energy of an
inference: with the figures that the file has, and with those that the rows of other networks, and of other engines,
say.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nnc import target as targets
from nnc import validation
from nnc.display import tables, units
from nnc.display.console import failing, progress
from nnc.errors import NncError
from nnc.target import Target
from nnc.validation import energy, settings, table
from nnc.validation.energy import Metered
from nnc.validation.samples import Excluded, main_reason, samples
from nnc.validation.workloads import Workloads


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--target", help="a board of one's own; else those that nnc ships")
    parser.add_argument("--models", type=Path, help="a folder with <model_id>.onnx")
    asked = parser.parse_args(arguments)
    among = (targets.load(asked.target),) if asked.target else settings.known_targets()
    rows = [row for row in table.read(asked.table) if row.energy_mj is not None]
    with progress(False) as report:
        kept, excluded = samples(rows, among, Workloads(asked.models), report)
    found: dict[tuple[str, str], list[Metered]] = {}
    for sample in kept:
        match energy.metered(sample):
            case Metered() as each:
                found.setdefault((sample.row.chip, sample.row.unit), []).append(each)
            case reason:
                excluded.append(Excluded(sample.row, str(reason)))
    if not found:
        raise NncError(f"{asked.table}: no energy to compare: {main_reason(excluded)}")
    _show(found, among, excluded)


def _show(found: dict[tuple[str, str], list[Metered]], among: Sequence[Target], excluded: Sequence[Excluded]) -> None:
    columns = ("chip", "unit", "rows", "idle_watts", "active_watts", "as it is", "networks out", "engines out")
    made = tables.table(*columns, numbers=columns[2:])
    for (chip, unit), members in sorted(found.items()):
        derived = energy.derive(members)
        watts = _watts(chip, unit, among, derived.correction)
        judged = (members, energy.left_out(members, "model_id"), energy.left_out(members, "engine"))
        errors = (units.percent(_error(each)) for each in judged)
        idle = f"{derived.idle_watts:.3g}" if np.isfinite(derived.idle_watts) else "-"
        tables.add(made, chip, unit, len(members), idle, ", ".join(watts) or "-", *errors)
    out = tables.console()
    out.print(made)
    if excluded:
        reasons = Counter(each.reason for each in excluded)
        out.print(f"\n{units.plural(len(excluded), 'row')} with an energy left out:")
        out.print(tables.definition((str(count), reason) for reason, count in reasons.most_common()))


def _watts(chip: str, kind: str, among: Sequence[Target], factor: float) -> Iterator[str]:
    """What a core of each cluster of the chip's unit draws."""
    described = next(each for each in among if chip in (each.name, *each.chips))
    for cluster in next(unit for unit in described.units if unit.kind == kind).clusters:
        if cluster.active_watts and np.isfinite(factor):
            yield f"{cluster.name} {cluster.active_watts * factor:.3g}"


def _error(among: Sequence[Metered]) -> float | None:
    predicted_ms = validation.predict_ms([each.sample for each in among])
    predicted = np.array(
        [each.predicted_mj(milliseconds) for each, milliseconds in zip(among, predicted_ms, strict=True)]
    )
    errors = np.abs(predicted / np.array([each.measured_mj for each in among]) - 1)
    return float(errors.mean()) if np.isfinite(errors).all() else None


if __name__ == "__main__":
    with failing():
        main(sys.argv[1:])
