"""The bias of a quantized layer: read, changed, or added where the layer has none."""

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.quantize import QuantizedLayer, quantized
from nnc.quantize.insertion import roomy


def can_add(layer: QuantizedLayer) -> bool:
    """Whether a number can be added to every output of a layer."""
    reads_integers = layer.index == 1 and layer.input_scale is not None
    return layer.node.op != "MatMul" and reads_integers and _is_per_output(layer)


def _is_per_output(layer: QuantizedLayer) -> bool:
    bias = layer.bias
    return layer.added is None if bias is None else bias.size == layer.node.outputs[0].shape[1]


def add(graph: gs.Graph, layer: QuantizedLayer, shift: np.ndarray) -> bool:
    """Add `shift` [channels] to the bias; whether that made a difference."""
    bias = layer.bias
    return set_(graph, layer, shift if bias is None else bias + shift)


def set_(graph: gs.Graph, layer: QuantizedLayer, bias: np.ndarray) -> bool:
    """Make `bias` [channels] the bias, in int32 of the steps of the sums; whether that made a difference.

    The steps of weights grow where it would leave int32 otherwise.
    """
    before, is_float = layer.bias, isinstance(layer.added, gs.Constant)
    steps = 0.0 if is_float else _steps(layer)
    if np.all(np.abs(bias - (0.0 if before is None else before)) <= steps / 2):
        return False
    if before is None:
        _create(graph, layer, bias)
    if not is_float:
        _make_room(layer, bias)
    layer.set_bias(bias)
    return True


def _make_room(layer: QuantizedLayer, bias: np.ndarray) -> None:
    """Give the weights scales at which a bias [channels] fits into int32."""
    W, step = layer.weight, layer.input_scale
    assert step is not None
    scale = roomy(layer.scale, W, bias, step, layer.axis)
    if not np.array_equal(scale, layer.scale):
        layer.set_integers(quantized(W, scale, layer.zero, layer.scheme, layer.axis))
        rescale(layer, scale)


def rescale(layer: QuantizedLayer, scale: np.ndarray) -> None:
    """Give the weights, which nobody else reads, other scales; the bias keeps its values in the steps that follow."""
    bias, maker = layer.bias, layer.dequantize
    maker.inputs[1] = gs.Constant(f"{maker.name}/scales", scale.astype(np.float32).reshape(layer.scale.shape))
    if layer.stored_bias is None or bias is None:
        return
    layer.set_bias(bias)  # of its own
    stored = layer.node.inputs[2].inputs[0]
    stored.inputs[1] = gs.Constant(f"{stored.name}/scales", _steps(layer))
    layer.set_bias(bias)


def _steps(layer: QuantizedLayer) -> np.ndarray:
    """Steps of the sums, float32, in the shape of the weights' scales."""
    assert layer.input_scale is not None
    return np.asarray(np.float32(layer.input_scale) * layer.scale, np.float32)


def _create(graph: gs.Graph, layer: QuantizedLayer, bias: np.ndarray) -> None:
    """Give a layer without a bias one of zeros."""
    name = graphs.unique(f"{layer.node.outputs[0].name}/bias", graphs.tensor_names(graph))
    steps, shape = _steps(layer), [bias.size]
    constants = [gs.Constant(f"{name}/quantized", np.zeros(shape, np.int32)), gs.Constant(f"{name}/scale", steps)]
    output = gs.Variable(f"{name}/dequantized", np.dtype(np.float32), shape)
    attributes = {"axis": 0} if steps.ndim else {}
    graph.nodes.insert(
        graph.nodes.index(layer.node), gs.Node("DequantizeLinear", name, attributes, constants, [output])
    )
    layer.node.inputs = [*list(layer.node.inputs)[:2], output]
