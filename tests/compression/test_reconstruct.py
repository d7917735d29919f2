"""Layers that are fitted to what the original computes: exact where the original can be reached."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import channels, pipeline, target, testing
from nnc import graph as graphs
from nnc.calibrate import Flow
from nnc.compression import reconstruct
from nnc.compression.reconstruct import Kept
from nnc.layers import Layer
from nnc.measure import measure
from nnc.rewrite import Driver

CHAIN = """
net (float[1, 3, 8, 8] x) => (float y)
<float[6, 3, 3, 3] V, float[6] A, float[5, 6, 3, 3] W, float[5] B>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, V, A)
    y = Conv<pads = [1, 1, 1, 1]>(a, W, B)
}
"""


@pytest.fixture(autouse=True)
def weak_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracles are exact; the ridge moves a little."""
    monkeypatch.setattr(reconstruct, "RIDGE", 1e-9)


def drawn(graph: gs.Graph, batches: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {each.name: rng.standard_normal((batches, *each.shape)).astype(each.dtype) for each in graph.inputs}


def context(graph: gs.Graph) -> pipeline.Context:
    return pipeline.Context(target.load("x86"), imported=graph)


def refitted(graph: gs.Graph, layer: str, lost: int, **options: bool) -> tuple[gs.Graph, dict[str, float]]:
    """The graph without the channel `lost` of a layer, refitted, and the errors."""
    traced = channels.trace(graph)
    node = next(node for node in graph.nodes if node.name == layer)
    ids = [int(traced.written(node)[lost])]
    after = graphs.copy(graph)
    channels.remove(after, traced, ids)
    readers = {name for name, (read, _) in traced.layers.items() if np.isin(read, ids).any()}
    errors = reconstruct.fit(
        graph, after, drawn(graph), context(graph), kept=Kept(traced, frozenset(ids)), changed=readers, **options
    )
    return after, errors


def error(before: gs.Graph, after: gs.Graph) -> float:
    """The relative squared error of the output."""
    expected, found = (Flow(graph, drawn(graph)).outputs()["y"].astype(np.float64) for graph in (before, after))
    return float(np.square(expected - found).mean() / expected.var())


def combined(first: np.ndarray, bias: np.ndarray) -> None:
    """Make the last channel a linear combination of others."""
    first[-1], bias[-1] = 2 * first[0] - 0.5 * first[1], 2 * bias[0] - 0.5 * bias[1]


def drawn_pair(shape: tuple[int, ...], seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    V, A = rng.standard_normal(shape), np.zeros(shape[0])
    combined(V, A)
    return {"V": V, "A": A}


# fmt: off
CHAINS = {
    "Conv": (CHAIN, (6, 3, 3, 3)),
    "strides and dilations": (CHAIN.replace(
        "Conv<pads = [1, 1, 1, 1]>(a, W, B)", "Conv<strides = [2, 1], dilations = [1, 2], pads = [1, 1, 1, 1]>(a, W, B)"
    ), (6, 3, 3, 3)),
    "without bias": (CHAIN.replace("(a, W, B)", "(a, W)").replace(", float[5] B", ""), (6, 3, 3, 3)),
    "Gemm": ("""net (float[4, 3] x) => (float y) <float[6, 3] V, float[6] A, float[6, 5] W, float[5] B> {
        a = Gemm<transB = 1>(x, V, A)
        y = Gemm<alpha = 2.0, beta = 0.5>(a, W, B)
    }""", (6, 3)),
    "sequences": ("""net (float[2, 7, 6] x) => (float y) <float[1, 1, 6] A, float[6, 6] V, float[6, 5] W> {
        b = MatMul(x, V)
        y = MatMul(b, W)
    }""".replace("float[1, 1, 6] A, ", ""), (6, 6)),
}
# fmt: on


@pytest.mark.parametrize("case", CHAINS)
def test_a_linear_combination_is_not_missed(case: str) -> None:
    text, shape = CHAINS[case]
    values = drawn_pair(shape)
    if case == "sequences":
        values = {"V": values["V"].T}
    graph = testing.graph(text, **values)
    plain = graphs.copy(graph)
    traced = channels.trace(graph)
    channels.remove(plain, traced, [int(traced.written(graph.nodes[0])[-1])])
    after, errors = refitted(graph, graph.nodes[0].name, -1)
    assert error(graph, plain) > 1e-2, "it is missed without"
    assert error(graph, after) < 1e-6
    assert list(errors) == [graph.nodes[1].name]
    assert errors[graph.nodes[1].name] < 1e-6


def test_other_channels_take_over_what_they_can() -> None:
    graph = testing.graph(CHAIN)
    after, errors = refitted(graph, "a", 2)
    direct = error(graph, after)
    assert 0.01 < direct < 0.5
    assert errors["y"] == pytest.approx(direct, rel=0.3)


TOKENS = """
net (float[2, 7, 6] x) => (float y) <float[6, 8] V, float[8, 5] W, float[5] B> {
    a = MatMul(x, V)
    r = Relu(a)
    y = MatMul(r, W)
}
"""
ADDED = TOKENS.replace("y = MatMul(r, W)", "b = MatMul(r, W)\n    y = Add(B, b)")


@pytest.mark.parametrize(
    ("text", "adds"),
    [(TOKENS.replace(", float[5] B", ""), 1), (ADDED, 1), (ADDED.replace("(float y", "(float b, float y"), 2)],
)
def test_the_mean_of_what_is_lost_is_added_behind_a_matmul_of_sequences(text: str, adds: int) -> None:
    graph = testing.graph(text)
    after, _ = refitted(graph, "a", 2)
    assert [node.op for node in after.nodes] == ["MatMul", "Relu", "MatMul", *["Add"] * adds]
    product = after.nodes[2]
    assert product.name == graph.nodes[2].name
    assert product.outputs[0].shape == [2, 7, 5]
    expected, found = (Flow(each, drawn(graph)).outputs()["y"] for each in (graph, after))
    np.testing.assert_allclose(found.mean((0, 1, 2)), expected.mean((0, 1, 2)), atol=1e-5)
    if adds == 2:
        assert [tensor.name for tensor in after.outputs] == ["b", "y"]


GROUPED = """
net (float[1, 4, 8, 8] x) => (float y)
<float[8, 4, 1, 1] V, float[8] A, float[6, 4, 3, 3] W, float[6] B>
{
    a = Conv(x, V, A)
    y = Conv<group = 2, pads = [1, 1, 1, 1]>(a, W, B)
}
"""


@pytest.mark.parametrize("activation", ["Relu(b)", "Clip(b, low, high)", "Clip(b, , high)"])
def test_what_an_activation_takes_away_is_not_fitted(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CHAIN.replace("y = Conv", "b = Conv").replace("(a, W, B)", f"(a, W, B)\n    y = {activation}")
    graph = testing.graph(text.replace("float[5] B>", "float[5] B, float low = {0}, float high = {8}>"))
    after, _ = refitted(graph, graph.nodes[0].name, lost=5)
    monkeypatch.setattr(reconstruct, "_constant_beyond", lambda layer: None)
    plain, _ = refitted(graph, graph.nodes[0].name, lost=5)
    assert error(graph, after) < 0.995 * error(graph, plain)


def test_only_an_activation_that_alone_reads_a_layer_counts() -> None:
    text = CHAIN.replace("float y)", "float y, float z)").replace("y = Conv", "b = Conv")
    graph = testing.graph(text.replace("(a, W, B)", "(a, W, B)\n y = Relu(b)\n z = Neg(b)"))
    assert reconstruct._constant_beyond(graph.nodes[1]) is None


def test_grouped_layers() -> None:
    """Each group of four loses its last channel, which the others of the group make up for."""
    values = drawn_pair((4, 4, 1, 1))
    V = np.concatenate([values["V"], drawn_pair((4, 4, 1, 1), 2)["V"]])
    graph = testing.graph(GROUPED, V=V, A=np.zeros(8))
    traced = channels.trace(graph)
    ids = sorted({int(one) for one in traced.written(graph.nodes[0])[[3, 7]]})
    after = graphs.copy(graph)
    channels.remove(after, traced, ids)
    assert after.nodes[1].attrs["group"] == 2
    reconstruct.fit(
        graph, after, drawn(graph), context(graph), kept=Kept(traced, frozenset(ids)), changed={"y"}
    )  # fmt: skip
    assert error(graph, after) < 1e-6


RESIDUAL = """
net (float[1, 4, 6, 6] x) => (float y)
<float[6, 4, 3, 3] V, float[4, 6, 1, 1] U, float[6, 4, 1, 1] S, float[4, 6, 1, 1] T>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, V)
    short = Conv(a, U)
    b = Conv(x, S)
    branch = Conv(b, T)
    y = Add(short, branch)
}
"""


def test_a_branch_corrects_its_shortcut() -> None:
    """The shortcut is wrong after the layer in front is zeroed, and the branch can compute what is missing."""
    rng = np.random.default_rng(3)
    V = np.zeros((6, 4, 3, 3))
    V[:, :, 1, 1] = rng.standard_normal((6, 4))  # the shortcut is a 1x1 of x: so is the branch
    graph = testing.graph(RESIDUAL, V=V)
    after = graphs.copy(graph)
    short = next(node for node in after.nodes if node.name == "short")
    short.inputs[1] = gs.Constant("zero", 0 * short.inputs[1].values)
    original = reconstruct._Fit._fit
    pinned = pytest.MonkeyPatch()
    pinned.setattr(
        reconstruct._Fit, "_fit", lambda self, layers: {} if layers[0].node.name == "short" else original(self, layers)
    )
    with pinned.context():
        errors = reconstruct.fit(graph, after, drawn(graph), context(graph), changed={"short", "branch"})
    pinned.undo()
    assert error(graph, after) < 1e-6
    assert errors["branch"] < 1e-6


def test_layers_in_front_stay() -> None:
    graph = testing.graph(CHAIN)
    after, _ = refitted(graph, "a", 1)
    np.testing.assert_array_equal(
        after.nodes[0].inputs[1].values, np.delete(graph.nodes[0].inputs[1].values, 1, axis=0)
    )


def test_nothing_changed_nothing_fitted() -> None:
    graph = testing.graph(CHAIN)
    after = graphs.copy(graph)
    assert reconstruct.fit(graph, after, drawn(graph), context(graph)) == {}
    assert graphs.to_model(after) == graphs.to_model(graph)


NORMALIZED = """
net (float[1, 3, 8, 8] x) => (float y)
<float[6, 3, 3, 3] V, float[5, 6, 1, 1] W, float[5] g, float[5] b, float[5] m, float[5] v>
{
    a = Conv(x, V)
    r = Relu(a)
    c = Conv(r, W)
    y = BatchNormalization(c, g, b, m, v)
}
"""


def test_statistics_are_estimated_where_layers_are_not_fitted() -> None:
    graph = testing.graph(NORMALIZED)
    after, errors = refitted(graph, "a", 2, layers=False)
    assert errors == {}
    conv, norm = after.nodes[2:]
    np.testing.assert_array_equal(conv.inputs[1].values, np.delete(graph.nodes[2].inputs[1].values, 2, axis=1))
    flow = Flow(after, drawn(graph))
    flow.keep(["c"])
    flow.run_before(None)
    c = flow.value(conv.outputs[0])
    np.testing.assert_allclose(norm.inputs[3].values, c.mean((0, 1, 3, 4)), rtol=1e-4)
    np.testing.assert_allclose(norm.inputs[4].values, c.var((0, 1, 3, 4)), rtol=1e-4)
    for index in (1, 2):
        np.testing.assert_array_equal(norm.inputs[index].values, graph.nodes[3].inputs[index].values)


def test_means_that_are_normalized_need_no_bias() -> None:
    """The layer has none, and budgets of parameters know of none."""
    graph = testing.graph(NORMALIZED)
    (after, _), (plain, _) = refitted(graph, "a", 2), refitted(graph, "a", 2, layers=False)
    assert measure(after) == measure(plain)
    assert len(after.nodes[2].inputs) == 2
    expected, found = (Flow(each, drawn(graph)).outputs()["y"] for each in (graph, after))
    np.testing.assert_allclose(found.mean((0, 1, 3, 4)), expected.mean((0, 1, 3, 4)), atol=1e-4)
    assert error(graph, after) < error(graph, plain)


def test_means_that_others_read_get_a_bias() -> None:
    graph = testing.graph(NORMALIZED.replace("(float y)", "(float y, float c)"))
    after, _ = refitted(graph, "a", 2)
    assert len(after.nodes[2].inputs) == 3


def test_a_wide_layer_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "MOST_COLUMNS", 44)
    graph = testing.graph(CHAIN)
    after, errors = refitted(graph, "a", 2)
    assert errors == {"y": 0.0}
    np.testing.assert_array_equal(
        after.nodes[1].inputs[1].values, np.delete(graph.nodes[1].inputs[1].values, 2, axis=1)
    )


TRANSPOSED = """
net (float[1, 3, 5, 5] x) => (float y) <float[6, 3, 3, 3] V, float[6, 4, 2, 2] W, float[2, 4, 1, 1] U> {
    a = Conv(x, V)
    t = ConvTranspose<strides = [2, 2]>(a, W)
    y = Conv(t, U)
}
"""


def test_transposed_convolutions_are_sliced_and_what_is_behind_is_fitted() -> None:
    graph = testing.graph(TRANSPOSED)
    after, errors = refitted(graph, "a", 2)
    np.testing.assert_array_equal(
        after.nodes[1].inputs[1].values, np.delete(graph.nodes[1].inputs[1].values, 2, axis=0)
    )
    assert list(errors) == ["y"]
    plain = graphs.copy(graph)
    traced = channels.trace(graph)
    channels.remove(plain, traced, [int(traced.written(graph.nodes[0])[2])])
    assert error(graph, after) < error(graph, plain)


def test_half_precision() -> None:
    text = CHAIN.replace("float[", "float16[").replace("float y", "float16 y")
    graph = testing.graph(text, **{key: value * 0.3 for key, value in drawn_pair((6, 3, 3, 3)).items()})
    after, _ = refitted(graph, "a", -1)
    assert after.nodes[1].inputs[1].dtype == np.float16
    assert error(graph, after) < 1e-4


def test_constant_images_and_one_image() -> None:
    graph = testing.graph(CHAIN)
    for given in (np.zeros((3, 1, 3, 8, 8), np.float32), np.ones((1, 1, 3, 8, 8), np.float32)):
        after, traced = graphs.copy(graph), channels.trace(graph)
        ids = [int(traced.written(graph.nodes[0])[0])]
        channels.remove(after, traced, ids)
        kept = Kept(traced, frozenset(ids))
        errors = reconstruct.fit(graph, after, {"x": given}, context(graph), kept=kept, changed={"y"})
        assert np.isfinite(errors["y"])
        assert np.isfinite(after.nodes[1].inputs[1].values).all()
        expected, found = (Flow(each, {"x": given}).outputs()["y"] for each in (graph, after))
        np.testing.assert_allclose(found, expected, atol=0.15 * np.abs(expected).max() + 1e-5)


def test_the_original_stays() -> None:
    graph = testing.graph(CHAIN)
    before = graphs.to_model(graph)
    refitted(graph, "a", 0)
    assert graphs.to_model(graph) == before


def test_set_and_copy_do_not_share() -> None:
    graph = testing.graph(CHAIN)
    after = graphs.copy(graph)
    Layer(after.nodes[1]).set(0 * Layer(after.nodes[1]).matrix, np.zeros(5), Driver(after))
    assert graph.nodes[1].inputs[1].values.any()
