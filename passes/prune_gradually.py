"""prune-gradually: pruning and training by turns."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field, model_validator

from nnc import graph as graphs
from nnc import measure
from nnc.compression.structured import Start, StructuredPruning
from nnc.display import units
from nnc.errors import NncError
from nnc.measure import macs, params
from nnc.rewrite import Context, selected
from nnc.training.training_pass import TrainingPass

if TYPE_CHECKING:
    from nnc.training.loop import Span


class PruneGradually(TrainingPass, StructuredPruning):
    """Prune the network step by step, and train it after each: more can go than at once.

    Conv(x, W [64, C, 3, 3])  ->  Conv(x, W' [48, C, 3, 3])  ->  training  ->  Conv(x, W" [40, C, 3, 3])  ->  training

    Trained, as by fine-tune and with its parameters: teachers, early stop, and a compile that was killed goes on from
    the last epoch. Over the `ramp` what was removed follows a cubic curve, fast at first; then the network only trains.
    Channels go as in prune-channels, judged on the training data where there are no calibration data. With
    `granularity = "weights"` shapes stay and the smallest weights become zeros: pack-weights makes them small in the
    library, which is as fast as before. Declines what prune-channels declines.

    Reference: Zhu, Gupta, To prune, or not to prune: exploring the efficacy of pruning for model compression, 2017;
    Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, ICLR 2021.
    """

    name: ClassVar[str] = "prune-gradually"

    granularity: Literal["channels", "weights"] = Field(
        "channels", description="whole channels make layers narrower; single weights become zeros, 'sparsity' of them"
    )
    sparsity: float | None = Field(
        None, ge=0, lt=1, description="share of the channels to remove, or of the weights to make zero"
    )
    ramp: float = Field(0.5, gt=0, le=1, description="share of the epochs in which it prunes")
    steps: int | None = Field(
        None, ge=1, description="how often it prunes: channels at most once per epoch, which is the default; weights "
        "100 times without it"
    )  # fmt: skip

    @model_validator(mode="after")
    def _fits_granularity(self) -> Self:
        for name in ("budget", "importance", "round_to") if self.granularity == "weights" else ():
            if getattr(self, name) is not None:
                raise ValueError(f"'{name}' is for channels: for weights give 'sparsity'")
        if self.granularity == "weights" and self.patience and 0 < self.epochs <= self._ramped:
            raise ValueError("'patience' judges the epochs behind the ramp, and there are none: lower 'ramp'")
        return self

    @property
    def _ramped(self) -> int:
        """The epochs in which weights go."""
        return math.ceil(self.ramp * self.epochs)

    def run(self, graph: gs.Graph, context: Context) -> int:
        from nnc.training.module import GraphModule

        GraphModule(graph)  # what can't be trained is told before any work
        plans = self.planned_only(graph, context)
        if self.granularity == "channels":
            return self._prune_channels(graph, replace(context, calibration=context.calibration or context.train))
        return 0 if plans else self._prune_weights(graph, context)

    def _prune_channels(self, graph: gs.Graph, context: Context) -> int:
        from nnc.training import gradual

        epochs = self.epochs if context.trains else 0
        start, spans, changed = Start.of(graph), gradual.spans(epochs, self.ramp, self.steps), 0
        if len(spans) > 1:
            self._check_reachable(start, context)
        for index, span in enumerate(spans, start=1):
            kept = 1 - (1 - self.kept) * gradual.cubic(index / len(spans))
            changed += self.step(graph, context, start, kept, index == 1, index == len(spans))
            if epochs:
                changed += self._train(graph, context, span)
        start.explain(graph, context)
        return changed

    def _check_reachable(self, start: Start, context: Context) -> None:
        """Raises NncError now where the last step would."""
        quick = self.model_copy(update={"importance": "l2", "refit": False})
        aside = Context(context.target, threads=context.threads)
        quick.step(graphs.copy(start.graph), aside, start, self.kept, True, True)

    def _train(self, graph: gs.Graph, context: Context, span: "Span") -> int:
        from nnc.training import gradual
        from nnc.training.loop import train
        from nnc.training.module import GraphModule

        module, plan = GraphModule(graph), self.plan(context)
        train(module, plan if span.last == span.total else gradual.without_stop(plan), span)
        return module.write_back()

    def _prune_weights(self, graph: gs.Graph, context: Context) -> int:
        from nnc.training import gradual
        from nnc.training.loop import Span, train
        from nnc.training.module import GraphModule

        module, plan = GraphModule(graph), self.plan(context)
        layers = self._layers(graph, context)
        names = {tensor.name for node in layers for tensor in _matrices(node)}
        weights = {name: each for name, each in module.named_parameters() if name in names}
        if not weights:
            raise NncError("no weights are left to prune", "check 'include' and 'exclude'")
        masks = gradual.Masks(weights, self.sparsity or 0.0, self.ranking, self.ramp, self.steps)
        if not self.epochs:
            masks(1.0)
        judged = 0 if self.patience is None else self._ramped
        train(module, gradual.without_stop(plan), Span(0, judged, self.epochs), masks)
        train(module, plan, Span(judged, self.epochs, self.epochs), masks)
        changed = module.write_back()
        for node in layers:
            _explain(node, context)
        return changed

    def _layers(self, graph: gs.Graph, context: Context) -> list[gs.Node]:
        """The layers whose weights can become zero; of the others the reasons are told."""
        chosen = []
        for node in graph.nodes:
            if not macs(node):
                continue
            if reason := self._whole(node):
                context.skip(node, reason)
            else:
                chosen.append(node)
        return chosen

    def _whole(self, node: gs.Node) -> str:
        """Why a layer keeps all of its weights, or nothing."""
        if not selected(node.name, self.include, self.exclude):
            return "excluded by the recipe"
        if _matrices(node):
            return ""
        if any(isinstance(tensor, gs.Constant) for tensor in node.inputs[:2]):
            return "its weights are one value per channel"
        makers = [tensor.inputs[0] for tensor in node.inputs[:2] if tensor.inputs]
        quantized = any(each.op == "DequantizeLinear" and isinstance(each.inputs[0], gs.Constant) for each in makers)
        return "its weights are quantized" if quantized else "its weights are computed"


def _matrices(node: gs.Node) -> list[gs.Constant]:
    """The constant weights of a layer that mix channels or positions."""
    return [each for each in node.inputs[:2] if isinstance(each, gs.Constant) and measure.is_matrix(each.shape)]


def _explain(node: gs.Node, context: Context) -> None:
    """Say how many weights of a layer are zero."""
    arrays = [each.values for each in _matrices(node)]
    count = sum(each.size for each in arrays)
    zeros = count - sum(map(np.count_nonzero, arrays))
    choice = f"{units.percent(zeros / count)} of {units.amount(count)} weights zero"
    context.decide(node.name, choice, macs=(macs(node),) * 2, params=(params(node),) * 2)
