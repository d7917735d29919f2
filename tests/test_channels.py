"""Removing channels is the same as zeroing them, in every network."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from nnc import cli, measure, networks, pipeline, target, testing, verify
from nnc import graph as graphs
from nnc.channels import Channels, remove, trace
from nnc.passes.simplify_shapes import SimplifyShapes
from nnc.session import Session


def draw(channels: Channels, rng: np.random.Generator) -> list[int]:
    """Some channels of every group, not all of any."""
    return [
        one for group in channels.groups
        for one in rng.permutation(group.ids)[: rng.integers(0, len(group.ids))].tolist()
    ]  # fmt: skip


def pruned(graph: gs.Graph, channels: Channels, ids: Collection[int]) -> gs.Graph:
    copy = graphs.copy(graph)
    remove(copy, channels, ids)
    return copy


def check(graph: gs.Graph, rounds: int = 3, seed: int = 0, tolerance: float = 1e-4) -> Channels:
    """Assert that channels removed at random, and all but one of every group, are the same as channels that are 0."""
    channels, rng = trace(graph), np.random.default_rng(seed)
    inputs = verify.probe_inputs(graph, seed)
    most = [one for group in channels.groups for one in group.ids[1:].tolist()]
    for ids in (most, *(draw(channels, rng) for _ in range(rounds))):
        after = pruned(graph, channels, ids)
        verify.check_invariants(after)
        expected = Session(testing.zeroed(graph, channels, ids)).run(inputs)
        found = Session(after).run(inputs)
        differences = {name: verify.difference(expected[name], found[name]) for name in expected}
        assert max(differences.values()) <= tolerance, differences
    return channels


def simplified(graph: gs.Graph) -> gs.Graph:
    """The graph without the shapes that it computes itself."""
    SimplifyShapes().run(graph, pipeline.Context(target.load("x86"), imported=graph))
    return graph


def layers(graph: gs.Graph) -> list[gs.Node]:
    return [node for node in graph.nodes if node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul")]


# Random networks


@dataclass
class Net:
    """A network under construction; `x` is the last image and `shape` its shape."""

    seed: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.shape = (int(self.rng.integers(1, 3)), int(self.rng.integers(1, 4)), 6, 6)
        self.input = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, self.shape)
        self.x = "input"
        self.images = [(self.x, self.shape)]

    @property
    def channels(self) -> int:
        return self.shape[1]

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def random(self, *shape: int) -> str:
        return self.constant(self.rng.uniform(-1, 1, shape))

    def add(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        names = [f"{op.lower()}{len(self.nodes)}.{index}" for index in range(outputs)]
        self.nodes.append(onnx.helper.make_node(op, inputs, names, name=f"{op}{len(self.nodes)}", **attrs))
        return names[0] if outputs == 1 else names

    def conv(self, x: str, ins: int, outs: int, kernel: int = 1, group: int = 1) -> str:
        bias = [self.random(outs)] if self.rng.integers(2) else []
        W = self.random(outs, ins // group, kernel, kernel)
        return self.add("Conv", x, W, *bias, group=group, pads=[kernel // 2] * 4)

    def flow(self, x: str, *shape: int) -> None:
        """Go on with an image."""
        self.x, self.shape = x, shape  # type: ignore[assignment]
        self.images.append((x, shape))  # type: ignore[arg-type]

    def same(self, x: str) -> None:
        self.flow(x, *self.shape)

    def widen(self, x: str, channels: int) -> None:
        self.flow(x, self.shape[0], channels, *self.shape[2:])

    def graph(self) -> gs.Graph:
        """The graph with a head that scores 5 classes."""
        n, channels, rows, columns = self.shape
        if self.rng.integers(2):
            features = self.add("Flatten", self.add("GlobalAveragePool", self.x)), channels
        else:
            features = self.add("Flatten", self.x), channels * rows * columns
        y = self.add("Gemm", features[0], self.random(5, features[1]), self.random(5), transB=1)
        info = onnx.helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, (n, 5))
        proto = onnx.helper.make_graph(self.nodes, "net", [self.input], [info], self.constants)
        model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
        return graphs.from_model(model)


def conv(net: Net) -> None:
    outs = int(net.rng.integers(1, 13))
    net.widen(net.conv(net.x, net.channels, outs, int(net.rng.choice([1, 3]))), outs)


def grouped(net: Net) -> None:
    groups = int(net.rng.choice([each for each in range(1, net.channels + 1) if net.channels % each == 0]))
    outs = groups * int(net.rng.integers(1, 4))
    net.widen(net.conv(net.x, net.channels, outs, 3, groups), outs)


def depthwise(net: Net) -> None:
    outs = net.channels * int(net.rng.integers(1, 3))
    net.widen(net.conv(net.x, net.channels, outs, 3, net.channels), outs)


def transposed(net: Net) -> None:
    groups = int(net.rng.choice([each for each in range(1, net.channels + 1) if net.channels % each == 0]))
    each = int(net.rng.integers(1, 5))
    W = net.random(net.channels, each, 3, 3)
    y = net.add("ConvTranspose", net.x, W, net.random(groups * each), group=groups, pads=[1] * 4)
    net.widen(y, groups * each)


def batch_norm(net: Net) -> None:
    vectors = [net.random(net.channels) for _ in range(3)]
    net.same(net.add("BatchNormalization", net.x, *vectors, net.constant(net.rng.uniform(0.5, 2, net.channels))))


def activation(net: Net) -> None:
    net.same(net.add(str(net.rng.choice(["Relu", "Sigmoid", "HardSwish", "Exp", "Softplus", "Abs"])), net.x))


def slope(net: Net) -> None:
    net.same(net.add("PRelu", net.x, net.random(net.channels, 1, 1)))


def gate(net: Net) -> None:
    squeezed = net.add("Relu", net.conv(net.add("GlobalAveragePool", net.x), net.channels, 3))
    net.same(net.add("Mul", net.x, net.add("Sigmoid", net.conv(squeezed, 3, net.channels))))


def residual(net: Net) -> None:
    net.same(net.add("Add", net.x, net.conv(net.x, net.channels, net.channels, 3)))


def join(net: Net) -> None:
    alike = [each for each in net.images if each[1][2:] == net.shape[2:]]
    x, shape = alike[int(net.rng.integers(len(alike)))]
    if shape[1] + net.channels <= 40:
        net.widen(net.add("Concat", x, net.x, axis=1), shape[1] + net.channels)


def meet(net: Net) -> None:
    alike = [x for x, shape in net.images if shape == net.shape]
    op = str(net.rng.choice(["Add", "Mul", "Max", "Sub"]))
    net.same(net.add(op, alike[int(net.rng.integers(len(alike)))], net.x))


def split(net: Net) -> None:
    channels = net.channels
    if channels > 1:
        first = int(net.rng.integers(1, channels))
        parts = net.add("Split", net.x, net.integers(first, channels - first), outputs=2, axis=1)
        net.widen(parts[0], first)
        net.widen(parts[1], channels - first)


def halves(net: Net) -> None:
    if net.channels > 1:
        one, two = net.add("Split", net.x, outputs=2, axis=1, num_outputs=2)
        net.same(net.add("Concat", two, one, axis=1))


def strided(net: Net) -> None:
    kept = range(net.channels)[:: int(net.rng.choice([-1, 1, 2, -2]))]
    end = kept.stop if kept.stop >= 0 else -100
    bounds = [net.integers(value) for value in (kept.start, end, 1, kept.step)]
    net.widen(net.add("Slice", net.x, *bounds), len(kept))


def gather(net: Net) -> None:
    indices = net.rng.integers(-net.channels, net.channels, int(net.rng.integers(1, 9)))
    net.widen(net.add("Gather", net.x, net.integers(*indices), axis=1), len(indices))


def pad(net: Net) -> None:
    mode = str(net.rng.choice(["constant", "edge", "reflect"]))
    most = net.channels if mode == "reflect" else 4
    before, after = (int(each) for each in net.rng.integers(0, most, 2))
    pads = net.integers(0, before, 0, 0, 0, after, 0, 0)
    net.widen(net.add("Pad", net.x, pads, mode=mode), before + net.channels + after)


def pad_axes(net: Net) -> None:
    pads = net.integers(1, 2, 0, 1)
    y = net.add("Pad", net.x, pads, net.constant(0.5), net.integers(1, 3), mode="constant")
    net.widen(net.add("Slice", y, net.integers(0), net.integers(6), net.integers(3)), net.channels + 1)


def tile(net: Net) -> None:
    if net.channels <= 12:
        net.widen(net.add("Tile", net.x, net.integers(1, 2, 1, 1)), 2 * net.channels)


def shuffle(net: Net) -> None:
    n, channels, *size = net.shape
    for groups in (4, 3, 2):
        if channels % groups == 0:
            y = net.add("Reshape", net.x, net.integers(n, groups, channels // groups, *size))
            y = net.add("Transpose", y, perm=[0, 2, 1, 3, 4])
            net.same(net.add("Reshape", y, net.integers(0, -1, *size)))
            return


def grouped_shuffle(net: Net) -> None:
    """A unit of the first ShuffleNet."""
    n, _, *size = net.shape
    y = net.conv(net.conv(net.x, net.channels, 12), 12, 12, group=3)
    y = net.add("Reshape", net.add("Relu", y), net.integers(n, 3, 4, *size))
    y = net.add("Reshape", net.add("Transpose", y, perm=[0, 2, 1, 3, 4]), net.integers(n, 12, *size))
    net.widen(net.conv(net.conv(y, 12, 12, 3, 12), 12, 18, group=3), 18)


def half_shuffle(net: Net) -> None:
    """A shuffle that is read in the middle, which stays as it is."""
    n, channels, *size = net.shape
    if channels % 2 == 0:
        y = net.add("Reshape", net.x, net.integers(n, 2, channels // 2, *size))
        y = net.add("Transpose", y, perm=[0, 2, 1, 3, 4])
        y = net.add("Add", y, net.add("Relu", y))
        net.same(net.add("Reshape", y, net.integers(*net.shape)))


def depth_to_space(net: Net) -> None:
    channels = net.channels
    mode = str(net.rng.choice(["DCR", "CRD"]))
    y = net.add("DepthToSpace", net.conv(net.x, channels, 12), blocksize=2, mode=mode)
    y = net.add("AveragePool", net.add("Relu", y), kernel_shape=[2, 2], strides=[2, 2])
    net.widen(y, 3)


def space_to_depth(net: Net) -> None:
    n, channels, rows, columns = net.shape
    y = net.add("SpaceToDepth", net.x, blocksize=2)
    resized = net.add("Resize", y, "", "", net.integers(n, 4 * channels, rows, columns), mode="nearest")
    net.widen(net.conv(resized, 4 * channels, 5), 5)


def pixel_shuffle(net: Net) -> None:
    """DepthToSpace as torch exports it."""
    n, channels, rows, columns = net.shape
    y = net.add("Reshape", net.conv(net.x, channels, 12), net.integers(n, 3, 2, 2, rows, columns))
    y = net.add("Reshape", net.add("Transpose", y, perm=[0, 1, 4, 2, 5, 3]), net.integers(n, 3, 2 * rows, 2 * columns))
    net.widen(net.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), 3)


def channels_last(net: Net) -> None:
    y = net.add("Mul", net.add("Transpose", net.x, perm=[0, 2, 3, 1]), net.random(net.channels))
    outs = int(net.rng.integers(2, 9))
    y = net.add("Add", net.add("MatMul", y, net.random(net.channels, outs)), net.random(outs))
    net.widen(net.add("Transpose", y, perm=[0, 3, 1, 2]), outs)


def dense_left(net: Net) -> None:
    """A 1x1 convolution as the product of a matrix and an image."""
    n, channels, rows, columns = net.shape
    y = net.add("Reshape", net.x, net.integers(n, channels, rows * columns))
    y = net.add("MatMul", net.random(7, channels), y)
    net.widen(net.add("Reshape", y, net.integers(n, 7, rows, columns)), 7)


def token_mix(net: Net) -> None:
    n, channels, rows, columns = net.shape
    y = net.add("Reshape", net.x, net.integers(n, channels, rows * columns))
    y = net.add("MatMul", y, net.random(rows * columns, rows * columns))
    net.same(net.add("Reshape", y, net.integers(*net.shape)))


def instance_norm(net: Net) -> None:
    net.same(net.add("InstanceNormalization", net.x, net.random(net.channels), net.random(net.channels)))


def group_norm(net: Net) -> None:
    """GroupNorm as torch exports it."""
    groups = next(each for each in (3, 2, 1) if net.channels % each == 0)
    y = net.add("Reshape", net.x, net.integers(0, groups, -1))
    y = net.add("InstanceNormalization", y, net.random(groups), net.random(groups))
    y = net.add("Reshape", y, net.integers(*net.shape))
    y = net.add("Mul", y, net.random(net.channels, 1, 1))
    net.same(net.add("Add", y, net.random(1, net.channels, 1, 1)))


def spatial_gate(net: Net) -> None:
    op = str(net.rng.choice(["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"]))
    energy = net.add(op, net.x, net.integers(1), keepdims=1)
    net.same(net.add("Mul", net.x, net.add("Sigmoid", energy)))


def mean_gate(net: Net) -> None:
    mean = net.add("ReduceMean", net.x, net.integers(2, 3), keepdims=0)
    net.same(net.add("Mul", net.x, net.add("Unsqueeze", mean, net.integers(2, -1))))


def squeeze(net: Net) -> None:
    """An axis of 1 that is squeezed without being named."""
    if net.shape[0] > 1 and net.channels > 1:
        squeezed = net.add("Squeeze", net.add("GlobalMaxPool", net.x))
        weight = net.random(net.channels, net.channels)
        y = net.add("Sigmoid", net.add("Gemm", squeezed, weight, net.random(net.channels)))
        net.same(net.add("Mul", net.x, net.add("Reshape", y, net.integers(*net.shape[:2], 1, 1))))


def mixing(net: Net) -> None:
    op = str(net.rng.choice(["Softmax", "LRN", "ReduceMax", "ReduceMean"]))
    if op.startswith("Reduce"):
        net.same(net.add("Sub", net.x, net.add(op, net.x, net.integers(1), keepdims=1)))
    else:
        net.same(net.add(op, net.x, **({"axis": 1} if op == "Softmax" else {"size": 3})))


def where(net: Net) -> None:
    low = net.add("Less", net.x, net.random(net.channels, 1, 1))
    net.same(net.add("Where", low, net.random(net.channels, 1, 1), net.x))


def clip(net: Net) -> None:
    net.same(net.add("Clip", net.x, net.constant(-1.0), net.constant(2.0)))


def expand(net: Net) -> None:
    _, channels, rows, _ = net.shape
    y = net.add("Expand", net.add("GlobalAveragePool", net.x), net.integers(channels, rows, 1))
    net.same(net.add("Add", net.x, y))  # a difference, averaged over its places, would leave rounding errors alone


def scaled_map(net: Net) -> None:
    """A constant that has values for every place of every channel."""
    net.same(net.add("Mul", net.x, net.random(*net.shape[1:])))


def constant_channels(net: Net) -> None:
    added = net.random(net.shape[0], 2, *net.shape[2:])
    net.widen(net.add("Concat", net.x, added, axis=1), net.channels + 2)


def constant_rows(net: Net) -> None:
    """Constants joined along another axis than that of the channels, such as a class token."""
    n, channels, _, columns = net.shape
    y = net.add("Concat", net.random(n, channels, 1, columns), net.x, axis=2)
    y = net.add("Slice", net.add("Relu", y), net.integers(1), net.integers(99), net.integers(2))
    net.same(y)


def quantized_weights(net: Net) -> None:
    integers = net.constant(net.rng.integers(-127, 128, (6, net.channels, 1, 1)), np.int8)
    scale, zero = net.constant(net.rng.uniform(0.001, 0.02, 6)), net.constant(np.zeros(6), np.int8)
    W = net.add("DequantizeLinear", integers, scale, zero, axis=0)
    net.widen(net.add("Conv", net.x, W), 6)


def quantized_matrix(net: Net) -> None:
    """A fully connected layer as torch exports it quantized: its weights are turned behind DequantizeLinear."""
    integers = net.constant(net.rng.integers(-127, 128, (6, net.channels)), np.int8)
    scale, zero = net.constant(net.rng.uniform(0.001, 0.02, 6)), net.constant(np.zeros(6), np.int8)
    W = net.add("Transpose", net.add("DequantizeLinear", integers, scale, zero, axis=0), perm=[1, 0])
    y = net.add("MatMul", net.add("Transpose", net.x, perm=[0, 2, 3, 1]), W)
    net.widen(net.add("Transpose", y, perm=[0, 3, 1, 2]), 6)


def shared_weights(net: Net) -> None:
    """Two layers with one constant, as merge-duplicates leaves them."""
    W, channels = net.random(net.channels, net.channels, 1, 1), net.channels
    y = net.add("Conv", net.add("Relu", net.conv(net.x, channels, channels)), W)
    net.same(net.add("Conv", net.add("Relu", y), W))


def shared_dequantized(net: Net) -> None:
    integers = net.constant(net.rng.integers(-127, 128, (net.channels, net.channels, 1, 1)), np.int8)
    W = net.add("DequantizeLinear", integers, net.constant(0.01))
    y = net.add("Conv", net.conv(net.x, net.channels, net.channels), W)
    net.same(net.add("Conv", net.add("Relu", y), W))


def picture(net: Net) -> None:
    """One channel that all others are scaled with."""
    net.same(net.add("Mul", net.x, net.add("Sigmoid", net.conv(net.x, net.channels, 1))))


def one_channel(net: Net) -> None:
    picked = net.add("Gather", net.x, net.constant(0, np.int64), axis=1)
    net.same(net.add("Add", net.x, net.add("Unsqueeze", picked, net.integers(1))))


def constant_picture(net: Net) -> None:
    net.same(net.add("Mul", net.x, net.random(*net.shape[2:])))


def pool(net: Net) -> None:
    op = str(net.rng.choice(["MaxPool", "AveragePool"]))
    net.same(net.add(op, net.x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))


PARTS: list[Callable[[Net], None]] = [
    conv, conv, grouped, depthwise, transposed, batch_norm, activation, slope, gate, residual, join, meet, split,
    halves, strided, gather, pad, pad_axes, tile, shuffle, grouped_shuffle, half_shuffle, depth_to_space,
    space_to_depth, pixel_shuffle, channels_last, dense_left, token_mix, instance_norm, group_norm, spatial_gate,
    mean_gate, squeeze, mixing, where, clip, expand, scaled_map, constant_channels, constant_rows, quantized_weights,
    quantized_matrix, shared_weights, shared_dequantized, picture, one_channel, constant_picture, pool,
]  # fmt: skip


def build(parts: Iterable[Callable[[Net], None]], seed: int) -> gs.Graph:
    net = Net(seed)
    for part in parts:
        part(net)
    return net.graph()


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from(PARTS), min_size=2, max_size=9), seed=st.integers(0, 2**16))
def test_random_networks(parts: list[Callable[[Net], None]], seed: int) -> None:
    check(build([conv, *parts], seed), rounds=2, seed=seed)


# Reference networks and real ones


def coverage(graph: gs.Graph) -> dict[str, str]:
    """Why layers can't lose channels; the last one writes the output. Asserts that all others are in a group."""
    channels = check(graph, rounds=1)
    produced = {use.node.name for group in channels.groups for use in group.producers}
    produced |= {use.node.name for group in channels.groups for use in group.others if use.input == 1}
    for node in layers(graph):
        assert (node.name in channels.fixed) != (node.name in produced and channels.written(node).all())
    return channels.fixed


FAMILIES = (
    "alexnet", "resnet18", "resnet50", "resnext50_32x4d", "resnet56", "mobilenet_v1", "mobilenet_v2",
    "mobilenet_v3_small", "mnasnet", "ghostnet", "densenet121", "squeezenet1_1", "googlenet", "shufflenet_v1",
    "shufflenet_v2", "efficientnet_b0", "efficientnet_v2_b0", "regnet_y_400mf",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_reference_networks(name: str) -> None:
    """Every layer may lose channels but the one that writes the output."""
    side = 32 if name == "resnet56" else 64
    graph = simplified(graphs.from_model(networks.build(name, input_size=side, width=0.25)))
    fixed = coverage(graph)
    assert list(fixed.values()) == ["'logits' is an output of the graph"]
    assert list(fixed) == [layers(graph)[-1].name]


@pytest.mark.data
@pytest.mark.parametrize("name", [
    "cifar10_distiller_resnet20", "cifar10_distiller_resnet20_chpruned", "cifar10_mlperf_resnet8", "cifar10_resnet20",
    "cifar10_resnet44", "cifar10_resnet56", "imagenet_mobilenet_v1_0.25_128", "imagenet_mobilenet_v1_0.75_192",
    "imagenet_mobilenet_v2_1.0_224", "imagenet_squeezenet1.0_deepcompression",
])  # fmt: skip
def test_real_networks(data: Path, name: str) -> None:
    graph = graphs.load(data / "models" / f"{name}.onnx")
    assert list(coverage(graph)) == [layers(graph)[-1].name]


@pytest.mark.data
def test_quantized_network(data: Path) -> None:
    """Where the sums are rounded to integers, the order of their terms tells."""
    graph = graphs.load(data / "models" / "imagenet_mobilenet_v2_1.0_224_qdq.onnx")
    channels = check(graph, rounds=1, tolerance=verify.tolerance(graph))
    assert [node.name for node in layers(graph) if not channels.written(node).all()] == [layers(graph)[-1].name]


def test_groups_of_a_residual_network_with_padded_shortcuts() -> None:
    """The channels of the first stage run through all of it; each later stage has further ones of its own."""
    graph = graphs.from_model(networks.build("resnet56"))
    groups = {group.name: group for group in trace(graph).groups}
    shared = {name: len(group.ids) for name, group in groups.items() if len(group.producers) > 1}
    assert shared == {"conv1": 16, "layer2.0.conv2": 16, "layer3.0.conv2": 32}
    assert len(groups["conv1"].producers) == 1 + 3 * 9
    assert len(groups["layer2.0.conv2"].producers) == 2 * 9
    inner = groups["layer1.0.conv1"]
    assert [use.node.name for use in inner.producers] == ["layer1.0.conv1"]
    assert [(use.node.name, use.input, use.axis) for use in inner.consumers] == [("layer1.0.conv2", 1, 1)]
    assert [(use.node.name, use.input, use.axis) for use in inner.others] == [
        ("layer1.0.bn1", index, 0) for index in (1, 2, 3, 4)
    ]


# What the channels of single operators are


CONV = """
net (float[2, 3, 8, 8] x) => (float[2, 5] y)
<float[8, 3, 3, 3] W, float[8] B, float[5, %d] V%s>
{
    c = Conv<pads = [1, 1, 1, 1]>(x, W, B)
    %s
    flat = Flatten(t)
    y = Gemm<transB = 1>(flat, V)
}
"""


def between(body: str, features: int, constants: str = "", opset: int = 18, **values: Any) -> gs.Graph:
    """A convolution of 8 channels `c`, a body that computes `t` from it, and a fully connected layer."""
    return testing.graph(CONV % (features, constants, body), opset=opset, **values)


UNITS: list[tuple[str, int, str, dict[str, Any], list[int]]] = [
    ("t = Relu(c)", 512, "", {}, [8]),
    ("t = GlobalAveragePool(c)", 8, "", {}, [8]),
    ("g = GlobalAveragePool(c) t = Squeeze(g)", 8, "", {}, [8]),
    ("t = ReduceMean<keepdims = 0>(c, a)", 8, ", int64[2] a", {"a": [2, 3]}, [8]),
    ("s = Add(c, f) t = GlobalAveragePool(s)", 8, ", float[2, 8, 8, 8] f", {}, [8]),
    ("t = Conv<group = 8>(c, D)", 8 * 64, ", float[8, 1, 1, 1] D", {}, [8]),
    ("t = Conv<group = 8>(c, D)", 16 * 64, ", float[16, 1, 1, 1] D", {}, [8]),
    ("t = Conv<group = 4>(c, D)", 8 * 64, ", float[8, 2, 1, 1] D", {}, [4]),  # whole groups
    ("t = Conv<group = 2>(c, D)", 6 * 64, ", float[6, 4, 1, 1] D", {}, [4, 3]),  # a place in each group
    ("t = ConvTranspose<group = 8>(c, D)", 16 * 64, ", float[8, 2, 1, 1] D", {}, [8]),
    ("t = ConvTranspose<group = 2>(c, D)", 6 * 64, ", float[8, 3, 1, 1] D", {}, [4, 3]),
    ("t = ConvTranspose(c, D)", 6 * 64, ", float[8, 6, 1, 1] D", {}, [8, 6]),
    ("t = DepthToSpace<blocksize = 2>(c)", 512, "", {}, [2]),
    ("t = SpaceToDepth<blocksize = 2>(c)", 512, "", {}, [8]),
    ("t = Tile(c, r)", 1024, ", int64[4] r", {"r": [1, 2, 1, 1]}, [8]),
    ("t = Pad(c, p)", 11 * 64, ", int64[8] p", {"p": [0, 1, 0, 0, 0, 2, 0, 0]}, [8, 3]),
    ('t = Pad<mode = "reflect">(c, p)', 11 * 64, ", int64[8] p", {"p": [0, 1, 0, 0, 0, 2, 0, 0]}, [5, 3]),
    ('t = Pad<mode = "edge">(c, p)', 12 * 64, ", int64[8] p", {"p": [0, 1, 0, 0, 0, 3, 0, 0]}, [1, 6, 1]),
    ("g = Conv(c, D) f = ReduceMean<keepdims = 0>(g, a) h = Gemm(f, E) t = Relu(h)", 6,
     ", float[1, 8, 1, 1] D, int64[2] a, float[1, 6] E", {"a": [2, 3]}, [8, 6]),  # one feature
    ("t = Slice(c, a, b, one, two)", 256, ", int64[1] a, int64[1] b, int64[1] one, int64[1] two",
     {"a": [1], "b": [99], "one": [1], "two": [2]}, [4, 4]),
    ("t = Slice(c, a, b, one, back)", 64, ", int64[1] a, int64[1] b, int64[1] one, int64[1] back",
     {"a": [-99], "b": [-100], "one": [1], "back": [-1]}, [7]),  # the first channel
    ("p, q, r, s = Split<axis = 1, num_outputs = 4>(c) t = Concat<axis = 2>(p, q, r, s, k)", 33 * 16,
     ", float[2, 2, 1, 8] k", {}, [2]),
    ("p, q = Split<axis = 1, num_outputs = 2>(c) t = Add(p, q)", 256, "", {}, [4]),
    ("g = Conv(c, D) t = Mul(c, g)", 512, ", float[8, 8, 1, 1] D", {}, [8]),
    ("g = Conv(c, D) t = Mul(c, g)", 512, ", float[1, 8, 1, 1] D", {}, [8]),  # one channel for all
    ("g = Conv(c, D) t = Concat<axis = 1>(c, g)", 13 * 64, ", float[5, 8, 1, 1] D", {}, [8, 5]),
    ("g = Reshape(c, s) h = InstanceNormalization(g, i, j) t = Reshape(h, s2)", 512,
     ", int64[3] s, int64[4] s2, float[4] i, float[4] j", {"s": [0, 4, -1], "s2": [2, 8, 8, 8]}, [4]),
    ("p = Concat<axis = 1>(x, x, x, x) q = Conv<group = 6>(p, D) t = Concat<axis = 1>(c, q)", 20 * 64,
     ", float[12, 2, 1, 1] D", {}, [8, 2]),  # groups that read what stays
    ("g = Conv(c, D) e = Expand(g, s) t = Mul(c, e)", 512, ", float[1, 8, 1, 1] D, int64[4] s", {"s": [2, 8, 1, 1]},
     [8]),
    ("t = Resize<mode = \"nearest\">(c, n, n, s)", 512, ", float[0] n, int64[4] s", {"n": [], "s": [2, 8, 4, 16]}, [8]),
    ("t = GridSample(c, u)", 8 * 12, ", float[2, 3, 4, 2] u", {}, [8]),
    ("t = RoiAlign<output_height = 2, output_width = 3>(c, u, i)", 48, ", float[2, 4] u, int64[2] i", {"i": [1, 0]},
     [8]),
    ("n = Transpose<perm = [0, 2, 3, 1]>(c) t = MatMul(n, D)", 6 * 64, ", float[8, 6] D", {}, [8, 6]),
    ("g = Reshape(c, s) h = Transpose<perm = [0, 2, 1, 3, 4]>(g) t = Reshape(h, s2)", 512,
     ", int64[5] s, int64[4] s2", {"s": [2, 2, 4, 8, 8], "s2": [2, 8, 8, 8]}, [8]),  # a shuffle becomes a Gather
    ("g = Reshape(c, s) h = Transpose<perm = [0, 2, 1, 3, 4]>(g) i = Reshape(h, s2) j = Relu(h) k = Reshape(j, s2) "
     "t = Add(i, k)", 512, ", int64[5] s, int64[4] s2", {"s": [2, 2, 4, 8, 8], "s2": [2, 8, 8, 8]}, [4]),
    ("d = Conv(c, D) g = Reshape(d, s) h = Relu(g) i = Reshape(h, s2) j = Reshape(i, s3) "
     "k = Transpose<perm = [0, 2, 1, 3, 4]>(j) l = Relu(k) t = Reshape(l, s2)", 640,
     ", float[10, 8, 1, 1] D, int64[5] s, int64[4] s2, int64[5] s3",
     {"s": [2, 5, 2, 8, 8], "s2": [2, 10, 8, 8], "s3": [2, 2, 5, 8, 8]}, [8]),  # no axis is in another order alone
    ("g = Reshape(c, s) h = Reshape(g, s2) t = Transpose<perm = [0, 1, 3, 2]>(h)", 512, ", int64[3] s, int64[4] s2",
     {"s": [2, 8, -1], "s2": [2, 8, 8, 8]}, [8]),  # rows and columns change places
    ("g = Reshape(c, s) h = Transpose<perm = [0, 2, 1]>(g) t = Reshape(h, s2)", 512, ", int64[3] s, int64[4] s2",
     {"s": [2, 8, -1], "s2": [2, 8, 8, 8]}, [8]),  # so do channels and pixels
    ("g = Reshape(c, s) t = Transpose<perm = [0, 2, 1, 3, 4]>(g)", 512, ", int64[5] s", {"s": [2, 2, 4, 8, 8]}, [4]),
]  # fmt: skip


@pytest.mark.parametrize(("body", "features", "constants", "values", "units"), UNITS)
def test_channels_that_go_together(
    body: str, features: int, constants: str, values: dict[str, Any], units: list[int]
) -> None:
    graph = between(body, features, constants, **values)
    channels = check(graph, rounds=6)
    assert [len(group.ids) for group in channels.groups] == units


def test_groups_behind_a_shuffle() -> None:
    """What the second layer reads decides which channels of the first one's groups go together."""
    graph = build([grouped_shuffle], 0)
    channels = check(graph, rounds=6)
    first, depthwise, second = [node for node in layers(graph) if node.attrs.get("group", 1) > 1]
    assert (channels.written(first).reshape(4, 3, order="F") == channels.read(depthwise).reshape(4, 3)).all()
    assert [len({*channels.read(node).tolist()} - {0}) for node in (first, depthwise, second)] == [4, 4, 4]
    assert len({*channels.written(second).tolist()} - {0}) == 6


def test_activations_that_are_quantized_by_channel() -> None:
    body = """
        n = Transpose<perm = [0, 2, 3, 1]>(c)
        q = QuantizeLinear<axis = -1>(n, s, z)
        t = DequantizeLinear<axis = 3>(q, s, z)
    """
    scales = np.linspace(0.01, 0.02, 8)
    graph = between(body, 512, ", float[8] s, uint8[8] z", s=scales, z=np.arange(100, 108))
    (group,) = check(graph, tolerance=1e-2).groups
    assert [(use.node.op, use.input, use.axis) for use in group.others] == [
        ("Conv", 2, 0), *((op, index, 0) for op in ("QuantizeLinear", "DequantizeLinear") for index in (1, 2)),
    ]  # fmt: skip


# Why channels stay

FIXED: list[tuple[str, int, str, dict[str, Any], str]] = [
    ('t = Einsum<equation = "ncij->ncij">(c)', 512, "", {}, "nothing is known of Einsum 't'"),
    ("t = Softmax<axis = 1>(c)", 512, "", {}, "Softmax 't' mixes the channels of 'c'"),
    ("t = ReduceMean<keepdims = 1>(c, a)", 64, ", int64[1] a", {"a": [1]}, "ReduceMean 't' mixes the channels"),
    ("i = ArgMax<axis = 1>(c) t = Cast<to = 1>(i)", 64, "", {}, "ArgMax 'i' mixes the channels"),
    ("t = MatMul(c, c)", 512, "", {}, "MatMul 't' is no product with a constant matrix"),
    ("t = MatMul(c, D)", 512, ", float[8, 8, 8] D", {}, "MatMul 't' is no product with a constant matrix"),
    ("w = GlobalAveragePool(c) p = Conv(x, D) t = Conv(p, w)", 128, ", float[8, 3, 1, 1] D", {},
     "the weights of Conv 't' are computed at run time"),
    ("b = ReduceMean<keepdims = 0>(c, a) t = Conv(x, D, b)", 512, ", float[8, 3, 1, 1] D, int64[3] a", {"a": [0, 2, 3]},
     "'b', which Conv 't' reads, is computed at run time"),
    ("e = Slice(c, z, z, one) t = Concat<axis = 1>(c, e)", 512, ", int64[1] z, int64[1] one", {"z": [0], "one": [1]},
     "'e' has no elements"),
    ("r = ReduceMean<keepdims = 0>(c, a) t = BatchNormalization(r, o, o, o, v)", 1,
     ", float[1] o, float[1] v, int64[3] a", {"a": [0, 2, 3]}, "'r' has no channels"),
    ("t = Conv<kernel_shape = [8, 8]>(c, c)", 2, "", {}, "the weights of Conv 't' are computed at run time"),
    ("f = Flatten(c) t = Gemm<transB = 1>(f, f)", 2, "", {}, "the weights of Gemm 't' are computed at run time"),
    ("p = ReduceMean<keepdims = 0>(x, a) q = Conv(x, D) r = ReduceMean<keepdims = 0>(q, b) "
     "t = InstanceNormalization(c, r, r)", 512, ", int64[2] a, int64[3] b, float[8, 3, 1, 1] D",
     {"a": [2, 3], "b": [0, 2, 3]}, "'r', which InstanceNormalization 't' reads, is computed at run time"),
    ("s = Shape(c) t = Reshape(c, s)", 512, "", {}, "Shape 's' reads the size of 'c': simplify-shapes writes"),
    ("s = Shape(u) t = Expand(c, s)", 512, ", float[2, 8, 8, 8] u", {}, "what 's' tells Expand 't' is computed"),
    ('s = Shape(u) t = Resize<mode = "nearest">(c, "", "", s)', 512, ", float[2, 8, 8, 8] u", {},
     "what 's' tells Resize 't' is computed: simplify-shapes may write it down"),
    ('t = Resize<mode = "nearest">(c, "", s)', 1024, ", float[4] s", {"s": [1, 2, 1, 1]}, "resizes along the channels"),
    ("t = Pad(c, p)", 384, ", int64[8] p", {"p": [0, -1, 0, 0, 0, -1, 0, 0]}, "Pad 't' cuts off channels"),
    ("m, i = MaxPool<kernel_shape = [2, 2]>(c) f = Cast<to = 1>(i) t = Add(m, f)", 8 * 49, "", {},
     "the further outputs of MaxPool 'm' are read"),
    ("h = Clip(c, z, z) i = Cast<to = 7>(h) t = Gather(u, i)", 512, ", float[9] u, float z", {"z": 1},
     "Gather 't' takes them for indices"),
    ("p = Concat<axis = 1>(x, x, x) q = Slice(p, a, b, one) t = Add(c, q)", 512,
     ", int64[1] a, int64[1] b, int64[1] one", {"a": [0], "b": [8], "one": [1]},
     "Add 't' combines it with 'q', a part of which stays"),
    ("q = Slice(c, a, b, one) r = ReduceMean<keepdims = 0>(q, two) n = Unsqueeze(r, b2) t = Add(c, n)", 512,
     ", int64[1] a, int64[1] b, int64[1] one, int64[2] two, int64[2] b2",
     {"a": [0], "b": [1], "one": [1], "two": [2, 3], "b2": [2, 3]}, "Add 't' broadcasts 'n' along other channels"),
    ("q = Concat<axis = 1>(c, x, u) t = Conv<group = 2>(q, D)", 4 * 64,
     ", float[4, 6, 1, 1] D, float[2, 1, 8, 8] u", {},
     "the groups of Conv 't' are equally wide, and a part of one stays"),
    ("q = Concat<axis = 1>(c, x, u) r = Reshape(q, s) t = ReduceMax<keepdims = 0>(r, two)", 2 * 6 * 8 * 4,
     ", int64[5] s, int64[1] two, float[2, 1, 8, 8] u", {"s": [2, 2, 6, 8, 8], "two": [1]},
     "ReduceMax 't' mixes it with a part of 'r' that stays"),
    ("q = Concat<axis = 1>(c, u) t = Reshape(q, s)", 768, ", int64[5] s, float[2, 4, 8, 8] u",
     {"s": [2, 4, 3, 8, 8]}, "a part of 't' stays"),
    ("n = NonZero(v) i = Squeeze(n, z) g = Gather<axis = 2>(c, i) t = ReduceSum<keepdims = 0>(g, a)", 8,
     ", float[5] v, int64[1] z, int64[2] a", {"z": [0], "a": [2, 3]}, "the shape of 'i' is not known"),
    ("r = ReduceMean<keepdims = 0>(c, a) t = LayerNormalization(u, r)", 8,
     ", int64[3] a, float[2, 8] u", {"a": [0, 2, 3]}, "LayerNormalization 't' is told by them"),
    ("n = Transpose<perm = [0, 2, 3, 1]>(c) t = LayerNormalization(n, i)", 512, ", float[8] i", {},
     "LayerNormalization 't' mixes the channels of 'n'"),
    ("i = GlobalAveragePool(c) r = Reshape(i, s) t = GridSample(x, r)", 12, ", int64[4] s", {"s": [2, 1, 4, 2]},
     "what GridSample 't' takes for positions"),
    ("t = LRN<size = 3>(c)", 512, "", {}, "LRN 't' mixes"),
    ("t = MeanVarianceNormalization<axes = [0, 1, 2, 3]>(c)", 512, "", {}, "MeanVarianceNormalization 't' mixes"),
    ("t = CumSum(c, a)", 512, ", int64 a", {"a": 1}, "CumSum 't' mixes"),
    ("t, i = TopK<axis = 1>(c, k)", 192, ", int64[1] k", {"k": [3]}, "TopK 't' mixes"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "features", "constants", "values", "reason"), FIXED)
def test_channels_that_stay(body: str, features: int, constants: str, values: dict[str, Any], reason: str) -> None:
    """The layer in front of what can't be traced keeps them, all or some, for a reason; the rest can be removed."""
    graph = between(body, features, constants, **values)
    channels = check(graph)
    assert re.search(reason, channels.fixed["c"])
    assert (channels.written(node_of(graph, "c")) == 0).any()


def node_of(graph: gs.Graph, name: str) -> gs.Node:
    return next(node for node in graph.nodes if node.name == name)


def test_weights_with_a_scale_for_every_block_stay() -> None:
    body = "D = DequantizeLinear<axis = 1, block_size = 4>(I, s) t = Conv(c, D)"
    constants, integers = ", int8[6, 8, 1, 1] I, float[6, 2, 1, 1] s", np.arange(48).reshape(6, 8, 1, 1)
    graph = between(body, 384, constants, opset=21, I=integers)
    assert check(graph).fixed["c"] == "the weights of Conv 't' are computed at run time"


def test_a_scale_for_every_block_stays() -> None:
    body = "q = QuantizeLinear<axis = 1, block_size = 4>(c, s) t = DequantizeLinear<axis = 1, block_size = 4>(q, s)"
    graph = between(body, 512, ", float[2, 2, 8, 8] s", opset=21)
    assert trace(graph).fixed["c"] == "QuantizeLinear 'q' has a scale for every block of 'c'"


def test_layers_that_read_what_stays() -> None:
    text = """
    net (float[1, 4, 8, 8] x) => (float[1, 5, 8, 8] y) <float[4, 1, 3, 3] D, float[1, 4, 1, 1] V, float[5, 1, 1, 1] W>
    {
        d = Conv<group = 4, pads = [1, 1, 1, 1]>(x, D)
        one = Conv(d, V)
        y = Conv(one, W)
    }
    """
    assert trace(testing.graph(text)).fixed == {
        "d": "what it reads stays",
        "one": "without it nothing of 'one' would be left",
        "y": "'y' is an output of the graph",
    }


def test_a_shuffle_whose_middle_is_an_output() -> None:
    text = """
    net (float[1, 3, 4, 4] x) => (float[1, 5, 4, 4] y, float[1, 4, 2, 4, 4] h)
    <float[8, 3, 1, 1] W, float[5, 8, 1, 1] V, int64[5] s, int64[4] s2>
    {
        c = Conv(x, W)
        g = Reshape(c, s)
        h = Transpose<perm = [0, 2, 1, 3, 4]>(g)
        t = Reshape(h, s2)
        y = Conv(t, V)
    }
    """
    graph = testing.graph(text, s=[1, 2, 4, 4, 4], s2=[1, 8, 4, 4])
    assert trace(graph).fixed["c"] == "'h' is an output of the graph"


def test_a_layer_behind_another_axis_keeps_its_features() -> None:
    graph = between("r = Reshape(c, s) t = MatMul(r, D)", 56, ", int64[3] s, float[64, 7] D", s=[2, 8, 64])
    channels = check(graph)
    assert channels.fixed["t"] == "its input has the channels along another axis"
    assert [len(group.ids) for group in channels.groups] == [8]
    assert not channels.read(node_of(graph, "t")).any()


def test_a_layer_that_reads_columns() -> None:
    """Its channels are the rows of the transposed product."""
    graph = between("f = Flatten(c) g = Gemm<transA = 1>(f, D) t = Transpose(g)", 512, ", float[2, 2] D")
    channels = check(graph)
    assert channels.fixed["g"] == "its input has the channels along another axis"
    assert [len(group.ids) for group in channels.groups] == [8]


def test_a_transformer() -> None:
    """Its feed-forward layers can lose hidden features; attention and the residual stream keep theirs."""
    text = """
    net (float[2, 6, 8] x) => (float[2, 6, 8] y)
    <float[8] g, float[8, 8] Q, float[8, 8] K, float[8, 8] V, float[8, 20] W, float[20] B, float[20, 8] U>
    {
        n = LayerNormalization(x, g)
        q = MatMul(n, Q)
        k = MatMul(n, K)
        v = MatMul(n, V)
        turned = Transpose<perm = [0, 2, 1]>(k)
        scores = MatMul(q, turned)
        weights = Softmax<axis = -1>(scores)
        mixed = MatMul(weights, v)
        r = Add(x, mixed)
        h = MatMul(r, W)
        b = Add(h, B)
        s = Sigmoid(b)
        e = Mul(b, s)
        f = MatMul(e, U)
        y = Add(r, f)
    }
    """
    channels = check(testing.graph(text))
    assert [(group.name, len(group.ids)) for group in channels.groups] == [("h", 20)]
    assert channels.fixed["v"] == "MatMul 'mixed' is no product with a constant matrix"
    assert channels.fixed["f"] == "Add 'y' combines it with 'r', a part of which stays"


def test_operators_of_other_domains_are_unknown() -> None:
    graph = between("t = Relu(c)", 512)
    node_of(graph, "t").domain = "com.example"
    assert trace(graph).fixed["c"] == "nothing is known of Relu 't'"


# What is told of them


def test_where_channels_are() -> None:
    graph = between("t = Relu(c)", 512)
    channels = trace(graph)
    (group,) = channels.groups
    c, y = node_of(graph, "c"), node_of(graph, "y")
    assert group.name == "c"
    assert channels.written(c).tolist() == group.ids.tolist()
    assert channels.read(c).tolist() == [0, 0, 0]
    assert channels.read(y).tolist() == np.repeat(group.ids, 64).tolist()
    assert not channels.written(y).any()
    axis, ids = channels.of(node_of(graph, "t").outputs[0]) or (-1, np.zeros(0))
    assert axis == 1
    assert ids.tolist() == group.ids.tolist()
    assert channels.of(graph.inputs[0]) is channels.of(graph.outputs[0]) is None
    with pytest.raises(KeyError):
        channels.read(node_of(graph, "t"))


def test_a_grouped_layer_reads_over_all_groups() -> None:
    graph = between("t = Conv<group = 2>(c, D)", 6 * 64, ", float[6, 4, 1, 1] D")
    channels, node = trace(graph), node_of(graph, "t")
    read, written = channels.read(node).reshape(2, 4), channels.written(node).reshape(2, 3)
    assert (read[0] == read[1]).all()
    assert (written[0] == written[1]).all()
    assert len({*read[0].tolist(), *written[0].tolist()}) == 7


def test_channels_of_one_layer_in_different_places_are_different_groups() -> None:
    body = "p, q = Split<axis = 1>(c, s) f = Conv(p, D) t = Concat<axis = 1>(f, q)"
    graph = between(body, 7 * 64, ", int64[2] s, float[2, 3, 1, 1] D", s=[3, 5])
    groups = check(graph).groups
    assert [(group.name, len(group.ids)) for group in groups] == [("c", 3), ("c", 5), ("f", 2)]


def test_added_channels_are_called_after_the_node_that_adds_them() -> None:
    graph = between("t = Pad(c, p)", 11 * 64, ", int64[8] p", p=[0, 0, 0, 0, 0, 3, 0, 0])
    last = trace(graph).groups[-1]
    assert (last.name, len(last.ids), last.producers) == ("t", 3, ())


# Removing


def test_a_shared_constant_is_sliced_for_each_reader() -> None:
    body = "a = Mul(c, k) b = Conv(a, D) d = Mul(b, k) e = Mul(b, k) t = Add(d, e)"
    graph = between(body, 512, ", float[8, 8, 1, 1] D, float[8, 1, 1] k")
    channels = trace(graph)
    after = pruned(graph, channels, [channels.groups[0].ids[0], *channels.groups[1].ids[[1, 2]]])
    first, second, third = (node_of(after, name).inputs[1] for name in "ade")
    assert [tensor.name for tensor in (first, second)] == ["k", "k_1"]
    assert second is third
    k = testing.weights(graph)["k"]
    np.testing.assert_array_equal(first.values, k[1:])
    np.testing.assert_array_equal(second.values, k[[0, 3, 4, 5, 6, 7]])


def test_a_constant_that_another_node_reads_stays() -> None:
    body = "a = Mul(c, k) b = Conv(x, D) d = Mul(b, k) e = ReduceMean(d, z) t = Add(a, e)"
    graph = between(body, 512, ", float[8, 3, 1, 1] D, float[8, 1, 1] k, int64[1] z", z=[1])
    channels = trace(graph)
    after = pruned(graph, channels, [channels.groups[0].ids[0]])
    assert node_of(after, "d").inputs[1].shape == (8, 1, 1)
    assert node_of(after, "a").inputs[1].shape == (7, 1, 1)


def test_what_is_removed_leaves_the_original_alone() -> None:
    graph = graphs.from_model(networks.build("shufflenet_v2", input_size=64))
    simplified(graph)
    before = graphs.to_model(graph).SerializeToString(deterministic=True)
    channels = trace(graph)
    pruned(graph, channels, draw(channels, np.random.default_rng(0)))
    assert graphs.to_model(graph).SerializeToString(deterministic=True) == before


def test_nothing_removed_is_nothing_changed() -> None:
    graph = graphs.from_model(networks.build("resnet56"))
    before = graphs.to_model(graph).SerializeToString(deterministic=True)
    remove(graph, trace(graph), [])
    assert graphs.to_model(graph).SerializeToString(deterministic=True) == before


def test_hollow_graphs_have_the_figures_and_no_bytes() -> None:
    graph = simplified(graphs.from_model(networks.build("shufflenet_v2", input_size=64)))
    channels = trace(graph)
    ids = draw(channels, np.random.default_rng(0))
    hollow = graphs.copy(graph)
    remove(hollow, channels, ids, hollow=True)
    assert measure.measure(hollow) == measure.measure(pruned(graph, channels, ids))
    weights = [tensor.values for node in layers(hollow) for tensor in node.inputs[1:]]
    assert max(sum(values.strides) for values in weights[:-1]) == 0


def test_a_pruned_network_can_be_traced_and_pruned_again() -> None:
    graph = simplified(graphs.from_model(networks.build("shufflenet_v2", input_size=64, width=0.25)))
    channels = trace(graph)
    again = pruned(graph, channels, draw(channels, np.random.default_rng(0)))
    assert "Transpose" not in {node.op for node in again.nodes}
    check(again, rounds=1)


def test_the_original_names_stay() -> None:
    graph = graphs.from_model(networks.build("resnet56"))
    channels = trace(graph)
    after = pruned(graph, channels, draw(channels, np.random.default_rng(0)))
    assert [node.name for node in after.nodes] == [node.name for node in graph.nodes]
    changed = testing.weights(after).keys() ^ testing.weights(graph).keys()
    assert {name.split(".")[-1] for name in changed} <= {"1", "pads"}  # what two paddings shared is told to each


def test_the_last_channel_stays() -> None:
    graph = between("t = Relu(c)", 512)
    channels = trace(graph)
    before = graphs.to_model(graph)
    with pytest.raises(ValueError, match="no channel of 'c' would be left"):
        remove(graph, channels, channels.groups[0].ids)
    assert graphs.to_model(graph) == before


def test_only_traced_channels_can_be_removed() -> None:
    graph = between("t = Relu(c)", 512)
    with pytest.raises(ValueError, match="0 is no channel that can be removed"):
        remove(graph, trace(graph), [0])


def test_all_channels_of_a_group_where_others_are_left() -> None:
    """A group may disappear, as that of padded channels, while every tensor keeps a channel of another one."""
    graph = between("t = Pad(c, p)", 11 * 64, ", int64[8] p", p=[0, 1, 0, 0, 0, 2, 0, 0])
    channels = trace(graph)
    inputs = verify.probe_inputs(graph, 0)
    ids = channels.groups[1].ids
    expected, found = (
        Session(testing.zeroed(graph, channels, ids)).run(inputs),
        Session(pruned(graph, channels, ids)).run(inputs),
    )
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-4)


# The command


def test_inspect_shows_groups(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    graphs.save(graphs.from_model(networks.build("resnet56")), path)
    shown = CliRunner().invoke(cli.app, ["inspect", str(path), "--groups"])
    assert re.search(r"^conv1 +16 +conv1, layer1.0.conv2, layer1.1.conv2 and 25 more", shown.stdout, re.MULTILINE)
    assert re.search(r"^ *1 +'logits' is an output of the graph +linear$", shown.stdout, re.MULTILINE)
    inspected = json.loads(CliRunner().invoke(cli.app, ["inspect", str(path), "--groups", "--json"]).stdout)
    assert inspected["fixed"] == {"linear": "'logits' is an output of the graph"}
    assert inspected["groups"][1] == {
        "name": "layer1.0.conv1", "channels": 16, "written_by": ["layer1.0.conv1"], "read_by": ["layer1.0.conv2"],
        "followed_by": ["layer1.0.bn1"],
    }  # fmt: skip
