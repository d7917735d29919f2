"""Which channels to remove: widths for every group, within a budget or by a share, and the channels that go."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from nnc import channels
from nnc import graph as graphs
from nnc.channels import Channels, Group
from nnc.compression import budget, costs
from nnc.compression.budget import Allocation, Solution
from nnc.compression.importance import Ranking
from nnc.errors import NncError
from nnc.rewrite import Context

#: What a share of a network is kept of.
Metric: TypeAlias = budget.Metric | Literal["channels"]

#: Share of a budget that may stay unused, and how many groups are then tried wider.
_UNUSED = 0.01
_TRIED = 8


@dataclass
class Pruning:
    """The widths that the groups of a graph may have, and what each choice of them costs.

    A state holds an option per group: an index into its `options`, of which the first is the width that it has.
    """

    graph: gs.Graph
    traced: Channels
    groups: Sequence[Group]
    rankings: Sequence[Ranking]
    options: list[np.ndarray]
    """Units that a group may keep, falling."""
    context: Context
    seen: dict[tuple[Metric, tuple[int, ...]], float] = field(default_factory=dict, kw_only=True, repr=False)
    """What the network costs by metric and widths, as far as it was asked: each takes a copy of the graph."""
    predicted: list[costs.Latencies] = field(default_factory=list, kw_only=True, repr=False)
    """Latencies of the layers at some widths, once they were asked for."""

    def within(self, metric: Metric, share: float) -> Solution:
        """The best state that keeps at most `share` of the network's cost, no width slower than a wider one.

        Raises NncError where no state keeps within it.
        """
        return self._fast(lambda: self._best(metric, share))

    def uniform(self, shares: Sequence[float]) -> Solution:
        """The state in which every group keeps the width nearest to its share, none slower than a wider one."""

        def choose() -> Solution:
            state = self._nearest(shares)
            return Solution(state, self.cost("channels", state) / self.cost("channels", self._keep), self.error(state))

        return self._fast(choose)

    def uniform_within(self, metric: Metric, share: float) -> Solution:
        """As `within`, for the state in which every group keeps about the same share of its width."""
        return self._fast(lambda: self._uniform_within(metric, share))

    def removed(self, state: Sequence[int]) -> np.ndarray:
        """The ids of the channels that go."""
        lost = [
            ranking.ids[: len(ranking.ids) - int(width)]
            for ranking, width in zip(self.rankings, self.widths(state), strict=True)
        ]
        return np.concatenate([np.zeros(0, np.int64), *lost])

    def widths(self, state: Sequence[int]) -> np.ndarray:
        """Units that every group keeps."""
        return np.array([options[chosen] for options, chosen in zip(self.options, state, strict=True)])

    def error(self, state: Sequence[int]) -> float:
        """The sum of what the groups lose."""
        return float(sum(errors[option] for errors, option in self._chosen(state)))

    def hollow(self, state: Sequence[int]) -> gs.Graph:
        """The pruned graph, with weights that take no memory."""
        pruned = graphs.copy(self.graph)
        channels.remove(pruned, self.traced, self.removed(state), hollow=True)
        return pruned

    def cost(self, metric: Metric, state: Sequence[int]) -> float:
        """What is left of the network by `metric`: MACs, parameters, milliseconds, or channels of the groups."""
        if metric == "channels":
            return float(sum(self.widths(state) * [channels_per_unit(group) for group in self.groups]))
        key = (metric, tuple(self.widths(state).tolist()))
        if key not in self.seen:
            self.seen[key] = self.context.cost(self.hollow(state), metric)
        return self.seen[key]

    @property
    def _keep(self) -> list[int]:
        return [0] * len(self.groups)

    def _fast(self, choose: Callable[[], Solution]) -> Solution:
        """What `choose` chooses, once no group has an option that is slower than a wider one.

        Where the others don't reach the budget, those that are slower stay.
        """
        solution = choose()
        while slow := self._slower_than_wider(solution.state):
            offered = list(self.options)
            for group in slow:
                self.options[group] = np.delete(self.options[group], solution.state[group])
            try:
                solution = choose()
            except NncError:
                self.options = offered
                return solution
        return solution

    def _slower_than_wider(self, state: list[int]) -> list[int]:
        """The groups for which the cost model knows a wider option that is faster."""
        latency = self.cost("latency", state)
        return [
            group
            for group in np.flatnonzero(state).tolist()
            if any(self.cost("latency", wider) < latency for wider in self._wider(state, group))
        ]

    def _wider(self, state: list[int], group: int) -> Iterator[list[int]]:
        """`state` with the next wider option of a group, and with the next one at a multiple that the target likes."""
        unit = self.context.target.unit.channel_multiple / channels_per_unit(self.groups[group])
        wider = self.options[group][: state[group]]
        for option in sorted({state[group] - 1, *np.flatnonzero(wider % unit == 0)[-1:].tolist()}):
            yield [*state[:group], option, *state[group + 1 :]]

    def _best(self, metric: Metric, share: float) -> Solution:
        """The best of the solution and, where it leaves much unused, of those with a group kept wider than in it.

        Prices find only what lies on the convex hull of costs and errors, which has gaps where there are few options.
        """
        solution = self._solution(metric, share)
        if solution.share > share * (1 - _UNUSED):
            return solution
        pruned = np.flatnonzero(solution.state)
        tried = [solution]
        for group in sorted(pruned.tolist(), key=lambda group: -self._errors()[group][solution.state[group]])[:_TRIED]:
            options = list(self.options)
            options[group] = options[group][: solution.state[group]]
            with suppress(NncError):
                tried.append(replace(self, options=options)._solution(metric, share))
        return min(tried, key=lambda each: each.error)

    def _solution(self, metric: Metric, share: float) -> Solution:
        least = [len(options) - 1 for options in self.options]
        full = self.cost(metric, self._keep)
        if (left := self.cost(metric, least) / full) > share:
            raise _unreachable(metric, share, left)
        try:
            solution = budget.corrected(self._allocation(metric), partial(self.cost, metric), share)
        except NncError:  # costs that add up are only nearly those of the network
            return Solution(least, left, self.error(least))
        saved = [errors[option] - errors[max(0, option - 1)] for errors, option in self._chosen(solution.state)]
        return self._used_up(solution, metric, share, np.argsort(saved, kind="stable")[::-1])

    def _allocation(self, metric: Metric) -> Allocation:
        """Errors and costs that add up over the groups, which is nearly what the network costs."""
        if metric == "channels":
            sizes = [float(channels_per_unit(group)) for group in self.groups]
            return Allocation(
                self._errors(), lambda group, _: self.options[group] * sizes[group], partial(self.cost, metric)
            )
        layers = costs.layers(self.graph, self.traced, self.groups, metric, self._latencies(metric))
        rest = self.cost(metric, self._keep) - layers.total(self.widths(self._keep), layers.dense)

        def of_options(group: int, state: list[int]) -> np.ndarray:
            return layers.of_group(group, self.options[group], self.widths(state), layers.dense)

        return Allocation(
            self._errors(), of_options, lambda state: rest + layers.total(self.widths(state), layers.dense)
        )

    def _latencies(self, metric: Metric) -> list[costs.Latencies]:
        """What layers take where all groups are narrower, if that is asked for."""
        if metric == "latency" and not self.predicted:
            found = costs.narrowed(self.options, lambda state: self.context.predict(self.hollow(state)).by_layer)
            self.predicted.extend(found)
        return self.predicted

    def _errors(self) -> list[np.ndarray]:
        return [
            ranking.errors[len(ranking.ids) - options]
            for ranking, options in zip(self.rankings, self.options, strict=True)
        ]

    def _chosen(self, state: Sequence[int]) -> Iterable[tuple[np.ndarray, int]]:
        """Every group's errors by option, and its option."""
        return zip(self._errors(), state, strict=True)

    def _nearest(self, shares: Sequence[float]) -> list[int]:
        pairs = zip(self.options, self.groups, shares, strict=True)
        return [int(np.argmin(np.abs(options - share * len(group.ids)))) for options, group, share in pairs]

    def _uniform_within(self, metric: Metric, share: float) -> Solution:
        """Bisection of the share that groups keep; those that keep the least are then widened as far as it fits."""
        full, low, high = self.cost(metric, self._keep), 0.0, 1.0
        for _ in range(16):
            middle = (low + high) / 2
            fits = self.cost(metric, self._nearest([middle] * len(self.groups))) <= share * full
            low, high = (middle, high) if fits else (low, middle)
        state = self._nearest([1.0 if share >= 1 else low] * len(self.groups))
        left = self.cost(metric, state) / full
        if left > share:
            raise _unreachable(metric, share, left)
        order = np.argsort(self.widths(state) / self.widths(self._keep), kind="stable")
        return self._used_up(Solution(state, left, self.error(state)), metric, share, order)

    def _used_up(self, solution: Solution, metric: Metric, share: float, order: np.ndarray) -> Solution:
        """With groups one option wider, in this order, until little of the budget is left."""
        state, left, full = list(solution.state), solution.share, self.cost(metric, self._keep)
        for group in order.tolist():
            if left > share * (1 - _UNUSED):
                break
            wider = [*state[:group], max(0, state[group] - 1), *state[group + 1 :]]
            cost = self.cost(metric, wider) / full
            if left < cost <= share:
                state, left = wider, cost
        return replace(solution, state=state, share=left, error=self.error(state))


def _unreachable(metric: Metric, share: float, least: float) -> NncError:
    if metric != "channels":
        return budget.unreachable(share, least)
    return NncError(
        f"a sparsity of {1 - share:.3g} can't be reached: at most {1 - least:.3g} of the channels can go",
        "lower 'sparsity' or 'round_to'",
    )


def channels_per_unit(group: Group) -> int:
    """Channels of the first layer that writes them, or reads them, which go together."""
    use = next(iter((*group.producers, *group.consumers, *group.others)))
    return max(1, int(np.isin(use.ids, group.ids).sum()) // len(group.ids))


def widths(group: Group, multiple: int) -> np.ndarray:
    """Units that a group may keep, falling: all of them, or so many that the channels are a multiple of `multiple`."""
    count, apart = len(group.ids), spacing(group, multiple)
    return np.array([count, *range((count - 1) // apart * apart, 0, -apart)])


def spacing(group: Group, multiple: int) -> int:
    """Units of a group that together have a multiple of `multiple` channels."""
    return multiple // math.gcd(multiple, channels_per_unit(group))


def readers(groups: Sequence[Group], ids: np.ndarray) -> set[str]:
    """The names of the layers that read one of the channels."""
    uses = (use for group in groups for use in group.consumers)
    return {use.node.name for use in uses if np.isin(use.ids, ids).any()}
