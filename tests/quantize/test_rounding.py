"""Rounding under a quadratic error: exact where it can be, never worse than nearest, optimal on small cases."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc.quantize import rounding
from nnc.quantize.rounding import Grid


def problem(seed: int, groups: int, rows: int, columns: int, bits: int) -> tuple[np.ndarray, np.ndarray, Grid]:
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((groups, rows, columns))
    x = rng.standard_normal((groups, 4 * columns, columns)) @ rng.standard_normal((groups, columns, columns))
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(W).max(2) / largest
    return W, x.transpose(0, 2, 1) @ x / x.shape[1], Grid(scale, np.zeros_like(scale), -largest, largest)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999), groups=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 12),
    bits=st.sampled_from([2, 4, 8]),
)  # fmt: skip
def test_never_worse_than_the_nearest(seed: int, groups: int, rows: int, columns: int, bits: int) -> None:
    W, H, grid = problem(seed, groups, rows, columns, bits)
    integers = rounding.rounded(W, H, grid)
    assert np.array_equal(integers, np.rint(integers))
    assert integers.min() >= grid.least
    assert integers.max() <= grid.largest
    damped = rounding.damped(H)
    nearest = rounding.error(W, grid.values(grid.nearest(W)), damped)
    assert np.all(rounding.error(W, grid.values(integers), damped) <= nearest * (1 + 1e-9) + 1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_no_single_weight_can_do_better(seed: int) -> None:
    W, H, grid = problem(seed, 1, 3, 6, 4)
    integers, damped = rounding.rounded(W, H, grid), rounding.damped(H)
    found = rounding.error(W, grid.values(integers), damped)
    for column, step in itertools.product(range(6), (-1, 1)):
        other = integers.copy()
        other[:, :, column] = np.clip(other[:, :, column] + step, grid.least, grid.largest)
        assert np.all(rounding.error(W, grid.values(other), damped) >= found - 1e-9)


def test_near_the_best_of_all() -> None:
    """Against every one of 4^5 roundings: in sum at most a quarter above the least, where the nearest is far above."""
    found, least, nearest = 0.0, 0.0, 0.0
    for seed in range(20):
        W, H, _ = problem(seed, 1, 1, 5, 2)
        scale = np.abs(W).max(2) / 1.5
        grid, damped = Grid(scale, np.zeros_like(scale), -2, 1), rounding.damped(H)
        every = np.array(list(itertools.product(range(-2, 2), repeat=5)), float)[None]
        least += rounding.error(W, grid.values(every), damped).min()
        found += rounding.error(W, grid.values(rounding.rounded(W, H, grid)), damped).sum()
        nearest += rounding.error(W, grid.values(grid.nearest(W)), damped).sum()
    assert found <= 1.25 * least
    assert nearest > 2 * found


def test_weights_on_the_grid_stay() -> None:
    W, H, grid = problem(0, 2, 3, 7, 4)
    on = grid.values(grid.nearest(W))
    np.testing.assert_array_equal(grid.values(rounding.rounded(on, H, grid)), on)


def test_independent_inputs_give_the_nearest() -> None:
    W, _, grid = problem(1, 2, 3, 7, 4)
    H = np.eye(7)[None] * np.random.default_rng(0).uniform(0.5, 2, (2, 1, 1))
    np.testing.assert_array_equal(rounding.rounded(W, H, grid), grid.nearest(W))


def test_inputs_that_are_never_there() -> None:
    W, _, grid = problem(1, 2, 3, 7, 4)
    np.testing.assert_array_equal(rounding.rounded(W, np.zeros((2, 7, 7)), grid), grid.nearest(W))


def test_many_columns_in_blocks() -> None:
    W, H, grid = problem(0, 1, 4, 300, 4)
    damped = rounding.damped(H)
    found = rounding.error(W, grid.values(rounding.rounded(W, H, grid)), damped).sum()
    assert found < 0.5 * rounding.error(W, grid.values(grid.nearest(W)), damped).sum()


def test_scales_with_outliers_shrink() -> None:
    W, H, grid = problem(0, 1, 4, 200, 4)
    W[:, :, 0] *= 3
    H[:, 0] = H[:, :, 0] = 0
    grid = Grid(np.abs(W).max(2) / 7, grid.zero, -7, 7)
    better = rounding.rescaled(W, H, grid)
    assert np.all(better.scale < grid.scale)
    moved = [each.values(each.nearest(W)) for each in (better, grid)]
    assert (
        rounding.error(W, moved[0], np.eye(200)[None] * H).sum()
        < rounding.error(W, moved[1], np.eye(200)[None] * H).sum()
    )


def test_rows_that_lose_nothing_keep_their_scale() -> None:
    W, H, grid = problem(0, 1, 4, 20, 4)
    W[:, 0] = 0
    assert rounding.rescaled(W, H, grid).scale[0, 0] == grid.scale[0, 0]
