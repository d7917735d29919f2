"""Passes read and change the integers of layers."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import quantize, testing, verify
from nnc.quantize import Config, LayerConfig, Scheme, biases

SHARED = """
net (float[1, 4, 5, 5] x) => (float y) <float[4, 4, 1, 1] W, float[4] B>
{ a = Conv(x, W, B) b = Relu(a) y = Conv(b, W) }
"""


def quantized(text: str, bits: int = 8, **values: object) -> gs.Graph:
    graph = testing.graph(text, **values)
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


def test_a_bias_of_a_row_in_integers() -> None:
    text = "net (float[3, 4] x) => (float y) <float[4, 4] W, float[1, 4] B> { y = Gemm(x, W, B) }"
    graph = quantized(text, B=np.array([[1.0, -1.0, 2.0, 0.0]]))
    layer = quantize.layers(graph)["y"]
    stored = layer.stored_bias
    assert stored is not None
    stored.inputs[0].values = stored.inputs[0].values.reshape(1, 4)  # as some exporters write it
    stored.attrs["axis"] = 1
    np.testing.assert_allclose(layer.bias, [1.0, -1.0, 2.0, 0.0], atol=1e-3)


@pytest.mark.parametrize("added", ["x", "c"])
def test_what_is_computed_is_no_bias(added: str) -> None:
    text = f"""net (float[3, 4] x, float[3, 4] c) => (float y) <float[4, 4] V, float[4, 4] W>
    {{ h = Gemm(x, V) r = Relu(h) y = Gemm(r, W, {added}) }}"""
    layer = quantize.layers(quantized(text))["y"]
    assert layer.added is not None
    assert (layer.bias, layer.stored_bias, biases.can_add(layer)) == (None, None, False)


def test_a_bias_that_grows_stays_in_int32() -> None:
    """The bias of a channel without weights is as large as int32 allows."""
    W, B = np.random.default_rng(0).standard_normal((4, 4, 1, 1)), [3.0, -1.0, 2.0, 0.0]
    W[0] = 0
    graph = quantized(SHARED, W=W, B=B)
    layer = quantize.layers(graph)["a"]
    before = layer.weight
    assert biases.set_(graph, layer, np.array([4.0, -1.0, 2.0, 0.0]))
    np.testing.assert_allclose(layer.bias, [4.0, -1.0, 2.0, 0.0], atol=1e-3)
    np.testing.assert_allclose(layer.weight, before, rtol=1e-6)
    verify.check_invariants(graph)
