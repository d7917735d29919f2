"""prune-channels: the channels that a network misses least are taken out."""

from typing import ClassVar, Literal, Self

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field, model_validator

from nnc import calibrate, channels, importance, pruning, reconstruct
from nnc import graph as graphs
from nnc.budget import Budget, Solution
from nnc.channels import Channels, Group
from nnc.errors import NncError
from nnc.importance import Importance
from nnc.measure import macs, measure, params
from nnc.pruning import Pruning
from nnc.rewrite import Context, Effect, Pass, selected


class PruneChannels(Pass):
    """Remove the channels that a network misses least, with everything that is tied to them.

    Conv(Relu(Conv(x, W [64, C, 3, 3])), V [K, 64, 3, 3])  ->  Conv(Relu(Conv(x, W [40, C, 3, 3])), V [K, 40, 3, 3])

    Approximate. Channels that must go together (residual sums, concatenations, depthwise and grouped convolutions,
    shuffles, gates) do; `nnc inspect --groups` shows them. With calibration data the layers behind are refitted by
    least squares, without training. Declines where channels reach an output of the graph or can't be traced.

    Reference: He, Zhang, Sun, Channel pruning for accelerating very deep neural networks, ICCV 2017; Fang et al.,
    DepGraph: towards any structural pruning, CVPR 2023.
    """

    name: ClassVar[str] = "prune-channels"
    effect: ClassVar[Effect] = "approximate"

    sparsity: float | None = Field(None, ge=0, lt=1, description="share of the channels to remove")
    budget: Budget | None = Field(None, description="what to keep of the network; this or 'sparsity'")
    importance: Importance | None = Field(
        None, description="what makes a channel worth keeping; without it 'reconstruction' where there is calibration "
        "data, otherwise 'l2'"
    )  # fmt: skip
    ranking: Literal["global", "per-layer"] = Field(
        "global", description="compare the channels of all layers, or remove the same share of every layer"
    )
    round_to: int | None = Field(None, ge=1, description="widths are multiples of it; without it, of the target's")
    iterations: int = Field(1, ge=1, le=100, description="steps on the way, with new scores before each")
    refit: bool = Field(True, description="fit the layers behind to the calibration data, where there is some")
    include: tuple[str, ...] = Field(("*",), description="take channels only of layers whose name fits a glob")
    exclude: tuple[str, ...] = Field((), description="take no channels of layers whose name fits a glob")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.sparsity is None) == (self.budget is None):
            raise ValueError("give either 'sparsity' or 'budget'")
        return self

    def run(self, graph: gs.Graph, context: Context) -> int:
        if self.importance in importance.NEED_DATA and context.calibration is None:
            hint = "give it with --data calibration=PATH or in the recipe's [data]"
            raise NncError(f"importance '{self.importance}' needs calibration data", hint)
        before = graphs.copy(graph)
        removed = sum(self._step(graph, context, before, step) for step in range(1, self.iterations + 1))
        _explain(before, graph, context)
        return removed

    def _step(self, graph: gs.Graph, context: Context, before: gs.Graph, step: int) -> int:
        """Prune part of the way; returns the number of channels removed."""
        traced = channels.trace(graph)
        groups = self._groups(graph, traced, context)
        if not groups:
            return 0
        samples = calibrate.samples(graph, context.calibration, context.seed) if context.calibration else None
        criterion = self.importance or ("reconstruction" if samples else "l2")
        rankings = importance.rank(criterion, graph, traced, groups, samples, context)
        options = [pruning.widths(group, self._multiple(context)) for group in groups]
        plan = Pruning(graph, traced, groups, rankings, options, context)
        ids = plan.removed(self._solve(plan, before, step).state)
        original = graphs.copy(graph)
        channels.remove(graph, traced, ids.tolist())
        if samples and self.refit and ids.size:
            kept = reconstruct.Kept(traced, frozenset(ids.tolist()))
            reconstruct.fit(original, graph, samples, context, kept=kept, changed=pruning.readers(groups, ids))
        return len(ids)

    def _groups(self, graph: gs.Graph, traced: Channels, context: Context) -> list[Group]:
        """The groups that may lose channels; of the others the reason is told."""
        nodes = {node.name: node for node in graph.nodes}
        for name, reason in traced.fixed.items():
            context.skip(nodes[name], reason)
        chosen = []
        for group in traced.groups:
            writers = [nodes[use.node.name] for use in group.producers] or [nodes[group.name]]
            if reason := self._refusal(group, writers, context):
                for node in writers:
                    context.skip(node, reason)
            else:
                chosen.append(group)
        return chosen

    def _refusal(self, group: Group, writers: list[gs.Node], context: Context) -> str:
        """Why a group keeps its channels, or nothing."""
        multiple = self._multiple(context)
        if not all(selected(node.name, self.include, self.exclude) for node in writers):
            return "excluded by the recipe"
        if not group.consumers:
            return "no layer with weights reads its channels"
        if len(pruning.widths(group, multiple)) == 1:
            width = len(group.ids) * pruning.channels_per_unit(group)
            return f"{width} channels are no more than the multiple of {multiple}, which 'round_to' can change"
        return ""

    def _multiple(self, context: Context) -> int:
        return self.round_to or context.target.unit.channel_multiple

    def _solve(self, plan: Pruning, before: gs.Graph, step: int) -> Solution:
        way = step / self.iterations
        if self.budget is None:
            assert self.sparsity is not None
            share = (1 - self.sparsity) ** (1 / self.iterations)
            if self.ranking == "per-layer":
                return Solution(plan.uniform(share), share, 0.0)
            return plan.of_sparsity(1 - share)
        metric = self.budget.metric
        whole, now = (self._cost(each, plan.context) for each in (before, plan.graph))
        share = min(1.0, self.budget.share**way * whole / now)
        return plan.within(metric, share) if self.ranking == "global" else plan.uniform_within(metric, share)

    def _cost(self, graph: gs.Graph, context: Context) -> float:
        assert self.budget is not None
        if self.budget.metric == "latency":
            return context.predict(graph).latency_ms
        return float(getattr(measure(graph), self.budget.metric))


def _explain(before: gs.Graph, after: gs.Graph, context: Context) -> None:
    """What became of every layer."""
    originals = {node.name: node for node in before.nodes}
    for node in after.nodes:
        old = originals.get(node.name)
        if old is not None and macs(old):
            wide, narrow = old.outputs[0].shape, node.outputs[0].shape
            axis = next((axis for axis, size in enumerate(wide) if narrow[axis] != size), None)
            choice = "keep" if axis is None else f"{wide[axis]} -> {narrow[axis]} channels"
            context.decide(node.name, choice, macs=(macs(old), macs(node)), params=(params(old), params(node)))
