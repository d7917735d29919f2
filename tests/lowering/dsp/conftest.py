"""Networks of bytes for a DSP, run in QEMU and compared with onnxruntime without optimizations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import lowering, target
from nnc.errors import NncError
from nnc.lowering.build import Built
from nnc.lowering.dsp import emulate
from nnc.session import Session

QCS605 = target.load("qcs605:dsp")


@dataclass
class Draft:
    """A QDQ model under construction: every method returns the name of a tensor."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def input(self, *shape: int, scale: float = 0.03, zero: int = 117) -> str:
        """Bytes, dequantized."""
        info = onnx.helper.make_tensor_value_info(f"x{len(self.inputs)}", onnx.TensorProto.UINT8, shape)
        self.inputs.append(info)
        return self.dq(info.name, scale, zero)

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(values, dtype), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, inputs, [name], name=f"n{len(self.nodes)}", **attrs))
        return name

    def q(self, x: str, scale: float = 0.05, zero: int = 101) -> str:
        return self.add("QuantizeLinear", x, self.constant(scale), self.constant(zero, np.uint8))

    def dq(self, q: str, scale: float = 0.05, zero: int = 101) -> str:
        return self.add("DequantizeLinear", q, self.constant(scale), self.constant(zero, np.uint8))

    def rounded(self, x: str, scale: float = 0.05, zero: int = 101) -> str:
        return self.dq(self.q(x, scale, zero), scale, zero)

    def weights(self, *shape: int, axis: int = 0) -> str:
        """Of all bytes, -128 among them, with a scale for each channel."""
        values = self.rng.integers(-128, 128, shape).astype(np.int8)
        values.reshape(-1)[0] = -128
        depth = values.size / shape[axis]
        scale = self.rng.uniform(0.5, 2.0, shape[axis]) * 0.01 / np.sqrt(depth)
        zero = self.constant(np.zeros(shape[axis]), np.int8)
        return self.add("DequantizeLinear", self.constant(values, np.int8), self.constant(scale), zero, axis=axis)

    def bias(self, channels: int) -> str:
        return self.constant(self.rng.uniform(-1, 1, channels))

    def conv(self, x: str, ins: int, outs: int, kernel: tuple[int, int], **attrs: Any) -> str:
        W = self.weights(outs, ins // attrs.get("group", 1), *kernel)
        return self.add("Conv", x, W, self.bias(outs), kernel_shape=list(kernel), **attrs)

    def output(self, *names: str) -> None:
        self.outputs += [onnx.ValueInfoProto(name=name) for name in names]

    def graph(self) -> gs.Graph:
        proto = onnx.helper.make_graph(self.nodes, "draft", self.inputs, self.outputs, self.constants)
        model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        return graphs.from_model(onnx.shape_inference.infer_shapes(model, data_prop=True))


@pytest.fixture
def draft() -> Draft:
    return Draft()


@pytest.fixture(scope="session")
def qemu() -> None:
    """Skips tests where networks for a DSP can't run."""
    try:
        emulate.emulator()
    except NncError as error:
        pytest.skip(f"{error.message} ({error.hint})")


Compare = Callable[..., Built]


@pytest.fixture
def compare(qemu: None, tmp_path: Path) -> Compare:
    """Build a graph, run it in QEMU, and assert that bytes are at most one step from onnxruntime's, nearly all equal.

    `share` is how many of the bytes of one output may be a step off. Outputs in floats must agree within rounding.
    """

    def check(graph: gs.Graph, share: float = 0.005) -> Built:
        rng = np.random.default_rng(1)
        drawn = {x.name: rng.standard_normal(x.shape).astype(x.dtype) for x in graph.inputs if x.dtype == np.float32}
        inputs = {x.name: drawn.get(x.name, rng.integers(0, 256, x.shape).astype(np.uint8)) for x in graph.inputs}
        built = lowering.build(graph, QCS605, tmp_path)
        found = emulate.EmulatedDsp(tmp_path / "module.o", QCS605).run(list(inputs.values()))
        for (name, expected), values in zip(Session(graph).run(inputs).items(), found, strict=True):
            assert (values.shape, values.dtype) == (expected.shape, expected.dtype), name
            if expected.dtype == np.float32:
                assert np.abs(values - expected).max() <= 2e-6 * np.abs(expected).max(), name
                continue
            steps = np.abs(values.astype(int) - expected.astype(int))
            assert steps.max() <= 1, f"{name} is {steps.max()} steps off"
            assert np.count_nonzero(steps) <= share * steps.size + 1, f"{name}: {np.mean(steps > 0):.2%} are off"
        return built

    return check
