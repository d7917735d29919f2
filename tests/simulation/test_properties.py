"""What must hold for every roofline, whatever the figures: more work is never faster, a better machine never slower."""

import math
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import target
from nnc.simulation.analytic import predict
from nnc.target import Target

SPECS = [f"{name}:{unit.name}" for name in target.names() for unit in target.load(name).units]
TARGETS = st.sampled_from([target.load(spec) for spec in SPECS])


class Conv(NamedTuple):
    """A convolution that keeps the size of its input."""

    channels: int
    filters: int
    size: int
    kernel: int

    def graph(self, layers: int = 1) -> gs.Graph:
        """The convolution, followed by others of its filters."""
        x = gs.Variable("x", np.float32, (1, self.channels, self.size, self.size))
        nodes, read = [], x
        for index in range(layers):
            shape = (self.filters, read.shape[1], self.kernel, self.kernel)
            # Broadcast from one number: the weights of the largest layers would fill the memory.
            weights = gs.Constant(f"w{index}", np.broadcast_to(np.float32(1), shape))
            written = gs.Variable(f"y{index}", np.float32, (1, self.filters, self.size, self.size))
            attributes = {"pads": [self.kernel // 2] * 4, "kernel_shape": [self.kernel] * 2}
            nodes.append(gs.Node("Conv", f"conv{index}", attributes, [read, weights], [written]))
            read = written
        return gs.Graph(nodes, [x], [read])


CONVS = st.builds(Conv, st.integers(1, 512), st.integers(1, 512), st.integers(1, 128), st.sampled_from((1, 3, 5)))


def milliseconds(graph: gs.Graph, machine: Target, threads: int | None = None) -> float:
    latency = predict(graph, machine, threads).latency_ms
    assert math.isfinite(latency)
    assert latency > 0
    return latency


@given(CONVS, TARGETS, st.sampled_from(Conv._fields), st.integers(1, 64))
@settings(max_examples=100, deadline=None)
def test_more_work_is_never_faster(conv: Conv, machine: Target, figure: str, more: int) -> None:
    more = 2 * more if figure == "kernel" else more  # kernels stay odd
    larger = conv._replace(**{figure: getattr(conv, figure) + more})
    assert milliseconds(larger.graph(), machine) >= milliseconds(conv.graph(), machine)


@given(CONVS, TARGETS)
@settings(max_examples=50, deadline=None)
def test_another_layer_takes_more_time(conv: Conv, machine: Target) -> None:
    one, two = (predict(conv.graph(layers), machine) for layers in (1, 2))
    assert two.latency_ms > one.latency_ms
    assert two.peak_activation_bytes >= one.peak_activation_bytes


def with_cluster(machine: Target, figure: str, factor: float) -> Target:
    """The target with one figure of every cluster multiplied."""
    clusters = []
    for cluster in machine.unit.clusters:
        value = getattr(cluster, figure)
        scaled = {key: each * factor for key, each in value.items()} if isinstance(value, dict) else value * factor
        clusters.append(cluster.model_copy(update={figure: scaled}))
    return machine.model_copy(update={"unit": machine.unit.model_copy(update={"clusters": tuple(clusters)})})


def improved(machine: Target, figure: str, factor: float) -> Target:
    match figure:
        case "dram":
            dram = machine.dram.model_copy(update={"gbps": machine.dram.gbps * factor})
            return machine.model_copy(update={"dram": dram})
        case "l3_bytes" | "l3_gbps":
            value = getattr(machine.unit, figure)
            unit = machine.unit.model_copy(update={figure: value and value * factor})
            return machine.model_copy(update={"unit": unit})
        case "kernel_us" | "sync_us" | "network_us":
            better = {
                dtype: each.model_copy(update={figure: getattr(each, figure) / factor})
                for dtype, each in machine.unit.efficiency.items()
            }
            return machine.model_copy(update={"unit": machine.unit.model_copy(update={"efficiency": better})})
    return with_cluster(machine, figure, factor)


FIGURES = [
    "clock_ghz", "macs_per_cycle", "l2_bytes", "l2_bytes_per_cycle", "l3_bytes", "l3_gbps", "dram", "kernel_us",
    "sync_us", "network_us",
]  # fmt: skip


@pytest.mark.parametrize("figure", FIGURES)
@given(CONVS, TARGETS, st.integers(2, 64))
@settings(max_examples=25, deadline=None)
def test_a_better_machine_is_never_slower(figure: str, conv: Conv, machine: Target, factor: int) -> None:
    graph = conv.graph(2)
    assert milliseconds(graph, improved(machine, figure, factor)) <= milliseconds(graph, machine)


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_counts_somewhere(figure: str) -> None:
    """Bound by dispatch, compute, memory and caches, on every unit: improving the figure makes one layer faster."""
    shapes = (Conv(1, 1, 8, 1), Conv(64, 64, 56, 3), Conv(512, 512, 1, 1), Conv(4, 4, 160, 1))
    machines = [target.load(spec) for spec in SPECS]
    pairs = [
        (milliseconds(conv.graph(2), machine), milliseconds(conv.graph(2), improved(machine, figure, 64)))
        for conv in shapes
        for machine in machines
    ]
    assert any(better < before for before, better in pairs)


@given(CONVS)
@settings(max_examples=25, deadline=None)
def test_equal_cores_never_hinder_each_other_on_large_layers(conv: Conv) -> None:
    """What more threads save is more than what they cost, once a layer takes far longer than a fork and join."""
    machine = target.load("jetson-xavier")
    one, eight = (milliseconds(conv.graph(), machine, threads) for threads in (1, 8))
    if one > 1.0:
        assert eight < one
