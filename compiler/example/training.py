"""Trains a small ONNX network in numpy, so that the example needs no other framework.

Every operator is a rule that computes its output and returns how a gradient goes back through it. Activations are held
as [channels, height, width, batch]: a convolution is one matrix product without transposes, and its windows are copied
in long runs.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from threadpoolctl import threadpool_limits

from nnc.context import Progress, silent

Arrays = dict[str, np.ndarray]
#: From the gradient of the loss by a node's output to those by its inputs; trailing inputs may be left out.
Backward = Callable[[np.ndarray], tuple[np.ndarray, ...]]

_MOMENTUM = 0.9
_WEIGHT_DECAY = 1e-4


def train(
    model: onnx.ModelProto,
    images: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    steps: int,
    batch: int = 32,
    learning_rate: float = 0.1,
    progress: Progress = silent,
) -> None:
    """Train the weights of `model` in place: cross-entropy, stochastic gradient descent with momentum.

    `images` are float32 [N, C, H, W] as the network reads them, `labels` class indices [N].
    """
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    velocity = {name: np.zeros_like(values) for name, values in weights.items()}
    # One thread is as fast on matrices of this size, and its sums don't depend on the number of cores.
    with threadpool_limits(1, "blas"):
        for step, chosen in enumerate(itertools.islice(_batches(len(images), batch, rng), steps)):
            progress("training", step, steps)
            gradients = _gradients(model.graph, weights, images[chosen].transpose(1, 2, 3, 0), labels[chosen])
            rate = learning_rate * _schedule(step / steps)
            for name, gradient in gradients.items():
                velocity[name] = _MOMENTUM * velocity[name] - rate * (gradient + _WEIGHT_DECAY * weights[name])
                weights[name] += velocity[name]
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))


def _batches(samples: int, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Indices of samples, every epoch in a new order."""
    while True:
        order = rng.permutation(samples)
        yield from (order[start : start + batch] for start in range(0, samples - batch + 1, batch))


def _schedule(done: float) -> float:
    """The learning rate's share of its peak: up over the first fifth, then down to zero along a cosine."""
    return done / 0.2 if done < 0.2 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.2) / 0.8)


def _gradients(graph: onnx.GraphProto, weights: Arrays, x: np.ndarray, labels: np.ndarray) -> Arrays:
    """Gradients of the mean cross-entropy by the weights."""
    logits, tape = _forward(graph, weights, x)
    gradients = {graph.output[0].name: _softmax_gradient(logits, labels)}
    for node, backward in reversed(tape):
        for name, gradient in zip(node.input, backward(gradients.pop(node.output[0])), strict=False):
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    return {name: gradient for name, gradient in gradients.items() if name in weights}


def _forward(
    graph: onnx.GraphProto, weights: Arrays, x: np.ndarray
) -> tuple[np.ndarray, list[tuple[onnx.NodeProto, Backward]]]:
    """The logits [classes, N], and the way back through every node."""
    values: Arrays = {graph.input[0].name: x, **weights}
    tape = []
    for node in graph.node:
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        values[node.output[0]], backward = _RULES[node.op_type](attributes, *(values[name] for name in node.input))
        tape.append((node, backward))
    return values[graph.output[0].name], tape


def _softmax_gradient(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gradient of the mean cross-entropy by the logits [classes, N]."""
    shares = np.exp(logits - logits.max(axis=0))
    shares /= shares.sum(axis=0)
    shares[labels, np.arange(len(labels))] -= 1
    return shares / len(labels)


def _conv(attributes: Mapping[str, Any], x: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, Backward]:
    pad, stride, kernel = attributes["pads"][0], attributes["strides"][0], attributes["kernel_shape"][0]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = sliding_window_view(padded, (kernel, kernel), (1, 2))[:, ::stride, ::stride]
    columns = np.ascontiguousarray(windows.transpose(0, 4, 5, 1, 2, 3))  # [C, k, k, H, W, N]
    rows, cols, batch = columns.shape[3:]
    groups = attributes["group"]
    flat = columns.reshape(groups, -1, rows * cols * batch)
    filters = W.reshape(groups, len(W) // groups, -1)

    def backward(dy: np.ndarray) -> tuple[np.ndarray, ...]:
        dy = dy.reshape(groups, len(W) // groups, -1)
        dW = (dy @ flat.transpose(0, 2, 1)).reshape(W.shape)
        dcolumns = (filters.transpose(0, 2, 1) @ dy).reshape(columns.shape)
        dx = np.zeros_like(padded)
        for i, j in np.ndindex(kernel, kernel):
            dx[:, i : i + stride * rows : stride, j : j + stride * cols : stride] += dcolumns[:, i, j]
        return dx[:, pad : pad + x.shape[1], pad : pad + x.shape[2]], dW

    return (filters @ flat).reshape(len(W), rows, cols, batch), backward


def _batch_norm(attributes: Mapping[str, Any], x: np.ndarray, *parameters: np.ndarray) -> tuple[np.ndarray, Backward]:
    """Normalizes with the batch's own mean and variance; the stored ones follow them, as in training mode."""
    scale, shift, stored_mean, stored_variance = parameters
    count = x[0].size
    mean = x.mean((1, 2, 3))
    normal = x - _per_channel(mean)
    variance = np.einsum("chwn,chwn->c", normal, normal) / count
    inverse = 1 / np.sqrt(variance + attributes["epsilon"])
    normal *= _per_channel(inverse)
    stored_mean += (1 - attributes["momentum"]) * (mean - stored_mean)
    stored_variance += (1 - attributes["momentum"]) * (variance - stored_variance)

    def backward(dy: np.ndarray) -> tuple[np.ndarray, ...]:
        dscale, dshift = np.einsum("chwn,chwn->c", dy, normal), dy.sum((1, 2, 3))
        centred = dy - _per_channel(dshift / count) - normal * _per_channel(dscale / count)
        return centred * _per_channel(scale * inverse), dscale, dshift

    return normal * _per_channel(scale) + _per_channel(shift), backward


def _relu(attributes: Mapping[str, Any], x: np.ndarray) -> tuple[np.ndarray, Backward]:
    return np.maximum(x, 0), lambda dy: (dy * (x > 0),)


def _add(attributes: Mapping[str, Any], a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Backward]:
    return a + b, lambda dy: (dy, dy)


def _global_average_pool(attributes: Mapping[str, Any], x: np.ndarray) -> tuple[np.ndarray, Backward]:
    pixels = x.shape[1] * x.shape[2]
    return x.mean((1, 2), keepdims=True), lambda dy: (np.broadcast_to(dy / pixels, x.shape),)


def _flatten(attributes: Mapping[str, Any], x: np.ndarray) -> tuple[np.ndarray, Backward]:
    """Of [C, 1, 1, N]."""
    return x.reshape(len(x), -1), lambda dy: (dy.reshape(x.shape),)


def _gemm(attributes: Mapping[str, Any], x: np.ndarray, W: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, Backward]:
    return W @ x + B[:, None], lambda dy: (W.T @ dy, dy @ x.T, dy.sum(axis=1))


def _per_channel(values: np.ndarray) -> np.ndarray:
    return values[:, None, None, None]


_RULES: dict[str, Callable[..., tuple[np.ndarray, Backward]]] = {
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Relu": _relu,
    "Add": _add,
    "GlobalAveragePool": _global_average_pool,
    "Flatten": _flatten,
    "Gemm": _gemm,
}
