"""Gradual pruning: sparsity that rises along a cubic curve while a network trains.

Zhu and Gupta, To prune, or not to prune: exploring the efficacy of pruning for model compression, 2017.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from nnc.training.loop import Plan, Span
from nnc.training.site import Tensor

Ranking = Literal["global", "per-layer"]

#: Updates of masks where nobody says how many.
UPDATES = 100


def cubic(way: float) -> float:
    """The share of the final sparsity where `way` of the ramp is over, both 0 to 1: fast at first (equation 1)."""
    return 1 - (1 - min(way, 1.0)) ** 3


def spans(epochs: int, ramp: float, steps: int | None) -> list[Span]:
    """What is trained after each of at most `steps` prunings: equal parts of the ramp, the last up to the end.

    `ramp` is a share of the epochs; between two prunings there is at least one epoch, and after the last.
    """
    ramped = max(1, round(ramp * epochs))
    count = min(steps or ramped, ramped)
    bounds = [*(round(step * ramped / count) for step in range(count)), epochs]
    return [Span(first, last, epochs) for first, last in pairwise(bounds)]


def without_stop(plan: Plan) -> Plan:
    """The plan for epochs in which pruning goes on: no early stop, on the same training samples.

    What is pruned less is the better network: to judge is for the end.
    """
    if plan.options.patience is None:
        return plan
    data, _ = plan.parts()
    return replace(plan, data=data, options=plan.options.model_copy(update={"patience": None, "samples": None}))


class Masks:
    """Zeros in weights that become more along the curve and stay zero: a `constrain` of the loop.

    The smallest weights go first: of every layer alike, or with a "global" ranking by what they are of the weights of
    their layer that are as large or larger (Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, ICLR
    2021).
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], sparsity: float, ranking: Ranking, ramp: float, updates: int | None
    ) -> None:
        """`sparsity` is the share of zeros after `ramp` of the schedule, both 0 to 1, with new masks `updates` times
        on the way."""
        self.weights, self.sparsity, self.ranking = dict(weights), sparsity, ranking
        self.ramp, self.updates = ramp, updates or UPDATES
        self._update: int | None = None
        self._masks: dict[str, Tensor] = {}

    def __call__(self, done: float) -> None:
        """Make zero what `done` of the schedule asks for, and what was before."""
        update = math.floor(min(done / self.ramp, 1.0) * self.updates + 1e-6)
        with torch.no_grad():
            self._apply()
            if update != self._update:
                self._update, self._masks = update, self._made(self.sparsity * cubic(update / self.updates))
                self._apply()

    def _apply(self) -> None:
        for name, mask in self._masks.items():
            self.weights[name].mul_(mask.to(self.weights[name].device))

    def _made(self, sparsity: float) -> dict[str, Tensor]:
        """Masks in which this share is zero; of a network that has such zeros already, these."""
        if self.ranking == "per-layer":
            scores = {name: weight.abs() for name, weight in self.weights.items()}
            return {name: each > _smallest([each], sparsity) for name, each in scores.items()}
        scores = {name: _lamp(weight) for name, weight in self.weights.items()}
        most = _smallest(list(scores.values()), sparsity)
        return {name: each > most for name, each in scores.items()}


def _smallest(scores: list[Tensor], share: float) -> float:
    """The largest of the `share` smallest scores, -1 where these are none; scores are at least 0."""
    whole = torch.cat([each.flatten() for each in scores])
    count = round(share * len(whole))
    return float(whole.kthvalue(count).values) if count else -1.0


def _lamp(weight: Tensor) -> Tensor:
    """w^2 by the sum of all squares of the layer that are no smaller; on the processor, which sums in one order."""
    squares = weight.detach().cpu().double().square().flatten()
    rising, order = squares.sort(stable=True)
    scores = torch.empty_like(squares)
    scores[order] = rising / rising.flip(0).cumsum(0).flip(0).clamp_min(1e-300)
    return scores.reshape(weight.shape)
