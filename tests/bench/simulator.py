"""The simulator against published measurements of chips that the fit did not see.

    python tests/bench/simulator.py [analytic energy speed memory]

Every chip is left out in turn: its rows give nothing to the fit, and it is known from the figures of its target or of
the type of its cores. The table is ../hardware/measured.csv beside the sample data (NNC_DATA), or the file named in
NNC_MEASURED; rows are left out, and said to be, where it is absent. Ranks are Spearman's correlations between the
networks of one setting, weighted by rows within each chip and framework. Where they are below what is wanted, the
measurements themselves say what could be expected: how the measured latencies of another chip, with the same engine,
rank the networks of the setting; of all such chips and numbers of cores, the best. Energies are those of boards whose
power was measured at the wall, from such latencies and from figures of power that each network, or each engine, is left
out of in turn; a chip can't be left out, because its figures of power are its own. Exits with 1 when a figure is not
reached.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import table
from table import DATA, Row, nnc

from nnc import graph as graphs
from nnc import networks, target
from nnc.display import units
from nnc.simulation.analytic import predict
from nnc.validation import energy, fitting, settings
from nnc.validation import table as measurements
from nnc.validation.comparison import compare, figures, rank_correlation, ratio_errors
from nnc.validation.samples import Sample, samples
from nnc.validation.workloads import Workloads

MEASURED = Path(os.environ.get("NNC_MEASURED", DATA.parent / "hardware/measured.csv"))
COMPILED = ("mobilenet_v2", "resnet50")
#: Networks that two settings must have in common to tell of each other's ranks.
SHARED = 8
TIMED = ("mobilenet_v2", "resnet50", "densenet201", "vgg16")


class Workshop(table.Workshop):
    """The rows of the table, and predictions of each from a fit without its chip."""

    @cache  # noqa: B019  # one workshop per run
    def held_out(self) -> tuple[list[Sample], np.ndarray, int]:
        rows = measurements.read(MEASURED)
        kept, excluded = samples(rows, settings.known_targets(), Workloads())
        predicted = fitting.left_out(kept, fitting.fit(kept), "chip", lambda *_: None)
        known = np.isfinite(predicted)
        kept = [each for each, is_known in zip(kept, known, strict=True) if is_known]
        return kept, predicted[known], len(excluded) + int((~known).sum())


def analytic(shop: Workshop) -> Iterator[Row]:
    """Errors, ranks and ratios of held-out chips."""
    if not MEASURED.exists():
        yield Row("analytic: held-out chips", "", f"left out: no table {MEASURED}", None)
        return
    kept, predicted, excluded = shop.held_out()
    yield Row("rows predicted, left out", "", f"{len(kept)}, {excluded}", None)
    for name, chosen, most, ranks in (
        ("CPU, fp32 and fp16", _of("cpu", "float32", "float16"), 0.2, 0.97),
        ("CPU, int8", _of("cpu", "int8"), None, None),
        ("GPU", _of("gpu", "float32", "float16", "int8"), 0.3, 0.95),
    ):
        yield from _errors(name, *_chosen(kept, predicted, chosen), most, ranks)
    shared = {key for key, chips in _chips(kept).items() if len(chips) > 1}
    taught = [index for index, each in enumerate(kept) if each.row.unit == "gpu" and _engine(each) in shared]
    error = figures([kept[index] for index in taught], _measured(kept)[taught], predicted[taught])["mape"]
    yield Row(
        "GPU, engines that were measured on another chip too: error", "", f"{error:.1%} of {len(taught)} rows", None
    )


def energies(shop: Workshop) -> Iterator[Row]:
    """Errors of energies, by board."""
    if not MEASURED.exists():
        yield Row("energy: held-out networks", "", f"left out: no table {MEASURED}", None)
        return
    kept, predicted, _ = shop.held_out()
    boards: dict[str, tuple[list[energy.Metered], list[float]]] = {}
    reasons: Counter[str] = Counter()
    for sample, milliseconds in zip(kept, predicted.tolist(), strict=True):
        match energy.metered(sample):
            case energy.Metered() as each:
                among, predicted_ms = boards.setdefault(f"{sample.row.chip} {sample.row.unit}", ([], []))
                among.append(each)
                predicted_ms.append(milliseconds)
            case str() as reason:
                reasons[reason] += 1
    for board, (among, predicted_ms) in sorted(boards.items()):
        for what, judged in (
            ("error", among),
            ("error, networks left out", energy.left_out(among, "model_id")),
            ("error, engines left out", energy.left_out(among, "engine")),
        ):
            errors = [
                abs(each.predicted_mj(milliseconds) / each.measured_mj - 1)
                for each, milliseconds in zip(judged, predicted_ms, strict=True)
            ]
            if np.isfinite(errors).all():
                said = f"{np.mean(errors):.1%} of {units.plural(len(errors), 'row')}"
                yield Row(f"energy of {board}: {what}", "", said, None)
    for reason, count in reasons.most_common():
        yield Row(f"energy left out: {reason}", "", units.plural(count, "row"), None)


def speed(shop: Workshop) -> Iterator[Row]:
    """How long a prediction takes."""
    chip = target.load("qcs605")
    for name in TIMED:
        graph = graphs.from_model(networks.build(name, seed=None))
        started = time.perf_counter()
        predict(graph, chip)
        seconds = time.perf_counter() - started
        yield Row(f"prediction of {name}", "< 1 s", f"{seconds:.3f} s", seconds < 1)


def memory(shop: Workshop) -> Iterator[Row]:
    """The peak of activations that a report tells, and what the library allocates between its kernels."""
    for name in COMPILED:
        out = shop.folder / f"{name}-x86"
        nnc("compile", "simplify", shop.network(name), "--target", "x86", "-o", out, "--quiet")
        report = json.loads((out / "report.json").read_text())
        told, allocated = report["after"]["peak_activation_bytes"], report["workspace_bytes"]
        yield Row(
            f"peak activations of {name}: told, allocated", "equal", f"{told:,}, {allocated:,}", told == allocated
        )


def _errors(
    name: str, kept: Sequence[Sample], predicted: np.ndarray, most: float | None, ranks: float | None
) -> Iterator[Row]:
    measured = _measured(kept)
    found = figures(kept, measured, predicted)
    wanted = f"<= {most:.0%}" if most else ""
    yield Row(
        f"{name}: error", wanted, f"{found['mape']:.1%} of {len(kept)} rows", found["mape"] <= most if most else None
    )
    yield Row(f"{name}: median error", "", f"{np.median(np.abs(predicted / measured - 1)):.1%}", None)
    correlations = _correlations(compare(kept, predicted, [])["groups"])
    below = {place: value for place, value in correlations.items() if value < (ranks or 0.95)}
    count, median = len(correlations), statistics.median(correlations.values())
    said = f"{count - len(below)} of {count} chips and frameworks; median {median:.3f}"
    yield Row(f"{name}: ranks", f">= {ranks} in each" if ranks else "", said, not below if ranks else None)
    elsewhere = _elsewhere(kept)
    for place in sorted(below, key=below.__getitem__) if ranks else ():
        other = f"{elsewhere[place]:.3f}" if place in elsewhere else "no other"
        yield Row(f"  {' '.join(place)}: here, as on another chip", "", f"{below[place]:.3f}, {other}", None)
    ratios = float(np.median(ratio_errors(kept, np.log(predicted / measured), "networks")))
    yield Row(f"{name}: ratio of two networks, median error", "<= 12 %", f"{ratios:.1%}", ratios <= 0.12)


def _correlations(groups: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Of every chip and framework, types taken together."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for group in groups:
        if group["spearman"] is not None:
            found.setdefault((group["chip"], group["framework"]), []).append((group["rows"], group["spearman"]))
    return {place: _weighted(each) for place, each in found.items()}


def _elsewhere(kept: Sequence[Sample]) -> dict[tuple[str, str], float]:
    """The same with latencies measured on another chip in place of predictions, of those that rank best."""
    places: dict[tuple[str, ...], dict[tuple[str, str], float]] = {}
    for each in kept:
        network = each.row.model_id, each.row.input_shape
        places.setdefault((each.row.engine, *each.circumstances), {})[network] = each.row.latency_ms
    best: dict[tuple[str, ...], tuple[int, float]] = {}
    for (one, here), (other, there) in itertools.permutations(places.items(), 2):
        shared = sorted(here.keys() & there.keys())
        if one[0] == other[0] and one[1] != other[1] and len(shared) >= SHARED:
            ranks = rank_correlation(*(np.array([each[network] for network in shared]) for each in (here, there)))
            best[one] = max(best.get(one, (0, -1.0)), (len(here), ranks))
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for (_, chip, _, framework, *_), entry in best.items():
        found.setdefault((chip, framework), []).append(entry)
    return {place: _weighted(each) for place, each in found.items()}


def _weighted(entries: Sequence[tuple[int, float]]) -> float:
    return sum(rows * value for rows, value in entries) / sum(rows for rows, _ in entries)


def _of(unit: str, *dtypes: str) -> Callable[[Sample], bool]:
    return lambda each: each.row.unit == unit and each.setting.dtype in dtypes


def _chosen(
    kept: Sequence[Sample], predicted: np.ndarray, chosen: Callable[[Sample], bool]
) -> tuple[list[Sample], np.ndarray]:
    taken = [index for index, each in enumerate(kept) if chosen(each)]
    return [kept[index] for index in taken], predicted[taken]


def _measured(kept: Sequence[Sample]) -> np.ndarray:
    return np.array([each.row.latency_ms for each in kept])


def _engine(each: Sample) -> tuple[str, str]:
    return each.profile, each.setting.dtype


def _chips(kept: Sequence[Sample]) -> dict[tuple[str, str], set[str]]:
    """The chips that every engine was measured on."""
    found: dict[tuple[str, str], set[str]] = {}
    for each in kept:
        found.setdefault(_engine(each), set()).add(each.row.chip)
    return found


SECTIONS: dict[str, Callable[[Workshop], Iterator[Row]]] = {
    "analytic": analytic, "energy": energies, "speed": speed, "memory": memory
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(table.main(__doc__, SECTIONS, Workshop))
