"""What `nnc compile`, `plan`, `bisect`, `inspect` and `network` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nnc import report
from nnc.display import explanations, tables, units

_LISTED = 3  # nodes named per reason; the rest is counted

Row = Mapping[str, Any]


def show_compiled(result: Row, folder: Path) -> None:
    out = tables.console()
    title = f"{result['model']['name']} for {report.target_label(result)}, recipe {result['recipe']['name']}\n"
    out.print(title, style="bold")
    out.print(before_after(result))
    if packed := report.packed(result["weights"]):
        out.print(f"\n{packed}")
    out.print()
    out.print(passes(result["passes"], tables.width()))
    _show_not_compared(result["passes"], out)
    for row in result["passes"]:
        if row["predicted"]:
            out.print(f"\n{row['name']}: {report.explained(row)}")
    left = sum(len(row["skipped"]) for row in result["passes"])
    if left:
        out.print(f"\n{units.plural(left, 'place')} left alone; the report says why.", style="dim")
    out.print(f"\n{_SOURCES[result['latency_source']]}", style="dim")
    out.print()
    out.print(tables.definition((folder / name, _contents(name, folder)) for name in (*result["files"], "nnc.lock")))


_SOURCES = {
    "analytic": "Latency and memory are predicted from the figures of the target, not measured.",
    "emulated": "Latencies before and after are of the libraries, executed in emulation; all others and memory are "
    "predicted from the figures of the target. Nothing was measured on a board.",
}

# fmt: off
_CONTENTS = {
    "model.onnx": "the compressed model", "model.onnx.data": "its weights", "module.so": "the library for the target",
    "module.o": "the network for the DSP, to be linked",
    "kernels.cl": "the kernels in OpenCL C", "kernels.cu": "the kernels in CUDA C",
    "kernels.ptx": "the same, compiled for the target", "network.json": "what to launch, on which memory",
    "weights.bin": "the weights as the kernels read them",
    "report.json": "the figures for programs", "report.html": "the report: open it in a browser",
    "nnc.lock": "what the result depends on",
}
# fmt: on


def _contents(name: str, folder: Path) -> str:
    text = _CONTENTS.get(name, "")
    return f"{text} ({units.size((folder / name).stat().st_size)})" if name.startswith("mod") else text


def show_plan(planned: Row) -> None:
    out = tables.console()
    rows = planned["passes"]
    out.print(passes(rows, tables.width(), planned["before"]))
    _show_not_compared(rows, out)
    for row in rows:
        explanations.show(row, out, tables.width())
    if any(row["skipped"] for row in rows):
        out.print()
        out.print(skipped(rows))
    if planned["remarks"]:
        out.print(f"\nWhat takes the time afterwards, as predicted for {planned['target']}:", style="bold")
        _show_remarks(planned["remarks"], out)


def _show_not_compared(rows: Sequence[Row], out: Console) -> None:
    reasons = [row["proof"] for row in rows if row["proof"].startswith("not compared")]
    if reasons:
        out.print(f"\nOutputs {reasons[0]}", style="bold")


def _show_remarks(remarks: Iterable[str], out: Console) -> None:
    for remark in remarks:
        out.print(_bullet(remark))


def _bullet(text: str) -> Table:
    made = Table(box=None, pad_edge=False, show_header=False)
    tables.add(made, "-", text)
    return made


def show_bisection(states: Sequence[tuple[str, float]]) -> None:
    tables.console().print(accuracies(states))


def _predicted(totals: Row, target: str) -> str:
    expected = totals["latency_error"]
    off = "" if expected is None else f", give or take {units.percent(expected)}"
    return f"{units.milliseconds(totals['latency_ms'])} on {target}{off}"


def show_inspection(inspected: Row) -> None:
    out = tables.console()
    totals = inspected["totals"]
    out.print(layers(inspected["layers"], tables.width()))
    entries = [("nodes", totals["nodes"]), ("weights", units.size(totals["weight_bytes"]))]
    entries += [("peak activations", units.size(totals["peak_activation_bytes"]))]
    if inspected["target"]:
        entries += [("predicted latency", _predicted(totals, inspected["target"]))]
        entries += [("predicted energy", units.millijoules(totals["energy_mj"]))] * (totals["energy_mj"] is not None)
    out.print()
    out.print(tables.definition(entries))
    if inspected["remarks"]:
        out.print()
        _show_remarks(inspected["remarks"], out)


def show_emulation(timed: Row) -> None:
    """What a library costs, layer by layer, beside what the target's figures say."""
    out = tables.console()
    out.print(emulated_layers(timed["layers"], tables.width()))
    ratio = timed["latency_ms"] / timed["analytic_ms"]
    cores = units.plural(timed["threads"], "core")
    out.print()
    out.print(
        tables.definition(
            [
                ("emulated latency", f"{units.milliseconds(timed['latency_ms'])} on {timed['target']}, {cores}"),
                ("analytic latency", f"{units.milliseconds(timed['analytic_ms'])}; emulated / analytic {ratio:.2f}"),
            ]
        )
    )


def emulated_layers(rows: Sequence[Row], width: int) -> Table:
    """A row per layer: emulated and analytic latency, their ratio, and what the emulated one consists of."""
    wide = ["cycles", "ipc", "L1 misses", "L2 misses"] if width >= tables.WIDE else []
    numbers = ["emulated", "analytic", "ratio", *wide]
    made = tables.table("layer", "op", *numbers, "bound by", "why", numbers=numbers)
    room = 24 if width < tables.WIDE else tables.UNLIMITED
    for row in rows:
        # fmt: off
        cells = {
            "emulated": units.milliseconds(row["latency_ms"]),
            "analytic": units.milliseconds(row["analytic_ms"]),
            "ratio": f"{row['latency_ms'] / row['analytic_ms']:.2f}" if row["analytic_ms"] else "-",
            "cycles": units.amount(row["cycles"]),
            "ipc": "-" if row["ipc"] is None else f"{row['ipc']:.2f}",
            "L1 misses": units.amount(row["l1_misses"]),
            "L2 misses": units.amount(row["l2_misses"]),
        }
        # fmt: on
        named = tables.ending(row["name"], room)
        tables.add(made, named, row["op"], *(cells[number] for number in numbers), row["bound"], row["why"])
    return made


def show_groups(inspected: Row) -> None:
    out = tables.console()
    made = tables.table("group", "channels", "written by", "read by", "followed by", numbers=("channels",))
    for group in inspected["groups"]:
        places = [_names(group[key]) for key in ("written_by", "read_by", "followed_by")]
        tables.add(made, group["name"], group["channels"], *places)
    out.print(made)
    if inspected["fixed"]:
        out.print()
        out.print(_fixed(inspected["fixed"]))


def _fixed(reasons: Mapping[str, str]) -> Table:
    """The layers with channels that stay, by reason."""
    made = tables.table("stay", "because", "such as", numbers=("stay",))
    for reason, count in Counter(reasons.values()).most_common():
        tables.add(made, count, reason, _names([name for name, each in reasons.items() if each == reason]))
    return made


def _names(names: Sequence[str]) -> str:
    """The first few of some nodes."""
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def show_network(figures: Row) -> None:
    text = f"{units.amount(figures['params'])} parameters, {units.amount(figures['macs'])} MACs"
    tables.console().print(f"{figures['file']}: {text}, {units.plural(figures['nodes'], 'node')}")


def before_after(result: Row) -> Table:
    """What became smaller, and by what factor."""
    before, after = result["before"], result["after"]
    made = tables.table("", "before", "after", "", numbers=("before", "after"))
    for figure in report.figures(result["latency_source"]):
        old, new = before[figure.key], after[figure.key]
        if old is not None and new is not None:
            tables.add(made, figure.name, figure.text(old), figure.text(new), report.change(figure, old, new))
    if before["accuracy"] is not None:
        old, new = before["accuracy"], after["accuracy"]
        tables.add(made, "top-1 accuracy", units.percent(old), units.percent(new), report.points(old, new))
    return made


def passes(rows: Sequence[Row], width: int, before: Row | None = None) -> Table:
    """A row per pass: how often it changed something, and what it left of the model."""
    accuracy = any(row["accuracy"] is not None for row in rows)
    columns = ["changes", "nodes", "MACs", "weights", "latency", *(["top-1"] if accuracy else []), "outputs"]
    columns += ["time"] if width >= tables.WIDE else []
    made = tables.table("pass", *columns, numbers=columns)
    if before is not None:
        imported = {"changed": "", "snr_db": None, "proof": "unchanged", **before}
        tables.add(made, "(model)", *_cells(imported, columns), style="dim")
    for row in rows:
        tables.add(made, row["name"], *_cells(row, columns), style=None if row["changed"] else "dim")
    return made


def _cells(row: Row, columns: Iterable[str]) -> list[str]:
    # fmt: off
    cells = {
        "changes": row["changed"],
        "nodes": row["nodes"],
        "MACs": units.amount(row["macs"]),
        "weights": units.size(row["weight_bytes"]),
        "latency": units.milliseconds(row["latency_ms"]),
        "top-1": units.percent(row["accuracy"]) if row["accuracy"] is not None else "",
        "outputs": report.outputs(row),
        "time": "kept" if row.get("reused") else units.seconds(row["seconds"]) if "seconds" in row else "",
    }
    # fmt: on
    return [str(cells[column]) for column in columns]


def skipped(rows: Sequence[Row]) -> Table:
    """The places that passes considered and left alone, by reason."""
    made = tables.table("pass", "left alone", "because", "such as", numbers=("left alone",))
    for row in rows:
        reasons = Counter(entry["reason"] for entry in row["skipped"])
        for reason, count in reasons.most_common():
            nodes = [entry["node"] for entry in row["skipped"] if entry["reason"] == reason]
            tables.add(made, row["name"], count, reason, _names(nodes))
    return made


def layers(rows: Sequence[Row], width: int) -> Table:
    """A row per fused kernel and their sum; with latencies where they are predicted."""
    timed = any("latency_ms" in row for row in rows)
    numbers = ["output", "MACs", "params", *(["latency", "share"] if timed else [])]
    columns = ["layer", "op", *numbers, *(["bound by"] if timed else [])]
    if timed and width < tables.WIDE:
        columns.remove("params")
    made = tables.table(*columns, numbers=numbers)
    total = {key: sum(row.get(key, 0.0) for row in rows) for key in ("macs", "params", "latency_ms")}
    room = 24 if width < tables.WIDE else tables.UNLIMITED
    for row in rows:
        named = {**row, "name": tables.ending(row["name"], room)}
        tables.add(made, *_layer_cells(named, total["latency_ms"], columns))
    made.add_section()
    sums = {"name": units.plural(len(rows), "layer"), "op": "", "shape": None, **total}
    tables.add(made, *_layer_cells(sums, total["latency_ms"], columns))
    return made


def _layer_cells(row: Row, total_ms: float, columns: Iterable[str]) -> list[str]:
    latency = row.get("latency_ms", 0.0)
    # fmt: off
    cells = {
        "layer": row["name"],
        "op": row["op"],
        "output": "" if row["shape"] is None else units.shape(row["shape"]),
        "MACs": units.amount(row["macs"]),
        "params": units.amount(row["params"]),
        "latency": units.milliseconds(latency),
        "share": units.percent(latency / (total_ms or 1.0)),
        "bound by": row.get("bound", ""),
    }
    # fmt: on
    return [cells[column] for column in columns]


def accuracies(states: Sequence[tuple[str, float]]) -> Table:
    """The accuracy after each pass, and what the pass cost."""
    made = tables.table("after", "top-1", "change", "since the model", numbers=("top-1", "change", "since the model"))
    first = previous = states[0][1]
    worst = min((now - before for (_, before), (_, now) in pairwise(states)), default=0.0)
    for name, accuracy in states:
        change = accuracy - previous
        style = "bold red" if change < 0 and change == worst else None
        tables.add(
            made,
            name,
            units.percent(accuracy),
            report.points(previous, accuracy),
            report.points(first, accuracy),
            style=style,
        )
        previous = accuracy
    return made
