"""merge-duplicates: common subexpressions and equal constants."""

from pathlib import Path

import numpy as np
import pytest

from nnc import graph as graphs
from nnc import testing
from nnc.passes.merge_duplicates import MergeDuplicates


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("a = Relu(x) b = Relu(x) y = Add(a, b)", ["Relu", "Add"]),
        ("a = Relu(x) b = Neg(a) d = Relu(x) e = Neg(d) y = Mul(b, e)", ["Relu", "Neg", "Mul"]),
        ("a = Neg(x) b = Add(a, x) d = Add(x, a) y = Mul(b, d)", ["Neg", "Add", "Mul"]),
        ("a = LeakyRelu<alpha = 0.5>(x) b = LeakyRelu<alpha = 0.5>(x) y = Sub(a, b)", ["LeakyRelu", "Sub"]),
        ("a = Add(x, c) b = Add(d, x) y = Mul(a, b)", ["Add", "Mul"]),
        (
            "a, b = Split<axis = 1>(x, h) e, f = Split<axis = 1>(x, h) g = Add(a, f) y = Add(b, g)",
            ["Split", "Add", "Add"],
        ),
    ],
)
def test_merged(body: str, ops: list[str]) -> None:
    text = f"net (float[2, 4] x) => (float y) <float[4] c, float[4] d, int64[2] h = {{2, 2}}> {{ {body} }}"
    testing.check(MergeDuplicates(), testing.graph(text, c=np.arange(4), d=np.arange(4)), ops=ops)


@pytest.mark.parametrize(
    "body",
    [
        "a = Neg(x) b = Sub(a, x) d = Sub(x, a) y = Mul(b, d)",
        "a = LeakyRelu<alpha = 0.5>(x) b = LeakyRelu<alpha = 0.25>(x) y = Sub(a, b)",
        "a = RandomNormalLike(x) b = RandomNormalLike(x) d = Sub(a, b) y = Mul(d, x)",
        "a = Add(x, c) b = Add(x, d) y = Mul(a, b)",
        "a = Clip(x, low) b = Clip(x, , low) y = Add(a, b)",
    ],
)
def test_different(body: str) -> None:
    text = f"net (float[2, 4] x) => (float y) <float[4] c, float[4] d, float low = {{0.5}}> {{ {body} }}"
    assert testing.run(MergeDuplicates(), text).changed == 0


def test_quantization_keeps_its_structure() -> None:
    text = """net (float[2, 4] x) => (float y) <float s = {0.5}>
    { a = QuantizeLinear(x, s) b = DequantizeLinear(a, s) c = DequantizeLinear(a, s) y = Add(b, c) }"""
    assert testing.check(MergeDuplicates(), text).changed == 0


def test_one_is_an_output() -> None:
    result = testing.check(MergeDuplicates(), "net (float[3] x) => (float b) { a = Relu(x) z = Neg(a) b = Relu(x) }")
    assert result.ops == ["Relu", "Neg"]
    assert [tensor.name for tensor in result.graph.outputs] == ["b"]


def test_both_are_outputs() -> None:
    text = "net (float[3] x) => (float a, float b) { a = Relu(x) b = Relu(x) }"
    testing.check_unchanged(MergeDuplicates(), text, "both outputs")


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (np.arange(400.0), np.arange(400.0), True),
        (np.arange(400.0), np.r_[np.arange(399.0), 0.5], False),
        (np.array([0.0]), np.array([-0.0]), False),
    ],
)
def test_constants(one: np.ndarray, other: np.ndarray, shared: bool) -> None:
    size = len(one)
    text = f"net (float[{size}] x) => (float y) <float[{size}] c, float[{size}] d> {{ a = Add(x, c) y = Mul(a, d) }}"
    result = testing.check(MergeDuplicates(), testing.graph(text, c=one, d=other))
    assert (result.graph.nodes[0].inputs[1] is result.graph.nodes[1].inputs[1]) is shared


def test_nan_equals_itself() -> None:
    text = "net (float[2] x) => (float y) <float[2] c, float[2] d> { a = Pow(x, c) b = Pow(x, d) y = Add(a, b) }"
    before = testing.graph(text)
    for constant in graphs.constants(before):
        constant.values = np.array([1, np.nan], np.float32)
    assert testing.run(MergeDuplicates(), before).ops == ["Pow", "Add"]


def test_convolutions_with_equal_weights(tmp_path: Path) -> None:
    text = """net (float[1, 4, 6, 6] x) => (float y) <float[4, 4, 3, 3] V, float[4, 4, 3, 3] W>
    { a = Conv(x, V) b = Conv(x, W) y = Add(a, b) }"""
    W = np.random.default_rng(0).standard_normal((4, 4, 3, 3))
    graphs.save(testing.graph(text, V=W, W=W), tmp_path / "m.onnx")
    testing.check(MergeDuplicates(), graphs.load(tmp_path / "m.onnx"), ops=["Conv", "Add"])
