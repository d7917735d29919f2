"""correct-bias: the mean error that rounding adds to each output goes into its bias."""

from typing import ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field

from nnc import calibrate, verify
from nnc.errors import NncError
from nnc.layers import Layer
from nnc.quantize import biases, expectation
from nnc.quantize.twins import Twins, samples, unquantized
from nnc.rewrite import Context, Effect, Pass, selected
from nnc.session import Session

#: Shifts of a smaller share of an output's deviation are rounding.
_WORTH = 1e-4


class CorrectBias(Pass):
    """Take the mean error of each output of quantized layers out of its bias.

    Conv(x8, W8, B)  ->  Conv(x8, W8, B + E[W x] - E[W8 x8])      by output channel

    With calibration data empirically, layer by layer, each seeing what those before it now give. Without, the means of
    x are those that BatchNormalization in the imported model tells: E[x] of a normal distribution, cut off by Relu or
    Clip; that corrects the rounding of weights only.

    Approximate. Declines where a layer is not quantized, was quantized already or of another shape when the recipe's
    last insert-qdq met it, can't add a number to every output, gives what is not finite, and without data where no
    BatchNormalization tells what the layer reads.

    Reference: Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019.
    """

    name: ClassVar[str] = "correct-bias"
    effect: ClassVar[Effect] = "approximate"

    method: Literal["empirical", "analytic"] | None = Field(
        None, description="from calibration data, or from BatchNormalization; without it, from data where there is some"
    )
    samples: int = Field(256, ge=1, description="calibration samples that are used at most")
    include: tuple[str, ...] = Field(("*",), description="correct only layers whose name fits one of these globs")
    exclude: tuple[str, ...] = Field((), description="leave layers alone whose name fits one of these globs")

    def looks_back(self) -> bool:
        return True

    def run(self, graph: gs.Graph, context: Context) -> int:
        if self.method == "empirical" and context.calibration is None:
            hint = "give it with --data calibration=PATH or in the recipe's [data]"
            raise NncError("method 'empirical' needs calibration data", hint)
        original = unquantized(context, graph)
        if self.method == "analytic" or context.calibration is None:
            return self._analytic(graph, original, context)
        return self._empirical(graph, original, context)

    def _empirical(self, graph: gs.Graph, original: gs.Graph, context: Context) -> int:
        twins = Twins(graph, original, samples(original, context, self.samples))
        changed = 0
        for done, name in enumerate(twins.layers):
            context.progress("correct biases", done, len(twins.layers))
            if not self._fits(name, twins, context):
                continue
            x, layer = twins.read(name), twins.simulated[name]
            try:
                shift, deviation = _mean_error(layer, x, twins, name, context.seed)
            except calibrate.NotFinite as error:
                context.skip(layer.node, error.message)
            else:
                changed += self._shift(graph, twins, name, shift, deviation)
            finally:
                twins.release(name)
        return changed

    def _analytic(self, graph: gs.Graph, original: gs.Graph, context: Context) -> int:
        twins = Twins(graph, original, {tensor.name: np.zeros((1, *tensor.shape)) for tensor in graph.inputs})
        known, changed = _known_means(original, context), 0
        for name in twins.layers:
            if not self._fits(name, twins, context):
                continue
            floats = twins.floats[name]
            mean = known.get(floats.node.inputs[0].name)
            if mean is None or mean.size != floats.inputs:
                context.skip(twins.layers[name].node, "no BatchNormalization tells the means of what it reads")
                continue
            lost = floats.matrix - twins.simulated[name].matrix  # [g, K / g, C / g taps]
            read = np.repeat(mean.reshape(floats.groups, -1), floats.columns // (mean.size // floats.groups), axis=1)
            shift = np.einsum("gkd,gd->gk", lost, read).reshape(-1)
            changed += self._shift(graph, twins, name, shift, np.abs(shift))
        return changed

    def _fits(self, name: str, twins: Twins, context: Context) -> bool:
        node = twins.layers[name].node
        reason = twins.unknown(name) if selected(name, self.include, self.exclude) else "excluded by the recipe"
        if not reason and not biases.can_add(twins.layers[name]):
            reason = "it can't add a number to every output"
        if reason:
            context.skip(node, reason)
        return not reason

    def _shift(self, graph: gs.Graph, twins: Twins, name: str, shift: np.ndarray, deviation: np.ndarray) -> int:
        """Add to the bias of a layer what is worth it; whether it was."""
        if not (np.abs(shift) > _WORTH * deviation).any():
            return 0
        if not biases.add(graph, twins.layers[name], shift):
            return 0
        twins.update(name)
        return 1


def _known_means(original: gs.Graph, context: Context) -> dict[str, np.ndarray]:
    """Means of the channels of tensors of the original, where the imported model computes the same but for factors."""
    imported = context.imported
    if imported is None:
        return {}
    shapes = {tensor.name: tensor.shape for node in original.nodes for tensor in node.outputs}
    same = {t.name: t.shape for node in imported.nodes for t in node.outputs if shapes.get(t.name) == t.shape}
    known = {name: mean for name, mean in expectation.means(imported).items() if name in same}
    inputs = verify.probe_inputs(original, context.seed)
    then, now = (Session(each, outputs=list(known)).run(inputs) for each in (imported, original))
    found = {name: (_factors(then[name], now[name], mean.size), mean) for name, mean in known.items()}
    return {name: mean * factors for name, (factors, mean) in found.items() if factors is not None}


def _factors(then: np.ndarray, now: np.ndarray, channels: int) -> np.ndarray | None:
    """What `now` is of `then` by channel, as equalize-ranges scales them; None where it is something else."""
    one, other = (each.reshape(len(each), channels, -1).astype(np.float64) for each in (then, now))
    energy = np.square(one).sum((0, 2))
    factors = np.where(energy > 0, (one * other).sum((0, 2)) / np.where(energy > 0, energy, 1.0), 1.0)
    moved = np.abs(other - one * factors[:, None]).max(initial=0.0)
    return factors if moved <= verify.TOLERANCE * np.abs(other).max(initial=0.0) else None


def _mean_error(layer: Layer, x: np.ndarray, twins: Twins, name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What the mean of each output lacks, and the deviation of what it should be, [channels]."""
    first, second = calibrate.moments(layer, x, twins.target(name), seed)
    moments = first.with_(second)
    return moments.bias(layer.matrix) - layer.bias, np.sqrt(moments.yy).reshape(-1)
