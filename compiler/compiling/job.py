"""What a compile is asked for, and the context that its passes work in."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_graphsurgeon as gs

from nnc.compiling.lock import data_key
from nnc.compiling.output import OutputFolder
from nnc.context import Context, Progress
from nnc.recipe import Recipe
from nnc.store import Memory
from nnc.target import Target


@dataclass(frozen=True)
class Job:
    """What a compile is asked for."""

    recipe: Recipe
    model: Path
    target: Target
    out: Path
    shapes: Mapping[str, Sequence[int]]
    threads: int | None = None
    lower: bool = True
    seed: int = 0
    latency: Literal["analytic", "emulated"] = "analytic"
    """Where the latencies of the report are from."""


def command(
    recipe: str,
    model: str,
    target: str,
    *,
    data: Iterable[str] = (),
    overrides: Iterable[str] = (),
    shapes: Mapping[str, Sequence[int]] = {},
    threads: int | None = None,
    seed: int = 0,
    lower: bool = True,
    latency: str = "analytic",
) -> str:
    """The command line of a compile, its words quoted for a shell."""
    sizes = [f"{name}={','.join(map(str, shape))}" for name, shape in shapes.items()]
    words = ["nnc", "compile", recipe, model, "--target", target]
    for option, values in (("--data", data), ("--set", overrides), ("--shape", sizes)):
        words += [word for value in values for word in (option, value)]
    words += [] if threads is None else ["--threads", str(threads)]
    words += ["--seed", str(seed)] if seed else []
    words += [] if lower else ["--no-lower"]
    words += ["--latency", latency] if latency != "analytic" else []
    return shlex.join(words)


def open_context(job: Job, graph: gs.Graph, progress: Progress) -> Context:
    """The context of a job, its data opened for the inputs of `graph`.

    It re-uses what a compile into the job's folder measured, and writes nothing.
    """
    data = job.recipe.open_data(graph)
    return Context(
        target=job.target,
        seed=job.seed,
        calibration=data.get("calibration"),
        test=data.get("test"),
        train=data.get("train"),
        teacher=job.recipe.data.teacher,
        data_key=data_key(job.recipe),
        imported=graph,
        store=Memory(OutputFolder(job.out)),
        threads=job.threads,
        progress=progress,
    )
