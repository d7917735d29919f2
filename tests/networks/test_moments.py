"""The expected mean and variance of tensors against samples."""

import numpy as np
import pytest

from nnc.networks.moments import Moments, mixture

RNG = np.random.default_rng(0)
A, B = Moments(0.5, 2.0), Moments(-1.0, 0.3)


def sample(moments: Moments, count: int = 400_000) -> np.ndarray:
    return RNG.normal(moments.mean, np.sqrt(moments.variance), count)


def expect(moments: Moments, values: np.ndarray) -> None:
    assert moments.mean == pytest.approx(values.mean(), abs=0.02)
    assert moments.variance == pytest.approx(values.var(), rel=0.02)
    assert moments.power == pytest.approx(np.mean(values**2), rel=0.02)


@pytest.mark.parametrize("function", [lambda z: np.maximum(z, 0), lambda z: np.clip(z, 0, 6), np.tanh, np.square])
def test_functions(function) -> None:
    expect(A.through(function), function(sample(A)))


def test_relu_of_a_standard_normal() -> None:
    relu = Moments(0.0, 1.0).through(lambda z: np.maximum(z, 0))
    assert relu.power == pytest.approx(0.5)
    assert relu.mean == pytest.approx(1 / np.sqrt(2 * np.pi), rel=0.02)


def test_sums_and_products() -> None:
    expect(A + B, sample(A) + sample(B))
    expect(A * B, sample(A) * sample(B))


def test_mixtures() -> None:
    expect(mixture([A, B], [3, 1]), np.concatenate([sample(A, 600_000), sample(B, 200_000)]))
