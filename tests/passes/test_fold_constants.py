"""fold-constants: values instead of nodes, unless that makes the model larger."""

import numpy as np
import pytest

from nnc import graph as graphs
from nnc import testing
from nnc.passes.fold_constants import FoldConstants

TEXT = (
    "net (float[2, 3] x) => (float y) <float[3] c, float[3, 4] W, int64[1] n = {3}, int64[2] big = {512, 512}> { %s }"
)


HALVES = "a, b = Split<axis = 1, num_outputs = 2>(W) d = MatMul(x, a) e = MatMul(x, b) y = Add(d, e)"


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("a = Neg(c) y = Add(x, a)", ["Add"]),
        ("t = Transpose(W) u = Transpose(t) v = Relu(u) y = MatMul(x, v)", ["MatMul"]),
        (HALVES, ["MatMul", "MatMul", "Add"]),
        ("s = Shape(c) a = Cast<to = 1>(s) y = Mul(x, a)", ["Mul"]),
        ("a = Relu(x) b = Neg(c) d = Add(a, b) y = Mul(d, b)", ["Relu", "Add", "Mul"]),
    ],
)
def test_folded(body: str, ops: list[str]) -> None:
    testing.check(FoldConstants(), testing.graph(TEXT % body, opset=18), ops=ops)


def test_what_depends_on_an_input_stays() -> None:
    assert testing.check(FoldConstants(), TEXT % "a = Add(x, c) y = Neg(a)").changed == 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Neg(c)", "'y' is an output of the graph"),
        ("a = RandomNormal<shape = [3]>() y = Add(x, a)", "random"),
        ("a = RandomNormalLike(c) y = Add(x, a)", "random"),
        ("a = ConstantOfShape(big) b = ReduceMax<keepdims = 0>(a) y = Add(x, b)", "1048560 bytes larger"),
    ],
)
def test_left_alone(body: str, reason: str) -> None:
    testing.check_unchanged(FoldConstants(), TEXT % body, reason)


def test_growth_is_a_parameter() -> None:
    body = "a = ConstantOfShape(big) b = ReduceMax<keepdims = 0>(a) y = Add(x, b)"
    testing.check(FoldConstants(growth=2**21), TEXT % body, ops=["Add"])


def test_quantized_weights_stay_quantized() -> None:
    text = """net (float[1, 2, 4, 4] x) => (float y) <int8[3, 2, 1, 1] Q, float s, float[3, 2, 1, 1] W>
    { a = DequantizeLinear(Q, s) b = Conv(x, a) c = QuantizeLinear(W, s) d = DequantizeLinear(c, s) e = Conv(x, d)
      y = Add(b, e) }"""
    before = testing.graph(text, Q=np.arange(6).reshape(3, 2, 1, 1), s=0.5)
    result = testing.check(FoldConstants(), before)
    assert result.ops == ["DequantizeLinear", "Conv", "DequantizeLinear", "Conv", "Add"]
    assert [tensor.dtype for tensor in graphs.constants(result.graph) if tensor.shape == (3, 2, 1, 1)] == [
        np.int8,
        np.uint8,
    ]


def test_operator_of_another_domain_stays() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    net (float[3] x) => (float[3] y) <float[3] c> { g = com.microsoft.Gelu(c) y = Add(x, g) }"""
    testing.check_unchanged(FoldConstants(), text, "domain 'com.microsoft'")


def test_what_onnxruntime_cannot_compute_stays_and_the_rest_folds() -> None:
    text = """net (float[3] x) => (float y) <float[3] c, int64[1] far = {9}>
    { a = Gather(c, far) b = Neg(c) d = Mul(b, a) y = Add(x, d) }"""
    result = testing.run(FoldConstants(), text)
    assert result.ops == ["Gather", "Mul", "Add"]
    assert "indices element out of data bounds" in result.skipped["a"]


def test_large_weights_are_computed_without_a_file() -> None:
    before = testing.graph(
        "net (float[1, 600] x) => (float y) <float[400, 600] W> { t = Transpose(W) y = MatMul(x, t) }"
    )
    result = testing.check(FoldConstants(), before, ops=["MatMul"])
    np.testing.assert_array_equal(graphs.constants(result.graph)[0].values, testing.weights(before)["W"].T)
