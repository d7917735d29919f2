"""Widths of groups: what is asked of the network is asked once, and a budget that can be kept is."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import channels, pipeline, target, testing
from nnc.compression import importance, pruning
from nnc.compression.pruning import Metric, Pruning

CHAIN = """
net (float[1, 3, 8, 8] image) => (float scores)
<float[16, 3, 3, 3] U, float[12, 16, 3, 3] V, float[10, 12] W>
{
    a = Conv(image, U) r = Relu(a) b = Conv(r, V) s = Relu(b) p = GlobalAveragePool(s) f = Flatten(p)
    scores = Gemm<transB = 1>(f, W)
}
"""


def prepared(kind: type[Pruning], *options: Sequence[int]) -> Pruning:
    """The first groups of CHAIN with these widths to choose from."""
    graph = testing.graph(CHAIN)
    context, traced = pipeline.Context(target.load("x86"), imported=graph), channels.trace(graph)
    groups = traced.groups[: len(options)]
    rankings = importance.rank("l2", graph, traced, groups, None, context)
    return kind(graph, traced, groups, rankings, [np.array(each) for each in options], context)


class NarrowIsSlow(Pruning):
    """Of the widths 16, 8 and 4 the narrowest is slower than that above it."""

    def cost(self, metric: Metric, state: Sequence[int]) -> float:
        if metric == "latency":
            return {16: 3.0, 8: 1.0, 4: 2.0}[int(self.widths(state)[0])]
        return super().cost(metric, state)


def test_a_width_that_is_slower_goes_where_others_keep_the_budget() -> None:
    plan = prepared(NarrowIsSlow, [16, 8, 4])
    assert plan.widths(plan.uniform([0.3]).state) == [8]


@pytest.mark.parametrize("way", ["within", "uniform_within"])
def test_a_width_that_is_slower_stays_where_only_it_keeps_the_budget(way: str) -> None:
    plan = prepared(NarrowIsSlow, [16, 8, 4])
    solution = getattr(plan, way)("channels", 0.25)
    assert plan.widths(solution.state) == [4]
    assert solution.share == 0.25


def test_a_network_is_pruned_once_to_tell_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[tuple[int, ...]] = Counter()
    hollow = pruning.Pruning.hollow

    def counted(plan: Pruning, state: Sequence[int]) -> gs.Graph:
        made[tuple(plan.widths(state).tolist())] += 1
        return hollow(plan, state)

    monkeypatch.setattr(Pruning, "hollow", counted)
    plan = prepared(Pruning, range(16, 0, -1), range(12, 0, -1))
    solution = plan.within("macs", 0.5)
    assert plan.cost("macs", solution.state) <= 0.5 * plan.cost("macs", [0, 0])
    assert max(made.values()) <= 2, "once for the MACs, once for the latency"
