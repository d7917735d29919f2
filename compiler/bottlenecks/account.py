"""What became of the blocks of a graph: the decision per block that `nnc plan` and the report show."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from nnc.bottlenecks.blocks import Block
from nnc.measure import macs, params
from nnc.rewrite import Context


@dataclass(frozen=True)
class Figures:
    """Of a block."""

    macs: int
    params: int
    latency_ms: float
    inputs: int
    hidden: int
    width: int


@dataclass(frozen=True)
class Before:
    """What the blocks of a graph were before it changed."""

    blocks: Sequence[Block]
    figures: Sequence[Figures]
    nodes: Sequence[frozenset[str]]
    """Names of the nodes of each block."""

    @staticmethod
    def of(graph: gs.Graph, blocks: Sequence[Block], context: Context) -> "Before":
        nodes = [frozenset(node.name for node in block.nodes) for block in blocks]
        pairs = zip(blocks, nodes, strict=True)
        latencies = context.predict(graph).by_layer
        nodes_of = {node.name: node for node in graph.nodes}
        figures = [_figures(block, [nodes_of[name] for name in sorted(names)], latencies) for block, names in pairs]
        return Before(blocks, figures, nodes)

    def explain(self, graph: gs.Graph, context: Context) -> int:
        """Tell what each block is in the graph, which was changed in place; returns how many changed."""
        latencies, left = context.predict(graph).by_layer, {node.name: node for node in graph.nodes}
        changed = 0
        for block, old, names in zip(self.blocks, self.figures, self.nodes, strict=True):
            nodes = [left[name] for name in sorted(names) if name in left]
            new = _figures(block, nodes, latencies) if block.project.name in left else Figures(0, 0, 0.0, 0, 0, 0)
            context.decide(
                block.title, _choice(old, new), macs=(old.macs, new.macs), params=(old.params, new.params),
                latency_ms=(old.latency_ms, new.latency_ms),
            )  # fmt: skip
            changed += (old.macs, old.params) != (new.macs, new.params)
        return changed


def _figures(block: Block, nodes: Sequence[gs.Node], latencies: dict[str, float]) -> Figures:
    return Figures(
        macs=sum(map(macs, nodes)),
        params=sum(map(params, nodes)),
        latency_ms=sum(latencies.get(node.name, 0.0) for node in nodes),
        inputs=int(block.convolutions[0].inputs[0].shape[1]),
        hidden=int(block.depthwise.outputs[0].shape[1]),
        width=int(block.project.outputs[0].shape[1]),
    )


def _choice(old: Figures, new: Figures) -> str:
    """'expansion 6 -> 4, 24 -> 16 channels'."""
    if not new.width:
        return "left out"
    said = []
    if (old.hidden, old.inputs) != (new.hidden, new.inputs):
        before, after = f"{old.hidden / old.inputs:.3g}", f"{new.hidden / new.inputs:.3g}"
        said.append(f"expansion {before} -> {after}" if before != after else f"{old.hidden} -> {new.hidden} hidden")
    if old.width != new.width:
        said.append(f"{old.width} -> {new.width} channels")
    return ", ".join(said) or "keep"
