"""report.html: one page that needs no network and no documentation."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from nnc import verify
from nnc.compiling.job import command
from nnc.display import plot, units
from nnc.report import (
    BOUNDS,
    PACKED,
    PREDICTED,
    change,
    changes,
    explained,
    figures,
    is_told,
    outputs,
    packed,
    points,
    share,
    shares,
    target_label,
)

Entry = Mapping[str, Any]
Made = dict[str, Any]

#: Layers that are drawn one by one; the others are in the table of all.
_DRAWN = 15

#: Decisions up to this many are shown at once.
_OPEN = 20


def page(report: Entry, lock: Entry) -> str:
    """The report as a page; everything that comes from files is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for name in ("size", "amount", "milliseconds", "millijoules", "seconds", "percent", "times", "shape", "plural"):
        environment.filters[name] = getattr(units, name)
    environment.filters["share"] = share
    template = environment.from_string(resources.files("nnc.display").joinpath("report.html").read_text("utf-8"))
    return template.render(
        report=report,
        lock=lock,
        target=target_label(report),
        cards=_cards(report),
        passes=[_pass(row, report["before"]) for row in report["passes"]],
        explanations=[_explanation(row) for row in report["passes"] if explained(row) or row["curve"]],
        plot=plot,
        bounds=BOUNDS,
        shares=shares(report["layers"]),
        strip=_strip(report["layers"]),
        heaviest=_heaviest(report["layers"]),
        left_alone=_left_alone(report["passes"]),
        tolerances=_tolerances(report["passes"]),
        rounding=verify.TOLERANCE,
        command=_command(report, lock),
    )


def _cards(report: Entry) -> list[Made]:
    """What shrank: the figures before and after, and the factor between them."""
    before, after = report["before"], report["after"]
    cards = [
        {
            "title": figure.name,
            "before": figure.text(before[figure.key]),
            "after": figure.text(after[figure.key]),
            "share": after[figure.key] / before[figure.key] if before[figure.key] else 1.0,
            "change": change(figure, before[figure.key], after[figure.key]),
            "worse": change(figure, before[figure.key], after[figure.key]).endswith(figure.worse),
            "note": figure.note,
        }
        for figure in figures(report["latency_source"])
        if before[figure.key] is not None and after[figure.key] is not None
    ]
    return cards[:2] + _accuracy_card(report) + _packed_card(report["weights"]) + cards[2:]


def _packed_card(weights: Mapping[str, Any]) -> list[Made]:
    """What the library makes of the weights that the model had."""
    raw, coded = weights["raw_bytes"], weights["packed_bytes"]
    if coded is None:
        return []
    card = {
        "title": PACKED.name,
        "before": units.size(raw),
        "after": units.size(coded),
        "share": coded / raw if raw else 1.0,
        "change": change(PACKED, raw, coded),
        "worse": coded > raw,
        "note": packed(weights),
    }
    return [card]


def _accuracy_card(report: Entry) -> list[Made]:
    before, after = report["before"]["accuracy"], report["after"]["accuracy"]
    if before is None or after is None:
        return []
    card = {
        "title": "top-1 accuracy",
        "before": units.percent(before),
        "after": units.percent(after),
        "share": after,
        "change": points(before, after),
        "worse": after < before,
        "note": f"in {report['after']['accuracy_runtime']}, on {units.plural(report['accuracy_samples'], 'sample')}",
    }
    return [card]


def _pass(row: Entry, before: Entry) -> Made:
    """A row with the shares of the model's figures that were left after it."""
    keys = ("nodes", "macs", "weight_bytes", "latency_ms")
    before = {**before, "latency_ms": before.get("analytic_ms", before["latency_ms"])}  # as all rows
    return {
        **row,
        "outputs": outputs(row),
        "left": {key: row[key] / before[key] if before[key] else 1.0 for key in keys},
    }


def _explanation(row: Entry) -> Made:
    """What a pass said of its decisions: figures beside those that came, plots, and what it did to each layer."""
    told, kept = ([each for each in row["decisions"] if is_told(each) == side] for side in (True, False))
    changed = sum(map(changes, told))
    return {
        "name": row["name"],
        "said": explained(row),
        "plots": _plots(row["curve"]) if row["curve"] else [],
        "changed": changed,
        "left": len(row["decisions"]) - changed,
        "told": [_decision(each) for each in told],
        "kept": kept,
        "timed": any("latency_ms" in each for each in row["decisions"]),
        "open": len(told) <= _OPEN,
    }


def _plots(curve: Entry) -> list[Made]:
    metric = PREDICTED.get(curve["metric"], curve["metric"])
    titles = {"error": "predicted output error", "accuracy": "predicted top-1 accuracy"}
    drawn = {title: plot.plot(curve["points"], key) for key, title in titles.items()}
    return [{"title": title, "metric": metric, "plot": made} for title, made in drawn.items() if made]


def _decision(decision: Entry) -> Made:
    """A decision with the shares of the layer's figures that are left."""
    figures = {key: decision[key] for key in ("macs", "params", "latency_ms") if key in decision}
    return {
        "layer": decision["layer"],
        "choice": decision["choice"],
        "figures": figures,
        "left": {key: after / before if before else 1.0 for key, (before, after) in figures.items()},
        "error": decision.get("error"),
    }


def _strip(layers: Sequence[Entry]) -> list[Made]:
    """The layers in the order of execution, as spans of a line from 0 to 1000."""
    total, position, spans = sum(layer["latency_ms"] for layer in layers) or 1.0, 0.0, []
    for layer in layers:
        width = layer["latency_ms"] / total * 1000
        spans.append({"layer": layer, "x": position, "width": width})
        position += width
    return spans


def _heaviest(layers: Sequence[Entry]) -> list[Made]:
    """The slowest layers, with their share of the whole and of the slowest one."""
    total = sum(layer["latency_ms"] for layer in layers) or 1.0
    ranked = sorted(layers, key=lambda layer: -layer["latency_ms"])[:_DRAWN]
    most = ranked[0]["latency_ms"] if ranked else 1.0
    return [{"layer": each, "share": each["latency_ms"] / total, "bar": each["latency_ms"] / most} for each in ranked]


def _left_alone(rows: Sequence[Entry]) -> list[Made]:
    """Places that were considered and left alone, by pass and reason, the most frequent reason first."""
    groups = []
    for row in rows:
        nodes = defaultdict(list)
        for entry in row["skipped"]:
            nodes[entry["reason"]].append(entry["node"])
        for reason, names in sorted(nodes.items(), key=lambda group: -len(group[1])):
            groups.append({"pass": row["name"], "reason": reason, "nodes": names})
    return groups


def _tolerances(rows: Sequence[Entry]) -> dict[float, list[str]]:
    """By the difference that counted as rounding, the smallest first: the passes whose outputs were proved equal."""
    proved = [(row["tolerance"], row["name"]) for row in rows if row["tolerance"] is not None]
    return {limit: list(dict.fromkeys(name for at, name in proved if at == limit)) for limit in sorted(dict(proved))}


def _command(report: Entry, lock: Entry) -> str:
    """What reproduces the result, with the recipe, the model and the data at hand."""
    return command(
        lock["recipe"]["name"],
        lock["model"]["name"],
        report["target"]["spec"],
        data=[f"{key}=..." for key in lock["data"]["sha256"]],
        preprocess=lock["recipe"]["preprocess"],
        overrides=lock["recipe"]["set"],
        shapes=lock["shapes"],
        threads=lock["threads"],
        seed=lock["seed"],
        lower="library_bytes" in report,
        latency=report["latency_source"],
    )
