"""The search: on a known landscape a tenth of the trials is enough, and none is repeated."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest

from nnc.tuning.search import Search, features

PLANS = [
    {"template": "conv2d", "tile": {"rows": rows, "vectors": vectors}, "split": split, "unroll": unroll}
    for rows, vectors, split, unroll in product(range(1, 15), (1, 2, 4), ("rows", "channels"), (1, 2, 4))
]


def speed(plan: Mapping[str, Any], best: int = 11) -> float:
    """Smooth in the tile, with a step between the splits."""
    distance = abs(np.log2(plan["tile"]["rows"] / best)) + abs(np.log2(plan["tile"]["vectors"] / 2))
    return float(1.4 * np.exp(-0.3 * distance) * (1.0 if plan["split"] == "channels" else 0.8))


def run(search: Search, trials: int, best: int = 11) -> float:
    while len(search.measured) < trials:
        for index in search.propose(min(8, trials - len(search.measured))):
            search.tell(index, 1.0 if index == 0 else speed(PLANS[index], best))
    return search.best[1]


@pytest.mark.parametrize("best", [3, 6, 11, 14])
def test_a_plan_within_a_tenth_of_the_fastest_is_found_in_a_tenth_of_the_trials(best: int) -> None:
    found = run(Search(PLANS, [1.0] * len(PLANS)), len(PLANS) // 10, best)
    assert found > 0.9 * max(speed(plan, best) for plan in PLANS)


def test_no_candidate_is_proposed_twice_until_all_were_measured() -> None:
    search, seen = Search(PLANS[:20], [1.0] * 20), list[int]()
    while chosen := search.propose(8):
        seen += chosen
        for index in chosen:
            search.tell(index, speed(PLANS[index]))
    assert sorted(seen) == list(range(20))
    assert search.gain == 0


def test_the_default_is_measured_first_and_is_the_best_where_nothing_is_faster() -> None:
    search = Search(PLANS, [1.0] * len(PLANS))
    assert search.propose(3)[0] == 0
    for index in search.propose(8):
        search.tell(index, 0.5)
    assert search.best == (0, 1.0)


def test_the_templates_estimate_leads() -> None:
    estimates = [1 / speed(plan) for plan in PLANS]
    first = Search(PLANS, estimates).propose(8)[1:]
    assert np.mean([speed(PLANS[index]) for index in first]) > np.mean([speed(plan) for plan in PLANS])


def test_plans_that_can_not_be_built_are_avoided() -> None:
    search = Search(PLANS, [1.0] * len(PLANS))
    while len(search.measured) < 60:
        for index in search.propose(8):
            search.tell(index, None if PLANS[index]["split"] == "rows" else speed(PLANS[index]))
    failed = sum(PLANS[index]["split"] == "rows" for index in search.measured)
    assert failed < 20
    assert search.best[1] > 1.3


def test_a_start_from_another_workload_saves_trials() -> None:
    plan = {"template": "conv2d", "tile": {"rows": 11, "vectors": 2}, "split": "channels", "unroll": 3}
    search = Search(PLANS, [1.0] * len(PLANS))
    search.start([plan])
    assert run(search, 4) == max(map(speed, PLANS))


def test_what_is_expected_falls_as_the_search_goes_on() -> None:
    search = Search(PLANS, [1.0] * len(PLANS))
    run(search, 8)
    before = search.gain
    run(search, 80)
    assert 0 < search.gain < before


def test_features_are_between_zero_and_one() -> None:
    mixed = [*PLANS, {"template": "winograd", "outputs": 4, "width": None}]
    points = features(mixed)
    assert points.shape[0] == len(mixed)
    assert points.min() == 0
    assert points.max() == 1
    assert len(np.unique(points, axis=0)) == len(mixed)
