"""What `nnc validate` prints."""

from __future__ import annotations

from typing import Any

from nnc.display import tables, units

_COLUMNS = (
    "chip", "unit", "framework", "type", "rows", "error", "bias", "ranks", "ratios", "types", "compressed",
)  # fmt: skip

#: Models that are named for one reason.
_NAMED = 4


def show(found: dict[str, Any]) -> None:
    """A row per chip, unit, framework and type, and what was left out."""
    out = tables.console()
    has_energy = bool(found["overall"]["energy"]["rows"])
    columns = (*_COLUMNS, "energy") if has_energy else _COLUMNS
    made = tables.table(*columns, numbers=columns[4:])
    for group in found["groups"]:
        names = (group["chip"], group["unit"], group["framework"], group["dtype"])
        tables.add(made, *names, *_cells(group, has_energy))
    tables.add(made, "all", "", "", "", *_cells(found["overall"], has_energy), style="bold")
    out.print(made)
    out.print(
        "\nerror: mean absolute relative error; bias: mean relative error; ranks: Spearman's correlation between the\n"
        "networks of one setting; ratios: median error of how much faster one network is than another; types: of how\n"
        "much faster it is in a narrower type; compressed: of how much faster than the original. A ratio is off by\n"
        "the larger of predicted and measured over the smaller, less one.",
        style="dim",
    )
    if has_energy:
        out.print(
            "energy: mean absolute relative error of what an inference takes, where it was measured.", style="dim"
        )
    for what, key in (("left out", "excluded"), ("whose energy is not compared", "energy_excluded")):
        if found[key]:
            count = sum(entry["rows"] for entry in found[key])
            out.print(f"\n{units.plural(count, 'row')} {what}:", style="bold")
            out.print(tables.definition((entry["rows"], _reason(entry)) for entry in found[key]))


def _cells(group: dict[str, Any], has_energy: bool) -> tuple[object, ...]:
    ranks = "-" if group["spearman"] is None else f"{group['spearman']:.3f}"
    ratios = (units.percent(group["ratios"][kind]) for kind in ("networks", "types", "compression"))
    energy = [units.percent(group["energy"]["mape"])] if has_energy else []
    return group["rows"], units.percent(group["mape"]), units.percent(group["bias"]), ranks, *ratios, *energy


def _reason(entry: dict[str, Any]) -> str:
    models = entry["models"]
    if len(models) == 1 and models[0] in entry["reason"]:
        return str(entry["reason"])
    rest = f" and {len(models) - _NAMED} more" if len(models) > _NAMED else ""
    return f"{entry['reason']} ({', '.join(models[:_NAMED])}{rest})"
