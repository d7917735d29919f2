"""Every criterion on a network whose answer is known."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import channels, pipeline, target, testing
from nnc.compression import importance
from nnc.compression.importance import NEED_DATA, Importance, Ranking
from nnc.errors import NncError

CHAIN = """
net (float[1, 2, 6, 6] x) => (float y)
<float[5, 2, 3, 3] V, float[5] A, float[5] g, float[5] b, float[5] m, float[5] v, float[4, 5, 1, 1] W>
{
    a = Conv(x, V, A)
    n = BatchNormalization(a, g, b, m, v)
    r = Relu(n)
    c = Conv(r, W)
    p = GlobalAveragePool(c)
    y = Flatten(p)
}
"""

PLAIN = {"A": np.zeros(5), "g": np.ones(5), "b": np.zeros(5), "m": np.zeros(5), "v": np.ones(5)}


def order(criterion: Importance, graph: gs.Graph, batches: int = 30) -> list[int]:
    """The channels of the first layer as indices, those first that go first."""
    traced = channels.trace(graph)
    (ranking,) = ranked(criterion, graph, batches)
    written = traced.written(graph.nodes[0]).tolist()
    return [written.index(one) for one in ranking.ids.tolist()]


def ranked(criterion: Importance, graph: gs.Graph, batches: int = 30) -> list[Ranking]:
    rng, traced = np.random.default_rng(0), channels.trace(graph)
    samples = {each.name: rng.standard_normal((batches, *each.shape), np.float32) for each in graph.inputs}
    context = pipeline.Context(target.load("x86"), imported=graph)
    groups = [group for group in traced.groups if group.consumers]
    return importance.rank(criterion, graph, traced, groups, samples if criterion in NEED_DATA else None, context)


def scaled(*factors: float, name: str = "V", shape: tuple[int, ...] = (5, 2, 3, 3)) -> dict[str, np.ndarray]:
    """Equal filters that differ in their factors."""
    filters = np.random.default_rng(0).standard_normal(shape[1:])
    return PLAIN | {name: np.multiply.outer(factors, filters)}


@pytest.mark.parametrize("criterion", ["l1", "l2", "activation", "taylor"])
def test_small_filters_go_first(criterion: Importance) -> None:
    W = np.ones((4, 5, 1, 1)) * np.array([1, 2, -1, 3]).reshape(4, 1, 1, 1)
    graph = testing.graph(CHAIN, **scaled(3, 1, 5, 2, 4), W=W)
    assert order(criterion, graph) == [1, 3, 0, 4, 2]


def test_l1_and_l2_differ() -> None:
    """One large value weighs more in l2, many small ones in l1."""
    V = np.zeros((5, 2, 3, 3)) + 10
    V[0], V[1] = 1.0, 0.0
    V[1, 0, 0, 0] = 9.0
    graph = testing.graph(CHAIN, V=V, **PLAIN)
    assert order("l1", graph)[:2] == [1, 0]
    assert order("l2", graph)[:2] == [0, 1]


def test_fpgm_takes_the_filter_that_others_replace() -> None:
    """The filter in the middle of the others is the nearest to their geometric median, whatever its norm."""
    V = np.zeros((5, 2, 3, 3))
    V[[0, 1, 3, 4], 0, 0, 0], V[2] = [-3, -2, 4, 6], 0
    graph = testing.graph(CHAIN, V=V + 50, **PLAIN)
    assert order("fpgm", graph)[0] == 2


def test_fpgm_is_the_sum_of_distances() -> None:
    graph = testing.graph(CHAIN)
    rows = graph.nodes[0].inputs[1].values.reshape(5, -1).astype(float)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2).sum(1)
    assert order("fpgm", graph) == np.argsort(distances).tolist()


def test_bn_scale_reads_gamma() -> None:
    graph = testing.graph(CHAIN, **{**PLAIN, "g": [3, -1, 0.5, -4, 2]})
    assert order("bn-scale", graph) == [2, 1, 4, 0, 3]


def test_bn_scale_needs_batchnorm() -> None:
    text = "net (float[1, 4] x) => (float y) <float[4, 6] V, float[6, 3] W> { a = MatMul(x, V) y = MatMul(a, W) }"
    with pytest.raises(NncError, match="no BatchNormalization scales the channels of 'a'") as raised:
        order("bn-scale", testing.graph(text))
    assert "fold-batchnorm" in str(raised.value.hint)


def test_taylor_needs_classes() -> None:
    text = """net (float[1, 2, 4, 4] x) => (float y) <float[5, 2, 1, 1] V, float[3, 5, 1, 1] W> {
        a = Conv(x, V)
        y = Conv(a, W)
    }"""
    with pytest.raises(NncError, match=r"importance 'taylor': cross-entropy needs scores \[N, classes\]") as raised:
        order("taylor", testing.graph(text))
    assert raised.value.hint == "choose another importance"


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_other_layers_do_not_count(criterion: Importance) -> None:
    """Norms of filters know nothing of what reads them; activations know nothing of the weights behind."""
    W = np.ones((4, 5, 1, 1))
    W[:, 2] = 0
    graph = testing.graph(CHAIN, **scaled(3, 1, 5, 2, 4), W=W)
    assert order(criterion, graph) == [1, 3, 0, 4, 2]


@pytest.mark.parametrize("criterion", ["taylor", "reconstruction"])
def test_channels_that_nobody_reads_go_first(criterion: Importance) -> None:
    W = np.random.default_rng(0).standard_normal((4, 5, 1, 1))
    W[:, [1, 4]] = 0
    assert sorted(order(criterion, testing.graph(CHAIN, W=W))[:2]) == [1, 4]


@pytest.mark.parametrize("criterion", ["activation", "taylor", "reconstruction"])
def test_channels_that_relu_silences_go_first(criterion: Importance) -> None:
    """Their filters are the largest, which the norms fall for."""
    V = np.random.default_rng(0).standard_normal((5, 2, 3, 3)) * np.array([10, 1, 1, 1, 1]).reshape(5, 1, 1, 1)
    values = PLAIN | {"V": V, "b": np.array([-1e4, 0, 0, 0, 0])}
    graph = testing.graph(CHAIN, **values)
    assert order(criterion, graph)[0] == 0
    assert order("l2", graph)[-1] == 0


RESIDUAL = """
net (float[1, 3, 6, 6] x) => (float y) <float[4, 3, 1, 1] V, float[4, 4, 1, 1] U, float[2, 4, 1, 1] W> {
    a = Conv(x, V)
    b = Conv(a, U)
    s = Add(a, b)
    c = Conv(s, W)
    p = GlobalAveragePool(c)
    y = Flatten(p)
}
"""


def test_coupled_layers_are_added_up() -> None:
    """Each relative to its own mean, so that the scale of one layer does not decide."""
    V, U = (
        np.multiply.outer(np.array(f), np.ones((n, 1, 1))) for f, n in (([1, 2, 3, 4], 3), ([400, 300, 200, 50], 4))
    )
    graph = testing.graph(RESIDUAL, V=V, U=U)
    expected = np.array([1, 2, 3, 4]) / 2.5 + np.array([400, 300, 200, 50]) / 237.5
    assert order("l1", graph) == np.argsort(expected).tolist()
    (ranking,) = ranked("l1", graph)
    left = 1 - np.cumsum(np.sort(expected))[:-1] / expected.sum()
    np.testing.assert_allclose(ranking.errors[1:-1], -2 * np.log(left), err_msg="of the two layers")


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "activation", "taylor", "reconstruction"])
def test_rankings_are_complete_and_grow(criterion: Importance) -> None:
    for text in (CHAIN, RESIDUAL):
        for ranking in ranked(criterion, testing.graph(text)):
            assert len(set(ranking.ids.tolist())) == len(ranking.ids) == len(ranking.errors) - 1
            assert ranking.errors[0] == 0
            assert (np.diff(ranking.errors) >= 0).all()


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "bn-scale"])
def test_weights_of_zeros(criterion: Importance) -> None:
    graph = testing.graph(CHAIN, **{name: 0 * values for name, values in scaled(0, 0, 0, 0, 0).items()})
    (ranking,) = ranked(criterion, graph)
    assert np.isfinite(ranking.errors).all()


@pytest.mark.parametrize("criterion", ["activation", "taylor", "reconstruction"])
def test_the_same_twice(criterion: Importance) -> None:
    graph = testing.graph(CHAIN)
    first, second = (ranked(criterion, graph)[0] for _ in range(2))
    np.testing.assert_array_equal(first.ids, second.ids)
    np.testing.assert_array_equal(first.errors, second.errors)


@pytest.mark.parametrize("criterion", ["activation", "reconstruction"])
def test_activations_that_are_not_finite(criterion: Importance) -> None:
    graph = testing.graph(CHAIN, **PLAIN | {"A": np.array([0, 0, np.inf, 0, 0])})
    with pytest.raises(NncError, match=r"'\w'.* is not finite on the calibration data"):
        order(criterion, graph)


def test_quantized_weights_count_as_what_they_stand_for() -> None:
    text = """net (float[1, 2] x) => (float y) <int8[2, 3] Q, float[3] S, float[3, 4] W> {
        V = DequantizeLinear<axis = 1>(Q, S)
        a = MatMul(x, V)
        y = MatMul(a, W)
    }"""
    graph = testing.graph(text, Q=[[100, 50, 1], [100, 50, 1]], S=[0.01, 1.0, 10.0])
    traced = channels.trace(graph)
    (ranking,) = ranked("l2", graph)
    written = traced.written(graph.nodes[1]).tolist()
    assert [written.index(one) for one in ranking.ids.tolist()] == [0, 2, 1]
