"""What `nnc passes`, `targets`, `recipes`, `network list`, `doctor`, `tune` and `records` print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nnc import toml
from nnc.display import tables, units

if TYPE_CHECKING:
    from nnc.doctor import Check

Row = Mapping[str, Any]


def show_list(entries: Mapping[str, Row], columns: Sequence[str]) -> None:
    made = tables.table("name", "description", *columns)
    made.columns[0].no_wrap = True
    for name, entry in entries.items():
        tables.add(made, name, entry["description"], *(_joined(entry[column]) for column in columns))
    tables.console().print(made)


def show_networks(rows: Sequence[Row]) -> None:
    made = tables.table("name", "input", "parameters", "MACs", numbers=("input", "parameters", "MACs"))
    for row in rows:
        tables.add(
            made, row["name"], "x".join(map(str, row["input"])), units.amount(row["params"]), units.amount(row["macs"])
        )
    tables.console().print(made)


def show_pass(entry: Row) -> None:
    out = tables.console()
    out.print(f"{entry['name']} ({entry['effect']})\n", style="bold")
    out.print(entry["documentation"])
    if entry["parameters"]:
        made = tables.table("parameter", "is", "default", "")
        made.columns[0].no_wrap = True
        for row in entry["parameters"]:
            default = "" if row["default"] is None else toml.value(row["default"])
            tables.add(made, row["name"], row["type"], default, row["description"])
        out.print()
        out.print(made)


def show_target(entry: Row) -> None:
    out = tables.console()
    out.print(f"{entry['name']}: {entry['description']}\n", style="bold")
    dram = entry["dram"]
    chip = [("memory", f"{dram['gbps']:g} GB/s, of which {units.percent(dram['efficiency'])} are reached")]
    if entry["modes"]:
        chip.append(("power modes", ", ".join(f"{mode}{' *' * (mode == entry['mode'])}" for mode in entry["modes"])))
    if entry["idle_watts"]:
        chip.append(("idle power", f"{entry['idle_watts']:g} W"))
    out.print(tables.definition(chip))
    for unit in entry["figures"]:
        out.print(f"\n{entry['name']}:{unit['name']}{' *' * (unit['name'] == entry['unit'])}", style="bold")
        out.print(tables.definition(_unit(unit)))
    out.print("\n* selected; [unit] and [mode] are chosen with --target NAME:UNIT@MODE", style="dim")


def _unit(unit: Row) -> Iterable[tuple[str, object]]:
    for cluster in unit["cluster"]:
        peak = ", ".join(f"{dtype} {macs:g}" for dtype, macs in cluster["macs_per_cycle"].items())
        yield f"{cluster['count']} x {cluster['core']}", f"{cluster['clock_ghz']:g} GHz; MACs per cycle: {peak}"
        if cluster["active_watts"]:
            yield "  power", f"{cluster['active_watts']:.3g} W above idle of each that computes"
        yield "  caches", f"L1 {units.cache(cluster['l1d_bytes'])}, L2 {units.cache(cluster['l2_bytes'])}"
    if unit["l3_bytes"]:
        yield "last cache", f"{units.cache(unit['l3_bytes'])}, {unit['l3_gbps']:g} GB/s"
    yield "threads", unit["threads"]
    yield "vectors", f"{unit['vector_registers']} registers of {unit['vector_bits']} bits"
    yield "channels", f"in multiples of {unit['channel_multiple']}"
    yield "int8 dot product", "yes" if unit["int8_dot"] else "no"
    yield "predicted as", unit["profile"] or "the file says"
    for dtype, shares in unit["efficiency"].items():
        yield f"  {dtype}", _efficiency(shares)
    yield "code", " ".join(f"{key}={_joined(value)}" for key, value in unit["tvm"].items() if key != "host")


def _efficiency(shares: Row) -> str:
    """The shares of the peak, what a kernel costs to start, and how far off predictions are."""
    classes = ("winograd", "conv", "pointwise", "grouped", "depthwise")
    parts = [", ".join(f"{name} {shares[name]:.2g}" for name in classes) + " of the peak"]
    parts.append(f"{shares['kernel_us']:.2g} us per kernel")
    if shares["error"] is not None:
        parts.append(f"{units.percent(shares['error'])} off on other networks or chips")
    return "; ".join(parts)


def _joined(cell: object) -> str:
    return ", ".join(map(str, cell)) if isinstance(cell, list) else str(cell)


def show_checks(found: Sequence[Check]) -> None:
    out = tables.console()
    made = tables.table("", "name", "version", "for")
    made.columns[1].no_wrap = True
    for check in found:
        tables.add(made, "yes" if check.found else "no", check.name, check.version or "", check.needed_for)
    out.print(made)
    missing = [(check.name, check.hint) for check in found if not check.found]
    if missing:
        out.print("\nHow to get the others:", style="bold")
        out.print(tables.definition(missing))


def show_tuning(result: Mapping[str, Any]) -> None:
    """The gain of every layer, and of all of them together."""
    out, made = tables.console(), tables.table(*_TUNED, numbers=_TUNED[2:])
    for row in sorted(result["layers"], key=lambda row: -(row["default_ms"] or 0) * len(row["layers"])):
        times = (units.milliseconds(row[key]) for key in ("default_ms", "tuned_ms"))
        counts = f"{row['trials']} of {row['candidates']}"
        tables.add(
            made, row["workload"], row["layout"], len(row["layers"]), *times, units.times(row["speedup"]), counts
        )
    out.print(made)
    network = result["network_speedup"]
    speed, where = (network, "in the network") if network is not None else (result["speedup"], result["source"])
    out.print(f"\n{units.times(speed)} the speed of the default plans, {where}", style="bold")
    trials, taken = units.plural(result["trials"], "trial"), units.seconds(result["seconds"])
    out.print(f"{trials} in {taken}, kept in {result['records']}; nnc compile uses them from now on", style="dim")


_TUNED = ("layer", "layout", "times", "default", "tuned", "speed-up", "trials")


def show_records(rows: Sequence[Mapping[str, Any]]) -> None:
    """The best record of every workload."""
    out, made = tables.console(), tables.table("workload", "plan", "speed-up", "from", numbers=("speed-up",))
    for row in rows:
        workload = row["workload"]
        problem = " ".join(
            f"{key}={value}" for key, value in workload["problem"].items() if not isinstance(value, dict)
        )
        tables.add(
            made, f"{workload['op']} {problem}", row["plan"]["template"], units.times(row["speedup"]), row["from"]
        )
    out.print(made if rows else "no records yet: nnc tune MODEL makes some")
