"""Networks that run stretch by stretch, and moments of layers against those over all patches."""

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import calibrate, testing
from nnc.calibrate import Flow, Moments, Slack, statistics
from nnc.calibrate import flow as flows
from nnc.data import Dataset
from nnc.errors import NncError
from nnc.layers import Layer
from nnc.session import Session

NET = """
net (float[2, 3, 6, 6] x, float[2, 4] z) => (float[2, 5] y, float[2, 4, 6, 6] a)
<float[4, 3, 3, 3] W, float[4] B, float[4, 5] V>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, W, B)
    b = Relu(a)
    m = GlobalAveragePool(b)
    f = Flatten(m)
    s = Add(f, z)
    y = MatMul(s, V)
}
"""

CONV = """
net (float[2, 4, 6, 5] x) => (float y) <float[6, 2, 3, 3] W, float[6] B> {
    y = Conv<group = 2, strides = [2, 1], pads = [1, 1, 1, 1]>(x, W, B)
}
"""


def drawn(graph: gs.Graph, batches: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {each.name: rng.standard_normal((batches, *each.shape), np.float32) for each in graph.inputs}


def expected(graph: gs.Graph, given: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    session = Session(graph)
    return [session.run({name: values[index] for name, values in given.items()}) for index in range(len(given["x"]))]


def dataset(tmp_path: Path, graph: gs.Graph, count: int) -> Dataset:
    rng = np.random.default_rng(0)
    arrays = {each.name: rng.standard_normal((count, *each.shape[1:]), np.float32) for each in graph.inputs}
    np.savez(tmp_path / "data.npz", **arrays)
    return Dataset.open(tmp_path / "data.npz", None, graph.inputs)


def test_a_flow_computes_what_the_network_does() -> None:
    graph = testing.graph(NET)
    given = drawn(graph, 3)
    flow = Flow(graph, given)
    flow.run_before(None)
    for index, each in enumerate(expected(graph, given)):
        for tensor in graph.outputs:
            np.testing.assert_allclose(flow.value(tensor)[index], each[tensor.name], atol=1e-5)


@pytest.mark.parametrize("stop", range(6))
def test_stretches_give_the_same(stop: int) -> None:
    graph = testing.graph(NET)
    given = drawn(graph, 2)
    flow = Flow(graph, given)
    flow.run_before(graph.nodes[stop])
    flow.run_through(graph.nodes[stop])
    flow.run_through(graph.nodes[stop])
    outputs = flow.outputs()
    for index, each in enumerate(expected(graph, given)):
        np.testing.assert_allclose(outputs["y"][index], each["y"], atol=1e-5)


def test_only_what_is_still_read_is_held() -> None:
    graph = testing.graph(NET)
    tensors = graph.tensors()
    flow = Flow(graph, drawn(graph, 2))
    flow.keep(["b"])
    flow.run_before(graph.nodes[4])
    assert {name for name, tensor in tensors.items() if flow.holds(tensor)} == {"z", "a", "b", "f"}
    flow.release("b")
    assert not flow.holds(tensors["b"])


def test_nodes_ahead_may_be_edited() -> None:
    graph = testing.graph(NET)
    given = drawn(graph, 2)
    flow = Flow(graph, given)
    flow.run_before(graph.nodes[-1])
    graph.nodes[-1].inputs[1].values = 2 * graph.nodes[-1].inputs[1].values
    for index, each in enumerate(expected(graph, given)):
        np.testing.assert_allclose(flow.outputs()["y"][index], each["y"], atol=1e-5)


def test_the_data_may_decide_shapes() -> None:
    """Of what is positive, as many as there are: other values for every batch, and no output to compare."""
    text = NET.replace("float[2, 4, 6, 6] a)", "float[found] p)").replace(
        "float[4, 5] V>", "float[4, 5] V, float o = {0}>"
    )
    graph = testing.graph(text.replace("s = Add", "g = Greater(x, o) p = Compress(x, g) s = Add"))
    given = drawn(graph, 3)
    flow = Flow(graph, given)
    assert list(flow.outputs()) == ["y"]
    flow.run_before(next(node for node in graph.nodes if node.op == "Compress"))
    flow.run_before(None)
    found = flow.value(graph.outputs[1])
    assert len({len(each) for each in found}) > 1
    for each, x in zip(found, given["x"], strict=True):
        np.testing.assert_array_equal(each, x[x > 0])
    assert list(flow.outputs()) == ["y"]


def test_outputs_from_a_replaced_tensor() -> None:
    graph = testing.graph(NET)
    flow = Flow(graph, drawn(graph, 2))
    flow.run_before(graph.nodes[-1])
    summed = np.ones((2, 2, 4), np.float32)
    found = flow.outputs({"s": summed})["y"]
    np.testing.assert_allclose(found, summed @ graph.nodes[-1].inputs[1].values, atol=1e-5)
    assert not np.allclose(flow.outputs()["y"], found), "the flow stays where it is"


def direct(layer: Layer, x: np.ndarray, y: np.ndarray) -> Moments:
    """The moments over every position, in float64."""
    x, y = x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:])
    every = np.broadcast_to(np.arange(layer.positions), (len(x), layer.positions))
    rows, targets = layer.rows(x, every).astype(np.float64), layer.targets(y, every).astype(np.float64)
    p, t = rows - rows.mean(1, keepdims=True), targets - targets.mean(1, keepdims=True)
    count = rows.shape[1]
    xx, xy = p.transpose(0, 2, 1) @ p / count, p.transpose(0, 2, 1) @ t / count
    return Moments(xx, xy, np.square(t).mean(1), rows.mean(1), targets.mean(1), count)


def test_moments_over_all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = testing.graph(CONV)
    layer, x = Layer(graph.nodes[0]), drawn(graph, 5)["x"] + 3
    y = np.random.default_rng(1).standard_normal((5, *graph.outputs[0].shape), np.float32)
    right = direct(layer, x, y)
    for chunk in (1 << 22, 500):  # all at once, and a sample at a time
        monkeypatch.setattr(statistics, "_CHUNK_VALUES", chunk)
        first, second = calibrate.moments(layer, x, lambda part: y.reshape(10, *y.shape[2:])[part], seed=0)
        found = first.with_(second)
        assert found.rows == right.rows == 10 * layer.positions
        for key in ("xx", "xy", "yy", "x_mean", "y_mean"):
            np.testing.assert_allclose(getattr(found, key), getattr(right, key), atol=1e-4)
        trusted = calibrate.shrunk(right.xx, layer, 10)
        np.testing.assert_allclose(calibrate.input_moments(layer, x, 0), trusted, atol=1e-4)


def test_moments_of_some_positions_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = testing.graph("net (float[1, 3, 40, 40] x) => (float y) <float[4, 3, 1, 1] W> { y = Conv(x, W) }")
    layer, x = Layer(graph.nodes[0]), drawn(graph, 8)["x"]
    whole = calibrate.input_moments(layer, x, 0)
    monkeypatch.setattr(statistics, "_LEAST_ROWS", 4000)
    part, other = calibrate.input_moments(layer, x, 0), calibrate.input_moments(layer, x, 1)
    assert not np.array_equal(part, whole)
    assert not np.array_equal(part, other)
    np.testing.assert_allclose(part, whole, atol=0.1)
    np.testing.assert_array_equal(part, calibrate.input_moments(layer, x, 0))


def test_error_and_bias_are_those_of_the_outputs() -> None:
    graph = testing.graph(CONV)
    layer, x = Layer(graph.nodes[0]), drawn(graph, 4)["x"]
    y = np.random.default_rng(1).standard_normal((4, *graph.outputs[0].shape), np.float32)
    moments, W = direct(layer, x, y), layer.matrix
    every = np.broadcast_to(np.arange(layer.positions), (8, layer.positions))
    rows = layer.rows(x.reshape(8, *x.shape[2:]), every)
    targets = layer.targets(y.reshape(8, *y.shape[2:]), every)
    residual = targets - rows @ W.transpose(0, 2, 1) - moments.bias(W).reshape(2, 1, -1)
    np.testing.assert_allclose(residual.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(moments.error(W), np.square(residual).mean(1), rtol=1e-5)


def test_targets_move_only_where_the_activation_is_constant() -> None:
    slack = Slack(0.0, 6.0, np.ones((1, 1, 1)), np.zeros(1))
    given = np.array([-3.0, 2.0, -3.0, 8.0, 5.0, 8.0, 3.0]).reshape(1, -1, 1)
    wanted = np.array([-1.0, -1.0, 1.0, 7.0, 7.0, 5.0, 0.0]).reshape(1, -1, 1)
    expected = [-3.0, 0.0, 1.0, 8.0, 6.0, 5.0, 0.0]
    np.testing.assert_array_equal(slack.targets(given, wanted).ravel(), expected)


def test_halves_are_of_every_other_sample() -> None:
    graph = testing.graph(CONV)
    layer, x = Layer(graph.nodes[0]), drawn(graph, 5)["x"]
    y = np.random.default_rng(1).standard_normal((5, *graph.outputs[0].shape), np.float32)
    flat = y.reshape(10, *y.shape[2:])
    for half, found in enumerate(calibrate.moments(layer, x, lambda part: flat[part], seed=0)):
        mine = x.reshape(10, *x.shape[2:])[half::2][:, None]
        right = direct(layer, mine, flat[half::2][:, None])
        for key in ("xx", "xy", "yy", "x_mean", "y_mean"):
            np.testing.assert_allclose(getattr(found, key), getattr(right, key), atol=1e-4)


def test_fits_are_tested_on_samples_that_they_were_not_made_from() -> None:
    """Noise can't be learned: with few samples the weights stay, with many they find what is planted."""
    graph = testing.graph("net (float[1, 64] x) => (float[1, 8] y) <float[64, 8] W> { y = MatMul(x, W) }")
    layer, rng = Layer(graph.nodes[0]), np.random.default_rng(0)
    planted = layer.matrix[0].T + 0.5 * rng.standard_normal((64, 8))
    for count, near in ((24, "kept"), (4000, "planted")):
        x = rng.standard_normal((count, 1, 64)).astype(np.float32)
        noise = 3.0 * rng.standard_normal((count, 1, 8))
        y = (x @ (layer.matrix[0].T if near == "kept" else planted) + noise).astype(np.float32)
        halves = calibrate.moments(layer, x, lambda part, y=y: y[part, 0], seed=0)
        W = calibrate.fitted(halves, layer.matrix)[0].T
        wanted = layer.matrix[0].T if near == "kept" else planted
        assert np.linalg.norm(W - wanted) < 0.25 * np.linalg.norm(0.5 * np.ones((64, 8)))


def test_correlations_of_few_samples_are_trusted_less() -> None:
    graph = testing.graph(CONV)
    layer = Layer(graph.nodes[0])
    xx = np.broadcast_to(np.full((18, 18), 0.5) + 0.5 * np.eye(18), (2, 18, 18))
    few, many = (calibrate.shrunk(xx, layer, count) for count in (1, 10**6))
    np.testing.assert_allclose(many, xx, atol=1e-4)
    np.testing.assert_array_equal(np.einsum("gdd->gd", few), 1.0)
    assert 0 < few[0, 0, 1] < 0.2


@pytest.mark.parametrize("strength", [0.0, 1e-8])
def test_ridge_finds_planted_weights(strength: float) -> None:
    graph = testing.graph(CONV)
    layer, x = Layer(graph.nodes[0]), drawn(graph, 20)["x"]
    session = Session(graph)
    y = np.stack([session.run({"x": each})["y"] for each in x])
    moments = direct(layer, x, y)
    W = calibrate.ridge(moments, np.zeros_like(layer.matrix), strength)
    np.testing.assert_allclose(W, layer.matrix, atol=1e-4)
    np.testing.assert_allclose(moments.bias(W), layer.bias, atol=1e-4)


def test_ridge_holds_weights_that_the_data_say_nothing_of() -> None:
    graph = testing.graph(CONV)
    layer = Layer(graph.nodes[0])
    moments = direct(layer, np.ones((3, 2, 4, 6, 5), np.float32), np.ones((3, *graph.outputs[0].shape), np.float32))
    silent = Moments(0 * moments.xx, 0 * moments.xy, moments.yy, moments.x_mean, moments.y_mean, moments.rows)
    np.testing.assert_allclose(calibrate.ridge(silent, layer.matrix, 1e-3), layer.matrix)
    np.testing.assert_allclose(calibrate.ridge(moments, layer.matrix, 1e6), layer.matrix, atol=1e-4)


@pytest.mark.parametrize(("axis", "other"), [(1, (0, 1, 3, 4)), (3, (0, 1, 2, 3))])
def test_channel_moments(axis: int, other: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_CHUNK_VALUES", 100)
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 4, 3), np.float32) * 2 + 1
    mean, var = calibrate.channel_moments(x, axis)
    np.testing.assert_allclose(mean, x.mean(other), rtol=1e-5)
    np.testing.assert_allclose(var, x.var(other), rtol=1e-5)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_is_named(broken: float) -> None:
    graph = testing.graph(CONV)
    layer, x = Layer(graph.nodes[0]), drawn(graph, 2)["x"]
    y = np.zeros((4, *graph.outputs[0].shape[1:]), np.float32)
    x[1, 0, 2, 3, 3] = broken
    with pytest.raises(NncError, match="'x' of 'y' is not finite on the calibration data"):
        calibrate.input_moments(layer, x, 0)
    y[0] = broken
    with pytest.raises(NncError, match="'y' of 'y' is not finite on the calibration data") as raised:
        calibrate.moments(layer, np.nan_to_num(x, posinf=0), lambda part: y[part], 0)
    assert raised.value.hint == "check the data and [data.preprocess]"


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (2, 1), (3, 1), (7, 3), (50, 25)])
def test_samples_fill_batches(tmp_path: Path, count: int, batches: int) -> None:
    graph = testing.graph(NET)
    found = calibrate.samples(graph, dataset(tmp_path, graph, count), seed=0)
    assert {name: values.shape for name, values in found.items()} == {"x": (batches, 2, 3, 6, 6), "z": (batches, 2, 4)}
    if count == 1:
        np.testing.assert_array_equal(found["x"][0, 0], found["x"][0, 1])


def test_no_more_samples_than_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = testing.graph(NET)
    data = dataset(tmp_path, graph, 50)
    assert len(calibrate.samples(graph, data, 0, most=10)["x"]) == 5
    monkeypatch.setattr(flows, "FLOW_BYTES", 4 * flows._peak_bytes(graph))
    first, second = (calibrate.samples(graph, data, seed)["x"] for seed in (0, 1))
    assert len(first) == 4
    assert not np.array_equal(first, second)


def test_peak_of_what_is_alive() -> None:
    mean = {"z": 8, "a": 2 * 4 * 36, "b": 2 * 4 * 36, "m": 8}  # when m is computed; a is an output
    assert flows._peak_bytes(testing.graph(NET)) == 4 * sum(mean.values())
