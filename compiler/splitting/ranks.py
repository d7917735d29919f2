"""Which ranks a layer is offered."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nnc import factorize

if TYPE_CHECKING:
    from nnc.splitting.split import Split

#: What a method calls a rank: a number, or several where a chain has more than one.
Rank = Any

Choice = TypeVar("Choice")

#: Ranks that a layer is offered within a budget.
MOST_OPTIONS = 24


def largest(method: "Split", shape: Sequence[int]) -> int:
    """The largest rank whose chain has fewer parameters than a weight of this shape; 1 where there is none."""

    def size(rank: int) -> int:
        return min(factorize.params(method.stages(shape, each)) for each in method.variants(shape, rank))

    return factorize.largest_rank(size, math.prod(shape) - 1, method.most(shape))


def steps(most: int, step: int) -> list[int]:
    """Ranks up to `most`, multiples of `step` or, where these would be few, of a part of it."""
    while step > 1 and most < 4 * step:
        step = step // 2 if step % 2 == 0 else 1
    return list(range(step, most + 1, step))


def growth(error: float) -> float:
    """What a lost share of energy costs a network: minus the logarithm of the share that is kept.

    Zhang, Zou, He, Sun, Accelerating very deep convolutional networks for classification and detection, 2015: the
    product of what layers keep tells accuracies well.
    """
    return -math.log1p(-min(error, 1 - 1e-9))


def undominated(choices: Sequence[Choice], sizes: Sequence[float], errors: Sequence[float]) -> list[Choice]:
    """The choices that no smaller one beats in error, the largest first."""
    kept, best = [], math.inf
    for index in sorted(range(len(choices)), key=lambda index: (sizes[index], errors[index])):
        if errors[index] < best:
            kept.append(choices[index])
            best = errors[index]
    return kept[::-1]


def thinned(choices: list[Choice]) -> list[Choice]:
    """At most `MOST_OPTIONS` of them, evenly spread, the first and the last included."""
    if len(choices) <= MOST_OPTIONS:
        return choices
    return [choices[round(index)] for index in np.linspace(0, len(choices) - 1, MOST_OPTIONS)]
