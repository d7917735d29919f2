"""fold-constants: what depends on constants alone is computed once, now."""

from typing import ClassVar

import onnx_graphsurgeon as gs
from pydantic import Field

from nnc.model import folding
from nnc.pattern import NoMatch
from nnc.rewrite import Context, Effect, Pass


class FoldConstants(Pass):
    """Replace nodes that read nothing but constants by their values.

    Transpose(W)  ->  W'      computed in onnxruntime

    Exact. Declines for DequantizeLinear, whose output takes more bits than the weights it reads, for random operators
    and those of other domains, for outputs of the graph, and where the file would grow by more than `growth`.

    Reference: Aho, Lam, Sethi and Ullman, Compilers, 2nd edition, section 8.5.4.
    """

    name: ClassVar[str] = "fold-constants"
    effect: ClassVar[Effect] = "exact"

    growth: int = Field(
        65536, ge=0, description="bytes by which the value of a node may exceed what it is computed from"
    )

    def run(self, graph: gs.Graph, context: Context) -> int:
        foldable = folding.Foldable(graph, self.growth)
        for node in graph.nodes:
            try:
                foldable.add(node)
            except NoMatch as reason:
                context.skip(node, str(reason))
        return folding.fold(graph, foldable.nodes, context) if foldable.nodes else 0
