"""round-adaptively: integers of weights that together disturb a layer least, not one by one."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field

from nnc import calibrate
from nnc.calibrate import Moments
from nnc.compression.reconstruct import MOST_COLUMNS
from nnc.layers import Layer
from nnc.measure import macs, params
from nnc.quantize import QuantizedLayer, biases, rounding
from nnc.quantize.insertion import roomy
from nnc.quantize.rounding import Grid
from nnc.quantize.twins import Twins, samples, unquantized
from nnc.rewrite import Context, Effect, Pass, selected


class RoundAdaptively(Pass):
    """Round the weights of quantized layers for what the layers read, on calibration data.

    Conv(x8, DequantizeLinear(round(W / s)))  ->  Conv(x8, DequantizeLinear(V))     V minimizes E[(y - s V x8)^2]

    Layer by layer, y is what the network in floats computes and x8 what the quantized one gives so far, so that a layer
    also makes up for the errors before it. Rounding is up, down or further, whatever lowers the quadratic error: by
    column-wise feedback of errors, then by coordinate descent. Scales and biases are fitted, too.

    Approximate. Declines where a layer is not quantized, was quantized already or of another shape when the recipe's
    last insert-qdq met it, where it adds what is computed, shares its weights or has too many columns, and where what
    it reads or gives is not finite.

    Reference: Nagel et al., Up or down? Adaptive rounding for post-training quantization, ICML 2020; Frantar et al.,
    GPTQ, ICLR 2023.
    """

    name: ClassVar[str] = "round-adaptively"
    effect: ClassVar[Effect] = "approximate"
    needs: ClassVar[tuple[str, ...]] = ("calibration",)

    samples: int = Field(256, ge=1, description="calibration samples that are used at most")
    scales: bool = Field(True, description="search the scales of weights, too")
    bias: bool = Field(True, description="let the means of outputs agree with those of the network in floats")
    include: tuple[str, ...] = Field(("*",), description="round only layers whose name fits one of these globs")
    exclude: tuple[str, ...] = Field((), description="leave layers alone whose name fits one of these globs")

    def looks_back(self) -> bool:
        return True

    def run(self, graph: gs.Graph, context: Context) -> int:
        original = unquantized(context, graph)
        twins = Twins(graph, original, samples(original, context, self.samples))
        changed = 0
        for done, (name, layer) in enumerate(twins.layers.items()):
            context.progress("round weights", done, len(twins.layers))
            if reason := self._refusal(name, twins):
                context.skip(layer.node, reason)
                continue
            try:
                changed += self._round(graph, twins, name, context)
            except calibrate.NotFinite as error:
                context.skip(layer.node, error.message)
        return changed

    def _refusal(self, name: str, twins: Twins) -> str:
        if not selected(name, self.include, self.exclude):
            return "excluded by the recipe"
        if reason := twins.unknown(name):
            return reason
        if others := twins.layers[name].sharers:
            return f"its weights are shared with '{others[0].name}'"
        columns = twins.simulated[name].columns
        return f"it has {columns} columns, more than {MOST_COLUMNS}" if columns > MOST_COLUMNS else ""

    def _round(self, graph: gs.Graph, twins: Twins, name: str, context: Context) -> bool:
        """Round one layer; whether that changed it."""
        stored, simulated = twins.layers[name], twins.simulated[name]
        try:
            moments = calibrate.moments(simulated, twins.read(name), twins.target(name), context.seed)
        finally:
            twins.release(name)
        whole = moments[0].with_(moments[1])
        W = calibrate.fitted(moments, twins.floats[name].matrix)
        grid = _grid(stored, simulated)
        old = simulated.matrix
        if self.scales and grid.scale.size == stored.scale.size:
            bias = whole.bias(W) if self.bias and biases.can_add(stored) else stored.bias
            grid = _with_room(rounding.rescaled(W, whole.xx, grid), W, bias, stored)
        integers = rounding.rounded(W, whole.xx, grid)
        V = grid.values(integers)
        changed = _store(stored, simulated, integers, grid)
        if self.bias and biases.can_add(stored):
            changed |= biases.set_(graph, stored, whole.bias(V))
        if changed:
            twins.update(name)
        _explain(stored, whole, V, old, context)
        return changed


def _grid(stored: QuantizedLayer, layer: Layer) -> Grid:
    """The values that a layer's weights can have, by group and row."""
    shape = layer.groups, layer.outputs // layer.groups
    scale, zero = (
        np.broadcast_to(each.astype(np.float64).reshape(-1), layer.outputs).reshape(shape)
        for each in (stored.scale, stored.zero)
    )
    return Grid(scale, zero, *stored.scheme.limits)


def _with_room(grid: Grid, W: np.ndarray, bias: np.ndarray | None, stored: QuantizedLayer) -> Grid:
    """The grid of weights [g, R, D] with scales at which a bias [g R], where it is stored in integers, fits in them."""
    step = stored.input_scale
    if bias is None or step is None or isinstance(stored.added, gs.Constant):
        return grid
    scale = roomy(grid.scale.reshape(-1), W.reshape(-1, W.shape[2]), bias, step, 0)
    return replace(grid, scale=scale.astype(np.float64).reshape(grid.scale.shape))


def _store(stored: QuantizedLayer, layer: Layer, integers: np.ndarray, grid: Grid) -> bool:
    """Write integers [g, R, D] and scales in the layout of the node; whether they are others than before."""
    W = layer.in_layout(integers)
    rescaled = grid.scale.size == stored.scale.size and not np.array_equal(grid.scale.ravel(), stored.scale.ravel())
    if not rescaled and np.array_equal(W, stored.integers):
        return False
    stored.set_integers(W)
    if rescaled:
        biases.rescale(stored, grid.scale)
    return True


def _explain(stored: QuantizedLayer, moments: Moments, V: np.ndarray, old: np.ndarray, context: Context) -> None:
    """Say what is left of a layer's error, as a share of its output."""
    energy = moments.yy.sum() or 1.0
    before, after = (float(np.sqrt(moments.error(W).sum() / energy)) for W in (old, V))
    node = stored.node
    context.decide(
        node.name, f"error {before:.2%} -> {after:.2%}", macs=(macs(node),) * 2, params=(params(node),) * 2, error=after
    )
