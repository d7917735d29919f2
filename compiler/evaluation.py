"""The flow behind `nnc eval`: the accuracy of an ONNX file in onnxruntime, or of a compiled model in its library."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import ValidationError

from nnc import accuracy, toml
from nnc import graph as graphs
from nnc.artifact import Artifact
from nnc.context import Progress
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError
from nnc.hardware import host

#: Options of the command line by key of [data.preprocess]; None: not given.
Options = Mapping[str, str | int | None]


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
    preprocess = _preprocess(artifact.preprocess if artifact else Preprocess(), options)
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


def _preprocess(default: Preprocess, options: Options) -> Preprocess:
    """The preprocessing with the options that were given instead."""
    given: dict[str, Any] = {}
    for key, text in options.items():
        if text is not None:
            given[key] = _numbers(key, text) if key in ("size", "mean", "std") and isinstance(text, str) else text
    try:
        return Preprocess.model_validate(default.model_dump() | given)
    except ValidationError as error:
        raise _explained(error, options) from None


def _numbers(key: str, text: str) -> list[float]:
    """'0.5,0.4,0.3' -> [0.5, 0.4, 0.3]; sizes are whole numbers, and one stands for a square."""
    words = text.split(",")
    pattern = r"\s*\d+\s*" if key == "size" else r"\s*-?(\d+\.?\d*|\.\d+)(e-?\d+)?\s*"
    if not all(re.fullmatch(pattern, word) for word in words) or (key == "size" and len(words) > 2):
        raise NncError(f"--{key} {text}: not numbers separated by commas", f"such as --{key} {_EXAMPLES[key]}")
    if key == "size":
        return [int(word) for word in (words * 2)[:2]] if len(words) == 1 else [int(word) for word in words]
    return [float(word) for word in words]


_EXAMPLES = {"size": "224,224", "mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}


def _explained(error: ValidationError, options: Options) -> NncError:
    first = error.errors(include_url=False)[0]
    key = str(first["loc"][0])
    hint = toml.nearest(str(options[key]), ("NCHW", "NHWC")) if key == "layout" else None
    return NncError(f"--{key} {options[key]}: {first['msg'][:1].lower()}{first['msg'][1:]}", hint)
