"""Errors, ranks and ratios against arithmetic done by hand."""

import dataclasses

import numpy as np
import pytest

from nnc.simulation.work import Work
from nnc.validation.comparison import compare, figures, rank_correlation
from nnc.validation.samples import Excluded, Sample
from nnc.validation.settings import Setting, setting
from nnc.validation.table import Row

ROW = Row(2, "chip", "cpu", "1", "Cortex-A76", "2.0", "ncnn 1", "fp32", "a", "1x3x8x8", 10.0)


def sample(macs: float = 1.0, **changes: object) -> Sample:
    row = dataclasses.replace(ROW, **changes)  # type: ignore[arg-type]
    place = setting(row, ())
    assert isinstance(place, Setting)
    column = np.array([macs])
    return Sample(row, place, Work(*[column] * len(dataclasses.fields(Work))))


def test_errors_and_their_bias() -> None:
    kept = [sample(latency_ms=10.0), sample(latency_ms=20.0)]
    found = figures(kept, np.array([10.0, 20.0]), np.array([12.0, 18.0]))
    assert found["mape"] == pytest.approx((0.2 + 0.1) / 2)
    assert found["bias"] == pytest.approx((0.2 - 0.1) / 2)
    assert found["spearman"] is None  # of two rows, both orders are as good as each other


def test_ranks_are_of_networks_in_one_setting() -> None:
    kept = [sample(model_id=name, cores_used=cores) for cores in "14" for name in "abc"]
    measured = np.array([1.0, 2, 3, 0.5, 1, 1.5])
    # On four cores everything is predicted to be slow, but in the right order.
    assert figures(kept, measured, np.array([1.0, 2, 3, 7, 8, 9]))["spearman"] == pytest.approx(1)
    assert figures(kept, measured, np.array([1.0, 2, 3, 9, 8, 7]))["spearman"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 2, 4, 3], 0.8),
        ([1, 1, 2], [1, 1, 2], 1.0),
        ([1, 1, 1], [1, 2, 3], 0.0),
    ],
)
def test_rank_correlation(a: list[float], b: list[float], expected: float) -> None:
    assert rank_correlation(np.array(a, float), np.array(b, float)) == pytest.approx(expected)


def test_ratios_of_networks_are_right_where_a_whole_chip_is_off_by_one_factor() -> None:
    kept = [sample(model_id=name) for name in "abc"]
    measured = np.array([1.0, 2, 5])
    found = figures(kept, measured, 1.5 * measured)
    assert found["mape"] == pytest.approx(0.5)
    assert found["ratios"]["networks"] == pytest.approx(0)
    assert found["ratios"]["types"] is None


def test_ratios_of_types_and_of_compressed_networks() -> None:
    kept = [
        sample(model_id="net", macs=10.0),
        sample(model_id="net", macs=10.0, dtype="fp16"),
        sample(model_id="net_pruned", macs=5.0),
        sample(model_id="net_bn", macs=10.0),
    ]
    # Half-precision is predicted to be 1.5 times as fast, and is twice as fast; pruned, 2 times for 1.6.
    found = figures(kept, np.array([10.0, 5, 5, 10]), np.array([12.0, 8, 7.5, 12]))["ratios"]
    assert found["types"] == pytest.approx(2 / 1.5 - 1)
    assert found["compression"] == pytest.approx(2 / 1.6 - 1)


def test_a_row_per_chip_unit_framework_and_type_and_nothing_is_dropped_in_silence() -> None:
    kept = [sample(), sample(chip="other"), sample(dtype="fp16"), sample(framework="ncnn 2")]
    left = [
        Excluded(dataclasses.replace(ROW, line=7, model_id="b"), "why"),
        Excluded(ROW, "why"),
        Excluded(ROW, "else"),
    ]
    found = compare(kept, np.full(4, 10.0), left)
    assert [(each["chip"], each["framework"], each["dtype"]) for each in found["groups"]] == [
        ("chip", "ncnn 1", "float16"), ("chip", "ncnn 1", "float32"), ("chip", "ncnn 2", "float32"),
        ("other", "ncnn 1", "float32"),
    ]  # fmt: skip
    assert [(each["reason"], each["rows"], each["models"]) for each in found["excluded"]] == [
        ("why", 2, ["a", "b"]), ("else", 1, ["a"]),
    ]  # fmt: skip
    assert len(found["rows"]) == 4
