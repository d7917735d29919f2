"""prune-channels: the right channels go, within the budget, and outputs stay where they can."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nnc import graph as graphs
from nnc import networks, pipeline, recipe, target, testing
from nnc.calibrate import Flow
from nnc.compression.budget import Budget
from nnc.data import Dataset
from nnc.errors import NncError
from nnc.measure import measure
from nnc.passes.prune_channels import PruneChannels
from nnc.session import Session

CHAIN = """
net (float[1, 3, 8, 8] image) => (float scores)
<float[16, 3, 3, 3] U, float[16] A, float[12, 16, 3, 3] V, float[12] B, float[10, 12] W>
{
    a = Conv(image, U, A)
    r = Relu(a)
    b = Conv(r, V, B)
    s = Relu(b)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    scores = Gemm<transB = 1>(f, W)
}
"""


def images(tmp_path: Path, graph: gs.Graph, count: int = 60) -> Dataset:
    rng = np.random.default_rng(0)
    arrays = {
        each.name: (rng.standard_normal((count, *each.shape[1:])) * (40 if each.dtype == np.uint8 else 1)).astype(
            each.dtype
        )
        for each in graph.inputs
    }
    np.savez(tmp_path / "images.npz", **arrays)
    return Dataset.open(tmp_path / "images.npz", None, graph.inputs)


def context(graph: gs.Graph, calibration: Dataset | None = None, chip: str = "x86") -> pipeline.Context:
    return pipeline.Context(target.load(chip), imported=graph, calibration=calibration)


def pruned(graph: gs.Graph, calibration: Dataset | None = None, **options: Any) -> testing.Result:
    return testing.run(PruneChannels(**{"round_to": 1} | options), graph, context(graph, calibration))


def width(result: testing.Result, name: str) -> int:
    return next(int(node.outputs[0].shape[1]) for node in result.graph.nodes if node.name == name)


# --- Dead channels


@pytest.mark.parametrize("dead", ["nobody reads them", "nobody writes them"])
@pytest.mark.parametrize("importance", ["l1", "l2", "activation", "taylor", "reconstruction"])
def test_dead_channels_leave_the_outputs(dead: str, importance: str, tmp_path: Path) -> None:
    """The five of the second layer that are dead go first, and no other."""
    graph = testing.graph(CHAIN)
    values = testing.weights(graph)
    B, V, W = (values[name].copy() for name in ("B", "V", "W"))
    gone = [0, 3, 4, 8, 11]
    V[gone], B[gone] = 0, 0
    if dead == "nobody reads them":
        W[:, gone] = 0
    graph = testing.graph(CHAIN, V=V, B=B, W=W)
    calibration = images(tmp_path, graph) if importance in ("activation", "taylor", "reconstruction") else None
    result = pruned(graph, calibration, sparsity=5 / 12, importance=importance, include=("b",), refit=False)
    assert result.changed == 5
    assert width(result, "b") == 7
    testing.check_outputs(graph, result.graph)


def test_unread_channels_go_whatever_they_weigh(tmp_path: Path) -> None:
    W = testing.weights(testing.graph(CHAIN))["W"].copy()
    W[:, [2, 5]] = 0
    graph = testing.graph(CHAIN, W=W)
    for refit in (True, False):
        result = pruned(graph, images(tmp_path, graph), sparsity=2 / 12, include=("b",), refit=refit)
        assert width(result, "b") == 10
        kept = np.delete(testing.weights(graph)["B"], [2, 5])
        np.testing.assert_array_equal(next(n for n in result.graph.nodes if n.name == "b").inputs[2].values, kept)
    testing.check_outputs(graph, result.graph)


def test_linear_combinations_are_made_up_for(tmp_path: Path) -> None:
    """Channels that others can replace are found, and the layer behind takes the others."""
    values = {name: each.copy() for name, each in testing.weights(testing.graph(CHAIN)).items()}
    for one, other in ((7, 1), (9, 2)):
        values["U"][one], values["A"][one] = 3 * values["U"][other], 3 * values["A"][other]
    graph = testing.graph(CHAIN, **{name: each for name, each in values.items() if name in "UAVBW"})
    calibration = images(tmp_path, graph)
    result = pruned(graph, calibration, sparsity=2 / 16, include=("a",))
    assert width(result, "a") == 14
    x = {"image": np.stack([each["image"] for each in calibration.batches(1)])}
    expected, found = (Flow(each, x).outputs()["scores"] for each in (graph, result.graph))
    # Not exactly: the few images are halved to see how far a fit may go.
    np.testing.assert_allclose(found, expected, atol=5e-2 * np.abs(expected).max())


# --- Budgets


NETWORKS = ["resnet18", "mobilenet_v2"]


def simplified(name: str) -> gs.Graph:
    graph = graphs.from_model(networks.build(name, input_size=64))
    return pipeline.run(graph, recipe.load("simplify").passes, context(graph))[0]


@pytest.fixture(scope="module")
def simple() -> dict[str, gs.Graph]:
    return {name: simplified(name) for name in NETWORKS}


def kept(before: gs.Graph, after: gs.Graph, metric: str, chip: str) -> float:
    if metric == "latency":
        made = context(before, chip=chip)
        return made.predict(after).latency_ms / made.predict(before).latency_ms
    return float(getattr(measure(after), metric) / getattr(measure(before), metric))


@pytest.mark.parametrize("chip", ["x86", "qcs605", "jetson-xavier"])
@pytest.mark.parametrize("metric", ["macs", "params", "latency"])
@pytest.mark.parametrize("name", NETWORKS)
def test_budgets_are_reached(name: str, metric: str, chip: str, simple: dict[str, gs.Graph]) -> None:
    graph = simple[name]
    budget = Budget.model_validate({metric: 0.7})
    result = testing.run(PruneChannels(budget=budget), graph, context(graph, chip=chip))
    assert 0.7 * 0.98 <= kept(graph, result.graph, metric, chip) <= 0.7
    multiple = target.load(chip).unit.channel_multiple
    before = {node.name: node.outputs[0].shape[1] for node in graph.nodes if node.op == "Conv"}
    wide = {node.name: node.outputs[0].shape[1] for node in result.graph.nodes if node.name in before}
    assert all(wide[key] % multiple == 0 for key in wide if wide[key] != before[key])


@pytest.mark.parametrize("metric", ["macs", "params", "latency"])
def test_budgets_per_layer(metric: str, simple: dict[str, gs.Graph]) -> None:
    graph = simple["resnet18"]
    result = testing.run(
        PruneChannels(budget=Budget.model_validate({metric: 0.5}), ranking="per-layer"), graph, context(graph)
    )
    assert 0.49 <= kept(graph, result.graph, metric, "x86") <= 0.5
    shares = [
        new.outputs[0].shape[1] / old.outputs[0].shape[1]
        for old, new in zip(graph.nodes, result.graph.nodes, strict=True)
        if old.op == "Conv"
    ]
    assert max(shares) - min(shares) < 0.35


@pytest.mark.parametrize("ranking", ["global", "per-layer"])
def test_iterations_end_at_the_budget(ranking: str) -> None:
    graph = testing.graph(CHAIN)
    result = pruned(graph, budget=Budget(macs=0.5), iterations=3, ranking=ranking)
    assert 0.46 <= kept(graph, result.graph, "macs", "x86") <= 0.5  # a channel is 4 % of the network


@pytest.mark.parametrize("ranking", ["global", "per-layer"])
@pytest.mark.parametrize("iterations", [1, 2])
def test_sparsity(ranking: str, iterations: int) -> None:
    result = pruned(testing.graph(CHAIN), sparsity=0.5, ranking=ranking, iterations=iterations)
    assert result.changed == 14
    if ranking == "per-layer":
        assert (width(result, "a"), width(result, "b")) == (8, 6)


def test_global_ranking_compares_layers() -> None:
    V, B = np.ones((12, 16, 3, 3)), np.zeros(12)
    V[:6] = 1e-3
    result = pruned(testing.graph(CHAIN, V=V, B=B, U=np.ones((16, 3, 3, 3))), sparsity=6 / 28, importance="l2")
    assert (width(result, "a"), width(result, "b")) == (16, 6)


def test_nothing_to_remove() -> None:
    for options in ({"sparsity": 0.0}, {"budget": Budget(macs=1.0)}):
        graph = testing.graph(CHAIN)
        assert pruned(graph, **options).changed == 0


def test_a_budget_out_of_reach() -> None:
    with pytest.raises(NncError, match=r"the budget of 0.001 can't be reached: 0\.0\d+ is left with the smallest"):
        pruned(testing.graph(CHAIN), budget=Budget(macs=0.001))
    with pytest.raises(
        NncError, match=r"a sparsity of 0.99 can't be reached: at most 0\.\d+ of the channels can go"
    ) as raised:
        pruned(testing.graph(CHAIN), sparsity=0.99)
    assert raised.value.hint


@settings(max_examples=15, deadline=None)
@given(
    share=st.floats(0.3, 1.0), first=st.integers(17, 32), second=st.integers(13, 24),
    multiple=st.sampled_from([1, 2, 4]), ranking=st.sampled_from(["global", "per-layer"]),
)  # fmt: skip
def test_any_widths(share: float, first: int, second: int, multiple: int, ranking: str) -> None:
    text = CHAIN.replace("16", str(first)).replace("12", str(second))
    graph = testing.graph(text)
    result = pruned(graph, budget=Budget(params=share), round_to=multiple, ranking=ranking)
    assert kept(graph, result.graph, "params", "x86") <= share
    for name, before in (("a", first), ("b", second)):
        assert width(result, name) == before or width(result, name) % multiple == 0


# --- What is chosen


def test_include_and_exclude() -> None:
    graph = testing.graph(CHAIN)
    assert width(pruned(graph, sparsity=0.5, include=("a",)), "b") == 12
    result = pruned(graph, sparsity=0.5, exclude=("b",))
    assert (width(result, "a"), width(result, "b")) == (8, 12)
    assert result.skipped["b"] == "excluded by the recipe"


def test_multiples_of_the_target() -> None:
    result = pruned(testing.graph(CHAIN), sparsity=0.5, round_to=None, ranking="per-layer")
    assert "12 channels are no more than the multiple" in result.skipped["b"] or width(result, "b") % 8 == 0


@pytest.mark.parametrize("ranking", ["global", "per-layer"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_what_is_too_narrow_counts_in_no_step(ranking: str, iterations: int) -> None:
    """Half of the 24 channels that may go, and not of all 28."""
    graph = testing.graph(CHAIN.replace("16", "4").replace("12", "24"))
    result = pruned(graph, sparsity=0.5, round_to=4, ranking=ranking, iterations=iterations)
    assert (width(result, "a"), width(result, "b")) == (4, 12)
    assert "4 channels are no more than the multiple of 4" in result.skipped["a"]


SHARED = """
net (float[1, 3, 8, 8] image) => (float scores)
<float[28, 3, 3, 3] U, float[28] A, int64[2] parts = {4, 24}, float[6, 4, 3, 3] V, float[6, 24, 3, 3] W, float[10, 6] Z>
{
    a = Conv(image, U, A)
    few, many = Split<axis = 1>(a, parts)
    b = Conv(few, V)
    c = Conv(many, W)
    s = Add(b, c)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    scores = Gemm<transB = 1>(f, Z)
}
"""


@pytest.mark.parametrize("iterations", [1, 3])
def test_parts_of_a_layer_have_widths_of_their_own(iterations: int) -> None:
    result = pruned(testing.graph(SHARED), sparsity=0.5, round_to=4, exclude=("b", "c"), iterations=iterations)
    assert width(result, "a") == 16, "4 are too narrow, and half of the other 24 stay"


def test_reasons() -> None:
    result = pruned(testing.graph(CHAIN), sparsity=0.5)
    assert result.skipped == {"scores": "'scores' is an output of the graph"}


def test_no_layer_at_all() -> None:
    graph = testing.graph("net (float[1, 3] x) => (float y) { y = Relu(x) }")
    assert pruned(graph, sparsity=0.5).changed == 0


def test_a_layer_of_one_channel() -> None:
    text = CHAIN.replace("float[16, 3, 3, 3] U, float[16] A", "float[1, 3, 3, 3] U, float[1] A").replace(
        "12, 16", "12, 1"
    )
    result = pruned(testing.graph(text), sparsity=0.5)
    assert (width(result, "a"), width(result, "b")) == (1, 6)
    assert "1 channels are no more" not in result.skipped["a"]


def test_decisions_and_predictions(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    made = context(graph, images(tmp_path, graph))
    _, (row,) = pipeline.run(graph, [PruneChannels(budget=Budget(macs=0.5), round_to=1)], made)
    assert row.predicted is not None
    for figure in ("macs", "params", "latency_ms"):
        assert row.predicted[figure]["predicted"] == pytest.approx(row.predicted[figure]["reached"], rel=0.02)
    assert 0 < (row.predicted["error"]["predicted"] or 0) < 1
    layers = {entry["layer"]: entry for entry in row.decisions}
    assert list(layers) == ["a", "b", "scores"]
    assert layers["a"]["choice"].startswith("16 -> ")
    assert layers["a"]["macs"][0] > layers["a"]["macs"][1]
    assert row.curve is not None
    assert row.curve["metric"] == "macs"
    chosen = [point for point in row.curve["points"] if point["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["budget"] == pytest.approx(row.macs / measure(graph).macs, rel=0.02)


TOKENS = """
net (float[2, 7, 6] x) => (float y) <float[6, 16] V, float[16, 5] W> {
    a = MatMul(x, V)
    r = Relu(a)
    y = MatMul(r, W)
}
"""


def test_a_product_of_tokens_is_told_of_under_its_name(tmp_path: Path) -> None:
    """Refitting gives it a bias, which an Add behind it has."""
    graph = testing.graph(TOKENS)
    made = context(graph, images(tmp_path, graph))
    after, (row,) = pipeline.run(graph, [PruneChannels(budget=Budget(macs=0.5), round_to=1)], made)
    assert [node.op for node in after.nodes] == ["MatMul", "Relu", "MatMul", "Add"]
    layers = {entry["layer"]: entry for entry in row.decisions}
    assert [(name, entry["choice"]) for name, entry in layers.items()] == [
        ("a", "16 -> 8 channels"), ("y", "16 -> 8 inputs")
    ]  # fmt: skip
    assert [entry["macs"] for entry in layers.values()] == [[14 * 96, 14 * 48], [14 * 80, 14 * 40]]


def test_detectors_find_as_many_boxes_as_there_are(tmp_path: Path) -> None:
    """Nobody knows how many rows the BatchNormalization behind them reads."""
    rows = "n = NonZero(r) t = Transpose(n) c = Cast<to = 1>(t) boxes = BatchNormalization(c, G, H, M, N)"
    text = CHAIN.replace("(float scores)", "(float[found, 4] boxes, float scores)").replace(
        "f = Flatten", f"{rows} f = Flatten"
    )
    graph = testing.graph(
        text.replace("float[10, 12] W>", "float[10, 12] W, float[4] G, float[4] H, float[4] M, float[4] N>")
    )
    made = context(graph, images(tmp_path, graph))
    after, (row,) = pipeline.run(graph, [PruneChannels(budget=Budget(macs=0.5), round_to=1)], made)
    assert row.proof == "measured"
    assert kept(graph, after, "macs", "x86") <= 0.5


def test_no_curve_of_what_is_no_error() -> None:
    graph = testing.graph(CHAIN)
    _, (row,) = pipeline.run(graph, [PruneChannels(budget=Budget(macs=0.5), round_to=1)], context(graph))
    assert row.curve is None
    assert "error" not in (row.predicted or {})


# --- Networks of all kinds


def test_refitting_helps(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    calibration = images(tmp_path, graph)
    x = {"image": np.stack([each["image"] for each in calibration.batches(1)])}
    expected = Flow(graph, x).outputs()["scores"]
    errors = []
    for refit in (True, False):
        result = pruned(graph, calibration, budget=Budget(macs=0.6), refit=refit)
        errors.append(np.square(Flow(result.graph, x).outputs()["scores"] - expected).mean())
    assert errors[0] < errors[1] / 2


def test_half_precision(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN.replace("float[", "float16[").replace("float s", "float16 s"))
    result = pruned(graph, images(tmp_path, graph), budget=Budget(macs=0.5))
    assert result.changed
    assert {each.dtype for each in graphs.constants(result.graph) if each.dtype.kind == "f"} == {np.dtype(np.float16)}


def test_batches_and_several_inputs_and_outputs(tmp_path: Path) -> None:
    graph = testing.graph("""
        net (float[4, 3, 6, 6] x, float[4, 5] z) => (float y, float w)
        <float[8, 3, 3, 3] U, float[6, 8] V, float[6, 5] Q, float[3, 6] W, float[2, 6] T>
        {
            a = Conv(x, U)
            r = Relu(a)
            p = GlobalAveragePool(r)
            f = Flatten(p)
            b = Gemm<transB = 1>(f, V)
            q = Gemm<transB = 1>(z, Q)
            s = Add(b, q)
            t = Relu(s)
            y = Gemm<transB = 1>(t, W)
            w = Gemm<transB = 1>(t, T)
        }""")
    for count in (1, 9):
        result = pruned(graph, images(tmp_path, graph, count), sparsity=0.4)
        assert result.changed > 0
        assert np.isfinite(Session(result.graph).run(
            {each.name: np.ones(each.shape, np.float32) for each in graph.inputs}
        )["y"]).all()  # fmt: skip


def test_integer_inputs(tmp_path: Path) -> None:
    text = CHAIN.replace("(float[1, 3, 8, 8] image)", "(uint8[1, 3, 8, 8] image)").replace(
        "a = Conv(image", "i = Cast<to = 1>(image)\n    a = Conv(i"
    )
    graph = testing.graph(text)
    np.savez(tmp_path / "data.npz", image=np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), np.uint8))
    calibration = Dataset.open(tmp_path / "data.npz", None, graph.inputs)
    assert pruned(graph, calibration, budget=Budget(macs=0.5)).changed


@pytest.mark.parametrize("importance", ["l2", "reconstruction"])
def test_quantized_models(importance: str, tmp_path: Path) -> None:
    """Weights behind DequantizeLinear are sliced with their scales, and not refitted."""
    text = """
        net (float[1, 3, 6, 6] x) => (float y)
        <int8[8, 3, 3, 3] Q, float[8] S, int8[8] Z, float s, int8 z, int8[4, 8, 1, 1] P, float[4] T>
        {
            U = DequantizeLinear<axis = 0>(Q, S, Z)
            a = Conv(x, U)
            q = QuantizeLinear(a, s, z)
            d = DequantizeLinear(q, s, z)
            W = DequantizeLinear<axis = 0>(P, T)
            c = Conv(d, W)
            p = GlobalAveragePool(c)
            y = Flatten(p)
        }"""
    rng = np.random.default_rng(0)
    values = {"Q": rng.integers(-99, 99, (8, 3, 3, 3)), "P": rng.integers(-99, 99, (4, 8, 1, 1)), "Z": np.zeros(8)}
    values["Q"][[1, 4]], values["P"][:, [1, 4]] = 0, 0
    graph = testing.graph(text, **values, s=0.1, z=0, S=np.full(8, 0.01), T=np.full(4, 0.01))
    calibration = images(tmp_path, graph) if importance == "reconstruction" else None
    result = pruned(graph, calibration, sparsity=0.25, importance=importance)
    assert result.changed == 2
    first = next(node for node in result.graph.nodes if node.op == "DequantizeLinear" and node.outputs[0].shape[0] == 6)
    assert [tensor.shape for tensor in first.inputs] == [(6, 3, 3, 3), (6,), (6,)]
    testing.check_outputs(graph, result.graph)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    calibration = images(tmp_path, graph)
    for importance in ("reconstruction", "taylor"):
        first, second = (
            graphs.to_model(pruned(graph, calibration, budget=Budget(macs=0.5), importance=importance).graph)
            for _ in range(2)
        )
        assert first.SerializeToString() == second.SerializeToString()


# --- Wrong inputs


# fmt: off
@pytest.mark.parametrize(("options", "message"), [
    ({}, "give either 'sparsity' or 'budget'"),
    ({"sparsity": 0.5, "budget": {"macs": 0.5}}, "give either 'sparsity' or 'budget'"),
    ({"sparsity": 1.0}, "less than 1"),
    ({"sparsity": -0.1}, "greater than or equal to 0"),
    ({"budget": {}}, "a budget names one of 'macs', 'params' and 'latency'"),
    ({"budget": {"macs": 0.5, "params": 0.5}}, "a budget names one of"),
    ({"budget": {"macs": 0.0}}, "greater than 0"),
    ({"budget": {"flops": 0.5}}, "flops"),
    ({"sparsity": 0.5, "importance": "l3"}, "l1"),
    ({"sparsity": 0.5, "ranking": "local"}, "per-layer"),
    ({"sparsity": 0.5, "round_to": 0}, "greater than or equal to 1"),
    ({"sparsity": 0.5, "iterations": 0}, "greater than or equal to 1"),
])
def test_wrong_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PruneChannels.model_validate(options)
# fmt: on


@pytest.mark.parametrize("importance", ["taylor", "activation", "reconstruction"])
def test_data_are_needed(importance: str) -> None:
    with pytest.raises(NncError, match=f"importance '{importance}' needs calibration data") as raised:
        pruned(testing.graph(CHAIN), sparsity=0.5, importance=importance)
    assert "--data calibration=PATH" in str(raised.value.hint)


# --- Real networks


@pytest.mark.data
def test_resnet20_survives(data: Path) -> None:
    graph = graphs.load(data / "models" / "cifar10_resnet20.onnx")
    loaded = recipe.load("simplify")
    graph, _ = pipeline.run(graph, loaded.passes, context(graph))
    preprocess = recipe.Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    calibration = Dataset.open(data / "cifar10" / "calibration.npz", preprocess, graph.inputs)
    made = context(graph, calibration.subset(0, 200))
    made.test = Dataset.open(data / "cifar10" / "test.npz", preprocess, graph.inputs)
    result = testing.run(PruneChannels(budget=Budget(macs=0.8), round_to=1), graph, made)
    assert 0.784 <= kept(graph, result.graph, "macs", "x86") <= 0.8
    accuracy = made.accuracy(result.graph)
    assert accuracy is not None
    assert accuracy > 0.86
