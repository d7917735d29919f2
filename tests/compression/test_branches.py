"""Residual branches are found whatever they compute, and what is told of a network without one is true."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import measure, networks, pipeline, target, testing
from nnc.compression import branches
from nnc.session import Session

W = np.random.default_rng(0).normal(0, 0.3, (4, 4, 3, 3)).astype(np.float32)
NET = """
net (float[2, 4, 6, 6] x) => (float[2, 4, 6, 6] y%s)
<float[4, 4, 3, 3] W>
{
    a = Relu(x)
    b = Conv<pads = [1, 1, 1, 1]>(a, W)
    %s
    y = Conv<pads = [1, 1, 1, 1]>(d, W)
}
"""


def net(body: str, outputs: str = "") -> gs.Graph:
    return testing.graph(NET % (outputs, body), W=W)


@pytest.mark.parametrize(
    ("body", "nodes"),
    [
        ("s = Add(a, b)  d = Relu(s)", {"b"}),
        ("s = Add(b, a)  d = Relu(s)", {"b"}),
        ("r = Relu(b)  c = Conv<pads = [1, 1, 1, 1]>(r, W)  d = Sum(c, a)", {"b", "r", "c"}),
        ("g = GlobalAveragePool(b)  m = Mul(b, g)  d = Add(a, m)", {"b", "g", "m"}),
    ],
)
def test_what_is_computed_from_a_tensor_and_added_to_it_is_a_branch(body: str, nodes: set[str]) -> None:
    graph = net(body)
    (branch,) = branches.find(graph)
    made = {node.name: node.outputs[0].name for node in graph.nodes}
    assert {made[name] for name in branch.nodes} == nodes


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("s = Relu(a)  d = Add(a, s)  unused = Relu(b)", ""),  # no layer
        ("s = Add(a, b)  c = Relu(b)  d = Add(s, c)", ""),  # read outside
        ("s = Add(a, b)  d = Relu(s)", ", float[2, 4, 6, 6] b"),  # an output of the network
        ("s = Add(a, b)  d = Relu(s)", ", float[2, 4, 6, 6] s"),
        ("g = GlobalAveragePool(b)  d = Add(a, g)", ""),  # broadcast
        ("s = Relu(x)  c = Conv<pads = [1, 1, 1, 1]>(s, W)  d = Add(c, b)", ""),  # nothing is passed on
    ],
)
def test_what_others_need_is_none(body: str, outputs: str) -> None:
    assert not branches.find(net(body, outputs))


def test_the_inner_of_nested_branches_is_found() -> None:
    graph = net("s = Add(a, b)  c = Conv<pads = [1, 1, 1, 1]>(s, W)  d = Add(c, a)")
    (branch,) = branches.find(graph)
    by_name = {node.name: node for node in graph.nodes}
    assert by_name[branch.add].outputs[0].name == "s"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_lite0", "densenet121"])
def test_networks_have_a_branch_per_block_that_keeps_the_size(name: str) -> None:
    graph = graphs.from_model(networks.build(name, input_size=64, classes=10))
    found = branches.find(graph)
    assert len(found) == {"resnet18": 5, "mobilenet_v2": 10, "efficientnet_lite0": 9, "densenet121": 0}[name]
    inside = [node for branch in found for node in branch.nodes]
    assert len(inside) == len(set(inside))


def test_without_a_branch_an_activation_is_applied_once() -> None:
    graph = net("s = Add(a, b)  d = Relu(s)")
    (branch,) = branches.find(graph)
    readers = branches.leave_out(graph, [branch])
    assert [node.op for node in graph.nodes] == ["Relu", "Conv"]
    assert graph.nodes[-1].name in readers


def test_an_activation_that_bounds_more_stays() -> None:
    graph = testing.graph(
        """
        net (float[2, 4, 6, 6] x) => (float[2, 4, 6, 6] y)
        <float[4, 4, 3, 3] W, float zero = {0}, float six = {6}>
        {
            a = Relu(x)
            b = Conv<pads = [1, 1, 1, 1]>(a, W)
            s = Add(a, b)
            d = Clip(s, zero, six)
            y = Conv<pads = [1, 1, 1, 1]>(d, W)
        }
        """,
        W=W,
    )
    branches.leave_out(graph, branches.find(graph))
    assert [node.op for node in graph.nodes] == ["Relu", "Clip", "Conv"]


def test_a_network_without_all_branches_computes_what_it_says() -> None:
    """In a row, each reading the sum of the one before: the last sum is the first input."""
    graph = net("s = Add(a, b)  c = Conv<pads = [1, 1, 1, 1]>(s, W)  t = Add(s, c)  d = Relu(t)")
    found = branches.find(graph)
    assert len(found) == 2
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32)
    whole = graphs.copy(graph)
    branches.leave_out(graph, found)
    direct = testing.graph(
        "net (float[2, 4, 6, 6] x) => (float[2, 4, 6, 6] y) <float[4, 4, 3, 3] W> "
        "{ a = Relu(x) y = Conv<pads = [1, 1, 1, 1]>(a, W) }",
        W=W,
    )
    assert np.array_equal(Session(graph).run({"x": x})["y"], Session(direct).run({"x": x})["y"])
    assert measure.measure(graph).macs == measure.measure(whole).macs // 3


def test_the_worth_of_a_branch_is_what_the_outputs_lose_without_it() -> None:
    graph = net("s = Add(a, b)  c = Conv<pads = [1, 1, 1, 1]>(s, W)  t = Add(s, c)  d = Relu(t)")
    x = np.random.default_rng(0).normal(size=(8, 2, 4, 6, 6)).astype(np.float32)
    found = branches.find(graph)
    told = branches.worth(graph, found, {"x": x}, pipeline.Context(target.load("x86")))
    assert told is not None

    def outputs(network: gs.Graph) -> np.ndarray:
        session = Session(network)
        return np.stack([session.run({"x": each})["y"] for each in x]).reshape(16, -1)

    expected = outputs(graph)
    for branch, share in zip(found, told, strict=True):
        without = graphs.copy(graph)
        branches.leave_out(without, [branch])
        lost = outputs(without) - expected
        assert share == pytest.approx(lost.var(0).sum() / expected.var(0).sum(), rel=1e-4)
