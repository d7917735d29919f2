"""round-adaptively: outputs nearer to the floats than with the nearest integers, in the same QDQ graph."""

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import pipeline, quantize, target, testing
from nnc.checkpoint import Checkpoints
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError
from nnc.passes.insert_qdq import InsertQdq
from nnc.passes.prune_channels import PruneChannels
from nnc.passes.round_adaptively import RoundAdaptively
from nnc.rewrite import Pass
from nnc.session import Session

# What the second layer reads is correlated: eight channels of three.
CHAIN = """
net (float[1, 3, 12, 12] x) => (float y)
<float[8, 3, 1, 1] V, float[8] A, float[6, 8, 3, 3] W, float[6] B>
{
    a = Conv(x, V, A)
    y = Conv<pads = [1, 1, 1, 1]>(a, W, B)
}
"""
NETS = {
    "chain": CHAIN,
    "without biases": CHAIN.replace(", A)", ")").replace(", B)", ")"),
    "relu": CHAIN.replace("y = Conv<pads = [1, 1, 1, 1]>(a,", "b = Relu(a)\n y = Conv<pads = [1, 1, 1, 1]>(b,"),
    "depthwise": CHAIN.replace("[6, 8, 3, 3]", "[8, 1, 3, 3]").replace("[6] B", "[8] B").replace(
        "pads", "group = 8, pads"),
    "grouped": CHAIN.replace("[6, 8, 3, 3]", "[6, 4, 3, 3]").replace("pads", "group = 2, pads"),
    "residual": CHAIN.replace("[6, 8, 3, 3]", "[8, 8, 3, 3]").replace("[6] B", "[8] B").replace(
        "y = Conv", "b = Conv").replace("(a, W, B)", "(a, W, B)\n    y = Add(b, a)"),
    "Gemm": """net (float[4, 6] x) => (float y) <float[6, 20] V, float[20] A, float[5, 20] W, float[5] B> {
        a = Gemm(x, V, A)
        y = Gemm<transB = 1>(a, W, B)
    }""",
    "MatMul": """net (float[4, 6] x) => (float y) <float[6, 20] V, float[20, 5] W> {
        a = MatMul(x, V)
        y = MatMul(a, W)
    }""",
}  # fmt: skip

INSERT = InsertQdq(weight_bits=4)


def dataset(folder: Path, graph: gs.Graph, seed: int = 0) -> Dataset:
    values = np.random.default_rng(seed).standard_normal((64, *graph.inputs[0].shape[1:]), np.float32)
    np.savez(folder / f"data{seed}.npz", x=values)
    return Dataset.open(folder / f"data{seed}.npz", Preprocess(), graph.inputs)


def run(graph: gs.Graph, data: Dataset | None, *passes: Pass) -> tuple[gs.Graph, pipeline.Context]:
    context = pipeline.Context(target.load("x86"), calibration=data)
    after, _ = pipeline.run(graph, list(passes), context)
    return after, context


def error(before: gs.Graph, after: gs.Graph, data: Dataset) -> float:
    batch = before.inputs[0].shape[0]
    expected, found = (
        np.concatenate([Session(graph).run(inputs)["y"] for inputs in data.batches(batch)]) for graph in (before, after)
    )
    return float(np.sqrt(np.square(found - expected).sum() / np.square(expected).sum()))


@pytest.mark.parametrize("name", NETS)
def test_outputs_are_nearer_on_data_that_was_not_seen(name: str, tmp_path: Path) -> None:
    graph = testing.graph(NETS[name])
    data, others = dataset(tmp_path, graph), dataset(tmp_path, graph, 1)
    nearest, _ = run(graph, data, INSERT)
    rounded, context = run(graph, data, INSERT, RoundAdaptively())
    assert [node.op for node in rounded.nodes if node.op != "DequantizeLinear"] == [
        node.op for node in nearest.nodes if node.op != "DequantizeLinear"
    ]
    assert error(graph, rounded, others) < 0.9 * error(graph, nearest, others)
    assert set(context.explanation.decisions) == set(quantize.layers(rounded))


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_stay_in_their_range(bits: int, tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    after, _ = run(graph, dataset(tmp_path, graph), InsertQdq.model_validate({"weight_bits": bits}), RoundAdaptively())
    for layer in quantize.layers(after).values():
        assert np.abs(layer.integers.astype(int)).max() <= (7 if bits == 4 else 127)


def test_scales_and_biases_can_stay(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    data = dataset(tmp_path, graph)
    before = quantize.layers(run(graph, data, INSERT)[0])
    after = quantize.layers(run(graph, data, INSERT, RoundAdaptively(scales=False, bias=False))[0])
    for name, layer in after.items():
        np.testing.assert_array_equal(layer.scale, before[name].scale)
        np.testing.assert_array_equal(layer.bias, before[name].bias)
    assert any(not np.array_equal(layer.integers, before[name].integers) for name, layer in after.items())


def test_the_same_every_time(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    data = dataset(tmp_path, graph)
    one, other = (quantize.layers(run(graph, data, INSERT, RoundAdaptively())[0]) for _ in range(2))
    assert all(np.array_equal(layer.integers, other[name].integers) for name, layer in one.items())


def test_what_the_recipe_excludes_stays(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    data = dataset(tmp_path, graph)
    before = quantize.layers(run(graph, data, INSERT)[0])
    after, context = run(graph, data, INSERT, RoundAdaptively(exclude=("a",)))
    assert [each["reason"] for each in context.skipped.values()] == ["excluded by the recipe"]
    np.testing.assert_array_equal(quantize.layers(after)["a"].integers, before["a"].integers)


def test_without_the_floats_it_is_told(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    data = dataset(tmp_path, graph)
    quantized, _ = run(graph, data, INSERT)
    for each, reason in ((graph, "no layer is quantized"), (quantized, "the floats .* not known")):
        with pytest.raises(NncError, match=f"round-adaptively: {reason}"):
            run(each, data, RoundAdaptively())


@pytest.mark.parametrize(
    ("passes", "unknown"),
    [((InsertQdq(include=("a",)), INSERT), "a"), ((INSERT, PruneChannels(sparsity=0.5, round_to=1)), "ay")],
    ids=["quantized before", "pruned since"],
)
def test_layers_whose_floats_are_not_known_stay(passes: tuple[Pass, ...], unknown: str, tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    _, context = run(graph, dataset(tmp_path, graph), *passes, RoundAdaptively())
    skipped = {each["node"]: each["reason"] for each in context.skipped.values()}
    assert skipped == dict.fromkeys(unknown, "its weights before quantization are not known")
    assert set(context.explanation.decisions) == {"a", "y"} - set(unknown)


def test_the_floats_are_found_again_behind_a_checkpoint(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    data, source = dataset(tmp_path, graph), tmp_path / "model.onnx"
    graphs.save(graph, source)
    graph = graphs.load(source)
    wanted = quantize.layers(run(graph, data, INSERT, RoundAdaptively())[0])
    checkpoints = Checkpoints(tmp_path / "kept", source, "")

    def resumed() -> dict[str, quantize.QuantizedLayer]:
        context = pipeline.Context(target.load("x86"), calibration=data)
        after, rows = pipeline.run(graph, [INSERT, RoundAdaptively()], context, checkpoints)
        reused.append([row.reused for row in rows])
        return quantize.layers(after)

    reused: list[list[bool]] = []
    pipeline.run(graph, [INSERT], pipeline.Context(target.load("x86"), calibration=data), checkpoints)
    found = resumed()
    assert reused == [[True, False]]
    assert all(np.array_equal(layer.integers, wanted[name].integers) for name, layer in found.items())


def test_floats_that_are_lost_are_quantized_again(tmp_path: Path) -> None:
    graph, source = testing.graph(CHAIN), tmp_path / "model.onnx"
    graphs.save(graph, source)
    graph, data = graphs.load(source), dataset(tmp_path, graph)
    checkpoints, passes = Checkpoints(tmp_path / "kept", source, ""), [RoundTrip(), INSERT]
    pipeline.run(graph, passes, pipeline.Context(target.load("x86"), calibration=data), checkpoints)
    (tmp_path / "kept" / f"{checkpoints.keys(passes)[0]}.onnx").unlink()
    context = pipeline.Context(target.load("x86"), calibration=data)
    _, rows = pipeline.run(graph, [*passes, RoundAdaptively()], context, checkpoints)
    assert [row.reused for row in rows] == [False, False, False]


class RoundTrip(Pass):
    """Something in front."""

    name = "round-trip"
    effect = "exact"

    def run(self, graph: gs.Graph, context: pipeline.Context) -> int:
        return 0


def test_a_layer_whose_outputs_are_not_finite_stays(tmp_path: Path) -> None:
    text = """net (float[1, 3, 8, 8] x) => (float y) <float[3, 3, 1, 1] V, float[3] A, float[6, 3, 1, 1] W, float[6] B>
    { a = Conv(x, V, A) b = Sigmoid(a) y = Conv(b, W, B) }"""
    graph = testing.graph(text, A=[0, np.inf, 0])
    _, context = run(graph, dataset(tmp_path, graph), INSERT, RoundAdaptively())
    skipped = {each["node"]: each["reason"] for each in context.skipped.values()}
    assert skipped == {"a": "'a' of 'a' is not finite on the calibration data"}


@pytest.mark.parametrize("bias", [True, False])
def test_channels_without_weights_keep_their_biases(bias: bool, tmp_path: Path) -> None:
    """Their scale is what lets the bias fit into int32, and no share of it loses anything."""
    V = testing.weights(testing.graph(CHAIN))["V"].copy()
    A = np.linspace(-2, 3, 8)
    V[0], V[1] = 0, 1e-12 * V[1]
    graph = testing.graph(CHAIN, V=V, A=A)
    after, _ = run(graph, dataset(tmp_path, graph), INSERT, RoundAdaptively(bias=bias))
    layer = quantize.layers(after)["a"]
    np.testing.assert_allclose(layer.bias[:2], A[:2], rtol=1e-4)
    assert np.abs(layer.weight[:2]).max() < 1e-9


def test_layers_that_add_what_is_computed_stay(tmp_path: Path) -> None:
    text = """net (float[4, 6] x) => (float y) <float[6, 6] V, float[6] A, float[6, 6] W> {
        a = Gemm(x, V, A)
        r = Relu(a)
        y = Gemm(r, W, x)
    }"""
    graph = testing.graph(text)
    after, context = run(graph, dataset(tmp_path, graph), INSERT, RoundAdaptively())
    assert {each["node"]: each["reason"] for each in context.skipped.values()} == {"y": "what it adds is computed"}
    assert set(quantize.layers(after)) == {"a", "y"}


def test_layers_that_share_their_weights_share_them_still(tmp_path: Path) -> None:
    text = """net (float[1, 3, 8, 8] x) => (float y) <float[6, 3, 1, 1] V, float[6] A, float[6, 6, 1, 1] W> {
        a = Conv(x, V, A) b = Relu(a) c = Conv(b, W) d = Relu(c) y = Conv(d, W) }"""
    graph = testing.graph(text)
    after, context = run(graph, dataset(tmp_path, graph), INSERT, RoundAdaptively())
    assert {each["node"]: each["reason"] for each in context.skipped.values()} == {
        name: f"its weights are shared with '{other}'" for name, other in ("cy", "yc")
    }
    layers = quantize.layers(after)
    assert layers["c"].dequantize is layers["y"].dequantize


def test_factors_of_layers_that_read_floats(tmp_path: Path) -> None:
    text = NETS["Gemm"].replace("transB = 1", "transB = 1, alpha = 0.25, beta = 2.0")
    graph = testing.graph(text)
    data = dataset(tmp_path, graph)
    after, _ = run(graph, data, InsertQdq(weight_only=True, weight_bits=4), RoundAdaptively())
    assert error(graph, after, data) < 0.15
