"""Latencies of reference networks in emulation, as a table like that of measurements: what nnc's own code costs.

    python -m nnc.validation.emulated emulated.csv [--networks A,B] [--targets qcs605,raspberry-pi-4] [--dtypes int8]
    python -m nnc.validation.fit emulated.csv --emulated -o compiler/simulation/profiles.toml

Engines whose measurements are published spread and schedule their work in their own ways. A profile of nnc's code needs
latencies of nnc's code; without boards, these are emulated (nnc.simulation.emulated). They are kept apart from what was
measured: in a file of their own, under an engine of their own, "nnc".

Every row is written when it is there, and a row that the table has already is not made again: an interrupted run goes
on where it was.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc import networks, pipeline, recipe
from nnc import target as targets
from nnc.context import Context, Progress
from nnc.data import Dataset
from nnc.display.console import failing, progress
from nnc.errors import NncError
from nnc.rewrite import Pass
from nnc.target import Target

#: Of every kind of layer and size something; the largest takes a minute.
NETWORKS = (
    "mobilenet_v2", "resnet18", "squeezenet1_1", "shufflenet_v2", "mobilenet_v1_0.25", "alexnet", "mnasnet",
    "googlenet", "mobilenet_v1", "efficientnet_lite0",
)  # fmt: skip

#: Targets with the numbers of cores: those that run in order and ahead, with one vector pipe and two, mixed and alike.
SETTINGS = {
    "qcs605": (1, 2, 8), "raspberry-pi-4": (4,), "jetson-xavier": (8,),
}  # fmt: skip

#: What a recipe adds to "simplify" for a type of arithmetic.
_PASSES = {"float32": "", "float16": "cast-fp16", "int8": "insert-qdq"}

_COLUMNS = (
    "chip", "unit", "cores_used", "core_type", "clock_ghz", "framework", "dtype", "model_id", "input_shape",
    "latency_ms", "kind",
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """A row to make."""

    network: str
    target: str
    threads: int
    dtype: str


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--targets", default=",".join(SETTINGS))
    parser.add_argument("--dtypes", default="float32")
    asked = parser.parse_args(arguments)
    wanted = [
        Wanted(network, target, threads, dtype)
        for dtype in asked.dtypes.split(",")
        for network in asked.networks.split(",")
        for target in asked.targets.split(",")
        for threads in SETTINGS.get(target, (targets.load(target).unit.threads,))
    ]
    with progress(False) as report:
        write(asked.table, wanted, report)


def write(table: Path, wanted: Sequence[Wanted], report: Progress) -> None:
    """Append the rows that the table does not have yet."""
    there = _rows(table)
    for index, each in enumerate(wanted):
        report(f"{each.network} on {each.target}, {each.threads} cores, {each.dtype}", index, len(wanted))
        chip = targets.load(each.target)
        row = _row(each, chip)
        if tuple(row.values()) in there:
            continue
        row |= {"latency_ms": f"{_milliseconds(each, chip):.4f}", "kind": "emulated"}
        is_new = not table.exists()
        with open(table, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)
    report("done", len(wanted), len(wanted))


def _rows(table: Path) -> set[tuple[str, ...]]:
    """What names every row of the table: its cells without the figures."""
    if not table.exists():
        return set()
    with open(table, newline="", encoding="utf-8") as file:
        return {tuple(row[column] for column in _COLUMNS[:-2]) for row in csv.DictReader(file)}


def _row(wanted: Wanted, chip: Target) -> dict[str, str]:
    """A row without its latency."""
    clusters = _clusters(chip, wanted.threads)
    counts = "+".join(f"{count}x{core}" for core, count, _ in clusters) if len(clusters) > 1 else clusters[0][0]
    dims = networks.build(wanted.network, seed=None).graph.input[0].type.tensor_type.shape.dim
    return {
        "chip": (*chip.chips, chip.name)[0],
        "unit": chip.unit.kind,
        "cores_used": str(wanted.threads),
        "core_type": counts,
        "clock_ghz": "+".join(f"{clock:g}" for _, _, clock in clusters),
        "framework": "nnc",
        "dtype": wanted.dtype,
        "model_id": wanted.network,
        "input_shape": "x".join(str(dim.dim_value) for dim in dims),
    }


def _clusters(chip: Target, threads: int) -> list[tuple[str, int, float]]:
    """The clusters that take part: core type, how many cores, GHz."""
    found, left = [], threads
    for cluster in chip.unit.clusters:
        if left > 0:
            found.append((cluster.core.split()[-1], min(left, cluster.count), cluster.clock_ghz))
        left -= cluster.count
    return found


def _milliseconds(wanted: Wanted, chip: Target) -> float:
    from nnc import lowering
    from nnc.simulation import emulated

    emulated.require(chip, wanted.threads)
    graph = _compressed(graphs.from_model(networks.build(wanted.network, seed=0)), chip, wanted.dtype)
    with tempfile.TemporaryDirectory(prefix="nnc-") as name:
        built = lowering.build(graph, chip, Path(name), threads=wanted.threads)
        steps = emulated.network(built.files[0], chip, wanted.threads)
    return sum(step.milliseconds for step in steps)


def _compressed(graph: gs.Graph, chip: Target, dtype: str) -> gs.Graph:
    """The network as the recipe "simplify" leaves it, in the type of arithmetic."""
    if dtype not in _PASSES:
        raise NncError(f"no network is made for '{dtype}'", f"there are {', '.join(_PASSES)}")
    with tempfile.TemporaryDirectory(prefix="nnc-") as name:
        passes = list(recipe.load("simplify").passes) + list(_added(_PASSES[dtype], Path(name)))
        context = Context(chip, calibration=_noise(graph, Path(name)))
        compressed, _ = pipeline.run(graph, passes, context)
    return compressed


def _added(pass_name: str, folder: Path) -> Iterator[Pass]:
    if pass_name:
        file = folder / "recipe.toml"
        file.write_text(f'description = ""\n[[pass]]\nname = "{pass_name}"\n', "utf-8")
        yield from recipe.load(str(file)).passes


def _noise(graph: gs.Graph, folder: Path) -> Dataset:
    """Calibration data: latencies don't depend on the numbers."""
    rng = np.random.default_rng(0)
    made = {each.name: rng.standard_normal((2, *each.shape[1:]), np.float32) for each in graph.inputs}
    np.savez(folder / "noise.npz", **made)  # type: ignore[arg-type]
    return Dataset.open(folder / "noise.npz", None, graph.inputs)


if __name__ == "__main__":
    with failing():
        main(sys.argv[1:])
