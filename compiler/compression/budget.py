"""Budgets of a whole network, and the choice of one option per place that keeps within them at the least error.

Errors add up over the places (an additive model); costs may depend on what is chosen elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from nnc.errors import NncError

Metric = Literal["macs", "params", "latency"]

#: Differences below this share of a figure are noise of the arithmetic.
_NOISE = 1e-9


class Budgets(BaseModel):
    """What shall be left of the network by one figure or several, as shares of what it is before the pass."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    macs: float | None = Field(None, gt=0, le=1, description="share of the multiply-accumulates to keep")
    params: float | None = Field(None, gt=0, le=1, description="share of the parameters to keep")
    latency: float | None = Field(None, gt=0, le=1, description="share of the target's predicted latency to keep")

    @model_validator(mode="after")
    def _names_enough(self) -> Self:
        if not self.shares:
            raise ValueError("a budget names 'macs', 'params' or 'latency', or several of them")
        return self

    @property
    def shares(self) -> dict[Metric, float]:
        """What is to be kept, by metric."""
        values: dict[Metric, float | None] = {"latency": self.latency, "macs": self.macs, "params": self.params}
        return {key: value for key, value in values.items() if value is not None}

    @property
    def each(self) -> "list[Budget]":
        """The budgets of the single metrics."""
        return [Budget.model_validate({metric: share}) for metric, share in self.shares.items()]


class Budget(Budgets):
    """What shall be left of the network by one figure."""

    @model_validator(mode="after")
    def _names_enough(self) -> Self:
        if len(self.shares) != 1:
            raise ValueError("a budget names one of 'macs', 'params' and 'latency'")
        return self

    @property
    def metric(self) -> Metric:
        return next(iter(self.shares))

    @property
    def figure(self) -> str:
        """The metric as figures of a network call it: "macs", "params" or "latency_ms"."""
        return "latency_ms" if self.metric == "latency" else self.metric

    @property
    def share(self) -> float:
        return next(iter(self.shares.values()))

    def within(self, share: float) -> "Budget":
        """What the budget asks of a network of which `share` is left already."""
        return Budget.model_validate({self.metric: min(1.0, self.share / share)})


#: How often the price of what costs are not the sum of is corrected, and the share of a budget that may be left.
_ROUNDS = 8
_UNUSED = 0.01

#: How often the prices of several figures are set anew, and the power of what each needs that they move by.
_PRICES = 6
_HASTE = 4


@dataclass(frozen=True)
class Solution:
    """An option per place, and what was seen on the way to it."""

    state: list[int]
    share: float
    """Of the cost that is left."""
    error: float
    """Sum of the errors of the options."""
    points: list[dict[str, float | bool]] = field(default_factory=list)
    """{"budget", "error", "chosen"} of the best states found for other budgets too."""


class Allocation:
    """Places with options, option 0 leaving a place as it is.

    `errors[i]` are those of place i by option, `costs(i, state)` the costs of its options while the others are as in
    `state`, and `measure(state)` is the cost of the whole network. `owners` has, of places that lie in another one, the
    number of that: it is there as long as that has option 0, and its options count only then.
    """

    def __init__(
        self,
        errors: Sequence[np.ndarray],
        costs: Callable[[int, list[int]], np.ndarray],
        measure: Callable[[list[int]], float],
        owners: Mapping[int, int] = {},  # never changed
    ) -> None:
        self._errors, self._costs, self._measure, self._owners = errors, costs, measure, owners
        self._owned: dict[int, list[int]] = {}
        for place, owner in owners.items():
            self._owned.setdefault(owner, []).append(place)
        self._seen: dict[tuple[int, ...], float] = {}

    @property
    def keep(self) -> list[int]:
        """The state in which every place stays as it is."""
        return [0] * len(self._errors)

    @cached_property
    def least(self) -> float:
        """The share of the cost that is left at least."""
        full = self._cost(self.keep)
        return self._cost(self._cheapest) / full if full else 1.0

    @cached_property
    def _cheapest(self) -> list[int]:
        return self._settled(self.keep, price=np.inf)

    def within(self, share: float) -> Solution:
        """The state of least error that costs at most `share` of what the network costs now.

        Lagrangian relaxation: for a price of the cost every place takes its cheapest option, in turns until none
        changes; the price is found by bisection, and what is left of the budget is used up step by step (Everett,
        Generalized Lagrange multiplier method, 1963). Raises NncError where no options keep within the budget.
        """
        full = self._cost(self.keep)
        most = share * full * (1 + _NOISE)
        if self._cost(self._cheapest) > most:
            raise unreachable(share, self.least)
        above, below = self._bracket(self.keep, self._cheapest, most)
        state = self._filled(above, below, most)
        share = self._cost(state) / full if full else 1.0
        return Solution(self._plain(state), share, self._error(state), self._points(state, full))

    def _bracket(self, above: list[int], below: list[int], most: float) -> tuple[list[int], list[int]]:
        """The neighbouring states of the trade-off above and below a cost."""
        spread = sum(float(errors.max()) for errors in self._errors) or 1.0
        low, high = np.log(spread / (self._cost(above) or 1.0)) + np.array([-25.0, 25.0])
        for _ in range(40):
            middle = (low + high) / 2
            state = self._settled(below, np.exp(middle))
            if self._cost(state) <= most:
                below, high = state, middle
            else:
                above, low = state, middle
            if above == below or high - low < 1e-3:
                break
        return above, below

    def _settled(self, start: list[int], price: float) -> list[int]:
        """The options that places take at a price, once none would take another.

        Those of places in others are what they would be if these were there.
        """
        state = list(start)
        for _ in range(12):
            before = list(state)
            for place in range(len(state)):
                costs = self._costs(place, self._there(place, state))
                total = costs if np.isinf(price) else self._lost(place, state) + price * costs
                state[place] = int(np.argmin(total))
            if state == before:
                break
        return state

    def _there(self, place: int, state: list[int]) -> list[int]:
        """The state in which a place is there, whatever it lies in."""
        if self._is_there(place, state):
            return state
        owner = self._owners[place]
        return [*state[:owner], 0, *state[owner + 1 :]]

    def _is_there(self, place: int, state: Sequence[int]) -> bool:
        return place not in self._owners or not state[self._owners[place]]

    def _lost(self, place: int, state: Sequence[int]) -> np.ndarray:
        """The errors of a place's options, of which the first leaves what lies in it as in the state."""
        errors = self._errors[place]
        if place not in self._owned:
            return errors
        inside = sum(self._errors[each][state[each]] for each in self._owned[place])
        return np.array([errors[0] + inside, *errors[1:]])

    def _plain(self, state: Sequence[int]) -> list[int]:
        """The state in which places that are not there stay as they are."""
        return [option if self._is_there(place, state) else 0 for place, option in enumerate(state)]

    def _filled(self, above: list[int], below: list[int], most: float) -> list[int]:
        """`below` with as many places as in `above` as the budget allows, those first that save most error per cost."""
        state = list(below)
        for _, place in self._ranked(below, above):
            for option in self._between(above[place], below[place]):
                tried = [*state[:place], option, *state[place + 1 :]]
                if self._cost(tried) <= most:
                    state = tried
                    break
        return self._widened(state, most)

    def _widened(self, state: list[int], most: float) -> list[int]:
        """The state after steps back within the budget, those first that save most error per cost."""
        for _ in range(4 * len(state)):
            wider_by_one = [max(0, option - 1) for option in state]
            tried = (
                [*state[:place], wider_by_one[place], *state[place + 1 :]]
                for growth, place in self._ranked(state, wider_by_one)
                if growth < 0
            )
            wider = next((each for each in tried if self._cost(each) <= most), None)
            if wider is None:
                break
            state = wider
        return state

    def _ranked(self, state: list[int], wider: list[int]) -> list[tuple[float, int]]:
        """(error that grows per cost, place) of places that have another option in `wider`, the best one first."""
        steps = []
        for place, (option, other) in enumerate(zip(state, wider, strict=True)):
            if option != other and self._is_there(place, state):
                costs, errors = self._costs(place, state), self._lost(place, state)
                spent, saved = costs[other] - costs[option], errors[option] - errors[other]
                steps.append((-saved / max(spent, 1e-30), place))
        return sorted(steps)

    def _between(self, wide: int, narrow: int) -> list[int]:
        """Options from the one to the other; a few of them where there are many."""
        step = 1 if narrow > wide else -1
        options = list(range(wide, narrow, step))
        return options if len(options) <= 8 else options[:: -(-len(options) // 8)]

    def _cost(self, state: list[int]) -> float:
        key = tuple(state)
        if key not in self._seen:
            self._seen[key] = self._measure(state)
        return self._seen[key]

    def _error(self, state: Sequence[int]) -> float:
        plain = self._plain(state)
        return float(sum(errors[option] for errors, option in zip(self._errors, plain, strict=True)))

    def _points(self, chosen: list[int], full: float) -> list[dict[str, float | bool]]:
        """The states that were looked at and that no other beats in both cost and error."""
        found = sorted((cost, self._error(state), state) for state, cost in self._seen.items())
        points: list[dict[str, float | bool]] = []
        best = np.inf
        for cost, error, state in found:
            mine = state == tuple(chosen)
            if mine or error < best - _NOISE * max(1.0, best if np.isfinite(best) else 1.0):
                best = min(best, error)
                points.append({"budget": cost / full if full else 1.0, "error": error, "chosen": mine})
        return points


def corrected(allocation: Allocation, cost: Callable[[list[int]], float], share: float) -> Solution:
    """The solution within `share` by the true `cost` of a state, which the allocation only approximates.

    What it misses (constants that several layers read, caches that hold the network or don't) moves its target, until
    the budget is kept and nearly used up. Raises NncError where even the state that it takes for the cheapest costs
    more.
    """
    full = cost(allocation.keep)
    target, best, least = max(share, allocation.least), None, 1.0
    for _ in range(_ROUNDS):
        solution = allocation.within(target)
        reached = cost(solution.state) / full if full else 1.0
        least = min(least, reached)
        if reached <= share and (best is None or reached > best.share):
            best = replace(solution, share=reached)
        aimed = target + share * (1 - _UNUSED / 2) - reached  # within, or it comes near from above
        tried, target = target, min(1.0, max(allocation.least, aimed))
        if share * (1 - _UNUSED) <= reached <= share or target == tried:
            break
    if best is None:
        raise unreachable(share, least)
    return best


def jointly(
    shares: Mapping[Metric, float],
    allocation: Callable[[Mapping[Metric, float]], Allocation],
    left: Callable[[list[int]], Mapping[Metric, float]],
) -> Solution:
    """The solution within several budgets, `shares` by metric, none of whose own solutions keeps the others.

    `allocation(prices)` is that of the sum of the figures' shares at these prices, and `left(state)` has the true
    shares. Each figure is priced by how far the solution before was from its budget (Everett, 1963, section 5), and the
    best solution that keeps all is taken; it has no points, which would be of no single figure. Raises NncError where
    there is none.
    """

    def excess(state: list[int]) -> float:
        return max(left(state)[metric] / share for metric, share in shares.items())

    prices, best = {metric: 1 / (share * len(shares)) for metric, share in shares.items()}, None
    for _ in range(_PRICES):
        current = allocation(prices)
        try:
            solution = corrected(current, excess, 1 / excess(current.keep))
        except NncError:
            break
        if best is None or solution.error < best.error:
            best = replace(solution, points=[])
        reached = left(solution.state)
        needs = {metric: price * (reached[metric] / shares[metric]) ** _HASTE for metric, price in prices.items()}
        total = sum(needs[metric] * share for metric, share in shares.items())
        prices = {metric: need / total for metric, need in needs.items()}
    if best is None:
        raise NncError(
            f"the budgets of {' and '.join(f'{share:g} of the {metric}' for metric, share in shares.items())} can't be "
            "reached together",
            "raise one of them, or let the pass change more layers",
        )
    return best


def unreachable(share: float, least: float) -> NncError:
    """The error of a budget that the smallest options don't keep within."""
    return NncError(
        f"the budget of {share:g} can't be reached: {least:.3g} is left with the smallest options",
        "raise the budget, or let the pass change more layers",
    )
