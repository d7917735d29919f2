"""QDQ networks, compiled and run against onnxruntime without optimizations: integers agree to one step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnc import graph as graphs
from nnc import integers, lowering, networks, target
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError
from nnc.lowering import emulate
from nnc.lowering.kernels import int8_winograd
from nnc.lowering.library import Library
from nnc.report import remarks
from nnc.session import Session
from nnc.simulation.analytic import predict

DATA = Path(os.environ.get("NNC_DATA", Path(__file__).parents[2] / "../shared/data"))


@dataclass
class Draft:
    """A QDQ model under construction: every method returns the name of a tensor."""

    dtype: str = "uint8"
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @property
    def zero(self) -> int:
        """A zero point off the middle."""
        return 117 if self.dtype == "uint8" else -11

    def input(self, *shape: int, dtype: type = np.float32) -> str:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(onnx.helper.make_tensor_value_info(f"x{len(self.inputs)}", kind, shape))
        return self.inputs[-1].name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        names = [f"t{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(onnx.helper.make_node(op, inputs, names, name=f"n{len(self.nodes)}", **attrs))
        return names[0] if outputs == 1 else names

    def q(self, x: str, scale: float = 0.03, zero: int | None = None) -> str:
        zero = self.zero if zero is None else zero
        return self.add("QuantizeLinear", x, self.constant(scale), self.constant(zero, self.dtype))

    def dq(self, q: str, scale: float = 0.03, zero: int | None = None) -> str:
        zero = self.zero if zero is None else zero
        return self.add("DequantizeLinear", q, self.constant(scale), self.constant(zero, self.dtype))

    def rounded(self, x: str, scale: float = 0.03, zero: int | None = None) -> str:
        """`x` on the grid of integers."""
        return self.dq(self.q(x, scale, zero), scale, zero)

    def weights(self, *shape: int, axis: int = 0, low: int = -127, zeros: int | None = None) -> str:
        values = self.rng.integers(low, 128, shape).astype(np.int8)
        values.reshape(-1)[0] = low
        scale = self.constant(self.rng.uniform(0.001, 0.004, shape[axis]))
        zero = self.constant(np.full(shape[axis], zeros or 0), np.int8)
        return self.add("DequantizeLinear", self.constant(values, np.int8), scale, zero, axis=axis)

    def bias(self, channels: int) -> str:
        return self.constant(self.rng.uniform(-1, 1, channels))

    def conv(self, x: str, ins: int, outs: int, kernel: Sequence[int] = (3, 3), low: int = -127, **attrs: Any) -> str:
        W = self.weights(outs, ins // attrs.get("group", 1), *kernel, low=low)
        return self.add("Conv", x, W, self.bias(outs), kernel_shape=list(kernel), **attrs)

    def output(self, *names: str) -> None:
        self.outputs.extend(names)

    def graph(self, opset: int = 17) -> gs.Graph:
        outputs = [onnx.ValueInfoProto(name=name) for name in self.outputs]
        proto = onnx.helper.make_graph(self.nodes, "draft", self.inputs, outputs, self.constants)
        model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
        return graphs.from_model(onnx.shape_inference.infer_shapes(model, data_prop=True))


def inputs_of(graph: gs.Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    drawn = {tensor.name: rng.standard_normal(tensor.shape).astype(np.float32) for tensor in graph.inputs}
    bytes_ = {t.name: rng.integers(0, 100, t.shape).astype(t.dtype) for t in graph.inputs if t.dtype != np.float32}
    return drawn | bytes_


def narrow(level: str, bits: int, registers: int, *features: str) -> target.Target:
    """The x86 of this machine, reduced to an older instruction set."""
    host = target.load("x86")
    tvm = {**host.unit.tvm, "mcpu": level, "mattr": list(features)}
    changes = {"tvm": tvm, "vector_bits": bits, "vector_registers": registers, "int8_dot": bool(features)}
    return host.model_copy(update={"unit": host.unit.model_copy(update={**changes, "channel_multiple": bits // 32})})


def with_dot(chip: target.Target) -> target.Target:
    """A chip with cores that have the dot product."""
    tvm = {**chip.unit.tvm, "mcpu": "cortex-a76", "mattr": []}
    return chip.model_copy(update={"unit": chip.unit.model_copy(update={"tvm": tvm, "int8_dot": True})})


HOST = target.load("x86")
HOST_FEATURES = set(HOST.unit.tvm["mattr"])
QUICK = [("x86-64-v3", []), ("x86-64-v4", ["+avx512vnni"])]
MACHINES = [
    pytest.param(
        narrow(level, bits, registers, *features),
        id="-".join([level, *features]),
        marks=[
            pytest.mark.skipif(
                bits > HOST.unit.vector_bits or not HOST_FEATURES.issuperset(features), reason="not on this CPU"
            ),
            *([] if (level, features) in QUICK else [pytest.mark.slow]),
        ],
    )
    for level, bits, registers, *features in [
        ("x86-64-v2", 128, 16),
        ("x86-64-v3", 256, 16),
        ("x86-64-v3", 256, 16, "+avxvnni"),
        ("x86-64-v4", 512, 32),
        ("x86-64-v4", 512, 32, "+avx512vnni"),
    ]
]  # fmt: skip


def _emulates() -> bool:
    try:
        emulate.emulator()
    except NncError:
        return False
    return True


QCS605 = target.load("qcs605")
BOARDS = [
    pytest.param(chip, id=name, marks=[pytest.mark.qemu, pytest.mark.slow])
    for name, chip in (("qcs605", QCS605), ("carmel", target.load("jetson-xavier:cpu")), ("a76", with_dot(QCS605)))
]

Compare = Callable[..., lowering.Built]


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """Build a draft or a graph for a target, run it, and assert that the outputs are onnxruntime's to one step."""

    def check(draft: Draft | gs.Graph, machine: target.Target = HOST, share: float = 0.01) -> lowering.Built:
        graph = draft.graph() if isinstance(draft, Draft) else draft
        if machine.unit.architecture != "x86_64" and not _emulates():
            pytest.skip("qemu-aarch64 or its C library is not installed")
        built = lowering.build(graph, machine, tmp_path, threads=2)
        foreign = machine.unit.architecture != "x86_64"
        path = built.files[0]
        library = emulate.EmulatedLibrary(path, machine) if foreign else Library(path, 2)
        inputs = inputs_of(graph)
        expected = Session(graph).run(inputs)
        for (name, array), result in zip(expected.items(), library.run(list(inputs.values())), strict=True):
            assert (array.shape, array.dtype) == (result.shape, result.dtype)
            assert_close(name, array, result, share)
        return built

    return check


def assert_close(name: str, expected: np.ndarray, found: np.ndarray, share: float) -> None:
    """Integers differ by one step at most, and few of them; floats by rounding."""
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max(), err_msg=name)
        return
    steps = np.abs(expected.astype(int) - found.astype(int))
    assert steps.max() <= 1, name
    assert np.count_nonzero(steps) <= share * steps.size, name
    assert len(np.unique(expected)) > 3, f"{name} holds next to nothing"


def convolutions(dtype: str = "uint8", low: int = -127) -> Draft:
    net = Draft(dtype)
    image, wide, odd = (net.rounded(net.input(*s)) for s in ((1, 3, 19, 23), (1, 32, 14, 14), (2, 24, 9, 11)))
    layers = [
        net.conv(image, 3, 16, (7, 7), strides=[2, 2], pads=[3, 3, 3, 3]),
        net.conv(image, 3, 8, (3, 3), strides=[2, 1], pads=[0, 1, 2, 0]),
        net.conv(wide, 32, 48, (1, 1)),
        net.conv(wide, 32, 40, (1, 1), strides=[2, 2]),
        net.conv(wide, 32, 40, (1, 1), strides=[2, 3], pads=[0, 0, 1, 2]),
        net.conv(wide, 32, 32, (3, 3), pads=[1, 1, 1, 1], low=low),
        net.conv(wide, 32, 36, (3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
        net.conv(wide, 32, 36, (3, 3), auto_pad="SAME_LOWER", strides=[1, 2]),
        net.conv(wide, 32, 20, (5, 1), pads=[2, 0, 2, 0]),
        net.conv(wide, 32, 32, (3, 3), group=4, pads=[1, 1, 1, 1]),
        net.conv(wide, 32, 32, (3, 3), group=32, pads=[1, 1, 1, 1]),
        net.conv(wide, 32, 64, (3, 3), group=32, pads=[2, 2, 2, 2], dilations=[2, 2]),
        net.conv(odd, 24, 40, (3, 3), pads=[2, 2, 2, 2], dilations=[2, 2]),
        net.conv(odd, 24, 24, (5, 5), group=24, strides=[2, 2], pads=[2, 2, 2, 2]),
        net.conv(odd, 24, 12, (1, 1)),
        net.conv(odd, 24, 12, (3, 3), group=3),
        net.conv(odd, 24, 10, (9, 11)),
    ]
    net.output(*(net.q(layer, 0.1) for layer in layers))
    return net


@pytest.mark.parametrize("dtype", [pytest.param("uint8", marks=pytest.mark.slow), "int8"])
@pytest.mark.parametrize("machine", MACHINES)
def test_convolutions(compare: Compare, machine: target.Target, dtype: str) -> None:
    built = compare(convolutions(dtype), machine)
    convolved = {kernel.template for kernel in built.kernels if kernel.op.startswith("Conv")}
    assert convolved - {"int8_winograd"} == {"int8_conv2d", "int8_depthwise"}
    assert all(kernel.dtype == dtype for kernel in built.kernels if kernel.op.startswith("Conv"))


@pytest.mark.parametrize("machine", BOARDS)
def test_convolutions_on_boards(compare: Compare, machine: target.Target) -> None:
    compare(convolutions("int8"), machine)
    compare(convolutions("uint8", low=-128), machine)


def test_computed_biases(compare: Compare) -> None:
    """As recipes leave them that do not fold constants, and from outside."""
    net = Draft()
    x, vector = net.rounded(net.input(1, 24, 6, 7)), net.input(24)
    dense, deep = net.weights(24, 24, 3, 3), net.weights(24, 1, 3, 3)
    net.output(
        net.q(net.add("Conv", x, dense, vector, pads=[1, 1, 1, 1])),
        net.q(net.add("Conv", x, deep, net.add("Identity", net.bias(24)), group=24)),
        net.q(net.add("ConvTranspose", x, net.weights(24, 10, 3, 3, axis=1), net.add("Identity", net.bias(10)))),
        net.q(net.add("ConvTranspose", net.rounded(net.input(1, 8, 30)), net.weights(8, 24, 3, axis=1), vector)),
        net.q(net.add("Gemm", net.rounded(net.input(5, 24)), net.weights(24, 24, axis=1), vector)),
    )
    built = compare(net)
    assert {"int8_conv2d", "int8_depthwise", "int8_gemm"} <= {kernel.template for kernel in built.kernels}


def test_sums_of_the_largest_products_do_not_saturate(compare: Compare) -> None:
    for chip in (narrow("x86-64-v3", 256, 16), HOST):
        net = Draft("uint8")
        x = net.dq(net.q(net.add("Abs", net.input(1, 64, 5, 5)), 1e-3, 0), 1e-3, 0)  # nearly all are 255
        W = net.constant(np.tile([[127], [-128]], (4, 64)).reshape(8, 64, 1, 1), np.int8)
        conv = net.add("Conv", x, net.add("DequantizeLinear", W, net.constant(0.01)), kernel_shape=[1, 1])
        net.output(net.q(conv, 0.2))
        compare(net, chip)


def three_by_three(ins: int, outs: int, size: tuple[int, int], W: np.ndarray, pads: Sequence[int]) -> Draft:
    """Bytes that are nearly all 0 or 255, a convolution, and its sums in floats."""
    net = Draft("uint8")
    x = net.dq(net.q(net.input(2, ins, *size), 1e-3), 1e-3)
    weights = net.add("DequantizeLinear", net.constant(W, np.int8), net.constant(0.01))
    net.output(net.add("Conv", x, weights, net.bias(outs), kernel_shape=[3, 3], pads=pads))
    return net


@pytest.mark.parametrize(
    ("ins", "outs", "size", "pads", "largest", "tiles"),
    [
        (64, 64, (13, 18), (1, 1, 1, 1), 40, 4),
        (20, 24, (16, 9), (0, 2, 1, 0), 127, 4),
        (32, 200, (7, 7), (1, 1, 1, 1), 127, 4),
        (256, 64, (14, 14), (1, 1, 1, 1), 127, 2),  # whose sums times 64 would not fit into int32
    ],
)
def test_winograd_is_exact(
    compare: Compare, ins: int, outs: int, size: tuple[int, int], pads: Sequence[int], largest: int, tiles: int
) -> None:
    W = np.random.default_rng(0).integers(-largest - (largest == 127), largest + 1, (outs, ins, 3, 3))
    W[0] = largest  # the largest sum that there can be
    assert max(int8_winograd.sizes(W, 117)) == tiles
    built = compare(three_by_three(ins, outs, size, W, pads), narrow("x86-64-v3", 256, 16))
    (layer,) = (kernel for kernel in built.kernels if "Conv" in kernel.op)
    assert layer.template == "int8_winograd"


@given(st.sampled_from([2, 4]), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_winograd_of_integers_gives_a_multiple_of_the_sums(outputs: int, zero: int, seed: int) -> None:
    rng, matrices = np.random.default_rng(seed), int8_winograd.transforms(outputs)
    Bt, At = (np.array(second @ first, np.int64) for first, second in (matrices.inputs, matrices.sums))
    d, g = rng.integers(0, 256, (outputs + 2, outputs + 2)) - zero, rng.integers(-128, 128, (3, 3))
    V, U = Bt @ d @ Bt.T, matrices.weights @ g @ matrices.weights.T
    assert max(abs(V).max(), abs(U).max()) < 2**15
    direct = [[(d[y : y + 3, x : x + 3] * g).sum() for x in range(outputs)] for y in range(outputs)]
    assert np.array_equal(At @ (U * V) @ At.T, matrices.factor * np.array(direct))


def transposed() -> Draft:
    net = Draft("int8")
    x = net.rounded(net.input(2, 32, 5, 6))
    signal = net.rounded(net.input(1, 8, 9))

    def layer(x: str, ins: int, outs: int, kernel: Sequence[int], **attrs: Any) -> str:
        groups = attrs.get("group", 1)
        W = net.weights(ins, outs // groups, *kernel, axis=1)
        return net.add("ConvTranspose", x, W, net.bias(outs), kernel_shape=list(kernel), **attrs)

    net.output(
        net.q(layer(x, 32, 24, (2, 2), strides=[2, 2]), 0.1),
        net.q(net.add("Relu", layer(x, 32, 20, (4, 4), strides=[2, 2], pads=[1, 1, 1, 1])), 0.1, -128),
        net.q(layer(x, 32, 16, (3, 3), strides=[2, 1], pads=[1, 0, 1, 2], output_padding=[1, 0]), 0.1),
        net.q(layer(x, 32, 32, (3, 3), group=4), 0.1),
        net.q(layer(signal, 8, 12, (4,), strides=[2]), 0.1),
        layer(x, 32, 8, (3, 3), strides=[3, 3]),
    )
    return net


@pytest.mark.parametrize("machine", [*MACHINES, BOARDS[0]])
def test_transposed_convolutions(compare: Compare, machine: target.Target) -> None:
    built = compare(transposed(), machine)
    convolved = {kernel.template for kernel in built.kernels if kernel.op.startswith("ConvTranspose")}
    assert convolved == {"int8_conv2d"}


def epilogues() -> Draft:
    net = Draft("int8")
    x, y = (net.rounded(net.input(1, 16, 6, 6)) for _ in range(2))
    six, low, high = (net.constant(value) for value in (6.0, -0.7, 1.3))
    gate = net.rounded(net.add("Sigmoid", net.input(1, 16, 1, 1)), 1 / 255, -128)

    def layer() -> str:
        return net.conv(x, 16, 24, (3, 3), pads=[1, 1, 1, 1])

    clipped, both, swish = net.add("Clip", layer(), low, high), layer(), layer()
    hard = net.rounded(layer(), 0.05)
    net.output(
        layer(),  # in floats
        net.add("Relu", layer()),
        net.q(net.add("Relu", layer()), 0.04, -128),
        net.q(net.add("Relu", layer()), 0.04, 5),
        net.q(net.add("Clip", layer(), net.constant(0.0), six), 6 / 255, -128),
        net.q(clipped, 0.011, 3),
        net.q(net.add("Mul", swish, net.add("Sigmoid", swish)), 0.05, -100),
        net.q(net.add("Mul", hard, net.rounded(net.add("HardSigmoid", hard), 1 / 255, -128)), 0.05),
        net.q(both, 0.07),
        net.q(both, 0.02),
        net.add("Softmax", both),
        # A residual, both of whose inputs are integers.
        net.q(net.add("Add", net.rounded(net.conv(x, 16, 16, (1, 1)), 0.06), y), 0.08),
        net.q(net.add("Relu", net.add("Add", y, net.rounded(net.conv(x, 16, 16, (1, 1)), 0.06))), 0.05, -128),
        net.q(net.add("Mul", y, gate), 0.02),
        net.q(net.add("Mul", net.rounded(net.conv(x, 16, 16, (1, 1)), 0.06), gate), 0.05),
    )
    return net


@pytest.mark.parametrize("machine", [*MACHINES, *BOARDS])
def test_epilogues(compare: Compare, machine: target.Target) -> None:
    built = compare(epilogues(), machine, share=0.02)
    assert not [kernel for kernel in built.kernels if kernel.template in ("conv2d", "winograd")]


def test_a_residual_is_added_where_the_convolution_is_computed(compare: Compare) -> None:
    net = Draft()
    x = net.rounded(net.input(1, 32, 8, 8))
    branch = net.rounded(net.conv(x, 32, 32, (1, 1)), 0.06)
    net.output(net.q(net.add("Relu", net.add("Add", branch, x)), 0.05, 0))
    built = compare(net)
    ops = [kernel.op for kernel in built.kernels if kernel.op]
    assert ops == ["QuantizeLinear", "Conv+QuantizeLinear+DequantizeLinear+Add+Relu+QuantizeLinear"]


def elementwise() -> Draft:
    net = Draft("int8")
    x, y = net.rounded(net.input(2, 20, 5, 7)), net.rounded(net.input(2, 20, 5, 7), 0.02)
    row, plain = net.rounded(net.input(1, 20, 1, 1), 0.01), net.rounded(net.input(7), 0.01)
    net.output(
        net.q(net.add("Add", x, y), 0.05),
        net.q(net.add("Mul", x, y), 0.05, 7),
        net.q(net.add("Sub", x, row), 0.05),
        net.q(net.add("Add", x, plain), 0.05),
        net.q(net.add("Relu", x), 0.023, -128),  # with 0.02, every other value would be in the middle of two integers
        net.q(net.add("Sigmoid", x), 1 / 256, -128),
        net.q(net.add("HardSwish", x), 0.02),
        net.q(net.add("Add", x, net.constant(0.4)), 0.03),
        net.q(x, 0.05, 0),  # to another scale
        net.add("Add", x, y),
        net.add("Softmax", x),
        x,
    )
    return net


@pytest.mark.parametrize("machine", [*MACHINES, BOARDS[0]])
def test_elementwise_nodes_read_and_write_bytes(compare: Compare, machine: target.Target) -> None:
    built = compare(elementwise(), machine)
    added = next(kernel for kernel in built.kernels if kernel.op == "Add+QuantizeLinear")
    assert (added.template, added.dtype) == ("elementwise", "int8")


def pools() -> Draft:
    net = Draft("int8")
    x, odd = net.rounded(net.input(1, 32, 12, 12)), net.rounded(net.conv(net.rounded(net.input(1, 8, 9, 9)), 8, 20))
    two, one = [2, 2], [1, 1, 1, 1]
    net.output(
        net.q(net.add("MaxPool", x, kernel_shape=[3, 3], strides=two, pads=one)),
        net.q(net.add("MaxPool", odd, kernel_shape=[3, 2], ceil_mode=1, strides=two)),
        net.q(net.add("AveragePool", x, kernel_shape=[3, 3], strides=two, pads=one), 0.0107),
        net.q(net.add("AveragePool", odd, kernel_shape=[3, 3], pads=one, count_include_pad=1), 0.0107),
        net.q(net.add("GlobalAveragePool", x), 0.004),
        net.q(net.add("GlobalMaxPool", odd), 0.03),
        net.q(net.add("ReduceMean", x, axes=[2, 3], keepdims=0), 0.004),
        net.add("GlobalAveragePool", odd),
        net.add("MaxPool", x, kernel_shape=two, strides=two),
        # The pool moves in front of the rounding of its input, and the other way round.
        net.q(net.add("MaxPool", net.conv(x, 32, 16, (1, 1)), kernel_shape=two, strides=two), 0.1),
    )
    return net


@pytest.mark.parametrize("machine", [*MACHINES, BOARDS[0]])
def test_pools(compare: Compare, machine: target.Target) -> None:
    built = compare(pools(), machine)
    largest = [kernel for kernel in built.kernels if kernel.template == "max_pool"]
    assert len(largest) == 5
    assert all(kernel.dtype in ("int8", "uint8") for kernel in largest)
    assert all(kernel.dtype != "float32" for kernel in built.kernels if kernel.op == "AveragePool+QuantizeLinear")


def moves() -> Draft:
    net = Draft("int8")
    x = net.rounded(net.input(1, 32, 6, 6))
    a, b, c = (net.conv(x, 32, outs, (1, 1)) for outs in (32, 16, 20))
    same = [net.rounded(each, 0.1) for each in (a, b, c)]
    different = [net.rounded(each, scale) for each, scale in zip((a, b, c), (0.1, 0.11, 0.09), strict=True)]
    shape, sizes = net.constant([2, -1], np.int64), net.constant([1, 1, 2, 2])
    starts, ends, axes = (net.constant([value], np.int64) for value in (5, 19, 1))
    pads = net.constant([0, 0, 1, 2, 0, 0, 1, 0], np.int64)
    resized = net.add(
        "Resize", x, "", sizes, mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"
    )
    halves = net.add("Split", x, outputs=2, axis=1)
    net.output(
        net.q(net.add("Concat", *same, axis=1), 0.1),
        net.q(net.add("Concat", *different, axis=1), 0.1),
        net.q(net.conv(net.add("Concat", *same[:2], axis=1), 48, 8, (1, 1)), 0.2),
        net.add("Concat", *different, axis=1),
        net.q(net.add("Reshape", x, shape)),
        net.q(net.add("Flatten", x)),
        net.q(net.add("Transpose", x, perm=[0, 2, 3, 1])),
        net.q(net.add("Slice", x, starts, ends, axes)),
        net.q(net.add("Pad", x, pads)),
        net.q(resized),
        net.q(net.add("DepthToSpace", x, blocksize=2)),
        net.q(net.add("Add", net.rounded(halves[0]), net.rounded(halves[1])), 0.05),
    )
    return net


@pytest.mark.parametrize("machine", [*MACHINES, BOARDS[0]])
def test_moves_move_bytes(compare: Compare, machine: target.Target) -> None:
    built = compare(moves(), machine)
    floats = {kernel.op for kernel in built.kernels if kernel.dtype == "float32"}
    assert floats <= {"", "Concat", "Conv", "Copy", "DequantizeLinear", "Split"}  # what they write


def products() -> Draft:
    net = Draft("uint8")
    for rows, depth, columns in ((1, 64, 10), (1, 250, 100), (3, 31, 17), (40, 128, 70)):
        x = net.rounded(net.input(rows, depth))
        transposed = net.add("Gemm", x, net.weights(columns, depth), net.bias(columns), transB=1)
        straight = net.add("Gemm", x, net.weights(depth, columns, axis=1), net.bias(columns), alpha=0.5, beta=2.0)
        matmul = net.add("MatMul", x, net.weights(depth, columns, axis=1, low=-128))
        net.output(
            net.q(net.add("Relu", transposed), 0.02, 0), straight, net.q(net.add("Add", matmul, net.bias(columns)))
        )
    batch = net.rounded(net.input(2, 5, 24))
    net.output(net.q(net.add("MatMul", batch, net.weights(24, 33, axis=1))))
    return net


@pytest.mark.parametrize("machine", [*MACHINES, *BOARDS])
def test_products(compare: Compare, machine: target.Target) -> None:
    built = compare(products(), machine)
    assert sum(kernel.template == "int8_gemm" for kernel in built.kernels) == 13
    assert not [kernel for kernel in built.kernels if kernel.template in ("gemm", "matmul")]


def matrix(net: Draft, depth: int, columns: int, transposed: bool, block: int = 0) -> str:
    """Weights [depth, columns], or transposed, stored as integers with a scale per column, or also per `block` rows."""
    shape, axis = ((columns, depth), 0) if transposed else ((depth, columns), 1)
    if not block:
        return net.weights(*shape, axis=axis, low=-128)
    values, inputs = net.rng.integers(-7, 8, shape), 1 - axis
    scale = net.rng.uniform(0.001, 0.004, [-(-n // block) if i == inputs else n for i, n in enumerate(shape)])
    stored = net.constant(values, np.int8)
    return net.add("DequantizeLinear", stored, net.constant(scale), axis=inputs, block_size=block)


def weight_only(block: int = 0) -> Draft:
    net = Draft()
    for rows, depth, columns in ((1, 64, 10), (1, 250, 100), (3, 72, 17), (40, 128, 70)):
        x, residual = net.input(rows, depth), net.input(rows, columns)
        transposed = net.add("Gemm", x, matrix(net, depth, columns, True, block), net.bias(columns), transB=1)
        straight = net.add("Gemm", x, matrix(net, depth, columns, False, block), residual, alpha=0.5)
        product = net.add("MatMul", x, matrix(net, depth, columns, False, block))
        net.output(net.add("Relu", transposed), straight, net.q(net.add("Add", product, residual), 0.1))
    sequence = net.input(2, 5, 96)
    net.output(net.add("MatMul", sequence, matrix(net, 96, 33, False, block)))
    return net


@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("machine", [*MACHINES, *BOARDS])
def test_products_of_floats_keep_their_weights_as_integers(
    compare: Compare, machine: target.Target, block: int
) -> None:
    graph = weight_only(block).graph(21)
    built = compare(graph, machine)
    assert [kernel.template for kernel in built.kernels if "Gemm" in kernel.op or "MatMul" in kernel.op] == [
        "gemm"
    ] * 13
    stored = sum(prod(node.inputs[0].shape) for node in graph.nodes if node.op == "DequantizeLinear")
    assert built.weight_bytes < 2 * stored  # of floats, it would be four times as many
    layers = [each for each in predict(graph, machine).layers if "Gemm" in each.op or "MatMul" in each.op]
    assert {(each.dtype, each.reason) for each in layers} == {("float32, int8 weights", None)}


@pytest.mark.parametrize(
    "build",
    [
        lambda net, x: net.add("Gemm", x, matrix(net, 24, 16, True), net.input(1, 16), transB=1, beta=0.5),
        lambda net, x: net.add("Gemm", x, net.weights(24, 16, axis=1, zeros=100)),
        lambda net, x: net.add("Gemm", x, net.weights(24, 16, axis=0)),
        lambda net, x: net.add("MatMul", net.add("Reshape", x, net.constant([1, 1, 24], np.int64)), batch(net)),
    ],
    ids=["a computed bias with a factor", "beyond int8", "another axis", "more than a matrix"],
)
def test_other_stored_weights_become_floats(compare: Compare, build: Any) -> None:
    net = Draft()
    net.output(build(net, net.input(1, 24)))
    compare(net)
    assert "float32" in {layer.dtype for layer in predict(net.graph(), HOST).layers}


def batch(net: Draft) -> str:
    """Two matrices."""
    values = net.constant(net.rng.integers(-9, 9, (2, 24, 4)), np.int8)
    return net.add("DequantizeLinear", values, net.constant(0.1))


def test_signals(compare: Compare) -> None:
    net = Draft()
    x = net.rounded(net.input(1, 6, 40))
    first = net.rounded(net.add("Relu", net.conv(x, 6, 32, (5,), pads=[2, 2])), 0.06)
    pooled = net.add("MaxPool", first, kernel_shape=[2], strides=[2])
    net.output(net.q(net.conv(pooled, 32, 16, (3,), pads=[1, 1]), 0.1))
    built = compare(net)
    assert [kernel.template for kernel in built.kernels if "Conv" in kernel.op] == ["int8_conv2d"] * 2


def test_what_outside_sees_keeps_its_type(compare: Compare) -> None:
    net = Draft("int8")
    raw = net.input(1, 16, 5, 5, dtype=np.int8)
    x = net.dq(raw)
    q = net.q(net.conv(x, 16, 16, (1, 1)), 0.1)
    net.output(q, net.q(net.conv(net.dq(q, 0.1), 16, 8, (3, 3)), 0.2))
    built = compare(net)
    assert [kernel.template for kernel in built.kernels if "Conv" in kernel.op] == ["int8_conv2d"] * 2


REFUSED = [
    ("its weights are not quantized", lambda net, x: net.add("Conv", x, net.constant(np.ones((8, 16, 1, 1))))),
    ("another axis", lambda net, x: net.add("Conv", x, net.weights(8, 16, 1, 1, axis=1))),
    ("its input is not quantized", lambda net, x: net.conv(net.add("Softmax", x), 16, 8, (1, 1))),
    (
        "both of its inputs are computed",
        lambda net, x: net.add("MatMul", x, net.add("Transpose", x, perm=[0, 1, 3, 2])),
    ),
    ("do not fit into int8", lambda net, x: net.add("Conv", x, net.weights(8, 16, 1, 1, zeros=100))),
]


@pytest.mark.parametrize(("reason", "build"), REFUSED, ids=[reason for reason, _ in REFUSED])
def test_what_is_not_integers_is_computed_in_floats(compare: Compare, reason: str, build: Any) -> None:
    net = Draft()
    net.output(build(net, net.rounded(net.input(1, 16, 6, 6))))
    built = compare(net)
    assert not [kernel for kernel in built.kernels if kernel.template.startswith("int8")]
    predicted = predict(net.graph(), HOST)
    (layer,) = (each for each in predicted.layers if each.reason)
    assert layer.dtype == "float32"
    assert reason in str(layer.reason)
    assert [line for line in remarks(predicted, HOST) if reason in line]


def test_a_report_says_in_which_type_layers_compute() -> None:
    net = Draft()
    x = net.rounded(net.add("Relu", net.conv(net.rounded(net.input(1, 16, 8, 8)), 16, 16, (1, 1))))
    pooled = net.rounded(net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    net.output(pooled, net.add("Sigmoid", x))
    types = {layer.op: layer.dtype for layer in predict(net.graph(), HOST).layers}
    assert types["Conv+Relu+QuantizeLinear"] == types["MaxPool+QuantizeLinear"] == "int8"
    assert types["Sigmoid"] == "float32"


def test_remarks_say_where_integers_are_slower() -> None:
    net = Draft()
    net.output(net.rounded(net.conv(net.rounded(net.input(1, 64, 28, 28)), 64, 64, pads=[1, 1, 1, 1])))
    carmel = target.load("jetson-xavier:cpu")  # without a dot product
    (remark,) = (line for line in remarks(predict(net.graph(), carmel), carmel) if "in floats" in line)
    assert remark.endswith("on jetson-xavier:cpu@MAXN int8 is smaller, but not faster")
    fast = with_dot(QCS605)
    unit = fast.unit
    clusters = tuple(
        each.model_copy(update={"macs_per_cycle": {**each.macs_per_cycle, "int8": 32.0}}) for each in unit.clusters
    )
    fast = fast.model_copy(update={"unit": unit.model_copy(update={"clusters": clusters})})
    assert not [line for line in remarks(predict(net.graph(), fast), fast) if "in floats" in line]


# -- networks


def quantized(name: str, size: int, folder: Path, signed: bool) -> gs.Graph:
    """A reference network as onnxruntime's own tool quantizes it."""
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Noise(ort.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self._left = [{"input": rng.standard_normal((1, 3, size, size), dtype=np.float32)} for _ in range(2)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self._left.pop() if self._left else None

    plain, folded, made = (folder / f"{step}.onnx" for step in ("plain", "folded", "made"))
    onnx.save(networks.build(name, input_size=size), plain)
    quant_pre_process(plain, folded, skip_symbolic_shape=True)
    activations = ort.QuantType.QInt8 if signed else ort.QuantType.QUInt8
    options = {"per_channel": True, "activation_type": activations, "weight_type": ort.QuantType.QInt8}
    ort.quantize_static(folded, made, Noise(), ort.QuantFormat.QDQ, **options)
    return graphs.load(made)


def convolved(layer: integers.Layer, x: np.ndarray, node: gs.Node) -> np.ndarray:
    """The sums of a Conv or Gemm of integers, in float64, where they are exact."""
    x = x.astype(np.float64) - layer.quantization.zero
    W = layer.W.astype(np.float64)
    if node.op == "Gemm":
        return x @ (W.T if node.attrs.get("transB", 0) else W)
    pads, strides, groups = node.attrs["pads"], node.attrs["strides"], node.attrs.get("group", 1)
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = np.lib.stride_tricks.sliding_window_view(x, W.shape[2:], (2, 3))[:, :, :: strides[0], :: strides[1]]
    parts = zip(np.split(windows, groups, 1), np.split(W, groups), strict=True)
    return np.concatenate([np.einsum("nihwyx,oiyx->nohw", each, w, optimize=True) for each, w in parts], 1)


def referred(node: gs.Node, values: dict[str, np.ndarray]) -> np.ndarray:
    """What a layer's integers are, from the integers of its input: sums, bias, limits of its activation, rounding."""
    layer = integers.layer(node)
    assert isinstance(layer, integers.Layer)
    along = (1, -1, 1, 1)[: len(node.outputs[0].shape)]
    real = convolved(layer, values[layer.x.name], node) * (layer.scales * layer.quantization.scale).reshape(along)
    if len(node.inputs) > 2:
        q, scale, *_ = (tensor.values for tensor in node.inputs[2].inputs[0].inputs)
        real = real + (q * scale).reshape(along)
    (reader,) = node.outputs[0].outputs
    if reader.op == "Relu":
        real, (reader,) = np.maximum(real, 0), reader.outputs[0].outputs
    if reader.op == "Clip":
        real, (reader,) = np.clip(real, 0, 6), reader.outputs[0].outputs
    written = integers.of(reader)
    assert written is not None
    return np.clip(np.rint(real / written.scale) + written.zero, *written.limits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "signed"), [("mobilenet_v2", True), ("resnet18", False), ("squeezenet1_1", True), ("resnet56", True)]
)
def test_every_layer_of_a_network_is_one_step_from_its_integers(name: str, signed: bool, tmp_path: Path) -> None:
    graph = quantized(name, 64 if name != "resnet56" else 32, tmp_path, signed)
    graph.outputs += [node.outputs[0] for node in graph.nodes if node.op == "QuantizeLinear"]
    built = lowering.build(graph, HOST, tmp_path, threads=2)
    inputs = inputs_of(graph)
    found = dict(zip((t.name for t in graph.outputs), Library(built.files[0], 2).run([*inputs.values()]), strict=True))
    layers = [node for node in graph.nodes if isinstance(integers.layer(node), integers.Layer)]
    assert len(layers) == sum(node.op in ("Conv", "Gemm") for node in graph.nodes)
    for node in layers:
        (reader,) = node.outputs[0].outputs
        while reader.op != "QuantizeLinear":
            (reader,) = reader.outputs[0].outputs
        steps = np.abs(referred(node, found) - found[reader.outputs[0].name])
        assert steps.max() <= 1, node.name
        assert np.count_nonzero(steps) <= 0.001 * steps.size, node.name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("shufflenet_v2", 64), ("efficientnet_b0", 64), ("mobilenet_v2", 96)])
def test_whole_networks_multiply_integers(name: str, size: int, tmp_path: Path) -> None:
    graph = quantized(name, size, tmp_path, signed=True)
    built = lowering.build(graph, HOST, tmp_path, threads=2)
    layers = [kernel for kernel in built.kernels if "Conv" in kernel.op or "Gemm" in kernel.op]
    assert {kernel.template for kernel in layers} <= {"int8_conv2d", "int8_depthwise", "int8_gemm"}
    inputs = inputs_of(graph)
    (expected,), (found,) = Session(graph).run(inputs).values(), Library(built.files[0], 2).run([*inputs.values()])
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.99


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason=f"no shared data at {DATA}")
def test_the_top_classes_of_photos_are_those_of_onnxruntime(tmp_path: Path) -> None:
    path = DATA / "models/imagenet_mobilenet_v2_1.0_224_qdq.onnx"
    facts = json.loads((DATA / "models/models.json").read_text())[path.name]
    graph = graphs.load(path)
    preprocess = Preprocess(crop=facts["crop"], mean=tuple(facts["mean"]), std=tuple(facts["std"]))
    photos = Dataset.open(DATA / "imagenet_sample", preprocess, graph.inputs)
    session, (file,) = Session(graph), lowering.build(graph, HOST, tmp_path, threads=2).files
    library, same = Library(file, 2), []
    for batch in photos.subset(0, 60).batches(1):
        (expected,), (found,) = session.run(batch).values(), library.run([*batch.values()])
        same.append(expected.argmax() == found.argmax())
    assert np.mean(same) >= 0.99
