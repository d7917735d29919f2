"""Graphs, compiled and run against onnxruntime: every template, layout and epilogue, for several vector widths."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import halving, lowering, target, verify
from nnc.errors import NncError
from nnc.lowering import generic
from nnc.lowering.emulate import EmulatedLibrary
from nnc.lowering.library import Library
from nnc.session import Session


@dataclass
class Draft:
    """A model under construction: every method returns the name of a tensor."""

    seed: int = 0
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def input(self, *shape: int, dtype: type = np.float32) -> str:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(onnx.helper.make_tensor_value_info(f"x{len(self.inputs)}", kind, shape))
        return self.inputs[-1].name

    def constant(self, values: Any) -> str:
        array = np.asarray(values)
        name = f"c{len(self.constants)}"
        self.constants.append(
            onnx.numpy_helper.from_array(array.astype(np.float32) if array.dtype == np.float64 else array, name)
        )
        return name

    def random(self, *shape: int, low: float = -1, high: float = 1) -> str:
        return self.constant(self.rng.uniform(low, high, shape).astype(np.float32))

    def add(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attrs: Any) -> Any:
        names = [f"t{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(onnx.helper.make_node(op, inputs, names, name=f"n{len(self.nodes)}", domain=domain, **attrs))
        return names[0] if outputs == 1 else names

    def conv(self, x: str, ins: int, outs: int, kernel: Sequence[int] = (3, 3), bias: bool = True, **attrs: Any) -> str:
        depth = ins // attrs.get("group", 1)
        W = self.random(outs, depth, *kernel)
        return self.add("Conv", x, W, *([self.random(outs)] if bias else []), kernel_shape=list(kernel), **attrs)

    def output(self, *names: str) -> None:
        self.outputs.extend(names)

    def graph(self, opset: int = 17) -> gs.Graph:
        outputs = [onnx.ValueInfoProto(name=name) for name in self.outputs]
        proto = onnx.helper.make_graph(self.nodes, "draft", self.inputs, outputs, self.constants)
        model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        return graphs.from_model(inferred)


Compare = Callable[..., lowering.Built]


def _errors(graph: gs.Graph, run: Callable[[list[np.ndarray]], list[np.ndarray]]) -> dict[str, float]:
    inputs = verify.probe_inputs(graph, 0)
    expected = Session(graph).run(inputs)
    found = run(list(inputs.values()))
    assert [array.shape for array in found] == [array.shape for array in expected.values()]
    assert [array.dtype for array in found] == [array.dtype for array in expected.values()]
    return {
        name: verify.difference(array, result) for (name, array), result in zip(expected.items(), found, strict=True)
    }


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """Build a draft or a graph for a target, run it, and assert that the outputs are onnxruntime's."""

    def check(
        draft: Draft | gs.Graph,
        spec: str | target.Target = "x86",
        threads: int = 2,
        tolerance: float = 5e-5,
        reference: gs.Graph | None = None,
    ) -> lowering.Built:
        graph = draft.graph() if isinstance(draft, Draft) else draft
        machine = target.load(spec) if isinstance(spec, str) else spec
        built = lowering.build(graph, machine, tmp_path, threads=threads)
        path = built.files[0]
        foreign = machine.unit.architecture != "x86_64"
        library = EmulatedLibrary(path, machine) if foreign else Library(path, threads)
        errors = _errors(reference or graph, library.run)
        assert {name: error for name, error in errors.items() if error > tolerance} == {}
        return built

    return check


def narrow(level: str, bits: int, registers: int) -> target.Target:
    """The x86 of this machine, reduced to an older instruction set."""
    host = target.load("x86")
    tvm = {**host.unit.tvm, "mcpu": level, "mattr": []}
    unit = host.unit.model_copy(
        update={"tvm": tvm, "vector_bits": bits, "vector_registers": registers, "channel_multiple": bits // 32}
    )
    return host.model_copy(update={"unit": unit})


HOST_BITS = target.load("x86").unit.vector_bits
WIDTHS = [
    pytest.param(
        narrow(level, bits, registers), id=level, marks=pytest.mark.skipif(bits > HOST_BITS, reason="not on this CPU")
    )
    for level, bits, registers in [("x86-64-v2", 128, 16), ("x86-64-v3", 256, 16), ("x86-64-v4", 512, 32)]
]  # fmt: skip


def convolutions() -> Draft:
    net = Draft()
    image, wide, odd = net.input(1, 3, 19, 23), net.input(1, 32, 14, 14), net.input(2, 24, 9, 11)
    net.output(
        net.conv(image, 3, 16, (7, 7), strides=[2, 2], pads=[3, 3, 3, 3]),
        net.conv(image, 3, 8, (3, 3), strides=[2, 1], pads=[0, 1, 2, 0], bias=False),
        net.conv(wide, 32, 48, (1, 1)),
        net.conv(wide, 32, 40, (1, 1), strides=[2, 2]),
        net.conv(wide, 32, 40, (1, 1), strides=[2, 3], pads=[0, 0, 1, 2]),
        net.conv(wide, 32, 32, (3, 3), pads=[1, 1, 1, 1]),
        net.conv(wide, 32, 36, (3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
        net.conv(wide, 32, 36, (3, 3), auto_pad="SAME_LOWER", strides=[1, 2]),
        net.conv(wide, 32, 20, (5, 1), pads=[2, 0, 2, 0]),
        net.conv(wide, 32, 32, (3, 3), group=4, pads=[1, 1, 1, 1]),
        net.conv(wide, 32, 64, (3, 3), group=16, pads=[1, 1, 1, 1]),
        net.conv(wide, 32, 32, (3, 3), group=32, pads=[1, 1, 1, 1], strides=[2, 2]),
        net.conv(wide, 32, 64, (3, 3), group=32, pads=[1, 1, 1, 1]),
        net.conv(wide, 32, 32, (14, 14)),
        net.conv(odd, 24, 25, (3, 3), pads=[1, 1, 1, 1]),
        net.conv(odd, 24, 24, (5, 5), group=24, pads=[2, 2, 2, 2], dilations=[1, 2]),
        net.conv(odd, 24, 1, (1, 1)),
    )
    return net


@pytest.mark.parametrize("machine", WIDTHS)
def test_convolutions(compare: Compare, machine: target.Target) -> None:
    built = compare(convolutions(), machine)
    assert {kernel.template for kernel in built.kernels} >= {"conv2d", "depthwise"}


def transposed_convolutions() -> Draft:
    net = Draft()
    x, odd = net.input(1, 32, 7, 9), net.input(2, 20, 5, 6)

    def transposed(x: str, ins: int, outs: int, kernel: tuple[int, int], group: int = 1, **attrs: Any) -> str:
        W = net.random(ins, outs // group, *kernel)
        return net.add("ConvTranspose", x, W, net.random(outs), kernel_shape=list(kernel), group=group, **attrs)

    net.output(
        net.add("Relu", transposed(x, 32, 16, (2, 2), strides=[2, 2])),
        transposed(x, 32, 24, (4, 4), strides=[2, 2], pads=[1, 1, 1, 1]),
        transposed(x, 32, 24, (3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
        transposed(x, 32, 16, (3, 3)),
        transposed(x, 32, 32, (3, 5), strides=[3, 1], pads=[0, 2, 1, 2], group=4),
        transposed(x, 32, 32, (4, 4), strides=[2, 2], pads=[1, 1, 1, 1], group=32),
        transposed(odd, 20, 10, (3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
        transposed(odd, 20, 10, (5, 4), strides=[2, 3], output_shape=[11, 17]),
        transposed(odd, 20, 10, (5, 4), strides=[2, 3], output_shape=[10, 16]),
        transposed(odd, 20, 10, (3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
        transposed(odd, 20, 4, (3, 3), dilations=[2, 2]),
        transposed(odd, 20, 4, (1, 1), strides=[2, 2]),
        net.add("Mul", transposed(odd, 20, 20, (2, 2), strides=[2, 2]), net.random(1, 20, 10, 12)),
    )
    return net


@pytest.mark.parametrize("machine", WIDTHS)
def test_transposed_convolutions(compare: Compare, machine: target.Target) -> None:
    compare(transposed_convolutions(), machine)


def computed_biases() -> Draft:
    """A recipe that does not fold constants leaves them, and a model may read them from outside."""
    net = Draft()
    image, wide, vector = net.input(1, 3, 8, 9), net.input(2, 24, 6, 7), net.input(24)

    def bias(channels: int) -> str:
        return net.add("Identity", net.random(channels))

    net.output(
        net.add("Conv", image, net.random(16, 3, 3, 3), bias(16)),
        net.add("Relu", net.add("Conv", image, net.random(20, 3, 1, 1), bias(20))),
        net.add("Conv", image, net.random(1, 3, 3, 3), bias(1)),
        net.add("Conv", wide, net.random(24, 1, 3, 3), vector, group=24, pads=[1, 1, 1, 1]),
        net.add("Conv", wide, net.random(24, 24, 3, 3), vector, pads=[1, 1, 1, 1]),
        net.add("ConvTranspose", wide, net.random(24, 10, 3, 3), bias(10), strides=[2, 2]),
        net.add("Conv", net.input(1, 8, 30), net.random(12, 8, 3), bias(12)),
        net.add("ConvTranspose", net.input(1, 8, 30), net.random(8, 12, 3), bias(12)),
        net.add("Gemm", net.input(5, 24), net.random(24, 12), bias(12)),
        net.add("Gemm", net.input(5, 24), net.random(24, 12), net.add("Identity", net.random(5, 1))),
    )
    return net


@pytest.mark.parametrize("machine", WIDTHS)
def test_computed_biases(compare: Compare, machine: target.Target) -> None:
    built = compare(computed_biases(), machine)
    assert {"conv2d", "depthwise", "gemm"} <= {kernel.template for kernel in built.kernels}


def epilogues() -> Draft:
    net = Draft()
    x, gate, bias = net.input(1, 20, 7, 9), net.input(1, 20, 1, 1), net.input(20, 1, 1)
    plane = net.input(1, 1, 7, 9)

    def conv() -> str:
        return net.conv(x, 20, 20, pads=[1, 1, 1, 1])

    y = conv()
    residual = net.add("Relu", net.add("Add", conv(), y))
    statistics = [net.random(20), net.random(20), net.random(20), net.random(20, low=0.5, high=2.0)]
    sigmoid = conv()
    two = net.conv(residual, 20, 20, (1, 1))
    net.output(
        residual,
        net.add("Clip", conv(), net.constant(0.0), net.constant(6.0)),
        net.add("BatchNormalization", conv(), *statistics),
        net.add("Mul", sigmoid, net.add("Sigmoid", sigmoid)),
        net.add("Mul", conv(), gate),
        net.add("Relu", net.conv(net.add("MaxPool", conv(), kernel_shape=[2, 2]), 20, 20, (1, 1), group=20)),
        net.conv(net.add("Neg", two), 20, 20, (1, 1), bias=False, group=20),
        net.add("Add", conv(), bias),
        net.add("Mul", conv(), plane),
        net.add("PRelu", conv(), net.random(20, 1, 1)),
        net.add("HardSwish", net.add("LeakyRelu", conv(), alpha=0.3)),
        net.add("Div", conv(), net.add("Add", net.add("Abs", two), net.constant(1.0))),
        net.add("Add", net.constant(np.float32(1)), net.add("Reciprocal", net.add("Exp", two))),
        net.add("Sub", net.random(1, 20, 7, 9), conv()),
        net.add("Relu", net.add("MaxPool", conv(), kernel_shape=[2, 2])),
    )
    return net


@pytest.mark.parametrize("machine", WIDTHS)
def test_epilogues(compare: Compare, machine: target.Target) -> None:
    built = compare(epilogues(), machine)
    assert "Conv+Add+Relu" in {kernel.op for kernel in built.kernels}


def products() -> Draft:
    net = Draft()
    row, rows, batch = net.input(1, 70), net.input(33, 70), net.input(2, 5, 70)
    by_columns, by_rows = net.random(70, 101), net.random(101, 70)
    net.output(
        net.add("Relu", net.add("Gemm", row, by_rows, net.random(101), transB=1)),
        net.add("Gemm", rows, by_columns, net.random(1, 101), alpha=0.5, beta=2.0),
        net.add("Gemm", rows, by_columns, net.random(33, 1)),
        net.add("Gemm", rows, by_columns),
        net.add("Add", net.add("MatMul", rows, by_columns), net.random(101)),
        net.add("MatMul", batch, by_columns),
        net.add("Relu", net.add("Add", net.add("MatMul", batch, by_columns), net.random(101))),
        net.add("Add", net.add("MatMul", batch, by_columns), net.random(2, 5, 101)),
        net.add("Add", net.add("MatMul", batch, by_columns), net.random(5, 1)),
        net.add("Gemm", net.add("Flatten", batch, axis=2), by_columns),
    )
    return net


@pytest.mark.parametrize("machine", WIDTHS)
def test_products(compare: Compare, machine: target.Target) -> None:
    compare(products(), machine)


def pools() -> Draft:
    net = Draft()
    x, odd = net.input(1, 32, 13, 13), net.input(2, 20, 8, 9)
    blocks = net.conv(x, 32, 32, (1, 1))
    net.output(
        net.add("MaxPool", blocks, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        net.add("MaxPool", odd, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
        net.add("AveragePool", odd, kernel_shape=[1, 1], strides=[3, 2], ceil_mode=1),
        net.add("AveragePool", odd, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        net.add("AveragePool", odd, kernel_shape=[3, 3], pads=[1, 0, 1, 1], count_include_pad=1),
        net.add("AveragePool", blocks, kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
        net.add("GlobalAveragePool", odd),
        net.add("GlobalMaxPool", blocks),
        net.add("ReduceMean", blocks, axes=[2, 3]),
        net.add("ReduceMean", odd, axes=[-1, 2], keepdims=0),
        net.add("Relu", net.add("ReduceMax", odd, axes=[2, 3], keepdims=0)),
        net.add("Flatten", net.add("GlobalAveragePool", odd)),
    )
    return net


@pytest.mark.parametrize("machine", WIDTHS)
def test_pools(compare: Compare, machine: target.Target) -> None:
    compare(pools(), machine)


def views() -> Draft:
    net = Draft()
    x, pair = net.input(1, 32, 6, 6), net.input(2, 32, 6, 6)
    a, b, ragged = net.conv(x, 32, 32, (1, 1)), net.conv(x, 32, 16, (1, 1)), net.conv(x, 32, 20, (1, 1))
    dense = net.add("Concat", a, b, axis=1)
    for _ in range(3):  # a dense block: every layer reads all features so far
        new = net.conv(net.add("Relu", dense), net_channels(net, dense), 16, (3, 3), pads=[1, 1, 1, 1])
        CHANNELS[dense_next := net.add("Concat", dense, new, axis=1)] = net_channels(net, dense) + 16
        dense = dense_next
    first, second = net.add("Split", a, axis=1, outputs=2)
    uneven = net.add("Split", a, net.constant(np.array([7, 25])), axis=1, outputs=2)
    starts, ends, axes = (net.constant(np.array([value])) for value in (16, 32, 1))
    two = [net.conv(pair, 32, 16, (1, 1)) for _ in range(2)]
    net.output(
        net.conv(dense, net_channels(net, dense), 8, (1, 1)),
        net.add("Concat", a, ragged, b, axis=1),
        net.add("Concat", ragged, ragged, axis=1),
        net.add("Concat", x, a, net.random(1, 4, 6, 6), axis=1),
        net.add("Concat", a, a, axis=2),
        net.add("Concat", *two, axis=1),
        net.add("Concat", *two, axis=0),
        net.add("Relu", first),
        net.conv(second, 16, 16, (3, 3)),
        *uneven,
        net.add("Neg", uneven[1]),
        net.conv(uneven[1], 25, 8, (3, 3)),
        net.add("Softmax", net.add("Concat", net.add("Softmax", uneven[0]), net.add("Softmax", uneven[1]), axis=1)),
        net.add("Slice", a, starts, ends, axes),
        net.add("Slice", pair, starts, ends, axes),
        net.add("Reshape", a, net.constant(np.array([2, -1]))),
        net.add(
            "Relu",
            net.add("Squeeze", net.add("Unsqueeze", a, net.constant(np.array([0]))), net.constant(np.array([0]))),
        ),
        a,
    )
    return net


CHANNELS: dict[str, int] = {}


def net_channels(net: Draft, name: str) -> int:
    return CHANNELS.get(name, 48)


@pytest.mark.parametrize("machine", WIDTHS)
def test_views(compare: Compare, machine: target.Target) -> None:
    compare(views(), machine)


def signals() -> Draft:
    net = Draft()
    x, odd = net.input(1, 16, 50), net.input(2, 5, 33)

    def conv(x: str, ins: int, outs: int, taps: int, op: str = "Conv", **attrs: Any) -> str:
        depths = (outs, ins // attrs.get("group", 1)) if op == "Conv" else (ins, outs)
        return net.add(op, x, net.random(*depths, taps), net.random(outs), **attrs)

    y = net.add("Relu", conv(x, 16, 32, 9, pads=[4, 4]))
    statistics = [net.random(32), net.random(32), net.random(32), net.random(32, low=0.5, high=2.0)]
    z = net.add("BatchNormalization", conv(y, 32, 32, 3, pads=[1, 1], group=32), *statistics)
    both = net.add("Concat", y, net.add("Add", y, z), axis=1)
    half = net.add("MaxPool", both, kernel_shape=[2], strides=[2])
    net.output(
        half,
        net.add("PRelu", z, net.random(32, 1)),
        net.add("Concat", y, z, axis=2),
        net.add("Relu", conv(half, 64, 16, 4, "ConvTranspose", strides=[2], pads=[1, 1])),
        conv(odd, 5, 7, 5, strides=[2], dilations=[2], auto_pad="VALID"),
        net.add("AveragePool", odd, kernel_shape=[3], pads=[1, 1], count_include_pad=1),
        net.add("Softmax", net.add("GlobalAveragePool", half), axis=1),
        net.add("ReduceMean", z, axes=[2], keepdims=0),
        net.add("Mul", z, net.add("Sigmoid", net.add("GlobalMaxPool", z))),
        net.add("Transpose", conv(odd, 5, 4, 1), perm=[0, 2, 1]),
    )
    return net


@pytest.mark.parametrize("machine", WIDTHS)
def test_signals(compare: Compare, machine: target.Target) -> None:
    built = compare(signals(), machine)
    assert {"Conv+Relu", "Conv+BatchNormalization"} <= {kernel.op for kernel in built.kernels}
    assert not {kernel.template for kernel in built.kernels if kernel.op.startswith("Conv")} - {"conv2d", "depthwise"}


def test_a_dense_block_copies_nothing(compare: Compare) -> None:
    net = Draft()
    features = [net.conv(net.input(1, 32, 8, 8), 32, 32, (1, 1))]
    for _ in range(4):
        x = net.add("Relu", net.add("Concat", *features, axis=1))
        features.append(net.conv(x, 32 * len(features), 32, (3, 3), pads=[1, 1, 1, 1]))
    net.output(net.conv(net.add("Concat", *features, axis=1), 160, 16, (1, 1)))
    built = compare(net)
    assert "copy" not in {kernel.template for kernel in built.kernels}


def test_the_ends_of_a_graph(compare: Compare) -> None:
    """Outputs that are inputs, constants, views, read again, or the same tensor twice."""
    net = Draft()
    x = net.input(1, 16, 4, 4)
    y = net.conv(x, 16, 16, (1, 1))
    flat = net.add("Reshape", y, net.constant(np.array([1, -1])))
    again = net.add("Identity", y)
    net.output(
        net.add("Identity", x),
        y,
        again,
        flat,
        net.conv(y, 16, 8, (1, 1)),
        net.add("Reshape", x, net.constant(np.array([16, 16]))),
    )
    compare(net)


def test_empty_tensors(compare: Compare) -> None:
    net = Draft()
    x = net.input(1, 16, 2, 4)
    nothing = net.add("AveragePool", x, kernel_shape=[3, 3])
    net.output(nothing, net.add("Relu", net.add("Concat", nothing, nothing, axis=1)), net.add("Relu", x))
    compare(net)


def test_layers_of_constants(compare: Compare) -> None:
    """What folding would compute, where a recipe does not fold."""
    net = Draft()
    image = net.constant(net.rng.normal(size=(1, 16, 4, 4)).astype(np.float32))
    row = net.constant(net.rng.normal(size=(1, 8)).astype(np.float32))
    matrix = net.constant(net.rng.normal(size=(8, 4)).astype(np.float32))
    net.output(
        net.add("Add", net.input(1, 24, 4, 4), net.conv(image, 16, 24, (1, 1))),
        net.add("Add", net.input(1, 4), net.add("Gemm", row, matrix)),
        net.add("Add", net.input(1, 16, 2, 2), net.add("MaxPool", image, kernel_shape=[2, 2], strides=[2, 2])),
    )
    compare(net)


def test_integer_weights_become_floats(compare: Compare) -> None:
    net = Draft()
    x = net.input(1, 16, 5, 5)
    integers = net.rng.integers(-127, 128, (24, 16, 3, 3)).astype(np.int8)
    scale = net.constant(net.rng.uniform(0.01, 0.02, 24).astype(np.float32))
    W = net.add("DequantizeLinear", net.constant(integers), scale, net.constant(np.zeros(24, np.int8)), axis=0)
    net.output(net.add("Conv", x, W))
    compare(net)


@pytest.mark.qemu
@pytest.mark.parametrize("spec", ["qcs605", "jetson-xavier"])
@pytest.mark.parametrize("draft", [convolutions, computed_biases, epilogues, products, pools, views])
def test_aarch64(compare: Compare, spec: str, draft: object) -> None:
    compare(draft(), spec)  # type: ignore[operator]


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("draft", "tolerance"),
    [
        (convolutions, 5e-3),
        (epilogues, 3e-2),  # exponentials of sums, and quotients near zero
        (products, 5e-3),
        (pools, 5e-3),
        (views, 5e-3),
    ],
)
def test_aarch64_in_float16(compare: Compare, draft: Callable[[], Draft], tolerance: float) -> None:
    """Against the outputs in float32: some of onnxruntime's kernels round more often than ours."""
    graph = draft().graph()
    half = graphs.copy(graph)
    halving.cast(half, ())
    compare(half, "qcs605", tolerance=tolerance, reference=graph)


@pytest.mark.qemu
def test_winograd_and_transposed_convolutions_in_float16(compare: Compare) -> None:
    """Winograd's transforms make errors larger, as everywhere."""
    net = Draft()
    x = net.input(1, 64, 28, 28)
    up = net.add("ConvTranspose", x, net.random(64, 8, 2, 2), net.random(8), strides=[2, 2])
    net.output(net.add("Relu", net.conv(x, 64, 64, pads=[1, 1, 1, 1])), up)
    graph = net.graph()
    half = graphs.copy(graph)
    halving.cast(half, ())
    built = compare(half, "qcs605", tolerance=1.5e-2, reference=graph)
    assert "winograd" in {kernel.template for kernel in built.kernels}


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lowering.build(epilogues().graph(), target.load("x86"), tmp_path / name, threads=2)
    assert (tmp_path / "a/module.so").read_bytes() == (tmp_path / "b/module.so").read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["module.so"]


def test_a_node_that_cannot_be_lowered_is_named(tmp_path: Path) -> None:
    """Whose result has no shape, or one that depends on an input; it is told before its reader stumbles over it."""
    places = Draft()
    places.output(places.add("Transpose", places.add("NonZero", places.input(3, 4)), perm=[1, 0]))
    resized, cut = Draft(), Draft()
    sizes = resized.input(4, dtype=np.int64)
    resized.output(resized.add("Relu", resized.add("Resize", resized.input(1, 3, 4, 4), "", "", sizes)))
    ends = [cut.input(1, dtype=np.int64) for _ in range(2)]
    cut.output(cut.add("Relu", cut.add("Slice", cut.input(3, 4), *ends)))
    viewed = Draft()
    viewed.output(viewed.add("Reshape", viewed.input(3, 4), viewed.input(2, dtype=np.int64)))
    for net, op in ((places, "NonZero"), (resized, "Resize"), (cut, "Slice"), (viewed, "Reshape")):
        with pytest.raises(NncError) as caught:
            lowering.build(net.graph(), target.load("x86"), tmp_path)
        reason = f"node 'n0' ({op}): nnc can't lower it: the shape of what it makes depends on values"
        assert (caught.value.message, caught.value.hint) == (reason, generic.HINT)
        assert not list(tmp_path.iterdir())


def test_the_profile_has_a_time_for_every_step(compare: Compare, tmp_path: Path) -> None:
    built = compare(products())
    x = [np.ones((1, 70), np.float32), np.ones((33, 70), np.float32), np.ones((2, 5, 70), np.float32)]
    times = Library(tmp_path / "module.so", 2).profile(x, len(built.kernels), 2)
    assert times.shape == (len(built.kernels),)
    assert (times > 0).all()
    assert json.dumps(built.kernels[0].nodes)


Image = tuple[str, tuple[int, int, int, int]]  # a tensor and its shape


def random_conv(net: Draft, x: str, shape: tuple[int, ...]) -> Image:
    rng, (n, channels, *size) = net.rng, shape
    divisors = [count for count in (1, 2, 4, channels) if channels % count == 0]
    groups = int(rng.choice(divisors))
    outs = groups * int(rng.integers(1, 3 if groups == channels else 12))
    kernel = [int(rng.integers(1, min(5, extent) + 1)) for extent in size]
    strides, pads = [int(step) for step in rng.integers(1, 4, 2)], [int(pad) for pad in rng.integers(0, 3, 4)]
    y = net.conv(x, channels, outs, kernel, bool(rng.integers(2)), group=groups, strides=strides, pads=pads)
    rows, columns = (
        (extent + before + after - taps) // stride + 1
        for extent, before, after, taps, stride in zip(size, pads[:2], pads[2:], kernel, strides, strict=True)
    )
    return y, (n, outs, rows, columns)


def random_pool(net: Draft, x: str, shape: tuple[int, ...]) -> Image:
    op, side = str(net.rng.choice(["MaxPool", "AveragePool"])), min(2, *shape[2:])
    y = net.add(op, x, kernel_shape=[side, side], strides=[1, 2])
    return y, (*shape[:2], shape[2] - side + 1, (shape[3] - side) // 2 + 1)  # type: ignore[return-value]


def random_activation(net: Draft, x: str, shape: tuple[int, ...]) -> Image:
    op = str(net.rng.choice(["Relu", "Sigmoid", "HardSwish", "Tanh", "LeakyRelu", "Elu", "Softplus", "Neg"]))
    return net.add(op, x), shape  # type: ignore[return-value]


def random_gate(net: Draft, x: str, shape: tuple[int, ...]) -> Image:
    squeezed = net.conv(net.add("GlobalAveragePool", x), shape[1], shape[1], (1, 1))
    return net.add("Mul", x, net.add("Sigmoid", squeezed)), shape  # type: ignore[return-value]


def random_part(net: Draft, x: str, shape: tuple[int, ...]) -> Image:
    n, channels, *size = shape
    if channels == 1:
        return x, shape  # type: ignore[return-value]
    first = int(net.rng.integers(1, channels))
    parts = net.add("Split", x, net.constant(np.array([first, channels - first])), axis=1, outputs=2)
    return parts[1], (n, channels - first, *size)  # type: ignore[return-value]


def random_upsampling(net: Draft, x: str, shape: tuple[int, ...]) -> Image:
    n, channels, *size = shape
    W = net.random(channels, 6, 2, 2)
    rows, columns = (min(2 * extent, 40) for extent in size)
    if (rows, columns) != (2 * size[0], 2 * size[1]):
        return x, shape  # type: ignore[return-value]
    return net.add("ConvTranspose", x, W, kernel_shape=[2, 2], strides=[2, 2]), (n, 6, rows, columns)


def random_network(seed: int) -> Draft:
    """Layers on random earlier results, some of them joined, and the last two results as outputs."""
    net = Draft(seed)
    rng = net.rng
    shape = (int(rng.integers(1, 3)), int(rng.choice([3, 16, 20])), int(rng.integers(5, 20)), int(rng.integers(5, 20)))
    images: list[Image] = [(net.input(*shape), shape)]
    layers = [random_conv, random_conv, random_pool, random_activation, random_gate, random_part, random_upsampling]
    for _ in range(10):
        x, shape = images[int(rng.integers(max(0, len(images) - 3), len(images)))]
        images.append(layers[int(rng.integers(len(layers)))](net, x, shape))
        alike = [image for image in images if image[1][:1] + image[1][2:] == images[-1][1][:1] + images[-1][1][2:]]
        x, (n, channels, *size) = alike[int(rng.integers(len(alike)))]
        last, (_, more, *_) = images[-1]
        if channels == more:
            images.append((net.add("Add", x, last), images[-1][1]))
        elif channels + more < 200:
            images.append((net.add("Concat", x, last, axis=1), (n, channels + more, *size)))  # type: ignore[arg-type]
    net.output(*dict.fromkeys([images[-1][0], images[-2][0]]))
    return net


@pytest.mark.parametrize("seed", range(6))
def test_random_networks(compare: Compare, seed: int) -> None:
    compare(random_network(seed), WIDTHS[seed % 2].values[0])  # type: ignore[arg-type]


def test_operators_of_other_domains_are_refused(tmp_path: Path) -> None:
    x, y, z = (gs.Variable(name, np.float32, shape) for name, shape in (("x", [3]), ("y", None), ("z", [3])))
    nodes = [gs.Node("Add", "n0", {}, [x, x], [y], domain="my.ops"), gs.Node("Relu", "n1", {}, [y], [z])]
    with pytest.raises(NncError, match=r"node 'n0' \(Add\): .* it is an operator of the domain 'my\.ops'"):
        lowering.build(gs.Graph(nodes, [x], [z]), target.load("x86"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["lr=0.1,wd=0.01", "two words", 'a "quote"', "back\\slash", "größe"])
def test_folders_of_any_name(tmp_path: Path, name: str) -> None:
    net = Draft()
    net.output(net.conv(net.input(1, 3, 8, 8), 3, 8))
    graph, folder = net.graph(), tmp_path / name
    folder.mkdir()
    built = lowering.build(graph, target.load("x86"), folder, threads=1)
    assert max(_errors(graph, Library(built.files[0], 1).run).values()) < 5e-5


def test_a_full_disk_is_told_before_llvm_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    x, y = (gs.Variable(name, np.float32, [3]) for name in "xy")
    graph = gs.Graph([gs.Node("Relu", "n0", {}, [x], [y])], [x], [y])
    with pytest.raises(OSError, match="No space left on device"):
        lowering.build(graph, target.load("x86"), tmp_path)
    assert not list(tmp_path.iterdir())
