"""Training through QuantizeLinear and DequantizeLinear: steps that are learned, and weights that are rounded.

Esser et al., Learned step size quantization, ICLR 2020 (arXiv:1902.08153): v = clamp(round(x / s), least, largest) * s,
where the gradient passes the rounding as if it were not there. That of s is v - x / s inside the range and its end
outside, which is what differentiating the two operators one after the other gives.

Learned is the logarithm of each step, as in Jain et al., Trained quantization thresholds, MLSys 2020: steps stay
positive, and those of large and of small tensors change by similar shares without factors of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch.nn import functional as F  # as everybody calls it

from nnc import graph as graphs
from nnc import quantize
from nnc.quantize import QuantizedLayer, grid
from nnc.quantize.insertion import MOST_BIAS, roomy
from nnc.training.elementwise import along
from nnc.training.module import OPERATORS, GraphModule
from nnc.training.site import Compute, Operator, Site, Tensor

Limits: TypeAlias = tuple[int, int]
Floats: TypeAlias = Mapping[str, tuple[np.ndarray, np.ndarray | None]]
"""Weights and the bias of layers, float32 or float64, by name."""


class Quantize(torch.autograd.Function):
    """The nearest integers within limits, ties to even, as floats; `step` and `zero` are as `along` makes them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, step: Tensor, zero: Tensor, limits: Limits) -> Tensor:
        return (x / step).round_().add_(zero).clamp(*limits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.limits = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, step, zero = ctx.saved_tensors
        scaled = x / step
        inside = (scaled > ctx.limits[0] - zero) & (scaled < ctx.limits[1] - zero)
        passed = gradients[0] * inside / step
        of_step = -(passed * x).sum_to_size(step.shape) / step if ctx.needs_input_grad[1] else None
        return passed, of_step, None, None


def quantized(x: Tensor, step: Tensor, zero: Tensor | None, limits: Limits) -> Tensor:
    result: Tensor = Quantize.apply(x.float(), step, _offset(zero, x), limits)
    return result


def _offset(zero: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros((), device=like.device) if zero is None else zero.float()


class FakeQuantization:
    """A QDQ graph as a module that learns its steps, its weights and its biases, and the way back into the graph.

    `floats` are what the integers of layers were rounded from; layers that are not among them start from what their
    integers stand for. Integers keep their bits and zero points, and BatchNormalization, where it is left, its
    statistics.
    """

    def __init__(self, graph: gs.Graph, floats: Floats) -> None:
        self._graph = graph
        self.layers = quantize.layers(graph)
        quantizers = [node for node in graph.nodes if node.op == "QuantizeLinear" and _has_one_step(node)]
        self._clips = {id(node): grid.bounding(node, graph.outputs) for node in quantizers}
        self._bounding = {id(clip) for clip in self._clips.values() if clip is not None}
        self._limits = {id(node): grid.limits(node, self._clips[id(node)]) for node in quantizers}
        self._starts = {node.inputs[1].name: np.array(node.inputs[1].values) for node in quantizers}
        self._latent: dict[str, np.ndarray] = {}
        #: By id of a bias's DequantizeLinear, the names of the two scales that its steps are made of.
        self._biased: dict[int, tuple[str, str]] = {}
        for name, layer in self.layers.items():
            _own_bias(layer)
            W, bias = floats.get(name, (layer.weight, layer.bias))
            self._starts[layer.dequantize.inputs[1].name] = np.array(layer.scale)
            self._limits[id(layer.dequantize)] = layer.scheme.limits
            self._latent[layer.dequantize.inputs[0].name] = W.astype(np.float32)
            if (maker := _stored_bias(layer)) is not None and bias is not None:
                self._latent[maker.inputs[0].name] = bias.astype(np.float32).reshape(-1)
                self._biased[id(maker)] = (_reads(layer).inputs[1].name, layer.dequantize.inputs[1].name)
        self._module: GraphModule | None = None

    def module(self) -> GraphModule:
        """What `nnc.training.loop.train` takes; its parameters for steps are their changes, log(s / start)."""
        rules: dict[str, Operator] = {
            "QuantizeLinear": self._quantize,
            "DequantizeLinear": self._dequantize,
            "Clip": self._clip,
            "BatchNormalization": _frozen,
        }
        changes = {name: np.zeros(start.shape, np.float32) for name, start in self._starts.items()}
        self._module = GraphModule(self._graph, rules, {**changes, **self._latent})
        return self._module

    # -- the operators

    def _clip(self, site: Site) -> Compute:
        """The ends of a grid move with its step: QuantizeLinear knows them."""
        return (lambda x, *_: x) if id(site.node) in self._bounding else OPERATORS["Clip"](site)

    def _quantize(self, site: Site) -> Compute:
        if id(site.node) not in self._limits:
            return OPERATORS["QuantizeLinear"](site)
        limits = self._limits[id(site.node)]
        step = self._step(site)
        return lambda x, change, zero=None: quantized(x, step(change), zero, limits)

    def _dequantize(self, site: Site) -> Compute:
        scale = site.node.inputs[1]
        axis = site.attr("axis", 1) % max(site.rank, 1)
        if id(site.node) in self._limits:
            return self._weights(site, axis, self._limits[id(site.node)])
        if id(site.node) in self._biased:
            return self._bias(*self._biased[id(site.node)])
        if scale.name not in self._starts:
            return OPERATORS["DequantizeLinear"](site)
        step = self._step(site)
        return lambda x, change, zero=None: (x.float() - _offset(zero, x)) * step(change)

    def _weights(self, site: Site, axis: int, limits: Limits) -> Compute:
        """Weights after rounding, from those that are learned."""
        step = self._step(site)

        def compute(W: Tensor, change: Tensor, zero: Tensor | None = None) -> Tensor:
            scale = along(step(change), W.dim(), axis)
            offset = None if zero is None else along(zero, W.dim(), axis)
            return (quantized(W, scale, offset, limits) - _offset(offset, W)) * scale

        return compute

    def _bias(self, *scales: str) -> Compute:
        """A bias in whole steps of the sums that it is added to: those of inputs times those of weights."""

        def compute(bias: Tensor, *_: Tensor) -> Tensor:
            step = self._learned(scales[0]) * self._learned(scales[1])
            return bias + (torch.round(bias.detach() / step) * step - bias.detach())

        return compute

    def _learned(self, scale: str) -> Tensor:
        """A step as it is now."""
        assert self._module is not None, "the module runs"
        if scale not in self._starts:
            return self._module.constant(scale)
        change = self._module.constant(scale).detach()
        return torch.from_numpy(self._starts[scale]).to(change.device) * change.exp()

    def _step(self, site: Site) -> Callable[[Tensor], Tensor]:
        """From the learned change of a step to the step."""
        start = torch.from_numpy(self._starts[site.node.inputs[1].name])
        return lambda change: start.to(change.device) * change.exp()

    # -- the way back

    def write_back(self, module: GraphModule) -> int:
        """Store the steps, integers and biases that were learned; returns how many layers have integers."""
        learned = {name: each.detach().cpu().clone() for name, each in module.named_parameters()}
        with torch.no_grad():
            for name in self._starts:
                learned[name] = self._learned(name).cpu()
                module.constant(name).copy_(learned[name])
        module.write_back()
        for node in self._graph.nodes:
            if (clip := self._clips.get(id(node))) is not None:
                self._bound(node, clip)
        for layer in self.layers.values():
            self._make_room(layer, learned)
        for layer in self.layers.values():
            self._store(layer, learned)
        return len(self.layers)

    def _bound(self, node: gs.Node, clip: gs.Node) -> None:
        """Let a Clip end where the grid does."""
        names = graphs.tensor_names(self._graph)
        zero = node.inputs[2].values if len(node.inputs) > 2 else np.zeros(1)
        ends = grid.ends(node.inputs[1].values, zero, *self._limits[id(node)])
        made = (
            gs.Constant(graphs.unique(f"{node.outputs[0].name}/{which}", names), values)
            for which, values in zip(("low", "high"), ends, strict=True)
        )
        clip.inputs = [clip.inputs[0], *made]

    def _make_room(self, layer: QuantizedLayer, learned: Mapping[str, Tensor]) -> None:
        """Raise the steps of weights where the bias would leave int32."""
        maker, step = _stored_bias(layer), layer.input_scale
        if maker is not None and step is not None:
            W, bias = (learned[node.inputs[0].name].numpy() for node in (layer.dequantize, maker))
            layer.dequantize.inputs[1].values = roomy(layer.scale, W, bias, step, layer.axis)

    def _store(self, layer: QuantizedLayer, learned: Mapping[str, Tensor]) -> None:
        stored, limits = layer.dequantize.inputs[0], self._limits[id(layer.dequantize)]
        W = learned[stored.name]
        axis = layer.dequantize.attrs.get("axis", 1) % max(W.dim(), 1)
        scale, zero = (along(torch.from_numpy(np.array(each)), W.dim(), axis) for each in (layer.scale, layer.zero))
        stored.values = quantized(W, scale, zero, limits).contiguous().numpy().astype(stored.values.dtype)
        maker, step = _stored_bias(layer), layer.input_scale
        if maker is not None and step is not None:
            steps = np.asarray(np.float32(step) * layer.scale)
            integers = torch.round(learned[maker.inputs[0].name] / torch.from_numpy(steps)).clamp(-MOST_BIAS, MOST_BIAS)
            maker.inputs[0].values, maker.inputs[1].values = integers.numpy().astype(np.int32), steps


def _has_one_step(node: gs.Node) -> bool:
    given = [each for each in node.inputs[1:] if not each.is_empty()]
    constant = all(isinstance(each, gs.Constant) and each.values.size == 1 for each in given)
    return constant and node.outputs[0].dtype in (np.int8, np.uint8)


def _reads(layer: QuantizedLayer) -> gs.Node:
    """The DequantizeLinear of what a layer reads."""
    return layer.node.inputs[1 - layer.index].inputs[0]


def _stored_bias(layer: QuantizedLayer) -> gs.Node | None:
    """The DequantizeLinear of a bias that is stored in int32, in steps that come from what the layer reads."""
    maker = layer.stored_bias
    return maker if maker is not None and layer.input_scale is not None and maker.inputs[0].dtype == np.int32 else None


def _own_bias(layer: QuantizedLayer) -> None:
    """Equal biases are stored once, but their steps are about to differ."""
    if _stored_bias(layer) is not None and len(layer.node.inputs[2].outputs) > 1:
        maker = layer.own(2)
        given = [each for each in maker.inputs if not each.is_empty()]
        maker.inputs = [gs.Constant(f"{maker.name}/{index}", each.values) for index, each in enumerate(given)]


def _frozen(site: Site) -> Compute:
    """BatchNormalization with the statistics that it has."""
    epsilon = site.attr("epsilon", 1e-5)
    return lambda x, gamma, beta, mean, var: F.batch_norm(x, mean, var, gamma, beta, eps=epsilon)
