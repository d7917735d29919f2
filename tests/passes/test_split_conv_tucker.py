"""split-conv-tucker: at the true ranks the outputs stay, in any number of dimensions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import testing
from nnc.passes.split_conv_tucker import SplitConvTucker

RANK_2 = SplitConvTucker(rank=2, when="always")


def text(conv: str, x: str = "2, 6, 9, 9", W: str = "6, 6, 3, 3", kind: str = "float") -> str:
    return f"net ({kind}[{x}] x) => ({kind} y) <{kind}[{W}] W, {kind}[{W.split(',')[0]}] B> {{ y = {conv} }}"


def low_rank(shape: tuple[int, ...], groups: int = 1, rank: int = 2, seed: int = 0) -> np.ndarray:
    """Weights [K, C / g, taps...] whose groups have cores of `rank` inputs and outputs."""
    rng = np.random.default_rng(seed)
    K, C, *taps = shape
    core = rng.standard_normal((groups, rank, rank, int(np.prod(taps))))
    inputs, outputs = rng.standard_normal((groups, rank, C)), rng.standard_normal((groups, K // groups, rank))
    return np.einsum("gks,gsrt,grc->gkct", outputs, core, inputs).reshape(shape)


CONVOLUTIONS = {
    "3x3": ("Conv<pads = [1, 1, 1, 1]>(x, W, B)", "2, 6, 9, 9", (6, 6, 3, 3)),
    "without bias": ("Conv(x, W)", "2, 6, 9, 9", (6, 6, 3, 3)),
    "strides": ("Conv<strides = [2, 3], pads = [1, 0, 2, 1]>(x, W, B)", "2, 6, 9, 9", (6, 6, 3, 3)),
    "dilations": ("Conv<dilations = [2, 1]>(x, W, B)", "2, 6, 9, 9", (6, 6, 3, 3)),
    "groups": ("Conv<group = 2>(x, W, B)", "2, 12, 9, 9", (12, 6, 3, 3)),
    "same": ('Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, W, B)', "2, 6, 9, 8", (6, 6, 3, 2)),
    "signal": ("Conv<strides = [2]>(x, W, B)", "2, 6, 9", (6, 6, 5)),
    "volume": ("Conv<pads = [1, 1, 0, 1, 1, 0]>(x, W, B)", "1, 6, 5, 5, 5", (6, 6, 3, 3, 1)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_true_ranks_keep_the_outputs(case: str) -> None:
    conv, x, shape = CONVOLUTIONS[case]
    groups = 2 if case == "groups" else 1
    before = testing.graph(text(conv, x, ", ".join(map(str, shape))), W=low_rank(shape, groups))
    result = testing.check(RANK_2, before, ops=["Conv"] * 3, exact=True)
    assert [node.inputs[1].shape[0] for node in result.graph.nodes] == [2 * groups, 2 * groups, shape[0]]


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 2), depth=st.integers(2, 5), width=st.integers(2, 5), kernel=st.integers(2, 3),
    stride=st.integers(1, 3), dilation=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_convolution(
    groups: int, depth: int, width: int, kernel: int, stride: int, dilation: int, seed: int
) -> None:
    shape = (groups * width, depth, kernel, kernel)
    conv = (
        f"Conv<group = {groups}, strides = [{stride}, 1], dilations = [1, {dilation}], "
        f"pads = [{kernel}, 1, 0, {dilation}]>(x, W, B)"
    )
    before = text(conv, f"1, {groups * depth}, 7, 8", ", ".join(map(str, shape)))
    graph = testing.graph(before, seed=seed, W=low_rank(shape, groups, 1, seed))
    testing.check(SplitConvTucker(rank=1, when="always"), graph, ops=["Conv"] * 3, exact=True, seed=seed)


def test_half_precision() -> None:
    before = testing.graph(text("Conv(x, W, B)", kind="float16"), W=low_rank((6, 6, 3, 3)) / 8)
    result = testing.check(RANK_2, before, exact=True)
    assert {node.inputs[1].dtype for node in result.graph.nodes} == {np.dtype(np.float16)}


def test_rank_is_the_larger_of_both() -> None:
    before = text("Conv(x, W, B)", "1, 12, 5, 5", "6, 12, 3, 3")
    result = testing.run(SplitConvTucker(rank=4, when="always"), before)
    assert [node.inputs[1].shape[0] for node in result.graph.nodes] == [4, 2, 6]


def test_energy_finds_the_true_ranks() -> None:
    rng = np.random.default_rng(0)
    core = rng.standard_normal((3, 2, 3, 3))
    W = np.einsum("ks,srij,rc->kcij", rng.standard_normal((8, 3)), core, rng.standard_normal((2, 8)))
    before = testing.graph(text("Conv(x, W, B)", "1, 8, 5, 5", "8, 8, 3, 3"), W=W)
    result = testing.check(SplitConvTucker(energy=1.0, when="always"), before, exact=True)
    assert [node.inputs[1].shape for node in result.graph.nodes] == [(2, 8, 1, 1), (3, 2, 3, 3), (8, 3, 1, 1)]


def test_variational_bayes_finds_the_ranks_below_noise() -> None:
    rng = np.random.default_rng(0)
    W = low_rank((40, 40, 3, 3), rank=4) + 0.05 * rng.standard_normal((40, 40, 3, 3))
    before = testing.graph(text("Conv(x, W, B)", "1, 40, 5, 5", "40, 40, 3, 3"), W=W)
    result = testing.run(SplitConvTucker(rank="vbmf", when="smaller"), before)
    assert [node.inputs[1].shape[:2] for node in result.graph.nodes] == [(4, 40), (4, 4), (40, 4)]


LEFT_ALONE = [
    (text("Conv(x, W, B)", W="8, 6, 1, 1"), "one tap: split-conv-svd"),
    (text("Conv<group = 6>(x, W, B)", W="6, 1, 3, 3"), "it is depthwise"),
    (text("Conv(x, V, B)").replace("{ y", "{ V = Relu(W) y"), "'V' is not constant"),
    (text("Conv(x, W, B)", x="1, 2, 5, 5", W="2, 2, 3, 3"), "rank 2 is no less than that of its weights, 2"),
]


@pytest.mark.parametrize(("before", "reason"), LEFT_ALONE, ids=[reason for _, reason in LEFT_ALONE])
def test_left_alone(before: str, reason: str) -> None:
    testing.check_unchanged(RANK_2, before, reason)


def test_core_of_a_chain_is_left_alone() -> None:
    before = """
    net (float[1, 12, 5, 5] x) => (float y) <float[6, 12, 1, 1] V, float[12, 6, 3, 3] W>
    { a = Conv(x, V) y = Conv(a, W) }
    """
    testing.check_unchanged(RANK_2, before, "it and 'a' are the factors of a matrix of rank 6")
