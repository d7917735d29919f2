"""What may change in a network, in which ways, and what each way costs the outputs, measured on calibration data.

It is measured once for a network, its data and the methods; budgets are then chosen within without the network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from nnc import calibrate, factorize, splitting
from nnc.calibrate import Flow
from nnc.channels import Channels, Group
from nnc.compression import branches, elimination, reconstruct, sensitivity
from nnc.compression.branches import Branch
from nnc.compression.elimination import Ranking
from nnc.digests import digest, graph_digest
from nnc.layers import Layer
from nnc.rewrite import Context
from nnc.splitting import Rank, Split

#: Calibration data as `nnc.calibrate.samples` gives them.
Samples = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Places:
    """What may change in a graph: groups lose channels, layers are split, residual branches are left out."""

    graph: gs.Graph
    traced: Channels
    groups: Sequence[Group]
    layers: Sequence[Layer]
    branches: Sequence[Branch]
    methods: Mapping[str, Split]
    """Ways to split a layer, by name."""
    multiple: int
    """Widths and ranks are multiples of it."""


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

    @classmethod
    def of(cls, places: Places, samples: Samples, context: Context) -> "Measured":
        """What was measured for these places, or else is now."""
        key = digest(
            "groups, layers, weights, branches",  # what is kept: under another key than by an nnc that kept less
            graph_digest(places.graph), context.data_key, str(context.seed), str(places.multiple),
            *(group.name for group in places.groups), *(layer.node.name for layer in places.layers), *places.methods,
            *(branch.add for branch in places.branches),
        )  # fmt: skip
        kept = context.once("compress", key, partial(_measure, places, samples, context))
        return cls(
            [Ranking(np.array(each["ids"]), np.array(each["errors"])) for each in kept["groups"]],
            {
                name: [Choice(m, _hashable(rank), error) for m, rank, error in each]
                for name, each in kept["layers"].items()
            },
            {name: np.array(each) for name, each in kept["weights"].items()},
            kept["branches"],
        )


def _measure(places: Places, samples: Samples, context: Context) -> dict[str, Any]:
    """As JSON, what `Measured` holds."""
    splittable = {layer.node.name: layer for layer in places.layers}
    names = splittable.keys() | {use.node.name for group in places.groups for use in group.consumers}
    nodes = [node for node in places.graph.nodes if node.name in names]
    weights = sensitivity.output_sensitivity(places.graph, nodes, samples, context)
    eliminations, flow = elimination.Eliminations(places.traced, places.groups), Flow(places.graph, samples)
    curves = {}
    for index, node in enumerate(nodes):
        context.progress("measure layers", index, len(nodes))
        flow.run_before(node)
        weight, layer = weights.get(node.name), splittable.get(node.name)
        most = reconstruct.MOST_COLUMNS if layer else elimination.MOST_COLUMNS
        moments = elimination.moments_of(node, flow, context.seed, most)
        if eliminations.reads(node):
            eliminations.add(node, flow, weight, moments)
        if layer:
            curves[node.name] = _curve(places, layer, flow.value(node.inputs[0]), moments, weight)
    rankings = eliminations.rankings(context)
    return {
        "groups": [{"ids": each.ids.tolist(), "errors": each.errors.tolist()} for each in rankings],
        "layers": curves,
        "weights": {name: each.tolist() for name, each in weights.items()},
        "branches": branches.worth(places.graph, places.branches, samples, context),
    }


def _curve(
    places: Places, layer: Layer, x: np.ndarray, moments: np.ndarray | None, weights: np.ndarray | None
) -> list[list[Any]]:
    """The choices [method, rank, error] of a layer that no other beats in both parameters and error."""
    W = layer.weight if weights is None else sensitivity.scaled(layer.weight, sensitivity.roots(weights))
    blocks: list[np.ndarray] | None = None
    unit = 1.0
    if moments is not None:
        blocks = splitting.held(moments)
    else:  # they would not fit into memory: inputs count as uncorrelated, and all alike
        unit = float(calibrate.channel_moments(x, 1 if layer.is_conv else x.ndim - 2)[1].mean())
    parts = enumerate(np.split(W, layer.groups))
    energy = unit * sum(factorize.output_energy(part, blocks[at] if blocks else None) for at, part in parts)
    scale = energy if weights is not None else 1.0 / len(places.layers)
    shape = splitting.group_shape(layer)
    choices = []
    for name, method in places.methods.items():
        if layer.node.op not in method.ops or method.refusal(layer):
            continue
        if ranks := method.ladder(shape, places.multiple, True):
            errors = factorize.errors_by_group(partial(method.errors, ranks=ranks), W, layer.groups, blocks)
            choices += [(name, rank, float(error) * scale) for rank, error in zip(ranks, errors, strict=True)]
    sizes = [factorize.params(places.methods[name].stages(shape, rank)) for name, rank, _ in choices]
    best = splitting.undominated(choices, sizes, [error for _, _, error in choices])
    return [list(each) for each in splitting.thinned(best)]


def _hashable(rank: Any) -> Rank:
    return tuple(rank) if isinstance(rank, list) else rank
