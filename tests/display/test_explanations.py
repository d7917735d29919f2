"""The tables of what passes decided: they fit 80 columns, and mark what was chosen."""

import io
from typing import Any

import pytest
from rich.console import Console

from nnc import report
from nnc.display import explanations


def decision(layer: str, before: int = 1000, after: int = 500, **known: Any) -> dict[str, Any]:
    return {
        "layer": layer,
        "choice": "keep" if after == before else "halve",
        "macs": [before, after],
        "params": [10, 10 * after // before],
        **known,
    }


def point(budget: float, error: float | None, chosen: bool = False, accuracy: float | None = None) -> dict[str, Any]:
    return {"budget": budget, "error": error, "accuracy": accuracy, "chosen": chosen}


def row(**changes: Any) -> dict[str, Any]:
    return {"name": "prune", "decisions": [], "curve": None, "predicted": None, **changes}


def lines(of: dict[str, Any], width: int = 80) -> list[str]:
    """What is shown of a row, as on a terminal of `width` columns."""
    file = io.StringIO()
    explanations.show(of, Console(file=file, width=width, markup=False, highlight=False), width)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def bars(points: list[dict[str, Any]], width: int = 80) -> list[str]:
    return lines(row(curve={"metric": "macs", "points": points}), width)[5:]


def test_a_pass_that_says_nothing_shows_nothing() -> None:
    assert lines(row()) == []


def test_choices_per_layer() -> None:
    shown = lines(row(decisions=[decision("a", error=0.0312), decision("b", 7, 7), decision("c", 4000, 3000)]))
    assert shown[1] == "prune: 2 of 3 layers changed"
    assert [line.split() for line in shown[4:]] == [
        ["a", "halve", "1.00", "k", "→", "500", "10", "→", "5", "3.12", "%"],
        ["c", "halve", "4.00", "k", "→", "3.00", "k", "10", "→", "7"],
        ["b", "keep", "7", "10"],
    ]


def test_layers_that_a_budget_keeps_in_floats_are_shown() -> None:
    floats = [decision(f"f{index}", 7, 7, error=0.5) | {"choice": report.FLOATS} for index in range(5)]
    shown = lines(row(decisions=[*floats, decision("a", error=0.01)]))
    assert shown[1] == "prune: 1 of 6 layers changed"
    assert [line.split() for line in shown[4:9]] == [
        [f"f{index}", "stays", "in", "floats", "7", "10", "50.0", "%"] for index in range(5)
    ]


def test_many_layers_that_stay_are_one_row() -> None:
    kept = [decision(f"k{index}", 100, 100) for index in range(1000)]
    shown = lines(row(decisions=[*kept, decision("a")]))
    assert shown[1] == "prune: 1 of 1001 layers changed"
    assert [line.split() for line in shown[4:]] == [
        ["a", "halve", "1.00", "k", "→", "500", "10", "→", "5"],
        ["1000", "others", "left", "as", "they", "are", "100", "k", "10.0", "k"],
    ]


def test_latencies_where_there_is_room() -> None:
    timed = row(decisions=[decision("a", latency_ms=[2.0, 1.0]), decision("b")])
    assert "2.00 ms → 1.00 ms" in lines(timed, 120)[4]
    assert "2.00 ms" not in lines(timed, 80)[4]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_line_fits(width: int) -> None:
    name = "/model/blocks/blocks.7/a_long_name_of_a_layer/of_a_deep_network/Conv"
    full = decision(name, 10**12 - 1, 10**11 - 1, error=123.4, latency_ms=[0.9999, 0.4444])
    full["params"] = [99_900_000, 9_990_000]
    points = [point(index / 40, 10.0 / (index + 1), index == 7, 0.9) for index in range(1, 41)]
    shown = lines(row(decisions=[full] * 2, curve={"metric": "latency_ms", "points": points}), width)
    assert max(map(len, shown)) <= width
    assert any("layer/of" in line or "network/Conv" in line for line in shown), "the end of a name tells it apart"


def test_a_curve_alone_names_its_pass() -> None:
    assert lines(row(curve={"metric": "macs", "points": [point(0.5, 0.5)]}))[1] == "prune: a predicted trade-off"


def test_bars_are_as_long_as_errors() -> None:
    shown = bars([point(0.25, 1.0), point(0.5, 0.5, chosen=True), point(0.75, 0.0125), point(1.0, 0.0)])
    assert [line.split("%  ")[-1] for line in shown[:3]] == ["█" * 40, "█" * 20 + " ◀ chosen", "▌"]
    assert shown[3] == "  100.0 %      0 %"


@pytest.mark.parametrize("unknown", [None, float("nan"), float("inf")])
def test_errors_that_are_not_known_have_no_bar(unknown: float | None) -> None:
    shown = bars([point(0.25, unknown, chosen=True), point(0.5, 0.5)])
    assert [line.split() for line in shown] == [["25.0", "%", "-", "◀", "chosen"], ["50.0", "%", "50.0", "%", "█" * 40]]
    assert [line.split() for line in bars([point(0.25, unknown)])] == [["25.0", "%", "-"]]


def test_of_many_points_some_are_shown() -> None:
    shown = bars([point(index / 1000, 1.0, index == 77) for index in range(1001)])
    assert 20 <= len(shown) <= 26
    assert (shown[0].split()[0], shown[-1].split()[0]) == ("0.0", "100.0")
    assert [line.split()[0] for line in shown if "chosen" in line] == ["7.7"]


def test_the_line_of_a_prediction() -> None:
    predicted = {
        "macs": {"before": 200, "predicted": 100.0, "reached": 99},
        "error": {"before": 0.0, "predicted": 0.031, "reached": None},
        "accuracy": {"before": None, "predicted": float("nan"), "reached": 0.91},
        "latency_ms": {"before": 0.0, "predicted": 1.0, "reached": 0.0},
    }
    assert report.explained(row(predicted=predicted)) == (
        "predicted MACs 50.0 %, reached 49.5 %; predicted output error 3.10 %, reached unknown; "
        "predicted top-1 unknown, reached 91.0 %; predicted latency unknown, reached unknown"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "50.0 %"), (0.0999, "9.99 %"), (0.00004, "<0.01 %"), (0.0, "0 %"), (1e-17, "0 %"), (-0.5, "-50.00 %"),
     (74.6, "7460.0 %"), (None, ""), (float("nan"), ""), (float("-inf"), "")],
)  # fmt: skip
def test_shares(value: float | None, text: str) -> None:
    assert report.share(value) == text


def test_what_is_a_change_and_what_is_told() -> None:
    choices = ["int8 per channel", report.FLOATS, "keep"]
    rows = [decision("a", 1000, 1000) | {"choice": choice} for choice in choices]
    assert [report.changes(row) for row in rows] == [True, False, False]
    assert [report.is_told(row) for row in rows] == [True, True, False]
