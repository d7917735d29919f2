"""What nodes are told, by attributes and by constants."""

import math

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import attributes, testing
from nnc.attributes import Computed
from nnc.quantize import expectation
from nnc.session import Session


def node(text: str, **values: object) -> gs.Node:
    """The last node of a network that reads x."""
    return testing.graph(text, **values).nodes[-1]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(-8, 8), st.integers(-8, 8), st.sampled_from([-3, -2, -1, 1, 2, 3]))
def test_slices(size: int, start: int, end: int, step: int) -> None:
    told = f"int64[1] s = {{{start}}}, int64[1] e = {{{end}}}, int64[1] a = {{-1}}, int64[1] t = {{{step}}}"
    graph = testing.graph(f"net (float[2, {size}] x) => (float y) <{told}> {{ y = Slice(x, s, e, a, t) }}")
    x = np.arange(2 * size, dtype=np.float32).reshape(2, size)
    places = attributes.slices(graph.nodes[0], x.shape)
    np.testing.assert_array_equal(Session(graph).run({"x": x})["y"], x[:, list(places[1])])


CLIP = "net (float[1, 2] x%s) => (float y) <float%s low, float%s high> { y = Clip(%s) }"


@pytest.mark.parametrize("shape", ["", "[1]"])
@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        ("x, low, high", (-1, 6)),
        ("x, , high", (-math.inf, 6)),
        ("x, low", (-1, math.inf)),
        ("x", (-math.inf, math.inf)),
    ],
)
def test_bounds(shape: str, reads: str, expected: tuple[float, float]) -> None:
    values = {name: np.reshape(value, [1] * bool(shape)) for name, value in (("low", -1), ("high", 6))}
    assert attributes.bounds(node(CLIP % ("", shape, shape, reads), **values)) == expected


def test_bounds_of_relu_and_of_what_is_computed() -> None:
    assert attributes.bounds(node("net (float[1, 2] x) => (float y) { y = Relu(x) }")) == (0, math.inf)
    computed = node(CLIP % (", float least", "", "", "x, least"))
    with pytest.raises(Computed, match="what 'least' tells Clip 'y' is computed"):
        attributes.bounds(computed)


@pytest.mark.parametrize("shape", ["", "[1]"])
def test_means_behind_bounds(shape: str) -> None:
    text = """net (float[1, 2, 4, 4] x) => (float y)
    <float[2] gamma, float[2] beta, float[2] mean, float[2] var, float%s low, float%s high>
    { b = BatchNormalization(x, gamma, beta, mean, var) y = Clip(b, low, high) }"""
    ends = {name: np.reshape(value, [1] * bool(shape)) for name, value in (("low", 0), ("high", 1))}
    graph = testing.graph(text % (shape, shape), gamma=[1e-3, 1e-3], beta=[-5, 9], **ends)
    np.testing.assert_allclose(expectation.means(graph)["y"], [0, 1])


def test_means_behind_bounds_that_are_computed_are_not_known() -> None:
    text = """net (float[1, 2, 4, 4] x, float most) => (float y)
    <float[2] gamma, float[2] beta, float[2] mean, float[2] var>
    { b = BatchNormalization(x, gamma, beta, mean, var) y = Clip(b, , most) }"""
    assert expectation.means(testing.graph(text)).keys() == {"b"}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("Gemm<beta = 2.0>(x, W, row)", [2.0, 4.0, 6.0]),
        ("Gemm(x, W, rows)", [1.0, 2.0, 3.0]),
        ("Gemm<beta = 0.5>(x, W, one)", [0.5, 0.5, 0.5]),
        ("Gemm(x, W, column)", None),
        ("Gemm(x, W, c)", None),
        ("Gemm(x, W)", None),
        ("MatMul(x, W)", None),
    ],
)
def test_biases(layer: str, expected: list[float] | None) -> None:
    text = f"""net (float[3, 2] x, float[3, 3] c) => (float y) <float[2, 3] W, float[3] row = {{1.0, 2.0, 3.0}},
    float[1, 3] rows = {{1.0, 2.0, 3.0}}, float one = {{1.0}}, float[3, 1] column> {{ y = {layer} }}"""
    found = attributes.bias(node(text))
    assert (None if found is None else found.tolist()) == expected


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        ("Conv(x, W)", 0),
        ("ConvTranspose(x, W)", 1),
        ("Gemm(z, V)", 1),
        ("Gemm<transB = 1>(z, V)", 0),
        ("MatMul(x, W)", 3),
    ],
)
def test_axis_of_outputs(layer: str, axis: int) -> None:
    text = f"""net (float[1, 4, 4, 4] x, float[4, 4] z) => (float y) <float[4, 4, 4, 4] W, float[4, 4] V>
    {{ y = {layer} }}"""
    assert attributes.output_axis(node(text)) == axis
