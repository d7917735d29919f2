"""The geometry of a plot: every point inside of the axes, and round numbers on them."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnc.display import plot


def point(budget: float, error: float | None, chosen: bool = False) -> dict[str, Any]:
    return {"budget": budget, "error": error, "accuracy": error, "chosen": chosen}


SHARES = st.floats(0.0, 1.0)
POINTS = st.lists(st.builds(point, SHARES, st.floats(0.0, 1e6), st.booleans()), min_size=1, max_size=30)


@given(POINTS, st.sampled_from(["error", "accuracy"]))
def test_points_and_numbers_are_inside(points: list[dict[str, Any]], key: str) -> None:
    drawn = plot.plot(points, key)
    assert drawn is not None
    assert len(drawn.dots) == len(points)
    assert [dot.chosen for dot in drawn.dots] == [each["chosen"] for each in points]
    assert all(plot.LEFT <= dot.x <= plot.RIGHT and plot.TOP <= dot.y <= plot.BOTTOM for dot in drawn.dots)
    assert (drawn.across[0].at, drawn.across[-1].at) == (plot.LEFT, plot.RIGHT)
    assert (drawn.up[0].at, drawn.up[-1].at) == (plot.BOTTOM, plot.TOP)
    assert all(len({tick.text for tick in ticks}) == len(ticks) for ticks in (drawn.across, drawn.up))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_numbers_of_an_axis(values: list[float]) -> None:
    numbers = plot.axis(values)
    slack = 1e-6 * max(map(abs, numbers))
    assert numbers[0] - slack <= min(values)
    assert max(values) <= numbers[-1] + slack
    assert 2 <= len(numbers) <= 7


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ([0.2, 1.0], [0.2, 0.4, 0.6, 0.8, 1.0]),
        ([0.0, 0.31], [0.0, 0.1, 0.2, 0.3, 0.4]),
        ([0.838, 0.94], [0.825, 0.85, 0.875, 0.9, 0.925, 0.95]),
        ([0.0], [0.0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        ([0.5, 0.5], [0.44, 0.46, 0.48, 0.5, 0.52, 0.54, 0.56]),
    ],
)
def test_numbers_are_round(values: list[float], numbers: list[float]) -> None:
    assert plot.axis(values) == pytest.approx(numbers)


def test_where_points_are() -> None:
    drawn = plot.plot([point(0.0, 1.0), point(0.5, 0.5, chosen=True), point(1.0, 0.0)], "error")
    assert drawn is not None
    middle = ((plot.LEFT + plot.RIGHT) / 2, (plot.TOP + plot.BOTTOM) / 2)
    assert [(dot.x, dot.y) for dot in drawn.dots] == [(plot.LEFT, plot.TOP), middle, (plot.RIGHT, plot.BOTTOM)]
    assert drawn.line == "64.0,16.0 338.0,119.0 612.0,222.0"
    assert [tick.text for tick in drawn.across] == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
def test_points_that_are_not_known_are_left_out(unknown: float | None) -> None:
    drawn = plot.plot([point(0.2, unknown), point(0.4, 0.1)], "error")
    assert drawn is not None
    assert len(drawn.dots) == 1
    assert plot.plot([point(0.2, unknown)], "error") is None
    assert plot.plot([], "error") is None


@pytest.mark.parametrize("key", ["error", "accuracy"])
@pytest.mark.parametrize("budget", [0.0, 0.3, 0.66, 0.8, 1.0])
def test_labels_stay_in_the_drawing(key: str, budget: float) -> None:
    drawn = plot.plot([point(0.0, 1.0), point(budget, 0.0, chosen=True), point(1.0, 0.5)], key)
    assert drawn is not None
    dot = drawn.dots[1]
    length = 165.0 if dot.anchor == "start" else -165.0  # of "chosen: 58.3 % kept, 12.3 %"
    assert 0 <= dot.label_x + length <= plot.WIDTH
    assert 0 < dot.label_y <= plot.BOTTOM
