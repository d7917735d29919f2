"""What `nnc run`, `bench`, `eval` and `package` print."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from nnc.display import tables, units

if TYPE_CHECKING:
    from nnc.benchmark import Timing
    from nnc.evaluation import Evaluation
    from nnc.package import Package

Row = Mapping[str, Any]


def show_outputs(outputs: Mapping[str, np.ndarray], runtime: str, saved: Path | None) -> None:
    out = tables.console()
    made = tables.table("output", "dtype", "shape", "smallest", "largest", numbers=("smallest", "largest"))
    for name, summary in described(outputs).items():
        least, most = (f"{summary[key]:.5g}" for key in ("min", "max"))
        tables.add(made, name, summary["dtype"], units.shape(summary["shape"]), least, most)
    out.print(made)
    for name, summary in described(outputs).items():
        for sample, ranked in enumerate(summary["top5"]):
            which = f" of sample {sample}" if len(summary["top5"]) > 1 else ""
            out.print(f"\n{name}: the highest scores{which}", style="bold")
            out.print(tables.definition((index, f"{score:.5g}") for index, score in ranked))
    out.print(f"\ncomputed by {runtime}" + (f"; saved to {saved}" if saved else ""), style="dim")


def show_package(made: Package) -> None:
    out = tables.console()
    out.print(f"{made.path}: {units.size(made.bytes)}; its README.md says what the board needs\n")
    out.print(f"{made.place}:", style="bold")
    out.print(f"  tar xzf {made.path.name} && cd {made.folder} && {made.command}", soft_wrap=True)
    out.print(f"\nthe outputs to compare with are from {made.expected_from}", style="dim")


_CLASSES = range(2, 100_001)  # sizes of an output that may be scores


def described(outputs: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """By name the shape, dtype and range of each output; and per sample the five highest of [N, classes] or like it."""
    return {
        name: {
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "min": float(array.min()) if array.size else math.nan,
            "max": float(array.max()) if array.size else math.nan,
            "top5": _highest(array),
        }
        for name, array in outputs.items()
    }


def _highest(scores: np.ndarray) -> list[list[tuple[int, float]]]:
    """(class, score) of the five highest scores of each sample; nothing where the array does not look like scores."""
    if scores.ndim < 2 or scores.dtype.kind != "f" or math.prod(scores.shape[1:]) not in _CLASSES:
        return []
    if math.prod(scores.shape[1:]) != max(scores.shape[1:]):
        return []
    rows = scores.reshape(len(scores), -1)
    return [[(int(i), float(row[i])) for i in np.argsort(-row, kind="stable")[:5]] for row in rows]


def show_timing(timing: Timing) -> None:
    out = tables.console()
    made = tables.table("rounds", "median", "lowest", "highest", numbers=("median", "lowest", "highest"))
    for name, values in ((timing.name, timing.nnc), (timing.against, timing.peer)):
        tables.add(made, name, *map(units.milliseconds, (statistics.median(values), min(values), max(values))))
    tables.add(
        made,
        f"{timing.against} / {timing.name}",
        *map(units.times, (timing.ratio, min(timing.ratios), max(timing.ratios))),
        style="bold",
    )
    out.print(made)
    threads = units.plural(timing.threads, "thread")
    out.print(f"\none inference on {threads}, {units.plural(len(timing.nnc), 'round')} in turns", style="dim")


def show_profile(rows: Sequence[Row]) -> None:
    out = tables.console()
    out.print(kernels(rows))
    templates = {row["template"]: 0.0 for row in rows}
    for row in rows:
        templates[row["template"]] += row["ms"]
    total = sum(templates.values()) or 1.0
    made = tables.table("template", "kernels", "time", "share", numbers=("kernels", "time", "share"))
    for name, ms in sorted(templates.items(), key=lambda entry: -entry[1]):
        count = sum(row["template"] == name for row in rows)
        tables.add(made, name, count, units.milliseconds(ms), units.percent(ms / total))
    made.add_section()
    tables.add(made, "all", len(rows), units.milliseconds(total), "")
    out.print()
    out.print(made)


def kernels(rows: Sequence[Row]) -> Table:
    """Measured time per kernel of a compiled library, the slowest first."""
    made = tables.table("kernel", "computes", "output", "time", "share", numbers=("output", "time", "share"))
    total = sum(row["ms"] for row in rows)
    for row in sorted(rows, key=lambda row: -row["ms"]):
        share = units.percent(row["ms"] / total if total else 0.0)
        layer = " ".join([row["op"], *row["nodes"][:1]]).strip()
        tables.add(made, row["name"], layer, units.shape(row["shape"]), units.milliseconds(row["ms"]), share)
    return made


def show_accuracy(measured: Evaluation) -> None:
    rows = (("top-1", units.percent(measured.top1)), ("top-5", units.percent(measured.top5)))
    out = tables.console()
    out.print(tables.definition(rows))
    out.print(f"\n{units.plural(measured.count, 'sample')}, computed by {measured.runtime}", style="dim")
    out.print(f"images prepared with {measured.preprocess}", style="dim")
