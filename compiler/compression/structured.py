"""Structured pruning: what the passes share that take the channels out which a network misses least."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field, model_validator

from nnc import calibrate, channels
from nnc import graph as graphs
from nnc.channels import Channels, Group
from nnc.compression import importance, pruning, reconstruct
from nnc.compression.budget import Budget, Solution, unreachable
from nnc.compression.importance import Importance
from nnc.compression.pruning import Pruning
from nnc.errors import NncError
from nnc.measure import macs, measure, params
from nnc.rewrite import Context, Effect, Pass, selected

#: The name of a group, and its number among those of that name: one layer may write several.
_Key: TypeAlias = tuple[str, int]


class StructuredPruning(Pass):
    """A pass that removes channels, with everything that is tied to them, in one step or in several."""

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
    refit: bool = Field(True, description="fit the layers behind to the calibration data, where there is some")
    include: tuple[str, ...] = Field(("*",), description="take channels only of layers whose name fits a glob")
    exclude: tuple[str, ...] = Field((), description="take no channels of layers whose name fits a glob")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.sparsity is None) == (self.budget is None):
            raise ValueError("give either 'sparsity' or 'budget'")
        return self

    @property
    def kept(self) -> float:
        """The share of the network, by the metric of the budget or in channels, that is left at the end."""
        return self.budget.share if self.budget else 1 - (self.sparsity or 0.0)

    def step(
        self, graph: gs.Graph, context: Context, start: "Start", kept: float, is_first: bool, is_last: bool
    ) -> int:
        """Prune until `kept` of what there was at the start is left; returns how many units it removed."""
        if self.importance in importance.NEED_DATA and context.calibration is None:
            hint = "give it with --data calibration=PATH or in the recipe's [data]"
            raise NncError(f"importance '{self.importance}' needs calibration data", hint)
        traced = channels.trace(graph)
        chosen = self._groups(graph, traced, context, start, is_first)
        groups = list(chosen.values())
        if not groups:
            if is_first and self.budget is not None and self.budget.share < 1:
                raise unreachable(self.budget.share, 1.0)
            return 0
        samples = calibrate.samples(graph, context.calibration, context.seed) if context.calibration else None
        criterion = self.importance or ("reconstruction" if samples else "l2")
        rankings = importance.rank(criterion, graph, traced, groups, samples, context)
        options = [pruning.widths(group, self._multiple(context)) for group in groups]
        plan = Pruning(graph, traced, groups, rankings, options, context)
        solution = self._solve(plan, chosen, start, kept)
        if is_last:
            self._predict(plan, solution, criterion == "reconstruction" and is_first)
        ids = plan.removed(solution.state)
        _remove(plan, ids, samples, self.refit)
        return len(ids)

    def _groups(
        self, graph: gs.Graph, traced: Channels, context: Context, start: "Start", is_first: bool
    ) -> dict[_Key, Group]:
        """The groups that may lose channels, the same in every step; of the others the first step tells the reason."""
        nodes = {node.name: node for node in graph.nodes}
        left = [(nodes[name], reason) for name, reason in traced.fixed.items()]
        chosen = {}
        for key, group in _numbered(traced.groups):
            writers = [nodes[use.node.name] for use in group.producers] or [nodes[group.name]]
            reason = self._refusal(group, writers) or self._too_narrow(group, start.channels[key], context)
            if reason:
                left += [(node, reason) for node in writers]
            else:
                chosen[key] = group
        for node, reason in left if is_first else ():
            context.skip(node, reason)
        return chosen

    def _refusal(self, group: Group, writers: list[gs.Node]) -> str:
        """Why a group keeps its channels, or nothing."""
        if not all(selected(node.name, self.include, self.exclude) for node in writers):
            return "excluded by the recipe"
        return "" if group.consumers else "no layer with weights reads its channels"

    def _too_narrow(self, group: Group, width: int, context: Context) -> str:
        """Why a group that began with so many channels can't become narrower, or nothing."""
        multiple = self._multiple(context)
        if width > pruning.spacing(group, multiple) * pruning.channels_per_unit(group):
            return ""
        return f"{width} channels are no more than the multiple of {multiple}, which 'round_to' can change"

    def _multiple(self, context: Context) -> int:
        return self.round_to or context.target.unit.channel_multiple

    def _solve(self, plan: Pruning, groups: Mapping[_Key, Group], start: "Start", kept: float) -> Solution:
        """The state in which `kept` of what there was at the start is left, or all where that is less already."""
        if self.budget is None:
            now = {key: _width(group) for key, group in groups.items()}
            if self.ranking == "per-layer":
                return plan.uniform([kept * start.channels[key] / width for key, width in now.items()])
            share = kept * sum(start.channels[key] for key in now) / sum(now.values())
            return plan.within("channels", min(1.0, share + 1e-9))  # 7 / 12 of 12 channels are 7
        metric = self.budget.metric
        whole, left = (plan.context.cost(graph, metric) for graph in (start.graph, plan.graph))
        share = min(1.0, kept * whole / left)
        return plan.within(metric, share) if self.ranking == "global" else plan.uniform_within(metric, share)

    def _predict(self, plan: Pruning, solution: Solution, has_error: bool) -> None:
        """Say what the last step expects; criteria that don't reconstruct predict no errors, nor do several steps."""
        hollow = plan.hollow(solution.state)
        figures = measure(hollow)
        plan.context.predicted(
            macs=figures.macs,
            params=figures.params,
            latency_ms=plan.context.predict(hollow).latency_ms,
            error=math.sqrt(solution.error) if has_error else None,
        )
        if has_error and solution.points:
            metric = "channels" if self.budget is None else self.budget.figure
            points = ({**point, "error": math.sqrt(point["error"])} for point in solution.points)
            plan.context.curve(metric, points)


@dataclass(frozen=True)
class Start:
    """A network before the first of several steps that prune it, and how many channels its groups have."""

    graph: gs.Graph
    channels: Counter[_Key]

    @classmethod
    def of(cls, graph: gs.Graph) -> Self:
        widths = {key: _width(group) for key, group in _numbered(channels.trace(graph).groups)}
        return cls(graphs.copy(graph), Counter(widths))

    def explain(self, after: gs.Graph, context: Context) -> None:
        """Say what became of every layer."""
        originals = {node.name: node for node in self.graph.nodes}
        old_ms, new_ms = (context.predict(each).by_layer for each in (self.graph, after))
        for node in after.nodes:
            old = originals.get(node.name)
            if old is None or not macs(old):
                continue
            latency = (old_ms[node.name], new_ms[node.name]) if node.name in old_ms and node.name in new_ms else None
            context.decide(
                node.name, _choice(old, node), macs=(macs(old), macs(node)), params=(params(old), params(node)),
                latency_ms=latency,
            )  # fmt: skip


def _numbered(groups: Iterable[Group]) -> Iterator[tuple[_Key, Group]]:
    """All groups of a network, each with what it is called in every step."""
    seen: Counter[str] = Counter()
    for group in groups:
        yield (group.name, seen[group.name]), group
        seen[group.name] += 1


def _width(group: Group) -> int:
    """How many channels a group has."""
    return len(group.ids) * pruning.channels_per_unit(group)


def _remove(plan: Pruning, ids: np.ndarray, samples: Mapping[str, np.ndarray] | None, refit: bool) -> None:
    """Take the channels out, and fit what is left to the samples."""
    original = graphs.copy(plan.graph)
    channels.remove(plan.graph, plan.traced, ids.tolist())
    if samples and ids.size:
        kept, changed = reconstruct.Kept(plan.traced, frozenset(ids.tolist())), pruning.readers(plan.groups, ids)
        reconstruct.fit(original, plan.graph, samples, plan.context, kept=kept, changed=changed, layers=refit)


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
