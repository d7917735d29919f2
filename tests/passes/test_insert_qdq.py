"""insert-qdq: QuantizeLinear and DequantizeLinear where runtimes expect them, and outputs that stay near."""

from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import channels, networks, pipeline, quantize, recipe, target, testing, verify
from nnc import graph as graphs
from nnc.accuracy import evaluate
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError
from nnc.passes import GRAPH_PASSES
from nnc.passes.fold_batchnorm import FoldBatchNorm
from nnc.passes.insert_qdq import InsertQdq
from nnc.passes.prune_channels import PruneChannels
from nnc.passes.split_conv_svd import SplitConvSvd
from nnc.quantize import precision
from nnc.quantize.precision import DropBudget
from nnc.quantize.quantizing_pass import Bits, LayerOptions
from nnc.session import Session

CHAIN = """
net (float[1, 3, 8, 8] image) => (float[1, 10] scores)
<float[8, 3, 3, 3] U, float[8] A, float[8, 8, 3, 3] V, float[8] B, float[10, 8] W, float[10] C>
{
    a = Conv<pads = [1, 1, 1, 1]>(image, U, A)
    r = Relu(a)
    b = Conv<pads = [1, 1, 1, 1]>(r, V, B)
    s = Add(b, r)
    t = Relu(s)
    p = GlobalAveragePool(t)
    f = Flatten(p)
    scores = Gemm<transB = 1>(f, W, C)
}
"""


def noise(tmp_path: Path, graph: gs.Graph, count: int = 16, **given: np.ndarray) -> Dataset:
    rng = np.random.default_rng(0)
    arrays = {each.name: rng.standard_normal((count, *each.shape[1:]), np.float32) for each in graph.inputs}
    np.savez(tmp_path / "images.npz", **(arrays | given))
    return Dataset.open(tmp_path / "images.npz", None, graph.inputs)


def context(graph: gs.Graph, data: Dataset, chip: str = "x86") -> pipeline.Context:
    return pipeline.Context(target.load(chip), imported=graph, calibration=data)


def inserted(text: str | gs.Graph, tmp_path: Path, chip: str = "x86", **options: Any) -> testing.Result:
    graph = testing.graph(text) if isinstance(text, str) else text
    return testing.run(InsertQdq(**options), graph, context(graph, noise(tmp_path, graph), chip))


def snr(before: gs.Graph, after: gs.Graph) -> float:
    inputs = verify.probe_inputs(before, 1)
    return verify.snr_db(verify.outputs(before, inputs), verify.outputs(after, inputs))


def readers(graph: gs.Graph, name: str) -> list[str]:
    """The operators that read a tensor."""
    return sorted({node.op for node in graph.nodes for tensor in node.inputs if tensor.name == name})


def scale_of(graph: gs.Graph, name: str) -> float:
    """The scale of the QuantizeLinear that reads a tensor."""
    return next(float(n.inputs[1].values) for n in graph.nodes if n.op == "QuantizeLinear" and n.inputs[0].name == name)


# --- Placement


def test_standard_placement(tmp_path: Path) -> None:
    """Pairs at what layers and the residual Add read; nothing between a layer or Add and the Relu behind it."""
    result = inserted(CHAIN, tmp_path)
    read = {name: readers(result.graph, name) for name in ("image", "a", "r", "b", "s", "t", "p", "f")}
    assert read == {
        "image": ["QuantizeLinear"], "a": ["Relu"], "r": ["QuantizeLinear"], "b": ["QuantizeLinear"], "s": ["Relu"],
        "t": ["QuantizeLinear"], "p": ["QuantizeLinear"], "f": ["QuantizeLinear"],
    }  # fmt: skip
    assert result.changed == 3
    assert scale_of(result.graph, "p") == scale_of(result.graph, "f")
    assert result.graph.outputs[0].inputs[0].op == "Gemm"
    assert result.graph.inputs[0].dtype == np.float32


def test_weights_and_biases(tmp_path: Path) -> None:
    """int8 per channel, zero at 0; int32 biases in steps of what is multiplied."""
    graph = testing.graph(CHAIN)
    layers = quantize.layers(inserted(graph, tmp_path).graph)
    assert list(layers) == ["a", "b", "scores"]
    for name, (weight, bias) in {"a": ("U", "A"), "b": ("V", "B"), "scores": ("W", "C")}.items():
        layer, values = layers[name], testing.weights(graph)
        assert layer.integers.dtype == np.int8
        assert layer.axis == 0
        assert not layer.zero.any()
        assert (np.abs(layer.integers).reshape(len(layer.scale), -1).max(1) == 127).all()
        assert np.abs(layer.weight - values[weight]).max() <= layer.scale.max() / 2 * 1.001
        maker = layer.node.inputs[2].inputs[0]
        assert maker.inputs[0].values.dtype == np.int32
        assert len(maker.inputs) == 2
        np.testing.assert_array_equal(maker.inputs[1].values, np.float32(layer.input_scale) * layer.scale)
        assert np.abs(layer.bias - values[bias]).max() <= maker.inputs[1].values.max()


@pytest.mark.parametrize(
    "move",
    [
        "MaxPool<kernel_shape = [2, 2]>(r)", "Reshape(r, shape)", "Transpose<perm = [0, 1, 3, 2]>(r)", "Identity(r)",
        "Concat<axis = 1>(r, r)", "Pad(r, pads)", "Slice(r, one, four, two)", "DepthToSpace<blocksize = 2>(r)",
    ],
)  # fmt: skip
def test_moves_share_a_scale(move: str, tmp_path: Path) -> None:
    group_width = {"Depth": 1, "Conca": 8}.get(move[:5], 4)
    text = f"""net (float[1, 3, 8, 8] x) => (float y)
    <float[8, 3, 1, 1] W, int64[4] shape = {{1, 8, 4, 16}}, int64[8] pads = {{0, 0, 1, 1, 0, 0, 1, 1}},
     int64[1] one = {{1}}, int64[1] four = {{4}}, int64[1] two = {{2}}, float[2, {group_width}, 1, 1] V>
    {{ a = Conv(x, W) r = Relu(a) m = {move} y = Conv<group = 2>(m, V) }}"""
    channels = {"Depth": 2, "Conca": 16}.get(move[:5], 8)
    graph = testing.graph(
        text.replace("[4, 1, 1, 1] V", f"[2, {channels // 2}, 1, 1] V").replace("group = 4", "group = 2")
    )
    after = inserted(graph, tmp_path).graph
    assert scale_of(after, "r") == scale_of(after, "m")
    assert snr(graph, after) > 25


def test_concat_of_two_ranges_takes_the_wider(tmp_path: Path) -> None:
    text = """net (float[1, 4, 4, 4] x) => (float y) <float[4, 4, 1, 1] U, float[4, 4, 1, 1] V, float[2, 8, 1, 1] W>
    { a = Conv(x, U) b = Conv(x, V) c = Concat<axis = 1>(a, b) y = Conv(c, W) }"""
    rng = np.random.default_rng(0)
    graph = testing.graph(text, V=100 * rng.standard_normal((4, 4, 1, 1)))
    after = inserted(graph, tmp_path).graph
    assert scale_of(after, "a") == scale_of(after, "b") == scale_of(after, "c") > 0.5


def test_both_inputs_of_matmul(tmp_path: Path) -> None:
    text = """net (float[2, 5, 6] x, float[2, 6, 7] y) => (float[2, 5, 3] z) <float[7, 3] W, float[3] B>
    { a = MatMul(x, y) b = MatMul(a, W) z = Add(b, B) }"""
    graph = testing.graph(text)
    after = inserted(graph, tmp_path).graph
    assert [readers(after, name) for name in "xyab"] == [["QuantizeLinear"]] * 3 + [["Add"]]
    assert quantize.layers(after)["b"].axis == 1
    assert snr(graph, after) > 20


def test_gemm_factors_and_a_row_of_biases(tmp_path: Path) -> None:
    text = """net (float[4, 6] x) => (float[4, 3] z) <float[6, 3] W, float[4, 3] B, float[3, 3] V, float[1] C>
    { a = Gemm<alpha = 0.5, beta = 3.0>(x, W, B) z = Gemm<alpha = 2.0>(a, V, C) }"""
    graph = testing.graph(text)
    after = inserted(graph, tmp_path).graph
    layers = quantize.layers(after)
    assert isinstance(layers["a"].node.inputs[2], gs.Constant)
    assert layers["z"].bias.shape == (3,)
    assert snr(graph, after) > 25


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolution(group: int, tmp_path: Path) -> None:
    text = f"""net (float[1, 4, 5, 5] x) => (float y) <float[4, 3, 2, 2] W, float[{3 * group}] B>
    {{ y = ConvTranspose<strides = [2, 2], group = {group}>(x, W, B) }}"""
    graph = testing.graph(text)
    after = inserted(graph, tmp_path).graph
    assert quantize.layers(after)["y"].axis == (1 if group == 1 else None)
    assert snr(graph, after) > 25


def test_constants_of_elementwise_operators(tmp_path: Path) -> None:
    """A bound that is also a factor stays a bound."""
    text = """net (float[1, 4, 5, 5] x) => (float y) 
    <float[4, 4, 1, 1] W, float[4, 4, 1, 1] V, float six = {6}, float zero = {0}>
    { a = Conv(x, W) b = Mul(a, six) c = Clip(b, zero, six) y = Conv(c, V) }"""
    graph = testing.graph(text)
    after = inserted(graph, tmp_path).graph
    clip = next(node for node in after.nodes if node.op == "Clip")
    assert clip.inputs[2].name == "six"
    assert snr(graph, after) > 20


def test_floats_stay_where_no_layer_is_near(tmp_path: Path) -> None:
    text = """net (float[1, 4] x) => (float[1, 3] y, float[1, 3] g) <float[4, 3] W>
    { e = Exp(x) l = Log(e) g = Gemm(l, W) s = Softmax(g) t = Sqrt(s) y = Mul(t, t) }"""
    after = inserted(text, tmp_path).graph
    assert Counter(node.op for node in after.nodes)["QuantizeLinear"] == 1
    assert readers(after, "l") == ["QuantizeLinear"]


# --- Options


@pytest.mark.parametrize("chip", ["x86", "qcs605", "qcs605:dsp", "jetson-xavier:gpu"])
def test_the_scheme_is_the_targets(chip: str, tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    after = inserted(graph, tmp_path, chip).graph
    wanted = target.load(chip).unit.quantization
    pair = next(node for node in after.nodes if node.op == "QuantizeLinear" and node.inputs[0].name == "image")
    assert pair.inputs[2].values.dtype == wanted.activations.dtype
    relu = next(node for node in after.nodes if node.op == "QuantizeLinear" and node.inputs[0].name == "r")
    least = np.iinfo(wanted.activations.dtype).min
    assert int(relu.inputs[2].values) == (0 if wanted.activations.symmetric else least)
    layer = quantize.layers(after)["a"]
    assert layer.integers.dtype == wanted.weights.dtype
    assert (layer.axis is None) == (wanted.weights.granularity == "per-tensor")
    assert snr(graph, after) > 20


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", quantize.METHODS)
def test_every_method_and_type(method: quantize.Method, symmetric: bool, dtype: str, tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    options = dict(method=method, activation_dtype=dtype, activation_symmetric=symmetric, weight_method="mse")
    after = inserted(graph, tmp_path, **options).graph
    assert snr(graph, after) > 8
    zeros = {int(node.inputs[2].values) for node in after.nodes if node.op == "QuantizeLinear"}
    assert (zeros == {128 if dtype == "uint8" else 0}) == symmetric


def test_options_by_layer(tmp_path: Path) -> None:
    layers = {
        "*": LayerOptions(weight_bits=4),
        "b": LayerOptions(keep_float=True),
        "scores": LayerOptions(per_channel=False),
    }
    result = inserted(CHAIN, tmp_path, layers=layers)
    found = quantize.layers(result.graph)
    assert result.skipped == {"b": "excluded by the recipe"}
    assert np.abs(found["a"].integers).max() == 7
    assert np.abs(found["scores"].integers).max() == 127
    assert found["scores"].scale.shape == ()


def test_excluded_layers(tmp_path: Path) -> None:
    result = inserted(CHAIN, tmp_path, exclude=("a", "s*"))
    assert list(quantize.layers(result.graph)) == ["b"]
    assert set(result.skipped) == {"a", "scores"}
    assert readers(result.graph, "image") == ["Conv"]


def test_unknown_layer(tmp_path: Path) -> None:
    with pytest.raises(NncError, match="no layer is called 'scorez'"):
        inserted(CHAIN, tmp_path, layers={"scorez": LayerOptions()})


def test_from_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        """description = "q"
        [[pass]]
        name = "insert-qdq"
        method = "mse"
        layers = { "stem*" = { weight_bits = 4 }, head = { keep_float = true } }"""
    )
    (pass_,) = recipe.load(path).passes
    assert pass_.layers["stem*"].weight_bits == 4


# --- Exactness


def test_values_on_the_grid_stay(tmp_path: Path) -> None:
    """Integers as weights, biases and pixels of ranges that make every scale 1: nothing is rounded."""
    text = """net (float[1, 3, 6, 6] x) => (float y) <float[4, 3, 1, 1] W, float[4] B>
    { y = Conv(x, W, B) }"""
    rng = np.random.default_rng(0)
    W = rng.integers(-127, 128, (4, 3, 1, 1))
    W[:, 0] = 127
    graph = testing.graph(text, W=W, B=rng.integers(-1000, 1000, 4))
    pixels = rng.integers(0, 256, (8, 3, 6, 6)).astype(np.float32)
    pixels[0, 0, 0, :2] = 0, 255
    after = testing.run(InsertQdq(), graph, context(graph, noise(tmp_path, graph, x=pixels))).graph
    for each in pixels:
        expected, found = (Session(g).run({"x": each[None]})["y"] for g in (graph, after))
        np.testing.assert_array_equal(expected, found)


def test_second_run_finds_it_done(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    once = inserted(graph, tmp_path).graph
    again = testing.check_unchanged(InsertQdq(), once, "quantized already", context(once, noise(tmp_path, once)))
    assert len(again.skipped) == 3


def test_partly_quantized(tmp_path: Path) -> None:
    """What is left over of a first run is done by a second one, at the scales that are there."""
    graph = testing.graph(CHAIN)
    partly = inserted(graph, tmp_path, exclude=("b",)).graph
    whole = inserted(partly, tmp_path)
    assert whole.changed == 1
    assert list(quantize.layers(whole.graph)) == ["a", "b", "scores"]
    counts = Counter(node.op for node in inserted(graph, tmp_path).graph.nodes)
    assert Counter(node.op for node in whole.graph.nodes) == counts
    assert snr(graph, whole.graph) > 25


def test_partly_quantized_with_scales_of_one_element(tmp_path: Path) -> None:
    """The standard writes one scale for all as a number; some exporters write an array of one."""
    graph = testing.graph(CHAIN)
    partly = inserted(graph, tmp_path, exclude=("b",)).graph
    whole = inserted(partly, tmp_path).graph
    for node in partly.nodes:
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            for each in node.inputs[1:]:
                each.values = each.values.reshape(-1)
    again = inserted(partly, tmp_path).graph
    assert list(quantize.layers(again)) == ["a", "b", "scores"]
    inputs = verify.probe_inputs(graph, 1)
    assert verify.snr_db(verify.outputs(whole, inputs), verify.outputs(again, inputs)) == np.inf


def test_partly_quantized_with_a_wider_tensor_beside(tmp_path: Path) -> None:
    """A scale that is there is not taken for what leaves its range."""
    text = """net (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] e, float[1, 4, 6, 6] y)
    <float[4, 4, 1, 1] U, float[4, 4, 1, 1] V, float[4, 8, 1, 1] W, float k>
    { a = Conv(x, U) r = Relu(a) e = Conv(r, V) b = Mul(x, k) s = Relu(b) c = Concat<axis = 1>(r, s) y = Conv(c, W) }"""
    graph = testing.graph(text, k=50.0)
    partly = inserted(graph, tmp_path, exclude=("y",)).graph
    after = inserted(partly, tmp_path).graph
    assert list(quantize.layers(after)) == ["a", "e", "y"]
    assert scale_of(after, "s") > 10 * scale_of(after, "r")
    assert snr(graph, after) > 25


# --- A budget


def fragile() -> gs.Graph:
    """CHAIN with a middle layer that one scale for all weights does not suit."""
    graph = testing.graph(CHAIN)
    V = testing.weights(graph)["V"].copy()
    V[:, 1:] /= 300
    return testing.graph(CHAIN, V=V)


def test_the_layer_that_loses_most_stays_in_floats(tmp_path: Path) -> None:
    graph = fragile()
    given = context(graph, noise(tmp_path, graph, 64))
    options = {"per_channel": False, "weight_bits": 4}
    whole = testing.run(InsertQdq(**options), graph, given).graph
    single = {
        name: testing.run(InsertQdq(include=(name,), **options), graph, given).graph for name in quantize.layers(whole)
    }
    drop = precision.Drop(graph, given.calibration)
    worst = min(single, key=lambda name: snr(graph, single[name]))
    budget = DropBudget(drop=drop.of(whole, lambda done, total: None) - 1e-6)
    result = testing.run(InsertQdq(budget=budget, **options), graph, given)
    left = [name for name in ["a", "b", "scores"] if name not in quantize.layers(result.graph)]
    assert left[0] == worst
    assert len(left) == 1
    assert result.skipped == {worst: "stays in floats to keep the budget"}
    assert drop.of(result.graph, lambda done, total: None) <= budget.drop
    decisions = given.explanation.decisions
    assert decisions[worst]["choice"] == "stays in floats"
    assert decisions[worst]["error"] == max(each["error"] for each in decisions.values()) > 0
    assert len(decisions) == 3


def test_a_wide_budget_keeps_nothing_in_floats(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    given = context(graph, noise(tmp_path, graph))
    plain = testing.run(InsertQdq(), graph, given).graph
    result = testing.run(InsertQdq(budget=DropBudget(drop=0.9)), graph, given)
    assert graphs.to_model(plain) == graphs.to_model(result.graph)
    assert not result.skipped


def test_a_budget_that_no_layer_keeps(tmp_path: Path) -> None:
    """Without classes, the drop is the share of noise: never 0."""
    graph = testing.graph(CHAIN.replace("(float[1, 10] scores)", "(float[1, 10] scores, float[1, 8] f)"))
    given = context(graph, noise(tmp_path, graph))
    result = testing.check_unchanged(
        InsertQdq(budget=DropBudget(drop=0)), graph, "no layer can be quantized within the budget", given
    )
    assert set(result.skipped) == {"a", "b", "scores"}
    assert {each["choice"] for each in given.explanation.decisions.values()} == {"stays in floats"}


def test_a_budget_of_a_detector(tmp_path: Path) -> None:
    """The shape of one output is the data's to decide; where it is the only one, there is no drop."""
    text = CHAIN.replace("(float[1, 10] scores)", "(int64[2, found] n, float[1, 10] scores)")
    graph = testing.graph(text.replace("scores =", "n = NonZero(f) scores ="))
    given = context(graph, noise(tmp_path, graph))
    assert testing.run(InsertQdq(budget=DropBudget(drop=0.9)), graph, given).changed
    graph.outputs = graph.outputs[:1]
    graph.nodes = [node for node in graph.nodes if node.name != "scores"]
    with pytest.raises(NncError, match="no output tells a drop"):
        testing.run(InsertQdq(budget=DropBudget(drop=0.9)), graph, given)


def test_a_budget_with_other_options(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    given = context(graph, noise(tmp_path, graph))
    pass_ = InsertQdq(
        budget=DropBudget(drop=0.9), exclude=("a",),
        layers={"b": LayerOptions(weight_bits=4), "scores": LayerOptions(weight_only=True)},
    )  # fmt: skip
    result = testing.check(pass_, graph, context=given)
    assert result.skipped == {"a": "excluded by the recipe"}
    layers = quantize.layers(result.graph)
    assert np.abs(layers["b"].integers).max() == 7
    assert layers["scores"].input_scale is None
    assert set(given.explanation.decisions) == {"b", "scores"}


def test_sensitivities_are_measured_once(tmp_path: Path) -> None:
    graph = fragile()
    given = context(graph, noise(tmp_path, graph))
    seen: list[str] = []
    given.progress = lambda step, done, total: seen.append(step)
    for drop in (0.5, 0.001, 0.001):
        before = list(seen)
        testing.run(InsertQdq(budget=DropBudget(drop=drop)), graph, given)
        seen, new = list(seen), seen[len(before) :]
        assert ("sensitivities" in new) == (drop == 0.5)
    assert "accuracy" not in new
    testing.run(InsertQdq(budget=DropBudget(drop=0.001), weight_bits=4), graph, given)


# --- Weights alone

PRODUCTS = """
net (float[3, 40] x) => (float[3, 6] y, float[3, 1, 7] z)
<float[20, 40] W, float[20] B, float[20, 7] V, float[6, 20] U, int64[3] shape = {3, 1, 20}>
{
    a = Gemm<transB = 1, alpha = 0.5>(x, W, B)
    r = Relu(a)
    y = Gemm<transB = 1>(r, U)
    s = Reshape(r, shape)
    z = MatMul(s, V)
}
"""


def dequantized_floats(graph: gs.Graph) -> gs.Graph:
    """The graph with the floats that the integers of its weights stand for."""
    copy = graphs.copy(graph)
    for node in copy.nodes:
        if node.op == "DequantizeLinear":
            inputs = [each.values.astype(np.float32) for each in node.inputs]
            along = [-1 if axis == node.attrs["axis"] else 1 for axis in range(inputs[0].ndim)]
            if block := node.attrs.get("block_size"):
                scale = np.repeat(inputs[1], block, node.attrs["axis"])[tuple(map(slice, inputs[0].shape))]
            else:
                scale = inputs[1].reshape(along)
            node.outputs[0].outputs[0].inputs[1] = gs.Constant(f"{node.name}/floats", inputs[0] * scale)
    copy.nodes = [node for node in copy.nodes if node.op != "DequantizeLinear"]
    return copy


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [None, 16])
def test_weight_only(bits: Bits, group: int | None) -> None:
    """No data, no scales for activations; onnxruntime computes what it does with the floats."""
    graph = testing.graph(PRODUCTS, opset=21)
    pass_ = InsertQdq(weight_only=True, weight_bits=bits, group_size=group)
    assert pass_.data_needed() == ()
    result = testing.check(pass_, graph)
    assert Counter(result.ops) == {"DequantizeLinear": 3, "Gemm": 2, "MatMul": 1, "Relu": 1, "Reshape": 1}
    assert result.changed == 3
    stored = [node.inputs[0].values for node in result.graph.nodes if node.op == "DequantizeLinear"]
    assert {(values.dtype.name, int(np.abs(values).max())) for values in stored} == {("int8", 2 ** (bits - 1) - 1)}
    inputs = verify.probe_inputs(graph, 0)
    expected = verify.outputs(dequantized_floats(result.graph), inputs)
    for name, values in verify.outputs(result.graph, inputs).items():
        np.testing.assert_array_equal(values, expected[name])
    assert snr(graph, result.graph) > (15 if bits == 4 else 40)


def test_groups_of_inputs_lose_less_than_channels() -> None:
    W = testing.weights(testing.graph(PRODUCTS))["W"].copy()
    W[:, ::20] *= 30
    graph = testing.graph(PRODUCTS, opset=21, W=W)
    found = [
        snr(graph, testing.run(InsertQdq(weight_only=True, weight_bits=4, group_size=size), graph).graph)
        for size in (None, 8)
    ]
    assert found[1] > found[0] + 3


def test_groups_need_a_newer_opset() -> None:
    with pytest.raises(NncError, match="group_size: needs a model of opset 21 or newer, not 17"):
        testing.run(InsertQdq(weight_only=True, group_size=32), PRODUCTS)


def test_weight_only_is_for_products(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    result = testing.check(InsertQdq(weight_only=True), graph)
    assert result.skipped == dict.fromkeys("ab", "only Gemm and MatMul have weight_only")
    assert list(quantize.layers(result.graph)) == ["scores"]
    assert "QuantizeLinear" not in result.ops
    mixed = inserted(graph, tmp_path, layers={"scores": LayerOptions(weight_only=True)}).graph
    layers = quantize.layers(mixed)
    assert [name for name, layer in layers.items() if layer.input_scale is None] == ["scores"]
    assert isinstance(layers["scores"].node.inputs[2], gs.Constant)
    assert snr(graph, mixed) > 20


def test_weight_only_leaves_integers_around_gates_alone() -> None:
    """No scales are placed near the pairs that the model came with, where no data tells any."""
    text = """net (float[1, 3, 8, 8] x) => (float[1, 5] y)
    <float s = {0.05}, uint8 z = {128}, float[4, 3, 1, 1] W, float[4, 5] V>
    {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        c = Conv(d, W)
        e = QuantizeLinear(c, s, z)
        g = DequantizeLinear(e, s, z)
        h = Sigmoid(g)
        m = Mul(g, h)
        p = GlobalAveragePool(m)
        f = Flatten(p)
        y = Gemm(f, V)
    }"""
    result = testing.check(InsertQdq(weight_only=True), text)
    assert result.skipped == {"c": "only Gemm and MatMul have weight_only"}
    assert Counter(result.ops)["QuantizeLinear"] == 2
    assert list(quantize.layers(result.graph)) == ["y"]


def test_weight_only_but_for_some(tmp_path: Path) -> None:
    pass_ = InsertQdq(weight_only=True, layers={"y": LayerOptions(weight_only=False)})
    assert pass_.data_needed() == ("calibration",)
    graph = testing.graph(PRODUCTS)
    layers = quantize.layers(testing.run(pass_, graph, context(graph, noise(tmp_path, graph))).graph)
    assert {name: layer.input_scale is None for name, layer in layers.items()} == {"a": True, "y": False, "z": True}


def test_computed_weights_are_left_alone() -> None:
    text = "net (float[2, 4] x, float[4, 3] W) => (float[2, 3] y) { y = MatMul(x, W) }"
    testing.check_unchanged(InsertQdq(weight_only=True), text, "its weights are computed")


# --- Values that are hard to quantize


def test_dead_channels_with_large_biases(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    values = testing.weights(graph)
    U, A = values["U"].copy(), values["A"].copy()
    U[:3], U[3] = 0, 1e-30
    A[:4] = 1e3, -1e-3, 0, 5.0
    graph = testing.graph(CHAIN, U=U, A=A)
    after = inserted(graph, tmp_path).graph
    layer = quantize.layers(after)["a"]
    np.testing.assert_allclose(layer.bias[:4], A[:4], rtol=1e-6)
    assert snr(graph, after) > 20


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-30, 1e15])
def test_sizes_of_float32(size: float, tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    U = testing.weights(graph)["U"] * np.float32(size)
    graph = testing.graph(CHAIN, U=U, A=np.zeros(8))
    after = inserted(graph, tmp_path).graph
    found = verify.outputs(after, verify.probe_inputs(graph, 0))["scores"]
    assert np.isfinite(found).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_stays_float(tmp_path: Path) -> None:
    text = """net (float[1, 4] x) => (float[1, 3] y) <float[4, 4] V, float[4, 3] W>
    { a = Gemm(x, V) l = Log(a) y = Gemm(l, W) }"""
    result = inserted(text, tmp_path)
    assert result.skipped == {"y": "'l' is not finite on the calibration data"}
    assert list(quantize.layers(result.graph)) == ["a"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_holds_values_that_are_not_finite_stays_float(tmp_path: Path) -> None:
    text = """net (float[1, 4, 2, 2] x) => (float[1, 4, 2, 2] y, float[1, 4, 2, 2] z)
    <float[4, 4, 1, 1] V, float[4, 8, 1, 1] W>
    { a = Conv(x, V) l = Log(a) c = Concat<axis = 1>(l, a) y = Conv(c, W) z = Conv(a, V) }"""
    result = inserted(text, tmp_path)
    assert result.skipped == {"y": "'c' is not finite on the calibration data"}
    assert list(quantize.layers(result.graph)) == ["a", "z"]
    assert readers(result.graph, "c") == ["Conv"]


def test_layers_without_weights_stay(tmp_path: Path) -> None:
    text = """net (float[1, 4] x) => (float[1, 3] y, float[1, 0] z) <float[4, 3] V, float[4, 0] W>
    { y = Gemm(x, V) z = MatMul(x, W) }"""
    graph = testing.graph(text)
    assert inserted(graph, tmp_path).skipped == {"z": "it has no weights"}
    result = testing.run(InsertQdq(weight_only=True), graph)
    assert (result.changed, result.skipped) == (1, {"z": "it has no weights"})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_constants_that_are_not_finite_stay_float(tmp_path: Path) -> None:
    text = """net (float[1, 4, 1, 1] x) => (float[1, 4, 1, 1] y) <float[4, 4, 1, 1] V, float[4, 4, 1, 1] W>
    { a = Conv(x, V) b = Conv(a, W) y = Conv(b, V) }"""
    W = np.full((4, 4, 1, 1), np.inf, np.float32)
    assert inserted(testing.graph(text, W=W), tmp_path).skipped == {
        "b": "'W' has values that are not finite", "y": "'b' is not finite on the calibration data"
    }  # fmt: skip
    product = "net (float[1, 4] x) => (float[1, 4] y) <float[4, 4] W> { y = MatMul(x, W) }"
    graph = testing.graph(product, W=W[..., 0, 0])
    testing.check_unchanged(InsertQdq(weight_only=True), graph, "'W' has values that are not finite")
    bounded = """net (float[1, 4, 1, 1] x) => (float[1, 4, 1, 1] y) <float[4, 4, 1, 1] V, float[4, 1, 1] k>
    { a = Conv(x, V) b = Mul(a, k) c = Sigmoid(b) y = Conv(c, V) }"""
    result = inserted(testing.graph(bounded, k=W[..., :1, :1, 0]), tmp_path)
    assert (result.changed, result.skipped) == (2, {})


def test_shared_weights_and_unnamed_nodes(tmp_path: Path) -> None:
    text = """net (float[2, 4, 5, 5] x) => (float y) <float[4, 4, 1, 1] W>
    { a = Conv(x, W) b = Relu(a) c = Conv(b, W) y = Add(c, x) }"""
    graph = testing.graph(text)
    after = inserted(graph, tmp_path).graph
    assert sum(values.dtype == np.int8 for values in testing.weights(after).values()) == 2  # weights and their zeros
    assert snr(graph, after) > 25


@given(
    channels=st.integers(1, 5),
    groups=st.integers(1, 3),
    kernel=st.integers(1, 3),
    batch=st.integers(1, 3),
    rank=st.integers(1, 3),
    act=st.sampled_from(["Relu", "Identity", "Sigmoid", "LeakyRelu"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_any_convolution(
    channels: int, groups: int, kernel: int, batch: int, rank: int, act: str, seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    width, taps, sizes = channels * groups, [kernel] * rank, [5] * rank
    text = f"""net (float{[batch, width, *sizes]} x) => (float y)
    <float{[width, channels, *taps]} W, float{[width]} B, float{[3, width, *[1] * rank]} V>
    {{ a = Conv<group = {groups}, pads = {[1] * 2 * rank}>(x, W, B) b = {act}(a) y = Conv(b, V) }}"""
    graph = testing.graph(text, seed=seed)
    assert snr(graph, inserted(graph, tmp_path_factory.mktemp("data")).graph) > 15


# --- Networks

#: Those that 32x32 images are too small for.
SIZES = {
    **{"alexnet": 64, "alexnet_caffe": 67, "squeezenet_ssd": 96},
    **{"inception_v3": 96, "inception_v4": 96, "inception_resnet_v2": 96},
}


@pytest.mark.parametrize("name", networks.NAMES)
def test_reference_networks(name: str, tmp_path: Path) -> None:
    before = graphs.from_model(networks.build(name, input_size=SIZES.get(name, 32), width=0.25, classes=10))
    before = testing.run(FoldBatchNorm(), before).graph
    result = inserted(before, tmp_path)
    assert not result.skipped
    assert len(quantize.layers(result.graph)) == result.changed
    assert snr(before, result.graph) > 5


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "squeezenet1_1"])
def test_other_passes_keep_it_correct(name: str, tmp_path: Path) -> None:
    """Exact passes, folding and pruning behind it change what they should and nothing else; splits decline."""
    float_graph = graphs.from_model(networks.build(name, input_size=32, width=0.25, classes=10))
    graph = inserted(float_graph, tmp_path).graph
    pipeline.run(graph, [each() for each in GRAPH_PASSES], context(graph, noise(tmp_path, graph)))
    graph = testing.check(FoldBatchNorm(), graph).graph
    assert len(channels.trace(graph).groups) == len(channels.trace(float_graph).groups)
    with patch.object(channels, "remove", wraps=channels.remove) as remove:
        pruned = testing.run(PruneChannels(sparsity=0.3, round_to=1), graph).graph
    ids = next(call.args[2] for call in remove.mock_calls if not call.kwargs.get("hollow"))
    assert len(ids) > 50
    zeroed, inputs = testing.zeroed(graph, channels.trace(graph), ids), verify.probe_inputs(graph, 0)
    assert verify.largest_difference(verify.outputs(zeroed, inputs), verify.outputs(pruned, inputs)) < 1e-4
    testing.check_unchanged(SplitConvSvd(rank=2, when="always"), graph, "split before quantizing")


def test_ranges_are_measured_once(tmp_path: Path) -> None:
    graph = testing.graph(CHAIN)
    given = context(graph, noise(tmp_path, graph))
    seen: list[str] = []
    given.progress = lambda step, done, total: seen.append(step)
    results = [testing.run(InsertQdq(), graph, given).graph for _ in range(2)]
    assert seen.count("calibration") == 17  # 0 to 16 samples, and only in the first run
    one, other = (graphs.to_model(each).SerializeToString(deterministic=True) for each in results)
    assert one == other


@pytest.mark.data
def test_a_qdq_model_comes_through_unchanged(data: Path, tmp_path: Path) -> None:
    graph = graphs.load(data / "models/imagenet_mobilenet_v2_1.0_224_qdq.onnx")
    given = context(graph, noise(tmp_path, graph, 1))
    assert len(testing.check_unchanged(InsertQdq(), graph, "quantized already", given).skipped) == 53


@pytest.mark.data
@pytest.mark.parametrize("name", ["cifar10_resnet20", "cifar10_resnet56"])
def test_accuracy_of_pretrained_networks(data: Path, name: str) -> None:
    graph = graphs.load(data / f"models/{name}.onnx")
    prepared = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    calibration, test = (
        Dataset.open(data / f"cifar10/{part}.npz", prepared, graph.inputs) for part in ("calibration", "test")
    )
    folded = testing.run(FoldBatchNorm(), graph).graph
    after = testing.run(InsertQdq(), folded, context(folded, calibration)).graph
    assert evaluate(graph, test).top1 - evaluate(after, test).top1 <= 0.005
