"""Results on stdout, as tables that fit the terminal; in a pipe they are as wide as they need to be."""

from __future__ import annotations

import math
import re
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from nnc import report, toml, units

if TYPE_CHECKING:
    from nnc.benchmark import Timing
    from nnc.doctor import Check
    from nnc.evaluation import Evaluation

#: Terminals from this width on show every column.
_WIDE = 100

_UNLIMITED = 100_000
_LISTED = 3  # nodes named per reason; the rest is counted

Row = Mapping[str, Any]


class _Output(Console):
    """Stdout, without the spaces that fill up the last column where it is no terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        for line in captured.get().splitlines():
            print(line.rstrip())

    def on_broken_pipe(self) -> None:
        raise  # rich calls this while it handles the BrokenPipeError; `failing` does the rest


def console() -> Console:
    width = None if sys.stdout.isatty() else _UNLIMITED
    return _Output(markup=False, highlight=False, emoji=False, width=width, soft_wrap=False)


def table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    """An empty table; columns in `numbers` are aligned right and never cut."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    numeric = set(numbers)
    for name in columns:
        if name in numeric:
            made.add_column(name, justify="right", no_wrap=True)
        else:
            made.add_column(name, overflow="ellipsis", min_width=min(len(name), 4))
    return made


def add(to: Table, *cells: object, style: str | None = None) -> None:
    """A row; what a file holds may not control the terminal."""
    to.add_row(*(re.sub(r"[\x00-\x1f\x7f]", "?", str(cell)) for cell in cells), style=style)


def before_after(before: Row, after: Row) -> Table:
    """What became smaller, and by what factor."""
    made = table("", "before", "after", "", numbers=("before", "after"))
    for figure in report.FIGURES:
        old, new = before[figure.key], after[figure.key]
        if old is not None and new is not None:
            add(made, figure.name, figure.text(old), figure.text(new), report.change(figure, old, new))
    if before["accuracy"] is not None:
        old, new = before["accuracy"], after["accuracy"]
        add(made, "top-1 accuracy", units.percent(old), units.percent(new), report.points(old, new))
    return made


def passes(rows: Sequence[Row], width: int, before: Row | None = None) -> Table:
    """A row per pass: how often it changed something, and what it left of the model."""
    accuracy = any(row["accuracy"] is not None for row in rows)
    columns = ["changes", "nodes", "MACs", "weights", "latency", *(["top-1"] if accuracy else []), "outputs"]
    columns += ["time"] if width >= _WIDE else []
    made = table("pass", *columns, numbers=columns)
    if before is not None:
        add(made, "(model)", *_cells({"changed": "", "snr_db": None, "proof": "", **before}, columns), style="dim")
    for row in rows:
        add(made, row["name"], *_cells(row, columns), style=None if row["changed"] else "dim")
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
    made = table("pass", "left alone", "because", "such as", numbers=("left alone",))
    for row in rows:
        reasons = Counter(entry["reason"] for entry in row["skipped"])
        for reason, count in reasons.most_common():
            nodes = [entry["node"] for entry in row["skipped"] if entry["reason"] == reason]
            more = f" and {count - _LISTED} more" if count > _LISTED else ""
            add(made, row["name"], count, reason, ", ".join(nodes[:_LISTED]) + more)
    return made


def layers(rows: Sequence[Row], width: int) -> Table:
    """A row per fused kernel and their sum; with latencies where they are predicted."""
    timed = any("latency_ms" in row for row in rows)
    numbers = ["output", "MACs", "params", *(["latency", "share"] if timed else [])]
    columns = ["layer", "op", *numbers, *(["bound by"] if timed else [])]
    if timed and width < _WIDE:
        columns.remove("params")
    made = table(*columns, numbers=numbers)
    total = {key: sum(row.get(key, 0.0) for row in rows) for key in ("macs", "params", "latency_ms")}
    room = 24 if width < _WIDE else _UNLIMITED
    for row in rows:
        named = {**row, "name": _ending(row["name"], room)}
        add(made, *_layer_cells(named, total["latency_ms"], columns))
    made.add_section()
    sums = {"name": units.plural(len(rows), "layer"), "op": "", "shape": None, **total}
    add(made, *_layer_cells(sums, total["latency_ms"], columns))
    return made


def _ending(name: str, room: int) -> str:
    """The end of a long name, which tells layers apart."""
    return name if len(name) <= room else f"…{name[1 - room :]}"


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
    made = table("after", "top-1", "change", "since the model", numbers=("top-1", "change", "since the model"))
    first = previous = states[0][1]
    worst = min((now - before for (_, before), (_, now) in pairwise(states)), default=0.0)
    for name, accuracy in states:
        change = accuracy - previous
        style = "bold red" if change < 0 and change == worst else None
        add(
            made,
            name,
            units.percent(accuracy),
            report.points(previous, accuracy),
            report.points(first, accuracy),
            style=style,
        )
        previous = accuracy
    return made


def kernels(rows: Sequence[Row]) -> Table:
    """Measured time per kernel of a compiled library, the slowest first."""
    made = table("kernel", "computes", "output", "time", "share", numbers=("output", "time", "share"))
    total = sum(row["ms"] for row in rows)
    for row in sorted(rows, key=lambda row: -row["ms"]):
        share = units.percent(row["ms"] / total if total else 0.0)
        layer = " ".join([row["op"], *row["nodes"][:1]]).strip()
        add(made, row["name"], layer, units.shape(row["shape"]), units.milliseconds(row["ms"]), share)
    return made


def definition(entries: Iterable[tuple[str, object]]) -> Table:
    """Names and what they stand for, without a heading."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, content in entries:
        add(made, name, content)
    return made


# -- what a command prints when it is done


def show_compiled(result: Row, folder: Path) -> None:
    out = console()
    title = f"{result['model']['name']} for {report.target_spec(result)}, recipe {result['recipe']['name']}\n"
    out.print(title, style="bold")
    out.print(before_after(result["before"], result["after"]))
    out.print()
    out.print(passes(result["passes"], _width()))
    _show_not_compared(result["passes"], out)
    left = sum(len(row["skipped"]) for row in result["passes"])
    if left:
        out.print(f"\n{units.plural(left, 'place')} left alone; the report says why.", style="dim")
    out.print("\nLatency and memory are predicted from the figures of the target, not measured.", style="dim")
    out.print()
    out.print(definition((folder / name, _contents(name, folder)) for name in (*result["files"], "nnc.lock")))


# fmt: off
_CONTENTS = {
    "model.onnx": "the compressed model", "model.onnx.data": "its weights", "module.so": "the library for the target",
    "report.json": "the figures for programs", "report.html": "the report: open it in a browser",
    "nnc.lock": "what the result depends on",
}
# fmt: on


def _contents(name: str, folder: Path) -> str:
    text = _CONTENTS.get(name, "")
    return f"{text} ({units.size((folder / name).stat().st_size)})" if name.startswith("mod") else text


def show_plan(planned: Row) -> None:
    out = console()
    rows = planned["passes"]
    out.print(passes(rows, _width(), planned["before"]))
    _show_not_compared(rows, out)
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
    add(made, "-", text)
    return made


def show_bisection(states: Sequence[tuple[str, float]]) -> None:
    console().print(accuracies(states))


def show_outputs(outputs: Mapping[str, np.ndarray], runtime: str, saved: Path | None) -> None:
    out = console()
    made = table("output", "dtype", "shape", "smallest", "largest", numbers=("smallest", "largest"))
    for name, summary in described(outputs).items():
        least, most = (f"{summary[key]:.5g}" for key in ("min", "max"))
        add(made, name, summary["dtype"], units.shape(summary["shape"]), least, most)
    out.print(made)
    for name, summary in described(outputs).items():
        for sample, ranked in enumerate(summary["top5"]):
            which = f" of sample {sample}" if len(summary["top5"]) > 1 else ""
            out.print(f"\n{name}: the highest scores{which}", style="bold")
            out.print(definition((index, f"{score:.5g}") for index, score in ranked))
    out.print(f"\ncomputed by {runtime}" + (f"; saved to {saved}" if saved else ""), style="dim")


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
    out = console()
    made = table("rounds", "median", "lowest", "highest", numbers=("median", "lowest", "highest"))
    for name, values in (("nnc", timing.nnc), ("onnxruntime", timing.onnxruntime)):
        add(made, name, *map(units.milliseconds, (statistics.median(values), min(values), max(values))))
    add(
        made,
        "onnxruntime / nnc",
        *map(units.times, (timing.ratio, min(timing.ratios), max(timing.ratios))),
        style="bold",
    )
    out.print(made)
    threads = units.plural(timing.threads, "thread")
    out.print(f"\none inference on {threads}, {units.plural(len(timing.nnc), 'round')} in turns", style="dim")


def show_profile(rows: Sequence[Row]) -> None:
    out = console()
    out.print(kernels(rows))
    templates = {row["template"]: 0.0 for row in rows}
    for row in rows:
        templates[row["template"]] += row["ms"]
    total = sum(templates.values()) or 1.0
    made = table("template", "kernels", "time", "share", numbers=("kernels", "time", "share"))
    for name, ms in sorted(templates.items(), key=lambda entry: -entry[1]):
        count = sum(row["template"] == name for row in rows)
        add(made, name, count, units.milliseconds(ms), units.percent(ms / total))
    made.add_section()
    add(made, "all", len(rows), units.milliseconds(total), "")
    out.print()
    out.print(made)


def show_accuracy(measured: Evaluation) -> None:
    rows = (("top-1", units.percent(measured.top1)), ("top-5", units.percent(measured.top5)))
    out = console()
    out.print(definition(rows))
    out.print(f"\n{units.plural(measured.count, 'sample')}, computed by {measured.runtime}", style="dim")
    out.print(f"images prepared with {measured.preprocess}", style="dim")


def show_inspection(inspected: Row) -> None:
    out = console()
    totals = inspected["totals"]
    out.print(layers(inspected["layers"], _width()))
    entries = [("nodes", totals["nodes"]), ("weights", units.size(totals["weight_bytes"]))]
    entries += [("peak activations", units.size(totals["peak_activation_bytes"]))]
    if inspected["target"]:
        entries += [("predicted latency", f"{units.milliseconds(totals['latency_ms'])} on {inspected['target']}")]
        entries += [("predicted energy", units.millijoules(totals["energy_mj"]))] * (totals["energy_mj"] is not None)
    out.print()
    out.print(definition(entries))
    if inspected["remarks"]:
        out.print()
        _show_remarks(inspected["remarks"], out)


def show_network(figures: Row) -> None:
    text = f"{units.amount(figures['params'])} parameters, {units.amount(figures['macs'])} MACs"
    console().print(f"{figures['file']}: {text}, {units.plural(figures['nodes'], 'node')}")


def show_list(entries: Mapping[str, Row], columns: Sequence[str]) -> None:
    made = table("name", "description", *columns)
    made.columns[0].no_wrap = True
    for name, entry in entries.items():
        add(made, name, entry["description"], *(_joined(entry[column]) for column in columns))
    console().print(made)


def _joined(cell: object) -> str:
    return ", ".join(map(str, cell)) if isinstance(cell, list) else str(cell)


def show_pass(entry: Row) -> None:
    out = console()
    out.print(f"{entry['name']} ({entry['effect']})\n", style="bold")
    out.print(entry["documentation"])
    if entry["parameters"]:
        made = table("parameter", "is", "default", "")
        made.columns[0].no_wrap = True
        for row in entry["parameters"]:
            default = "" if row["default"] is None else toml.value(row["default"])
            add(made, row["name"], row["type"], default, row["description"])
        out.print()
        out.print(made)


def show_target(entry: Row) -> None:
    out = console()
    out.print(f"{entry['name']}: {entry['description']}\n", style="bold")
    dram = entry["dram"]
    chip = [("memory", f"{dram['gbps']:g} GB/s, of which {units.percent(dram['efficiency'])} are reached")]
    if entry["modes"]:
        chip.append(("power modes", ", ".join(f"{mode}{' *' * (mode == entry['mode'])}" for mode in entry["modes"])))
    if entry["idle_watts"]:
        chip.append(("idle power", f"{entry['idle_watts']:g} W"))
    out.print(definition(chip))
    for unit in entry["figures"]:
        out.print(f"\n{entry['name']}:{unit['name']}{' *' * (unit['name'] == entry['unit'])}", style="bold")
        out.print(definition(_unit(unit)))
    out.print("\n* selected; [unit] and [mode] are chosen with --target NAME:UNIT@MODE", style="dim")


def _unit(unit: Row) -> Iterable[tuple[str, object]]:
    for cluster in unit["cluster"]:
        peak = ", ".join(f"{dtype} {macs:g}" for dtype, macs in cluster["macs_per_cycle"].items())
        yield f"{cluster['count']} x {cluster['core']}", f"{cluster['clock_ghz']:g} GHz; MACs per cycle: {peak}"
        yield "  caches", f"L1 {units.cache(cluster['l1d_bytes'])}, L2 {units.cache(cluster['l2_bytes'])}"
    if unit["l3_bytes"]:
        yield "last cache", f"{units.cache(unit['l3_bytes'])}, {unit['l3_gbps']:g} GB/s"
    yield "threads", unit["threads"]
    yield "vectors", f"{unit['vector_registers']} registers of {unit['vector_bits']} bits"
    yield "channels", f"in multiples of {unit['channel_multiple']}"
    yield "int8 dot product", "yes" if unit["int8_dot"] else "no"
    yield "one kernel", f"{unit['dispatch_us']:g} us to start, {unit['fork_join_us']:g} us to spread over the threads"
    yield "code", " ".join(f"{key}={_joined(value)}" for key, value in unit["tvm"].items() if key != "host")


def show_checks(found: Sequence[Check]) -> None:
    out = console()
    made = table("", "name", "version", "for")
    made.columns[1].no_wrap = True
    for check in found:
        add(made, "yes" if check.found else "no", check.name, check.version or "", check.needed_for)
    out.print(made)
    missing = [(check.name, check.hint) for check in found if not check.found]
    if missing:
        out.print("\nHow to get the others:", style="bold")
        out.print(definition(missing))


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNLIMITED
