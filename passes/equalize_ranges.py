"""equalize-ranges: channels of one tensor get ranges that are alike, so that they can share a scale."""

from typing import ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field

from nnc import equalize, verify
from nnc import graph as graphs
from nnc.attributes import bounds
from nnc.calibrate import extremes
from nnc.calibrate.extremes import Extremes
from nnc.equalize import Noise, Scalable, absorb
from nnc.model.proto import is_standard
from nnc.rewrite import Context, Driver, Effect, Pass, node, selected
from nnc.session import Session

#: Factors nearer to 1 than this share are left out: rounding costs more than they bring.
_WORTH = 0.02

#: The relative error of the outputs up to which a bound that is left out counts as unused.
_UNUSED = 1e-3


class EqualizeRanges(Pass):
    """Scale the channels of each tensor so that their ranges are alike.

    Conv(Relu(Conv(x, W, B)), V)  ->  Conv(Relu(Conv(x, W / s, B / s)), s * V)     s by channel

    Also through depthwise and transposed convolutions, Clip, pooling, padding, sums and Concat: channels that a
    residual Add joins have one factor. The weights that write a channel and those that read it get equal ranges. Where
    weights have a scale per channel and there is calibration data, factors balance the noise of activations and of the
    weights that read them instead. Clip behind scaled channels becomes Relu where the calibration data does not need
    its bound, otherwise Min(Relu(x), bound / s). What channels always exceed is moved through Relu into the biases
    behind it.

    Approximate: factors alone leave the outputs as they were; a bound that is left out, and a shift through Relu, do so
    on the calibration data. Declines where something between two layers is not proportional to what it reads
    (Sigmoid, HardSwish, Softmax, BatchNormalization, an output of the graph), and where weights are quantized already
    or shared.

    Reference: Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019; Xiao et
    al., SmoothQuant, ICML 2023, on activations.
    """

    name: ClassVar[str] = "equalize-ranges"
    effect: ClassVar[Effect] = "approximate"

    bounds: Literal["auto", "channel", "relu", "keep"] = Field(
        "auto", description="what becomes of a Clip between layers: a bound by channel, a Relu, itself (and nothing is "
        "scaled across it), or 'auto', Relu where calibration data shows that the bound is not needed, else by channel"
    )  # fmt: skip
    absorb: bool = Field(
        True, description="move what channels always exceed into the next layer's bias, where calibration data or "
        "BatchNormalization of the imported model tell it"
    )  # fmt: skip
    per_channel: bool | None = Field(
        None, description="weights will have a scale for every output channel; without it, as the target's"
    )
    weight_bits: Literal[4, 8] = Field(8, description="bits that weights will have")
    samples: int = Field(128, ge=1, description="calibration samples that are used at most")
    include: tuple[str, ...] = Field(("*",), description="scale only what layers write whose name fits a glob")
    exclude: tuple[str, ...] = Field((), description="scale nothing that layers write whose name fits a glob")

    def looks_back(self) -> bool:
        return self.absorb

    def run(self, graph: gs.Graph, context: Context) -> int:
        changed = self._absorb(graph, context) if self.absorb else 0
        traced = equalize.trace(graph, bounds=self.bounds != "keep")
        for each in graph.nodes:
            if each.name in traced.fixed:
                context.skip(each, traced.fixed[each.name])
        factors = self._factors(graph, traced, context)
        scaled = [each for each in graph.nodes if each.name in traced.layers and _writes(traced, each, factors)]
        if scaled:
            self._replace_bounds(graph, traced, factors, context)
            equalize.scale(graph, traced, factors)
        return changed + len(scaled)

    def _factors(self, graph: gs.Graph, traced: Scalable, context: Context) -> np.ndarray:
        """The factors that are worth it, others 1."""
        given = context.target.unit.quantization.weights.granularity == "per-channel"
        per_channel = given if self.per_channel is None else self.per_channel
        if per_channel and context.calibration is not None:
            noise = Noise(self._measured(graph, traced, context), self.weight_bits)
            factors = equalize.quietest(graph, traced, noise)
        else:
            factors = equalize.alike(graph, traced)
        for each in graph.nodes:
            if each.name in traced.layers and not selected(each.name, self.include, self.exclude):
                factors[traced.layers[each.name][1]] = 1.0
                context.skip(each, "excluded by the recipe")
        for ids in equalize.groups(traced):
            if np.abs(np.log(factors[ids])).max() < _WORTH:
                factors[ids] = 1.0
        return factors

    def _measured(self, graph: gs.Graph, traced: Scalable, context: Context) -> dict[str, Extremes]:
        """The channels of what layers read on the calibration data."""
        read = [each.inputs[0].name for each in graph.nodes if each.name in traced.layers]
        axes = {name: traced.axes[name][0] for name in read if name in traced.axes}
        return extremes.measured(
            graph, axes, context.calibration.subset(context.seed, self.samples),
            lambda done, total: context.progress("ranges of channels", done, total),
        )  # fmt: skip

    def _absorb(self, graph: gs.Graph, context: Context) -> int:
        data = context.calibration.subset(context.seed, self.samples) if context.calibration is not None else None
        return absorb.absorb(graph, absorb.excess(graph, data, context.imported))

    def _replace_bounds(self, graph: gs.Graph, traced: Scalable, factors: np.ndarray, context: Context) -> None:
        """Clip between scaled channels becomes Relu where the recipe or the data says so."""
        if self.bounds == "relu" or (self.bounds == "auto" and self._is_unused(graph, traced, factors, context)):
            _without_bounds(graph, traced, factors)

    def _is_unused(self, graph: gs.Graph, traced: Scalable, factors: np.ndarray, context: Context) -> bool:
        """Whether the outputs stay on the calibration data if bounds are left out."""
        if context.calibration is None or not _bounding(graph, traced, factors):
            return False
        free = graphs.copy(graph)
        _without_bounds(free, traced, factors)
        sessions = [Session(each, optimized=True) for each in (graph, free)]
        samples = context.calibration.subset(context.seed, self.samples)
        for inputs, _ in samples.full_batches(graph.inputs[0].shape[0]):
            if verify.snr_db(*(each.run(inputs) for each in sessions)) < -20 * np.log10(_UNUSED):
                return False
        return True


def _writes(traced: Scalable, layer: gs.Node, factors: np.ndarray) -> bool:
    return bool((factors[traced.layers[layer.name][1]] != 1).any())


def _bounding(graph: gs.Graph, traced: Scalable, factors: np.ndarray) -> list[gs.Node]:
    """Clip nodes from 0 up whose channels are scaled."""
    found = []
    for each in graph.nodes:
        along = traced.along(each.outputs[0], factors) if is_standard(each, "Clip") else None
        if along is not None and (along != 1).any() and bounds(each)[0] == 0:
            found.append(each)
    return found


def _without_bounds(graph: gs.Graph, traced: Scalable, factors: np.ndarray) -> None:
    driver = Driver(graph)
    for clip in _bounding(graph, traced, factors):
        driver.replace(clip, node("Relu", clip.inputs[0]))
    driver.tidy()
