"""correct-bias: means of outputs are those of the floats again."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import pipeline, quantize, target, testing
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError
from nnc.passes.correct_bias import CorrectBias
from nnc.passes.fold_batchnorm import FoldBatchNorm
from nnc.passes.insert_qdq import InsertQdq
from nnc.passes.prune_channels import PruneChannels
from nnc.quantize.expectation import clipped_mean
from nnc.rewrite import Pass
from nnc.session import Session

CHAIN = """
net (float[1, 3, 8, 8] x) => (float y)
<float[8, 3, 3, 3] V, float[8] A, float[6, 8, 3, 3] W, float[6] B>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, V, A)
    b = Relu(a)
    y = Conv(b, W, B)
}
"""
NORMED = """
net (float[1, 3, 8, 8] x) => (float y)
<float[8, 3, 3, 3] V, float[8] g, float[8] s, float[8] m, float[8] v, float[6, 8, 1, 1] W, float[6] B>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, V)
    n = BatchNormalization(a, g, s, m, v)
    b = Relu(n)
    y = Conv(b, W, B)
}
"""
INSERT = InsertQdq(weight_bits=4, per_channel=False)


def dataset(folder: Path, graph: gs.Graph) -> Dataset:
    rng = np.random.default_rng(0)
    values = {each.name: rng.uniform(0, 2, (48, *each.shape[1:])).astype(np.float32) for each in graph.inputs}
    np.savez(folder / "data.npz", **values)
    return Dataset.open(folder / "data.npz", Preprocess(), graph.inputs)


def run(graph: gs.Graph, data: Dataset | None, *passes: Pass) -> tuple[gs.Graph, dict[str, str]]:
    context = pipeline.Context(target.load("x86"), calibration=data)
    after, _ = pipeline.run(graph, list(passes), context)
    return after, {each["node"]: each["reason"] for each in context.skipped.values()}


def mean_error(before: gs.Graph, after: gs.Graph, data: Dataset) -> float:
    """The largest mean error of a channel, in standard deviations of the output."""
    expected, found = (
        np.concatenate([Session(graph).run(inputs)["y"] for inputs in data.batches(1)]) for graph in (before, after)
    )
    return float(np.abs((found - expected).mean((0, 2, 3))).max() / expected.std())


@pytest.mark.parametrize("text", [CHAIN, CHAIN.replace(", A)", ")").replace(", B)", ")")], ids=["biases", "none"])
def test_means_are_those_of_the_floats(text: str, tmp_path: Path) -> None:
    graph = testing.graph(text)
    data = dataset(tmp_path, graph)
    plain, _ = run(graph, data, INSERT)
    corrected, _ = run(graph, data, INSERT, CorrectBias())
    assert mean_error(graph, plain, data) > 0.02
    assert mean_error(graph, corrected, data) < 0.1 * mean_error(graph, plain, data)
    for name, layer in quantize.layers(corrected).items():
        np.testing.assert_array_equal(layer.integers, quantize.layers(plain)[name].integers)


def test_a_bias_that_is_made_is_of_integers(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN.replace(", A)", ")").replace(", B)", ")"))
    corrected, _ = run(graph, dataset(tmp_path, graph), INSERT, CorrectBias())
    biases = [node.inputs[2] for node in corrected.nodes if node.op == "Conv"]
    assert all(bias.inputs[0].inputs[0].dtype == np.int32 for bias in biases)


def test_what_is_right_stays(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    data = dataset(tmp_path, graph)
    context = pipeline.Context(target.load("x86"), calibration=data)
    _, rows = pipeline.run(graph, [INSERT, CorrectBias(), CorrectBias()], context)
    assert rows[1].changed > 0
    assert rows[2].changed <= rows[1].changed


def test_batchnormalization_tells_the_means(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    graph = testing.graph(NORMED, s=rng.uniform(1, 3, 8).astype(np.float32))
    data = dataset(tmp_path, graph)
    first = next(node for node in graph.nodes if node.op == "BatchNormalization")
    seen = np.concatenate([Session(graph, outputs=["a"]).run(inputs)["a"] for inputs in data.batches(1)])
    first.inputs[3].values = seen.mean((0, 2, 3), dtype=np.float32)
    first.inputs[4].values = seen.var((0, 2, 3), dtype=np.float32)
    insert = InsertQdq(weight_bits=4, per_channel=False, include=("y",))
    plain, _ = run(graph, data, FoldBatchNorm(), insert)
    corrected, _ = run(graph, data, FoldBatchNorm(), insert, CorrectBias(method="analytic"))
    assert mean_error(graph, corrected, data) < 0.3 * mean_error(graph, plain, data)
    _, skipped = run(graph, data, FoldBatchNorm(), INSERT, CorrectBias(method="analytic"))
    assert [reason.startswith("no BatchNormalization") for reason in skipped.values()] == [True]


def test_empirical_needs_data(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    with pytest.raises(NncError, match="'empirical' needs calibration data"):
        run(graph, None, CorrectBias(method="empirical"))


def test_without_the_floats_it_is_told(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    with pytest.raises(NncError, match="no layer is quantized"):
        run(graph, dataset(tmp_path, graph), CorrectBias())


@pytest.mark.parametrize("method", ["empirical", "analytic"])
def test_layers_whose_floats_are_not_known_stay(method: Literal["empirical", "analytic"], tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    data, correct, unknown = dataset(tmp_path, graph), CorrectBias(method=method), "its weights before quantization"
    _, twice = run(graph, data, InsertQdq(include=("a",)), INSERT, correct)
    assert twice["a"].startswith(unknown)
    _, pruned = run(graph, data, INSERT, PruneChannels(sparsity=0.5, round_to=1), correct)
    assert [pruned[name].startswith(unknown) for name in ("a", "y")] == [True, True]


def test_what_the_recipe_excludes_stays(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    data = dataset(tmp_path, graph)
    plain, corrected = run(graph, data, INSERT)[0], run(graph, data, INSERT, CorrectBias(exclude=("y",)))
    assert corrected[1]["y"] == "excluded by the recipe"
    np.testing.assert_array_equal(quantize.layers(corrected[0])["y"].bias, quantize.layers(plain)["y"].bias)


@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (0.0, 6.0), (-1.0, 1.0), (-np.inf, np.inf)])
def test_the_mean_of_a_clipped_normal(low: float, high: float) -> None:
    mean, deviation = np.array([-1.0, 0.3, 5.0, 2.0]), np.array([1.0, 2.0, 3.0, 0.0])
    drawn = mean + deviation * np.random.default_rng(0).standard_normal((400_000, 4))
    np.testing.assert_allclose(clipped_mean(mean, deviation, low, high), np.clip(drawn, low, high).mean(0), atol=0.02)


def test_a_layer_whose_outputs_are_not_finite_stays(tmp_path: Path) -> None:
    text = """net (float[1, 3, 8, 8] x) => (float y) <float[3, 3, 1, 1] V, float[3] A, float[6, 3, 1, 1] W, float[6] B>
    { a = Conv(x, V, A) b = Sigmoid(a) y = Conv(b, W, B) }"""
    graph = testing.graph(text, A=[0, np.inf, 0])
    _, skipped = run(graph, dataset(tmp_path, graph), INSERT, CorrectBias())
    assert skipped == {"a": "'a' of 'a' is not finite on the calibration data"}


@pytest.mark.parametrize("method", ["empirical", "analytic"])
def test_layers_that_add_what_is_computed_stay(method: Literal["empirical", "analytic"], tmp_path: Path) -> None:
    graph = testing.graph(
        """net (float[2, 6] x, float[2, 6] c) => (float y) <float[6, 6] V, float[6] A, float[6, 6] W, float[6, 6] U>
        { a = Gemm(x, V, A) r = Relu(a) b = Gemm(r, W, x) y = Gemm(b, U, c) }"""
    )
    _, skipped = run(graph, dataset(tmp_path, graph), INSERT, CorrectBias(method=method))
    assert {name: skipped[name] for name in "by"} == dict.fromkeys("by", "what it adds is computed")
