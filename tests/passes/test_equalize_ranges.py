"""equalize-ranges: ranges become alike, outputs stay, and int8 loses less."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import equalize, networks, quantize, target, testing, verify
from nnc import graph as graphs
from nnc.context import Context
from nnc.data import Dataset
from nnc.equalize import ranges
from nnc.passes import GRAPH_PASSES
from nnc.passes.equalize_ranges import EqualizeRanges
from nnc.passes.insert_qdq import InsertQdq

EXACT = {"absorb": False, "bounds": "channel"}

CHAIN = """
net (float[2, 3, 6, 6] x) => (float y)
<float[8, 3, 3, 3] U, float[8] A, float[8, 1, 3, 3] D, float[8] E, float[5, 8, 1, 1] V>
{
    a = Conv(x, U, A)
    r = %s
    d = Conv<group = 8, pads = [1, 1, 1, 1]>(r, D, E)
    s = %s
    y = Conv(s, V)
}
"""


def images(tmp_path: Path, graph: gs.Graph, count: int = 32, scale: float = 1.0) -> Dataset:
    rng = np.random.default_rng(0)
    drawn = {each.name: scale * rng.standard_normal((count, *each.shape[1:]), np.float32) for each in graph.inputs}
    np.savez(tmp_path / "images.npz", **drawn)
    return Dataset.open(tmp_path / "images.npz", None, graph.inputs)


def context(graph: gs.Graph, calibration: Dataset | None = None) -> Context:
    return Context(target.load("x86"), imported=graph, calibration=calibration)


def layer(graph: gs.Graph, name: str) -> gs.Node:
    return next(node for node in graph.nodes if node.name == name)


def chain(first: str = "Relu(a)", second: str = "Relu(d)", **values: Any) -> gs.Graph:
    return testing.graph(CHAIN % (first, second), **values)


# --- Exactness


@pytest.mark.parametrize(
    "first",
    ["Relu(a)", "LeakyRelu<alpha = 0.3>(a)", "Abs(a)", "MaxPool<kernel_shape = [1, 1]>(a)", "Identity(a)", "Neg(a)"],
)
def test_ranges_are_equal_afterwards(first: str) -> None:
    """Nagel's triple: rows of the first layer, the depthwise kernels, columns of the last one."""
    spread = np.geomspace(1, 1000, 8, dtype=np.float32).reshape(8, 1, 1, 1)
    drawn = testing.weights(chain())
    graph = chain(first, U=drawn["U"] * spread, A=np.zeros(8), E=np.zeros(8))
    result = testing.check(EqualizeRanges(**EXACT), graph, exact=True)
    U, D, V = (np.abs(layer(result.graph, name).inputs[1].values) for name in ("a", "d", "y"))
    rows, kernels, columns = U.max((1, 2, 3)), D.max((1, 2, 3)), V.max((0, 2, 3))
    np.testing.assert_allclose(rows, kernels, rtol=1e-2)
    np.testing.assert_allclose(kernels, columns, rtol=1e-2)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]), spread=st.floats(0, 2), bias=st.booleans(), pads=st.integers(0, 1),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_grouped_convolutions(groups: int, spread: float, bias: bool, pads: int, seed: int) -> None:
    text = f"""net (float[1, 4, 7, 7] x) => (float y)
    <float[8, {4 // groups}, 3, 3] U, float[8] A, float[4, {8 // groups}, 2, 2] V> {{
        a = Conv<group = {groups}>(x, U{", A" if bias else ""}) r = Relu(a)
        y = Conv<group = {groups}, pads = [{pads}, {pads}, {pads}, {pads}]>(r, V) }}"""
    drawn = np.random.default_rng(seed).standard_normal((8, 4 // groups, 3, 3))
    graph = testing.graph(text, seed=seed, U=drawn * np.exp(spread * np.arange(8)).reshape(8, 1, 1, 1))
    testing.check(EqualizeRanges(**EXACT), graph, exact=True)


BRANCHES = {
    "residual sum": "b = Conv(r, W) t = Add(b, r) p = Relu(t) y = Conv(p, V)",
    "constants": "b = Add(r, c) p = Max(b, c) t = Mul(p, c) y = Conv(t, V)",
    "concatenation": "b = Conv(r, W) t = Concat<axis = 1>(r, b, r) p = Relu(t) y = Conv(p, X)",
    "padding and pooling": "b = Pad(r, n) t = AveragePool<kernel_shape = [3, 3]>(b) y = Conv(t, V)",
    "gate": "g = GlobalAveragePool(r) h = Conv(g, W) s = Sigmoid(h) t = Mul(r, s) y = Conv(t, V)",
    "transposed": "t = ConvTranspose<strides = [2, 2]>(r, W) p = PRelu(t, c) y = Conv(p, V)",
    "flattened": "f = Flatten(r) y = Gemm(f, G)",
    "slices": "s, t = Split<axis = 1>(r) u = Concat<axis = 1>(t, s) y = Conv(u, V)",
    "batch": "b = Transpose<perm = [0, 2, 3, 1]>(r) y = MatMul(b, M)",
}


@pytest.mark.parametrize("name", BRANCHES)
def test_structures(name: str) -> None:
    text = """net (float[2, 3, 4, 4] x) => (float y)
    <float[6, 3, 1, 1] U, float[6] A, float[6, 6, 1, 1] W, float[5, 6, 1, 1] V, float[5, 18, 1, 1] X, float[96, 4] G,
     float[6, 4] M, float[6, 1, 1] c, int64[8] n> { a = Conv(x, U, A) r = Relu(a) %s }"""
    spread = np.geomspace(0.01, 10, 6).reshape(6, 1, 1, 1)
    U = np.random.default_rng(1).standard_normal((6, 3, 1, 1)) * spread
    result = testing.run(EqualizeRanges(**EXACT), testing.graph(text % BRANCHES[name], U=U, n=[0, 0, 1, 1, 0, 0, 1, 1]))
    assert result.changed
    testing.check_outputs(testing.graph(text % BRANCHES[name], U=U, n=[0, 0, 1, 1, 0, 0, 1, 1]), result.graph)
    assert not np.allclose(layer(result.graph, "a").inputs[1].values, U, rtol=0.02)


def test_shared_weights_stay() -> None:
    text = """net (float[1, 4, 5, 5] x) => (float y) <float[4, 4, 1, 1] W> {
        a = Conv(x, W) b = Relu(a) c = Conv(b, W) d = Relu(c) y = Conv(d, W) }"""
    W = np.random.default_rng(0).standard_normal((4, 4, 1, 1)) * np.geomspace(1, 99, 4).reshape(4, 1, 1, 1)
    testing.check_unchanged(EqualizeRanges(**EXACT), testing.graph(text, W=W), "Conv 'a' shares its weights")


def test_bounds_by_channel_are_exact() -> None:
    graph = testing.graph(
        CHAIN.replace("V>", "V, float lo, float hi>") % ("Clip(a, lo, hi)", "Clip(d, lo, hi)"), lo=0, hi=0.8
    )
    result = testing.check(EqualizeRanges(**EXACT), graph, exact=True)
    assert result.ops == ["Conv", "Relu", "Min", "Conv", "Relu", "Min", "Conv"]
    assert testing.run(EqualizeRanges(absorb=False, bounds="keep"), graph).changed == 0


@pytest.mark.parametrize(("bound", "op"), [(1e3, "Relu"), (0.5, "Min")])
def test_bounds_go_where_the_data_never_reaches_them(bound: float, op: str, tmp_path: Path) -> None:
    text = CHAIN.replace("V>", "V, float lo, float hi>") % ("Clip(a, lo, hi)", "Clip(d, lo, hi)")
    graph = testing.graph(text, lo=0, hi=bound)
    options = {"absorb": False, "per_channel": False}
    result = testing.run(EqualizeRanges(**options), graph, context(graph, images(tmp_path, graph)))
    assert op in result.ops
    assert ("Min" in result.ops) == (op == "Min")
    testing.check_outputs(graph, result.graph)


def test_bounds_that_classes_need_stay(tmp_path: Path) -> None:
    text = CHAIN.replace("V>", "V, float lo, float hi>").replace("float y", "int64 k") % ("Clip(a, lo, hi)", "Relu(d)")
    graph = testing.graph(text.replace("y = Conv(s, V)", "y = Conv(s, V) k = ArgMax<axis = 1>(y)"), lo=0, hi=0.5)
    result = testing.run(
        EqualizeRanges(absorb=False, per_channel=False), graph, context(graph, images(tmp_path, graph))
    )
    assert "Min" in result.ops


# --- What is left alone


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ("Sigmoid(d)", "Sigmoid 's' is not proportional"),
        ("Mul(d, d)", "Mul 's' is not proportional"),
        ("HardSwish(d)", "is not proportional"),
        ("Softmax<axis = 2>(d)", "is not proportional"),
        ("InstanceNormalization(d, E, E)", "is not proportional"),
    ],
)
def test_what_is_not_homogeneous_stays(second: str, reason: str) -> None:
    result = testing.run(EqualizeRanges(**EXACT), chain("Relu(a)", second))
    assert reason in result.skipped["d"]
    testing.check_outputs(chain("Relu(a)", second), result.graph)
    assert layer(result.graph, "y").inputs[1].values == pytest.approx(testing.weights(chain())["V"])


def test_outputs_of_the_graph_stay() -> None:
    graph = testing.graph((CHAIN % ("Relu(a)", "Relu(d)")).replace("float y)", "float y, float d)"))
    result = testing.check(EqualizeRanges(**EXACT), graph, exact=True)
    assert "output of the graph" in result.skipped["d"]


def test_excluded_layers_stay() -> None:
    graph = chain()
    result = testing.run(EqualizeRanges(**EXACT, exclude=("a",)), graph)
    np.testing.assert_array_equal(layer(result.graph, "a").inputs[1].values, testing.weights(graph)["U"])
    assert result.skipped["a"] == "excluded by the recipe"
    testing.check_outputs(graph, result.graph)


def test_dead_channels_and_quantized_weights(tmp_path: Path) -> None:
    drawn = testing.weights(chain())
    dead = {"U": drawn["U"].copy(), "V": drawn["V"].copy(), "A": drawn["A"].copy()}
    dead["U"][2] = dead["A"][2] = 0
    dead["V"][:, 5] = 0
    testing.check(EqualizeRanges(**EXACT), chain(**dead), exact=True)
    graph = chain()
    integers = testing.run(InsertQdq(), graph, context(graph, images(tmp_path, graph))).graph
    result = testing.run(EqualizeRanges(**EXACT), integers)
    assert result.changed == 0


# --- Absorption


def test_excess_goes_through_relu_into_the_next_bias(tmp_path: Path) -> None:
    text = """net (float[4, 3, 5, 5] x) => (float y)
    <float[6, 3, 1, 1] U, float[6] A, float[5, 6, 3, 3] V, float[5] B> {
        a = Conv(x, U, A) r = Relu(a) y = Conv(r, V, B) }"""
    A = np.array([60.0, 0, 50, -50, 0, 40])
    graph = testing.graph(text, A=A)
    calibration = images(tmp_path, graph)
    result = testing.run(EqualizeRanges(), graph, context(graph, calibration))
    x = next(iter(calibration.batches(4)))
    before, after = (verify.outputs(each, x)["y"] for each in (graph, result.graph))
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())
    now = verify.outputs(graphs.copy(result.graph), x)
    assert now.keys() == {"y"}
    bias = layer(result.graph, "a").inputs[2].values
    assert np.all(bias[[0, 2, 5]] < 30)


def test_excess_from_batchnorm_and_not_into_padded_layers() -> None:
    text = """net (float[1, 3, 9, 9] x) => (float y)
    <float[6, 3, 1, 1] U, float[6] gamma, float[6] beta, float[6] mean, float[6] var, float[5, 6, 3, 3] V> {
        c = Conv(x, U) a = BatchNormalization(c, gamma, beta, mean, var) r = Relu(a) y = Conv%s(r, V) }"""
    for pads, absorbed in (("", True), ("<pads = [1, 1, 1, 1]>", False)):
        imported = testing.graph(text % pads, gamma=np.full(6, 0.1), beta=[9, 0, 9, 0, 9, 0])
        folded = graphs.copy(imported)
        for pass_ in GRAPH_PASSES:
            pass_().run(folded, context(imported))
        result = testing.run(EqualizeRanges(bounds="channel"), folded, context(imported))
        biased = len(next(each for each in result.graph.nodes if each.outputs[0].name == "y").inputs) > 2
        assert biased == absorbed


# --- What it is for


def test_int8_of_very_different_channels(tmp_path: Path) -> None:
    """Ranges from 1 to 1000: per tensor, nothing is left of the small channels without the pass."""
    text = """net (float[8, 4, 8, 8] x) => (float y)
    <float[16, 4, 3, 3] U, float[16, 16, 3, 3] V> { a = Conv(x, U) r = Relu(a) y = Conv(r, V) }"""
    rng, spread = np.random.default_rng(0), np.geomspace(1, 1000, 16)
    U, V = rng.standard_normal((16, 4, 3, 3)), rng.standard_normal((16, 16, 3, 3))
    graph = testing.graph(text, U=U * spread.reshape(16, 1, 1, 1), V=V / spread.reshape(1, 16, 1, 1))
    told = context(graph, images(tmp_path, graph))
    snr = {}
    for equalized in (False, True):
        made = graphs.copy(graph)
        if equalized:
            assert EqualizeRanges(per_channel=False).run(made, told) == 1
        InsertQdq(per_channel=False).run(made, told)
        x = {"x": np.random.default_rng(1).standard_normal((8, 4, 8, 8), np.float32)}
        snr[equalized] = verify.snr_db(verify.outputs(graph, x), verify.outputs(made, x))
    assert snr[False] < 10
    assert snr[True] > 30


def test_factors_by_channel_never_predict_more_noise(tmp_path: Path) -> None:
    """Activations that are spread and weights that aren't: the noise of int8 shrinks."""
    graph = testing.graph(
        """net (float[8, 4, 6, 6] x) => (float y) <float[16, 4, 1, 1] U, float[16, 16, 1, 1] V>
        { a = Conv(x, U) r = Relu(a) y = Conv(r, V) }""",
        U=np.random.default_rng(0).standard_normal((16, 4, 1, 1)) * np.geomspace(1, 300, 16).reshape(16, 1, 1, 1),
        V=np.random.default_rng(1).standard_normal((16, 16, 1, 1)) / np.geomspace(1, 300, 16).reshape(1, 16, 1, 1),
    )
    told = context(graph, images(tmp_path, graph))
    snr = []
    for passes in ([], [EqualizeRanges()]):
        made = graphs.copy(graph)
        for pass_ in passes:
            assert pass_.run(made, told) == 1
        InsertQdq().run(made, told)
        x = {"x": np.random.default_rng(1).standard_normal((8, 4, 6, 6), np.float32)}
        snr.append(verify.snr_db(verify.outputs(graph, x), verify.outputs(made, x)))
    assert snr[1] > snr[0] + 10
    assert quantize.layers(made).keys() == {"a", "y"}


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2", "densenet121", "efficientnet_b0", "squeezenet1_1"])
def test_reference_networks(name: str) -> None:
    graph = graphs.from_model(networks.build(name, input_size=32, width=0.25, classes=10))
    for pass_ in GRAPH_PASSES:
        pass_().run(graph, context(graph))
    result = testing.run(EqualizeRanges(**EXACT), graph)
    testing.check_outputs(graph, result.graph)
    assert result.changed


@pytest.mark.data
def test_mobilenet_stays_exact(data: Path) -> None:
    graph = graphs.load(data / "models" / "imagenet_mobilenet_v2_1.0_224.onnx")
    for pass_ in GRAPH_PASSES:
        pass_().run(graph, context(graph))
    result = testing.run(EqualizeRanges(**EXACT), graph)
    assert result.changed == 52
    testing.check_outputs(graph, result.graph)


def test_traced_channels_say_why_they_stay() -> None:
    traced = equalize.trace(chain("Relu(a)", "Sigmoid(d)"))
    assert set(traced.fixed) == {"d", "y"}
    assert traced.count > 8


@pytest.mark.parametrize("axis", [1, 2])
def test_ranges_are_scaled_in_blocks(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scaled, factors = rng.uniform(0, 1, (2, 7, 5)), rng.uniform(0, 1, (2, 7 if axis == 1 else 5))
    expected = (scaled * np.expand_dims(factors, 3 - axis)).max(axis)
    for chunk in (1, 20, 1 << 20):
        monkeypatch.setattr(ranges, "_CHUNK", chunk)
        np.testing.assert_array_equal(ranges.widest(scaled, factors, axis), expected)
