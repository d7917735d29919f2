"""The flow behind `nnc eval`: the accuracy of an ONNX file in onnxruntime, or of a compiled model in its library."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from nnc import accuracy, toml
from nnc import graph as graphs
from nnc.artifact import Artifact
from nnc.context import Progress
from nnc.data import Dataset, Preprocess
from nnc.data.preprocess import Options, replaced
from nnc.errors import NncError
from nnc.hardware import host


@dataclass(frozen=True)
class Evaluation:
    """An accuracy, and what computed it."""

    model: str
    runtime: str
    preprocess: str
    """What images were prepared with, as TOML."""
    top1: float
    top5: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    model: Path,
    data: Path,
    options: Options,
    shapes: graphs.Shapes,
    *,
    samples: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress,
) -> Evaluation:
    """The accuracy of `model`, an ONNX file or the folder of a compile, on `data` or on `samples` of it.

    A folder without a library is measured by its model.onnx. Raises NncError for `shapes` of a folder, whose model has
    them, and for more `threads` than there are processors.
    """
    artifact = Artifact.open(model) if model.is_dir() else None
    if artifact is not None and shapes:
        raise NncError(f"--shape: {model} was compiled for the shapes that it has", "leave it out, or compile again")
    preprocess = replaced(artifact.preprocess if artifact else Preprocess(), options)
    run: accuracy.Run | gs.Graph
    if artifact is not None and artifact.has_library:
        inputs = [gs.Variable(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in artifact.inputs]
        run, runtime = _library(artifact, threads), artifact.runtime
    else:
        host.require_processors(threads)
        run = graphs.load(artifact.checked_model() if artifact else model, shapes)
        inputs, runtime = run.inputs, accuracy.runtime(run)
    dataset = Dataset.open(data, preprocess, inputs)
    batch = inputs[0].shape[0]  # the data refused inputs without one
    if samples is not None:
        dataset = dataset.subset(seed, samples)

    def report(done: int, total: int) -> None:
        progress("accuracy", done, total)

    found = accuracy.evaluate(run, dataset, batch=batch, threads=threads, progress=report)
    prepared = toml.value(preprocess.model_dump(mode="json"))
    return Evaluation(str(model), runtime, prepared, found.top1, found.top5, found.count)


def _library(artifact: Artifact, threads: int | None) -> accuracy.Run:
    library = artifact.library(threads)

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return artifact.named(library.run(artifact.checked(inputs)))

    return run
