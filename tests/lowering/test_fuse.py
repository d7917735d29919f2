"""Which nodes share a kernel, from ONNX text."""

from __future__ import annotations

import onnx
import pytest
from onnx.parser import parse_graph

from nnc import graph as graphs
from nnc import testing
from nnc.lowering.fuse import expansions, partition

TEMPLATES = frozenset({"Conv", "MaxPool"})


def groups(body: str, outputs: str = "y", inputs: str = "float[1, 8, 4, 4] x") -> list[str]:
    """The groups of a graph, each as its operators joined by "+"; W is a 1x1 convolution of 8 channels."""
    ends = ", ".join(f"float[1, 8, 4, 4] {name}" for name in outputs.split())
    weights = ", ".join(["0.5"] * 64)
    text = f"net ({inputs}) => ({ends}) <float[8, 8, 1, 1] W = {{{weights}}}, float k = {{2.0}}> {{ {body} }}"
    model = onnx.helper.make_model(parse_graph(text), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return ["+".join(node.op for node in group.nodes) for group in partition(graphs.from_model(model), TEMPLATES)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Conv(x, W)  y = Relu(a)", ["Conv+Relu"]),
        ("a = Conv(x, W)  b = Mul(a, k)  c = Sigmoid(b)  y = Neg(c)", ["Conv+Mul+Sigmoid+Neg"]),
        # A value that two nodes of the group read.
        ("a = Conv(x, W)  b = Sigmoid(a)  y = Mul(a, b)", ["Conv+Sigmoid+Mul"]),
        ("a = Conv(x, W)  b = Add(a, k)  c = Clip(b)  y = Mul(a, c)", ["Conv+Add+Clip+Mul"]),
        # A residual joins the convolution that comes last.
        ("a = Conv(x, W)  b = Conv(a, W)  y = Add(a, b)", ["Conv", "Conv+Add"]),
        ("a = Conv(x, W)  b = Conv(x, W)  c = Add(a, b)  y = Relu(c)", ["Conv", "Conv+Add+Relu"]),
        # A value that somebody else needs has to be stored.
        ("a = Conv(x, W)  b = Softmax(a)  y = Add(a, b)", ["Conv", "Softmax", "Add"]),
        # Not elementwise, or of another shape.
        ("a = Conv(x, W)  y = Softmax(a)", ["Conv", "Softmax"]),
        ("a = Relu(x)  b = Neg(a)  y = Abs(b)", ["Relu+Neg+Abs"]),
    ],
)
def test_groups(body: str, expected: list[str]) -> None:
    assert sorted(groups(body)) == sorted(expected)


def test_an_output_of_the_graph_ends_its_group() -> None:
    assert groups("a = Conv(x, W)  y = Relu(a)", "a y") == ["Conv", "Relu"]


def test_a_broadcast_does_not_join() -> None:
    body = "a = MaxPool<kernel_shape = [4, 4]>(x)  y = Add(a, x)"
    assert groups(body) == ["MaxPool", "Add"]


def test_a_group_runs_after_its_last_operand() -> None:
    body = "a = Conv(x, W)  b = MaxPool<kernel_shape = [1, 1]>(x)  c = MaxPool<kernel_shape = [1, 1]>(b)  y = Add(a, c)"
    assert groups(body) in (["MaxPool", "MaxPool", "Conv+Add"], ["Conv", "MaxPool", "MaxPool+Add"])


def test_pairs_are_found_where_a_shape_is_open() -> None:
    text = """net (float[1, 8, 4, 4] x, int64[4] size) => (float[1, 8, h, w] y)
        <float[8, 8, 1, 1] W, float[8, 1, 3, 3] D> {
            r = Resize(x, , , size)
            a = Conv(r, W)
            y = Conv<pads = [1, 1, 1, 1], group = 8>(a, D)
        }"""
    graph = testing.graph(text)
    ((first, second),) = expansions(graph, partition(graph, TEMPLATES))
    assert (first.root.outputs[0].name, second.root.outputs[0].name) == ("a", "y")
