"""What the passes share that split a layer into a chain of smaller ones: which layers, which ranks, at what cost.

A method of factorization (nnc.factorize) says which ranks a layer may have, what chain each of them is and what it
loses; `Split` does the rest. Costs are those of the whole network on the target: hollow copies of the graph, whose
layers are chains that take no memory, are measured and predicted, so that every figure counts in its surroundings.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field, model_validator

from nnc import calibrate, factorize, reconstruct, units
from nnc import graph as graphs
from nnc.budget import Allocation, Budget, Metric, Solution, corrected
from nnc.calibrate import Flow, Moments
from nnc.digests import digest, graph_digest
from nnc.errors import NncError
from nnc.factorize import Factors, Spectrum, Stage
from nnc.layers import Layer
from nnc.measure import has_shape, macs, measure, params
from nnc.proto import is_standard
from nnc.rewrite import Context, Driver, Effect, Pass, selected

#: What a method calls a rank: a number, or several where a chain has more than one.
Rank = Any

#: By layer, one per group: what its curve leaves to its factors.
Spectra = dict[str, Sequence[Spectrum]]

Choice = TypeVar("Choice")

#: Ranks that a layer is offered within a budget.
MOST_OPTIONS = 24

#: Of the energy of weights that are stored in float32.
_ROUNDING = 1e-10


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


class Split(Pass):
    """A pass that puts chains of smaller layers in the place of layers."""

    effect: ClassVar[Effect] = "approximate"
    ops: ClassVar[tuple[str, ...]]
    """The operators that it considers."""

    rank: Annotated[int, Field(ge=1)] | Literal["vbmf"] | None = Field(
        None, description="the rank of every layer, per group; 'vbmf' lets the noise in the weights tell"
    )
    energy: float | None = Field(None, ge=0, le=1, description="share of the energy that the smallest rank shall keep")
    budget: Budget | None = Field(None, description="what to keep of the network; this, 'rank' or 'energy'")
    when: Literal["faster", "smaller", "always"] | None = Field(
        None, description="split a layer only where the chain is; without it 'smaller' for a budget of params, "
        "otherwise 'faster'"
    )  # fmt: skip
    include: tuple[str, ...] = Field(("*",), description="split only layers whose name fits a glob")
    exclude: tuple[str, ...] = Field((), description="split no layers whose name fits a glob")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if sum(each is not None for each in (self.rank, self.energy, self.budget)) != 1:
            raise ValueError("give one of 'rank', 'energy' and 'budget'")
        return self

    # --- The method; arrays W [K, C / g, taps...] of one group

    def refusal(self, layer: Layer) -> str:
        """Why the method does not apply to a layer, or nothing."""
        raise NotImplementedError

    def most(self, shape: Sequence[int]) -> int:
        """The rank of a weight of this shape: chains of a lower one lose something."""
        raise NotImplementedError

    def variants(self, shape: Sequence[int], rank: int) -> list[Rank]:
        """The chains of one rank that there are to choose from."""
        return [rank]

    def ladder(self, shape: Sequence[int], step: int, limited: bool) -> list[Rank]:
        """Ranks in steps; `limited` to those whose chain has no more parameters than a weight of this shape."""
        most = largest(self, shape) if limited else self.most(shape)
        return [variant for rank in steps(most, step) for variant in self.variants(shape, rank)]

    def of_noise(self, W: np.ndarray) -> Rank:
        """The rank by variational Bayes."""
        raise NotImplementedError

    def clamped(self, shape: Sequence[int], rank: Rank) -> Rank:
        """A rank chosen for a wider layer, as it may be for a weight of this shape whose chain is cheaper than it."""
        return rank

    def stages(self, shape: Sequence[int], rank: Rank) -> tuple[Stage, ...]:
        """The chain for a weight of this shape."""
        raise NotImplementedError

    def errors(self, W: np.ndarray, moment: np.ndarray | None, ranks: list[Rank]) -> np.ndarray:
        """The share of the energy that is lost at each rank."""
        raise NotImplementedError

    def spectrum(self, W: np.ndarray, ranks: list[Rank]) -> Spectrum | None:
        """What `errors` and `factors` at these ranks both come from without a moment, where there is such a thing."""
        return None

    def factors(self, W: np.ndarray, moment: np.ndarray | None, rank: Rank, seed: int) -> Factors:
        """The chain with its weights: as of the `spectrum` where there is one."""
        raise NotImplementedError

    def spelled(self, shape: Sequence[int], rank: Rank) -> str:
        """The rank as people read it."""
        raise NotImplementedError

    # --- What is the same for all of them

    def run(self, graph: gs.Graph, context: Context) -> int:
        layers = self._layers(graph, context)
        samples = calibrate.samples(graph, context.calibration, context.seed) if context.calibration else None
        spectra: Spectra = {}
        ranks = self._ranks(graph, layers, samples, spectra, context)
        splits = Splits(self, graph, layers, ranks, biased=samples is not None, context=context)
        solution = splits.within(self.budget) if self.budget else splits.all()
        splits.announce(solution, self.budget)
        chosen = splits.chosen(solution.state)
        splits.explain(solution.state, self._apply(graph, chosen, samples, spectra, context) if chosen else {})
        return len(chosen)

    def _layers(self, graph: gs.Graph, context: Context) -> list[Layer]:
        """The layers that the method applies to; of the others the reason is told."""
        chosen = []
        for node in graph.nodes:
            if not is_standard(node, *self.ops):
                continue
            layer = Layer.of(node)
            reason = "excluded by the recipe" if not selected(node.name, self.include, self.exclude) else ""
            reason = reason or (no_layer(node) if layer is None else unfit(layer) or self.refusal(layer))
            if reason or layer is None:
                context.skip(node, reason)
            else:
                chosen.append(layer)
        return chosen

    def _ranks(
        self, graph: gs.Graph, layers: list[Layer], samples: Mapping[str, np.ndarray] | None, spectra: Spectra,
        context: Context,
    ) -> list[list[tuple[Rank, float]]]:  # fmt: skip
        """The ranks to offer every layer, with the errors that were measured for the choice among them."""
        step = context.target.unit.channel_multiple
        candidates = [self._candidates(layer, step, context) for layer in layers]
        if all(len(each) <= 1 for each in candidates):
            return [[(rank, 0.0) for rank in each] for each in candidates]
        errors = self._measured(graph, layers, candidates, samples, spectra, context)
        return [
            self._wanted(layer, list(zip(ranks, lost, strict=True)), context)
            for layer, ranks, lost in zip(layers, candidates, errors, strict=True)
        ]

    def _candidates(self, layer: Layer, multiple: int, context: Context) -> list[Rank]:
        shape = group_shape(layer)
        if self.rank == "vbmf":
            return [max(self.of_noise(W) for W in np.split(layer.weight, layer.groups))]
        if self.rank is not None:
            if self.rank >= self.most(shape):
                context.skip(layer.node, f"rank {self.rank} is no less than that of its weights, {self.most(shape)}")
                return []
            return self.variants(shape, self.rank)
        return self.ladder(shape, 1 if self.energy is not None else multiple, self.when != "always")

    def _measured(
        self, graph: gs.Graph, layers: list[Layer], candidates: list[list[Rank]],
        samples: Mapping[str, np.ndarray] | None, spectra: Spectra, context: Context,
    ) -> list[list[float]]:  # fmt: skip
        """The errors of all candidates, of the layers' outputs where there are samples; else `spectra` are kept."""

        def measured() -> list[list[float]]:
            flow = Flow(graph, samples) if samples else None
            errors = []
            for index, (layer, ranks) in enumerate(zip(layers, candidates, strict=True)):
                context.progress("measure ranks", index, len(layers))
                moments = None
                if flow is not None and layer.columns <= reconstruct.MOST_COLUMNS:
                    flow.run_before(layer.node)
                    moments = calibrate.input_moments(layer, flow.value(layer.node.inputs[0]), context.seed)
                errors.append(self._curve(layer, moments, ranks, {} if samples else spectra))
            return errors

        key = digest(
            graph_digest(graph), context.data_key if samples else "", str(context.seed), json.dumps(candidates)
        )
        return context.once(f"{self.name} errors", key, measured)

    def _curve(self, layer: Layer, moments: np.ndarray | None, ranks: list[Rank], spectra: Spectra) -> list[float]:
        if not ranks:
            return []
        own: list[Spectrum] = []

        def curve(W: np.ndarray, moment: np.ndarray | None) -> np.ndarray:
            spectrum = self.spectrum(W, ranks) if moment is None else None
            if spectrum is None:
                return self.errors(W, moment, ranks)
            own.append(spectrum)
            return spectrum.errors[ranks]

        blocks = None if moments is None else held(moments)
        errors = factorize.errors_by_group(curve, layer.weight, layer.groups, blocks)
        spectra[layer.node.name] = own
        return list(map(float, errors))

    def _wanted(self, layer: Layer, measured: list[tuple[Rank, float]], context: Context) -> list[tuple[Rank, float]]:
        """The candidates to offer: the best of one rank, the smallest with enough energy, or some along the curve."""
        if not measured:
            return []
        size = {rank: factorize.params(self.stages(group_shape(layer), rank)) for rank, _ in measured}
        if self.rank is not None:
            return [min(measured, key=lambda each: (each[1], size[each[0]]))]
        if self.energy is not None:
            enough = [each for each in measured if each[1] <= 1 - self.energy + _ROUNDING]
            if not enough:
                context.skip(layer.node, f"no rank that saves parameters keeps {self.energy:g} of its energy")
                return []
            return [min(enough, key=lambda each: (size[each[0]], each[1]))]
        return undominated(measured, [size[rank] for rank, _ in measured], [lost for _, lost in measured])

    def worth(self, options: Sequence[Option], whole: Option) -> tuple[list[Option], str]:
        """The options that are faster, or smaller, as asked; and why there is none."""
        metric = self._wished()
        if metric is None or not options:
            return list(options), ""
        worth = [each for each in options if each.cost.of(metric) < whole.cost.of(metric)]
        best = min(options, key=lambda each: each.cost.of(metric))
        if metric == "params":
            return worth, f"no smaller: {best.cost.params} parameters instead of {whole.cost.params}"
        times = (units.milliseconds(each.cost.latency_ms) for each in (best, whole))
        return worth, f"no faster: {' instead of '.join(times)}"

    def _wished(self) -> Metric | None:
        if self.when is None:
            return "params" if self.budget and self.budget.metric == "params" else "latency"
        wished: dict[str, Metric | None] = {"faster": "latency", "smaller": "params", "always": None}
        return wished[self.when]

    def _apply(
        self, graph: gs.Graph, chosen: Mapping[str, Rank], samples: Mapping[str, np.ndarray] | None,
        spectra: Spectra, context: Context,
    ) -> dict[str, float]:  # fmt: skip
        """Split layers; returns the share of the energy that each loses, by name."""
        if samples:
            callbacks = {name: partial(self._split, rank=rank, context=context) for name, rank in chosen.items()}
            return reconstruct.fit(graphs.copy(graph), graph, samples, context, factorize=callbacks)
        errors, driver = {}, Driver(graph)
        for index, node in enumerate([node for node in graph.nodes if node.name in chosen]):
            context.progress("split layers", index, len(chosen))
            layer, name = Layer(node), node.name
            factors = self.fitted(layer, layer.weight, None, chosen[name], context.seed, spectra.pop(name, ()))
            errors[name] = factors.error
            reconstruct.replace(layer, factors, layer.bias, driver)
        return errors

    def _split(self, layer: Layer, W: np.ndarray, moments: Moments | None, rank: Rank, context: Context) -> Factors:
        """`reconstruct.Factorize`."""
        blocks = None if moments is None else held(moments.xx)
        return self.fitted(layer, W.reshape(weight_shape(layer)), blocks, rank, context.seed)

    def fitted(
        self, layer: Layer, W: np.ndarray, blocks: list[np.ndarray] | None, rank: Rank, seed: int,
        spectra: Sequence[Spectrum] = (),
    ) -> Factors:  # fmt: skip
        """The chain for all groups of a layer, given its weight W [K, C / g, taps...] and the moments of each group.

        `spectra` are those of the groups where they are known already: the chain is the same.
        """
        known = iter(spectra)

        def method(part: np.ndarray, moment: np.ndarray | None) -> Factors:
            spectrum = next(known, None)
            return spectrum.factors(part, rank) if spectrum else self.factors(part, moment, rank, seed)

        if layer.groups == 1:
            return method(W, blocks[0] if blocks else None)
        return factorize.by_group(method, W, layer.groups, blocks)


class SvdSplit(Split):
    """A pass that takes a weight for a matrix [K, C * taps] and splits it by singular value decomposition."""

    def most(self, shape: Sequence[int]) -> int:
        return min(shape[0], math.prod(shape[1:]))

    def of_noise(self, W: np.ndarray) -> int:
        return factorize.vbmf_rank(W.reshape(len(W), -1))

    def stages(self, shape: Sequence[int], rank: int) -> tuple[Stage, ...]:
        return factorize.svd_stages(shape, rank)

    def errors(self, W: np.ndarray, moment: np.ndarray | None, ranks: list[int]) -> np.ndarray:
        return factorize.svd_errors(W, moment)[ranks]

    def spectrum(self, W: np.ndarray, ranks: list[int]) -> Spectrum | None:
        return Spectrum.of(W, max(ranks)) if self.rank is None else None  # one rank alone takes less

    def factors(self, W: np.ndarray, moment: np.ndarray | None, rank: int, seed: int) -> Factors:
        spectrum = self.spectrum(W, [rank]) if moment is None else None
        return spectrum.factors(W, rank) if spectrum else factorize.svd(W, rank, moment)

    def spelled(self, shape: Sequence[int], rank: int) -> str:
        return f"rank {rank} of {self.most(shape)}"


class Splits:
    """The layers that a pass may split, with their options and what these cost; a state is an option per place."""

    def __init__(
        self, method: Split, graph: gs.Graph, layers: list[Layer], ranks: list[list[tuple[Rank, float]]], *,
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
        latencies = {layer.name: layer.latency_ms for layer in self.context.predict(graph).layers}
        last = {node.outputs[0].name: node for node in graph.nodes}
        made = []
        for place in self.places:
            nodes = chain_nodes(last[place.node.outputs[0].name], place.node.inputs[0].name)
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
            weights = [np.broadcast_to(np.zeros((), node.inputs[1].dtype), stage.shape) for stage in stages]
            bias = np.ones(layer.outputs) if self.biased else layer.bias
            driver.replace(node, reconstruct.chain(layer, stages, weights, bias))
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
        graph = self.hollow(self.chosen(state))
        if metric == "latency":
            return self.context.predict(graph).latency_ms
        return float(getattr(measure(graph), metric))

    def announce(self, solution: Solution, budget: Budget | None) -> None:
        """Tell what the network will be like."""
        after = self.hollow(self.chosen(solution.state))
        figures, latency = measure(after), self.context.predict(after).latency_ms
        self.context.predicted(macs=figures.macs, params=figures.params, latency_ms=latency)
        if budget:
            metric = "latency_ms" if budget.metric == "latency" else budget.metric
            points = [{**each, "error": math.sqrt(-math.expm1(-each["error"]))} for each in solution.points]
            self.context.curve(metric, points)

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


def chain_nodes(last: gs.Node, start: str) -> list[gs.Node]:
    """The nodes from the tensor called `start` to what `last` computes."""
    nodes = [last]
    while nodes[-1].inputs[0].name != start:
        nodes.append(nodes[-1].inputs[0].inputs[0])
    return nodes


def grouped(stages: Sequence[Stage], groups: int) -> list[Stage]:
    """The chain of all groups, from that of one."""
    return [Stage((groups * each.shape[0], *each.shape[1:]), groups * each.group, each.axes) for each in stages]


def weight_shape(layer: Layer) -> tuple[int, ...]:
    """[K, C / g, taps...]; Gemm and MatMul have no taps."""
    return (layer.outputs, layer.inputs // layer.groups, *(layer.kernel if layer.is_conv else ()))


def group_shape(layer: Layer) -> tuple[int, ...]:
    """The shape of the weight of one group."""
    outputs, *rest = weight_shape(layer)
    return (outputs // layer.groups, *rest)


# --- Why a layer is left alone


def no_layer(node: gs.Node) -> str:
    """Why a Conv, Gemm or MatMul is no `Layer`."""
    weight = node.inputs[1]
    if any(each.op == "DequantizeLinear" for each in weight.inputs):
        return "its weights are quantized: split before quantizing"
    for tensor in node.inputs[1:]:
        if not isinstance(tensor, gs.Constant) and not tensor.is_empty():
            return f"'{tensor.name}' is not constant"
    if node.attrs.get("transA", 0):
        return "its input is transposed"
    if not has_shape(*node.inputs[:2], *node.outputs):
        return "its shape is not known"
    if node.op != "Conv" and len(weight.shape) != 2:
        return "its weights are no matrix"
    if weight.dtype not in (np.float32, np.float16):
        return f"its weights are {np.dtype(weight.dtype).name}"
    return "what it adds is no number per output"


def unfit(layer: Layer) -> str:
    """Why no method can split a layer, or nothing."""
    W = layer.node.inputs[1].values
    if not W.size or not np.isfinite([W.min(), W.max()]).all():
        return "its weights are not finite"
    return "it is depthwise: every channel is a layer of its own" if layer.is_depthwise else ""


def factor(layer: Layer) -> str:
    """Why a layer that is one of two factors already is left alone, or nothing.

    Two layers with nothing between, and fewer channels there than on either side, are a matrix of that rank. A lower
    rank of one of them is a lower rank of both: splitting it once more would only add a layer.
    """
    x, y = layer.node.inputs[0], layer.node.outputs[0]
    pairs: list[tuple[Layer | None, Layer | None, gs.Node]] = []
    pairs += [(Layer.of(each), layer, each) for each in x.inputs if len(x.outputs) == 1]
    pairs += [(layer, Layer.of(each), each) for each in y.outputs if len(y.outputs) == 1]
    for first, second, other in pairs:
        if first and second and first.groups == second.groups and _is_bottleneck(first, second):
            return f"it and '{other.name}' are the factors of a matrix of rank {first.outputs // first.groups}"
    return ""


def _is_bottleneck(first: Layer, second: Layer) -> bool:
    between = first.outputs // first.groups
    return between < first.columns and between < second.outputs // second.groups * math.prod(second.kernel)


def held(moments: np.ndarray) -> list[np.ndarray]:
    """The moments [g, D, D] by group; what hardly any input excites counts as much as it does in the fit of a layer."""
    damping = reconstruct.RIDGE * np.trace(moments, axis1=1, axis2=2) / moments.shape[1]
    return list(moments + damping[:, None, None] * np.eye(moments.shape[1]))


# --- Which ranks to offer


def largest(method: Split, shape: Sequence[int]) -> int:
    """The largest rank whose chain has fewer parameters than a weight of this shape; 1 where there is none."""

    def size(rank: int) -> int:
        return min(factorize.params(method.stages(shape, each)) for each in method.variants(shape, rank))

    return factorize.largest_rank(size, math.prod(shape) - 1, method.most(shape))


def steps(most: int, step: int) -> list[int]:
    """Ranks up to `most`, multiples of `step` or, where these would be few, of a part of it."""
    while step > 1 and most < 4 * step:
        step = step // 2 if step % 2 == 0 else 1
    return list(range(step, most + 1, step))


def growth(error: float) -> float:
    """What a lost share of energy costs a network: minus the logarithm of the share that is kept.

    Zhang, Zou, He, Sun, Accelerating very deep convolutional networks for classification and detection, 2015: the
    product of what layers keep tells accuracies well.
    """
    return -math.log1p(-min(error, 1 - 1e-9))


def undominated(choices: Sequence[Choice], sizes: Sequence[float], errors: Sequence[float]) -> list[Choice]:
    """The choices that no smaller one beats in error, the largest first."""
    kept, best = [], math.inf
    for index in sorted(range(len(choices)), key=lambda index: (sizes[index], errors[index])):
        if errors[index] < best:
            kept.append(choices[index])
            best = errors[index]
    return kept[::-1]


def thinned(choices: list[Choice]) -> list[Choice]:
    """At most `MOST_OPTIONS` of them, evenly spread, the first and the last included."""
    if len(choices) <= MOST_OPTIONS:
        return choices
    return [choices[round(index)] for index in np.linspace(0, len(choices) - 1, MOST_OPTIONS)]


def slower(option: Option, other: Option) -> bool:
    """Whether another option loses no more and is faster."""
    return other.error <= option.error and other.cost.latency_ms < option.cost.latency_ms
