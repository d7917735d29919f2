"""insert-qdq: integers of 8 bits instead of floats, with scales that calibration data tells."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar, Self

import onnx_graphsurgeon as gs
from pydantic import Field, model_validator

from nnc import graph as graphs
from nnc import quantize, report, toml
from nnc.digests import digest, graph_digest
from nnc.errors import NncError
from nnc.integers import LAYERS
from nnc.measure import macs, params
from nnc.quantize import Placement, Scheme, precision
from nnc.quantize.precision import DropBudget
from nnc.quantize.quantizing_pass import QuantizingPass
from nnc.rewrite import Context, Effect, selected

#: The opset of ONNX from which on neighbours along an axis can share a scale.
_BLOCKS_FROM = 21

#: What the rounding of shares may add to a drop.
_ROUNDING = 1e-9


class InsertQdq(QuantizingPass):
    """Quantize weights and activations to 8 bits, as QuantizeLinear and DequantizeLinear pairs.

    Conv(x, W, B)  ->  Conv(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(W8), DequantizeLinear(B32))

    What a layer reads is quantized, and both sides of a residual Add; not what is between a layer and the Relu or Clip
    behind it. Inputs and outputs of the network stay float32. What only moves values (Concat, MaxPool, Reshape,
    Transpose, ...) has one scale on both sides. Fewer bits than 8 are stored in 8, since few runtimes read the others:
    weights use few of the integers, and a Clip, which a Relu turns into, keeps activations at few.

    With `weight_only`, Gemm(x, W) -> Gemm(x, DequantizeLinear(W8)): the weights take a quarter of the memory, and
    nothing is rounded on the way. With a `budget`, the layers that rounding hurts most stay in floats, as few as keep
    within it. Its drop is measured on the calibration data: where these have labels, the share of the images that lose
    their right class; without them, of those that get another class; or, in a network whose output is not one value per
    class, the share of the outputs' energy that is noise (0.005 is a signal-to-noise ratio of 23 dB).

    Approximate. Ranges are those of the calibration data, one batch of which is in memory at a time. Declines layers
    that are quantized already, whose weights are computed, that compute in another type, and that read values which
    are not finite on the calibration data.

    Reference: Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only
    inference, CVPR 2018; Nagel et al., A white paper on neural network quantization, 2021.
    """

    name: ClassVar[str] = "insert-qdq"
    effect: ClassVar[Effect] = "approximate"
    needs: ClassVar[tuple[str, ...]] = ("calibration",)

    samples: int = Field(512, ge=1, description="calibration samples that are used at most")
    weight_only: bool = Field(False, description="quantize the weights of Gemm and MatMul and nothing else")
    group_size: int | None = Field(
        None, ge=8, description="inputs that share a scale in layers with weight_only, in models of opset 21 or newer; "
        "without it, a channel has one"
    )  # fmt: skip
    budget: DropBudget | None = Field(None, description="what quantization may cost; layers stay in floats to keep it")

    @model_validator(mode="after")
    def _groups_what_reads_floats(self) -> Self:
        reads_floats = self.weight_only or any(each.weight_only for each in self.layers.values())
        if self.group_size is not None and not reads_floats:
            raise ValueError("'group_size' is for 'weight_only'")
        return self

    def data_needed(self) -> tuple[str, ...]:
        """None where only weights are quantized, and no drop is measured."""
        reads_floats = self.weight_only and all(each.weight_only is not False for each in self.layers.values())
        return () if reads_floats and self.budget is None else self.needs

    def run(self, graph: gs.Graph, context: Context) -> int:
        self._check_names(graph)
        self._check_blocks(graph)
        ranges: dict[str, tuple[float, float] | None] = {}
        errors, kept = self._mixed(graph, ranges, context) if self.budget else ({}, [])
        placement = self._calibrated(graph, kept, ranges, context)
        none_left = kept and not placement.layers and not placement.products
        for node, reason in placement.refused:
            context.skip(node, "no layer can be quantized within the budget" if none_left else reason)
        floats = [node for node, _ in placement.refused if node.name in kept]
        for node in (*floats, *placement.layers, *placement.products):
            context.decide(
                node.name, report.FLOATS if node.name in kept else self._spelled(node, context),
                macs=(macs(node),) * 2, params=(params(node),) * 2, error=errors.get(node.name),
            )  # fmt: skip
        return self._insert(graph, placement, ranges, context)

    def _insert(self, graph: gs.Graph, placement: Placement, ranges: quantize.Ranges, context: Context) -> int:
        config = quantize.Config(
            lambda tensors: self._activations(tensors, placement, context), lambda node: self._layer(node, context)
        )
        changes = placement.layers or placement.products
        return quantize.insert(graph, placement, ranges, config) if changes else 0

    def _mixed(
        self, graph: gs.Graph, ranges: dict[str, tuple[float, float] | None], context: Context
    ) -> tuple[dict[str, float], list[str]]:
        """What every layer alone does to the outputs, and the layers that stay in floats to keep the budget."""
        assert self.budget is not None
        most = self.budget.drop
        placement = self._calibrated(graph, (), ranges, context)
        names = [node.name for node in (*placement.layers, *placement.products)]
        if not names:
            return {}, []
        data = context.calibration.subset(context.seed, self.samples)
        drop = precision.Drop(graph, data, context.seed)
        options = (self.model_dump_json(exclude={"budget"}), context.target.unit.quantization, context.seed)
        key = digest(graph_digest(graph), context.data_key, repr(options))

        def quantized(chosen: Collection[str]) -> gs.Graph:
            copy = graphs.copy(graph)
            kept = [name for name in names if name not in chosen]
            self._insert(copy, self._calibrated(copy, kept, ranges, context), ranges, context)
            return copy

        errors = context.once("sensitivities", key, lambda: precision.sensitivities(
            graph, names, quantized, data, context.seed,
            lambda done, total: context.progress("sensitivities", done, total),
        ))  # fmt: skip
        order = precision.order(errors, _extra_ms(graph, quantized(names), context))

        def fits(count: int) -> bool:
            found = context.once("drop", digest(key, *sorted(order[:count])), lambda: drop.of(
                quantized(order[count:]), lambda done, total: context.progress("accuracy", done, total)
            ))  # fmt: skip
            return found <= most + _ROUNDING

        return errors, order[: precision.fewest(len(order), fits)]

    def _check_names(self, graph: gs.Graph) -> None:
        names = [node.name for node in graph.nodes if node.op in LAYERS]
        for glob in self.layers:
            if not any(fnmatchcase(name, glob) for name in names):
                raise NncError(f"layers: no layer is called '{glob}'", toml.nearest(glob, names))

    def _check_blocks(self, graph: gs.Graph) -> None:
        if self.group_size is not None and graph.opset < _BLOCKS_FROM:
            hint = "leave it out, or convert the model with onnx.version_converter"
            raise NncError(f"group_size: needs a model of opset {_BLOCKS_FROM} or newer, not {graph.opset}", hint)

    def _activations(self, tensors: Sequence[gs.Tensor], placement: Placement, context: Context) -> Scheme:
        """How tensors that share a scale are quantized: in as few bits as one of the layers that read them wants."""
        given, layers = Scheme.of(context.target.unit.quantization.activations), {id(each) for each in placement.layers}
        symmetric = given.symmetric if self.activation_symmetric is None else self.activation_symmetric
        readers = (node for tensor in tensors for node in tensor.outputs if id(node) in layers)
        bits = min((self._options(node.name).activation_bits or self.activation_bits for node in readers), default=8)
        return Scheme(self.activation_dtype or given.dtype, symmetric, bits=bits)

    def _layer(self, node: gs.Node, context: Context) -> quantize.LayerConfig:
        options = self._options(node.name)
        given = Scheme.of(context.target.unit.quantization.weights)
        per_channel = next(
            (each for each in (options.per_channel, self.per_channel) if each is not None), given.per_channel
        )
        bits = options.weight_bits or self.weight_bits
        if self._is_weight_only(node):  # no unit multiplies these integers
            per_channel = self.per_channel is not False and options.per_channel is not False
            return quantize.LayerConfig(Scheme("int8", True, per_channel, bits), self.weight_method, self.group_size)
        symmetric = self.weight_dtype == "int8" if self.weight_dtype else given.symmetric
        return quantize.LayerConfig(
            Scheme(self.weight_dtype or given.dtype, symmetric, per_channel, bits), self.weight_method
        )

    def _spelled(self, node: gs.Node, context: Context) -> str:
        """'int8 per channel, reads uint8'."""
        config = self._layer(node, context)
        weights = config.weights
        scales = (
            f"per {config.block} inputs" if config.block else "per channel" if weights.per_channel else "per tensor"
        )
        reads = self.activation_dtype or context.target.unit.quantization.activations.dtype
        own = self._options(node.name).activation_bits or self.activation_bits
        read = "float32" if self._is_weight_only(node) else f"{_of(own)}{reads}"
        return f"{_of(weights.bits)}{weights.dtype} {scales}, reads {read}"

    def _is_weight_only(self, node: gs.Node) -> bool:
        own = self._options(node.name).weight_only
        return self.weight_only if own is None else own

    def _refusal(self, node: gs.Node, kept: Collection[str]) -> str | None:
        if not selected(node.name, self.include, self.exclude) or self._options(node.name).keep_float:
            return "excluded by the recipe"
        return "stays in floats to keep the budget" if node.name in kept else None

    def _calibrated(
        self,
        graph: gs.Graph,
        kept: Collection[str],
        ranges: dict[str, tuple[float, float] | None],
        context: Context,
    ) -> Placement:
        """What is quantized, but for the layers `kept`; what turns out not to be finite is placed around.

        Adds to `ranges` what is missing.
        """
        while True:
            barred = {name for name, ends in ranges.items() if ends is None}
            placement = quantize.place(graph, lambda node: self._refusal(node, kept), barred, self._is_weight_only)
            missing = [tensor for tensor in placement.sources if tensor.name not in ranges]
            if not missing:
                return placement
            ranges |= self._measured(graph, missing, placement, context)

    def _measured(
        self, graph: gs.Graph, tensors: list[gs.Variable], placement: Placement, context: Context
    ) -> dict[str, tuple[float, float] | None]:
        """The ranges of tensors, kept for later compiles."""
        data = context.calibration.subset(context.seed, self.samples)
        names = [tensor.name for tensor in tensors]
        schemes = {
            id(tensor): scheme
            for group in placement.groups
            for scheme in [self._activations(group, placement, context)]
            for tensor in group
        }
        used = [schemes[id(tensor)] for tensor in tensors]
        options = (self.method, self.percentile, self.samples, context.seed, used, names)
        key = digest(graph_digest(graph), context.data_key, repr(options))

        def compute() -> dict[str, tuple[float, float] | None]:
            return quantize.ranges(
                graph, tensors, data, lambda tensor: schemes[id(tensor)], self.method, self.percentile,
                lambda done, total: context.progress("calibration", done, total),
            )  # fmt: skip

        found = context.once("ranges", key, compute)
        return {name: None if ends is None else (ends[0], ends[1]) for name, ends in found.items()}


def _of(bits: int) -> str:
    return f"{bits} bits of " if bits != 8 else ""


def _extra_ms(floats: gs.Graph, quantized: gs.Graph, context: Context) -> dict[str, float]:
    """By layer, the milliseconds that the target takes longer in floats."""
    before, after = (context.predict(graph).by_layer for graph in (floats, quantized))
    return {name: before[name] - latency for name, latency in after.items() if name in before}
