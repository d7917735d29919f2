"""Writes a QDQ graph: QuantizeLinear and DequantizeLinear where a placement says, integers instead of weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.attributes import bias, bounds, number
from nnc.digests import digest
from nnc.model.proto import is_standard
from nnc.quantize import grid
from nnc.quantize.calibration import Ranges
from nnc.quantize.placement import Placement, made_of_integers, moves, operands
from nnc.quantize.scheme import (
    LEAST_SCALE,
    Scheme,
    dequantized,
    quantized,
    quantized_blocks,
    scale_axis,
    scale_zero_point,
    weight_scale,
)

#: The largest integer of a bias; the sums that are added to it need the rest of int32.
MOST_BIAS = 2**30


@dataclass(frozen=True)
class LayerConfig:
    """How the weights of a layer become integers."""

    weights: Scheme
    method: Literal["min-max", "mse"] = "min-max"
    block: int | None = None
    """Inputs that share a scale, where the layer goes on reading floats; None: all of a channel."""


@dataclass(frozen=True)
class Config:
    """How a graph is quantized."""

    activations: Callable[[Sequence[gs.Tensor]], Scheme]
    """By tensors that share a scale."""
    layer: Callable[[gs.Node], LayerConfig]


@dataclass(frozen=True)
class _Parameters:
    """Scale (float32) and zero point of a group of tensors."""

    scale: gs.Constant
    zero: gs.Constant
    limits: tuple[int, int]
    """The least and the largest integer, which may be nearer than those of the type."""

    @property
    def is_narrow(self) -> bool:
        dtype = np.iinfo(self.zero.values.dtype)
        return self.limits[1] - self.limits[0] < dtype.max - dtype.min - 1  # symmetric schemes leave one out

    @property
    def step(self) -> float:
        return number(self.scale)

    def holds(self, low: float, high: float) -> bool:
        """Whether values from `low` to `high` lose no more than a step at the ends."""
        least, largest = grid.ends(self.scale.values, self.zero.values, *self.limits)
        return bool(low >= least - self.step and high <= largest + self.step)


def insert(graph: gs.Graph, placement: Placement, ranges: Ranges, config: Config) -> int:
    """Quantize what the placement says, in place; returns the number of layers.

    `ranges` has those of `placement.sources`, all finite. Nodes and their outputs keep their names.
    """
    writer = _Writer(graph)
    steps: dict[int, float] = {}
    for group in placement.groups:
        scheme = config.activations(group)
        parameters = _group_parameters(writer, group, placement, ranges, scheme)
        steps |= {id(tensor): parameters.step for tensor in group}
        steps |= _write_group(writer, group, parameters, placement, scheme)
    for node in placement.layers:
        _quantize_weights(writer, node, steps, config.layer(node))
    for node in placement.products:
        _quantize_product(writer, node, config.layer(node))
    graph.nodes = [*graph.nodes, *writer.made]
    graphs.sort(graph)
    return len(placement.layers) + len(placement.products)


class _Writer:
    """Makes nodes and constants with names of their own."""

    def __init__(self, graph: gs.Graph) -> None:
        self._tensors = graphs.tensor_names(graph)
        self._nodes = {node.name for node in graph.nodes}
        self.ends = {id(tensor) for tensor in graph.outputs}
        self.made: list[gs.Node] = []
        self._weights: dict[tuple[object, ...], gs.Variable] = {}

    def constant(self, name: str, values: np.ndarray) -> gs.Constant:
        return gs.Constant(graphs.unique(name, self._tensors), values)

    def node(self, op: str, name: str, inputs: Sequence[gs.Tensor], like: gs.Tensor, dtype: object) -> gs.Variable:
        """The output, of the shape of `like`, of a new node; both are called like `name`."""
        output = gs.Variable(graphs.unique(name, self._tensors), np.dtype(dtype), list(like.shape))  # type: ignore[call-overload]
        self.made.append(gs.Node(op, graphs.unique(name, self._nodes), {}, list(inputs), [output]))
        return output

    def dequantize(
        self,
        name: str,
        integers: np.ndarray,
        scale: np.ndarray,
        zero: np.ndarray | None,
        axis: int | None,
        block: int | None = None,
    ) -> gs.Variable:
        """The values of stored integers; equal ones are stored once."""
        arrays = [each for each in (integers, scale, zero) if each is not None]
        key = (axis, block, *((digest(each.tobytes()), each.shape, each.dtype) for each in arrays))
        if key not in self._weights:
            constants = [("quantized", integers), ("scale", scale)] + ([] if zero is None else [("zero", zero)])
            inputs = [self.constant(f"{name}/{role}", values) for role, values in constants]
            output = self.node("DequantizeLinear", f"{name}/dequantized", inputs, inputs[0], np.float32)
            given = {"axis": axis, "block_size": block}
            self.made[-1].attrs |= {key: value for key, value in given.items() if value is not None}
            self._weights[key] = output
        return self._weights[key]


def _group_parameters(
    writer: _Writer, group: list[gs.Tensor], placement: Placement, ranges: Ranges, scheme: Scheme
) -> _Parameters:
    """What the tensors of a group share: what one of them has already, if it holds all, or what their ranges need."""
    sources = [tensor for tensor in group if id(tensor) not in placement.moved]
    given = [tensor.inputs[0] for tensor in group if made_of_integers(tensor)]
    known = {(_number(node, 1), _number(node, 2), node.inputs[0].dtype) for node in given}
    if len(known) == 1 and given[0].inputs[1].values.size == 1 and len(given[0].inputs) > 2:
        parameters = _Parameters(given[0].inputs[1], given[0].inputs[2], _limits(given[0], scheme.bits))
        if all(parameters.holds(*_ends(tensor, ranges)) for tensor in sources if not made_of_integers(tensor)):
            return parameters
    ends = [_ends(tensor, ranges) for tensor in sources]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    fitting = scheme.above(low)
    scale, zero = scale_zero_point(low, high, fitting)
    name, limits = group[0].name, fitting.limits
    return _Parameters(writer.constant(f"{name}/scale", scale), writer.constant(f"{name}/zero", zero), limits)


def _limits(dequantize: gs.Node, bits: int) -> tuple[int, int]:
    """The integers that a DequantizeLinear reads, where they are of few bits; else those of their type."""
    source = dequantize.inputs[0]
    maker = source.inputs[0] if source.inputs else None
    if bits == 8 or maker is None or not is_standard(maker, "QuantizeLinear"):
        dtype = np.iinfo(source.dtype)
        return int(dtype.min), int(dtype.max)
    return grid.limits(maker, grid.bounding(maker, ()))


def _number(node: gs.Node, index: int) -> object:
    """A parameter of a node as something to compare."""
    return node.inputs[index].values.tobytes() if len(node.inputs) > index else None


def _ends(tensor: gs.Tensor, ranges: Ranges) -> tuple[float, float]:
    """The range of a tensor: measured, of a constant, or what its integers can stand for."""
    if isinstance(tensor, gs.Constant):
        return float(tensor.values.min(initial=0.0)), float(tensor.values.max(initial=0.0))
    if made_of_integers(tensor):
        integers, scale, *zero = tensor.inputs[0].inputs
        limits = np.iinfo(integers.dtype)
        ends = np.array([limits.min, limits.max])
        values = dequantized(ends, scale.values.max(keepdims=True), zero[0].values.reshape(-1)[:1] if zero else None)
        return float(values[0]), float(values[1])
    ends_ = ranges[tensor.name]
    assert ends_ is not None, "what is not finite was barred"
    return ends_


def _write_group(
    writer: _Writer, group: list[gs.Tensor], parameters: _Parameters, placement: Placement, scheme: Scheme
) -> dict[int, float]:
    """Let readers read what the tensors are after rounding; returns the steps of the tensors that they read now."""
    steps, held = {}, {id(tensor) for tensor in group}
    for tensor in group:
        if made_of_integers(tensor):
            steps[id(tensor)] = float(tensor.inputs[0].inputs[1].values.max())
            continue
        readers = [node for node in tensor.outputs if node.op != "QuantizeLinear"]
        if isinstance(tensor, gs.Constant):
            fitting = scheme.above(parameters.limits[0] - number(parameters.zero))
            scale, zero = (each.values.reshape(()) for each in (parameters.scale, parameters.zero))
            integers = quantized(tensor.values, scale, zero, fitting)
            rounded = writer.dequantize(tensor.name, integers, scale, zero, None)
            readers = [node for node in readers if id(node) in placement.integer or moves(node)]
        else:
            is_on_grid = id(tensor) in placement.moved and all(id(each) in held for each in moves(tensor.inputs[0]))
            clipped = _clipped(writer, tensor, parameters) if parameters.is_narrow and not is_on_grid else tensor
            rounded = _pair(writer, tensor.name, clipped, parameters)
        steps[id(rounded)] = parameters.step
        held.add(id(rounded))
        for node in readers:
            _redirect(node, tensor, rounded)
    return steps


def _pair(writer: _Writer, name: str, tensor: gs.Tensor, parameters: _Parameters) -> gs.Variable:
    both = [parameters.scale, parameters.zero]
    integers = writer.node("QuantizeLinear", f"{name}/quantized", [tensor, *both], tensor, both[1].values.dtype)
    return writer.node("DequantizeLinear", f"{name}/dequantized", [integers, *both], tensor, np.float32)


def _clipped(writer: _Writer, tensor: gs.Tensor, parameters: _Parameters) -> gs.Tensor:
    """The values of a tensor within the ends of a grid of few bits: a Relu or Clip that makes them does that, too."""
    low, high = grid.ends(parameters.scale.values, parameters.zero.values, *parameters.limits)
    maker = tensor.inputs[0] if tensor.inputs else None
    is_read = any(node.op == "QuantizeLinear" for node in tensor.outputs) or id(tensor) in writer.ends
    if maker is None or is_read or not is_standard(maker, "Clip", "Relu") or not _is_constant(maker.inputs[1:]):
        ends = [writer.constant(f"{tensor.name}/{end}", each) for end, each in (("low", low), ("high", high))]
        return writer.node("Clip", f"{tensor.name}/clipped", [tensor, *ends], tensor, np.float32)
    least, most = bounds(maker)
    low = np.maximum(low, np.float32(least))
    high = np.maximum(np.minimum(high, np.float32(most)), low)
    ends = [writer.constant(f"{tensor.name}/{end}", np.asarray(each)) for end, each in (("low", low), ("high", high))]
    maker.op, maker.attrs, maker.inputs = "Clip", {}, [maker.inputs[0], *ends]
    return tensor


def _is_constant(tensors: Sequence[gs.Tensor]) -> bool:
    return all(isinstance(each, gs.Constant) or each.is_empty() for each in tensors)


def _redirect(node: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let a node compute with `new` where it did with `old`; its bounds, axes and the like stay."""
    places = moves(node) or operands(node) if isinstance(old, gs.Constant) else [old]
    for index, tensor in enumerate(node.inputs):
        if tensor is old and any(each is old for each in places):
            node.inputs[index] = new


def _quantize_weights(writer: _Writer, node: gs.Node, steps: dict[int, float], config: LayerConfig) -> None:
    """Store the constant weights and the bias of a layer as integers."""
    index = next((place for place, tensor in enumerate(node.inputs[:2]) if isinstance(tensor, gs.Constant)), None)
    if index is None:
        return
    step = steps[id(node.inputs[1 - index])]
    _take_factors(writer, node)
    W, added = node.inputs[index], bias(node)
    added = added if added is not None and np.isfinite(added).all() else None
    axis = scale_axis(node) if config.weights.per_channel else None
    scale, zero = weight_scale(W.values, config.weights, axis, config.method)
    if added is not None:
        scale = roomy(scale, W.values, added, step, axis)
    integers = quantized(W.values, scale, zero, config.weights, axis)
    node.inputs[index] = writer.dequantize(W.name, integers, scale, zero, axis)
    if added is not None:
        _quantize_bias(writer, node, added, step, scale)


def _quantize_product(writer: _Writer, node: gs.Node, config: LayerConfig) -> None:
    """Store the weights of a layer that reads floats as integers; its bias stays in floats."""
    _take_factors(writer, node)
    W, outputs = node.inputs[1], scale_axis(node)
    if config.block and outputs is not None and W.values.ndim == 2 and config.block < W.shape[1 - outputs]:
        integers, scale = quantized_blocks(W.values, config.weights, 1 - outputs, config.block, config.method)
        node.inputs[1] = writer.dequantize(W.name, integers, scale, None, 1 - outputs, config.block)
        return
    axis = outputs if config.weights.per_channel else None
    scale, zero = weight_scale(W.values, config.weights, axis, config.method)
    integers = quantized(W.values, scale, zero, config.weights, axis)
    node.inputs[1] = writer.dequantize(W.name, integers, scale, zero, axis)


def _take_factors(writer: _Writer, node: gs.Node) -> None:
    """Gemm's alpha and beta go into its constants."""
    for index, name in ((1, "alpha"), (2, "beta")):
        factor = node.attrs.get(name, 1.0) if node.op == "Gemm" else 1.0
        if factor == 1.0 or len(node.inputs) <= index or not isinstance(node.inputs[index], gs.Constant):
            continue
        old = node.inputs[index]
        node.inputs[index] = writer.constant(f"{old.name}/scaled", old.values * old.values.dtype.type(factor))
        node.attrs[name] = 1.0


def roomy(scale: np.ndarray, W: np.ndarray, bias: np.ndarray, step: float, axis: int | None) -> np.ndarray:
    """Scales of weights at which the bias fits into int32, as it may not where it is far above the weights.

    Where all weights are 0, any scale holds them, and the bias alone decides.
    """
    needed = np.abs(bias.astype(np.float64)) / (step * MOST_BIAS)
    needed = needed if axis is not None else needed.max(initial=0.0)
    others = tuple(place for place in range(W.ndim) if place != axis)
    free = (needed > 0) & ~W.any(others)
    return np.asarray(np.maximum(np.where(free, LEAST_SCALE, scale), needed)).astype(np.float32)


def _quantize_bias(writer: _Writer, node: gs.Node, bias: np.ndarray, step: float, scale: np.ndarray) -> None:
    """Store the bias as int32 in the steps of the sums; in floats where these steps are beyond float32."""
    with np.errstate(over="ignore"):
        steps = np.asarray(np.float32(step) * scale)
    if not np.isfinite(steps).all():
        return
    integers = np.rint(bias.astype(np.float64) / steps.astype(np.float64))
    stored = np.clip(integers, -MOST_BIAS, MOST_BIAS).astype(np.int32)
    node.inputs[2] = writer.dequantize(node.inputs[2].name, stored, steps, None, 0 if steps.ndim else None)
