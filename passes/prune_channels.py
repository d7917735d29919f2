"""prune-channels: the channels that a network misses least are taken out."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field, model_validator

from nnc import calibrate, channels, importance, pruning, reconstruct
from nnc import graph as graphs
from nnc.budget import Budget, Solution, unreachable
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
        start = _channels(channels.trace(graph).groups)
        removed = sum(self._step(graph, context, before, start, step) for step in range(1, self.iterations + 1))
        _explain(before, graph, context)
        return removed

    def _step(self, graph: gs.Graph, context: Context, before: gs.Graph, start: Counter[str], step: int) -> int:
        """Prune part of the way from `before`, whose groups had `start` channels; returns how many units it removed."""
        traced = channels.trace(graph)
        groups = self._groups(graph, traced, context, step)
        if not groups:
            if step == 1 and self.budget is not None and self.budget.share < 1:
                raise unreachable(self.budget.share, 1.0)
            return 0
        samples = calibrate.samples(graph, context.calibration, context.seed) if context.calibration else None
        criterion = self.importance or ("reconstruction" if samples else "l2")
        rankings = importance.rank(criterion, graph, traced, groups, samples, context)
        options = [pruning.widths(group, self._multiple(context)) for group in groups]
        plan = Pruning(graph, traced, groups, rankings, options, context)
        solution = self._solve(plan, before, start, step)
        if step == self.iterations:
            self._predict(plan, solution, criterion)
        ids = plan.removed(solution.state)
        _remove(plan, ids, samples, self.refit)
        return len(ids)

    def _groups(self, graph: gs.Graph, traced: Channels, context: Context, step: int) -> list[Group]:
        """The groups that may lose channels; of the others the first step tells the reason."""
        nodes = {node.name: node for node in graph.nodes}
        left = [(nodes[name], reason) for name, reason in traced.fixed.items()]
        chosen = []
        for group in traced.groups:
            writers = [nodes[use.node.name] for use in group.producers] or [nodes[group.name]]
            if reason := self._refusal(group, writers):
                left += [(node, reason) for node in writers]
            elif step > 1 or not (reason := self._too_narrow(group, context)):
                chosen.append(group)
            else:
                left += [(node, reason) for node in writers]
        for node, reason in left if step == 1 else ():
            context.skip(node, reason)
        return chosen

    def _refusal(self, group: Group, writers: list[gs.Node]) -> str:
        """Why a group keeps its channels, or nothing."""
        if not all(selected(node.name, self.include, self.exclude) for node in writers):
            return "excluded by the recipe"
        return "" if group.consumers else "no layer with weights reads its channels"

    def _too_narrow(self, group: Group, context: Context) -> str:
        multiple = self._multiple(context)
        if len(pruning.widths(group, multiple)) > 1:
            return ""
        width = len(group.ids) * pruning.channels_per_unit(group)
        return f"{width} channels are no more than the multiple of {multiple}, which 'round_to' can change"

    def _multiple(self, context: Context) -> int:
        return self.round_to or context.target.unit.channel_multiple

    def _solve(self, plan: Pruning, before: gs.Graph, start: Counter[str], step: int) -> Solution:
        """The state that this step ends in."""
        way = step / self.iterations
        if self.sparsity is not None:
            now, share = _channels(plan.groups), (1 - self.sparsity) ** way
            if self.ranking == "per-layer":
                return plan.uniform([share * start[group.name] / now[group.name] for group in plan.groups])
            share *= sum(start[name] for name in now) / now.total()
            return plan.within("channels", min(1.0, share + 1e-9))  # 7 / 12 of 12 channels are 7
        assert self.budget is not None
        metric = self.budget.metric
        whole, left = (plan.context.cost(graph, metric) for graph in (before, plan.graph))
        share = min(1.0, self.budget.share**way * whole / left)
        return plan.within(metric, share) if self.ranking == "global" else plan.uniform_within(metric, share)

    def _predict(self, plan: Pruning, solution: Solution, criterion: Importance) -> None:
        """Say what the last step expects."""
        hollow = plan.hollow(solution.state)
        figures = measure(hollow)
        known = criterion == "reconstruction" and self.iterations == 1  # other criteria don't predict errors
        plan.context.predicted(
            macs=figures.macs,
            params=figures.params,
            latency_ms=plan.context.predict(hollow).latency_ms,
            error=math.sqrt(solution.error) if known else None,
        )
        if known and solution.points:
            metric = "channels" if self.budget is None else _FIGURES[self.budget.metric]
            points = ({**point, "error": math.sqrt(point["error"])} for point in solution.points)
            plan.context.curve(metric, points)


#: Metrics of budgets as figures are called.
_FIGURES = {"macs": "macs", "params": "params", "latency": "latency_ms"}


def _channels(groups: Sequence[Group]) -> Counter[str]:
    """Channels by the groups' names."""
    found: Counter[str] = Counter()
    for group in groups:
        found[group.name] += len(group.ids) * pruning.channels_per_unit(group)
    return found


def _remove(plan: Pruning, ids: np.ndarray, samples: Mapping[str, np.ndarray] | None, refit: bool) -> None:
    """Take the channels out, and fit what is left to the samples."""
    original = graphs.copy(plan.graph)
    channels.remove(plan.graph, plan.traced, ids.tolist())
    if samples and ids.size:
        kept, changed = reconstruct.Kept(plan.traced, frozenset(ids.tolist())), pruning.readers(plan.groups, ids)
        reconstruct.fit(original, plan.graph, samples, plan.context, kept=kept, changed=changed, layers=refit)


def _explain(before: gs.Graph, after: gs.Graph, context: Context) -> None:
    """Say what became of every layer."""
    originals = {node.name: node for node in before.nodes}
    old_ms, new_ms = (
        {layer.name: layer.latency_ms for layer in context.predict(each).layers} for each in (before, after)
    )
    for node in after.nodes:
        old = originals.get(node.name)
        if old is None or not macs(old):
            continue
        latency = (old_ms[node.name], new_ms[node.name]) if node.name in old_ms and node.name in new_ms else None
        context.decide(
            node.name, _choice(old, node), macs=(macs(old), macs(node)), params=(params(old), params(node)),
            latency_ms=latency,
        )  # fmt: skip


def _choice(old: gs.Node, new: gs.Node) -> str:
    """'64 -> 40 channels', of what a layer writes or else of what it reads."""
    for kind, before, after in (
        ("channels", old.outputs[0].shape, new.outputs[0].shape),
        ("inputs", old.inputs[0].shape, new.inputs[0].shape),
    ):
        for wide, narrow in zip(before, after, strict=True):
            if wide != narrow:
                return f"{wide} -> {narrow} {kind}"
    return "keep"
