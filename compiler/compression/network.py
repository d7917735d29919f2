"""A network in its states: which channels go, which layers are split and to which rank, which branches are left out.

`nnc.compression.pricing` chooses the state.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from nnc import channels, factorize, splitting
from nnc import graph as graphs
from nnc.calibrate import Moments
from nnc.compression import branches, costs, pruning, reconstruct
from nnc.compression.branches import Branch
from nnc.compression.budget import Metric
from nnc.compression.measured import Choice, Measured, Places, Samples
from nnc.compression.sensitivity import roots, scaled, unscaled
from nnc.factorize import Factors
from nnc.layers import Layer
from nnc.measure import macs
from nnc.rewrite import Context, Driver


class Network:
    """A graph whose channels may go, whose layers may be split, and whose residual branches may be left out.

    A state holds an option per group, then one per layer, then one per branch: an index into `widths` and `choices`, or
    1 for a branch that is left out. Option 0 leaves the group, layer or branch as it is.
    """

    def __init__(self, places: Places, size: Literal["macs", "params"], samples: Samples, context: Context) -> None:
        """A chain stands for a layer only where it has less of `size`."""
        self.graph, self.traced, self.groups, self.layers = places.graph, places.traced, places.groups, places.layers
        self.methods, self.size, self.samples, self.context = places.methods, size, samples, context
        self.measured = Measured.of(places, samples, context)
        self.branches = [] if self.measured.left_out is None else places.branches
        self.widths = [pruning.widths(group, places.multiple) for group in self.groups]
        self.choices: list[list[Choice | None]] = [
            [None, *self.measured.choices[layer.node.name]] for layer in self.layers
        ]

    # --- States

    def state(
        self, *, groups: Sequence[int] = (), layers: Sequence[int] = (), branches: Sequence[int] = ()
    ) -> list[int]:
        """The state with these options, in which everything else stays as it is."""
        return [
            *(groups or [0] * len(self.groups)),
            *(layers or [0] * len(self.layers)),
            *(branches or [0] * len(self.branches)),
        ]

    def parts(self, state: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """The options of the groups, of the layers, and of the branches."""
        first, second = len(self.groups), len(self.groups) + len(self.layers)
        return state[:first], state[first:second], state[second:]

    def units(self, state: Sequence[int]) -> np.ndarray:
        """The widths of the groups, in units."""
        options, _, _ = self.parts(state)
        return np.array([widths[option] for widths, option in zip(self.widths, options, strict=True)])

    def removed(self, state: Sequence[int]) -> np.ndarray:
        """The ids of the channels that go."""
        lost = [
            ranking.ids[: len(ranking.ids) - width]
            for ranking, width in zip(self.measured.rankings, self.units(state).tolist(), strict=True)
        ]
        return np.concatenate([np.zeros(0, np.int64), *lost])

    def split(self, state: Sequence[int]) -> dict[str, Choice]:
        """The choice for every layer that is split, by name."""
        _, options, _ = self.parts(state)
        chosen = {
            layer.node.name: each[option]
            for layer, each, option in zip(self.layers, self.choices, options, strict=True)
        }
        return {name: choice for name, choice in chosen.items() if choice is not None}

    def left_out(self, state: Sequence[int]) -> list[Branch]:
        """The branches that are left out."""
        _, _, options = self.parts(state)
        return [branch for branch, option in zip(self.branches, options, strict=True) if option]

    # --- What comes of them

    def cost(self, metric: Metric, state: Sequence[int]) -> float:
        """What the whole network costs by `metric`: MACs, parameters, or milliseconds."""
        return self.context.cost(self.hollow(state), metric)

    def hollow(self, state: Sequence[int]) -> gs.Graph:
        """The compressed graph with weights that take no memory."""
        graph = graphs.copy(self.graph)
        channels.remove(graph, self.traced, self.removed(state).tolist(), hollow=True)
        branches.leave_out(graph, self.left_out(state))
        chosen, driver = self.split(state), Driver(graph)
        for node in [node for node in graph.nodes if node.name in chosen]:
            layer, choice = Layer(node), chosen[node.name]
            stages = self._stages(layer, choice)
            if stages:
                splitting.replace_hollow(layer, stages, np.ones(layer.outputs), driver)
        driver.tidy()
        return graph

    def compress(self, state: Sequence[int]) -> dict[str, float]:
        """Change the graph; returns the share of its output's energy that each layer loses, by name."""
        ids = self.removed(state)
        original = graphs.copy(self.graph)
        stays = {layer.node.name: ~np.isin(self.traced.written(layer.node), ids) for layer in self.layers}
        channels.remove(self.graph, self.traced, ids.tolist())
        changed = pruning.readers(self.groups, ids) | branches.leave_out(self.graph, self.left_out(state))
        splits = {name: partial(self._factors, choice, stays[name]) for name, choice in self.split(state).items()}
        return reconstruct.fit(
            original, self.graph, self.samples, self.context,
            kept=reconstruct.Kept(self.traced, frozenset(ids.tolist())), factorize=splits, changed=changed,
        )  # fmt: skip

    def _stages(self, layer: Layer, choice: Choice) -> list[factorize.Stage]:
        """The chain for a layer as it now is; none where channels that went have made the layer itself cheaper."""
        method, shape = self.methods[choice.method], splitting.group_shape(layer)
        stages = splitting.grouped(method.stages(shape, method.clamped(shape, choice.rank)), layer.groups)
        whole = {"params": math.prod(layer.node.inputs[1].shape), "macs": macs(layer.node)}[self.size]
        numbers = costs.coefficients(layer, stages, self.size)
        chain = float(costs.cost(numbers, *np.array([layer.inputs, layer.outputs])))
        return stages if chain < whole else []

    def _factors(
        self, choice: Choice, stays: np.ndarray, layer: Layer, W: np.ndarray, moments: Moments | None
    ) -> Factors | None:
        """`reconstruct.Factorize`: outputs that the network's depend on most are kept best.

        `stays` [K] says which outputs of the original layer are left.
        """
        if not self._stages(layer, choice):
            return None
        method = self.methods[choice.method]
        rank = method.clamped(splitting.group_shape(layer), choice.rank)
        blocks = None if moments is None else splitting.held(moments.xx)
        W, importance = W.reshape(splitting.weight_shape(layer)), self.measured.weights.get(layer.node.name)
        if importance is None:
            return method.fitted(layer, W, blocks, rank, self.context.seed)
        factors = roots(importance)[stays]
        return unscaled(method.fitted(layer, scaled(W, factors), blocks, rank, self.context.seed), factors)
