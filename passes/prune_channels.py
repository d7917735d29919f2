"""prune-channels: the channels that a network misses least are taken out."""

from typing import ClassVar

import onnx_graphsurgeon as gs
from pydantic import Field

from nnc.compression.structured import Start, StructuredPruning
from nnc.rewrite import Context


class PruneChannels(StructuredPruning):
    """Remove the channels that a network misses least, with everything that is tied to them.

    Conv(Relu(Conv(x, W [64, C, 3, 3])), V [K, 64, 3, 3])  ->  Conv(Relu(Conv(x, W [40, C, 3, 3])), V [K, 40, 3, 3])

    Approximate. Channels that must go together (residual sums, concatenations, depthwise and grouped convolutions,
    shuffles, gates, shared weights) do; `nnc inspect --groups` shows them. With calibration data the layers behind are
    refitted by least squares, without training. Declines where channels reach an output of the graph or can't be
    traced.

    Reference: He, Zhang, Sun, Channel pruning for accelerating very deep neural networks, ICCV 2017; Fang et al.,
    DepGraph: towards any structural pruning, CVPR 2023.
    """

    name: ClassVar[str] = "prune-channels"

    iterations: int = Field(1, ge=1, le=100, description="steps on the way, with new scores before each")

    def run(self, graph: gs.Graph, context: Context) -> int:
        start = Start.of(graph)
        ways = [step / self.iterations for step in range(1, self.iterations + 1)]
        removed = sum(self.step(graph, context, start, self.kept**way, way == ways[0], way == 1) for way in ways)
        start.explain(graph, context)
        return removed
