"""Gradual pruning: the curve, the parts of a schedule, and masks that grow and never let go."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nnc.training.gradual import Masks, cubic, spans


def test_the_curve_of_the_paper() -> None:
    assert [cubic(way) for way in (0.0, 0.5, 1.0, 2.0)] == [0.0, 0.875, 1.0, 1.0]
    rises = [cubic((step + 1) / 10) - cubic(step / 10) for step in range(10)]
    assert rises == sorted(rises, reverse=True), "fast at first"


@given(st.integers(0, 40), st.floats(0.01, 1), st.none() | st.integers(1, 50))
def test_parts_of_a_schedule(epochs: int, ramp: float, steps: int | None) -> None:
    parts = spans(epochs, ramp, steps)
    assert (parts[0].first, parts[-1].last) == (0, epochs)
    assert all(one.last == other.first for one, other in pairwise(parts))
    assert all(part.last > part.first for part in parts) or not epochs, "training follows every pruning"
    assert len(parts) <= (steps or math.inf)
    assert parts[-1].first <= ramp * epochs + 0.5


def layers(*scales: float, count: int = 100) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {f"W{index}": nn.Parameter(scale * torch.randn(count, 1)) for index, scale in enumerate(scales)}


def zeros(weights: dict[str, nn.Parameter]) -> list[int]:
    return [int((each == 0).sum()) for each in weights.values()]


def test_the_smallest_weights_become_zero() -> None:
    weights = layers(1.0, 5.0)
    before = {name: each.detach().clone() for name, each in weights.items()}
    Masks(weights, 0.3, "per-layer", 1.0, 4)(1.0)
    assert zeros(weights) == [30, 30]
    for name, each in weights.items():
        gone = each == 0
        assert before[name][gone].abs().max() < before[name][~gone].abs().min()
        assert torch.equal(before[name][~gone], each[~gone])


def test_layers_are_compared_whatever_their_scale() -> None:
    one, other = layers(1.0, 1000.0), layers(1.0, 1.0)
    for weights in (one, other):
        Masks(weights, 0.6, "global", 1.0, 4)(1.0)
    assert zeros(one) == zeros(other)
    assert sum(zeros(one)) == 120
    flat, peaked = nn.Parameter(torch.ones(100, 1) + 0.01 * torch.rand(100, 1)), nn.Parameter(torch.rand(100, 1) ** 8)
    Masks({"flat": flat, "peaked": peaked}, 0.5, "global", 1.0, 4)(1.0)
    assert int((peaked == 0).sum()) > int((flat == 0).sum()) > 0, "what few weights carry needs few"


def test_no_layer_loses_all() -> None:
    weights = layers(1.0, 1e-6) | {"narrow": nn.Parameter(torch.ones(2, 1))}
    Masks(weights, 0.98, "global", 1.0, 4)(1.0)
    assert all((each != 0).any() for each in weights.values())


@pytest.mark.parametrize("ranking", ["global", "per-layer"])
def test_zeros_follow_the_curve_and_stay(ranking: str) -> None:
    weights = layers(1.0, 2.0)
    masks = Masks(weights, 0.8, ranking, 0.5, 5)  # type: ignore[arg-type]
    gone = torch.zeros(200, dtype=torch.bool)
    for step in range(41):
        with torch.no_grad():  # an optimizer whose momentum moves everything
            for each in weights.values():
                each.add_(torch.randn_like(each))
        masks(step / 40)
        now = torch.cat([each.flatten() == 0 for each in weights.values()])
        assert (now | ~gone).all(), "what is zero stays zero"
        gone = now
        wanted = 0.8 * cubic(math.floor(min(step / 20, 1) * 5 + 1e-6) / 5)
        assert int(now.sum()) == (2 * round(100 * wanted) if ranking == "per-layer" else round(200 * wanted))


@pytest.mark.parametrize("ranking", ["global", "per-layer"])
def test_masks_are_found_again_in_the_weights(ranking: str) -> None:
    weights = layers(1.0, 2.0)
    masks = Masks(weights, 0.8, ranking, 1.0, 4)  # type: ignore[arg-type]
    masks(0.6)
    again = Masks(weights, 0.8, ranking, 1.0, 4)  # type: ignore[arg-type]
    again(0.6)
    assert all(torch.equal(masks._masks[name], again._masks[name]) for name in weights)
