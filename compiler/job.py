"""What a compile is asked for, and the context that its passes work in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_graphsurgeon as gs

from nnc.context import Context, Progress
from nnc.lock import data_key
from nnc.output import Memory, OutputFolder
from nnc.recipe import Recipe
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
        store=Memory(OutputFolder(job.out)),
        threads=job.threads,
        progress=progress,
    )
