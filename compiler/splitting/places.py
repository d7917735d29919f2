"""The layers that may be split, with their options, what these cost in the network, and which are chosen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.compression.budget import Allocation, Budget, Metric, Solution, corrected
from nnc.errors import NncError
from nnc.layers import Layer
from nnc.measure import macs, measure, params
from nnc.rewrite import Context, Driver
from nnc.splitting.ranks import MOST_OPTIONS, Rank, growth, thinned
from nnc.splitting.shapes import chain_nodes, group_shape, grouped, replace_hollow

if TYPE_CHECKING:
    from nnc.splitting.split import Split


@dataclass(frozen=True)
class Cost:
    """What a layer, or the chain in its place, costs in the network."""

    macs: int
    params: int
    latency_ms: float

    def of(self, metric: Metric) -> float:
        return self.latency_ms if metric == "latency" else float(getattr(self, metric))


@dataclass(frozen=True)
class Option:
    """A layer split at a rank; None leaves it as it is."""

    rank: Rank
    error: float
    """Share of the energy of the layer's output that is lost, or of its weights without calibration data."""
    cost: Cost


@dataclass
class Place:
    """A layer, with the options that it has; the first leaves it as it is."""

    node: gs.Node
    name: str
    shape: tuple[int, ...]
    """Of the weight of one group."""
    options: list[Option]
    reason: str = ""
    """Why it has no option but the first."""


class Splits:
    """The layers that a pass may split, with their options and what these cost; a state is an option per place."""

    def __init__(
        self, method: "Split", graph: gs.Graph, layers: list[Layer], ranks: list[list[tuple[Rank, float]]], *,
        biased: bool, context: Context,
    ) -> None:  # fmt: skip
        self.method, self.graph, self.biased, self.context, self.ranks = method, graph, biased, context, ranks
        self.places = [Place(layer.node, layer.node.name, group_shape(layer), []) for layer in layers]
        self._keep = [Option(None, 0.0, cost) for cost in self._costs({})]
        self._offer(ranks)
        for place, own in zip(self.places, ranks, strict=True):
            if own and len(place.options) == 1:
                context.skip(place.node, place.reason)

    def _offer(self, ranks: list[list[tuple[Rank, float]]]) -> None:
        """Let every place choose among some of its ranks, the largest first, at the costs that they have there."""
        offered = [thinned(each) for each in ranks]
        options: list[list[Option]] = [[] for _ in self.places]
        rounds = max(map(len, offered), default=0)
        for index in range(rounds):
            self.context.progress("predict ranks", index, rounds)
            each = [own[min(index, len(own) - 1)] if own else None for own in offered]
            chosen = {place.name: rank[0] for place, rank in zip(self.places, each, strict=True) if rank}
            for found, own, cost in zip(options, offered, self._costs(chosen), strict=True):
                if index < len(own):
                    found.append(Option(*own[index], cost))
        for place, keep, found in zip(self.places, self._keep, options, strict=True):
            worth, reason = self.method.worth(found, keep)
            if reason:
                place.reason = f"{self.method.spelled(place.shape, found[-1].rank)} is {reason}"
            place.options = [keep, *(one for one in worth if not any(slower(one, other) for other in worth))]

    def _costs(self, chosen: Mapping[str, Rank]) -> list[Cost]:
        """What every place costs in the network whose layers are split like this."""
        graph = self.hollow(chosen)
        latencies = self.context.predict(graph).by_layer
        last = {node.outputs[0].name: node for node in graph.nodes}
        made = []
        for place in self.places:
            nodes = chain_nodes(last[place.node.outputs[0].name], {place.node.inputs[0].name})
            latency = sum(latencies.get(node.name, 0.0) for node in nodes)
            made.append(Cost(sum(map(macs, nodes)), sum(map(params, nodes)), latency))
        return made

    def hollow(self, chosen: Mapping[str, Rank]) -> gs.Graph:
        """A copy of the graph with chains of dummies, which take no memory, in the place of layers."""
        graph = graphs.copy(self.graph)
        driver = Driver(graph)
        for node in [node for node in graph.nodes if node.name in chosen]:
            layer = Layer(node)
            stages = grouped(self.method.stages(group_shape(layer), chosen[node.name]), layer.groups)
            replace_hollow(layer, stages, np.ones(layer.outputs) if self.biased else layer.bias, driver)
        driver.tidy()
        return graph

    def all(self) -> Solution:
        """The state in which every place takes its last option."""
        return Solution([len(place.options) - 1 for place in self.places], 1.0, 0.0)

    def chosen(self, state: Sequence[int]) -> dict[str, Rank]:
        """The rank of every layer that is split, by name."""
        pairs = zip(self.places, state, strict=True)
        return {place.name: place.options[option].rank for place, option in pairs if option}

    def within(self, budget: Budget) -> Solution:
        """The state of least error that costs at most a share of what the network costs now."""
        try:
            first = self._within(budget)
        except NncError as error:
            hint = "raise the budget, or split where it pays less: include, exclude, when"
            raise NncError(error.message, hint) from None
        offered = [place.options for place in self.places]
        windows = [self._window(*each) for each in zip(self.places, self.ranks, first.state, strict=True)]
        if all(len(each) <= MOST_OPTIONS for each in self.ranks):
            return first  # all ranks were offered
        self._offer(windows)
        try:
            finer = self._within(budget)
        except NncError:  # latencies depend on what all other layers are
            for place, options in zip(self.places, offered, strict=True):
                place.options = options
            return first
        seen = [each for each in first.points if not each["chosen"]]
        return replace(finer, points=seen + [each for each in finer.points if each["chosen"]])

    def _window(self, place: Place, ranks: list[tuple[Rank, float]], option: int) -> list[tuple[Rank, float]]:
        """The ranks of a place from the option above the chosen one to the one below."""
        if len(place.options) == 1:
            return []
        names = [rank for rank, _ in ranks]
        above, below = max(option - 1, 0), min(option + 1, len(place.options) - 1)
        start = names.index(place.options[above].rank) if above else 0
        return ranks[start : names.index(place.options[below].rank) + 1]

    def _within(self, budget: Budget) -> Solution:
        """`within` for the options that are offered, whose costs are taken to add up at first."""
        allocation, cost = self._allocation(budget.metric), partial(self.cost, budget.metric)
        return self._grown(corrected(allocation, cost, budget.share), budget, cost([0] * len(self.places)))

    def _grown(self, solution: Solution, budget: Budget, full: float) -> Solution:
        """The solution with what it left of the budget used up, by the option first that saves the most."""
        left = (budget.share - solution.share) * full
        steps = [
            (growth(here.error) - growth(option.error), place, index)
            for place, chosen in enumerate(solution.state)
            for here in self.places[place].options[chosen : chosen + 1]
            for index, option in enumerate(self.places[place].options)
            if option.error < here.error and option.cost.of(budget.metric) - here.cost.of(budget.metric) <= left
        ]
        for saved, place, index in sorted(steps, reverse=True):
            state = [*solution.state[:place], index, *solution.state[place + 1 :]]
            share = self.cost(budget.metric, state) / full
            if share <= budget.share:
                grown = Solution(state, share, solution.error - saved, _moved(solution.points, share, saved))
                return self._grown(grown, budget, full)
        return solution

    def _allocation(self, metric: Metric) -> Allocation:
        growths = [np.array([growth(each.error) for each in place.options]) for place in self.places]
        prices = [np.array([each.cost.of(metric) for each in place.options]) for place in self.places]
        fixed = self.cost(metric, [0] * len(self.places)) - sum(each[0] for each in prices)

        def total(state: Sequence[int]) -> float:
            return fixed + sum(float(each[option]) for each, option in zip(prices, state, strict=True))

        return Allocation(growths, lambda place, _: prices[place], total)

    def cost(self, metric: Metric, state: Sequence[int]) -> float:
        """What the whole network costs."""
        return self.context.cost(self.hollow(self.chosen(state)), metric)

    def announce(self, solution: Solution, budget: Budget | None) -> None:
        """Tell what the network will be like."""
        after = self.hollow(self.chosen(solution.state))
        figures, latency = measure(after), self.context.predict(after).latency_ms
        self.context.predicted(macs=figures.macs, params=figures.params, latency_ms=latency)
        if budget:
            points = [{**each, "error": math.sqrt(-math.expm1(-each["error"]))} for each in solution.points]
            self.context.curve(budget.figure, points)

    def explain(self, state: Sequence[int], errors: Mapping[str, float]) -> None:
        """Tell what became of every layer; `errors` are the shares of energy that were lost."""
        for place, option in zip(self.places, state, strict=True):
            before, after, rank = place.options[0].cost, place.options[option].cost, place.options[option].rank
            self.context.decide(
                place.name,
                self.method.spelled(place.shape, rank) if option else "keep",
                macs=(before.macs, after.macs),
                params=(before.params, after.params),
                latency_ms=(before.latency_ms, after.latency_ms),
                error=math.sqrt(errors[place.name]) if option else None,
            )


def _moved(points: list[dict[str, float | bool]], share: float, saved: float) -> list[dict[str, float | bool]]:
    """The points with the chosen one where it is now."""
    return [
        {**each, "budget": share, "error": float(each["error"]) - saved} if each["chosen"] else each for each in points
    ]


def slower(option: Option, other: Option) -> bool:
    """Whether another option loses no more and is faster."""
    return other.error <= option.error and other.cost.latency_ms < option.cost.latency_ms
