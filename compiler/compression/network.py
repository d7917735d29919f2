"""One plan for a whole network: which channels go, which layers are split and to which rank, within one budget.

What each choice would cost the outputs is measured once on calibration data, see `measure`; the choice among them is
an allocation over these errors, see nnc.compression.budget, and needs the network no more.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from nnc import calibrate, channels, factorize, splitting
from nnc import graph as graphs
from nnc.calibrate import Flow, Moments
from nnc.channels import Channels, Group
from nnc.compression import branches, costs, elimination, pruning, reconstruct, sensitivity
from nnc.compression.branches import Branch
from nnc.compression.budget import Allocation, Budget, Budgets, Metric, Solution, corrected, jointly
from nnc.compression.costs import Latencies, Layers, coefficients
from nnc.compression.elimination import Ranking
from nnc.digests import digest, graph_digest
from nnc.factorize import Factors
from nnc.layers import Layer
from nnc.measure import macs
from nnc.rewrite import Context, Driver
from nnc.splitting import Rank, Split

Arrays = Mapping[str, np.ndarray]

#: What stays of the loss without a branch once the layers behind have been fitted, which the losses of other choices
#: are told after. Of 1, 1/2, 1/4 and 1/10 the share at which compressed ResNet-20 and -56 knew most images.
_NOT_MADE_UP = 0.25


@dataclass(frozen=True)
class Choice:
    """A way to split a layer."""

    method: str
    rank: Rank
    error: float
    """Share of the energy of the network's outputs that is lost."""


@dataclass(frozen=True)
class Measured:
    """What every choice costs the outputs, and what the outputs of every layer are worth."""

    rankings: list[Ranking]
    """By group."""
    choices: dict[str, list[Choice]]
    """By layer."""
    weights: dict[str, np.ndarray]
    """By layer, see nnc.compression.sensitivity."""
    left_out: list[float] | None
    """By branch, what is lost without it; None where nothing tells."""


class Network:
    """A graph whose channels may go, whose layers may be split, and whose residual branches may be left out.

    A state holds an option per group, then one per layer, then one per branch: an index into `widths` and `choices`, or
    1 for a branch that is left out. Option 0 leaves the group, layer or branch as it is.
    """

    def __init__(
        self, graph: gs.Graph, traced: Channels, groups: Sequence[Group], layers: Sequence[Layer],
        droppable: Sequence[Branch], methods: Sequence[Split], multiple: int, budget: Budgets, samples: Arrays,
        context: Context,
    ) -> None:  # fmt: skip
        self.graph, self.traced, self.groups, self.layers, self.droppable = graph, traced, groups, layers, droppable
        self.methods = {method.name: method for method in methods}
        self.budget, self.samples, self.context = budget, samples, context
        self.widths = [pruning.widths(group, multiple) for group in groups]
        self.measured = self._measured(multiple)
        if self.measured.left_out is None:
            self.droppable = []
        self.choices: list[list[Choice | None]] = [[None, *self.measured.choices[layer.node.name]] for layer in layers]

    # --- What is measured

    def _measured(self, multiple: int) -> Measured:
        """Measured once for a network, its data and the methods: other budgets use it again."""
        key = digest(
            "groups, layers, weights, branches",  # what is kept: under another key than by an nnc that kept less
            graph_digest(self.graph), self.context.data_key, str(self.context.seed), str(multiple),
            *(group.name for group in self.groups), *(layer.node.name for layer in self.layers), *self.methods,
            *(branch.add for branch in self.droppable),
        )  # fmt: skip
        kept = self.context.once("compress", key, partial(self._measure, multiple))
        return Measured(
            [Ranking(np.array(each["ids"]), np.array(each["errors"])) for each in kept["groups"]],
            {
                name: [Choice(m, _hashable(rank), error) for m, rank, error in each]
                for name, each in kept["layers"].items()
            },
            {name: np.array(each) for name, each in kept["weights"].items()},
            kept["branches"],
        )

    def _measure(self, multiple: int) -> dict[str, Any]:
        readers = {use.node.name for group in self.groups for use in group.consumers}
        names = readers | {layer.node.name for layer in self.layers}
        nodes = [node for node in self.graph.nodes if node.name in names]
        weights = sensitivity.output_sensitivity(self.graph, nodes, self.samples, self.context)
        channels, flow, found = elimination.Eliminations(self.traced, self.groups), Flow(self.graph, self.samples), {}
        splittable = {layer.node.name: layer for layer in self.layers}
        for index, node in enumerate(nodes):
            self.context.progress("measure layers", index, len(nodes))
            flow.run_before(node)
            weight, layer = weights.get(node.name), splittable.get(node.name)
            most = reconstruct.MOST_COLUMNS if layer else elimination.MOST_COLUMNS
            moments = elimination.moments_of(node, flow, self.context.seed, most)
            if channels.reads(node):
                channels.add(node, flow, weight, moments)
            if layer:
                found[node.name] = self._curves(layer, multiple, flow.value(node.inputs[0]), moments, weight)
        rankings = channels.rankings(self.context)
        return {
            "groups": [{"ids": each.ids.tolist(), "errors": each.errors.tolist()} for each in rankings],
            "layers": found,
            "weights": {name: each.tolist() for name, each in weights.items()},
            "branches": branches.worth(self.graph, self.droppable, self.samples, self.context),
        }

    def _curves(
        self, layer: Layer, multiple: int, x: np.ndarray, moments: np.ndarray | None, weights: np.ndarray | None
    ) -> list[list[Any]]:
        """The choices [method, rank, error] of a layer that no other beats in both parameters and error."""
        W = layer.weight if weights is None else scaled(layer.weight, roots(weights))
        blocks: list[np.ndarray] | None = None
        unit = 1.0
        if moments is not None:
            blocks = splitting.held(moments)
        else:  # they would not fit into memory: inputs count as uncorrelated, and all alike
            unit = float(calibrate.channel_moments(x, 1 if layer.is_conv else x.ndim - 2)[1].mean())
        parts = enumerate(np.split(W, layer.groups))
        energy = unit * sum(factorize.output_energy(part, blocks[at] if blocks else None) for at, part in parts)
        scale = energy if weights is not None else 1.0 / len(self.layers)
        shape = splitting.group_shape(layer)
        choices = []
        for name, method in self.methods.items():
            if layer.node.op not in method.ops or method.refusal(layer):
                continue
            if ranks := method.ladder(shape, multiple, True):
                curve = factorize.errors_by_group(partial(method.errors, ranks=ranks), W, layer.groups, blocks)
                choices += [(name, rank, float(error) * scale) for rank, error in zip(ranks, curve, strict=True)]
        sizes = [factorize.params(self.methods[name].stages(shape, rank)) for name, rank, _ in choices]
        best = splitting.undominated(choices, sizes, [error for _, _, error in choices])
        return [list(each) for each in splitting.thinned(best)]

    # --- What is chosen

    def solve(self) -> tuple[Solution, Budget | None]:
        """The state of least error within the budget, and the one figure that binds it; None where several do."""
        for each in self.budget.each:
            solution = self._within(each)
            left = self._left(solution.state)
            if all(left[metric] <= share for metric, share in self.budget.shares.items()):
                return solution, each
        return jointly(self.budget.shares, self._allocation, self._left), None

    def _within(self, budget: Budget) -> Solution:
        """The state of least error within the budget of one figure."""
        return corrected(self._allocation({budget.metric: 1.0}), partial(self.cost, budget.metric), budget.share)

    def _left(self, state: Sequence[int]) -> dict[Metric, float]:
        """The share that is left of every figure of the budget."""
        return {metric: self.cost(metric, state) / (whole or 1.0) for metric, whole in self._whole.items()}

    @cached_property
    def _whole(self) -> dict[Metric, float]:
        """What the network costs as it is, by figure of the budget."""
        return {metric: self.cost(metric, self._keep) for metric in self.budget.shares}

    @property
    def _keep(self) -> list[int]:
        """The state in which everything stays as it is."""
        return [0] * (len(self.groups) + len(self.layers) + len(self.droppable))

    def _allocation(self, prices: Mapping[Metric, float]) -> Allocation:
        """The allocation by the sum of the shares that figures have of the network's, at these prices."""
        scales = {metric: price / (self._whole[metric] or 1.0) for metric, price in prices.items()}
        priced = {
            metric: costs.layers(self.graph, self.traced, self.groups, metric, self._narrowed(metric))
            for metric in scales
        }
        dense = np.sum([scales[key] * each.dense for key, each in priced.items()], axis=0)
        layers = replace(next(iter(priced.values())), dense=dense)
        index = {name: number for number, name in enumerate(layers.names)}
        own = [index[layer.node.name] for layer in self.layers]
        tables = [
            np.sum([scales[key] * self._table(layer, key, each.dense[number]) for key, each in priced.items()], axis=0)
            for layer, number in zip(self.layers, own, strict=True)
        ]
        count, first = len(self.groups), len(self.groups) + len(self.layers)
        inside = [[index[name] for name in layers.names if name in branch.nodes] for branch in self.droppable]
        fixed = sum(prices.values()) - layers.total(self._units([]), layers.dense)
        rest = np.sum([scales[key] * self._alone[key] for key in scales], axis=0)
        rest -= [layers.total(self._units([]), layers.dense, rows) for rows in inside]

        def current(state: Sequence[int]) -> tuple[Layers, np.ndarray]:
            """The layers that are there, and their coefficients."""
            table, gone = layers.dense.copy(), [row for rows in self._gone(inside, state) for row in rows]
            for number, options, option in zip(own, tables, state[count:first], strict=True):
                table[number] = options[option]
            table[gone] = 0.0
            return layers.without(gone), table

        def of_options(place: int, state: list[int]) -> np.ndarray:
            units, (there, table) = self._units(state), current(state)
            if place < count:
                return there.of_group(place, self.widths[place], units, table)
            if place < first:
                return layers.of_layer(own[place - count], tables[place - count], units)
            branch = place - first
            _, table = current([*state[:place], 0, *state[place + 1 :]])
            return np.array([rest[branch] + layers.total(units, table, inside[branch]), 0.0])

        def whole(state: list[int]) -> float:
            there, table = current(state)
            return fixed + there.total(self._units(state), table) - sum(self._gone(rest, state))

        return Allocation(self._errors(), of_options, whole, self._owners)

    def _gone(self, of_branches: Sequence[Any], state: Sequence[int]) -> list[Any]:
        """What `of_branches` says of those that are left out."""
        options = state[len(self.groups) + len(self.layers) :]
        return [each for each, option in zip(of_branches, options, strict=True) if option]

    @cached_property
    def _alone(self) -> dict[Metric, np.ndarray]:
        """What the network costs less without each branch, by figure of the budget."""
        first = len(self._keep) - len(self.droppable)
        less: dict[Metric, list[float]] = {metric: [] for metric in self.budget.shares}
        for index in range(len(self.droppable)):
            self.context.progress("predict branches", index, len(self.droppable))
            state = self._keep
            state[first + index] = 1
            hollow = self.hollow(state)
            for metric, found in less.items():
                found.append(self._whole[metric] - self.context.cost(hollow, metric))
        return {metric: np.array(found) for metric, found in less.items()}

    @cached_property
    def _owners(self) -> dict[int, int]:
        """By the place of a layer in a branch, or of a group that lies in one, the place of that branch."""
        first = len(self.groups) + len(self.layers)
        found = {}
        for place, branch in enumerate(self.droppable, first):
            for index, group in enumerate(self.groups):
                uses = (*group.producers, *group.consumers, *group.others)
                if all(use.node.name in branch.nodes for use in uses):
                    found[index] = place
            for index, layer in enumerate(self.layers, len(self.groups)):
                if layer.node.name in branch.nodes:
                    found[index] = place
        return found

    def _table(self, layer: Layer, metric: Metric, dense: np.ndarray) -> np.ndarray:
        """The cost coefficients of a layer's options."""
        rows = [dense]
        for choice in self._splits(layer):
            stages = self.methods[choice.method].stages(splitting.group_shape(layer), choice.rank)
            latency = self._latency(layer, choice) if metric == "latency" else 0.0
            rows.append(coefficients(layer, splitting.grouped(stages, layer.groups), metric, latency, dense[-1]))
        return np.stack(rows)

    def _narrowed(self, metric: Metric) -> list[Latencies]:
        """What layers take where all groups are narrower, if that is asked for."""
        if metric != "latency":
            return []
        others = [0] * (len(self.layers) + len(self.droppable))
        return costs.narrowed(self.widths, lambda state: self.context.predict(self.hollow([*state, *others])).by_layer)

    def _splits(self, layer: Layer) -> list[Choice]:
        return self.measured.choices[layer.node.name]

    def _latency(self, layer: Layer, choice: Choice) -> float:
        """Milliseconds of the chain, predicted in a network where every layer takes its option of that number."""
        number = self._splits(layer).index(choice)
        return self._latencies[number][layer.node.outputs[0].name]

    @cached_property
    def _latencies(self) -> list[dict[str, float]]:
        """By number of the option, the predicted latency of every layer's chain by its output."""
        made = []
        most = max(map(len, self.choices)) - 1
        for number in range(most):
            self.context.progress("predict ranks", number, most)
            state = self._keep
            state[len(self.groups) : len(self.groups) + len(self.layers)] = [
                min(number + 1, len(each) - 1) for each in self.choices
            ]
            graph = self.hollow(state)
            times = self.context.predict(graph).by_layer
            last = {node.outputs[0].name: node for node in graph.nodes}
            made.append(
                {
                    layer.node.outputs[0].name: sum(
                        times.get(node.name, 0.0)
                        for node in splitting.chain_nodes(last[layer.node.outputs[0].name], {layer.node.inputs[0].name})
                    )
                    for layer in self.layers
                }
            )
        return made

    def _errors(self) -> list[np.ndarray]:
        pruned = [
            ranking.errors[len(ranking.ids) - widths]
            for ranking, widths in zip(self.measured.rankings, self.widths, strict=True)
        ]
        split = [np.array([choice.error if choice else 0.0 for choice in each]) for each in self.choices]
        return [*pruned, *split, *(np.array([0.0, _NOT_MADE_UP * lost]) for lost in self.measured.left_out or ())]

    def _units(self, state: Sequence[int]) -> np.ndarray:
        """The widths of the groups, in units; those that they have for an empty state."""
        return np.array([widths[state[group] if state else 0] for group, widths in enumerate(self.widths)])

    # --- What comes of it

    def removed(self, state: Sequence[int]) -> np.ndarray:
        """The ids of the channels that go."""
        lost = [
            ranking.ids[: len(ranking.ids) - width]
            for ranking, width in zip(self.measured.rankings, self._units(state).tolist(), strict=True)
        ]
        return np.concatenate([np.zeros(0, np.int64), *lost])

    def split(self, state: Sequence[int]) -> dict[str, Choice]:
        """The choice for every layer that is split, by name."""
        options = state[len(self.groups) : len(self.groups) + len(self.layers)]
        chosen = {
            layer.node.name: each[option]
            for layer, each, option in zip(self.layers, self.choices, options, strict=True)
        }
        return {name: choice for name, choice in chosen.items() if choice is not None}

    def dropped(self, state: Sequence[int]) -> list[Branch]:
        """The branches that are left out."""
        return self._gone(self.droppable, state)

    def cost(self, metric: Metric, state: Sequence[int]) -> float:
        """What the whole network costs by `metric`: MACs, parameters, or milliseconds."""
        return self.context.cost(self.hollow(state), metric)

    def hollow(self, state: Sequence[int]) -> gs.Graph:
        """The compressed graph with weights that take no memory."""
        graph = graphs.copy(self.graph)
        channels.remove(graph, self.traced, self.removed(state).tolist(), hollow=True)
        branches.leave_out(graph, self.dropped(state))
        chosen, driver = self.split(state), Driver(graph)
        for node in [node for node in graph.nodes if node.name in chosen]:
            layer, choice = Layer(node), chosen[node.name]
            stages = self._stages(layer, choice)
            if stages:
                splitting.replace_hollow(layer, stages, np.ones(layer.outputs), driver)
        driver.tidy()
        return graph

    def _stages(self, layer: Layer, choice: Choice) -> list[factorize.Stage]:
        """The chain for a layer as it now is; none where channels that went have made the layer itself cheaper."""
        method, shape = self.methods[choice.method], splitting.group_shape(layer)
        stages = splitting.grouped(method.stages(shape, method.clamped(shape, choice.rank)), layer.groups)
        metric: Metric = "params" if list(self.budget.shares) == ["params"] else "macs"
        whole = {"params": math.prod(layer.node.inputs[1].shape), "macs": macs(layer.node)}[metric]
        numbers = coefficients(layer, stages, metric, latency_ms=0.0, least_ms=0.0)
        chain = float(costs.cost(numbers, *np.array([layer.inputs, layer.outputs])))
        return stages if chain < whole else []

    def compress(self, state: Sequence[int]) -> dict[str, float]:
        """Change the graph; returns the share of its output's energy that each layer loses, by name."""
        ids = self.removed(state)
        original = graphs.copy(self.graph)
        self.stays = {layer.node.name: ~np.isin(self.traced.written(layer.node), ids) for layer in self.layers}
        channels.remove(self.graph, self.traced, ids.tolist())
        changed = pruning.readers(self.groups, ids) | branches.leave_out(self.graph, self.dropped(state))
        splits = {name: partial(self._factors, name, choice) for name, choice in self.split(state).items()}
        return reconstruct.fit(
            original, self.graph, self.samples, self.context,
            kept=reconstruct.Kept(self.traced, frozenset(ids.tolist())), factorize=splits, changed=changed,
        )  # fmt: skip

    def _factors(
        self, name: str, choice: Choice, layer: Layer, W: np.ndarray, moments: Moments | None
    ) -> Factors | None:
        """`reconstruct.Factorize`: outputs that the network's depend on most are kept best."""
        if not self._stages(layer, choice):
            return None
        method, rank = self.methods[choice.method], choice.rank
        rank = method.clamped(splitting.group_shape(layer), rank)
        blocks = None if moments is None else splitting.held(moments.xx)
        W, importance = W.reshape(splitting.weight_shape(layer)), self.measured.weights.get(name)
        if importance is None:
            return method.fitted(layer, W, blocks, rank, self.context.seed)
        factors = roots(importance)[self.stays[name]]
        chain = method.fitted(layer, scaled(W, factors), blocks, rank, self.context.seed)
        return unscaled(chain, factors)


def unscaled(chain: Factors, factors: np.ndarray) -> Factors:
    """The chain without what `scaled` did to the outputs, which its last weight gives."""
    *inner, last = chain.weights
    return replace(chain, weights=(*inner, scaled(last, 1 / factors).astype(last.dtype)))


def _hashable(rank: Any) -> Rank:
    return tuple(rank) if isinstance(rank, list) else rank


def roots(weights: np.ndarray) -> np.ndarray:
    """What outputs are scaled by, so that their squared errors count as `weights` [K] says, but none counts nothing."""
    floor = 1e-2 * (weights.mean() or 1.0)
    return np.sqrt(np.maximum(weights, floor))


def scaled(W: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """W [K, ...] with its outputs multiplied."""
    return W * factors.reshape(-1, *[1] * (W.ndim - 1))
