"""split-conv-cp: at the true rank the outputs stay; what it leaves alone, and why."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import testing
from nnc.passes.split_conv_cp import SplitConvCp

RANK_2 = SplitConvCp(rank=2, when="always")


def text(conv: str, x: str = "2, 6, 9, 9", W: str = "8, 6, 3, 3", kind: str = "float") -> str:
    return f"net ({kind}[{x}] x) => ({kind} y) <{kind}[{W}] W, {kind}[{W.split(',')[0]}] B> {{ y = {conv} }}"


def low_rank(shape: tuple[int, ...], groups: int = 1, rank: int = 2, seed: int = 0) -> np.ndarray:
    """Weights [K, C / g, kh, kw] whose groups are sums of `rank` outer products."""
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((groups, rank, size)) for size in (shape[0] // groups, *shape[1:])]
    return np.einsum("grk,grc,gri,grj->gkcij", *factors).reshape(shape)


CONVOLUTIONS = {
    "3x3": ("Conv<pads = [1, 1, 1, 1]>(x, W, B)", (8, 6, 3, 3)),
    "without bias": ("Conv(x, W)", (8, 6, 3, 3)),
    "other sizes": ("Conv<pads = [2, 1, 0, 1]>(x, W, B)", (8, 6, 5, 2)),
    "strides": ("Conv<strides = [2, 3], pads = [1, 0, 2, 1]>(x, W, B)", (8, 6, 3, 3)),
    "dilations": ("Conv<dilations = [2, 1]>(x, W, B)", (8, 6, 3, 3)),
    "groups": ("Conv<group = 2>(x, W, B)", (16, 3, 3, 3)),
    "same": ('Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, W, B)', (8, 6, 3, 4)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_true_rank_keeps_the_outputs(case: str) -> None:
    conv, shape = CONVOLUTIONS[case]
    groups = 2 if case == "groups" else 1
    before = testing.graph(text(conv, W=", ".join(map(str, shape))), W=low_rank(shape, groups))
    result = testing.check(RANK_2, before, ops=["Conv"] * 4, exact=True)
    shapes = [node.inputs[1].shape for node in result.graph.nodes]
    r = 2 * groups
    K, C, height, width = shape
    assert shapes == [(r, C, 1, 1), (r, 1, height, 1), (r, 1, 1, width), (K, 2, 1, 1)]


@settings(max_examples=15, deadline=None)
@given(
    depth=st.integers(2, 5), width=st.integers(2, 5), kernel=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    stride=st.integers(1, 3), dilation=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_convolution(
    depth: int, width: int, kernel: tuple[int, int], stride: int, dilation: int, seed: int
) -> None:
    shape = (width, depth, *kernel)
    pads = f"[{kernel[0]}, 1, 0, {dilation}]"
    conv = f"Conv<strides = [1, {stride}], dilations = [{dilation}, 1], pads = {pads}>(x, W, B)"
    before = text(conv, f"1, {depth}, 9, 8", ", ".join(map(str, shape)))
    graph = testing.graph(before, seed=seed, W=low_rank(shape, 1, 1, seed))
    testing.check(SplitConvCp(rank=1, when="always"), graph, ops=["Conv"] * 4, exact=True, seed=seed)


def test_energy_finds_a_rank_that_keeps_it() -> None:
    before = testing.graph(text("Conv(x, W, B)"), W=low_rank((8, 6, 3, 3), rank=3))
    result = testing.check(SplitConvCp(energy=0.9999, when="smaller"), before, ops=["Conv"] * 4)
    assert 3 <= result.graph.nodes[0].inputs[1].shape[0] <= 6


def test_variational_bayes() -> None:
    rng = np.random.default_rng(0)
    W = low_rank((40, 40, 3, 3), rank=4) + 0.02 * rng.standard_normal((40, 40, 3, 3))
    before = testing.graph(text("Conv(x, W, B)", "1, 40, 5, 5", "40, 40, 3, 3"), W=W)
    result = testing.run(SplitConvCp(rank="vbmf", when="smaller"), before)
    assert result.graph.nodes[0].inputs[1].shape == (4, 40, 1, 1)


LEFT_ALONE = [
    (text("Conv(x, W, B)", W="8, 6, 1, 1"), "one tap: split-conv-svd"),
    (text("Conv(x, W, B)", W="8, 6, 3, 1"), "its kernel 3 x 1 has no two axes to split"),
    (text("Conv(x, W, B)", x="2, 6, 9", W="8, 6, 3"), "its kernel 3 has no two axes to split"),
    (text("Conv<group = 6>(x, W, B)", W="12, 1, 3, 3"), "it is depthwise"),
    (text("Conv(x, V, B)").replace("{ y", "{ V = Relu(W) y"), "'V' is not constant"),
]


@pytest.mark.parametrize(("before", "reason"), LEFT_ALONE, ids=[reason for _, reason in LEFT_ALONE])
def test_left_alone(before: str, reason: str) -> None:
    testing.check_unchanged(RANK_2, before, reason)
