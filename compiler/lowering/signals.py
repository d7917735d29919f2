"""Signals `[n, channels, length]` become images one pixel high, so that they take the templates of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from nnc.lowering.expression import FLOATS, is_elementwise
from nnc.model.proto import STANDARD_DOMAINS

_LAYERS = {"AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}

# Attributes with one value per axis of a window, and the value for the new one.
_PER_AXIS = {"dilations": 1, "kernel_shape": 1, "output_padding": 0, "output_shape": 1, "strides": 1}


def as_images(graph: gs.Graph) -> None:
    """Rewrite the layers of one-dimensional networks in place, and what is elementwise between them.

    Where anything else reads or writes a signal, Squeeze and Unsqueeze stand between: they move no data.
    """
    nodes: list[gs.Node] = []
    images: dict[int, gs.Variable] = {}  # id of a signal -> the image that it is now
    for node in graph.nodes:
        if not _is_signal(node.outputs[0]) or not _joins(node, images):
            nodes.append(node)
            continue
        node.inputs = [_image(tensor, images, nodes) for tensor in node.inputs]
        node.attrs = _attributes(node)
        nodes.append(node)
        nodes.append(_behind(node, images))
    graph.nodes = nodes
    ends = {id(tensor) for tensor in graph.outputs}
    for squeeze in [node for node in nodes if node.op == "Squeeze"]:
        signal = squeeze.outputs[0]
        if not signal.outputs and id(signal) not in ends:
            squeeze.inputs.clear()
            squeeze.outputs.clear()
    graph.nodes = [node for node in nodes if node.outputs]


def _is_signal(tensor: gs.Tensor) -> bool:
    return tensor.dtype in FLOATS and tensor.shape is not None and len(tensor.shape) == 3


def _joins(node: gs.Node, images: Mapping[int, gs.Variable]) -> bool:
    """Whether a node with a signal as its result is a layer, or follows one."""
    if node.domain not in STANDARD_DOMAINS or len([tensor for tensor in node.outputs if tensor.name]) != 1:
        return False
    variables = [tensor for tensor in node.inputs if isinstance(tensor, gs.Variable) and tensor.name]
    if not variables or not all(map(_is_signal, variables)):
        return False
    if node.op in _LAYERS:
        return True
    return (is_elementwise(node) or node.op == "Concat") and any(id(tensor) in images for tensor in variables)


def _image(tensor: gs.Tensor, images: dict[int, gs.Variable], nodes: list[gs.Node]) -> gs.Tensor:
    """An input of a node that computes images."""
    if isinstance(tensor, gs.Constant):
        return _constant(tensor)
    if tensor.is_empty():
        return tensor
    if id(tensor) not in images:
        n, channels, length = tensor.shape
        images[id(tensor)] = gs.Variable(f"{tensor.name}/image", tensor.dtype, [n, channels, 1, length])
        axes = gs.Constant(f"{tensor.name}/image.axes", np.array([2], np.int64))
        nodes.append(gs.Node("Unsqueeze", f"{tensor.name}/image", {}, [tensor, axes], [images[id(tensor)]]))
    return images[id(tensor)]


def _constant(tensor: gs.Constant) -> gs.Constant:
    """Weights `[out, in, taps]`, or an operand that broadcasts over a signal, for images."""
    values = tensor.values
    return gs.Constant(f"{tensor.name}/image", np.expand_dims(values, -2)) if values.ndim > 1 else tensor


def _attributes(node: gs.Node) -> dict[str, Any]:
    """The node's attributes for one axis more."""
    changes: dict[str, Callable[[Any], Any]] = {
        "pads": lambda pads: [0, pads[0], 0, pads[1]],
        **{key: _with(value) for key, value in _PER_AXIS.items()},
    }
    if node.op == "Concat":
        changes["axis"] = lambda axis: (0, 1, 3)[axis]
    return {key: changes[key](value) if key in changes else value for key, value in node.attrs.items()}


def _with(first: int) -> Callable[[Sequence[int]], list[int]]:
    return lambda values: [first, *values]


def _behind(node: gs.Node, images: dict[int, gs.Variable]) -> gs.Node:
    """Let the node write an image, and Squeeze make a signal of it for whoever wants one."""
    signal = node.outputs[0]
    n, channels, length = signal.shape
    image = gs.Variable(f"{signal.name}/image", signal.dtype, [n, channels, 1, length])
    axes = gs.Constant(f"{signal.name}/signal.axes", np.array([2], np.int64))
    node.outputs = [image]
    images[id(signal)] = image
    return gs.Node("Squeeze", f"{signal.name}/signal", {}, [image, axes], [signal])
