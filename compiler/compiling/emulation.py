"""Latencies of compiled libraries by emulation (nnc.simulation.emulated), per layer, beside the analytic ones."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.artifact import Artifact
from nnc.context import Context, Progress
from nnc.errors import NncError
from nnc.target import Target
from nnc.target import load as load_target
from nnc.tuning.records import Records


@dataclass(frozen=True)
class _Kernel:
    """A kernel of a report."""

    name: str
    nodes: list[str]


def check(target: Target, threads: int | None = None) -> None:
    """Raise NncError where the target's code can't be emulated on so many cores, or where a tool is missing."""
    from nnc.simulation.emulated import require  # imports tvm

    require(target, threads)


def timed(library: Path, kernels: Sequence[Mapping[str, Any]], graph: gs.Graph, context: Context) -> dict[str, Any]:
    """What one inference of the library built of `graph` costs: {"latency_ms", "layers": [...]}.

    `kernels` are those of the report, and layers as `nnc.simulation.emulated.layers` makes them.
    """
    from nnc.simulation import emulated
    from nnc.simulation.emulated.layers import layers

    context.progress("emulate the library", 0, 1)
    steps = emulated.network(library, context.target, context.threads)
    context.progress("emulate the library", 1, 1)
    built = [_Kernel(kernel["name"], kernel["nodes"]) for kernel in kernels]
    if len(steps) != len(built):
        raise NncError(f"{library}: has {len(steps)} kernels, the report {len(built)}", "compile again")
    made = layers(graph, context.predict(graph), built, steps, context.target.unit.halves)
    return {"latency_ms": sum(layer["latency_ms"] for layer in made), "layers": made}


def timed_anew(graph: gs.Graph, known: Records, context: Context) -> dict[str, Any]:
    """The same of a library that is built for it alone, with the plans that are `known`."""
    from nnc import lowering

    options = {"threads": context.threads, "progress": context.progress, "schedules": known}
    with tempfile.TemporaryDirectory(prefix="nnc-") as name:
        built = lowering.build(graph, context.target, Path(name), **options)
        return timed(built.files[0], [asdict(kernel) for kernel in built.kernels], graph, context)


def of_folder(folder: Path, target: str | None, threads: int | None, progress: Progress) -> dict[str, Any]:
    """What the library of a compile costs on its target, or on another one: {"model", "target", "threads",
    "latency_ms", "analytic_ms", "layers"}.

    Raises NncError where the folder holds no library, or one that can't be emulated or that the target can't execute.
    """
    artifact = Artifact.open(folder)
    chip = artifact.target if target is None else load_target(target)
    if (chip.unit.kind, chip.unit.architecture) != (artifact.target.unit.kind, artifact.target.unit.architecture):
        raise NncError(
            f"{folder}: compiled for {artifact.target.label}, whose code {chip.label} can't execute",
            f"compile it with --target {chip.spec}",
        )
    chip.require_threads(threads)
    threads = threads or min(artifact.threads, chip.unit.cores)
    check(chip, threads)
    artifact.check_files()
    graph = graphs.load(artifact.model_path)
    context = Context(chip, threads=threads, progress=progress)
    found = timed(artifact.library_path, artifact.report["kernels"], graph, context)
    return {
        "model": artifact.model_path.name,
        "target": chip.label,
        "threads": threads,
        "latency_ms": found["latency_ms"],
        "analytic_ms": context.predict(graph).latency_ms,
        "layers": found["layers"],
    }
