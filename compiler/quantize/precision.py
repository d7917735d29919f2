"""Mixed precision: the fewest layers that stay in floats so that quantization costs no more than a budget.

What every layer alone does to the outputs is measured once; these errors say in which order layers are given back to
floats, and how many must be is measured on the whole network.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import BaseModel, ConfigDict, Field

from nnc import accuracy, verify
from nnc.accuracy import Accuracy, ranks
from nnc.data import Dataset
from nnc.errors import NncError
from nnc.logits import before_softmax
from nnc.measure import has_shape, tensor_bytes
from nnc.session import Session

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[int, int], None]  # done, in all

#: A copy of the network in which the layers of these names are quantized, and all others are in floats.
Quantize = Callable[[Collection[str]], gs.Graph]

#: Samples that the error of a single layer is measured on: each of them tells it in every value of the outputs.
SAMPLES = 32

#: Bytes of outputs that are held to compare others with.
_MOST_BYTES = 256 << 20

#: Errors nearer to each other than by this factor count as equal.
_ALIKE = 1.1


class DropBudget(BaseModel):
    """What quantization may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    drop: float = Field(ge=0, lt=1, description="share of top-1 that may be lost; 0.005 is half a point")


class Drop:
    """By how much a network is worse than one in floats, on data.

    With labels, of which the network must find more than by guessing, the share of samples that had the right class and
    lose it: others that get theirs by chance don't make up for them, as few as calibration data are. Without, in a
    network whose one output has a value per class, the share of samples that get another class. In all others the share
    of the outputs' energy that is noise: 0.005 is a signal-to-noise ratio of 23 dB.
    """

    def __init__(self, floats: gs.Graph, data: Dataset, seed: int = 0) -> None:
        """Raises NncError for a network that has no output of a static shape."""
        self._floats, self._data = floats, data.subset(seed, _held(floats))

    def of(self, graph: gs.Graph, progress: Progress) -> float:
        """The drop, 0 to 1 or, of noise, more, of a network with the same inputs and outputs."""
        before, after = self._outputs, outputs(graph, self._data, progress)
        if self._right is not None:
            return float(np.mean(self._right & ~self._found(after)))
        if _has_classes(graph):
            return float(np.mean(self._scores(before).argmax(1) != self._scores(after).argmax(1)))
        return squared_error(before, after)

    @cached_property
    def _right(self) -> np.ndarray | None:
        """Which samples get the class of their label in floats; None without labels that the network knows."""
        labels, classes = self._data.labels, accuracy.classes(self._floats)
        if labels is None or labels.max() >= classes:
            return None
        right = self._found(self._outputs)
        return right if Accuracy(float(right.mean()), math.nan, len(right)).beats_guessing(classes) else None

    def _found(self, found: Arrays) -> np.ndarray:
        labels = self._data.labels
        assert labels is not None
        return ranks(self._scores(found), labels, self._data) < 1

    @cached_property
    def _outputs(self) -> Arrays:
        return outputs(self._floats, self._data)

    def _scores(self, found: Arrays) -> np.ndarray:
        """[samples, classes] of outputs [batches, batch, ...]."""
        scores = next(iter(found.values()))
        return scores.reshape(scores.shape[0] * scores.shape[1], -1)[: len(self._data)]


def sensitivities(
    graph: gs.Graph, names: Sequence[str], quantize: Quantize, data: Dataset, seed: int, progress: Progress
) -> dict[str, float]:
    """By layer, the error of the outputs where it alone is quantized: |difference| / |outputs|, as root mean square.

    Outputs are taken before a Softmax, which hides errors where a network is sure of its answer.
    """
    scored = before_softmax(graph)
    few = data.subset(seed, min(SAMPLES, _held(scored)))
    expected, found = outputs(scored, few), {}
    for index, name in enumerate(names):
        progress(index, len(names))
        found[name] = math.sqrt(squared_error(expected, outputs(before_softmax(quantize([name])), few)))
    progress(len(names), len(names))
    return found


def order(errors: Mapping[str, float], extra_ms: Mapping[str, float]) -> list[str]:
    """Layers in the order in which they are given back to floats: those first whose errors are largest.

    Of layers with nearly equal errors, those come first that take the target the least milliseconds more in floats.
    """

    def level(name: str) -> float:
        error = errors[name]
        return float(round(math.log(max(error, 1e-12), _ALIKE))) if math.isfinite(error) else math.inf

    return sorted(errors, key=lambda name: (-level(name), extra_ms.get(name, 0.0)))


def fewest(most: int, fits: Callable[[int], bool]) -> int:
    """The least number up to `most`, which fits, that fits as well: doubled until it does, then by bisection."""
    low, high = -1, 0
    while high < most and not fits(high):
        low, high = high, max(1, 2 * high)
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def outputs(graph: gs.Graph, data: Dataset, progress: Progress = lambda done, total: None) -> dict[str, np.ndarray]:
    """The outputs of static shapes on all samples, by name; a last batch that is not full is filled up with samples.

    Raises NncError for an output of the network in floats that is not finite.
    """
    session = Session(graph, optimized=True)
    parts, done = [], 0
    for inputs, count in data.full_batches(graph.inputs[0].shape[0]):
        parts.append(verify.of_static_shape(graph, session.run(inputs)))
        done += count
        progress(done, len(data))
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def squared_error(expected: Arrays, found: Arrays) -> float:
    """|difference|² / |outputs|², as the mean over the outputs. Raises NncError where `expected` is not finite."""
    shares = []
    for name, values in expected.items():
        if not np.isfinite(values).all():
            raise NncError(f"'{name}' is not finite on the calibration data", "check the data and [data.preprocess]")
        with np.errstate(invalid="ignore", over="ignore"):
            noise = float(np.square(found[name].astype(np.float64) - values).sum())
        energy = float(np.square(values.astype(np.float64)).sum()) or 1.0
        shares.append(noise / energy if math.isfinite(noise) else math.inf)
    return sum(shares) / len(shares)


def _held(graph: gs.Graph) -> int:
    """Samples whose outputs can be held in memory; NncError where no output can be compared with another."""
    static = [tensor for tensor in graph.outputs if has_shape(tensor)]
    if not static:
        raise NncError("no output tells a drop: the data decide the shape of each", "leave out 'budget'")
    of_batch = sum(map(tensor_bytes, static)) or 1
    return max(1, _MOST_BYTES // of_batch) * int(graph.inputs[0].shape[0])


def _has_classes(graph: gs.Graph) -> bool:
    """Whether the one output of a network has a value per class, [batch, classes]."""
    whole, *others = graph.outputs
    return has_shape(whole) and not others and [size > 1 for size in whole.shape[1:]].count(True) == 1
