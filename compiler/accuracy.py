"""Top-1 and top-5 accuracy of a graph or of a compiled library on labelled data."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc import verify
from nnc.data import Dataset
from nnc.errors import NncError
from nnc.session import Session

#: Arrays by input name -> arrays by output name; the first output holds the scores, [batch, classes].
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
Progress = Callable[[int, int], None]  # samples done, samples in all


#: Standard deviations above guessing that chance hardly reaches.
_CERTAIN = 3.0


@dataclass(frozen=True)
class Accuracy:
    """Shares from 0 to 1 of `count` samples whose label has the highest score, or one of the five highest."""

    top1: float
    top5: float
    count: int
    loss: float = field(default=math.nan, compare=False)
    """Mean cross-entropy in nats. It tells two networks apart on far fewer samples than shares do."""

    def beats_guessing(self, classes: int) -> bool:
        """Whether more of the labels were found than by guessing among so many classes.

        Images may be sorted into folders that have nothing to do with a network's classes, which is no mistake where
        labels aren't needed.
        """
        chance = 1 / classes
        return self.top1 > chance + _CERTAIN * math.sqrt(chance * (1 - chance) / self.count)


def evaluate(
    model: gs.Graph | onnx.ModelProto | Run,
    dataset: Dataset,
    *,
    batch: int = 1,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Accuracy:
    """Run the dataset through the model, a graph in onnxruntime or any callable, and compare with the labels.

    A graph has its own batch size; `batch` is that of a callable and of a ModelProto whose batch is open. onnxruntime
    uses `threads`, or as many as it likes. Raises NncError when the data has no labels, or a label that is not one of
    the model's classes.
    """
    labels = dataset.labels
    if labels is None:
        raise NncError(f"{dataset.path}: has no labels, which the accuracy needs", "add 'labels' or a labels.csv")
    run, batch = _runner(model, batch, threads)
    found: list[np.ndarray] = []
    losses: list[np.ndarray] = []
    done = 0
    for inputs, count in dataset.full_batches(batch):
        scores = _scores(run(inputs), batch)
        found.append(ranks(scores[:count], labels[done : done + count], dataset))
        losses.append(_losses(scores[:count], labels[done : done + count]))
        done += count
        if progress is not None:
            progress(done, len(dataset))
    rank = np.concatenate(found)
    loss = float(np.mean(np.concatenate(losses)))
    return Accuracy(float(np.mean(rank < 1)), float(np.mean(rank < 5)), len(rank), loss)


def classes(graph: gs.Graph) -> int:
    """How many scores a sample has; 0 where the shape of the output is open."""
    (_, *sizes) = graph.outputs[0].shape or (0, 0)
    return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else 0


def runtime(graph: gs.Graph) -> str:
    """What computes a graph when its accuracy is measured, and in which arithmetic."""
    return "onnxruntime, its optimizations off: exact where it rounds" if verify.rounds(graph) else "onnxruntime"


def _runner(model: gs.Graph | onnx.ModelProto | Run, batch: int, threads: int | None) -> tuple[Run, int]:
    if isinstance(model, onnx.ModelProto):
        model = graphs.from_model(model, _batched(model, batch))
    if isinstance(model, gs.Graph):
        # Optimized, onnxruntime computes quantized layers in integers, and without VNNI these saturate at 16 bits.
        session = Session(model, optimized=not verify.rounds(model), threads=threads)
        return session.run, model.inputs[0].shape[0]
    return model, batch


def _batched(model: onnx.ModelProto, batch: int) -> dict[str, list[int]]:
    """Shapes for the inputs whose batch size is the only open dimension."""
    weights = {tensor.name for tensor in model.graph.initializer}
    sizes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in model.graph.input
        if info.name not in weights
    }
    return {name: [batch, *rest] for name, (first, *rest) in sizes.items() if first == 0 and all(rest)}


def _scores(outputs: Mapping[str, np.ndarray], batch: int) -> np.ndarray:
    return np.reshape(next(iter(outputs.values())), (batch, -1))


def ranks(scores: np.ndarray, labels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """How many classes come before the label, of scores [samples, classes]; equal ones rank in the classes' order.

    Raises NncError for a label of `dataset` that is not one of the classes.
    """
    samples, classes = scores.shape
    if labels.max() >= classes:
        raise NncError(
            f"{dataset.path}: label {labels.max()} is out of range: the model has {classes} classes",
            f"labels go from 0 to {classes - 1}",
        )
    own = scores[np.arange(samples), labels][:, None]
    ahead = (scores > own) | ((scores == own) & (np.arange(classes) < labels[:, None]))
    return np.where(np.isnan(scores).any(axis=1), classes, ahead.sum(axis=1))


#: The least probability that counts, so that one sample which a network is sure of doesn't decide a mean.
_LEAST = 1e-6


def _losses(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy by sample, of probabilities where the scores are such, otherwise of their softmax."""
    with np.errstate(invalid="ignore", over="ignore"):
        scores = scores.astype(np.float64)
        if not (scores.min() >= 0 and np.allclose(scores.sum(1), 1.0, atol=1e-3)):
            scores = np.exp(scores - scores.max(1, keepdims=True))
            scores /= scores.sum(1, keepdims=True)
        own = scores[np.arange(len(scores)), labels]
    return -np.log(np.maximum(np.nan_to_num(own), _LEAST))
