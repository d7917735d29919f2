"""train-quantized: training through the rounding that integers need, with steps that are learned."""

from dataclasses import replace
from glob import escape
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field

from nnc import quantize
from nnc.attributes import bias
from nnc.integers import LAYERS
from nnc.model.proto import is_standard
from nnc.passes.fold_batchnorm import FoldBatchNorm
from nnc.passes.insert_qdq import InsertQdq
from nnc.quantize import Method
from nnc.quantize.quantizing_pass import Bits, LayerOptions, QuantizingPass, WeightMethod
from nnc.rewrite import Context
from nnc.store import Memory
from nnc.training.training_pass import TrainingPass


class TrainQuantized(QuantizingPass, TrainingPass):
    """Quantize weights and activations to 2 to 8 bits, and train the network in this arithmetic.

    Conv(x, W, B)  ->  Conv(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(W'), DequantizeLinear(B'))

    What insert-qdq places is placed, with ranges of the calibration data or, without any, of the training data. Then
    weights, biases and the steps of all integers are trained, through the rounding as if it were not there, and stored
    as insert-qdq stores them; what is trained is what every runtime computes. A network that is quantized already
    goes on from the integers and bits that it has. Fewer bits are stored in 8: behind activations of fewer bits there
    is a Clip, which a Relu turns into.

    Trained, as fine-tune is; `distill` learns from the network that the recipe began with. BatchNormalization is folded
    before; where it can't be, its statistics stay. Declines the layers that insert-qdq declines.

    Reference: Esser et al., Learned step size quantization, ICLR 2020; Jain et al., Trained quantization thresholds for
    accurate and efficient fixed-point inference of deep neural networks, MLSys 2020.
    """

    name: ClassVar[str] = "train-quantized"

    ends_bits: Bits = Field(8, description="bits of the first and the last layer, where the others have fewer")
    method: Method = Field("mse", description="how the ranges of activations are found, from which training starts")
    weight_method: WeightMethod = Field("mse", description="how the ranges of weights are found")
    calibration_samples: int = Field(512, ge=1, description="samples that ranges are found on at most")

    def run(self, graph: gs.Graph, context: Context) -> int:
        from nnc.training.fake_quantization import FakeQuantization
        from nnc.training.loop import train
        from nnc.training.module import GraphModule

        GraphModule(graph)  # what can't be trained is told before any work
        changed = FoldBatchNorm.model_validate({}).run(graph, context)
        floats, known = _floats(graph), set(quantize.layers(graph))
        changed += self._insertion(graph).run(graph, self._calibrated(context))
        for name in known:  # these are what is trained, too
            context.skipped.pop((name, "it is quantized already"), None)
        quantization = FakeQuantization(graph, floats)
        module = quantization.module()
        if not quantization.layers or self.planned_only(graph, context) or not self.epochs:
            return changed
        train(module, self.plan(context))
        return quantization.write_back(module)

    def _insertion(self, graph: gs.Graph) -> InsertQdq:
        """insert-qdq with the options of this pass, and more bits for the first and the last layer."""
        given = self.model_dump(include=set(InsertQdq.model_fields) - {"samples", "layers"})
        ends = {escape(name): self._end(self._options(name)) for name in _ends(graph)}
        others = {glob: options for glob, options in self.layers.items() if glob not in ends}
        return InsertQdq.model_validate(given | {"samples": self.calibration_samples, "layers": {**others, **ends}})

    def _end(self, given: LayerOptions) -> LayerOptions:
        """What `layers` gives for the first or the last layer; the bits that it leaves open are those of the ends."""
        weights = given.weight_bits or max(self.weight_bits, self.ends_bits)
        activations = given.activation_bits or max(self.activation_bits, self.ends_bits)
        return given.model_copy(update={"weight_bits": weights, "activation_bits": activations})

    def _calibrated(self, context: Context) -> Context:
        """With training data in place of calibration data, where these are missing; their ranges are not kept."""
        return context if context.calibration else replace(context, calibration=context.train, store=Memory())


def _floats(graph: gs.Graph) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """The constant weights and biases of layers by name, with Gemm's factors."""
    found = {}
    for node in graph.nodes:
        constants = [tensor for tensor in node.inputs[:2] if isinstance(tensor, gs.Constant)]
        if not is_standard(node, *LAYERS) or not constants:
            continue
        alpha = node.attrs.get("alpha", 1.0) if node.op == "Gemm" else 1.0
        found[node.name] = (constants[0].values * alpha, bias(node))
    return found


def _ends(graph: gs.Graph) -> list[str]:
    """The names of the layers in front of which, or behind which, there is no other."""
    layers = [node for node in graph.nodes if is_standard(node, *LAYERS)]
    behind: set[int] = set()  # tensors that depend on layers, and tensors that layers depend on
    ahead: set[int] = set()
    first = [node for node in graph.nodes if _spreads(node, node.inputs, node.outputs, behind)]
    last = [node for node in reversed(graph.nodes) if _spreads(node, node.outputs, node.inputs, ahead)]
    ends = {id(node) for node in (*first, *last)}
    return [node.name for node in layers if id(node) in ends]


def _spreads(node: gs.Node, near: list[gs.Tensor], far: list[gs.Tensor], reached: set[int]) -> bool:
    """Mark what lies beyond a layer, or beyond what is marked; whether the node is a layer that was not reached."""
    is_layer, is_reached = is_standard(node, *LAYERS), any(id(tensor) in reached for tensor in near)
    if is_layer or is_reached:
        reached.update(id(tensor) for tensor in far)
    return is_layer and not is_reached
