"""The order in which channels go, against the error of refitting without them, computed one by one."""

import tracemalloc

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import calibrate, channels, pipeline, target, testing
from nnc.calibrate import Flow
from nnc.channels import Group
from nnc.compression import elimination
from nnc.compression.elimination import Ranking
from nnc.layers import Layer

CHAIN = """
net (float[1, 3, 8, 8] x) => (float y) <float[6, 3, 3, 3] V, float[5, 6, 3, 3] W>
{
    a = Conv(x, V)
    r = Relu(a)
    y = Conv<pads = [1, 1, 1, 1]>(r, W)
}
"""

GROUPED = """
net (float[1, 3, 8, 8] x) => (float y) <float[8, 3, 3, 3] V, float[6, 4, 1, 1] W>
{
    a = Conv(x, V)
    r = Relu(a)
    y = Conv<group = 2>(r, W)
}
"""

FLATTENED = """
net (float[1, 3, 4, 4] x) => (float y) <float[5, 3, 3, 3] V, float[20, 7] W>
{
    a = Conv(x, V)
    r = Relu(a)
    f = Flatten(r)
    y = MatMul(f, W)
}
"""

TWO_READERS = """
net (float[1, 3, 6, 6] x) => (float y, float z) <float[5, 3, 3, 3] V, float[4, 5, 1, 1] W, float[3, 5, 3, 3] U>
{
    a = Conv(x, V)
    r = Relu(a)
    y = Conv(r, W)
    z = Conv(r, U)
}
"""

PRODUCTS = "{ a = Gemm<transB = 1>(x, V) r = Relu(a) y = Gemm<transB = 1>(r, W) }"

NETS = {"Conv": CHAIN, "groups": GROUPED, "flattened": FLATTENED, "two readers": TWO_READERS}


@pytest.fixture(autouse=True)
def without_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "_RIDGE", 1e-9)


def drawn(graph: gs.Graph, batches: int = 200) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {each.name: rng.standard_normal((batches, *each.shape), np.float32) for each in graph.inputs}


def uniform(graph: gs.Graph, groups: list[Group]) -> dict[str, np.ndarray]:
    """Some weights for the outputs of the layers that read."""
    names = {use.node.name for group in groups for use in group.consumers}
    nodes = [node for node in graph.nodes if node.name in names]
    return {node.name: np.random.default_rng(7).uniform(0.5, 2, Layer(node).outputs) for node in nodes}


def ranked(graph: gs.Graph, weights: bool = True) -> tuple[list[Group], list[Ranking]]:
    traced = channels.trace(graph)
    groups = [group for group in traced.groups if group.consumers]
    context = pipeline.Context(target.load("x86"), imported=graph)
    given = uniform(graph, groups) if weights else {}
    return groups, elimination.rank(graph, traced, groups, drawn(graph), context, given)


def refit_error(graph: gs.Graph, group: Group, gone: list[int]) -> float:
    """What the layers that read a group lose when they do without some channels and all else is refitted."""
    traced, weights = channels.trace(graph), uniform(graph, [group])
    flow, total = Flow(graph, drawn(graph)), 0.0
    for node in graph.nodes:
        if node.name not in weights:
            continue
        flow.run_before(node)
        layer = Layer(node)
        xx = calibrate.input_moments(layer, flow.value(node.inputs[0]), 0)
        places = np.isin(traced.read(node).reshape(layer.groups, -1), gone)
        taps = layer.columns // places.shape[1]
        for block, W, lost, scale in zip(
            xx, layer.matrix, np.repeat(places, taps, 1), weights[node.name].reshape(layer.groups, -1), strict=True
        ):
            cross = block[np.ix_(~lost, ~lost)]
            V = np.linalg.solve(cross, block[~lost] @ W.T)
            residual = np.einsum("kd,de,ke->k", W, block, W) - np.einsum("dk,de,ek->k", V, cross, V)
            total += float(residual @ scale)
    return total


@pytest.mark.parametrize("case", NETS)
def test_first_is_the_channel_that_costs_least(case: str) -> None:
    graph = testing.graph(NETS[case])
    groups, rankings = ranked(graph)
    for group, ranking in zip(groups, rankings, strict=True):
        costs = {int(one): refit_error(graph, group, [int(one)]) for one in group.ids}
        assert ranking.ids[0] == min(costs, key=lambda one: costs[one])
        assert ranking.errors[1] == pytest.approx(min(costs.values()), rel=1e-3)


@pytest.mark.parametrize("case", NETS)
def test_errors_are_those_of_refitting_without_all_of_them(case: str) -> None:
    graph = testing.graph(NETS[case])
    groups, rankings = ranked(graph)
    for group, ranking in zip(groups, rankings, strict=True):
        for count in range(1, len(group.ids)):
            gone = ranking.ids[:count].tolist()
            assert ranking.errors[count] == pytest.approx(refit_error(graph, group, gone), rel=2e-3)


@pytest.mark.parametrize("case", NETS)
def test_a_ranking_is_complete(case: str) -> None:
    graph = testing.graph(NETS[case])
    for weights in (True, False):
        groups, rankings = ranked(graph, weights)
        for group, ranking in zip(groups, rankings, strict=True):
            assert sorted(ranking.ids.tolist()) == sorted(group.ids.tolist())
            assert len(ranking.errors) == len(group.ids) + 1
            assert ranking.errors[0] == 0
            assert (np.diff(ranking.errors) >= 0).all()


def test_a_linear_combination_goes_first() -> None:
    V = np.random.default_rng(0).standard_normal((6, 3, 3, 3))
    V[4] = V[0] + V[2]
    graph = testing.graph(CHAIN.replace("Relu(a)", "Identity(a)"), V=V)
    groups, (ranking,) = ranked(graph)
    positions = [groups[0].ids.tolist().index(one) for one in ranking.ids.tolist()]
    assert positions[0] in (0, 2, 4)
    assert ranking.errors[1] < 0.2 * ranking.errors[2]  # not 0: few samples and errors in front are reckoned with


def test_channels_that_nobody_weighs_go_first() -> None:
    W = np.random.default_rng(0).standard_normal((5, 6, 3, 3))
    W[:, [1, 3]] = 0
    graph = testing.graph(CHAIN, W=W)
    groups, (ranking,) = ranked(graph)
    assert sorted(groups[0].ids.tolist().index(one) for one in ranking.ids[:2].tolist()) == [1, 3]
    assert ranking.errors[2] < 1e-6 * ranking.errors[3]


def test_errors_without_sensitivities_are_shares_of_what_the_layer_gives() -> None:
    graph = testing.graph(CHAIN)
    _, (ranking,) = ranked(graph, weights=False)
    assert ranking.errors[-1] == pytest.approx(1, rel=1e-3)


def test_sensitivities_are_measured_where_none_are_given() -> None:
    """The layer that reads is the last one: what it loses is what the output loses."""
    graph = testing.graph(CHAIN)
    traced = channels.trace(graph)
    context = pipeline.Context(target.load("x86"), imported=graph)
    (ranking,) = elimination.rank(graph, traced, [traced.groups[0]], drawn(graph), context)
    assert ranking.errors[-1] == pytest.approx(1, rel=0.1)


#: Layers with as many outputs as inputs, and the axis of their weights that is along the inputs.
SQUARE = {
    "Conv": (CHAIN.replace("float[5, 6, 3, 3] W", "float[6, 6, 3, 3] W"), 1),
    "ConvTranspose": (
        CHAIN.replace("float[5, 6, 3, 3] W", "float[6, 6, 3, 3] W").replace(
            "Conv<pads = [1, 1, 1, 1]>(r, W)", "ConvTranspose<strides = [2, 2]>(r, W)"
        ),
        0,
    ),
    "Gemm": ("net (float[1, 8] x) => (float y) <float[6, 8] V, float[6, 6] W> %s" % PRODUCTS, 1),
    "MatMul": (
        "net (float[1, 8] x) => (float y) <float[6, 8] V, float[6, 6] W> %s"
        % PRODUCTS.replace("Gemm<transB = 1>(r", "MatMul(r"),
        0,
    ),
}


@pytest.mark.parametrize("case", SQUARE)
def test_layers_whose_moments_are_not_at_hand(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide layers, and transposed convolutions: channels of little energy or weight go first."""
    monkeypatch.setattr(elimination, "MOST_COLUMNS", 1)
    text, axis = SQUARE[case]
    graph = testing.graph(text)
    W = np.moveaxis(np.array(testing.weights(graph)["W"]), axis, 0)
    W[2] *= 1e-3
    graph = testing.graph(text, W=np.moveaxis(W, 0, axis))
    groups, (ranking,) = ranked(graph, weights=False)
    assert groups[0].ids.tolist().index(ranking.ids[0]) == 2


def test_the_weights_of_groups_count_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "MOST_COLUMNS", 1)
    W = np.ones((6, 4, 1, 1))
    W[:3, 1], W[3:, 1] = 1e-3, 0.5  # columns of two channels, one of each group, which go together
    W[:, 2] = 0.5
    groups, (ranking,) = ranked(testing.graph(GROUPED, W=W), weights=False)
    assert groups[0].ids.tolist().index(ranking.ids[0]) == 1


def test_many_channels_go_several_at_a_time() -> None:
    text = """net (float[1, 8] x) => (float y) <float[8, 200] V, float[200, 3] W> {
        a = MatMul(x, V)
        r = Relu(a)
        y = MatMul(r, W)
    }"""
    groups, (ranking,) = ranked(testing.graph(text))
    assert sorted(ranking.ids.tolist()) == sorted(groups[0].ids.tolist())
    assert np.isfinite(ranking.errors).all()


def test_a_wide_layer_takes_no_square_of_its_width() -> None:
    """VGG-16 has a layer of 25088 inputs, whose square is 5 GB."""
    text = """net (float[1, 4, 2, 2] x) => (float y) <float[1500, 4, 1, 1] V, float[6000, 3] W> {
        a = Conv(x, V)
        f = Flatten(a)
        y = MatMul(f, W)
    }"""
    graph = testing.graph(text)
    tracemalloc.start()
    _, (ranking,) = ranked(graph, weights=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6000**2 * 8 / 4
    assert len(ranking.ids) == 1500
    assert ranking.errors[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_images(value: float) -> None:
    graph = testing.graph(CHAIN)
    traced = channels.trace(graph)
    context = pipeline.Context(target.load("x86"), imported=graph)
    given = {"x": np.full((3, 1, 3, 8, 8), value, np.float32)}
    (ranking,) = elimination.rank(graph, traced, [traced.groups[0]], given, context)
    assert np.isfinite(ranking.errors).all()
    assert sorted(ranking.ids.tolist()) == sorted(traced.groups[0].ids.tolist())
