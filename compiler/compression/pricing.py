"""What the options of a network cost by the figures of a budget, and the state of least error within it.

Costs are those of a model in which layers add up (nnc.compression.costs), latency as the target's cost model predicts
it: at some widths of all groups, at every rank of the chains, and without each branch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce

import numpy as np

from nnc import splitting
from nnc.compression import costs
from nnc.compression.budget import Allocation, Budget, Budgets, Metric, Solution, corrected, jointly
from nnc.compression.costs import Latencies, Layers, coefficients
from nnc.compression.network import Network

#: What stays of the loss without a branch once the layers behind have been fitted, which the losses of other choices
#: are told after. Of 1, 1/2 and 1/4 the share at which compressed ResNet-20 and -56 knew most images.
_NOT_MADE_UP = 0.25


def solve(network: Network, budget: Budgets) -> tuple[Solution, Budget | None]:
    """The state of least error within the budget, and the one figure that binds it; None where several do.

    Raises NncError where no state keeps within it.
    """
    pricing = _Pricing(network, budget)
    for each in budget.each:
        solution = corrected(pricing.allocation({each.metric: 1.0}), partial(network.cost, each.metric), each.share)
        left = pricing.left(solution.state)
        if all(left[metric] <= share for metric, share in budget.shares.items()):
            return solution, each
    return jointly(budget.shares, pricing.allocation, pricing.left), None


@dataclass(frozen=True)
class _Costs:
    """What options cost: by one figure, or by several at their prices."""

    layers: Layers
    """As they are."""
    tables: list[np.ndarray]
    """By layer that may be split, the coefficients [options, 4] of its options."""
    alone: np.ndarray
    """By branch, what the network costs less without it, everything else as it is."""

    def times(self, scale: float) -> "_Costs":
        dense, tables = scale * self.layers.dense, [scale * table for table in self.tables]
        return _Costs(replace(self.layers, dense=dense), tables, scale * self.alone)

    def plus(self, other: "_Costs") -> "_Costs":
        dense = self.layers.dense + other.layers.dense
        tables = [mine + its for mine, its in zip(self.tables, other.tables, strict=True)]
        return _Costs(replace(self.layers, dense=dense), tables, self.alone + other.alone)


class _Pricing:
    def __init__(self, network: Network, budget: Budgets) -> None:
        self.network, self.metrics = network, list(budget.shares)
        self.keep = network.state()

    def left(self, state: Sequence[int]) -> dict[Metric, float]:
        """The share that is left of every figure of the budget."""
        return {metric: self.network.cost(metric, state) / (whole or 1.0) for metric, whole in self._whole.items()}

    def allocation(self, prices: Mapping[Metric, float]) -> Allocation:
        """The allocation by the sum of the shares that figures have of the network's, at these prices."""
        places = _Priced(self.network, self._at(prices), sum(prices.values()))
        return Allocation(self._errors, places.options, places.whole, self._owners)

    @cached_property
    def _whole(self) -> dict[Metric, float]:
        """What the network costs as it is, by figure of the budget."""
        return {metric: self.network.cost(metric, self.keep) for metric in self.metrics}

    def _at(self, prices: Mapping[Metric, float]) -> _Costs:
        """The shares of the network's figures, times their prices, as one figure."""
        scales = {metric: price / (self._whole[metric] or 1.0) for metric, price in prices.items()}
        scaled = [self._costs[metric].times(scale) for metric, scale in scales.items()]
        return reduce(_Costs.plus, scaled)

    @cached_property
    def _costs(self) -> dict[Metric, _Costs]:
        """By figure of the budget."""
        return {metric: self._by(metric) for metric in self.metrics}

    def _by(self, metric: Metric) -> _Costs:
        network, latencies = self.network, self._narrowed if metric == "latency" else ()
        layers = costs.layers(network.graph, network.traced, network.groups, metric, latencies)
        dense = dict(zip(layers.names, layers.dense, strict=True))
        tables = [self._table(index, metric, dense[layer.node.name]) for index, layer in enumerate(network.layers)]
        return _Costs(layers, tables, self._alone[metric])

    def _table(self, index: int, metric: Metric, dense: np.ndarray) -> np.ndarray:
        """The cost coefficients of a layer's options."""
        layer, choices = self.network.layers[index], self.network.choices[index]
        rows = [dense]
        for number, choice in enumerate(filter(None, choices)):
            stages = self.network.methods[choice.method].stages(splitting.group_shape(layer), choice.rank)
            latency = self._chains[number][index] if metric == "latency" else 0.0
            rows.append(coefficients(layer, splitting.grouped(stages, layer.groups), metric, latency, dense[-1]))
        return np.stack(rows)

    # --- What the target's cost model says

    @cached_property
    def _narrowed(self) -> list[Latencies]:
        """What layers take where all groups are narrower."""
        network = self.network
        return costs.narrowed(
            network.widths,
            lambda groups: network.context.predict(network.hollow(network.state(groups=groups))).by_layer,
        )

    @cached_property
    def _chains(self) -> list[list[float]]:
        """By number of the option, the milliseconds of the chain of every layer, where all take that option."""
        network, made = self.network, []
        most = max(map(len, network.choices)) - 1
        for number in range(most):
            network.context.progress("predict ranks", number, most)
            graph = network.hollow(network.state(layers=[min(number + 1, len(each) - 1) for each in network.choices]))
            times = network.context.predict(graph).by_layer
            last = {node.outputs[0].name: node for node in graph.nodes}
            chains = [
                splitting.chain_nodes(last[layer.node.outputs[0].name], {layer.node.inputs[0].name})
                for layer in network.layers
            ]
            made.append([sum(times.get(node.name, 0.0) for node in chain) for chain in chains])
        return made

    @cached_property
    def _alone(self) -> dict[Metric, np.ndarray]:
        """What the network costs less without each branch, by figure of the budget."""
        network, count = self.network, len(self.network.branches)
        less = {metric: np.zeros(count) for metric in self.metrics}
        for index in range(count):
            network.context.progress("predict branches", index, count)
            hollow = network.hollow(network.state(branches=[int(each == index) for each in range(count)]))
            for metric, found in less.items():
                found[index] = self._whole[metric] - network.context.cost(hollow, metric)
        return less

    # --- What the outputs lose

    @cached_property
    def _errors(self) -> list[np.ndarray]:
        """By place, the errors of its options."""
        network, measured = self.network, self.network.measured
        pruned = [
            ranking.errors[len(ranking.ids) - widths]
            for ranking, widths in zip(measured.rankings, network.widths, strict=True)
        ]
        split = [np.array([choice.error if choice else 0.0 for choice in each]) for each in network.choices]
        return [*pruned, *split, *(np.array([0.0, _NOT_MADE_UP * lost]) for lost in measured.left_out or ())]

    @cached_property
    def _owners(self) -> dict[int, int]:
        """By the place of a layer in a branch, or of a group that lies in one, the place of that branch."""
        network, found = self.network, {}
        for place, branch in enumerate(network.branches, len(network.groups) + len(network.layers)):
            for index, group in enumerate(network.groups):
                uses = (*group.producers, *group.consumers, *group.others)
                if all(use.node.name in branch.nodes for use in uses):
                    found[index] = place
            for index, layer in enumerate(network.layers, len(network.groups)):
                if layer.node.name in branch.nodes:
                    found[index] = place
        return found


class _Priced:
    """The costs of the places of a network, for an allocation among them."""

    def __init__(self, network: Network, found: _Costs, total: float) -> None:
        """`total` is what the network costs as it is."""
        self.network, self.layers, self.tables = network, found.layers, found.tables
        rows, units = {name: row for row, name in enumerate(self.layers.names)}, network.units(network.state())
        self.own = [rows[layer.node.name] for layer in network.layers]
        self.inside = [[rows[name] for name in rows if name in branch.nodes] for branch in network.branches]
        self.fixed = total - self.layers.total(units, self.layers.dense)
        #: What a branch costs besides its layers.
        self.rest = found.alone - [self.layers.total(units, self.layers.dense, each) for each in self.inside]

    def options(self, place: int, state: list[int]) -> np.ndarray:
        """What the options of a place cost while the others are as in the state."""
        units, first = self.network.units(state), len(self.network.groups)
        if place < first:
            layers, table = self._there(state)
            return layers.of_group(place, self.network.widths[place], units, table)
        if (layer := place - first) < len(self.own):
            return self.layers.of_layer(self.own[layer], self.tables[layer], units)
        branch = place - first - len(self.own)
        _, table = self._there([*state[:place], 0, *state[place + 1 :]])
        return np.array([self.rest[branch] + self.layers.total(units, table, self.inside[branch]), 0.0])

    def whole(self, state: list[int]) -> float:
        """What the network costs in a state."""
        layers, table = self._there(state)
        _, _, left_out = self.network.parts(state)
        return (
            self.fixed + layers.total(self.network.units(state), table) - float(self.rest @ np.array(left_out, float))
        )

    def _there(self, state: Sequence[int]) -> tuple[Layers, np.ndarray]:
        """The layers that are there, and their coefficients."""
        _, options, left_out = self.network.parts(state)
        table = self.layers.dense.copy()
        for row, rows, option in zip(self.own, self.tables, options, strict=True):
            table[row] = rows[option]
        gone = [row for rows, is_out in zip(self.inside, left_out, strict=True) if is_out for row in rows]
        table[gone] = 0.0
        return self.layers.without(gone), table
