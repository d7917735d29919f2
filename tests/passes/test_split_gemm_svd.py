"""split-gemm-svd: at the true rank the outputs stay, in every form that a matrix product takes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import testing
from nnc.passes.split_gemm_svd import SplitGemmSvd

RANK_3 = SplitGemmSvd(rank=3, when="always")


def text(product: str, x: str = "5, 12", W: str = "12, 16", kind: str = "float", more: str = ", float[16] B") -> str:
    return f"net ({kind}[{x}] x) => ({kind} y) <{kind}[{W}] W{more}> {{ y = {product} }}"


def low_rank(rows: int, columns: int, rank: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) / np.sqrt(rank)


PRODUCTS = {
    "Gemm": (text("Gemm(x, W, B)"), ["Gemm", "Gemm"]),
    "without bias": (text("Gemm(x, W)", more=""), ["Gemm", "Gemm"]),
    "transposed": (text("Gemm<transB = 1>(x, W, B)", W="16, 12"), ["Gemm", "Gemm"]),
    "factors": (text("Gemm<alpha = 0.5, beta = -2.0>(x, W, B)"), ["Gemm", "Gemm"]),
    "one bias for all": (text("Gemm(x, W, B)", more=", float[1] B"), ["Gemm", "Gemm"]),
    "bias of one row": (text("Gemm<beta = 3.0>(x, W, B)", more=", float[1, 16] B"), ["Gemm", "Gemm"]),
    "MatMul": (text("MatMul(x, W)", more=""), ["Gemm", "Gemm"]),
    "MatMul of sequences": (text("MatMul(x, W)", x="2, 7, 12", more=""), ["MatMul", "MatMul"]),
    "MatMul of four dimensions": (text("MatMul(x, W)", x="2, 3, 7, 12", more=""), ["MatMul", "MatMul"]),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_true_rank_keeps_the_outputs(case: str) -> None:
    before, ops = PRODUCTS[case]
    W = low_rank(16, 12) if "transB" in before else low_rank(12, 16)
    result = testing.check(RANK_3, testing.graph(before, W=W), ops=ops, exact=True)
    assert [3 in node.inputs[1].shape for node in result.graph.nodes] == [True, True]


@settings(max_examples=30, deadline=None)
@given(
    inputs=st.integers(2, 20), outputs=st.integers(2, 20), rank=st.integers(1, 6), batch=st.integers(1, 4),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_matrix(inputs: int, outputs: int, rank: int, batch: int, seed: int) -> None:
    rank = min(rank, inputs, outputs)
    before = testing.graph(
        text("Gemm(x, W, B)", f"{batch}, {inputs}", f"{inputs}, {outputs}", more=f", float[{outputs}] B"),
        seed=seed, W=low_rank(inputs, outputs, rank, seed),
    )  # fmt: skip
    result = testing.check(SplitGemmSvd(rank=rank, when="always"), before, exact=True, seed=seed)
    assert result.changed == (rank < min(inputs, outputs))


def test_half_precision() -> None:
    before = text("Gemm(x, W, B)", kind="float16", more=", float16[16] B")
    result = testing.check(RANK_3, testing.graph(before, W=low_rank(12, 16)), exact=True)
    assert {node.inputs[1].dtype for node in result.graph.nodes} == {np.dtype(np.float16)}


def test_layers_that_share_a_weight_are_left_alone() -> None:
    """Each of them would get factors of its own. They have no names."""
    lines = "a = Gemm(x, W, B) r = Relu(x) b = Gemm(r, W) y = Add(a, b)"
    before = text("Gemm(x, W, B)").replace("y = Gemm(x, W, B)", lines)
    result = testing.run(RANK_3, testing.graph(before, W=low_rank(12, 16)))
    assert result.changed == 0
    assert [reason.partition(" with ")[0] for reason in result.skipped.values()] == ["its weights are shared"] * 2


def test_energy_finds_the_true_rank() -> None:
    result = testing.run(
        SplitGemmSvd(energy=1.0, when="always"), testing.graph(text("Gemm(x, W, B)"), W=low_rank(12, 16))
    )
    assert result.graph.nodes[0].outputs[0].shape == [5, 3]


def test_variational_bayes_finds_the_rank_below_noise() -> None:
    rng = np.random.default_rng(0)
    W = low_rank(80, 100, 5) + 0.05 * rng.standard_normal((80, 100))
    before = testing.graph(text("Gemm(x, W)", "5, 80", "80, 100", more=""), W=W)
    result = testing.run(SplitGemmSvd(rank="vbmf", when="always"), before)
    assert result.graph.nodes[0].outputs[0].shape == [5, 5]


def test_the_chain_loses_what_the_smallest_singular_values_hold() -> None:
    rng = np.random.default_rng(0)
    W = rng.standard_normal((12, 16))
    before = testing.graph(text("Gemm(x, W)", more=""), W=W)
    after = testing.weights(testing.run(RANK_3, before).graph)
    first, second = sorted(after.values(), key=lambda each: each.shape[0])
    values = np.linalg.svd(W, compute_uv=False)
    assert np.linalg.norm(W.T - second @ first) ** 2 == pytest.approx((values[3:] ** 2).sum(), rel=1e-5)


QUANTIZED = """
net (float[5, 12] x) => (float y) <int8[12, 16] Q, float one>
{ W = DequantizeLinear(Q, one) y = MatMul(x, W) }
"""
LEFT_ALONE = [
    (text("Gemm<transA = 1>(x, W, B)", x="12, 5"), "its input is transposed"),
    (text("Gemm(x, V, B)").replace("{ y", "{ V = Relu(W) y"), "'V' is not constant"),
    (text("MatMul(W, x)", x="16, 4", more=""), "'x' is not constant"),
    (text("MatMul(x, W)", x="2, 5, 12", W="2, 12, 16", more=""), "its weights are no matrix"),
    (text("Gemm(x, W, B)", more=", float[5, 16] B"), "what it adds is no number per output"),
    (text("Gemm(x, W, B)", more=", float[5, 1] B"), "what it adds is no number per output"),
    (text("Gemm(x, W, B)", kind="double", more=", double[16] B"), "its weights are float64"),
    (text("Gemm(x, W, B)", x="12, 12", W="12, 3", more=", float[3] B"), "rank 3 is no less than that of its"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "reason"), LEFT_ALONE, ids=[reason for _, reason in LEFT_ALONE])
def test_left_alone(before: str, reason: str) -> None:
    testing.check_unchanged(RANK_3, before, reason)


def test_quantized_weights_are_left_alone() -> None:
    before = testing.graph(QUANTIZED, Q=np.ones((12, 16)), one=1.0)
    testing.check_unchanged(RANK_3, before, "its weights are quantized")


def test_factors_are_not_split_again() -> None:
    chain = "net (float[5, 12] x) => (float y) <float[12, 6] V, float[6, 16] W> { a = MatMul(x, V) y = MatMul(a, W) }"
    testing.check_unchanged(RANK_3, chain, "it and 'y' are the factors of a matrix of rank 6")
    testing.check_unchanged(RANK_3, chain, "it and 'a' are the factors of a matrix of rank 6")
    between = chain.replace("y = MatMul(a, W)", "r = Relu(a) y = MatMul(r, W)")
    assert testing.run(RANK_3, between).changed == 2
    widening = chain.replace("12, 6] V, float[6", "12, 40] V, float[40")
    assert testing.run(RANK_3, widening).changed == 2


def test_excluded_by_name() -> None:
    testing.check_unchanged(SplitGemmSvd(rank=3, exclude=("y*",)), text("Gemm(x, W, B)"), "excluded by the recipe")
