"""fuse-gemm: products, sums and transposes of matrices."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import testing
from nnc.passes.fuse_gemm import FuseGemm

WEIGHTS = "float[5, 6] W, float[6, 5] V, float[6] c, float[3, 6] m"
TEXT = f"net (float[3, 5] x, float[5, 3] z) => (float y) <{WEIGHTS}> {{ %s }}"
LINEAR = "net (float[%s] x) => (float y) <float[5, 6] W, float[%s] c> { a = MatMul(x, W) y = Add(a, c) }"
INTEGERS = "net (int32[1, 1] x) => (int32 y) <int32[1, 1] W = {2}, int32 c = {1}> { a = MatMul(x, W) y = Add(a, c) }"


@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul(x, W) y = Add(a, c)",
        "a = MatMul(x, W) y = Add(c, a)",
        "a = MatMul(x, W) y = Add(a, m)",
        "a = Gemm<alpha = 0.5>(x, W) y = Add(a, c)",
        "t = Transpose(z) y = MatMul(t, W)",
        "t = Transpose<perm = [1, 0]>(V) y = MatMul(x, t)",
        "t = Transpose(z) y = Gemm<transB = 1>(t, V)",
        "t = Transpose(V) a = MatMul(x, t) y = Add(a, c)",
        "t = Transpose(z) u = Transpose(V) y = Gemm(t, u, c)",
    ],
)
def test_becomes_gemm(body: str) -> None:
    testing.check(FuseGemm(), TEXT % body, ops=["Gemm"])


def test_sum_of_two_products() -> None:
    testing.check(FuseGemm(), TEXT % "a = MatMul(x, W) b = MatMul(x, W) y = Add(a, b)", ops=["MatMul", "Gemm"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TEXT % "a = MatMul(x, W) b = Add(a, c) y = Add(b, a)", "second reader"),
        (LINEAR % ("2, 3, 5", "6"), "no product"),
        (LINEAR % ("1, 5", "3, 6"), "not fit"),
        (LINEAR % ("3, 5", "1, 3, 6"), "not fit"),
        (INTEGERS, "integers"),
    ],
)
def test_left_alone(text: str, reason: str) -> None:
    testing.check_unchanged(FuseGemm(), text, reason)


def test_bias_is_not_added_twice() -> None:
    result = testing.check(FuseGemm(), TEXT % "a = Gemm(x, W, c) y = Add(a, c)")
    assert result.ops == ["Gemm", "Add"]


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 3), depth=st.integers(1, 4), columns=st.integers(1, 3), left=st.booleans(), right=st.booleans(),
    added=st.sampled_from(["", "1", "N", "1, N", "M, 1", "M, N"]),
)  # fmt: skip
def test_any_matrices(rows: int, depth: int, columns: int, left: bool, right: bool, added: str) -> None:
    added = added.replace("M", str(rows)).replace("N", str(columns))
    x = f"{depth}, {rows}" if left else f"{rows}, {depth}"
    w = f"{columns}, {depth}" if right else f"{depth}, {columns}"
    steps = ["a = Transpose(x)" if left else "a = Relu(x)", "b = Transpose(W)" if right else "b = Neg(W)"]
    steps += ["p = MatMul(a, b)", "y = Add(p, c)" if added else "y = Neg(p)"]
    text = f"net (float[{x}] x) => (float y) <float[{w}] W, float[{added or 1}] c> {{ {' '.join(steps)} }}"
    testing.check(FuseGemm(), text)
