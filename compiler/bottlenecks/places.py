"""Which channel groups the widths of blocks are, and why some of them stay as they are."""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from nnc.bottlenecks.blocks import Block
from nnc.bottlenecks.changes import Wanted
from nnc.channels import Channels, Group
from nnc.rewrite import Context


class Places:
    """The channel groups of the blocks of a graph, in which `traced` was traced."""

    def __init__(self, blocks: Sequence[Block], traced: Channels) -> None:
        self._blocks, self._traced = blocks, traced
        self._owners = {int(one): group for group in traced.groups for one in group.ids}
        stages = {block.stage: self._group(block.project) for block in blocks}
        own = {block.name: self._group(block.depthwise) for block in blocks if block.expand}
        shared = [id(group) for group in (*stages.values(), *own.values())]
        self.groups: dict[str, Group] = {
            key: group for key, group in {**stages, **own}.items() if group and shared.count(id(group)) == 1
        }
        """By stage that of what its blocks give, by block that of its hidden channels; without those that stay."""

    def of(self, wanted: Wanted) -> dict[str, tuple[Group, int]]:
        """The groups of which other widths are wanted, and these, by stage or block."""
        return {key: (self.groups[key], width) for key, width in wanted.channels.items() if key in self.groups}

    def refusal(self, block: Block) -> str:
        """Why the hidden channels of a block stay, or nothing."""
        if block.name in self.groups:
            return ""
        if block.expand is None:
            return "it doesn't expand what it reads: its hidden channels are those of the layer before"
        return self._traced.fixed.get(block.expand.name, "its hidden channels lie in other layers too")

    def width_refusal(self, block: Block) -> str:
        """Why what the blocks of a stage give stays, or nothing."""
        if block.stage in self.groups:
            return ""
        return self._traced.fixed.get(block.project.name, "what it gives lies in layers that lack some of it")

    def tell(self, wanted: Wanted, graph: gs.Graph, context: Context) -> None:
        """Say what can't be done of what is wanted."""
        for block in self._blocks:
            reasons = [
                self.refusal(block) if block.name in wanted.hidden else "",
                self.width_refusal(block) if block.stage in wanted.widths else "",
                drop_refusal(block, graph) if block in wanted.dropped else "",
            ]
            for reason in filter(None, reasons):
                context.skip(block.depthwise, reason)

    def _group(self, node: gs.Node) -> Group | None:
        """The group of which all that a layer writes is, each channel once."""
        ids = self._traced.written(node)
        group = self._owners.get(int(ids[0]))
        return group if group and np.array_equal(np.sort(ids), np.sort(group.ids)) else None


def drop_refusal(block: Block, graph: gs.Graph) -> str:
    """Why a block can't be left out, or nothing."""
    if block.add is None:
        return "it has no shortcut that could stand for it"
    if any(block.given is tensor for tensor in graph.outputs):
        return "what it gives is an output of the graph"
    return ""
