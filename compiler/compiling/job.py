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
from nnc.data import Dataset
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
    preprocess: Mapping[str, str | int] = {},
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
    prepared = [(f"--{key}", (str(value),)) for key, value in preprocess.items()]
    for option, values in (("--data", data), *prepared, ("--set", overrides), ("--shape", sizes)):
        words += [word for value in values for word in (option, value)]
    words += [] if threads is None else ["--threads", str(threads)]
    words += ["--seed", str(seed)] if seed else []
    words += [] if lower else ["--no-lower"]
    words += ["--latency", latency] if latency != "analytic" else []
    return shlex.join(words)


def open_context(
    job: Job, graph: gs.Graph, data: Mapping[str, Dataset], digests: Mapping[str, str], progress: Progress
) -> Context:
    """The context of a job: `data` and their `digests`, that of calibration data at least, are by the key of [data].

    It re-uses what a compile into the job's folder measured, and writes nothing.
    """
    return Context(
        target=job.target,
        seed=job.seed,
        calibration=data.get("calibration"),
        test=data.get("test"),
        train=data.get("train"),
        teacher=job.recipe.data.teacher,
        data_key=data_key(job.recipe, digests),
        imported=graph,
        store=Memory(OutputFolder(job.out)),
        threads=job.threads,
        progress=progress,
    )
