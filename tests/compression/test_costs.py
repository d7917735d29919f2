"""The cost of a layer from four numbers is what the layer or its chain costs at every width."""

from __future__ import annotations

import numpy as np
import pytest

from nnc import channels, factorize, measure, networks, target, testing
from nnc import graph as graphs
from nnc.compression import costs, pruning, reconstruct
from nnc.compression.budget import Metric
from nnc.layers import Layer
from nnc.rewrite import Driver
from nnc.simulation.analytic import predict

X86 = target.load("x86")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2", "densenet201", "squeezenet1_1"])
@pytest.mark.parametrize("metric", ["macs", "params"])
def test_narrower_groups_cost_what_the_pruned_network_does(name: str, metric: Metric) -> None:
    graph = graphs.from_model(networks.build(name, input_size=64, classes=10, width=0.25))
    traced = channels.trace(graph)
    layers = costs.layers(graph, traced, traced.groups, metric)
    rng = np.random.default_rng(0)
    widths = np.array([rng.integers(1, len(group.ids) + 1) for group in traced.groups])
    pruned = graphs.copy(graph)
    lost = [group.ids[width:] for group, width in zip(traced.groups, widths, strict=True)]
    channels.remove(pruned, traced, np.concatenate(lost).tolist(), hollow=True)
    by_name = {node.name: node for node in pruned.nodes}
    expected = sum(
        measure.macs(by_name[name]) if metric == "macs" else np.prod(by_name[name].inputs[1].shape)
        for name in layers.names
    )
    assert layers.total(widths, layers.dense) == pytest.approx(expected)


@pytest.mark.parametrize("board", ["x86", "qcs605", "jetson-xavier:gpu"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_latencies_at_other_widths_are_near_those_predicted(name: str, board: str) -> None:
    """Between the widths that were looked at, too, and nearer than in proportion to the computation."""
    graph = graphs.from_model(networks.build(name, input_size=64, classes=10))
    traced, unit = channels.trace(graph), target.load(board)
    groups = [group for group in traced.groups if group.consumers]
    options = [pruning.widths(group, unit.unit.channel_multiple) for group in groups]

    def by_layer(widths: np.ndarray) -> dict[str, float]:
        pruned = graphs.copy(graph)
        lost = [group.ids[width:] for group, width in zip(groups, widths, strict=True)]
        channels.remove(pruned, traced, np.concatenate(lost).tolist(), hollow=True)
        return predict(pruned, unit).by_layer

    def at(state: list[int]) -> np.ndarray:
        return np.array([each[option] for each, option in zip(options, state, strict=True)])

    seen = costs.narrowed(options, lambda state: by_layer(at(state)))
    layers = costs.layers(graph, traced, groups, "latency", seen)
    (first, whole), *_ = seen
    computation = costs.layers(graph, traced, groups, "macs")
    scales = np.array([whole.get(each, 0.0) for each in layers.names]) / costs.cost(
        computation.dense, *computation.channels(first)
    )
    rng, missed = np.random.default_rng(0), []
    for _ in range(5):
        widths = at([int(rng.integers(0, len(each))) for each in options])
        times = by_layer(widths)
        expected = sum(times.get(each, 0.0) for each in layers.names)
        told = layers.total(widths, layers.dense)
        proportional = float(scales @ costs.cost(computation.dense, *computation.channels(widths)))
        assert told == pytest.approx(expected, rel=0.2)
        missed.append((abs(told - expected), abs(proportional - expected)))
    near, far = np.sum(missed, axis=0)
    assert near < far


def test_options_of_a_group_count_every_layer_that_it_touches() -> None:
    graph = graphs.from_model(networks.build("resnet18", input_size=64, classes=10, width=0.25))
    traced = channels.trace(graph)
    layers = costs.layers(graph, traced, traced.groups, "macs")
    widths = np.array([len(group.ids) for group in traced.groups])
    for group in range(len(widths)):
        options = np.array([widths[group], widths[group] // 2, 1])
        found = layers.of_group(group, options, widths, layers.dense)
        totals = [
            layers.total(np.where(np.arange(len(widths)) == group, each, widths), layers.dense) for each in options
        ]
        assert found - found[0] == pytest.approx(np.array(totals) - totals[0])


NET = """
net (float[2, 8, 9, 9] x) => (float[2, 12, 5, 5] y)
<float[12, %d, 3, 3] W>
{ y = Conv<pads = [1, 1, 1, 1], strides = [2, 2], group = %d>(x, W) }
"""


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "stages",
    [
        lambda shape: factorize.svd_stages(shape, 3),
        lambda shape: factorize.spatial_stages(shape, 3),
        lambda shape: factorize.spatial_stages(shape, 3, False),
        lambda shape: factorize.tucker_stages(shape, (2, 3)),
        lambda shape: factorize.cp_stages(shape, 5),
    ],
)
def test_a_chain_costs_what_its_nodes_do(stages, groups: int) -> None:  # type: ignore[no-untyped-def]
    graph = testing.graph(NET % (8 // groups, groups))
    layer = Layer.of(graph.nodes[0])
    assert layer is not None
    parts = stages((12 // groups, 8 // groups, 3, 3))
    whole = [factorize.Stage((groups * s.shape[0], *s.shape[1:]), groups * s.group, s.axes) for s in parts]
    found = {m: costs.coefficients(layer, whole, m, 2.0, 0.5) for m in ("macs", "params", "latency")}  # type: ignore[arg-type]
    weights = [np.zeros(stage.shape, np.float32) for stage in whole]
    driver = Driver(graph)
    driver.replace(layer.node, reconstruct.chain(layer, whole, weights, np.zeros(12)))
    driver.tidy()
    read, written = np.array(8.0), np.array(12.0)
    assert costs.cost(found["macs"], read, written) == pytest.approx(sum(map(measure.macs, graph.nodes)))
    assert costs.cost(found["params"], read, written) == pytest.approx(sum(map(measure.params, graph.nodes)))
    assert costs.cost(found["latency"], read, written) == pytest.approx(2.0)
    assert costs.cost(found["latency"], 0 * read, 0 * written) >= 0.5 * len(whole)
