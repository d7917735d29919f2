"""What the channels of tensors hold on calibration data: their ends, means and variances, streamed over the data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc import verify
from nnc.data import Dataset
from nnc.session import Session


@dataclass(frozen=True)
class Extremes:
    """Of a tensor's channels: float64 [channels] each."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    @property
    def largest(self) -> np.ndarray:
        """The largest magnitude."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


class _Sums:
    def __init__(self) -> None:
        self.count, self.low, self.high = 0, np.array(np.inf), np.array(-np.inf)
        self.sums = self.squares = np.zeros(())

    def add(self, values: np.ndarray, axis: int) -> None:
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
        self.count += rows.shape[1]
        self.low, self.high = np.minimum(self.low, rows.min(1)), np.maximum(self.high, rows.max(1))
        self.sums, self.squares = self.sums + rows.sum(1), self.squares + np.square(rows).sum(1)

    def result(self) -> Extremes:
        mean = self.sums / self.count
        deviation = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0.0))
        return Extremes(self.low, self.high, mean, deviation)


def measured(
    graph: gs.Graph,
    axes: Mapping[str, int],
    dataset: Dataset,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Extremes]:
    """The channels of tensors, given by name with the axis that counts channels; those that aren't finite are left out.

    One batch of the graph's own size is in memory at a time; the last is filled up with samples that were seen.
    """
    given = {tensor.name for tensor in graph.inputs}
    names = [name for name in axes if name not in given]
    session = Session(graph, outputs=names, optimized=not verify.rounds(graph))
    done, sums = 0, {name: _Sums() for name in axes}
    for inputs, count in dataset.full_batches(graph.inputs[0].shape[0]):
        values = {**inputs, **session.run(inputs)}
        with np.errstate(invalid="ignore", over="ignore"):
            for name, each in sums.items():
                each.add(values[name], axes[name])
        done += count
        progress(done, len(dataset))
    found = {name: each.result() for name, each in sums.items()}
    return {name: each for name, each in found.items() if np.isfinite(each.mean).all()}
