"""Which blocks become narrower and which are left out, within a budget."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from nnc import channels
from nnc import graph as graphs
from nnc.bottlenecks import worth
from nnc.bottlenecks.blocks import Block
from nnc.bottlenecks.places import Places, drop_refusal
from nnc.bottlenecks.worth import Samples
from nnc.compression import branches, pruning
from nnc.compression.pruning import Pruning
from nnc.rewrite import Context

Method: TypeAlias = Literal["expansion", "width", "drop"]


@dataclass
class Choice(Pruning):
    """The widths that blocks may have, and what each choice of them costs.

    Groups are the hidden channels of blocks, of which width 0 leaves the block out, and what the stages give.
    """

    blocks: Sequence[Block | None] = field(default_factory=list)
    """By group, whose hidden channels it is; None for a stage."""

    @staticmethod
    def of(
        graph: gs.Graph, blocks: Sequence[Block], methods: Collection[Method], multiple: int, samples: Samples,
        context: Context,
    ) -> "Choice":  # fmt: skip
        """The options that `methods` allow; of blocks that have none the reasons are told."""
        traced = channels.trace(graph)
        places = Places(blocks, traced)
        options = _options(graph, blocks, places, methods, multiple, context)
        groups = [places.groups[key] for key in options]
        rankings = worth.rank(graph, traced, groups, samples, context)
        owners = {block.name: block for block in blocks if block.name in options}
        droppable = [block for name, block in owners.items() if not options[name][-1]]
        lost = worth.without(graph, droppable, blocks, samples, context)
        for index, name in enumerate(options):
            if name in lost:
                errors = np.append(rankings[index].errors[:-1], lost[name])
                rankings[index] = replace(rankings[index], errors=errors)
        return Choice(
            graph, traced, groups, rankings, list(options.values()), context, [owners.get(key) for key in options]
        )

    def dropped(self, state: Sequence[int]) -> list[Block]:
        """The blocks that are left out."""
        pairs = zip(self.blocks, self.widths(state), strict=True)
        return [block for block, width in pairs if block is not None and not width]

    def removed(self, state: Sequence[int]) -> np.ndarray:
        """The ids of the channels that go, without those of blocks that go as a whole."""
        widths = self.widths(state)
        lost = [each.ids[: len(each.ids) - width] for each, width in zip(self.rankings, widths, strict=True) if width]
        return np.concatenate([np.zeros(0, np.int64), *lost])

    def hollow(self, state: Sequence[int]) -> gs.Graph:
        """The network with these widths, and with weights that take no memory."""
        made = graphs.copy(self.graph)
        channels.remove(made, self.traced, self.removed(state), hollow=True)
        branches.leave_out(made, [block.branch for block in self.dropped(state)])
        return made


def _options(
    graph: gs.Graph, blocks: Sequence[Block], places: Places, methods: Collection[Method], multiple: int,
    context: Context,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The widths, falling, by stage and by block, where there are several."""
    options: dict[str, np.ndarray] = {}
    for block in blocks:
        if "width" in methods and block.stage not in options:
            if reason := places.width_refusal(block):
                context.skip(block.project, reason)
            else:
                options[block.stage] = pruning.widths(places.groups[block.stage], multiple)
        if reason := places.refusal(block):
            context.skip(block.depthwise, reason)
            continue
        group = places.groups[block.name]
        widths = pruning.widths(group, multiple) if "expansion" in methods else np.array([len(group.ids)])
        droppable = "drop" in methods and not drop_refusal(block, graph)
        options[block.name] = np.append(widths, 0) if droppable else widths
    return {key: widths for key, widths in options.items() if len(widths) > 1 and places.groups[key].consumers}
