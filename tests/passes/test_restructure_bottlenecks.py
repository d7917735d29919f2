"""restructure-bottlenecks: blocks are found, wider ones compute the same, and what is dead goes first."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nnc import bottlenecks, channels, networks, pipeline, target, testing, verify
from nnc import graph as graphs
from nnc.bottlenecks import worth
from nnc.compression import branches
from nnc.data import Dataset
from nnc.errors import NncError
from nnc.measure import measure
from nnc.networks.blocks import Activation, classifier, conv_bn, inverted_residual, squeeze_excite
from nnc.networks.network import Network
from nnc.passes import GRAPH_PASSES
from nnc.passes.restructure_bottlenecks import RestructureBottlenecks

Weights = dict[str, np.ndarray]

#: Two stages: one block, and three of which the last two have a shortcut.
WIDTHS = (8, 12, 12, 12)


def network(
    expansion: int = 3, excite: bool = False, activation: Activation = Network.relu6, stride: int = 2, kernel: int = 3,
    folded: bool = False,
) -> gs.Graph:  # fmt: skip
    net = Network("small", 16, 5)
    squeeze = partial(squeeze_excite, squeezed=4) if excite else None
    x = conv_bn(net, net.input, "stem", 8, 3, 2)
    for index, width in enumerate(WIDTHS):
        hidden, step = x.channels * (expansion if index else 1), stride if index == 1 else 1
        x = inverted_residual(net, x, f"block.{index}", width, hidden, kernel, step, activation, squeeze)
    x = conv_bn(net, x, "last", 24)
    graph = graphs.from_model(net.finish(classifier(net, x, "classifier")))
    return simplified(graph) if folded else graph


def simplified(graph: gs.Graph) -> gs.Graph:
    return pipeline.run(graph, [each() for each in GRAPH_PASSES], context(graph))[0]


def edited(graph: gs.Graph, edit: Callable[[Weights], object]) -> gs.Graph:
    """The graph with other weights, which `edit` changes in place by name."""
    values = {tensor.name: tensor.values.copy() for tensor in graphs.constants(graph)}
    edit(values)
    for tensor in graphs.constants(graph):
        tensor.values = values[tensor.name]
    return graph


def context(graph: gs.Graph, calibration: Dataset | None = None) -> pipeline.Context:
    return pipeline.Context(target.load("x86"), imported=graph, calibration=calibration)


def images(folder: Path, graph: gs.Graph, count: int = 48) -> Dataset:
    np.savez(folder / "images.npz", input=np.random.default_rng(0).standard_normal((count, 3, 16, 16), np.float32))
    return Dataset.open(folder / "images.npz", None, graph.inputs)


def restructured(graph: gs.Graph, calibration: Dataset | None = None, **options: Any) -> testing.Result:
    made = context(graph, calibration)
    return testing.run(RestructureBottlenecks.model_validate(options), graph, made)


def shapes(graph: gs.Graph) -> list[tuple[int, int, int]]:
    """Channels that each block reads, hides and gives."""
    return [(block.inputs, block.hidden, block.width) for block in bottlenecks.find(graph)]


def difference(before: gs.Graph, after: gs.Graph) -> float:
    inputs = verify.probe_inputs(before, 0)
    return verify.largest_difference(verify.outputs(before, inputs), verify.outputs(after, inputs))


# --- Which blocks there are


@pytest.mark.parametrize(
    ("name", "blocks", "shortcuts"),
    [
        ("mobilenet_v2", 17, 10),
        ("mobilenet_v3_large", 15, 10),
        ("mobilenet_v3_small", 11, 6),
        ("efficientnet_b0", 16, 9),
        ("efficientnet_lite0", 16, 9),
        ("mnasnet", 17, 10),
        ("proxylessnas", 20, 13),
    ],
)
@pytest.mark.parametrize("folded", [False, True])
def test_blocks_of_reference_networks(name: str, blocks: int, shortcuts: int, folded: bool) -> None:
    graph = graphs.from_model(networks.build(name, input_size=64, seed=None if not folded else 0))
    found = bottlenecks.find(simplified(graph) if folded else graph)
    assert (len(found), sum(block.add is not None for block in found)) == (blocks, shortcuts)
    assert len({block.title for block in found}) == blocks


def test_blocks_of_mobilenet_v2_are_those_of_its_table() -> None:
    found = bottlenecks.find(graphs.from_model(networks.build("mobilenet_v2", input_size=64, seed=None)))
    stages = {block.stage: (block.width, len([each for each in found if each.stage == block.stage])) for block in found}
    assert list(stages.values()) == [(16, 1), (24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1)]
    assert [block.hidden // block.inputs for block in found] == [1, *[6] * 16]
    assert found[2].title == "stage2.2 (features.3.conv)"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("mobilenet_v1", "is activated"), ("shufflenet_v2", "activated"), ("ghostnet", "is not activated|Concat")],
)
def test_what_is_no_inverted_residual_says_why(name: str, reason: str) -> None:
    left: list[str] = []
    graph = graphs.from_model(networks.build(name, input_size=64, seed=None))
    assert not bottlenecks.find(graph, lambda node, reason: left.append(reason))
    convolutions = [node for node in graph.nodes if node.op == "Conv"]
    assert len(left) == sum(node.attrs["group"] == node.inputs[0].shape[1] > 1 for node in convolutions)
    assert all(re.search(reason, each) for each in left), set(left)
    with pytest.raises(NncError, match="no inverted residual block is called"):
        restructured(graph, blocks={"*": {"drop": True}})


def test_swish_and_hard_swish_written_out_are_activations() -> None:
    for activation in (Network.silu, Network.hard_swish):
        graph = network(activation=activation, excite=True)
        assert shapes(graph) == [(8, 8, 8), (8, 24, 12), (12, 36, 12), (12, 36, 12)]


# --- Wider blocks


@pytest.mark.parametrize(
    ("name", "folded"),
    [("mobilenet_v2", True), ("mobilenet_v3_large", False), ("efficientnet_b0", True), ("mnasnet", False)],
)
def test_wider_reference_networks_compute_the_same(name: str, folded: bool) -> None:
    graph = graphs.from_model(networks.build(name, input_size=32, width=0.25, classes=10))
    graph = simplified(graph) if folded else graph
    widest = {block.stage: block.width + 5 for block in bottlenecks.find(graph)}
    blocks = {f"{stage}.*": {"expansion": 8.0, "width": width} for stage, width in widest.items()}
    result = restructured(graph, blocks=blocks)
    assert result.changed == len(bottlenecks.find(graph))
    found = bottlenecks.find(result.graph)
    assert {block.stage: block.width for block in found} == widest
    assert all(block.hidden == 8 * block.inputs for block in found if block.expand)
    assert difference(graph, result.graph) < 1e-5
    assert not restructured(result.graph, blocks=blocks).changed


@given(
    expansion=st.integers(2, 4), wider=st.floats(4, 9), width=st.integers(12, 30), kernel=st.sampled_from([3, 5]),
    stride=st.integers(1, 2), excite=st.booleans(), folded=st.booleans(),
)  # fmt: skip
@settings(max_examples=8, deadline=None)
def test_any_block_made_wider_computes_the_same(
    expansion: int, wider: float, width: int, kernel: int, stride: int, excite: bool, folded: bool
) -> None:
    graph = network(expansion, excite, Network.hard_swish, stride, kernel, folded)
    result = restructured(graph, blocks={"stage2.*": {"expansion": wider, "width": width}})
    assert shapes(result.graph)[1:] == [
        (8, round(8 * wider), width),
        *[(width, round(width * wider), width)] * 2,
    ]
    assert difference(graph, result.graph) < 1e-5


def test_training_can_tell_copies_apart() -> None:
    """Readers take unequal shares of a channel's copies, or both would get the same gradients for ever."""
    result = restructured(network(), blocks={"stage2.2": {"expansion": 6.0}})
    (project,) = (node for node in result.graph.nodes if node.name == "block.2.2.0")
    one, other = (project.inputs[1].values[:, start::2] for start in (0, 1))
    assert not np.isclose(one, other, rtol=1e-3).all(axis=0).any()
    assert (np.sign(one) == np.sign(other)).all()


# --- Narrower blocks, and fewer


#: With data, statistics of BatchNormalization are estimated anew, which moves outputs.
EVIDENCE = [(False, False), (True, False), (True, True)]


@pytest.mark.parametrize(("folded", "measured"), EVIDENCE)
def test_dead_hidden_channels_go_first(folded: bool, measured: bool, tmp_path: Path) -> None:
    dead = [1, 5, 6, 17, 20, 33]

    def kill(weights: Weights) -> None:
        for layer in ("block.2.0", "block.2.1"):
            for name in (f"{layer}.0.weight", f"{layer}.1.weight", f"{layer}.1.bias"):
                weights[name][dead] = 0
        weights["block.2.2.0.weight"][:, dead] = 0

    graph = edited(network(), kill)
    graph = simplified(graph) if folded else graph
    calibration = images(tmp_path, graph) if measured else None
    result = restructured(graph, calibration, blocks={"stage2.2": {"expansion": 2.5}}, refit=False)
    assert shapes(result.graph)[2] == (12, 30, 12)
    testing.check_outputs(graph, result.graph)


def test_dead_channels_of_a_stage_go_first() -> None:
    dead = [0, 7]

    def kill(weights: Weights) -> None:
        for name, part in (("1", "2"), ("2", "2"), ("3", "2")):
            weights[f"block.{name}.{part}.0.weight"][dead] = 0
            for role in ("weight", "bias"):
                weights[f"block.{name}.{part}.1.{role}"][dead] = 0

    graph = edited(network(), kill)
    result = restructured(graph, blocks={"stage2.*": {"width": 10}})
    assert shapes(result.graph)[1:] == [(8, 24, 10), (10, 36, 10), (10, 36, 10)]
    testing.check_outputs(graph, result.graph)


def silent(weights: Weights, block: str = "block.3") -> None:
    """Let a block add nothing to its shortcut."""
    for role in ("weight", "bias"):
        weights[f"{block}.2.1.{role}"][:] = 0


def test_a_block_that_adds_nothing_is_left_out_for_nothing() -> None:
    graph = edited(network(), silent)
    result = restructured(graph, blocks={"block.3.*": {"drop": True}})
    assert result.changed == 1
    assert shapes(result.graph) == shapes(graph)[:3]
    assert not any(node.name.startswith("block.3") for node in result.graph.nodes)
    testing.check_outputs(graph, result.graph)


@pytest.mark.parametrize(("folded", "measured"), EVIDENCE)
def test_a_budget_leaves_out_what_contributes_least(folded: bool, measured: bool, tmp_path: Path) -> None:
    for block in ("block.2", "block.3"):
        graph = edited(network(), partial(silent, block=block))
        graph = simplified(graph) if folded else graph
        calibration = images(tmp_path, graph) if measured else None
        result = restructured(graph, calibration, budget={"macs": 0.9}, methods=("drop",), refit=False)
        assert not any(node.name.startswith(block) for node in result.graph.nodes)
        assert len(shapes(result.graph)) == 3
        testing.check_outputs(graph, result.graph)


def worths(graph: gs.Graph, batch: int, count: int) -> list[float]:
    """What the last two blocks are worth on `count` samples."""
    for tensor in (*graph.inputs, *(each for node in graph.nodes for each in node.outputs)):
        tensor.shape = [batch, *tensor.shape[1:]]
    values = np.random.default_rng(0).standard_normal((count // batch, batch, 3, 16, 16), np.float32)
    blocks = bottlenecks.find(graph)
    return list(worth.without(graph, blocks[2:], blocks, {"input": values}, context(graph)).values())


def test_what_a_block_is_worth_is_the_same_in_batches_of_any_size() -> None:
    expected = worths(network(), 1, 48)
    assert min(expected) > 1e-3
    for batch in (4, 48):
        assert worths(network(), batch, 48) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "batch", "expected"),
    [
        ((5, 1, 7), 1, (5, 7)),
        ((5, 4, 7), 4, (20, 7)),
        ((5, 12, 7), 4, (20, 21)),
        ((5, 3, 7), 4, (5, 21)),
        ((5,), 4, (5, 1)),
    ],
)
def test_outputs_are_compared_by_sample(shape: tuple[int, ...], batch: int, expected: tuple[int, ...]) -> None:
    """Detectors have many rows for each image; other outputs are of a batch as a whole."""
    assert branches._by_sample(np.zeros(shape), batch).shape == expected


def test_one_sample_tells_what_a_block_is_worth() -> None:
    second, third = worths(edited(network(), silent), 1, 1)
    assert second > 1e-3
    assert third == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("alone", [True, False])
def test_outputs_whose_shape_the_data_decide_tell_nothing_of_blocks(alone: bool, tmp_path: Path) -> None:
    graph = edited(network(), silent)
    scores, found = graph.outputs[0], gs.Variable("found", np.int64, [2, "found"])
    graph.nodes.append(gs.Node("NonZero", "found", {}, [scores], [found]))
    graph.outputs = [found] if alone else [found, scores]
    options = {"budget": {"macs": 0.9}, "methods": ("drop",)}
    if alone:
        with pytest.raises(NncError, match="no output tells what blocks are worth") as raised:
            restructured(graph, images(tmp_path, graph), **options)
        assert "'drop'" in (raised.value.hint or "")
    else:
        assert len(shapes(restructured(graph, images(tmp_path, graph), **options).graph)) == 3


def test_blocks_one_behind_the_other_are_left_out() -> None:
    graph = edited(network(), lambda weights: (silent(weights), silent(weights, "block.2")))
    result = restructured(graph, blocks={"stage2.[23]": {"drop": True}})
    assert shapes(result.graph) == shapes(graph)[:2]
    testing.check_outputs(graph, result.graph)


def test_refitting_makes_up_for_a_block(tmp_path: Path) -> None:
    graph = network()
    calibration = images(tmp_path, graph, 400)
    errors = []
    for refit in (False, True):
        result = restructured(graph, calibration, blocks={"stage2.3": {"drop": True}}, refit=refit)
        errors.append(difference(graph, result.graph))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("metric", ["macs", "params", "latency"])
@pytest.mark.parametrize("measured", [False, True])
def test_budgets_are_kept(metric: str, measured: bool, tmp_path: Path) -> None:
    graph = network(expansion=6, folded=measured)
    made = context(graph, images(tmp_path, graph) if measured else None)
    pass_ = RestructureBottlenecks.model_validate({"budget": {metric: 0.75}, "round_to": 2})
    result = testing.run(pass_, graph, made)
    assert 0.6 < made.cost(result.graph, metric) / made.cost(graph, metric) <= 0.75  # type: ignore[arg-type]
    assert made.explanation.predicted is not None
    assert made.explanation.predicted["macs"] == measure(result.graph).macs


def test_a_budget_of_everything_keeps_everything() -> None:
    for graph in (network(), testing.graph("net (float[1, 2] x) => (float[1, 2] y) { y = Relu(x) }")):
        assert not testing.run(RestructureBottlenecks.model_validate({"budget": {"macs": 1.0}}), graph).changed


def test_a_pass_says_what_becomes_of_every_block() -> None:
    graph = network()
    made = context(graph)
    table = {"stage2.*": {"width": 16}, "stage2.2": {"expansion": 2.0}, "stage2.3": {"drop": True}}
    testing.run(RestructureBottlenecks.model_validate({"blocks": table}), graph, made)
    said = {name: entry["choice"] for name, entry in made.explanation.decisions.items()}
    assert said == {
        "stage1.1 (block.0)": "keep",
        "stage2.1 (block.1)": "12 -> 16 channels",
        "stage2.2 (block.2)": "expansion 3 -> 2, 12 -> 16 channels",
        "stage2.3 (block.3)": "left out",
    }
    assert made.explanation.decisions["stage2.3 (block.3)"]["macs"][1] == 0


def test_same_bytes_every_time() -> None:
    graph = network(excite=True)
    table = {"stage2.*": {"expansion": 5.0, "width": 17}, "stage1.1": {"width": 6}}
    one, other = (graphs.to_model(restructured(graph, blocks=table).graph) for _ in range(2))
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


# --- What stays


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ({"stage2.1": {"drop": True}}, "no shortcut"),
        ({"stage1.1": {"expansion": 2.0}}, "doesn't expand"),
    ],
)
def test_declines(blocks: dict[str, Any], reason: str) -> None:
    testing.check_unchanged(RestructureBottlenecks.model_validate({"blocks": blocks}), network(), reason)


def test_outputs_of_the_graph_stay() -> None:
    graph = network()
    (last,) = (node.outputs[0] for node in graph.nodes if node.name == "block.3.add")
    graph.outputs.append(last)
    for change, reason in (({"drop": True}, "an output of the graph"), ({"width": 8}, "is an output of the graph")):
        pass_ = RestructureBottlenecks.model_validate({"blocks": {"stage2.3": change}})
        testing.check_unchanged(pass_, graph, reason)
    narrower = restructured(graph, blocks={"stage2.3": {"expansion": 2.0}})
    assert shapes(narrower.graph)[3] == (12, 24, 12)


def test_what_is_read_inside_a_block_stays() -> None:
    graph = network()
    (hidden,) = (node.outputs[0] for node in graph.nodes if node.name == "block.3.0.2")
    graph.outputs.append(hidden)
    pass_ = RestructureBottlenecks.model_validate({"blocks": {"stage2.3": {"expansion": 2.0}}})
    testing.check_unchanged(pass_, graph, "is an output of the graph")


def test_excluded_blocks_stay() -> None:
    graph = network()
    result = restructured(graph, budget={"params": 0.9}, round_to=1, methods=("expansion",), exclude=("stage2.[13]",))
    assert [hidden for _, hidden, _ in shapes(result.graph)][1::2] == [24, 36]
    assert result.skipped["block.3.1.0"] == "excluded by the recipe"


COPIED = """
net (float[1, 3, 6, 6] x) => (float y)
<float[8, 3, 3, 3] V, float[6, 8, 1, 1] W, float[6, 10, 1, 1] U, float[6, 4, 1, 1] G, float[6, 128] F,
 int8[6, 8, 1, 1] Q, float s = {0.1}>
{ c = Conv(x, V) %s }
"""


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("k = Constant<value_ints: ints = [0, 0, 1, 1, 0, 0, 1, 1]>() p = Pad(c, k) y = Conv(p, W)", ""),
        ("k = Constant<value_ints: ints = [0, 2, 0, 0, 0, 0, 0, 0]>() p = Pad(c, k) y = Conv(p, U)", "Pad 'p' is told"),
        ("a, b = Split<axis = 1>(c) y = Conv(a, G)", "Split 'a' is told how many channels"),
        ("y = Conv<group = 2>(c, G)", "Conv 'y' is told how many channels"),
        ("f = Flatten(c) y = Gemm<transB = 1>(f, F)", "'f' holds a channel in several places"),
        ("d = DequantizeLinear(Q, s) y = Conv(c, d)", "the weights of Conv 'y' are quantized"),
    ],
)
def test_channels_are_copied_or_say_why_not(rest: str, reason: str) -> None:
    graph = testing.graph(COPIED % rest, Q=np.ones((6, 8, 1, 1), np.int8))
    before = graphs.copy(graph)
    traced = channels.trace(graph)
    ids = [int(one) for group in traced.groups for one in group.ids]
    if reason:
        assert re.search(reason, channels.refusal(graph, traced, ids[:1]))
        with pytest.raises(ValueError, match=reason):
            channels.duplicate(graph, traced, {ids[0]: 2})
    else:
        channels.duplicate(graph, traced, {ids[0]: 2, ids[3]: 4})
        assert graph.nodes[0].outputs[0].shape[1] == 12
        testing.check_outputs(before, graph)


# --- Wrong parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either 'blocks' or 'budget'"),
        ({"blocks": {"*": {"drop": True}}, "budget": {"macs": 0.5}}, "give either 'blocks' or 'budget'"),
        ({"blocks": {}}, "at least 1"),
        ({"blocks": {"*": {}}}, "give 'expansion', 'width' or both, or 'drop = true' alone"),
        ({"blocks": {"*": {"drop": True, "width": 8}}}, "give 'expansion', 'width' or both, or 'drop = true' alone"),
        ({"blocks": {"*": {"expansion": 0.0}}}, "greater than 0"),
        ({"budget": {"macs": 0.5}, "methods": ("prune",)}, "'expansion', 'width' or 'drop'"),
    ],
)
def test_parameters_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RestructureBottlenecks.model_validate(options)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"blocks": {"stage3.1": {"drop": True}}}, "no inverted residual block is called 'stage3.1'", "did you mean"),
        ({"blocks": {"x*": {"drop": True}}}, "no inverted residual block is called 'x*'", "stage1.1 to stage2.3"),
        (
            {"blocks": {"stage2.1": {"width": 8}, "stage2.2": {"width": 16}}},
            "the blocks of stage2 are one width, not 8 and 16",
            'write "stage2.*" = { width = 16 }',
        ),
        ({"budget": {"macs": 0.01}}, "the budget of 0.01 can't be reached", "raise the budget"),
        ({"budget": {"macs": 0.5}, "include": ("nowhere",)}, "the budget of 0.5 can't be reached: 1 is left", "raise"),
    ],
)
def test_what_the_network_has_not_is_one_line(options: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(NncError) as raised:
        restructured(network(), **options)
    assert message in raised.value.message
    assert hint in (raised.value.hint or "")


# --- A trained network


@pytest.mark.data
def test_quantized_blocks_stay(data: Path) -> None:
    graph = graphs.load(data / "models/imagenet_mobilenet_v2_1.0_224_qdq.onnx")
    result = restructured(graph, budget={"macs": 1.0})
    assert len(result.skipped) == 17
    assert set(result.skipped.values()) == {"no inverted residual: its weights are quantized or computed"}


@pytest.mark.data
def test_pretrained_mobilenet_v2(data: Path) -> None:
    graph = graphs.load(data / "models/imagenet_mobilenet_v2_1.0_224.onnx")
    assert len(bottlenecks.find(graph)) == 17
    result = restructured(graph, blocks={"stage[2-6].*": {"expansion": 7.0}, "stage6.*": {"width": 176}})
    assert result.changed == 16
    assert difference(graph, result.graph) < 1e-5
