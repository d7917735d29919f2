"""The tools for authors of passes catch what they are for."""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import testing, verify
from nnc.channels import trace
from nnc.pattern import Match, NoMatch, Pattern, op, var
from nnc.rewrite import Context, Effect, Pass, PatternPass, node

TEXT = "net (float[2, 3] x) => (float y) <float[3] c> { a = Neg(x) y = Add(a, c) }"


class Flip(PatternPass):
    """Neg(x) -> another operator."""

    name: ClassVar[str] = "flip"
    effect: ClassVar[Effect] = "exact"
    pattern: ClassVar[Pattern] = op("Neg", var("x"))
    operator: str

    def rewrite(self, match: Match) -> gs.Node:
        if self.operator == "none":
            raise NoMatch("no operator")
        x = match.tensors["x"]
        return node("Sub", np.zeros(1, np.float32), x) if self.operator == "Sub" else node(self.operator, x)


class Lie(Pass):
    """Change something, and say nothing."""

    name: ClassVar[str] = "lie"
    effect: ClassVar[Effect] = "exact"
    count: int = 0

    def run(self, graph: gs.Graph, context: Context) -> int:
        graph.nodes[0].op = "Abs"
        return self.count


def test_equal_outputs_pass() -> None:
    result = testing.check(Flip(operator="Sub"), TEXT, ["Sub", "Add"])
    assert (result.changed, result.skipped) == (1, {})


@pytest.mark.parametrize(
    ("pass_", "ops", "message"),
    [
        (Flip(operator="Relu"), ["Relu", "Add"], "outputs moved"),
        (Flip(operator="Sub"), ["Abs", "Add"], "the operators are"),
        (Lie(), None, "lie changed the graph and says 0"),
        (Lie(count=1), None, "outputs moved"),
    ],
)
def test_what_is_wrong_is_said(pass_: Pass, ops: list[str] | None, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        testing.check(pass_, TEXT, ops)


def test_broken_graph_is_found() -> None:
    with pytest.raises(verify.BrokenGraph, match="Add"):
        testing.check(Flip(operator="Add"), TEXT)


def test_second_run_must_change_nothing() -> None:
    with pytest.raises(AssertionError, match="changes its own result"):
        testing.check(Lie(count=1), TEXT, exact=False)


def test_reasons() -> None:
    testing.check_unchanged(Flip(operator="none"), TEXT, "^no operator$")
    with pytest.raises(AssertionError, match="no reason fits 'another'"):
        testing.check_unchanged(Flip(operator="none"), TEXT, "another")


def test_weights_are_drawn_or_given() -> None:
    drawn = testing.weights(testing.graph(TEXT))["c"]
    np.testing.assert_array_equal(drawn, testing.weights(testing.graph(TEXT))["c"])
    assert not np.array_equal(drawn, testing.weights(testing.graph(TEXT, seed=1))["c"])
    assert testing.weights(testing.graph(TEXT, c=[1, 2, 3]))["c"].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="give the values of c"):
        testing.graph(TEXT.replace("float[3] c", "int64[3] c"))


def test_variances_are_positive() -> None:
    text = """net (float[1, 9, 2, 2] x) => (float y) <float[9] s, float[9] b, float[9] m, float[9] v>
    { y = BatchNormalization(x, s, b, m, v) }"""
    weights = testing.weights(testing.graph(text))
    assert (weights["v"] > 0).all()
    assert not (weights["s"] > 0).all()


def test_zeroed_channels_are_0_wherever_they_go() -> None:
    text = """
    net (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) <float[6, 3, 1, 1] W, float[6] B, float[2, 6, 1, 1] V>
    { c = Conv(x, W, B) r = Sigmoid(c) y = Conv(r, V) }
    """
    graph = testing.graph(text)
    channels = trace(graph)
    ids = channels.groups[0].ids[[1, 4]].tolist()
    V = testing.weights(graph)["V"].copy()
    V[:, [1, 4]] = 0
    inputs = verify.probe_inputs(graph, 0)
    expected = verify.outputs(testing.graph(text, V=V), inputs)["y"]
    found = verify.outputs(testing.zeroed(graph, channels, ids), inputs)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert verify.difference(verify.outputs(graph, inputs)["y"], found) > 0.01
    assert len(graph.nodes) == 3, "the graph itself stays as it is"
