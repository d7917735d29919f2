"""The flow behind `nnc tune` and `nnc records`: a model, a target and a budget in, records out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc import pipeline, recipe
from nnc import target as targets
from nnc.artifact import Artifact
from nnc.context import Context, Progress, silent
from nnc.errors import NncError
from nnc.hardware import host
from nnc.model import wire
from nnc.store import Memory
from nnc.target import Target
from nnc.tuning import records
from nnc.tuning.boards import Boards, Tracker
from nnc.tuning.devices import Device, Emulated, Host
from nnc.tuning.records import Record
from nnc.tuning.tune import Budget, Result, tune

_CACHES = 4
"""How many times the caches' size passes through them before a layer's weights are read again."""

_SIMPLIFY = "simplify"


@dataclass(frozen=True)
class Job:
    """What a search is asked for."""

    model: Path
    """An ONNX file, or the folder of a compile."""
    target: Target
    file: Path
    """Of the records."""
    threads: int | None = None
    shapes: dict[str, list[int]] | None = None
    budget: Budget = field(default_factory=Budget)
    resume: bool = False
    tracker: Tracker | None = None
    """Of boards to measure on."""


def run(job: Job, progress: Progress = silent) -> Result:
    """Search plans for the layers of the job's model; raises NncError where they can't be searched for."""
    job.target.require_lowerable()
    job.target.require_threads(job.threads)
    threads = job.threads or job.target.unit.threads
    device = device_of(job.target, threads, job.tracker)
    graph = _graph(job, progress)
    return tune(
        graph,
        job.target,
        device,
        job.file,
        threads=threads,
        budget=job.budget,
        resume=job.resume,
        progress=progress,
    )


def device_of(target: Target, threads: int, tracker: Tracker | None = None) -> Device:
    """Where the plans for a target are timed: on boards, on this machine, or an AArch64 target in emulation."""
    if target.unit.kind != "cpu":
        raise NncError(f"{target.label}: schedules are tuned for processors only", "name a unit, such as qcs605:cpu")
    if tracker is not None:
        return Boards(target, threads, tracker)
    if target.unit.architecture == "aarch64":
        from nnc.simulation import emulated

        emulated.require(target, threads)
        return Emulated(target, threads)
    host.require(target.unit, target.label, "--rpc measures on boards")
    return Host(threads, _CACHES * threads * target.unit.l2_bytes)


def _graph(job: Job, progress: Progress) -> gs.Graph:
    """The graph that `nnc compile` lowers: of a folder as it is, of a model simplified."""
    if job.model.is_dir():
        return graphs.load(Artifact.open(job.model).checked_model(), job.shapes or {})
    graph = graphs.load(job.model, job.shapes or {})
    context = Context(target=job.target, store=Memory(), threads=job.threads, progress=progress)
    simplified, _ = pipeline.run(graph, recipe.load(_SIMPLIFY).passes, context)
    return simplified


def target_of(model: Path, spec: str | None, tracker: Tracker | None = None) -> Target:
    """The target that is named, or that of a compile's folder with the threads that it was compiled for.

    Raises NncError where there is none, and where this machine would measure for the core of another one.
    """
    if spec is not None:
        return targets.load(spec)
    if not model.is_dir():
        raise NncError("--target is missing", "such as --target x86; only the folder of a compile knows its own")
    artifact = Artifact.open(model)
    unit, here = artifact.target.unit, host.figures()["cluster"][0]["core"]
    if tracker is None and not artifact.emulated and unit.architecture != "aarch64" and unit.clusters[0].core != here:
        hint = f"--target {artifact.target.spec} tunes its model for this machine"
        raise NncError(f"{model}: compiled for {unit.clusters[0].core}, this machine is {here}", hint)
    return artifact.target.model_copy(update={"unit": unit.model_copy(update={"threads": artifact.threads})})


def tracker(address: str | None, key: str | None) -> Tracker | None:
    """The tracker that --rpc HOST:PORT names, and the key of its boards."""
    if address is None and key is None:
        return None
    if address is None or key is None:
        raise NncError("--rpc and --key belong together", "such as --rpc 192.168.1.10:9190 --key jetson")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise NncError(f"--rpc: expected HOST:PORT, not '{address}'", "such as --rpc 192.168.1.10:9190")
    return Tracker(host, int(port), key)


def seconds(text: str) -> float:
    """'90s', '10m', '1h' or '90' in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or not float(match[1]):
        raise NncError(f"--time: expected seconds, minutes or hours, not '{text}'", "such as 90s, 10m or 1h")
    return float(match[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[match[2]]


# -- records


def exported(target: Target, threads: int | None, file: Path, own: Path) -> int:
    """Write the best record of every workload that `own` holds into a new file; returns how many.

    With `threads`, only those of as many threads.
    """
    kept = (each for each in records.read(own) if threads in (None, each.machine.get("threads")))
    found = sorted(records.best(kept).values(), key=lambda record: record.place)
    if not found:
        of = target.name if threads is None else f"{target.name} on {threads} threads"
        raise NncError(f"{own}: holds no records for {of}", f"nnc tune MODEL --target {target.spec} makes some")
    with wire.replacing(file) as written:
        written.write(b"".join(record.line for record in found))
    return len(found)


def imported(files: Iterable[Path], own: Path) -> int:
    """Add the records of files that `own` does not hold yet; returns how many. All files are read before any is added.

    Raises NncError for a file that is missing or holds none.
    """
    known, new = {record.line for record in records.read(own)}, list[Record]()
    for file in files:
        if not file.is_file():
            raise NncError(f"{file}: no such file")
        found = records.read(file)
        if not found:
            raise NncError(f"{file}: holds no records", "nnc records --export writes such files")
        for record in found:
            if record.line not in known:
                known.add(record.line)
                new.append(record)
    if new:
        records.append(own, new)
    return len(new)


def listing(target: Target, threads: int | None, own: Path, warn: Callable[[str], None]) -> list[dict[str, Any]]:
    """The records that compiles use: {"workload", "plan", "speedup", "ms", "source", "from"}.

    There is one of every workload of which a plan is known that is faster than the default.
    """
    known = records.Records.load(target, threads, warn, own)
    mine = records.best(records.read(own, lambda line: None))
    return [
        {
            "workload": record.workload,
            "plan": record.plan,
            "speedup": record.speed,
            "ms": record.ms,
            "source": record.source,
            "from": "own" if mine.get(record.place) == record else "shipped",
        }
        for record in sorted(known.best.values(), key=lambda record: -(record.speed or 0))
        if record.is_faster
    ]
