"""Why a layer is left alone."""

import math

import numpy as np
import onnx_graphsurgeon as gs

from nnc.layers import Layer
from nnc.measure import has_shape


def no_layer(node: gs.Node) -> str:
    """Why a Conv, Gemm or MatMul is no `Layer`."""
    weight = node.inputs[1]
    if any(each.op == "DequantizeLinear" for each in weight.inputs):
        return "its weights are quantized: split before quantizing"
    for tensor in node.inputs[1:]:
        if not isinstance(tensor, gs.Constant) and not tensor.is_empty():
            return f"'{tensor.name}' is not constant"
    if node.attrs.get("transA", 0):
        return "its input is transposed"
    if not has_shape(*node.inputs[:2], *node.outputs):
        return "its shape is not known"
    if node.op != "Conv" and len(weight.shape) != 2:
        return "its weights are no matrix"
    if weight.dtype not in (np.float32, np.float16):
        return f"its weights are {np.dtype(weight.dtype).name}"
    return "what it adds is no number per output"


def unfit(layer: Layer) -> str:
    """Why no method can split a layer, or nothing."""
    if layer.sharers:
        return f"its weights are shared with '{layer.sharers[0].name}'"
    W = layer.node.inputs[1].values
    if not W.size or not np.isfinite([W.min(), W.max()]).all():
        return "its weights are not finite"
    return "it is depthwise: every channel is a layer of its own" if layer.is_depthwise else ""


def factor(layer: Layer) -> str:
    """Why a layer that is one of two factors already is left alone, or nothing.

    Two layers with nothing between, and fewer channels there than on either side, are a matrix of that rank. A lower
    rank of one of them is a lower rank of both: splitting it once more would only add a layer.
    """
    x, y = layer.node.inputs[0], layer.node.outputs[0]
    pairs: list[tuple[Layer | None, Layer | None, gs.Node]] = []
    pairs += [(Layer.of(each), layer, each) for each in x.inputs if len(x.outputs) == 1]
    pairs += [(layer, Layer.of(each), each) for each in y.outputs if len(y.outputs) == 1]
    for first, second, other in pairs:
        if first and second and first.groups == second.groups and _is_bottleneck(first, second):
            return f"it and '{other.name}' are the factors of a matrix of rank {first.outputs // first.groups}"
    return ""


def _is_bottleneck(first: Layer, second: Layer) -> bool:
    between = first.outputs // first.groups
    return between < first.columns and between < second.outputs // second.groups * math.prod(second.kernel)
