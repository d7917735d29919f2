"""Layers as matrices over patches: the same products as onnxruntime computes, and weights that are set as they are."""

import numpy as np
import pytest

from nnc import graph as graphs
from nnc import testing, verify
from nnc.layers import Layer, dequantized
from nnc.rewrite import Driver
from nnc.session import Session


def text(product: str, x: str, W: str, bias: str = "", kind: str = "float") -> str:
    added = f", {kind}[{bias}] B" if bias else ""
    return f"net ({kind}[{x}] x) => ({kind} y) <{kind}[{W}] W{added}> {{ y = {product} }}"


#: Attributes of every kind that decide which values a patch holds.
LAYERS = {
    "1x1": text("Conv(x, W, B)", "2, 3, 5, 6", "4, 3, 1, 1", "4"),
    "3x3": text("Conv<pads = [1, 1, 1, 1]>(x, W, B)", "2, 3, 5, 6", "4, 3, 3, 3", "4"),
    "uneven pads": text("Conv<pads = [0, 2, 1, 1]>(x, W)", "2, 3, 5, 6", "4, 3, 3, 2"),
    "strides": text("Conv<strides = [2, 3], pads = [1, 1, 1, 1]>(x, W, B)", "1, 3, 8, 9", "4, 3, 3, 3", "4"),
    "windows that do not reach the end": text("Conv<strides = [3, 3]>(x, W)", "1, 3, 9, 9", "4, 3, 2, 2"),
    "dilations": text("Conv<dilations = [2, 3], pads = [2, 3, 2, 3]>(x, W)", "1, 3, 8, 9", "4, 3, 3, 3"),
    "dilations and strides": text("Conv<dilations = [2, 1], strides = [2, 2]>(x, W)", "1, 3, 9, 9", "4, 3, 3, 3"),
    "same upper": text('Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, W)', "1, 3, 8, 7", "4, 3, 3, 4"),
    "same lower": text('Conv<auto_pad = "SAME_LOWER", strides = [2, 1]>(x, W)', "1, 3, 8, 7", "4, 3, 4, 3"),
    "valid": text('Conv<auto_pad = "VALID">(x, W)', "1, 3, 8, 7", "4, 3, 3, 3"),
    "groups": text("Conv<group = 2, pads = [1, 1, 1, 1]>(x, W, B)", "2, 4, 5, 5", "6, 2, 3, 3", "6"),
    "depthwise": text("Conv<group = 4, pads = [1, 1, 1, 1]>(x, W, B)", "2, 4, 5, 5", "4, 1, 3, 3", "4"),
    "depthwise with two outputs each": text("Conv<group = 4>(x, W)", "2, 4, 5, 5", "8, 1, 3, 3"),
    "one dimension": text("Conv<pads = [1, 1], strides = [2]>(x, W, B)", "2, 3, 9", "4, 3, 3", "4"),
    "three dimensions": text("Conv<pads = [1, 0, 1, 1, 0, 1]>(x, W)", "1, 2, 4, 5, 3", "3, 2, 3, 2, 3"),
    "Gemm": text("Gemm(x, W, B)", "5, 3", "3, 4", "4"),
    "Gemm, transposed": text("Gemm<transB = 1>(x, W, B)", "5, 3", "4, 3", "4"),
    "Gemm with factors": text("Gemm<alpha = 0.5, beta = 3.0>(x, W, B)", "5, 3", "3, 4", "4"),
    "Gemm with one bias for all": text("Gemm(x, W, B)", "5, 3", "3, 4", "1"),
    "Gemm with a bias of one row": text("Gemm(x, W, B)", "5, 3", "3, 4", "1, 4"),
    "MatMul": text("MatMul(x, W)", "5, 3", "3, 4"),
    "MatMul of sequences": text("MatMul(x, W)", "2, 5, 3", "3, 4"),
    "MatMul of four dimensions": text("MatMul(x, W)", "2, 2, 5, 3", "3, 4"),
}


def layer_of(case: str) -> tuple[Layer, np.ndarray, np.ndarray]:
    """The layer, what it reads, and what onnxruntime makes of it."""
    graph = testing.graph(LAYERS[case])
    layer = Layer.of(graph.nodes[0])
    assert layer is not None
    inputs = verify.probe_inputs(graph, 0)
    return layer, inputs["x"], Session(graph).run(inputs)["y"]


@pytest.mark.parametrize("case", LAYERS)
def test_rows_times_matrix_is_the_output(case: str) -> None:
    layer, x, y = layer_of(case)
    chosen = np.stack([np.random.default_rng(index).permutation(layer.positions) for index in range(len(x))])
    rows, targets = layer.rows(x, chosen), layer.targets(y, chosen)
    assert rows.shape == (layer.groups, chosen.size, layer.columns) == (*rows.shape[:2], layer.matrix.shape[2])
    computed = rows @ layer.matrix.transpose(0, 2, 1) + layer.bias.reshape(layer.groups, 1, -1)
    np.testing.assert_allclose(computed, targets, atol=1e-4)


@pytest.mark.parametrize("case", LAYERS)
def test_all_positions_are_all_values(case: str) -> None:
    layer, x, y = layer_of(case)
    every = np.broadcast_to(np.arange(layer.positions), (len(x), layer.positions))
    assert sorted(layer.targets(y, every).ravel()) == sorted(y.ravel())


@pytest.mark.parametrize("case", LAYERS)
def test_set_what_it_has(case: str) -> None:
    graph = testing.graph(LAYERS[case])
    after = graphs.copy(graph)
    layer = Layer(after.nodes[0])
    layer.set(layer.matrix, layer.bias, Driver(after))
    testing.check_outputs(graph, after)


@pytest.mark.parametrize("case", LAYERS)
def test_shapes(case: str) -> None:
    layer, x, y = layer_of(case)
    axis = 1 if layer.is_conv else -1
    assert (layer.inputs, layer.outputs) == (x.shape[axis], y.shape[axis])
    assert layer.matrix.shape == (layer.groups, layer.outputs // layer.groups, layer.columns)
    assert layer.weight.reshape(layer.matrix.shape) == pytest.approx(layer.matrix, rel=1e-6)
    assert layer.is_depthwise == ("depthwise" in case)


def test_set_leaves_shared_weights_alone() -> None:
    graph = testing.graph(
        "net (float[5, 3] x) => (float y, float z) <float[3, 4] W> { y = MatMul(x, W) z = MatMul(x, W) }"
    )
    layer, other = Layer(graph.nodes[0]), graph.nodes[1].inputs[1].values.copy()
    layer.set(2 * layer.matrix, np.arange(4.0), Driver(graph))
    assert [node.op for node in graph.nodes] == ["Gemm", "MatMul"], "a MatMul that needs a bias is a Gemm"
    np.testing.assert_array_equal(graph.nodes[1].inputs[1].values, other)
    assert graph.nodes[0].inputs[1].name != graph.nodes[1].inputs[1].name


def test_half_precision_is_summed_in_single() -> None:
    graph = testing.graph(text("MatMul(x, W)", "2, 3", "3, 4", kind="float16"))
    layer = Layer(graph.nodes[0])
    rows = layer.rows(np.full((2, 3), 300.0, np.float16), np.zeros((2, 1), int))
    assert rows.dtype == np.float32
    assert np.isfinite(rows.transpose(0, 2, 1) @ rows).all()
    layer.set(layer.matrix, layer.bias, Driver(graph))
    assert graph.nodes[0].inputs[1].dtype == np.float16


PRODUCTS = [
    "net (float[3, 5] x) => (float y) <float[3, 4] W> { y = Gemm<transA = 1>(x, W) }",
    "net (float[5, 3] x) => (float y) <float[3, 4] W, float[5, 4] B> { y = Gemm(x, W, B) }",
    "net (float[5, 3] x) => (float y) <float[3] W> { y = MatMul(x, W) }",
    "net (float[2, 5, 3] x) => (float y) <float[2, 3, 4] W> { y = MatMul(x, W) }",
    "net (float[5, 3] x, float[3, 4] W) => (float y) { y = MatMul(x, W) }",
    "net (float[3] x) => (float y) <float[3, 4] W> { y = MatMul(x, W) }",
    "net (float[5, 3] x, float[4] B) => (float y) <float[3, 4] W> { y = Gemm(x, W, B) }",
    "net (double[5, 3] x) => (double y) <double[3, 4] W> { y = MatMul(x, W) }",
    "net (float[5, 3] x) => (float y) { y = Relu(x) }",
]


@pytest.mark.parametrize("product", PRODUCTS)
def test_what_is_no_layer(product: str) -> None:
    assert Layer.of(testing.graph(product).nodes[0]) is None


def test_weights_that_are_quantized_at_run_time() -> None:
    graph = testing.graph(
        """net (float[1, 2] x) => (float y) <float[2, 3] W, float S, int8 Z> {
            Q = QuantizeLinear(W, S, Z)
            V = DequantizeLinear(Q, S, Z)
            y = MatMul(x, V)
        }""",
        S=0.5, Z=0,
    )  # fmt: skip
    np.testing.assert_array_equal(dequantized(graph.nodes[-1].inputs[1]), graph.nodes[0].inputs[0].values)


def test_dequantized_weights() -> None:
    graph = testing.graph(
        """net (float[1, 3] x) => (float y) <int8[2, 3] Q, float[3] S, int8[3] Z> {
            W = DequantizeLinear<axis = 1>(Q, S, Z)
            V = Transpose<perm = [1, 0]>(W)
            y = MatMul(x, V)
        }""",
        Q=[[1, 2, 3], [4, 5, 6]], S=[1.0, 10.0, 100.0], Z=[1, 0, 1],
    )  # fmt: skip
    assert dequantized(graph.nodes[-1].inputs[1]).tolist() == [[0, 3], [20, 50], [200, 500]]
