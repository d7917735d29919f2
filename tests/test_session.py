"""Sessions over graphs whose weights lie anywhere."""

import gc

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import testing
from nnc.session import Session


@pytest.mark.parametrize("optimized", [True, False])
def test_constants_that_are_not_contiguous(optimized: bool) -> None:
    """onnxruntime reads weights by address: what was copied for it must outlive the making of the session."""
    graph = testing.graph("net (float[1, 96] x) => (float y) <float[96, 64] W> { y = MatMul(x, W) }")
    W = np.random.default_rng(0).standard_normal((64, 96), np.float32).T
    assert not W.flags.c_contiguous
    graph.nodes[0].inputs[1] = gs.Constant("W", W)
    session = Session(graph, optimized=optimized)
    gc.collect()
    garbage = [np.full(W.shape, 1e9, np.float32) for _ in range(64)]  # where a freed copy lay
    x = np.random.default_rng(1).standard_normal((1, 96), np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ W, atol=1e-4)
    assert len(garbage) == 64


@pytest.mark.parametrize("optimized", [True, False])
def test_further_outputs(optimized: bool) -> None:
    graph = testing.graph("net (float[1, 4] x) => (float y) <float[4, 3] W> { a = MatMul(x, W) y = Relu(a) }")
    found = Session(graph, outputs=["a", "y"], optimized=optimized).run({"x": np.ones((1, 4), np.float32)})
    assert sorted(found) == ["a", "y"]
    np.testing.assert_allclose(np.maximum(found["a"], 0), found["y"])


def test_optimized_sessions_compute_what_a_quantized_graph_says() -> None:
    """Two products of large integers leave 16 bits, at which kernels of integers may saturate."""
    text = """net (float[1, 64, 4, 4] x) => (float y)
    <float s = {1.0}, uint8 z = {0}, int8[8, 64, 1, 1] W, float[8] t, int8[8] w> {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        v = DequantizeLinear<axis = 0>(W, t, w)
        y = Conv(d, v)
    }"""
    W = np.full((8, 64, 1, 1), 127, np.int8)
    graph = testing.graph(text, W=W, t=np.ones(8), w=np.zeros(8, np.int8))
    x = {"x": np.full((1, 64, 4, 4), 255, np.float32)}
    assert (Session(graph, optimized=True).run(x)["y"] == 64 * 127 * 255).all()
