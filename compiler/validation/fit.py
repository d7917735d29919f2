"""Fit the profiles of targets/profiles.toml on a table of measurements, and print how far off they are.

    python -m nnc.validation.fit measured.csv [-o targets/profiles.toml] [--models DIR]
    python -m nnc.validation.fit emulated.csv --emulated [-o compiler/simulation/profiles.toml]

Errors are mean absolute relative errors: of the fit, with each network left out of it, and with each chip left out of
it. A chip that is left out is known only from the figures of its target, or of the type of its cores.

With --emulated, the table is that of `python -m nnc.validation.emulated`: its profiles go into a file of their own, and
claim no error of predictions, because none was compared with a chip.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nnc import toml
from nnc.display import tables, units
from nnc.display.console import failing, progress
from nnc.errors import NncError
from nnc.hardware.efficiency import Efficiency
from nnc.model import wire
from nnc.validation import fitting, settings, table
from nnc.validation.fitting import Fit, Key
from nnc.validation.samples import Excluded, Sample, main_reason, samples
from nnc.validation.workloads import Workloads

_HEADER = """\
# How well the code of engines uses families of units: what `nnc.simulation` multiplies the figures of a target with.
#
# Fitted by `python -m nnc.validation.fit` on published measurements; don't edit. `nnc.hardware.efficiency` explains the
# coefficients. `error` is the mean relative error of the fit, with each network left out, and with each chip left out.
# The largest of them is what to expect of a prediction; where no chip could be left out, nobody knows.
"""

_EMULATED = """\
# How well nnc's own code uses families of units, as far as emulation tells: what `nnc.simulation` multiplies the
# figures of a target with, where a unit's `profile` names one of these.
#
# Fitted by `python -m nnc.validation.fit --emulated` on latencies of `python -m nnc.validation.emulated`; don't edit.
# No chip was measured for them: `error` is how far they are from the emulation (nnc.simulation.emulated) on average,
# with each network left out of the fit, and with each chip left out.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("-o", "--out", type=Path, help="write the profiles to this file")
    parser.add_argument("--emulated", action="store_true", help="the table was not measured on chips")
    parser.add_argument("--models", type=Path, help="a folder with <model_id>.onnx")
    asked = parser.parse_args(arguments)
    with progress(False) as report:
        known = settings.known_targets()
        kept, excluded = samples(table.read(asked.table), known, Workloads(asked.models), report)
        if not kept:
            raise NncError(f"{asked.table}: nothing to fit: {main_reason(excluded)}")
        full = fitting.fit(kept)
        errors = {"fit": _errors(kept, fitting.predict_ms(full, kept))}
        for attribute in ("model_id", "chip"):
            errors[attribute] = _errors(kept, fitting.left_out(kept, full, attribute, report))
    _show(kept, excluded, errors)
    if asked.out:
        with wire.replacing(asked.out) as file:
            file.write(written(full, kept, errors, asked.emulated).encode())


def written(full: Fit, kept: Sequence[Sample], errors: dict[str, np.ndarray], emulated: bool = False) -> str:
    """The file of profiles; of emulated latencies, only those of engines, without an error to expect."""
    parts = [_EMULATED if emulated else _HEADER]
    for key, members in _profiles(full, kept):
        name, dtype = key
        if emulated and name.endswith(f"/{fitting.ANY}"):
            continue
        found = {kind: _mean(values[members]) for kind, values in errors.items()}
        rows = {"rows": len(members), "chips": len({kept[index].row.chip for index in members})}
        entries: dict[str, object] = {"name": name, "dtype": dtype, **rows, "error": _named(found)}
        lines = [f"{entry} = {toml.value(content)}" for entry, content in entries.items()]
        expected = None if emulated else _expected(found)
        lines += ["", "[profile.efficiency]", *_coefficients(full.profiles[key], expected)]
        parts.append("\n".join(["[[profile]]", *lines]) + "\n")
    return "\n".join(parts)


def _expected(found: dict[str, float | None]) -> float | None:
    """The error to expect of a prediction; None where no chip could be left out."""
    return None if found["chip"] is None else max(error for error in found.values() if error is not None)


def _named(found: dict[str, float | None]) -> dict[str, float | None]:
    return {"fit": found["fit"], "networks": found["model_id"], "chips": found["chip"]}


def _mean(errors: np.ndarray) -> float | None:
    """None where nothing was left to predict from."""
    known = errors[np.isfinite(errors)]
    return round(float(known.mean()), 3) if len(known) else None


def _coefficients(efficiency: Efficiency, error: float | None) -> Iterator[str]:
    named = efficiency.model_dump(exclude_none=True) | ({} if error is None else {"error": error})
    for name, value in named.items():
        yield f"{name} = {float(f'{value:.4g}')}"


def _profiles(full: Fit, kept: Sequence[Sample]) -> Iterator[tuple[Key, list[int]]]:
    """Every profile, and the samples that it was fitted on."""
    for name, dtype in sorted(full.profiles):
        family, engine = name.split("/")
        members = [
            index
            for index, each in enumerate(kept)
            if each.setting.dtype == dtype
            and (each.setting.family == family if engine == fitting.ANY else each.profile == name)
        ]
        yield (name, dtype), members


def _errors(kept: Sequence[Sample], predicted: np.ndarray) -> np.ndarray:
    return np.abs(predicted / np.array([each.row.latency_ms for each in kept]) - 1)


def _show(kept: Sequence[Sample], excluded: Sequence[Excluded], errors: dict[str, np.ndarray]) -> None:
    columns = ("profile", "type", "rows", "chips", "fit", "networks out", "chips out")
    made = tables.table(*columns, numbers=columns[2:])
    groups: dict[Key, list[int]] = {}
    for index, each in enumerate(kept):
        groups.setdefault((each.profile, each.setting.dtype), []).append(index)
    for (name, dtype), members in sorted(groups.items()):
        chips = len({kept[index].row.chip for index in members})
        means = [units.percent(_mean(errors[kind][members])) for kind in ("fit", "model_id", "chip")]
        tables.add(made, name, dtype, len(members), chips, *means)
    out = tables.console()
    out.print(made)
    reasons = Counter(each.reason for each in excluded)
    out.print(f"\n{len(kept)} rows, {len(excluded)} left out:")
    out.print(tables.definition((str(count), reason) for reason, count in reasons.most_common()))


if __name__ == "__main__":
    with failing():
        main(sys.argv[1:])
