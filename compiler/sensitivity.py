"""How much the outputs of a network move with the error of each of its layers."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.errors import NncError
from nnc.gradient import Gradients
from nnc.proto import is_standard
from nnc.rewrite import Context

#: Samples of calibration data that the mean is taken over: it is one figure per channel.
SAMPLES = 256

_SOFTMAX = ("Softmax", "LogSoftmax")


def output_sensitivity(
    graph: gs.Graph, layers: Sequence[gs.Node], samples: Mapping[str, np.ndarray], context: Context
) -> dict[str, np.ndarray]:
    """By layer, the relative squared error of the network's outputs per squared error of an output channel, [K] float64.

    The diagonal of the Gauss-Newton matrix, summed over positions: gradients of random combinations of the outputs,
    squared (Hutchinson's estimator). The outputs are taken before a Softmax, and not the loss: a network that is sure of
    its answers, as on images that it was trained with, has no gradient of the loss left. Empty where an operator on the
    way has no gradient.
    """
    scored = _before_softmax(graph)
    try:
        network = Gradients(
            scored, [node.outputs[0].name for node in layers], "outputs", seed=context.seed, threads=context.threads
        )
    except NncError:
        return {}
    scales = _scales(scored, samples)
    rng = np.random.default_rng(context.seed)
    total = {node.name: np.zeros(node.outputs[0].shape[_axis(node)]) for node in layers}
    batch, batches = graph.inputs[0].shape[0], min(_batches(samples), max(1, SAMPLES // graph.inputs[0].shape[0]))
    for index in range(batches):
        context.progress("sensitivities", index, batches)
        drawn = {
            tensor.name: (rng.choice([-1.0, 1.0], tensor.shape) * scales[tensor.name]).astype(tensor.dtype)
            for tensor in scored.outputs
            if tensor.name in scales
        }
        _, gradients = network.run({name: values[index] for name, values in samples.items()}, cotangents=drawn)
        for node in layers:
            squares = np.square(gradients[node.outputs[0].name], dtype=np.float64)
            total[node.name] += np.moveaxis(squares, _axis(node), 0).reshape(len(total[node.name]), -1).sum(1)
    return {name: values / (batches * batch) for name, values in total.items()}


def _before_softmax(graph: gs.Graph) -> gs.Graph:
    """A copy whose outputs are what the Softmax nodes at its end read."""
    copied = graphs.copy(graph)
    for index, tensor in enumerate(copied.outputs):
        if tensor.inputs and is_standard(tensor.inputs[0], *_SOFTMAX):
            copied.outputs[index] = tensor.inputs[0].inputs[0]
    copied.outputs = list({tensor.name: tensor for tensor in copied.outputs}.values())
    return copied


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
