"""Choice of ranks by a budget, by energy, or in proportion."""

from collections.abc import Callable, Sequence

import numpy as np


def largest_rank(cost: Callable[[int], float], budget: float, most: int) -> int:
    """The largest rank of 1..most whose cost, which grows with the rank, is within the budget; 1 if none is."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle - 1)
    return low


def rank_of_energy(errors: np.ndarray, energy: float) -> int:
    """The smallest rank, at least 1, that keeps a share 0..1 of the energy, given a curve of errors [ranks + 1]."""
    kept = np.flatnonzero(errors <= 1 - energy + 1e-12)
    return max(1, int(kept[0]) if kept.size else len(errors) - 1)


def proportional_ranks(shape: Sequence[int], rank: int) -> tuple[int, int]:
    """Ranks (inputs, outputs) of `tucker` in the proportion of C to K; `rank`, 1..max(K, C), is the larger one."""
    K, C = shape[:2]
    return tuple(max(1, round(rank * each / max(K, C))) for each in (C, K))  # type: ignore[return-value]
