"""What passes say of their decisions, as tables of text: the choice per layer, and the predicted trade-off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from nnc import report
from nnc.display import tables, units

Entry = Mapping[str, Any]

#: Layers that a pass left as they are, listed one by one; more are counted.
_LISTED = 3

#: Characters of a layer's name at least, and of all other columns.
_NAME, _OTHERS = 18, 92

#: Points of a curve that are shown at most, and the most characters of a bar.
_POINTS, _BAR = 24, 40


def show(row: Entry, out: Console, width: int) -> None:
    """The explanation of one pass, `width` characters wide; nothing where it gave none."""
    said = report.explained(row)
    if said or row["curve"]:
        out.print(f"\n{row['name']}: {said or 'a predicted trade-off'}", style="bold")
    if row["decisions"]:
        out.print(decisions(row["decisions"], width))
    if row["curve"]:
        out.print()
        out.print(curve(row["curve"], width))


def decisions(rows: Sequence[Entry], width: int) -> Table:
    """A row per layer: what was chosen, and the figures before and after."""
    timed = width >= tables.WIDE and any("latency_ms" in row for row in rows)
    numbers = ["MACs", "params", *(["latency"] if timed else [])]
    numbers += ["error"] if any("error" in row for row in rows) else []
    made = tables.table("layer", "choice", *numbers, numbers=numbers)
    kept = [row for row in rows if not report.is_told(row)]
    for row in [*filter(report.is_told, rows), *(kept if len(kept) <= _LISTED else [_together(kept)])]:
        name = tables.ending(row["layer"], max(_NAME, width - _OTHERS))
        style = None if report.is_told(row) else "dim"
        tables.add(made, name, row["choice"], *_cells(row, numbers), style=style)
    return made


def _together(kept: Sequence[Entry]) -> Entry:
    """Layers that were left as they are, as one."""
    sums = {key: [sum(row[key][side] for row in kept) for side in (0, 1)] for key in ("macs", "params")}
    return {"layer": f"{len(kept)} others", "choice": "left as they are", **sums}


def _cells(row: Entry, columns: Sequence[str]) -> list[str]:
    # fmt: off
    cells = {
        "MACs": _arrow(*map(units.amount, row["macs"])),
        "params": _arrow(*map(units.amount, row["params"])),
        "latency": _arrow(*map(units.milliseconds, row["latency_ms"])) if "latency_ms" in row else "",
        "error": report.share(row.get("error")),
    }
    # fmt: on
    return [cells[column] for column in columns]


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def curve(of: Entry, width: int) -> Table:
    """A row per point, with a bar as long as its error; the chosen point is marked."""
    points = _thinned(of["points"])
    accuracy = any(point["accuracy"] is not None for point in points)
    numbers = [f"{report.PREDICTED.get(of['metric'], of['metric'])} kept", "error", *(["top-1"] if accuracy else [])]
    made = tables.table(*numbers, "predicted output error", numbers=numbers)
    most = max((point["error"] for point in points if _is_known(point["error"])), default=0.0)
    room = min(_BAR, width - sum(len(name) + 4 for name in numbers) - len(_CHOSEN))
    for point in points:
        bar = _bar(point["error"] / most, room) if most > 0 and _is_known(point["error"]) else ""
        cells = [units.percent(point["budget"]), report.share(point["error"]) or "-"]
        cells += [units.percent(point["accuracy"])] if accuracy else []
        mark, style = (_CHOSEN, "bold") if point["chosen"] else ("", None)
        tables.add(made, *cells, bar + mark, style=style)
    return made


_CHOSEN = " ◀ chosen"


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _thinned(points: Sequence[Entry]) -> list[Entry]:
    """At most about _POINTS of the points, evenly spread, the ends and the chosen ones among them."""
    step = max(math.ceil((len(points) - 1) / (_POINTS - 1)), 1)
    last = len(points) - 1
    return [point for index, point in enumerate(points) if index % step == 0 or index == last or point["chosen"]]


def _bar(share: float, room: int) -> str:
    """0.5 of 4 characters -> '██', in steps of an eighth of a character."""
    eighths = round(max(share, 0.0) * room * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
