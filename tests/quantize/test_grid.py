"""Activations of few bits: no runtime writes other integers, and a Clip stands only where one is needed."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import quantize, testing, verify
from nnc.quantize import Config, LayerConfig, Scheme, grid
from nnc.session import Session

NET = """
net (float[1, 2, 6, 6] x) => (float[1, 4, 3, 3] y, float[1, 4, 6, 6] d)
<float[4, 2, 1, 1] U, float[4, 4, 1, 1] V, float[4, 4, 1, 1] W, float[4, 4, 1, 1] Z, float low, float high>
{
    a = Conv(x, U)
    b = Relu(a)
    c = Conv(b, V)
    d = Relu(c)
    e = Conv(d, W)
    f = Clip(e, low, high)
    g = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(f)
    y = Conv(g, Z)
}
"""


def inserted(bits: int, scheme: Scheme, low: float, reach: float) -> gs.Graph:
    graph = testing.graph(NET, low=0.0, high=0.5)
    placement = quantize.place(graph)
    ranges = {each.name: (low if each.name == "x" else 0.0, reach) for each in placement.sources}
    few = Scheme(scheme.dtype, scheme.symmetric, bits=bits)
    quantize.insert(
        graph, placement, ranges, Config(lambda tensors: few, lambda node: LayerConfig(Scheme("int8", True, True)))
    )
    verify.check_invariants(graph)
    return graph


SCHEMES = st.builds(Scheme, st.sampled_from(["int8", "uint8"]), st.booleans())


@given(st.integers(2, 7), SCHEMES, st.floats(-3, 0), st.floats(0.05, 3), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_no_other_integers_are_written(bits: int, scheme: Scheme, low: float, reach: float, seed: int) -> None:
    graph = inserted(bits, scheme, low, reach)
    nodes = [node for node in graph.nodes if node.op == "QuantizeLinear"]
    names = [node.outputs[0].name for node in nodes]
    x = 5 * verify.probe_inputs(graph, seed)["x"]
    found = Session(graph, outputs=names, optimized=False).run({"x": x})
    for node in nodes:
        least, largest = grid.limits(node, grid.bounding(node, graph.outputs))
        values = found[node.outputs[0].name]
        if node.inputs[0].name != "g":  # which holds values of f
            assert largest - least < 2**bits
        assert least <= values.min()
        assert values.max() <= largest
        assert values.max() - int(values.min()) < 2**bits


def test_clips_stand_where_they_are_needed() -> None:
    graph = inserted(4, Scheme("uint8", False), -1.0, 0.9)
    readers = {node.outputs[0].name: node for node in graph.nodes}
    assert readers["b"].op == "Clip", "a Relu turns into one"
    assert [float(each.values) for each in readers["b"].inputs[1:]] == pytest.approx([0.0, 0.9])
    assert readers["d"].op == "Relu", "an output of the graph stays"
    assert readers["d/clipped"].op == "Clip"
    assert [float(each.values) for each in readers["f"].inputs[1:]] == pytest.approx([0.0, 0.5]), "what it had is less"
    assert [node.op for node in graph.nodes].count("Clip") == 4, "x, b, d and f; what only moves has none"


def test_eight_bits_need_no_clip() -> None:
    graph = inserted(8, Scheme("int8", True), -1.0, 0.9)
    assert [node.op for node in graph.nodes].count("Clip") == 1


def test_values_on_the_grid_stay() -> None:
    """The oracle: what is a multiple of the step within the ends is what the float network has."""
    text = "net (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y) <float[4, 4, 1, 1] W> { r = Relu(x) y = Conv(r, W) }"
    W = np.random.default_rng(0).integers(-127, 128, (4, 4, 1, 1)) / 64
    W[:, 0] = 127 / 64
    graph = testing.graph(text, W=W)
    x = np.random.default_rng(1).integers(-3, 16, (1, 4, 4, 4)).astype(np.float32) / 8
    expected = Session(graph).run({"x": x})["y"]
    placement = quantize.place(graph)
    few = Scheme("int8", True, bits=4)
    ranges = {"x": (-3 / 8, 15 / 8), "r": (0.0, 15 / 8)}
    config = Config(lambda tensors: few, lambda node: LayerConfig(Scheme("int8", True, True)))
    quantize.insert(graph, placement, ranges, config)
    np.testing.assert_allclose(Session(graph, optimized=False).run({"x": x})["y"], expected, atol=1e-5)
