"""Allocations keep within their budget at the least error, and say what they saw on the way."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nnc.compression.budget import Allocation, Budget, Budgets, Metric, corrected, jointly
from nnc.errors import NncError


def test_a_budget_names_one_metric() -> None:
    assert (Budget(params=0.3).metric, Budget(params=0.3).share) == ("params", 0.3)
    for wrong in ({}, {"macs": 0.5, "params": 0.5}, {"macs": 0.0}, {"macs": 1.5}):
        with pytest.raises(ValidationError):
            Budget(**wrong)
    assert [Budget(**{each: 0.5}).figure for each in ("macs", "params", "latency")] == ["macs", "params", "latency_ms"]


def test_budgets_name_one_metric_or_more() -> None:
    both = Budgets(latency=0.6, params=0.75)
    assert both.shares == {"latency": 0.6, "params": 0.75}
    assert both.each == [Budget(latency=0.6), Budget(params=0.75)]
    assert Budget(macs=0.5).each == [Budget(macs=0.5)]
    for wrong in ({}, {"params": 0.5, "macs": 0.0}):
        with pytest.raises(ValidationError):
            Budgets(**wrong)


def additive(errors: list[np.ndarray], costs: list[np.ndarray]) -> Allocation:
    """Places whose costs add up."""
    return Allocation(
        errors,
        lambda place, state: costs[place],
        lambda state: float(sum(each[option] for each, option in zip(costs, state, strict=True))),
    )


def drawn(rng: np.random.Generator, places: int, convex: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Options that cost less and lose more the higher their number is."""
    errors, costs = [], []
    for _ in range(places):
        count = int(rng.integers(2, 6))
        steps = rng.uniform(0.1, 1.0, count - 1)
        errors.append(np.concatenate([[0.0], np.cumsum(np.sort(steps) if convex else steps)]))
        costs.append(1.0 + np.arange(count)[::-1])
    return errors, costs


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), share=st.floats(0.3, 1.0))
def test_no_state_within_the_budget_is_much_better(seed: int, share: float) -> None:
    errors, costs = drawn(np.random.default_rng(seed), places=4, convex=True)
    full = sum(each[0] for each in costs)
    every = [
        (sum(c[o] for c, o in zip(costs, state, strict=True)), sum(e[o] for e, o in zip(errors, state, strict=True)))
        for state in itertools.product(*(range(len(each)) for each in errors))
    ]
    possible = [error for cost, error in every if cost <= share * full + 1e-9]
    if not possible:
        with pytest.raises(NncError, match="can't be reached"):
            additive(errors, costs).within(share)
        return
    solution = additive(errors, costs).within(share)
    assert solution.share <= share + 1e-9
    # With convex errors and costs in equal steps the cheapest steps first are the optimum.
    assert solution.error == pytest.approx(min(possible), rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), share=st.floats(0.4, 0.95))
def test_the_budget_is_used_up_to_the_last_step(seed: int, share: float) -> None:
    errors, costs = drawn(np.random.default_rng(seed), places=30, convex=False)
    full = sum(each[0] for each in costs)
    if sum(each[-1] for each in costs) > share * full:
        return
    solution = additive(errors, costs).within(share)
    largest_step = max(np.abs(np.diff(each)).max() for each in costs)
    assert share * full - 5 * largest_step <= solution.share * full <= share * full + 1e-9


def test_costs_may_depend_on_other_places() -> None:
    """Two layers in a chain: a narrower first one makes the second one cheaper, too."""
    widths = [np.array([4.0, 2.0]), np.array([4.0, 2.0])]
    errors = [np.array([0.0, 1.0]), np.array([0.0, 3.0])]

    def measure(state: list[int]) -> float:
        first, second = (each[option] for each, option in zip(widths, state, strict=True))
        return first + first * second

    def costs(place: int, state: list[int]) -> np.ndarray:
        tried = [[*state[:place], option, *state[place + 1 :]] for option in range(2)]
        return np.array([measure(each) for each in tried])

    assert Allocation(errors, costs, measure).within(0.6).state == [1, 0]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), share=st.floats(0.2, 1.0))
def test_what_lies_in_a_place_counts_as_long_as_that_is_there(seed: int, share: float) -> None:
    """Six places, two in each of two others, against all states: within the budget, and little worse than the best."""
    rng = np.random.default_rng(seed)
    errors, costs = drawn(rng, places=4, convex=True)
    errors += [np.array([0.0, rng.uniform(0.1, 4.0)]) for _ in range(2)]
    costs += [np.array([rng.uniform(0.1, 2.0), 0.0]) for _ in range(2)]
    owners = {0: 4, 1: 4, 2: 5, 3: 5}

    def there(place: int, state: list[int] | tuple[int, ...]) -> bool:
        return place not in owners or not state[owners[place]]

    def measure(state: list[int] | tuple[int, ...]) -> float:
        return float(sum(costs[place][option] for place, option in enumerate(state) if there(place, state)))

    def error(state: list[int] | tuple[int, ...]) -> float:
        return float(sum(errors[place][option] for place, option in enumerate(state) if there(place, state)))

    def options(place: int, state: list[int]) -> np.ndarray:
        return np.array([measure([*state[:place], each, *state[place + 1 :]]) for each in range(len(costs[place]))])

    solution = Allocation(errors, options, measure, owners).within(share)
    full = measure([0] * 6)
    assert measure(solution.state) / full == pytest.approx(solution.share)
    assert solution.share <= share + 1e-9
    assert error(solution.state) == pytest.approx(solution.error)
    assert all(there(place, solution.state) or not option for place, option in enumerate(solution.state))
    states = itertools.product(*(range(len(each)) for each in errors))
    best = min(error(each) for each in states if measure(each) <= share * full)
    assert solution.error <= best + max(each[-1] for each in errors), "one place is worse than it must be at most"


def test_points_are_a_trade_off_curve() -> None:
    errors, costs = drawn(np.random.default_rng(1), places=12, convex=True)
    solution = additive(errors, costs).within(0.6)
    budgets, lost = zip(*((point["budget"], point["error"]) for point in solution.points), strict=True)
    assert list(budgets) == sorted(budgets)
    assert list(lost) == sorted(lost, reverse=True)
    assert [point["budget"] for point in solution.points if point["chosen"]] == [solution.share]


def test_the_target_is_corrected_where_costs_do_not_add_up() -> None:
    errors = [np.arange(9.0) for _ in range(20)]
    costs = [np.linspace(9.0, 1.0, 9) for _ in range(20)]
    allocation = additive(errors, costs)

    def true(state: list[int]) -> float:  # 30 of the 180 stay whatever happens
        return 30 + sum(each[option] for each, option in zip(costs, state, strict=True)) * 150 / 180

    solution = corrected(allocation, true, 0.5)
    assert 0.49 <= true(solution.state) / 180 <= 0.5
    with pytest.raises(NncError, match=r"the budget of 0.1 can't be reached: 0\.\d+ is left"):
        corrected(allocation, true, 0.1)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_several_budgets_are_kept_at_little_more_than_the_least_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    errors, costs = drawn(rng, places=30, convex=True)
    tables: dict[Metric, list[np.ndarray]] = {
        "macs": [each * rng.uniform(0.1, 2.0) for each in costs],
        "params": [each * rng.uniform(0.1, 2.0) for each in costs],
    }
    whole = {metric: sum(each[0] for each in table) for metric, table in tables.items()}

    def left(state: list[int]) -> dict[Metric, float]:
        return {
            metric: sum(each[option] for each, option in zip(table, state, strict=True)) / whole[metric]
            for metric, table in tables.items()
        }

    def allocation(prices: Mapping[Metric, float]) -> Allocation:
        scales = {metric: price / whole[metric] for metric, price in prices.items()}
        rows = [np.sum([scales[key] * tables[key][place] for key in scales], axis=0) for place in range(len(errors))]
        return additive(errors, rows)

    shares: dict[Metric, float] = {"macs": 0.7, "params": 0.7}
    solution = jointly(shares, allocation, left)
    assert all(left(solution.state)[metric] <= share for metric, share in shares.items())
    assert solution.error == pytest.approx(sum(e[o] for e, o in zip(errors, solution.state, strict=True)))
    assert solution.error <= 1.1 * relaxed(errors, tables, shares) + 0.5


def relaxed(
    errors: list[np.ndarray], tables: Mapping[Metric, list[np.ndarray]], shares: Mapping[Metric, float]
) -> float:
    """The least error if options could be mixed, which is no more than what can be reached."""
    from scipy.optimize import linprog

    places = np.repeat(np.arange(len(errors)), [len(each) for each in errors])
    one_each = (places == np.arange(len(errors))[:, None]).astype(float)
    limits = [shares[metric] * sum(each[0] for each in table) for metric, table in tables.items()]
    costs = np.stack([np.concatenate(table) for table in tables.values()])
    found = linprog(np.concatenate(errors), costs, limits, one_each, np.ones(len(errors)), bounds=(0, 1))
    return float(found.fun)


def test_budgets_that_exclude_each_other() -> None:
    errors, costs = drawn(np.random.default_rng(0), places=3, convex=True)
    with pytest.raises(
        NncError, match=r"the budgets of 0.5 of the macs and 0.01 of the params can't be reached together"
    ):
        jointly(
            {"macs": 0.5, "params": 0.01},
            lambda prices: additive(errors, costs),
            lambda state: {"macs": 0.4, "params": 0.1},
        )
