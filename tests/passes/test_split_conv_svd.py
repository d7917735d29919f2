"""split-conv-svd: at the true rank the outputs stay, for every convolution; what it leaves alone, and why."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import testing
from nnc.passes.split_conv_svd import SplitConvSvd

RANK_2 = SplitConvSvd(rank=2, when="always")


def text(conv: str, x: str = "2, 6, 9, 9", W: str = "8, 6, 3, 3", kind: str = "float") -> str:
    return f"net ({kind}[{x}] x) => ({kind} y) <{kind}[{W}] W, {kind}[{W.split(',')[0]}] B> {{ y = {conv} }}"


def low_rank(shape: tuple[int, ...], groups: int = 1, rank: int = 2, seed: int = 0) -> np.ndarray:
    """Weights [K, C / g, taps...] whose groups are matrices of a rank."""
    rng = np.random.default_rng(seed)
    second = rng.standard_normal((groups, shape[0] // groups, rank))
    return (second @ rng.standard_normal((groups, rank, int(np.prod(shape[1:]))))).reshape(shape)


CONVOLUTIONS = {
    "1x1": ("Conv(x, W, B)", "2, 6, 9, 9", (8, 6, 1, 1)),
    "3x3": ("Conv<pads = [1, 1, 1, 1]>(x, W, B)", "2, 6, 9, 9", (8, 6, 3, 3)),
    "without bias": ("Conv(x, W)", "2, 6, 9, 9", (8, 6, 3, 3)),
    "strides": ("Conv<strides = [2, 3], pads = [1, 0, 2, 1]>(x, W, B)", "2, 6, 9, 9", (8, 6, 3, 3)),
    "dilations": ("Conv<dilations = [2, 1]>(x, W, B)", "2, 6, 9, 9", (8, 6, 3, 3)),
    "groups": ("Conv<group = 2>(x, W, B)", "2, 12, 9, 9", (16, 6, 3, 3)),
    "same": ('Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, W, B)', "2, 6, 9, 8", (8, 6, 3, 2)),
    "signal": ("Conv<strides = [2]>(x, W, B)", "2, 6, 9", (8, 6, 5)),
    "volume": ("Conv<pads = [1, 1, 0, 1, 1, 0]>(x, W, B)", "1, 6, 5, 5, 5", (8, 6, 3, 3, 1)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_true_rank_keeps_the_outputs(case: str) -> None:
    conv, x, shape = CONVOLUTIONS[case]
    groups = 2 if case == "groups" else 1
    before = testing.graph(text(conv, x, ", ".join(map(str, shape))), W=low_rank(shape, groups))
    result = testing.check(RANK_2, before, ops=["Conv", "Conv"], exact=True)
    assert [node.inputs[1].shape[0] for node in result.graph.nodes] == [2 * groups, shape[0]]


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3), depth=st.integers(2, 4), width=st.integers(2, 5), kernel=st.integers(1, 3),
    stride=st.integers(1, 3), dilation=st.integers(1, 2), bias=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_convolution(
    groups: int, depth: int, width: int, kernel: int, stride: int, dilation: int, bias: bool, seed: int
) -> None:
    shape = (groups * width, depth, kernel, kernel)
    conv = (
        f"Conv<group = {groups}, strides = [{stride}, {stride}], dilations = [{dilation}, {dilation}], "
        f"pads = [{kernel}, 1, 0, {dilation}]>(x, W{', B' if bias else ''})"
    )
    before = text(conv, f"1, {groups * depth}, 7, 8", ", ".join(map(str, shape)))
    graph = testing.graph(before, seed=seed, W=low_rank(shape, groups, 1, seed))
    testing.check(SplitConvSvd(rank=1, when="always"), graph, ops=["Conv", "Conv"], exact=True, seed=seed)


def test_batchnorm_behind_stays_right() -> None:
    statistics = "float[8] scale, float[8] shift, float[8] mean, float[8] var"
    before = text("Conv(x, W, B)").replace("y = Conv(x, W, B)", "c = Conv(x, W) y = BN(c, scale, shift, mean, var)")
    before = before.replace("BN", "BatchNormalization").replace("> {", f", {statistics}> {{")
    graph = testing.graph(before, W=low_rank((8, 6, 3, 3)))
    testing.check(RANK_2, graph, ops=["Conv", "Conv", "BatchNormalization"], exact=True)


def test_half_precision() -> None:
    before = testing.graph(text("Conv(x, W, B)", kind="float16"), W=low_rank((8, 6, 3, 3)))
    result = testing.check(RANK_2, before, exact=True)
    assert {node.inputs[1].dtype for node in result.graph.nodes} == {np.dtype(np.float16)}


LEFT_ALONE = [
    (text("Conv<group = 6>(x, W, B)", W="6, 1, 3, 3"), "it is depthwise"),
    (text("Conv(x, V, B)").replace("{ y", "{ V = Relu(W) y"), "'V' is not constant"),
    (text("Conv(x, W, C)").replace("{ y", "{ C = Relu(B) y"), "'C' is not constant"),
    (text("Conv(x, W, B)", kind="double"), "its weights are float64"),
    (text("Conv(x, W, B)", W="2, 6, 3, 3"), "rank 2 is no less than that of its weights, 2"),
    (text("Conv(x, W, B)", x="1, 1, 5, 5", W="1, 1, 3, 3"), "rank 2 is no less than that of its weights, 1"),
]


@pytest.mark.parametrize(("before", "reason"), LEFT_ALONE, ids=[reason for _, reason in LEFT_ALONE])
def test_left_alone(before: str, reason: str) -> None:
    testing.check_unchanged(RANK_2, before, reason)


def test_quantized_weights_are_left_alone() -> None:
    before = text("Conv(x, W, B)").replace("float[8, 6, 3, 3] W", "int8[8, 6, 3, 3] Q, float one")
    before = before.replace("{ y", "{ W = DequantizeLinear(Q, one) y")
    quantized = testing.graph(before, Q=np.ones((8, 6, 3, 3)), one=1.0)
    testing.check_unchanged(RANK_2, quantized, "its weights are quantized: split before quantizing")


def test_weights_that_are_not_finite_are_left_alone() -> None:
    broken = testing.graph(text("Conv(x, W, B)"), W=np.where(np.eye(8, 54), np.inf, 1).reshape(8, 6, 3, 3))
    testing.check_unchanged(RANK_2, broken, "its weights are not finite")


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ("smaller", r"rank 7 of 8 is no smaller: 442 parameters instead of 440"),
        ("faster", r"rank 7 of 8 is no faster: [\d.]+ us instead of [\d.]+ us"),
    ],
)
def test_no_gain(when: str, reason: str) -> None:
    testing.check_unchanged(SplitConvSvd.model_validate({"rank": 7, "when": when}), text("Conv(x, W, B)"), reason)
