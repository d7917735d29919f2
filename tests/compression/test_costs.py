"""The cost of a layer from four numbers is what the layer or its chain costs at every width."""

from __future__ import annotations

import numpy as np
import pytest

from nnc import channels, factorize, measure, networks, target, testing
from nnc import graph as graphs
from nnc.compression import costs, reconstruct
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
    layers = costs.layers(graph, traced, traced.groups, metric, predict(graph, X86))
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


def test_options_of_a_group_count_every_layer_that_it_touches() -> None:
    graph = graphs.from_model(networks.build("resnet18", input_size=64, classes=10, width=0.25))
    traced = channels.trace(graph)
    layers = costs.layers(graph, traced, traced.groups, "macs", predict(graph, X86))
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
    found = {m: costs.coefficients(layer, whole, m, 2.0) for m in ("macs", "params", "latency")}  # type: ignore[arg-type]
    weights = [np.zeros(stage.shape, np.float32) for stage in whole]
    driver = Driver(graph)
    driver.replace(layer.node, reconstruct.chain(layer, whole, weights, np.zeros(12)))
    driver.tidy()
    read, written = np.array(8.0), np.array(12.0)
    assert costs.cost(found["macs"], read, written) == pytest.approx(sum(map(measure.macs, graph.nodes)))
    assert costs.cost(found["params"], read, written) == pytest.approx(sum(map(measure.params, graph.nodes)))
    assert costs.cost(found["latency"], read, written) == pytest.approx(2.0)
