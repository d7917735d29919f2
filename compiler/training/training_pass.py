"""What the passes that train share: their parameters, and what of the context a run takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import onnx_graphsurgeon as gs
from pydantic import ConfigDict

from nnc import graph as graphs
from nnc.errors import NncError
from nnc.rewrite import Context, Effect, Pass
from nnc.training.options import Options

if TYPE_CHECKING:
    from nnc.training.loop import Plan


class TrainingPass(Options, Pass):
    """A pass that trains the network on the recipe's training data."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    effect: ClassVar[Effect] = "trained"
    package: ClassVar[str | None] = "torch"

    def data_needed(self) -> tuple[str, ...]:
        """Accuracy says whether training went well; who learns from a teacher may have no labels."""
        return ("train",) if self.distill else ("train", "test")

    def looks_back(self) -> bool:
        """Without [data]'s teacher it learns from the imported model."""
        return self.distill is not None

    def check(self, context: Context) -> None:
        """What doesn't fit of the training data, and of the teacher, is told before any pass runs."""
        super().check(context)
        if not self.epochs:
            return
        from nnc.training.module import GraphModule

        assert context.imported is not None, "the pipeline has started"
        plan = self.plan(context)
        plan.check(context.imported)
        if plan.teacher is not None:
            GraphModule(plan.teacher)

    def plan(self, context: Context) -> Plan:
        """What the loop of nnc.training is told."""
        from nnc.training.loop import Plan

        teacher = self._teacher(context) if self.distill else None
        return Plan(self.name, self, context.train, context.seed, teacher, context.store.training, context.progress)

    def _teacher(self, context: Context) -> gs.Graph:
        """[data]'s teacher, or the model before the first pass."""
        assert context.imported is not None, "the pipeline has started"
        if context.teacher is None:
            return context.imported
        shapes = {tensor.name: list(tensor.shape) for tensor in context.imported.inputs}
        try:
            return graphs.load(context.teacher, shapes)
        except NncError as error:
            message = error.message.removeprefix("--shape: ")  # nobody gave the option: shapes are the model's
            raise NncError(f"teacher: {message}", error.hint) from error

    def planned_only(self, graph: gs.Graph, context: Context) -> bool:
        """Whether nothing is trained, but only told what would be; says so."""
        if not context.trains and self.epochs:
            context.skip(graph.nodes[0], "only nnc compile trains")
        return not context.trains
