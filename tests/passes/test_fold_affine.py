"""fold-affine: arithmetic with constants, before and behind every layer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import testing
from nnc.passes.fold_affine import FoldAffine

CONV = "net (float[2, 4, 7, 7] x) => (float y) <float[6, 4, 3, 3] W, float[6] B, float[%s] c> { %s }"
BEHIND = "net (float[2, 4, 7, 7] x) => (float y) <float[6, 4, 3, 3] W, float[4, 1, 1] c> { %s }"


@pytest.mark.parametrize("constant", ["6, 1, 1", "1, 6, 1, 1", "1", "1, 1, 1, 1"])
@pytest.mark.parametrize("arithmetic", ["Mul(a, c)", "Mul(c, a)", "Div(a, c)", "Add(c, a)", "Sub(a, c)", "Sub(c, a)"])
def test_behind_a_convolution(arithmetic: str, constant: str) -> None:
    before = CONV % (constant, f"a = Conv<pads = [1, 1, 1, 1]>(x, W, B) y = {arithmetic}")
    testing.check(FoldAffine(), before, ops=["Conv"])


@pytest.mark.parametrize("arithmetic", ["Mul(x, c)", "Div(x, c)", "Add(c, x)", "Sub(x, c)", "Sub(c, x)"])
def test_before_a_convolution(arithmetic: str) -> None:
    testing.check(FoldAffine(), BEHIND % f"a = {arithmetic} y = Conv(a, W)", ops=["Conv"])


@pytest.mark.parametrize(("arithmetic", "folds"), [("Mul", True), ("Div", True), ("Add", False), ("Sub", False)])
def test_padding_is_scaled_but_not_shifted(arithmetic: str, folds: bool) -> None:
    before = BEHIND % f"a = {arithmetic}(x, c) y = Conv<pads = [1, 1, 1, 1]>(a, W)"
    if folds:
        testing.check(FoldAffine(), before, ops=["Conv"])
    else:
        testing.check_unchanged(FoldAffine(), before, "pads its input with zeros")


def test_several_in_a_row() -> None:
    body = "a = Conv(x, W, B) b = Mul(a, c) d = Add(b, c) e = Div(d, c) y = Sub(c, e)"
    testing.check(FoldAffine(), CONV % ("6, 1, 1", body), ops=["Conv"])


@pytest.mark.parametrize(
    ("layer", "ops"),
    [
        ("a = Gemm(x, W) y = Mul(a, c)", ["Gemm"]),
        ("a = Gemm<transB = 1, beta = 2.0>(x, V, c) y = Add(a, c)", ["Gemm"]),
        ("a = MatMul(x, W) y = Div(a, c)", ["MatMul"]),
        ("a = MatMul(x, W) y = Add(a, c)", ["Gemm"]),
        ("a = Sub(x, d) y = MatMul(a, W)", ["Gemm"]),
        ("a = Mul(x, d) y = Gemm<alpha = 0.5>(a, W, c)", ["Gemm"]),
        ("a = Add(x, d) y = Gemm<alpha = 0.5>(a, W)", ["Gemm"]),
    ],
)
def test_matrices(layer: str, ops: list[str]) -> None:
    weights = "float[5, 6] W, float[6, 5] V, float[6] c, float[5] d"
    testing.check(FoldAffine(), f"net (float[3, 5] x) => (float y) <{weights}> {{ {layer} }}", ops=ops)


@pytest.mark.parametrize("body", ["a = Mul(x, c) y = BN(a, c, c, c, v)", "a = BN(x, c, c, c, v) y = Sub(c1, a)"])
def test_normalization_takes_it(body: str) -> None:
    text = "net (float[2, 6, 3] x) => (float y) <float[6] c, float[6] v, float[6, 1] c1, float[6, 1] s> {%s}"
    body = body.replace("BN", "BatchNormalization").replace("Mul(x, c)", "Mul(x, s)")
    testing.check(FoldAffine(), text % body, ops=["BatchNormalization"])


def test_product_of_three_dimensions() -> None:
    text = "net (float[2, 3, 5] x) => (float y) <float[5, 6] W, float[6] c> { a = MatMul(x, W) y = %s(a, c) }"
    testing.check(FoldAffine(), text % "Mul", ops=["MatMul"])
    testing.check_unchanged(FoldAffine(), text % "Add", "MatMul has no bias")


@pytest.mark.parametrize(
    ("constant", "body", "reason"),
    [
        ("5, 5", "a = Conv(x, W, B) y = Add(a, c)", "not the same for all of a channel"),
        ("6, 5, 5", "a = Conv(x, W, B) y = Mul(a, c)", "not the same for all of a channel"),
        ("1, 1, 1, 1, 1", "a = Conv(x, W, B) y = Mul(a, c)", "grows"),
        ("6, 1, 1", "a = Conv(x, W, B) b = Mul(a, c) y = Add(a, b)", "second reader"),
        ("1, 4, 1, 1", "a = Mul(x, c) b = Conv(a, W) d = Relu(a) e = Conv(d, W) y = Add(b, e)", "second reader"),
    ],
)
def test_left_alone(constant: str, body: str, reason: str) -> None:
    testing.check_unchanged(FoldAffine(), CONV % (constant, body), reason)


def test_intermediate_value_is_an_output() -> None:
    before = CONV % ("6, 1, 1", "a = Conv(x, W, B) y = Mul(a, c)")
    testing.check_unchanged(FoldAffine(), before.replace("float y", "float y, float a"), "is an output")


def test_division_by_zero_stays_at_run_time() -> None:
    before = testing.graph(CONV % ("6, 1, 1", "a = Conv(x, W, B) y = Div(a, c)"), c=np.zeros((6, 1, 1)))
    testing.check_unchanged(FoldAffine(), before, "not be finite")


def test_constant_divided_by_a_layer_is_no_affine_map() -> None:
    result = testing.check(FoldAffine(), CONV % ("6, 1, 1", "a = Conv(x, W, B) y = Div(c, a)"))
    assert result.changed == 0


def test_activation_between_keeps_them_apart() -> None:
    result = testing.check(FoldAffine(), CONV % ("6, 1, 1", "a = Conv(x, W, B) b = Relu(a) y = Mul(b, c)"))
    assert result.ops == ["Conv", "Relu", "Mul"]


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3),
    width=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    transposed=st.booleans(),
    arithmetic=st.sampled_from(["Mul(a, c)", "Div(a, c)", "Add(a, c)", "Sub(a, c)", "Sub(c, a)"]),
    behind=st.booleans(),
    scalar=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_convolution(
    groups: int, width: int, kernel: int, stride: int, transposed: bool, arithmetic: str, behind: bool, scalar: bool,
    seed: int,
) -> None:  # fmt: skip
    channels, filters = 2 * groups, width * groups
    layer = f"{'ConvTranspose' if transposed else 'Conv'}<group = {groups}, strides = [{stride}, {stride}]>"
    shape = f"{channels}, {width}" if transposed else f"{filters}, 2"
    c = "1" if scalar else f"{filters if behind else channels}, 1, 1"
    body = f"a = {layer}(x, W) y = {arithmetic}" if behind else f"a = {arithmetic.replace('a', 'x')} y = {layer}(a, W)"
    weights = f"float[{shape}, {kernel}, {kernel}] W, float[{c}] c"
    text = f"net (float[1, {channels}, 6, 6] x) => (float y) <{weights}> {{ {body} }}"
    testing.check(FoldAffine(), testing.graph(text, seed=seed), seed=seed)
