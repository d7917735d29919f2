"""What the splitting passes share: what they choose within a budget, on data, on any network, and what they say."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import accuracy, measure, networks, pipeline, recipe, splitting, target, testing, verify
from nnc import graph as graphs
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError
from nnc.factorize import Spectrum
from nnc.passes.fold_batchnorm import FoldBatchNorm
from nnc.passes.split_conv_cp import SplitConvCp
from nnc.passes.split_conv_spatial import SplitConvSpatial
from nnc.passes.split_conv_svd import SplitConvSvd
from nnc.passes.split_conv_tucker import SplitConvTucker
from nnc.passes.split_gemm_svd import SplitGemmSvd
from nnc.splitting import Split

SPLITS = [SplitGemmSvd, SplitConvSvd, SplitConvSpatial, SplitConvCp, SplitConvTucker]
each_pass = pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)

CONVOLUTIONS = """
net (float[2, 16, 24, 24] x) => (float y)
<float[32, 16, 3, 3] U, float[32] A, float[32, 32, 3, 3] V, float[24, 32, 3, 3] W, float[24] B>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, U, A)
    b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, V)
    d = Relu(c)
    e = Conv<strides = [2, 2]>(d, W, B)
    y = Relu(e)
}
"""
PRODUCTS = """
net (float[16, 128] x) => (float y)
<float[128, 256] U, float[256] A, float[256, 256] V, float[64, 256] W, float[64] B>
{
    a = Gemm(x, U, A)
    b = Relu(a)
    c = MatMul(b, V)
    d = Relu(c)
    e = Gemm<transB = 1>(d, W, B)
    y = Relu(e)
}
"""


def network(split: type[Split], **weights: Any) -> gs.Graph:
    return testing.graph(PRODUCTS if split is SplitGemmSvd else CONVOLUTIONS, **weights)


def context(graph: gs.Graph, calibration: Dataset | None = None, chip: str = "qcs605") -> pipeline.Context:
    return pipeline.Context(target.load(chip), imported=graph, calibration=calibration, data_key="test")


Calibrate = Callable[..., Dataset]


@pytest.fixture
def calibrate(tmp_path: Path) -> Calibrate:
    """Makes calibration data for a graph: random numbers, or `values`."""

    def made(graph: gs.Graph, count: int = 40, values: np.ndarray | None = None) -> Dataset:
        rng = np.random.default_rng(1)
        arrays = {each.name: rng.standard_normal((count, *each.shape[1:])) for each in graph.inputs}
        arrays = arrays if values is None else {each.name: values for each in graph.inputs}
        np.savez(tmp_path / "calibration.npz", **{name: each.astype(np.float32) for name, each in arrays.items()})
        return Dataset.open(tmp_path / "calibration.npz", None, graph.inputs)

    return made


def share_left(metric: str, before: gs.Graph, after: gs.Graph) -> float:
    if metric == "latency":
        return context(before).predict(after).latency_ms / context(before).predict(before).latency_ms
    return getattr(measure.measure(after), metric) / getattr(measure.measure(before), metric)


def make(split: type[Split], **parameters: Any) -> Split:
    return split.model_validate_json(json.dumps(parameters))


# -- budgets


@each_pass
@pytest.mark.parametrize(("metric", "share"), [("macs", 0.6), ("params", 0.5), ("latency", 0.85)])
def test_budget(split: type[Split], metric: str, share: float) -> None:
    before = network(split)
    made = context(before)
    when = "faster" if metric == "latency" else "always"
    result = testing.run(make(split, budget={metric: share}, when=when), before, made)
    assert 0.85 * share <= share_left(metric, before, result.graph) <= share
    said, figures = made.explanation.predicted, measure.measure(result.graph)
    assert said is not None
    assert (said["macs"], said["params"]) == (figures.macs, figures.params)
    assert said["latency_ms"] == pytest.approx(made.predict(result.graph).latency_ms)


@pytest.mark.parametrize("split", [SplitConvSvd, SplitConvSpatial], ids=lambda split: split.name)
@pytest.mark.parametrize(("metric", "share"), [("macs", 0.7), ("params", 0.5), ("latency", 0.95)])
def test_budget_of_many_layers_is_used_up(split: type[Split], metric: str, share: float) -> None:
    before = graphs.from_model(networks.build("resnet56", input_size=32, classes=10))
    result = testing.run(make(split, budget={metric: share}), before, context(before))
    # Where only one rank is faster than the layer, a layer is split or not: a step of 1.65 % of the MACs.
    assert share - max(0.02 * share, 0.0165) <= share_left(metric, before, result.graph) <= share


def test_budget_of_one_wide_layer_is_used_up() -> None:
    """Its ranks are more than it is offered at once."""
    text = "net (float[1, 1024] x) => (float y) <float[1024, 1024] W, float[1024] B> { y = Gemm(x, W, B) }"
    before = testing.graph(text)
    result = testing.run(SplitGemmSvd(budget={"params": 0.777}), before, context(before))  # type: ignore[arg-type]
    assert result.graph.nodes[0].outputs[0].shape == [1, 396]
    assert 0.77 <= share_left("params", before, result.graph) <= 0.777


def test_budget_takes_what_loses_least() -> None:
    """Of two layers that are alike, the one of low rank is split."""
    rng = np.random.default_rng(0)
    low = np.einsum("krj,rci->kcij", rng.standard_normal((32, 4, 3)), rng.standard_normal((4, 32, 3)))
    text = CONVOLUTIONS.replace("float[32, 16, 3, 3] U", "float[32, 32, 3, 3] U").replace("x, U", "z, U")
    text = text.replace("{\n", "{ z = Concat<axis = 1>(x, x)\n", 1)
    before = testing.graph(text, V=low)
    made = context(before)
    result = testing.run(SplitConvSpatial(budget={"macs": 0.75}), before, made)  # type: ignore[arg-type]
    assert [name for name, each in made.explanation.decisions.items() if each["choice"] != "keep"] == ["c"]
    testing.check_outputs(before, result.graph)


@each_pass
def test_budget_out_of_reach(split: type[Split]) -> None:
    with pytest.raises(NncError, match=r"the budget of 0.001 can't be reached: (0\.\d+|1) is left") as error:
        testing.run(make(split, budget={"macs": 0.001}), network(split))
    assert "when" in (error.value.hint or "")


@each_pass
def test_budget_of_a_network_without_layers(split: type[Split]) -> None:
    nothing = "net (float[1, 4] x) => (float y) { y = Relu(x) }"
    with pytest.raises(NncError, match=r"the budget of 0.5 can't be reached: 1 is left"):
        testing.run(make(split, budget={"macs": 0.5}), nothing)
    assert testing.run(make(split, rank=3), nothing).changed == 0
    assert testing.run(make(split, budget={"macs": 1.0}), network(split)).changed == 0


def test_weights_that_two_layers_share_stay_and_count_once() -> None:
    text = """
    net (float[8, 64] x) => (float y) <float[64, 64] V, float[64, 64] W, float[64, 64] U>
    { a = MatMul(x, W) b = Relu(a) c = MatMul(b, W) d = Relu(c) e = MatMul(d, V) f = Relu(e) y = MatMul(f, U) }
    """
    before = testing.graph(text)
    result = testing.run(SplitGemmSvd(budget={"params": 0.7}, when="always"), before)  # type: ignore[arg-type]
    assert share_left("params", before, result.graph) <= 0.7
    assert result.skipped == {name: f"its weights are shared with '{other}'" for name, other in ("ac", "ca")}


def test_the_curve_holds_the_choice() -> None:
    before = network(SplitConvSpatial)
    made = context(before)
    testing.run(SplitConvSpatial(budget={"macs": 0.6}, when="always"), before, made)  # type: ignore[arg-type]
    curve = made.explanation.curve
    assert curve is not None
    assert curve["metric"] == "macs"
    errors = [point["error"] for point in curve["points"]]
    assert errors == sorted(errors, reverse=True)
    assert all(0 <= error <= 1 for error in errors)
    (chosen,) = [point for point in curve["points"] if point["chosen"]]
    assert 0.5 < chosen["budget"] <= 0.6


# -- what is said of every layer


def test_decisions() -> None:
    before = network(SplitConvSpatial)
    made = context(before)
    testing.run(SplitConvSpatial(rank=8, when="always", exclude=("c",)), before, made)
    decisions = made.explanation.decisions
    assert list(decisions) == ["a", "e"]
    assert re.fullmatch("rank 8 of 48, (3 x 1 then 1 x 3|1 x 3 then 3 x 1)", decisions["a"]["choice"])
    assert decisions["a"]["params"] == [32 * 16 * 9 + 32, 8 * (16 + 32) * 3 + 32]
    assert decisions["a"]["macs"] == [2 * 576 * 32 * 16 * 9, 2 * 576 * 8 * (16 + 32) * 3]
    assert 0 < decisions["a"]["error"] < 1
    assert made.skipped == {("c", "excluded by the recipe"): {"node": "c", "reason": "excluded by the recipe"}}


def test_error_is_that_of_the_layer() -> None:
    before = testing.graph("net (float[64, 32] x) => (float y) <float[32, 48] W> { y = MatMul(x, W) }")
    made = context(before)
    after = testing.run(SplitGemmSvd(rank=8, when="always"), before, made).graph
    W = before.nodes[0].inputs[1].values
    chain = np.linalg.multi_dot([node.inputs[1].values.T for node in after.nodes])
    said = made.explanation.decisions["y"]["error"]
    assert said == pytest.approx(np.linalg.norm(W - chain) / np.linalg.norm(W), rel=1e-4)


# -- calibration data


@each_pass
def test_true_rank_on_data(split: type[Split], calibrate: Calibrate) -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((size, 2)) for size in (32, 32))
    taps = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    V = np.einsum("kr,cr,ri,rj->kcij", left, right, *taps) if split is not SplitGemmSvd else (
        rng.standard_normal((256, 2)) @ rng.standard_normal((2, 256)) / 16
    )  # fmt: skip
    before = network(split, V=V)
    calibration = calibrate(before)
    result = testing.run(make(split, rank=2, when="always", include=["c"]), before, context(before, calibration))
    assert result.changed == 1
    inputs = next(iter(calibration.batches(before.inputs[0].shape[0])))
    reference, found = verify.outputs(before, inputs), verify.outputs(result.graph, inputs)
    assert verify.largest_difference(reference, found) < 2e-3  # the ridge pulls layers to the weights they had


@each_pass
@pytest.mark.parametrize("count", [1, 3])
def test_few_or_constant_samples(split: type[Split], count: int, calibrate: Calibrate) -> None:
    before = network(split)
    values = np.full((count, *before.inputs[0].shape[1:]), 0.25)
    made = context(before, calibrate(before, values=values))
    result = testing.run(make(split, budget={"macs": 0.6}), before, made)
    assert result.changed
    assert all(np.isfinite(each).all() for each in testing.weights(result.graph).values())


def test_data_lowers_the_error_of_the_outputs(calibrate: Calibrate) -> None:
    """Inputs that lie in a few directions: a rank that loses weights need not lose outputs."""
    before = testing.graph("net (float[16, 64] x) => (float y) <float[64, 48] W, float[48] B> { y = Gemm(x, W, B) }")
    rng = np.random.default_rng(2)
    calibration = calibrate(before, values=rng.standard_normal((400, 6)) @ rng.standard_normal((6, 64)) + 1)
    split = SplitGemmSvd(rank=6, when="always")
    made = context(before, calibration)
    result = testing.run(split, before, made)
    inputs = next(iter(calibration.batches(16)))
    reference, found = verify.outputs(before, inputs), verify.outputs(result.graph, inputs)
    assert verify.snr_db(reference, found) > 30  # correlations of few samples are not trusted entirely
    assert verify.snr_db(reference, verify.outputs(testing.run(split, before).graph, inputs)) < 10
    assert made.explanation.decisions["y"]["error"] < 0.05


def test_values_that_are_not_finite(calibrate: Calibrate) -> None:
    text = CONVOLUTIONS.replace("b = Relu(a)", "b = Log(a)")
    before = testing.graph(text)
    with pytest.raises(NncError, match="'b' of 'c' is not finite on the calibration data"):
        testing.run(SplitConvSvd(budget={"macs": 0.6}), before, context(before, calibrate(before)))  # type: ignore[arg-type]


def test_batchnorm_behind_a_split_layer(calibrate: Calibrate) -> None:
    statistics = "float[32] scale, float[32] shift, float[32] mean, float[32] var"
    text = CONVOLUTIONS.replace("Relu(a)", "BatchNormalization(a, scale, shift, mean, var)").replace(
        ">\n{", f", {statistics}>\n{{"
    )
    before = testing.graph(text)
    rank = SplitConvSpatial(rank=30, when="always", include=("a",))
    result = testing.run(rank, before, context(before, calibrate(before)))
    assert result.ops[:3] == ["Conv", "Conv", "BatchNormalization"]
    folded = testing.run(FoldBatchNorm(), result.graph).graph
    testing.check_outputs(result.graph, folded)


# -- any network


@each_pass
def test_again(split: type[Split]) -> None:
    """What is split stays as it is, at the same rank and when the ranks are to keep the energy."""
    before = network(split)
    for parameters in ({"rank": 6}, {"energy": 0.8}):
        once = testing.run(make(split, when="always", **parameters), before)
        assert once.changed == 3
        assert testing.run(make(split, when="smaller", **parameters), once.graph).changed == 0


@each_pass
def test_same_bytes_every_time(split: type[Split], calibrate: Calibrate) -> None:
    before = network(split)
    calibration = calibrate(before)
    results = [
        testing.run(make(split, budget={"macs": 0.6}), before, context(before, calibration)).graph for _ in range(2)
    ]
    models = [graphs.to_model(each).SerializeToString() for each in results]
    assert models[0] == models[1]


@pytest.mark.parametrize("split", [SplitGemmSvd, SplitConvSvd])
@pytest.mark.parametrize("wanted", [{"budget": {"macs": 0.6}}, {"energy": 0.8}])
def test_one_decomposition_per_layer(
    split: type[Split], wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its curve leaves to its factors what they need; with a curve of an earlier compile they are the same."""
    before, decompositions, of = network(split), [], Spectrum.of

    def counted(W: np.ndarray, most: int) -> Spectrum:
        decompositions.append(W)
        return of(W, most)

    monkeypatch.setattr(Spectrum, "of", counted)
    made = context(before)
    first = testing.run(make(split, when="smaller", **wanted), before, made)
    assert len(decompositions) == 3
    again = testing.run(make(split, when="smaller", **wanted), before, made)
    assert len(decompositions) == 3 + again.changed
    models = [graphs.to_model(each.graph).SerializeToString() for each in (first, again)]
    assert models[0] == models[1]


@each_pass
def test_zeros(split: type[Split]) -> None:
    before = network(split, V=np.zeros((256, 256) if split is SplitGemmSvd else (32, 32, 3, 3)))
    result = testing.check(make(split, energy=0.99, when="smaller", include=["c*"]), before, exact=True)
    assert result.changed == 1


NETWORKS = ["densenet121", "mobilenet_v2", "resnet18", "shufflenet_v2", "squeezenet1_1"]


@pytest.mark.parametrize("name", NETWORKS)
def test_reference_networks(name: str) -> None:
    before = graphs.from_model(networks.build(name, input_size=32, width=0.25, classes=10))
    made = context(before)
    splits = [make(each, energy=0.6, when="smaller") for each in SPLITS if each is not SplitConvCp]
    after, rows = pipeline.run(before, splits, made)
    assert sum(row.changed for row in rows) > 3
    assert after.outputs[0].shape == before.outputs[0].shape
    figures = measure.measure(after)
    for row in rows:
        assert row.proof in ("measured", "unchanged")
        assert row.predicted is not None
        assert all(each["predicted"] == pytest.approx(each["reached"]) for each in row.predicted.values())
    assert figures.params < measure.measure(before).params


@pytest.mark.data
def test_resnet_keeps_its_accuracy_at_half_of_the_macs(data: Path) -> None:
    """With data the layers are fitted, without training: plain decomposition ends some ten points below."""
    before = graphs.load(data / "models" / "cifar10_resnet20.onnx", {"input": (20, 3, 32, 32)})
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    calibration, test = (
        Dataset.open(data / "cifar10" / f"{name}.npz", Preprocess(mean=mean, std=std), before.inputs)
        for name in ("calibration", "test")
    )
    before = testing.run(FoldBatchNorm(), before).graph
    split = SplitConvSpatial(budget={"macs": 0.5}, when="always")  # type: ignore[arg-type]
    fitted = testing.run(split, before, context(before, calibration.subset(0, 200), "x86")).graph
    plain = testing.run(split, before, context(before, None, "x86")).graph
    found = [accuracy.evaluate(each, test).top1 for each in (before, fitted, plain)]
    assert found[1] > found[0] - 0.035
    assert found[1] > found[2] + 0.05


# -- what can be written into a recipe

WRONG = [
    ("", "give one of 'rank', 'energy' and 'budget'", None),
    ("rank = 4\nenergy = 0.9", "give one of 'rank', 'energy' and 'budget'", None),
    ("rank = 0", "'rank' must be an integer of at least 1 or 'vbmf', not 0", None),
    ("rank = 2.5", "'rank' must be an integer of at least 1 or 'vbmf', not 2.5", None),
    ("rank = 'vmbf'", "'rank' must be an integer of at least 1 or 'vbmf', not the string 'vmbf'",
     "did you mean 'vbmf'?"),
    ("rank = '16'", "'rank' must be an integer of at least 1 or 'vbmf', not the string '16'", "write rank = 16"),
    ("energy = 90", "'energy' must be a number from 0 to 1, not 90", "it is a share: write energy = 0.9"),
    ("budget = { macs = 2 }", "'budget.macs' must be a number above 0 and of at most 1, not 2",
     "it is a share: write macs = 0.02"),
    ("budget = { macs = 0 }", "'budget.macs' must be a number above 0 and of at most 1, not 0", None),
    ("budget = { macs = 0.5, params = 0.5 }", "budget: a budget names one of 'macs', 'params' and 'latency'", None),
    ("budget = {}", "budget: a budget names one of 'macs', 'params' and 'latency'", None),
    ("budget = { mac = 0.5 }", "budget: unknown key 'mac'", "did you mean 'macs'?"),
    ("budget = 0.5", "'budget' must be a table of 'macs', 'params', 'latency', not 0.5",
     "write budget = { macs = 0.5 }"),
    ("rank = 4\nwhen = 'quicker'", "'when' must be 'faster', 'smaller' or 'always', not the string 'quicker'", None),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "message", "hint"), WRONG, ids=[lines or "nothing" for lines, _, _ in WRONG])
def test_wrong_parameters(tmp_path: Path, lines: str, message: str, hint: str | None) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(f'[[pass]]\nname = "split-conv-svd"\n{lines}\n')
    with pytest.raises(NncError) as error:
        recipe.load(file)
    assert error.value.message == f"{file}: pass 1 (split-conv-svd): {message}"
    assert error.value.hint == hint


@each_pass
def test_written_out_and_read_again(split: type[Split], tmp_path: Path) -> None:
    for parameters in ({"rank": "vbmf"}, {"rank": 3}, {"budget": {"latency": 0.5}}, {"energy": 0.5, "when": "always"}):
        made, file = make(split, **parameters), tmp_path / "recipe.toml"
        read = recipe.Recipe("recipe", file, "", recipe.Data(), (made,), ())
        file.write_text(read.to_toml())
        assert recipe.load(file).passes == (made,)


# -- parts


def test_steps() -> None:
    assert splitting.steps(64, 16) == [16, 32, 48, 64]
    assert splitting.steps(40, 16) == [8, 16, 24, 32, 40]
    assert splitting.steps(3, 16) == [1, 2, 3]
    assert splitting.steps(30, 6) == [6, 12, 18, 24, 30]
    assert splitting.steps(10, 3) == list(range(1, 11))


def test_undominated_and_thinned() -> None:
    assert splitting.undominated("abcd", [4, 2, 3, 1], [0.1, 0.3, 0.4, 0.5]) == ["a", "b", "d"]
    kept = splitting.thinned(list(range(1000)))
    assert len(kept) == splitting.MOST_OPTIONS
    assert (kept[0], kept[-1]) == (0, 999)
    assert splitting.thinned([3, 1]) == [3, 1]
