"""split-conv-spatial: at the true rank the outputs stay, whichever axis comes first."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import testing
from nnc.passes.split_conv_spatial import SplitConvSpatial

RANK_2 = SplitConvSpatial(rank=2, when="always")


def text(conv: str, x: str = "2, 6, 9, 9", W: str = "8, 6, 3, 3", kind: str = "float") -> str:
    return f"net ({kind}[{x}] x) => ({kind} y) <{kind}[{W}] W, {kind}[{W.split(',')[0]}] B> {{ y = {conv} }}"


def low_rank(
    shape: tuple[int, ...], groups: int = 1, rank: int = 2, vertical_first: bool = True, seed: int = 0
) -> np.ndarray:
    """Weights [K, C / g, kh, kw] whose groups are sums of `rank` products of columns and rows."""
    rng = np.random.default_rng(seed)
    K, C, height, width = shape
    first, second = (height, width) if vertical_first else (width, height)
    A = rng.standard_normal((groups, rank, C, first))
    B = rng.standard_normal((groups, K // groups, rank, second))
    W = np.einsum("grci,gkrj->gkcij", A, B)
    return (W if vertical_first else W.swapaxes(3, 4)).reshape(shape)


CONVOLUTIONS = {
    "3x3": ("Conv<pads = [1, 1, 1, 1]>(x, W, B)", (8, 6, 3, 3)),
    "without bias": ("Conv(x, W)", (8, 6, 3, 3)),
    "other sizes": ("Conv<pads = [2, 1, 0, 1]>(x, W, B)", (8, 6, 5, 2)),
    "strides": ("Conv<strides = [2, 3], pads = [1, 0, 2, 1]>(x, W, B)", (8, 6, 3, 3)),
    "dilations": ("Conv<dilations = [2, 1]>(x, W, B)", (8, 6, 3, 3)),
    "groups": ("Conv<group = 2>(x, W, B)", (16, 3, 3, 3)),
    "same": ('Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, W, B)', (8, 6, 3, 4)),
    "same above": ('Conv<auto_pad = "SAME_UPPER", strides = [3, 2]>(x, W, B)', (8, 6, 3, 2)),
    "valid": ('Conv<auto_pad = "VALID">(x, W, B)', (8, 6, 3, 3)),
}


@pytest.mark.parametrize("vertical_first", [True, False])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_true_rank_keeps_the_outputs(case: str, vertical_first: bool) -> None:
    conv, shape = CONVOLUTIONS[case]
    W = low_rank(shape, 2 if case == "groups" else 1, vertical_first=vertical_first)
    before = testing.graph(text(conv, W=", ".join(map(str, shape))), W=W)
    result = testing.check(RANK_2, before, ops=["Conv", "Conv"], exact=True)
    kernels = [node.inputs[1].shape[2:] for node in result.graph.nodes]
    parts = [(shape[2], 1), (1, shape[3])]
    assert kernels == (parts if vertical_first else parts[::-1])


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3), depth=st.integers(1, 4), width=st.integers(1, 5),
    kernel=st.tuples(st.integers(2, 4), st.integers(2, 4)), stride=st.integers(1, 3), dilation=st.integers(1, 2),
    vertical_first=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_convolution(
    groups: int, depth: int, width: int, kernel: tuple[int, int], stride: int, dilation: int, vertical_first: bool,
    seed: int,
) -> None:  # fmt: skip
    shape = (groups * width, max(2, depth) if groups > 1 else depth, *kernel)
    conv = (
        f"Conv<group = {groups}, strides = [1, {stride}], dilations = [{dilation}, 1], "
        f"pads = [{kernel[0]}, 1, 0, {dilation}]>(x, W, B)"
    )
    before = text(conv, f"1, {groups * shape[1]}, 9, 8", ", ".join(map(str, shape)))
    graph = testing.graph(before, seed=seed, W=low_rank(shape, groups, 1, vertical_first, seed))
    testing.check(SplitConvSpatial(rank=1, when="always"), graph, ops=["Conv", "Conv"], exact=True, seed=seed)


def test_half_precision() -> None:
    before = testing.graph(text("Conv(x, W, B)", kind="float16"), W=low_rank((8, 6, 3, 3)))
    result = testing.check(RANK_2, before, exact=True)
    assert {node.inputs[1].dtype for node in result.graph.nodes} == {np.dtype(np.float16)}


def test_energy_finds_the_true_rank() -> None:
    before = testing.graph(text("Conv(x, W, B)"), W=low_rank((8, 6, 3, 3), rank=3))
    result = testing.run(SplitConvSpatial(energy=1.0, when="always"), before)
    assert result.graph.nodes[0].inputs[1].shape[0] == 3


def test_variational_bayes_finds_the_rank_below_noise() -> None:
    rng = np.random.default_rng(0)
    W = low_rank((40, 40, 3, 3), rank=4, vertical_first=False) + 0.05 * rng.standard_normal((40, 40, 3, 3))
    before = testing.graph(text("Conv(x, W, B)", "1, 40, 5, 5", "40, 40, 3, 3"), W=W)
    result = testing.run(SplitConvSpatial(rank="vbmf", when="smaller"), before)
    assert [node.inputs[1].shape for node in result.graph.nodes] == [(4, 40, 1, 3), (40, 4, 3, 1)]


LEFT_ALONE = [
    (text("Conv(x, W, B)", W="8, 6, 1, 1"), "one tap: split-conv-svd"),
    (text("Conv(x, W, B)", W="8, 6, 1, 3"), "its kernel 1 x 3 has no two axes to split"),
    (text("Conv(x, W, B)", x="2, 6, 9", W="8, 6, 3"), "its kernel 3 has no two axes to split"),
    (text("Conv(x, W, B)", x="1, 6, 4, 4, 4", W="8, 6, 3, 3, 3"), "its kernel 3 x 3 x 3 has no two axes to split"),
    (text("Conv<group = 6>(x, W, B)", W="6, 1, 3, 3"), "it is depthwise"),
    (text("Conv(x, V, B)").replace("{ y", "{ V = Relu(W) y"), "'V' is not constant"),
]


@pytest.mark.parametrize(("before", "reason"), LEFT_ALONE, ids=[reason for _, reason in LEFT_ALONE])
def test_left_alone(before: str, reason: str) -> None:
    testing.check_unchanged(RANK_2, before, reason)


def test_rank_that_is_too_high() -> None:
    testing.check_unchanged(SplitConvSpatial(rank=500), text("Conv(x, W, B)"), "no less than that of its weights, 18")
