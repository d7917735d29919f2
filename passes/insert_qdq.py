"""insert-qdq: integers of 8 bits instead of floats, with scales that calibration data tells."""

from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import onnx_graphsurgeon as gs
from pydantic import BaseModel, ConfigDict, Field

from nnc import quantize, toml
from nnc.digests import digest, graph_digest
from nnc.errors import NncError
from nnc.measure import macs, params
from nnc.quantize import Method, Placement, Scheme
from nnc.rewrite import Context, Effect, Pass, selected

Dtype = Literal["int8", "uint8"]
Bits = Literal[4, 8]


class LayerOptions(BaseModel):
    """What is different for some layers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weight_bits: Bits | None = Field(default=None, description="bits of their weights")
    per_channel: bool | None = Field(default=None, description="a scale for every output channel")
    keep_float: bool = Field(default=False, description="leave them in floats")


class InsertQdq(Pass):
    """Quantize weights and activations to 8 bits, as QuantizeLinear and DequantizeLinear pairs.

    Conv(x, W, B)  ->  Conv(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(W8), DequantizeLinear(B32))

    What a layer reads is quantized, and both sides of a residual Add; not what is between a layer and the Relu or Clip
    behind it. Inputs and outputs of the network stay float32. What only moves values (Concat, MaxPool, Reshape,
    Transpose, ...) has one scale on both sides. Weights of 4 bits are stored in 8, since few runtimes read the others.

    Approximate. Ranges are those of the calibration data, one batch of which is in memory at a time. Declines layers
    that are quantized already, whose weights are computed, that compute in another type, and that read values which
    are not finite on the calibration data.

    Reference: Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only
    inference, CVPR 2018; Nagel et al., A white paper on neural network quantization, 2021.
    """

    name: ClassVar[str] = "insert-qdq"
    effect: ClassVar[Effect] = "approximate"
    quantizes: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("calibration",)

    method: Method = Field("min-max", description="how the ranges of activations are found")
    percentile: float = Field(99.99, gt=50, le=100, description="what 'percentile' keeps of the values, in percent")
    samples: int = Field(512, ge=1, description="calibration samples that are used at most")
    activation_dtype: Dtype | None = Field(None, description="type of activations; without it, the target's")
    activation_symmetric: bool | None = Field(None, description="zero is in the middle; without it, as the target's")
    weight_dtype: Dtype | None = Field(None, description="type of weights; without it, the target's")
    weight_bits: Bits = Field(8, description="bits of weights")
    weight_method: Literal["min-max", "mse"] = Field("min-max", description="how the ranges of weights are found")
    per_channel: bool | None = Field(None, description="a scale for every output channel; without it, as the target's")
    layers: dict[str, LayerOptions] = Field({}, description="other options for layers, by name or glob")
    include: tuple[str, ...] = Field(("*",), description="quantize only layers whose name fits one of these globs")
    exclude: tuple[str, ...] = Field((), description="leave layers in floats whose name fits one of these globs")

    def run(self, graph: gs.Graph, context: Context) -> int:
        self._check_names(graph)
        activations = self._activations(context)
        placement, ranges = self._calibrated(graph, activations, context)
        for node, reason in placement.refused:
            context.skip(node, reason)
        for node in placement.layers:
            choice = _spelled(self._layer(node, context).weights, activations)
            context.decide(node.name, choice, macs=(macs(node),) * 2, params=(params(node),) * 2)
        config = quantize.Config(activations, lambda node: self._layer(node, context))
        return quantize.insert(graph, placement, ranges, config) if placement.layers else 0

    def _check_names(self, graph: gs.Graph) -> None:
        names = [node.name for node in graph.nodes if node.op in quantize.placement.LAYERS]
        for glob in self.layers:
            if not any(fnmatchcase(name, glob) for name in names):
                raise NncError(f"layers: no layer is called '{glob}'", toml.nearest(glob, names))

    def _activations(self, context: Context) -> Scheme:
        given = Scheme.of(context.target.unit.quantization.activations)
        symmetric = given.symmetric if self.activation_symmetric is None else self.activation_symmetric
        return Scheme(self.activation_dtype or given.dtype, symmetric)

    def _layer(self, node: gs.Node, context: Context) -> quantize.LayerConfig:
        options = self._options(node.name)
        given = Scheme.of(context.target.unit.quantization.weights)
        per_channel = next(
            (each for each in (options.per_channel, self.per_channel) if each is not None), given.per_channel
        )
        dtype, bits = self.weight_dtype or given.dtype, options.weight_bits or self.weight_bits
        symmetric = dtype == "int8" if self.weight_dtype else given.symmetric
        return quantize.LayerConfig(Scheme(dtype, symmetric, per_channel, bits), self.weight_method)

    def _options(self, name: str) -> LayerOptions:
        """Of the entries that fit a name, the last."""
        fitting = [options for glob, options in self.layers.items() if fnmatchcase(name, glob)]
        return fitting[-1] if fitting else LayerOptions()

    def _refusal(self, node: gs.Node) -> str | None:
        if not selected(node.name, self.include, self.exclude) or self._options(node.name).keep_float:
            return "excluded by the recipe"
        return None

    def _calibrated(self, graph: gs.Graph, scheme: Scheme, context: Context) -> tuple[Placement, quantize.Ranges]:
        """What is quantized, and the ranges of it; what turns out not to be finite is placed around."""
        ranges: dict[str, tuple[float, float] | None] = {}
        while True:
            barred = {name for name, ends in ranges.items() if ends is None}
            placement = quantize.place(graph, self._refusal, barred)
            missing = [tensor for tensor in placement.sources if tensor.name not in ranges]
            if not missing or not placement.layers:
                return placement, ranges
            ranges |= self._measured(graph, missing, scheme, context)

    def _measured(
        self, graph: gs.Graph, tensors: list[gs.Variable], scheme: Scheme, context: Context
    ) -> dict[str, tuple[float, float] | None]:
        """The ranges of tensors, kept for later compiles."""
        data = context.calibration.subset(context.seed, self.samples)
        names = [tensor.name for tensor in tensors]
        options = (self.method, self.percentile, self.samples, context.seed, scheme, names)
        key = digest(graph_digest(graph), context.data_key, repr(options))

        def compute() -> dict[str, tuple[float, float] | None]:
            return quantize.ranges(
                graph, tensors, data, scheme, self.method, self.percentile,
                lambda done, total: context.progress("calibration", done, total),
            )  # fmt: skip

        found = context.once("ranges", key, compute)
        return {name: None if ends is None else (ends[0], ends[1]) for name, ends in found.items()}


def _spelled(weights: Scheme, activations: Scheme) -> str:
    """'int8 per channel, reads uint8'."""
    bits = f"{weights.bits} bits of " if weights.bits != 8 else ""
    return f"{bits}{weights.dtype} {'per channel' if weights.per_channel else 'per tensor'}, reads {activations.dtype}"
