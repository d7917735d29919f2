"""Factorizations: exact ranks are found, optima are optima, errors are what outputs lose, CP is stable."""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from threadpoolctl import threadpool_limits

from nnc import factorize
from nnc.factorize import Factors, linear, vbmf

Method = Callable[..., Factors]


def _weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _moment(size: int, samples: int, seed: int = 1) -> np.ndarray:
    """Of correlated inputs of very different scale; singular with fewer samples than the size."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((size, size)) * np.exp(-4 * np.arange(size) / size)
    inputs = rng.standard_normal((samples, size)) @ mixed
    return inputs.T @ inputs / samples


def _share(W: np.ndarray, kernel: np.ndarray, moment: np.ndarray | None) -> float:
    """The share of the output energy that is lost, written out."""
    lost, whole = (each.reshape(len(W), -1).astype(np.float64) for each in (W - kernel, W))
    moment = np.eye(lost.shape[1]) if moment is None else moment
    return float(np.trace(lost @ moment @ lost.T) / np.trace(whole @ moment @ whole.T))


def _low_rank(method: str, K: int, C: int, kh: int, kw: int, seed: int = 0) -> tuple[np.ndarray, Method]:
    """A weight that `method` represents exactly at rank 3, or (3, 2), and the method at that rank."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    match method:
        case "svd":
            W, rank = np.einsum("kr,rcij->kcij", draw(K, 3), draw(3, C, kh, kw)), 3
        case "vertical":
            W, rank = np.einsum("krj,rci->kcij", draw(K, 3, kw), draw(3, C, kh)), 3
        case "horizontal":
            W, rank = np.einsum("kri,rcj->kcij", draw(K, 3, kh), draw(3, C, kw)), 3
        case "tucker":
            W = np.einsum("ks,srij,rc->kcij", draw(K, 2), draw(2, 3, kh, kw), draw(3, C))
            return W.astype(np.float32), partial(factorize.tucker, ranks=(3, 2))
        case _:
            W = np.einsum("kr,rc,ri,rj->kcij", draw(K, 3), draw(3, C), draw(3, kh), draw(3, kw))
            return W.astype(np.float32), partial(factorize.cp, rank=3)
    functions = {"svd": factorize.svd, "vertical": factorize.spatial, "horizontal": factorize.spatial}
    return W.astype(np.float32), partial(functions[method], rank=rank)


METHODS = ("svd", "vertical", "horizontal", "tucker", "cp")


# --- Exact ranks


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("aware", ["plain", "patches", "few patches", "channels"])
@pytest.mark.parametrize("shape", [(8, 7, 3, 3), (4, 5, 5, 3), (30, 4, 3, 1)])
def test_weights_of_exact_rank_are_reproduced(method: str, aware: str, shape: tuple[int, ...]) -> None:
    W, factorized = _low_rank(method, *shape)
    size = math.prod(shape[1:])
    moments = {"patches": (size, 4 * size), "few patches": (size, size // 2), "channels": (shape[1], 40)}
    moment = _moment(*moments[aware]) if aware in moments else None
    factors = factorized(W, moment=moment)
    assert factors.error < 1e-10
    if aware != "few patches":  # where nothing is measured nothing need be reproduced
        np.testing.assert_allclose(factors.kernel(), W, atol=1e-5 * np.linalg.norm(W))


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    shape=st.tuples(*[st.integers(1, 6)] * 2, *[st.integers(1, 3)] * 2),
    aware=st.sampled_from(["plain", "patches", "one patch", "channels"]),
    dtype=st.sampled_from(["float16", "float32", "float64", "bfloat16"]),
    exponent=st.integers(-6, 3),
)
def test_full_rank_loses_nothing_of_tiny_weights(
    method: str, shape: tuple[int, int, int, int], aware: str, dtype: str, exponent: int
) -> None:
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    K, C, kh, kw = shape
    W = (_weight(*shape) * 10.0**exponent).astype(kind)
    size = C * kh * kw
    moment = {"patches": _moment(size, 40), "one patch": _moment(size, 1), "channels": _moment(C, 40)}.get(aware)
    if method == "cp" and moment is not None:  # a local optimum: passes hold what no input excites, too
        moment = moment + 1e-3 * np.trace(moment) / len(moment) * np.eye(len(moment))
    factorized: dict[str, Callable[[], Factors]] = {
        "svd": lambda: factorize.svd(W, min(K, size), moment),
        "vertical": lambda: factorize.spatial(W, min(K * kw, C * kh), moment, vertical_first=True),
        "horizontal": lambda: factorize.spatial(W, min(K * kh, C * kw), moment, vertical_first=False),
        "tucker": lambda: factorize.tucker(W, (C, K), moment),
        "cp": lambda: factorize.cp(W, min(K, C) * kh * kw, moment),
    }
    factors = factorized[method]()
    assert all(weight.dtype == kind for weight in factors.weights)
    assert all(np.isfinite(weight.astype(np.float64)).all() for weight in factors.weights)
    rounding = {"float16": 1e-2, "bfloat16": 1e-2}.get(dtype, 1e-10)
    assert factors.error < (1e-2 if method == "cp" else rounding)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small matrices gain nothing by a second thread, and lose much to others that run beside."""
    with threadpool_limits(1, "blas"):
        yield


@pytest.mark.parametrize("method", METHODS)
def test_zeros(method: str) -> None:
    _, factorized = _low_rank(method, 6, 5, 3, 3)
    for moment in (None, _moment(45, 90), _moment(5, 20)):
        factors = factorized(np.zeros((6, 5, 3, 3), np.float32), moment=moment)
        assert (factors.error, factors.energy) == (0, 0)
        assert not factors.kernel().any()


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_are_always_zero(method: str) -> None:
    W, factorized = _weight(8, 6, 3, 3), _low_rank(method, 8, 6, 3, 3)[1]
    dead = np.repeat(np.arange(6) < 3, 9)
    moment = _moment(54, 200) * dead * dead[:, None]
    error = factorized(W, moment=moment).error
    alone = factorized(W[:, :3], moment=moment[:27, :27]).error
    assert error == pytest.approx(alone, rel=0.05)  # they cost nothing
    assert factorized(W, moment=np.zeros((54, 54))).error == 0
    weights = factorized(W, moment=moment).weights
    assert max(np.abs(weight).max() for weight in weights) < 100


def test_huge_dynamic_range() -> None:
    scales = np.geomspace(1e-2, 1e2, 12, dtype=np.float32)
    W = _weight(8, 12, 3, 3) * scales[:, None, None]
    inverse = np.repeat(1 / scales.astype(np.float64), 9)  # as behind a normalization: every channel counts
    moment = _moment(108, 300) * inverse * inverse[:, None]
    assert factorize.svd(W, 8, moment).error < 1e-10
    assert factorize.svd(W, 4, moment).error < 0.9 * _share(W, factorize.svd(W, 4).kernel(), moment)
    for scale in (1e-20, 1e-6, 1e6, 1e15):
        errors = [f(_weight(8, 6, 3, 3) * np.float32(scale)).error for f in _each_at_half(8, 6)]
        assert errors == pytest.approx([f(_weight(8, 6, 3, 3)).error for f in _each_at_half(8, 6)], rel=1e-3)


def _each_at_half(K: int, C: int) -> list[Method]:
    return [
        partial(factorize.svd, rank=K // 2),
        partial(factorize.spatial, rank=K, vertical_first=True),
        partial(factorize.tucker, ranks=(C // 2, K // 2)),
        partial(factorize.cp, rank=K),
    ]


# --- Optima


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (5, 4, 3, 3), (5, 4, 3), (5, 3, 2, 2, 2)])
def test_plain_svd_is_eckart_young(shape: tuple[int, ...]) -> None:
    W = _weight(*shape)
    values = np.linalg.svd(W.reshape(shape[0], -1).astype(np.float64), compute_uv=False)
    tails = 1 - np.concatenate([[0], np.cumsum(values**2)]) / (values**2).sum()
    np.testing.assert_allclose(factorize.svd_errors(W), tails, atol=1e-12)
    for rank in range(1, len(values) + 1):
        factors = factorize.svd(W, rank)
        assert factors.error == pytest.approx(tails[rank], abs=1e-12)
        assert [weight.shape for weight in factors.weights] == [
            (rank, *shape[1:]),
            (shape[0], rank, *[1] * (len(shape) - 2)),
        ]


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (5, 4, 3, 3), (5, 5, 1)])
def test_spectrum_has_the_curve_and_the_factors_of_svd(shape: tuple[int, ...]) -> None:
    W = _weight(*shape)
    most = min(shape[0], math.prod(shape[1:]))
    spectrum = factorize.Spectrum.of(W, most - 1)
    np.testing.assert_allclose(spectrum.errors, factorize.svd_errors(W), atol=1e-12)
    for rank in range(1, most):
        factors, expected = spectrum.factors(W, rank), factorize.svd(W, rank)
        assert factors.stages == expected.stages
        assert factors.error == pytest.approx(expected.error, abs=1e-12)
        np.testing.assert_allclose(factors.kernel(), expected.kernel(), atol=1e-5)


@pytest.mark.parametrize("samples", [2, 200])
@pytest.mark.parametrize("size", [2, 3])
def test_data_aware_svd_is_optimal(samples: int, size: int) -> None:
    """No rank-one matrix from a fine grid of directions, nor from random steps around the result, loses less."""
    W, moment = _weight(2, size, 1, 1), _moment(size, samples)
    factors = factorize.svd(W, 1, moment)
    matrix = W.reshape(2, size).astype(np.float64)
    for angle in np.linspace(0, np.pi, 721):
        u = np.array([np.cos(angle), np.sin(angle)])
        assert factors.error <= _share(matrix, np.outer(u, u @ matrix), moment) + 1e-9
    rng = np.random.default_rng(0)
    A, B = (weight.astype(np.float64) for weight in factors.weights)
    for scale in np.repeat([1.0, 0.1, 1e-3], 300):
        moved = [each + scale * rng.standard_normal(each.shape) for each in (B[:, :, 0, 0], A[:, :, 0, 0])]
        assert factors.error <= _share(matrix, moved[0] @ moved[1], moment) + 1e-9


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(1, 3), st.integers(1, 3)),
    samples=st.sampled_from([1, 10, 300]),
    of_channels=st.booleans(),
    part=st.floats(0.1, 0.9),
)
def test_knowing_the_inputs_never_loses_more(
    shape: tuple[int, int, int, int], samples: int, of_channels: bool, part: float
) -> None:
    (K, C, kh, kw), W = shape, _weight(*shape)
    moment = _moment(C if of_channels else C * kh * kw, samples)
    patches = np.kron(moment, np.eye(kh * kw)) if of_channels else moment
    at = partial(_rank_at, part)
    for method, rank in (
        (factorize.svd, at(min(K, C * kh * kw))),
        (partial(factorize.spatial, vertical_first=True), at(min(K * kw, C * kh))),
        (partial(factorize.spatial, vertical_first=False), at(min(K * kh, C * kw))),
        (factorize.tucker, (at(C), at(K))),
    ):
        aware, plain = method(W, rank, moment), method(W, rank)
        assert aware.error == pytest.approx(_share(W, aware.kernel(), patches), abs=1e-9)
        assert aware.error <= _share(W, plain.kernel(), patches) * 1.02 + 1e-9


def _rank_at(part: float, most: int) -> int:
    return max(1, round(part * most))


def test_plain_spatial_is_the_best_of_its_matrix() -> None:
    W = _weight(6, 5, 3, 2)
    vertical = np.linalg.svd(W.transpose(0, 3, 1, 2).reshape(12, 15).astype(np.float64), compute_uv=False) ** 2
    horizontal = np.linalg.svd(W.transpose(0, 2, 1, 3).reshape(18, 10).astype(np.float64), compute_uv=False) ** 2
    for rank in (1, 4, 10):
        lost = [each[rank:].sum() / each.sum() for each in (vertical, horizontal)]
        assert factorize.spatial(W, rank, vertical_first=True).error == pytest.approx(lost[0], abs=1e-12)
        assert factorize.spatial(W, rank, vertical_first=False).error == pytest.approx(lost[1], abs=1e-12)
        assert factorize.spatial(W, rank).error == pytest.approx(min(lost), abs=1e-12)


@pytest.mark.parametrize("moment", [_moment(72, 300), _moment(72, 20)], ids=["regular", "singular"])
def test_no_sweep_loses_more(moment: np.ndarray) -> None:
    W = _weight(10, 8, 3, 3)
    for method in (
        partial(factorize.spatial, rank=6, vertical_first=True),
        partial(factorize.spatial, rank=6, vertical_first=False),
        partial(factorize.tucker, ranks=(2, 6)),
    ):
        errors = [method(W, moment=moment, sweeps=sweeps).error for sweeps in range(7)]
        assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(errors))
        assert errors[-1] < 0.999 * errors[0]


def test_sweeps_arrive_at_a_stationary_point() -> None:
    """Random steps around the factors, which move all of them at once, gain nothing of the first order."""
    W, moment = _weight(5, 4, 3, 3), _moment(36, 200)
    factors = factorize.spatial(W.astype(np.float64), 4, moment, vertical_first=True, sweeps=2000)
    A, B = factors.weights
    rng = np.random.default_rng(0)
    for _ in range(200):
        steps = [1e-4 * each.std() * rng.standard_normal(each.shape) for each in (A, B)]
        kernels = [np.einsum("krj,rci->kcij", B[:, :, 0] + s * steps[1][:, :, 0], A[..., 0] + s * steps[0][..., 0])
                   for s in (1, -1)]  # fmt: skip
        up, down = (_share(W, kernel, moment) for kernel in kernels)
        assert abs(up - down) < 0.02 * factors.error * 1e-2


@pytest.mark.parametrize("moment", [None, _moment(54, 200), _moment(54, 10), _moment(6, 40)])
def test_curves_say_what_every_rank_loses(moment: np.ndarray | None) -> None:
    W = _weight(8, 6, 3, 3)
    curve = factorize.svd_errors(W, moment)
    assert len(curve) == 9
    assert [factorize.svd(W, rank, moment).error for rank in range(1, 9)] == pytest.approx(curve[1:], abs=1e-8)
    for vertical in (True, False):
        curve = factorize.spatial_errors(W, moment, vertical_first=vertical)
        start = partial(factorize.spatial, W, moment=moment, vertical_first=vertical, sweeps=0)
        assert len(curve) == 19
        assert [start(rank).error for rank in range(1, 19)] == pytest.approx(curve[1:], abs=1e-8)
        shorter = factorize.spatial_errors(W, moment, vertical_first=vertical, limit=7)
        np.testing.assert_allclose(shorter, curve[:8], atol=1e-9)
    curves = factorize.tucker_errors(W, [1, 4, 6], moment)
    assert curves.shape == (3, 9)
    for row, inner in enumerate([1, 4, 6]):
        for outer in (1, 3, 8):
            error = factorize.tucker(W, (inner, outer), moment, sweeps=0).error
            # without a moment of the patches HOOI improves on the curve
            assert error <= curves[row, outer] + 1e-9
            assert error >= 0.8 * curves[row, outer] - 1e-9
    for each in (factorize.svd_errors(W, moment), factorize.spatial_errors(W, moment), *curves, *curves.T[1:]):
        assert (np.diff(each) <= 1e-9).all()
    assert curve[0] == curves[0, 0] == 1


@pytest.mark.parametrize("shape", [(3, 40, 1, 1), (40, 2, 3, 3), (1, 1, 1, 1), (1, 5, 3, 1), (5, 1, 1, 3)])
def test_curves_of_narrow_layers(shape: tuple[int, int, int, int]) -> None:
    (K, C, kh, kw), W = shape, _weight(*shape)
    for moment in (None, _moment(C * kh * kw, 300)):
        assert factorize.svd_errors(W, moment)[-1] < 1e-9
        assert len(factorize.spatial_errors(W, moment)) == min(K * kw, C * kh) + 1
        assert factorize.spatial_errors(W, moment)[-1] < 1e-8
        curves = factorize.tucker_errors(W, [1, C], moment)
        assert curves.shape == (2, K + 1)
        assert curves[-1, -1] < 1e-8


def test_tucker_keeps_what_rows_of_small_scale_carry() -> None:
    W, moment = _weight(4, 21, 1, 1), _moment(21, 29) * np.geomspace(1, 1e-9, 21) * np.geomspace(1, 1e-9, 21)[:, None]
    for inner, outer in itertools.product((1, 3, 9, 21), range(1, 5)):
        assert factorize.tucker(W, (inner, outer), moment).error <= (
            factorize.tucker_errors(W, [inner], moment)[0, outer] + 1e-9
        )


# --- Ranks


def test_largest_rank_within_a_budget() -> None:
    shape = (64, 32, 3, 3)
    whole = math.prod(shape)
    for stages, most in ((factorize.svd_stages, 64), (factorize.spatial_stages, 96), (factorize.cp_stages, 500)):
        rank = factorize.largest_rank(lambda r, stages=stages: factorize.params(stages(shape, r)), whole / 2, most)
        assert factorize.params(stages(shape, rank)) <= whole / 2 < factorize.params(stages(shape, rank + 1))
    assert factorize.largest_rank(lambda rank: rank, 0.5, 9) == 1
    assert factorize.largest_rank(lambda rank: rank, 100, 9) == 9


def test_proportional_ranks() -> None:
    assert factorize.proportional_ranks((64, 16, 3, 3), 32) == (8, 32)
    assert factorize.proportional_ranks((16, 64, 3, 3), 64) == (64, 16)
    assert factorize.proportional_ranks((100, 3, 3, 3), 1) == (1, 1)


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (64, 64), (64, 576), (200, 60)])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.1, 0.3])
def test_vbmf_finds_the_rank_below_the_noise(shape: tuple[int, int], noise: float) -> None:
    rng = np.random.default_rng(0)
    for rank in (1, 2, 5):
        planted = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
        assert factorize.vbmf_rank((planted + noise * rng.standard_normal(shape)).astype(np.float32)) == rank


def test_vbmf_of_little() -> None:
    noise = np.random.default_rng(0).standard_normal((64, 576))
    for matrix in (np.zeros((4, 6)), np.ones((1, 1)), np.ones((1, 7)), np.eye(3), noise, noise.T, 1e-30 * noise):
        assert factorize.vbmf_rank(matrix) == 1


def test_vbmf_minimizes_the_free_energy() -> None:
    """The noise variance is a global minimum: a far finer grid over all variances finds none that is lower."""
    rng = np.random.default_rng(3)
    for shape in ((12, 40), (30, 30)):
        matrix = rng.standard_normal((shape[0], 4)) @ rng.standard_normal((4, shape[1])) * 0.5
        matrix += rng.standard_normal(shape)
        ratio = shape[0] / shape[1]
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2 / shape[1]
        threshold = vbmf.threshold_ratio(ratio)
        found = vbmf.noise_variance(squares, ratio, threshold)
        tried = np.append(np.geomspace(squares[-1] / 2, squares.mean(), 20_000), found)
        energies = vbmf.free_energies(squares, tried, ratio, threshold)
        assert energies[-1] <= energies.min() + 1e-6
        assert found == pytest.approx(1, rel=0.25)


def test_vbmf_threshold() -> None:
    assert vbmf.threshold_ratio(1.0) == pytest.approx((1 + 2.5129) * (1 + 1 / 2.5129), rel=1e-4)
    for ratio in (1e-6, 1e-3, 0.1, 0.5):  # 2.5129 sqrt(ratio) is the approximation that Nakajima et al. give
        t = 2.5129 * math.sqrt(ratio)
        assert vbmf.threshold_ratio(ratio) == pytest.approx((1 + t) * (1 + ratio / t), rel=0.02)


def test_vbmf_ranks_of_tucker() -> None:
    W = _low_rank("tucker", 20, 30, 3, 3)[0]
    noisy = W + 0.05 * _weight(20, 30, 3, 3, seed=5)
    assert factorize.tucker_vbmf_ranks(noisy) == (3, 2)


# --- As convolutions


LAYERS = [
    {"strides": [1, 1], "pads": [1, 1, 1, 1]},
    {"strides": [2, 1], "pads": [0, 2, 1, 0], "dilations": [1, 2]},
    {"strides": [2, 3], "auto_pad": "SAME_UPPER"},
    {"strides": [3, 2], "auto_pad": "SAME_LOWER"},
    {},
]


@pytest.mark.parametrize("layer", LAYERS, ids=["padded", "uneven", "same-upper", "same-lower", "bare"])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_the_chain_computes_what_its_kernel_says(method: str, group: int, layer: dict[str, object]) -> None:
    order = {"vertical": True, "horizontal": False}
    _, factorized = _low_rank(method, 6, 4, 3, 5)
    if method in order:
        factorized = partial(factorized, vertical_first=order[method])
    W = _weight(6 * group, 4, 3, 5)
    factors = factorize.by_group(lambda part, moment: factorized(part, moment=moment), W, group)
    assert factors.params == sum(weight.size for weight in factors.weights)
    assert [weight.shape for weight in factors.weights] == [stage.shape for stage in factors.stages]
    x = _weight(2, 4 * group, 13, 14, seed=7)
    alone = {"kernel_shape": [3, 5], "group": group, **layer}
    expected = _convolve(x, [(factors.kernel().astype(np.float32), alone)])
    chain = _chain(factors, alone)
    np.testing.assert_allclose(_convolve(x, chain), expected, atol=2e-5 * np.abs(expected).max())
    lost = _share(W, factors.kernel(), None)
    assert factors.error == pytest.approx(lost, abs=1e-9)


@pytest.mark.parametrize("shape", [(6, 4, 3), (5, 3, 2, 3, 2)])
def test_chains_in_one_and_three_dimensions(shape: tuple[int, ...]) -> None:
    W, rank = _weight(*shape), len(shape) - 2
    layer = {"strides": [2] * rank, "pads": [1] * 2 * rank, "dilations": [1] * rank}
    x = _weight(1, shape[1], *[7] * rank, seed=7)
    for factors in (factorize.svd(W, 3), factorize.tucker(W, (2, 3))):
        expected = _convolve(x, [(factors.kernel().astype(np.float32), layer)])
        chain = [
            (weight, stage.attributes(layer)) for stage, weight in zip(factors.stages, factors.weights, strict=True)
        ]
        np.testing.assert_allclose(_convolve(x, chain), expected, atol=2e-5 * np.abs(expected).max())


def test_the_error_is_what_outputs_lose() -> None:
    """A moment measured on patches of real inputs predicts the loss of the convolution's outputs on them."""
    W, x = _weight(6, 4, 3, 3), np.abs(_weight(8, 4, 12, 12, seed=9))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 36).astype(np.float64)
    moment = patches.T @ patches / len(patches)
    whole = _convolve(x, [(W, {})])
    for method in METHODS:
        factors = _low_rank(method, 6, 4, 3, 3)[1](W, moment=moment)
        chain = _chain(factors, {})
        lost = ((_convolve(x, chain) - whole) ** 2).sum() / (whole**2).sum()
        assert factors.error == pytest.approx(lost, rel=1e-3)


def _chain(factors: Factors, layer: dict[str, object]) -> list[tuple[np.ndarray, dict[str, object]]]:
    return [(W, stage.attributes(layer)) for stage, W in zip(factors.stages, factors.weights, strict=True)]


def _convolve(x: np.ndarray, chain: list[tuple[np.ndarray, dict[str, object]]]) -> np.ndarray:
    import onnxruntime

    names = ["x", *(f"t{index}" for index in range(len(chain)))]
    nodes = [
        helper.make_node("Conv", [names[index], f"w{index}"], [names[index + 1]], **attributes)
        for index, (_, attributes) in enumerate(chain)
    ]
    weights = [numpy_helper.from_array(weight, f"w{index}") for index, (weight, _) in enumerate(chain)]
    read = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)
    written = helper.make_tensor_value_info(names[-1], onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "chain", [read], [written], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


# --- Groups


def test_groups_are_factorized_on_their_own() -> None:
    W = _weight(12, 4, 3, 3)
    moments = [_moment(36, 100, seed) for seed in range(3)]
    factors = factorize.by_group(lambda part, moment: factorize.svd(part, 2, moment), W, 3, moments)
    alone = [factorize.svd(part, 2, moment) for part, moment in zip(np.split(W, 3), moments, strict=True)]
    np.testing.assert_array_equal(factors.kernel(), np.concatenate([each.kernel() for each in alone]))
    energies = [each.energy for each in alone]
    assert factors.error == pytest.approx(np.average([each.error for each in alone], weights=energies))
    curve = factorize.errors_by_group(factorize.svd_errors, W, 3, moments)
    assert curve[2] == pytest.approx(factors.error, abs=1e-9)
    assert not factorize.errors_by_group(factorize.svd_errors, np.zeros_like(W), 3).any()


def test_depthwise_layers_are_groups_of_one() -> None:
    columns, rows = _weight(5, 3), _weight(5, 3, seed=1)
    W = np.einsum("ki,kj->kij", columns, rows)[:, None]
    factors = factorize.by_group(lambda part, _: factorize.spatial(part, 1, vertical_first=True), W, 5)
    assert [stage.shape for stage in factors.stages] == [(5, 1, 3, 1), (5, 1, 1, 3)]
    assert [stage.group for stage in factors.stages] == [5, 5]
    np.testing.assert_allclose(factors.kernel(), W, atol=1e-6)


def test_groups_in_different_orders_are_no_chain() -> None:
    W = np.concatenate([_low_rank(order, 6, 4, 3, 3)[0] for order in ("vertical", "horizontal")])
    with pytest.raises(ValueError, match="chains of different forms"):
        factorize.by_group(lambda part, moment: factorize.spatial(part, 3, moment), W, 2)


def test_positive_inverse_inverts() -> None:
    """Also where rounding leaves a matrix without Cholesky factors."""
    moment = _moment(12, 40)
    made = linear.positive_inverse(moment, 0.1)
    np.testing.assert_allclose(made @ (moment + 0.1 * np.eye(12)), np.eye(12), atol=1e-10)
    np.testing.assert_array_equal(made, made.T)
    made = linear.positive_inverse(np.diag([1.0, -2.0]), 0.5)
    np.testing.assert_allclose(made, np.diag([1 / 1.5, 1 / -1.5]))


def test_determinism() -> None:
    W, moment = _weight(16, 12, 3, 3), _moment(108, 50)
    for method, given_moment in itertools.product(METHODS, (None, moment)):
        factorized = _low_rank(method, 16, 12, 3, 3)[1]
        first, second = (factorized(W, moment=given_moment) for _ in range(2))
        assert [a.tobytes() for a in first.weights] == [b.tobytes() for b in second.weights]
    seeds = [factorize.cp(W, 20, seed=seed).weights[0].tobytes() for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


# --- CP


def _sensitivity(factors: Factors) -> float:
    """Sum of the squared norms of the rank-one components that `cp` found, relative to that of their sum.

    About 1 where they are orthogonal, large where they cancel each other.
    """
    a, p, q, b = (each.astype(np.float64) for each in factors.weights)
    columns = (each.reshape(len(each), -1) for each in (a, p, q, b.swapaxes(0, 1)))
    components = math.prod((each**2).sum(axis=1) for each in columns)
    return float(np.sum(components) / (factors.kernel() ** 2).sum())


def _sensitivity_of_plain_als(W: np.ndarray, rank: int, sweeps: int) -> float:
    """What tensorly's alternating least squares ends with."""
    from tensorly.decomposition import parafac

    found = parafac(W.astype(np.float64), rank, n_iter_max=sweeps, init="random", random_state=0, tol=0)
    norms = math.prod((factor**2).sum(axis=0) for factor in found.factors)
    return float((norms * found.weights**2).sum() / (W.astype(np.float64) ** 2).sum())


@pytest.mark.data
def test_cp_is_stable_on_real_layers(data: Path) -> None:
    model = onnx.load(data / "models" / "cifar10_resnet56.onnx")
    weights = [numpy_helper.to_array(each) for each in model.graph.initializer]
    layers = [W for W in weights if W.ndim == 4 and W.shape[2:] == (3, 3)]
    for W in layers[1::13]:
        rank = W.size // (2 * (len(W) + W.shape[1] + 6))  # half of the weights
        factors = factorize.cp(W, rank)
        assert _sensitivity(factors) < 3
        assert factors.error < factorize.svd_errors(W)[len(W) // 3]
        assert max(np.abs(weight).max() for weight in factors.weights) < 10
    W = layers[1]
    assert _sensitivity_of_plain_als(W, 30, 500) > 10 > 3 * _sensitivity(factorize.cp(W, 30))


def test_cp_of_random_layers_is_stable() -> None:
    """He-initialized, as in vgg16: nothing to find, and no reason to diverge."""
    W = _weight(96, 96, 3, 3) * np.float32(math.sqrt(2 / 864))
    factors = factorize.cp(W, 96)
    assert factors.error < 0.9
    assert _sensitivity(factors) < 1.5


def test_cp_knows_the_inputs() -> None:
    for seed, samples in itertools.product(range(3), (20, 300)):
        W, moment = _weight(16, 16, 3, 3, seed=seed), _moment(144, samples, seed + 10)
        aware = factorize.cp(W, 24, moment)
        assert aware.error < 0.7 * _share(W, factorize.cp(W, 24).kernel(), moment)
        assert _sensitivity(aware) < 20


# --- Wrong arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda W: factorize.svd(W, 0), "the rank must be from 1 to 8, not 0"),
        (lambda W: factorize.svd(W, 9), "the rank must be from 1 to 8, not 9"),
        (lambda W: factorize.spatial(W, 19), "the rank must be from 1 to 18, not 19"),
        (lambda W: factorize.tucker(W, (7, 1)), "the rank must be from 1 to 6, not 7"),
        (lambda W: factorize.tucker(W, (1, 9)), "the rank must be from 1 to 8, not 9"),
        (lambda W: factorize.cp(W, 0), "the rank must be from 1 to 432, not 0"),
        (lambda W: factorize.svd(W, 1, np.eye(5)), r"a moment \[5, 5\] fits neither the patches nor the channels"),
        (lambda W: factorize.cp(W, 1, np.eye(9)), r"a moment \[9, 9\] fits neither"),
        (lambda W: factorize.Spectrum.of(W, 4).factors(W, 5), "the rank must be from 1 to 4, not 5"),
        (lambda W: factorize.Spectrum.of(W / 0, 4), "not finite"),
        (lambda W: factorize.svd(W / 0, 1), "not finite"),
        (lambda W: factorize.svd(W, 1, np.full((6, 6), np.nan)), "not finite"),
        (lambda W: factorize.by_group(partial(factorize.svd, 1), W, 3), "8 channels can't be 3 groups"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_wrong_arguments(call: Callable[[np.ndarray], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(_weight(8, 6, 3, 3))
