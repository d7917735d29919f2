"""fold-batchnorm: into the layer before, into the layer behind, and alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import testing
from nnc.passes.fold_batchnorm import FoldBatchNorm

STATISTICS = "float[{0}] scale, float[{0}] bias, float[{0}] mean, float[{0}] var"
NORMALIZE = "BatchNormalization(%s, scale, bias, mean, var)"


def text(inputs: str, outputs: str, weights: str, *lines: str, channels: int = 6) -> str:
    body = "\n".join(lines)
    return (
        f"net ({inputs}) => ({outputs}) <{STATISTICS.format(channels)}{', ' + weights if weights else ''}> {{ {body} }}"
    )


AFTER = {
    "Conv": ("float[2, 4, 7, 7] x", "float[6, 4, 3, 3] W, float[6] B", "Conv<pads = [1, 1, 1, 1]>(x, W, B)", "Conv"),
    "Conv without bias": ("float[2, 4, 7, 7] x", "float[6, 4, 3, 3] W", "Conv(x, W)", "Conv"),
    "Conv of a signal": ("float[2, 4, 9] x", "float[6, 4, 3] W", "Conv<strides = [2]>(x, W)", "Conv"),
    "ConvTranspose": (
        "float[2, 4, 5, 5] x",
        "float[4, 6, 3, 3] W, float[6] B",
        "ConvTranspose(x, W, B)",
        "ConvTranspose",
    ),
    "Gemm": ("float[3, 5] x", "float[5, 6] W, float[6] B", "Gemm(x, W, B)", "Gemm"),
    "Gemm with factors": (
        "float[3, 5] x",
        "float[6, 5] W, float[1] B",
        "Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, W, B)",
        "Gemm",
    ),
    "Gemm with a matrix added": ("float[3, 5] x", "float[5, 6] W, float[3, 1] B", "Gemm(x, W, B)", "Gemm"),
    "MatMul": ("float[3, 5] x", "float[5, 6] W", "MatMul(x, W)", "Gemm"),
}


@pytest.mark.parametrize("case", AFTER)
def test_after_a_layer(case: str) -> None:
    inputs, weights, layer, op = AFTER[case]
    before = text(inputs, "float y", weights, f"a = {layer}", f"y = {NORMALIZE % 'a'}")
    testing.check(FoldBatchNorm(), before, ops=[op])


BEFORE = {
    "1x1": ("float[2, 6, 7, 7] x", "float[4, 6, 1, 1] W", "Conv<pads = [0, 0, 0, 0], strides = [2, 2]>(a, W)", "Conv"),
    "without padding": ("float[2, 6, 7, 7] x", "float[4, 6, 3, 3] W, float[4] B", "Conv(a, W, B)", "Conv"),
    "groups": ("float[2, 6, 7, 7] x", "float[9, 2, 3, 3] W", "Conv<group = 3>(a, W)", "Conv"),
    "valid": ("float[2, 6, 7, 7] x", "float[4, 6, 3, 3] W", 'Conv<auto_pad = "VALID">(a, W)', "Conv"),
    "1x1 transposed": ("float[2, 6, 5, 5] x", "float[6, 4, 1, 1] W", "ConvTranspose(a, W)", "ConvTranspose"),
    "Gemm": ("float[3, 6] x", "float[6, 4] W, float[4] B", "Gemm<alpha = 0.5, beta = 3.0>(a, W, B)", "Gemm"),
    "MatMul": ("float[3, 6] x", "float[6, 4] W", "MatMul(a, W)", "Gemm"),
}


@pytest.mark.parametrize("case", BEFORE)
def test_before_a_layer(case: str) -> None:
    inputs, weights, layer, op = BEFORE[case]
    before = text(inputs, "float y", weights, f"a = {NORMALIZE % 'x'}", f"y = {layer}")
    testing.check(FoldBatchNorm(), before, ops=[op])


@pytest.mark.parametrize(
    ("carriers", "ops"),
    [
        (["f = Flatten(a)"], ["Flatten", "Gemm"]),
        (["p = GlobalAveragePool(a)", "f = Flatten(p)"], ["GlobalAveragePool", "Flatten", "Gemm"]),
    ],
)
def test_before_gemm_through_pools_and_views(carriers: list[str], ops: list[str]) -> None:
    width = 6 if len(carriers) == 2 else 6 * 4
    lines = [f"a = {NORMALIZE % 'x'}", *carriers, "y = Gemm(f, W, B)"]
    before = text("float[3, 6, 2, 2] x", "float y", f"float[{width}, 4] W, float[4] B", *lines)
    testing.check(FoldBatchNorm(), before, ops=ops)


@pytest.mark.parametrize("shape", ["2, 6, 5", "2, 6, 5, 5", "2, 6, 3, 3, 3"])
def test_alone_it_becomes_depthwise(shape: str) -> None:
    before = text(f"float[{shape}] x", "float y", "", f"a = {NORMALIZE % 'x'}", "y = Relu(a)")
    result = testing.check(FoldBatchNorm(), before, ops=["Conv", "Relu"])
    assert result.graph.nodes[0].attrs["group"] == 6
    testing.check_unchanged(FoldBatchNorm(depthwise=False), before, "comes from an input of the graph")


def test_two_in_a_row_become_one_layer() -> None:
    lines = [f"a = {NORMALIZE % 'x'}", f"b = {NORMALIZE % 'a'}", "y = Relu(b)"]
    testing.check(FoldBatchNorm(), text("float[2, 6, 5, 5] x", "float y", "", *lines), ops=["Conv", "Relu"])


def test_two_layers_with_one_weight() -> None:
    lines = ["a = Conv(x, W)", f"b = {NORMALIZE % 'a'}", "c = Relu(x)", "d = Conv(c, W)", "y = Add(b, d)"]
    before = testing.graph(text("float[1, 4, 5, 5] x", "float y", "float[6, 4, 1, 1] W", *lines))
    testing.check(FoldBatchNorm(), before, ops=["Conv", "Relu", "Conv", "Add"])


@pytest.mark.parametrize(
    ("outputs", "lines", "reason"),
    [
        ("float y, float[2, 6, 5, 5] a", ["a = Conv(x, W)", "y = BN(a)"], "another reader"),
        ("float y", ["a = Conv(x, W)", "b = BN(a)", "y = Add(a, b)"], "another reader"),
        ("float y", ["a = Relu(x)", "b = BN(a)", "y = Relu(b)"], "comes from Relu"),
        (
            "float y",
            ["a = Conv(x, V)", "b = Relu(a)", "c = BN(b)", "y = Conv<pads = [1, 1, 1, 1]>(c, U)"],
            "comes from Relu",
        ),
    ],
)
def test_left_alone(outputs: str, lines: list[str], reason: str) -> None:
    lines = [line.replace("BN(", "BatchNormalization(").replace(")", ", scale, bias, mean, var)")
             if "BN(" in line else line for line in lines]  # fmt: skip
    weights = "float[6, 6, 1, 1] W, float[6, 6, 1, 1] V, float[4, 6, 3, 3] U"
    before = testing.graph(text("float[2, 6, 5, 5] x", outputs, weights, *lines))
    testing.check_unchanged(FoldBatchNorm(depthwise=False), before, reason)


def test_padded_convolution_takes_no_shift() -> None:
    lines = [f"a = {NORMALIZE % 'x'}", "y = Conv<pads = [1, 1, 1, 1]>(a, W)"]
    before = text("float[2, 6, 5, 5] x", "float y", "float[4, 6, 3, 3] W", *lines)
    testing.check_unchanged(FoldBatchNorm(depthwise=False), before, "pads its input with zeros")
    centred = testing.graph(before, bias=np.zeros(6), mean=np.zeros(6))
    testing.check(FoldBatchNorm(), centred, ops=["Conv"])


def test_training_mode() -> None:
    normalize = "y, m, v = BatchNormalization<training_mode = 1>(x, scale, bias, mean, var)"
    before = text("float[2, 6, 5, 5] x", "float[2, 6, 5, 5] y", "", normalize)
    testing.check_unchanged(FoldBatchNorm(), before, "training mode")


def test_statistics_that_are_not_constant() -> None:
    before = """net (float[2, 6, 5, 5] x, float[6] mean) => (float y) <float[6] scale, float[6] bias, float[6] var>
    { a = Relu(x) y = BatchNormalization(a, scale, bias, mean, var) }"""
    testing.check_unchanged(FoldBatchNorm(), before, "'mean' is not constant")


def test_weights_that_are_quantized_stay_so() -> None:
    before = text(
        "float[1, 2, 4, 4] x", "float y", "int8[6, 2, 1, 1] Q, float one",
        "W = DequantizeLinear(Q, one)", "a = Conv(x, W)", f"y = {NORMALIZE % 'a'}",
    )  # fmt: skip
    quantized = testing.graph(before, Q=np.arange(12).reshape(6, 2, 1, 1))
    testing.check_unchanged(FoldBatchNorm(depthwise=False), quantized, "'W' is not constant")


def test_weights_that_would_not_be_finite() -> None:
    before = text("float[1, 4, 4, 4] x", "float y", "float[6, 4, 1, 1] W", "a = Conv(x, W)", f"y = {NORMALIZE % 'a'}")
    broken = testing.graph(before, var=np.full(6, -1.0))
    testing.check_unchanged(FoldBatchNorm(), broken, "not be finite")


def test_matmul_of_three_dimensions_has_other_channels() -> None:
    before = text("float[2, 6, 5] x", "float y", "float[5, 4] W", "a = MatMul(x, W)", f"y = {NORMALIZE % 'a'}")
    testing.check_unchanged(FoldBatchNorm(depthwise=False), before, "last axis")


def test_half_precision() -> None:
    before = text("float[1, 4, 4, 4] x", "float y", "float[6, 4, 1, 1] W", "a = Conv(x, W)", f"y = {NORMALIZE % 'a'}")
    testing.check(FoldBatchNorm(), before.replace("float", "float16"), ops=["Conv"])


def test_excluded_by_name() -> None:
    before = text("float[1, 4, 4, 4] x", "float y", "float[6, 4, 1, 1] W", "a = Conv(x, W)", f"y = {NORMALIZE % 'a'}")
    testing.check_unchanged(FoldBatchNorm(exclude=("y*",)), before, "excluded by the recipe")


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 3),
    width=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    bias=st.booleans(),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_convolution(
    groups: int, width: int, kernel: int, stride: int, padding: int, bias: bool, transposed: bool, seed: int
) -> None:
    channels, filters = 2 * groups, width * groups
    op = "ConvTranspose" if transposed else "Conv"
    shape = f"{channels}, {width}" if transposed else f"{filters}, 2"
    padding = min(padding, kernel - 1)
    attributes = (
        f"group = {groups}, strides = [{stride}, {stride}], pads = [{padding}, {padding}, {padding}, {padding}]"
    )
    weights = f"float[{shape}, {kernel}, {kernel}] W" + f", float[{filters}] B" * bias
    lines = [f"a = {op}<{attributes}>(x, W{', B' if bias else ''})", f"y = {NORMALIZE % 'a'}"]
    before = testing.graph(
        text(f"float[1, {channels}, 6, 6] x", "float y", weights, *lines, channels=filters), seed=seed
    )
    testing.check(FoldBatchNorm(), before, ops=[op], seed=seed)
    behind = [f"a = {NORMALIZE % 'x'}", f"y = {op}<{attributes}>(a, W{', B' if bias else ''})"]
    before = testing.graph(
        text(f"float[1, {channels}, 6, 6] x", "float y", weights, *behind, channels=channels), seed=seed
    )
    testing.check(FoldBatchNorm(), before, seed=seed)
