"""Which channels to remove: widths for every group, within a budget or by a share, and the channels that go."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc import channels, costs, measure
from nnc import graph as graphs
from nnc.budget import Allocation, Metric, Solution
from nnc.channels import Channels, Group
from nnc.importance import Ranking
from nnc.rewrite import Context

#: How often widths that a wider one beats are taken out and the rest is allocated anew.
_ROUNDS = 4


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

    def within(self, metric: Metric, share: float) -> Solution:
        """The best state that keeps at most `share` of the network's cost, no width slower than a wider one."""
        for _ in range(_ROUNDS):
            solution = self._allocation(metric).within(share)
            slow = self._slower_than_wider(solution.state)
            if not slow:
                break
            for group in slow:
                self.options[group] = np.delete(self.options[group], solution.state[group])
        return solution

    def of_sparsity(self, sparsity: float) -> Solution:
        """The best state that removes a share of all channels."""
        errors, sizes = self._errors(), self._channels_per_unit()
        total = sum(size * options[0] for size, options in zip(sizes, self.options, strict=True))
        allocation = Allocation(
            errors,
            lambda group, state: self.options[group] * float(sizes[group]),
            lambda state: sum(size * width for size, width in zip(sizes, self.widths(state), strict=True)),
        )
        least = sum(size * options[-1] for size, options in zip(sizes, self.options, strict=True)) / total
        return allocation.within(max(1 - sparsity, least))

    def uniform(self, share: float) -> list[int]:
        """The state in which every group keeps the width nearest to `share` of its own."""
        return [int(np.argmin(np.abs(options - share * options[0]))) for options in self.options]

    def uniform_within(self, metric: Metric, share: float) -> Solution:
        """The widest `uniform` state that keeps at most `share` of the network's cost."""
        full, low, high = self.cost(metric, [0] * len(self.groups)), 0.0, 1.0
        for _ in range(16):
            middle = (low + high) / 2
            if self.cost(metric, self.uniform(middle)) <= share * full:
                low = middle
            else:
                high = middle
        state = self.uniform(low)
        return Solution(state, self.cost(metric, state) / full, 0.0)

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

    def cost(self, metric: Metric, state: Sequence[int]) -> float:
        """What is left of the network by `metric`: MACs, parameters, or milliseconds."""
        pruned = graphs.copy(self.graph)
        channels.remove(pruned, self.traced, self.removed(state), hollow=True)
        if metric == "latency":
            return self.context.predict(pruned).latency_ms
        figures = measure.measure(pruned)
        return float(figures.macs if metric == "macs" else figures.params)

    def _allocation(self, metric: Metric) -> Allocation:
        layers = costs.layers(self.graph, self.traced, self.groups, metric, self.context.predict(self.graph))

        def of_options(group: int, state: list[int]) -> np.ndarray:
            return layers.of_group(group, self.options[group], self.widths(state), layers.dense)

        return Allocation(self._errors(), of_options, lambda state: self.cost(metric, state))

    def _errors(self) -> list[np.ndarray]:
        return [
            ranking.errors[len(ranking.ids) - options]
            for ranking, options in zip(self.rankings, self.options, strict=True)
        ]

    def _slower_than_wider(self, state: list[int]) -> list[int]:
        """The groups for which the cost model knows a wider option that is no slower."""
        latency = self.cost("latency", state)
        pruned = [group for group, option in enumerate(state) if option]
        return [
            group
            for group in pruned
            if self.cost("latency", [*state[:group], state[group] - 1, *state[group + 1 :]]) <= latency
        ]

    def _channels_per_unit(self) -> list[int]:
        return [channels_per_unit(group) for group in self.groups]


def channels_per_unit(group: Group) -> int:
    """Channels of the first layer that writes them, or reads them, which go together."""
    use = next(iter((*group.producers, *group.consumers, *group.others)))
    return max(1, np.count_nonzero(np.isin(use.ids, group.ids)) // len(group.ids))


def widths(group: Group, multiple: int) -> np.ndarray:
    """Units that a group may keep, falling: all of them, or so many that the channels are a multiple of `multiple`."""
    count = len(group.ids)
    step = multiple // math.gcd(multiple, channels_per_unit(group))
    return np.array([count, *range((count - 1) // step * step, 0, -step)])


def readers(groups: Sequence[Group], ids: np.ndarray) -> set[str]:
    """The names of the layers that read one of the channels."""
    uses = (use for group in groups for use in group.consumers)
    return {use.node.name for use in uses if np.isin(use.ids, ids).any()}
