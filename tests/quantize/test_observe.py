"""Observers find the ranges that exhaustive search finds, whatever the order and size of batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import quantize
from nnc.quantize import Scheme
from nnc.quantize.observe import BINS, METHODS, Histogram, observer

UINT8, INT8 = Scheme("uint8", False), Scheme("int8", True)


def normal(size: int = 20_000) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(size).astype(np.float32)


def seen(method: quantize.Method, values: np.ndarray, parts: int = 7, **options: float):
    found = observer(method, **options)
    for part in np.array_split(values, parts):
        found.add(part)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_nothing_and_zeros(method: quantize.Method) -> None:
    for values in (np.zeros(0, np.float32), np.zeros((3, 4), np.float32)):
        assert seen(method, values).range(UINT8) == (0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told(method: quantize.Method, bad: float) -> None:
    found = observer(method)
    found.add(normal(10))
    assert found.finite
    found.add(np.array([1.0, bad], np.float32))
    found.add(normal(10))
    assert not found.finite


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-15, 1.0, 1e37])
def test_ranges_grow_with_the_values(method: quantize.Method, size: float) -> None:
    values = normal()
    expected, found = (np.array(seen(method, each).range(UINT8)) for each in (values, values * np.float32(size)))
    np.testing.assert_allclose(found, expected * size, rtol=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-43, 1e-38, 1e-20])
def test_values_below_the_least_scale(method: quantize.Method, size: float) -> None:
    found = seen(method, normal() * np.float32(size))
    assert found.finite
    scale, _ = quantize.scale_zero_point(*found.range(UINT8), UINT8)
    assert scale == np.float32(quantize.LEAST_SCALE)


def test_percentile() -> None:
    values = np.concatenate([normal(), np.zeros(20_000, np.float32)])
    found = seen("percentile", values, percentile=99.0).range(UINT8)
    np.testing.assert_allclose(found, np.quantile(values, [0.01, 0.99]), atol=2e-3)
    assert seen("percentile", values, percentile=100.0).range(UINT8) == (values.min(), values.max())


def test_moving_average_follows() -> None:
    found = observer("moving-average")
    for _ in range(1000):
        found.add(np.array([-1, 3], np.float32))
    found.add(np.array([-100, 300], np.float32))
    np.testing.assert_allclose(found.range(UINT8), (-1 - 0.99, 3 + 2.97), rtol=1e-6)


@pytest.mark.parametrize("scheme", [UINT8, INT8], ids=["uint8", "int8"])
@pytest.mark.parametrize("positive", [True, False])
def test_mse_is_least(scheme: Scheme, positive: bool) -> None:
    """No other range on a fine grid rounds the values themselves much better."""
    values = np.concatenate([normal(), np.array([25, -14], np.float32)])
    values = np.maximum(values, 0) if positive else values
    found = seen("mse", values).range(scheme)

    def error(low: float, high: float) -> float:
        parameters = quantize.scale_zero_point(low, high, scheme)
        return float(np.square(values - quantize.fake_quantized(values, *parameters, scheme)).mean())

    shares = np.linspace(0.05, 1, 60)
    lows = shares * values.min() if not positive and not scheme.symmetric else [found[0]]
    least = min(error(low, high) for low in lows for high in shares * values.max())
    assert error(*found) <= least * 1.02


def test_entropy_cuts_outliers_off() -> None:
    values = np.concatenate([np.abs(normal(100_000)), np.array([60.0], np.float32)])
    low, high = seen("entropy", values).range(UINT8)
    assert low == 0
    assert 3 < high < 30


def test_entropy_keeps_what_is_even() -> None:
    values = np.random.default_rng(0).uniform(0, 1, 200_000).astype(np.float32)
    assert seen("entropy", values).range(UINT8)[1] > 0.95


@given(
    batches=st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=20), max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_a_histogram_loses_nothing(batches: list[list[float]]) -> None:
    histogram = Histogram("mse")
    for batch in batches:
        histogram.add(np.array(batch, np.float32))
    values = np.concatenate([np.zeros(0, np.float32), *(np.array(batch, np.float32) for batch in batches)])
    assert histogram.counts.sum() + histogram.zeros == values.size
    assert (histogram.counts >= 0).all()
    largest = float(np.abs(values).max(initial=0))
    assert largest <= histogram.limit or not largest
    assert histogram.limit < 2 * largest or not largest or histogram.limit == largest


def test_bins_hold_what_lies_in_them() -> None:
    values = normal() * np.linspace(0.01, 5, 20_000, dtype=np.float32)
    histogram = seen("mse", values, parts=31)
    edges = np.arange(-BINS, BINS + 1) * (histogram.limit / BINS)
    expected, _ = np.histogram(values, edges)
    assert np.abs(np.cumsum(expected) - np.cumsum(histogram.counts)).max() <= 3  # at an edge, rounding decides
