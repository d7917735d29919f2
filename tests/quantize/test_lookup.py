"""Passes read and change the integers of layers."""

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc import quantize, testing, verify
from nnc.quantize import Config, LayerConfig, Scheme

SHARED = """
net (float[1, 4, 5, 5] x) => (float y) <float[4, 4, 1, 1] W, float[4] B>
{ a = Conv(x, W, B) b = Relu(a) y = Conv(b, W) }
"""


def quantized(text: str, bits: int = 8) -> gs.Graph:
    graph = testing.graph(text)
    placement = quantize.place(graph)
    ranges = {tensor.name: (-4.0, 4.0) for tensor in placement.sources}
    weights = LayerConfig(Scheme("int8", True, True, bits))
    quantize.insert(graph, placement, ranges, Config(lambda tensors: Scheme("uint8", False), lambda node: weights))
    verify.check_invariants(graph)
    return graph


def test_layers_of_a_float_graph() -> None:
    assert quantize.layers(testing.graph(SHARED)) == {}


def test_schemes_are_seen() -> None:
    for bits in (4, 8):
        assert quantize.layers(quantized(SHARED, bits))["a"].scheme == Scheme("int8", True, True, bits)


def test_weights_that_are_shared_change_for_one() -> None:
    graph = quantized(SHARED)
    a, y = quantize.layers(graph).values()
    assert a.dequantize is y.dequantize
    before = y.weight.copy()
    a.set_integers(quantize.quantized(a.weight / 2, a.scale, a.zero, a.scheme, a.axis))
    verify.check_invariants(graph)
    a, y = quantize.layers(graph).values()
    np.testing.assert_array_equal(y.weight, before)
    assert np.abs(a.weight - before / 2).max() <= a.scale.max() / 2 * 1.001


def test_what_is_set_is_computed() -> None:
    graph = quantized(SHARED)
    layer = quantize.layers(graph)["a"]
    layer.set_integers(np.zeros_like(layer.integers))
    layer.set_bias(np.array([1.0, -1.0, 2.0, 0.0]))
    assert np.abs(layer.bias - [1.0, -1.0, 2.0, 0.0]).max() < 1e-3
    graph.outputs = [layer.node.outputs[0]]
    graph.cleanup()
    graphs.sort(graph)
    found = verify.outputs(graph, verify.probe_inputs(graph, 0))["a"]
    np.testing.assert_allclose(found[0, :, 0, 0], [1.0, -1.0, 2.0, 0.0], atol=1e-3)


def test_a_bias_of_floats() -> None:
    text = "net (float[3, 4] x) => (float y) <float[4, 4] W, float[3, 4] B> { y = Gemm(x, W, B) }"
    layer = quantize.layers(quantized(text))["y"]
    assert isinstance(layer.node.inputs[2], gs.Constant)
    layer.set_bias(np.ones(4))
    assert layer.bias.tolist() == [1.0] * 4
