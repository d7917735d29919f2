"""A pass that splits layers: its parameters, which layers and ranks it offers, and what it does to the chosen ones."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field, model_validator

from nnc import calibrate, factorize
from nnc import graph as graphs
from nnc.calibrate import Flow, Moments
from nnc.compression import reconstruct
from nnc.compression.budget import Budget, Metric
from nnc.digests import digest, graph_digest
from nnc.display import units
from nnc.factorize import Factors, Spectrum, Stage
from nnc.layers import Layer
from nnc.model.proto import is_standard
from nnc.rewrite import Context, Driver, Effect, Pass, selected
from nnc.splitting.places import Option, Splits
from nnc.splitting.ranks import Rank, largest, steps, undominated
from nnc.splitting.reasons import no_layer, unfit
from nnc.splitting.shapes import group_shape, held, weight_shape

#: By layer, one per group: what its curve leaves to its factors.
Spectra = dict[str, Sequence[Spectrum]]

#: Of the energy of weights that are stored in float32.
_ROUNDING = 1e-10


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
