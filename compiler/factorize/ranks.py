"""Choice of ranks by a budget, or in proportion."""

from collections.abc import Callable, Sequence


def largest_rank(cost: Callable[[int], float], budget: float, most: int) -> int:
    """The largest rank of 1..most whose cost, which grows with the rank, is within the budget; 1 if none is."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle - 1)
    return low


def proportional_ranks(shape: Sequence[int], rank: int) -> tuple[int, int]:
    """Ranks (inputs, outputs) of `tucker` in the proportion of C to K; `rank`, 1..max(K, C), is the larger one."""
    K, C = shape[:2]
    return tuple(max(1, round(rank * each / max(K, C))) for each in (C, K))  # type: ignore[return-value]
