"""How much the outputs of a network move with the error of each of its layers, and weights scaled by that."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from nnc.errors import NncError
from nnc.factorize import Factors
from nnc.gradient import Gradients
from nnc.logits import before_softmax
from nnc.measure import has_shape
from nnc.rewrite import Context

#: Samples of calibration data that the mean is taken over: it is one figure per channel.
SAMPLES = 256


def output_sensitivity(
    graph: gs.Graph, layers: Sequence[gs.Node], samples: Mapping[str, np.ndarray], context: Context
) -> dict[str, np.ndarray]:
    """By layer, the relative squared error of the network's outputs per squared error of a channel, float64 [K].

    From the Gauss-Newton matrix: gradients of random combinations of the outputs (Hutchinson's estimator), squared and
    summed over positions, or summed and squared as far as errors at the positions of an image go together, see `_Seen`.
    The outputs are taken before a Softmax, and not the loss: a network that is sure of its answers, as on images that
    it was trained with, has no gradient of the loss left. Empty where an operator on the way has no gradient, or
    the data decide the shape of an output.
    """
    scored = before_softmax(graph)
    if not has_shape(*scored.outputs):
        return {}
    try:
        network = Gradients(
            scored, [node.outputs[0].name for node in layers], "outputs", seed=context.seed, threads=context.threads
        )
    except NncError:
        return {}
    scales = _scales(scored, samples)
    rng = np.random.default_rng(context.seed)
    seen = {node.name: _Seen(node.outputs[0].shape[_axis(node)]) for node in layers}
    batch, batches = graph.inputs[0].shape[0], min(_batches(samples), max(1, SAMPLES // graph.inputs[0].shape[0]))
    for index in range(batches):
        context.progress("sensitivities", index, batches)
        drawn = {
            tensor.name: (rng.choice([-1.0, 1.0], tensor.shape) * scales[tensor.name]).astype(tensor.dtype)
            for tensor in scored.outputs
            if tensor.name in scales
        }
        outputs, gradients = network.run({name: values[index] for name, values in samples.items()}, cotangents=drawn)
        for node in layers:
            name, axis = node.outputs[0].name, _axis(node)
            seen[node.name].add(_by_channel(outputs[name], axis, batch), _by_channel(gradients[name], axis, batch))
    return {name: each.weights() / (batches * batch) for name, each in seen.items()}


class _Seen:
    """What was seen of the output channels of a layer and of their gradients."""

    def __init__(self, channels: int) -> None:
        self.samples = 0
        self.apart = np.zeros(channels)
        """Sum of the squared gradients of all positions."""
        self.together = np.zeros(channels)
        """Sum of the squares of the gradients added up over the positions of a sample."""
        self.mean = np.zeros(channels)
        self.energy = np.zeros(channels)
        self.energy_of_means = np.zeros(channels)
        """Of the samples' means over positions."""

    def add(self, y: np.ndarray, gradients: np.ndarray) -> None:
        """Outputs and gradients [K, samples, positions] of a batch."""
        self.samples += y.shape[1]
        self.apart += np.square(gradients).sum((1, 2))
        self.together += np.square(gradients.sum(2)).sum(1)
        self.mean += y.mean(2).sum(1)
        self.energy += np.square(y).mean(2).sum(1)
        self.energy_of_means += np.square(y.mean(2)).sum(1)

    def weights(self) -> np.ndarray:
        """What the squared error of each channel costs, times the number of samples.

        Errors are taken to go together as what the channel says does: a share of its variance is between images, where
        it is the same at all positions.
        """
        square = np.square(self.mean / self.samples)
        between, all_ = self.energy_of_means / self.samples - square, self.energy / self.samples - square
        share = np.clip(between / np.maximum(all_, 1e-12 * (square + 1e-30)), 0.0, 1.0)
        return (1 - share) * self.apart + share * self.together


def _by_channel(values: np.ndarray, axis: int, samples: int) -> np.ndarray:
    """float64 [K, samples, positions] of a layer's output, whose batch comes first."""
    moved = np.moveaxis(values, axis, 0).astype(np.float64)
    return moved.reshape(len(moved), samples if moved.shape[1] == samples else 1, -1)


def _scales(graph: gs.Graph, samples: Mapping[str, np.ndarray]) -> dict[str, float]:
    """By output of floats, what makes its squared error relative to its variance over the samples, and their sum 1."""
    from nnc.calibrate import Flow

    few = {name: values[: max(2, SAMPLES // 4)] for name, values in samples.items()}
    outputs = {name: values for name, values in Flow(graph, few).outputs().items() if values.dtype.kind == "f"}
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise NncError(f"'{name}' is not finite on the calibration data", "check the data and [data.preprocess]")
    energies = {
        name: float(values.var(0).sum() or np.square(values[0]).sum() or 1.0) for name, values in outputs.items()
    }
    batch = graph.inputs[0].shape[0]
    return {name: np.sqrt(batch / energy / len(energies)) for name, energy in energies.items()}


def _batches(samples: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(samples.values())))


def _axis(layer: gs.Node) -> int:
    """The axis of a layer's output channels or features."""
    return 1 if layer.op in ("Conv", "ConvTranspose") else len(layer.outputs[0].shape) - 1


def roots(weights: np.ndarray) -> np.ndarray:
    """What outputs are scaled by, so that their squared errors count as `weights` [K] says, but none counts nothing."""
    floor = 1e-2 * (weights.mean() or 1.0)
    return np.sqrt(np.maximum(weights, floor))


def scaled(W: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """W [K, ...] with its outputs multiplied."""
    return W * factors.reshape(-1, *[1] * (W.ndim - 1))


def unscaled(chain: Factors, factors: np.ndarray) -> Factors:
    """The chain without what `scaled` did to the outputs, which its last weight gives."""
    *inner, last = chain.weights
    return replace(chain, weights=(*inner, scaled(last, 1 / factors).astype(last.dtype)))
