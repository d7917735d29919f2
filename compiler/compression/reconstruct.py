"""Fits the weights of a compressed network to what the original one computes, layer by layer, in closed form.

Two flows run side by side over the calibration data. At every layer behind the first change the input is what the
compressed network gives, and the target what the original gave, so that a layer also makes up for the errors of those
before it. No training: each layer is one linear system.

He, Zhang, Sun, Channel pruning for accelerating very deep neural networks, ICCV 2017 (least squares, and the residual
branches that correct their shortcut). Zhang, Zou, He, Sun, Accelerating very deep convolutional networks for
classification and detection, 2015 (asymmetric reconstruction).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from functools import reduce

import numpy as np
import onnx_graphsurgeon as gs

from nnc import calibrate
from nnc import graph as graphs
from nnc.attributes import Computed, bounds
from nnc.calibrate import Flow, Moments, Slack, shortcut, unbatched
from nnc.channels import Channels
from nnc.compression import sharing
from nnc.factorize import Factors, Stage
from nnc.layers import Layer
from nnc.measure import has_shape
from nnc.model.proto import is_standard
from nnc.rewrite import Context, Draft, Driver, node

#: Strength of the ridge that holds a layer near the weights that it had, a share of the mean of E[x x].
RIDGE = 1e-3

#: Columns of a layer up to which it is fitted: the moments of more would not fit into memory.
MOST_COLUMNS = 8192

#: Chooses the chain in place of a layer, given its best weights [g, K / g, D]; None keeps the one layer. The weights
#: are float64 and there are moments, or the layer has more than `MOST_COLUMNS` and its weights are its own.
Factorize = Callable[[Layer, np.ndarray, Moments | None], Factors | None]


@dataclass
class Kept:
    """Which channels of the original's tensors the compressed network still has."""

    channels: Channels | None = None
    removed: frozenset[int] = field(default_factory=frozenset)

    def of(self, tensor: gs.Tensor, values: np.ndarray) -> np.ndarray:
        """`values` of a tensor of the original for some samples, without the removed channels."""
        found = self.channels.of(tensor) if self.channels and self.removed else None
        if found is None:
            return values
        axis, ids = found
        stays = ~np.isin(ids, list(self.removed))
        return values if stays.all() else np.compress(stays, values, axis)


def fit(
    original: gs.Graph,
    graph: gs.Graph,
    samples: Mapping[str, np.ndarray],
    context: Context,
    *,
    kept: Kept | None = None,
    factorize: Mapping[str, Factorize] = {},  # never changed
    changed: set[str] | None = None,
    layers: bool = True,
) -> dict[str, float]:
    """Refit the layers of `graph`, in place; returns the share of its output's energy that each layer loses, by name.

    `graph` is the original without the channels that `kept` tells of. `factorize` names the layers to split.
    Layers in front of the first node named in `changed` stay as they are. Layers that share their weights are fitted
    together and share them still; where that can't be, they are left alone, and the context is told. Without `layers`
    only the statistics of BatchNormalization are estimated anew, as they are behind layers that can't be fitted.
    """
    names, original = [node.name for node in graph.nodes], graphs.copy(original)
    for each in (original, graph):
        each.nodes = [node for unit in sharing.units(each) for node in unit]
    errors = _Fit(original, graph, samples, context, kept or Kept(), factorize, changed or set(), layers).run()
    sharing.restore_order(graph, names)
    return errors


class _Fit:
    def __init__(
        self, original: gs.Graph, graph: gs.Graph, samples: Mapping[str, np.ndarray], context: Context, kept: Kept,
        factorize: Mapping[str, Factorize], changed: set[str], layers: bool,
    ) -> None:  # fmt: skip
        self.layers = layers
        self.graph, self.context, self.kept, self.factorize, self.changed = graph, context, kept, factorize, changed
        self.before, self.after = Flow(original, samples), Flow(graph, samples)
        self.originals = {node.name: node for node in original.nodes}
        self.fitted: set[str] = set()
        self.moved: set[int] = set()  # ids of tensors that differ from the original's

    def run(self) -> dict[str, float]:
        errors: dict[str, float] = {}
        units = sharing.units(self.graph)
        refitted = [unit for unit in units if self._moves(unit) and all(each.name in self.originals for each in unit)]
        self.before.keep(name for unit in refitted for name in self._targets(unit))
        for index, unit in enumerate(refitted):
            self.context.progress("fit layers", index, len(refitted))
            layers = [layer for layer in map(Layer.of, unit) if layer is not None]
            if self.layers and layers:
                errors |= self._fit(layers)
            elif _has_statistics(unit[0]) and not self._reads_fitted(unit[0]):
                self._estimate(unit[0])
            self.before.release(*self._targets(unit))
        return errors

    def _moves(self, unit: Sequence[gs.Node]) -> bool:
        """Whether nodes give something else than in the original; units are asked in order of execution."""
        moves = any(node.name in self.changed or node.name in self.factorize for node in unit)
        moves = moves or any(id(tensor) in self.moved for node in unit for tensor in node.inputs)
        self.moved.update(id(tensor) for node in unit for tensor in node.outputs if moves)
        return moves

    def _targets(self, unit: Sequence[gs.Node]) -> list[str]:
        """What nodes give in the original."""
        return [tensor.name for node in unit for tensor in self.originals[node.name].outputs]

    def _fit(self, layers: Sequence[Layer]) -> dict[str, float]:
        """Fit a layer, or several that share their weights; returns the share of the energy that each loses."""
        first, *others = layers
        if len(layers) == 1 and first.sharers:
            self.context.skip(first.node, f"its weights are shared with '{first.sharers[0].name}': not refitted")
            return {}
        names = [layer.node.name for layer in layers]
        if first.columns > MOST_COLUMNS:
            return dict.fromkeys(names, self._split_unfitted(first))
        self.after.run_before(first.node)
        self.fitted.update(names)
        W, moments = self._weights(layers)
        factors = self._factors(first, W, moments)
        driver = Driver(self.graph)
        if factors is None:
            first.set(W, _left_by_means(layers, moments.bias(W), driver), driver)
        else:
            W = factors.kernel().reshape(W.shape)
            replace(first, factors, moments.bias(W), driver)
        for other in others:
            other.share(first)
        energy = moments.yy.sum()
        return dict.fromkeys(names, float(moments.error(W).sum() / energy) if energy else 0.0)

    def _weights(self, layers: Sequence[Layer]) -> tuple[np.ndarray, Moments]:
        """The best weights [g, K / g, D] of layers for what they read, and the moments that they were fitted to."""
        old, seed = layers[0].matrix, self.context.seed
        flows = [(layer, self.after.value(layer.node.inputs[0]), self._target(layer)) for layer in layers]
        halves = [calibrate.moments(*flow, seed) for flow in flows]
        W, moments = _fitted(halves, old)
        limits = [_constant_beyond(layer.node) for layer in layers]
        if not any(limits):
            return W, moments
        halves = [
            calibrate.moments(*flow, seed, Slack(*each, W, moments.bias(W))) if each else half
            for flow, half, each in zip(flows, halves, limits, strict=True)
        ]
        return _fitted(halves, old)

    def _factors(self, layer: Layer, W: np.ndarray, moments: Moments) -> Factors | None:
        if layer.node.name not in self.factorize:
            return None
        batches, samples, *_ = self.after.value(layer.node.inputs[0]).shape
        trusted = replaced(moments, xx=calibrate.shrunk(moments.xx, layer, batches * samples))
        return self.factorize[layer.node.name](layer, W, trusted)

    def _split_unfitted(self, layer: Layer) -> float:
        name, W = layer.node.name, layer.weight
        W = W.reshape(layer.groups, -1, layer.columns)
        factors = self.factorize[name](layer, W, None) if name in self.factorize else None
        if factors is None:
            return 0.0
        replace(layer, factors, layer.bias, Driver(self.graph))
        return factors.error

    def _target(self, layer: Layer) -> Callable[[slice], np.ndarray]:
        """What the layer shall give: the original's output, less the error of the shortcut that is added to it."""
        output = self.originals[layer.node.name].outputs[0]
        self.before.run_through(output.inputs[0])
        added = shortcut(layer.node, self.after, self.originals, self.before)

        def target(part: slice) -> np.ndarray:
            y = self._original(output, part)
            return y if added is None else y + self._original(added[0], part) - self._now(added[1], part)

        return target

    def _original(self, tensor: gs.Tensor, part: slice) -> np.ndarray:
        """What the original computes for some samples, without the removed channels."""
        return self.kept.of(tensor, unbatched(self.before.value(tensor))[part])

    def _now(self, tensor: gs.Tensor, part: slice) -> np.ndarray:
        return unbatched(self.after.value(tensor))[part]

    def _reads_fitted(self, batchnorm: gs.Node) -> bool:
        """Whether its statistics are still right: those of the layer's target.

        What a fitted layer gives varies less than its target, by what it can't explain. Scaling that up again makes the
        outputs worse (on ResNet-20 at half of the MACs 47 % of error instead of 44 %).
        """
        producers = self.originals[batchnorm.name].inputs[0].inputs
        return bool(producers) and producers[0].name in self.fitted

    def _estimate(self, batchnorm: gs.Node) -> None:
        """Mean and variance of what a BatchNormalization now reads."""
        self.after.run_before(batchnorm)
        moments = calibrate.channel_moments(self.after.value(batchnorm.inputs[0]), 1)
        driver, name = Driver(self.graph), batchnorm.outputs[0].name
        for index, role, values in zip((3, 4), ("mean", "var"), moments, strict=True):
            dtype = batchnorm.inputs[index].dtype
            batchnorm.inputs[index] = driver.constant(f"{name}.{role}", values.astype(dtype))


def _left_by_means(layers: Sequence[Layer], bias: np.ndarray, driver: Driver) -> np.ndarray:
    """The bias [K] that layers get, 0 where BatchNormalization alone reads each of them: its means take it.

    Layers that have no bias get none then, which budgets of parameters would not know of.
    """
    batchnorms = [_normalization(layer, driver) for layer in layers]
    if not all(batchnorms):
        return bias
    for batchnorm in batchnorms:
        assert batchnorm is not None
        mean = batchnorm.inputs[3]
        values = (mean.values - bias).astype(mean.dtype)
        batchnorm.inputs[3] = driver.constant(f"{batchnorm.outputs[0].name}.mean", values)
    return np.zeros_like(bias)


def _normalization(layer: Layer, driver: Driver) -> gs.Node | None:
    """The BatchNormalization that alone reads a layer without a bias; None where there is none."""
    output = layer.node.outputs[0]
    by_channel = layer.is_conv or len(output.shape) == 2
    if len(layer.node.inputs) > 2 or not by_channel or driver.is_output(output) or len(output.outputs) != 1:
        return None
    reader = output.outputs[0]
    is_normalized = is_standard(reader, "BatchNormalization") and isinstance(reader.inputs[3], gs.Constant)
    return reader if is_normalized else None


def _has_statistics(node: gs.Node) -> bool:
    """Whether a node is a BatchNormalization of as many values for every batch."""
    return is_standard(node, "BatchNormalization") and has_shape(node.inputs[0])


def _fitted(halves: Sequence[tuple[Moments, Moments]], W: np.ndarray) -> tuple[np.ndarray, Moments]:
    """The best weights near W for all of these moments, each of both halves of the samples, and the moments of all."""
    first, second = (reduce(Moments.with_, half) for half in zip(*halves, strict=True))
    if all(one is other for one, other in halves):
        second = first
    return calibrate.fitted((first, second), W), first.with_(second)


def _constant_beyond(layer: gs.Node) -> tuple[float, float] | None:
    """Between which values the activation that alone reads a layer's output is not constant; None without one."""
    readers = layer.outputs[0].outputs
    if len(readers) != 1 or not is_standard(readers[0], "Relu", "Clip"):
        return None
    try:
        return bounds(readers[0])
    except Computed:
        return None


def replace(layer: Layer, factors: Factors, bias: np.ndarray, driver: Driver) -> None:
    """Put a chain of convolutions, or of Gemm nodes, in the place of a layer; the last one adds the bias [K]."""
    driver.replace(layer.node, chain(layer, factors.stages, factors.weights, bias))
    driver.tidy()


def chain(layer: Layer, stages: Sequence[Stage], weights: Sequence[np.ndarray], bias: np.ndarray) -> Draft:
    """The nodes that compute a layer in stages."""
    x: gs.Tensor | Draft = layer.node.inputs[0]
    dtype = layer.node.inputs[1].dtype
    last = len(stages) - 1
    for index, (stage, W) in enumerate(zip(stages, weights, strict=True)):
        added = [bias.astype(dtype)] if index == last and bias.any() else []
        x = _stage(layer, stage.attributes(layer.node.attrs), x, W.astype(dtype, copy=False), added)
    assert isinstance(x, Draft)
    return x


def _stage(layer: Layer, attributes: dict, x: gs.Tensor | Draft, W: np.ndarray, bias: list[np.ndarray]) -> Draft:
    if layer.is_conv:
        return node("Conv", x, W, *bias, **attributes)
    matrix = W.reshape(W.shape[:2])
    if len(layer.node.inputs[0].shape) == 2:
        return node("Gemm", x, matrix, *bias, transB=1)
    made = node("MatMul", x, matrix.T)
    return node("Add", made, *bias) if bias else made
