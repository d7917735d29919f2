"""The driver: it names, splices, orders and cleans up, whatever a rewrite returns."""

import itertools
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import testing, verify
from nnc.pattern import Match, NoMatch, Pattern, const, op, var
from nnc.rewrite import Driver, Effect, PatternPass, node


class Rewrite(PatternPass):
    """Replace Neg by what a test says."""

    name: ClassVar[str] = "rewrite"
    effect: ClassVar[Effect] = "approximate"
    pattern: ClassVar[Pattern] = op("Neg", var("x"))


class Twice(Rewrite):
    """Neg(x) -> Mul(Relu(Add(x, 1)), [2, 3, 4])."""

    def rewrite(self, match: Match) -> gs.Node:
        return node("Mul", node("Relu", node("Add", match.tensors["x"], 1.0)), np.array([2, 3, 4], np.float32))


class Drop(Rewrite):
    """Neg(x) -> x."""

    def rewrite(self, match: Match) -> gs.Tensor:
        return match.tensors["x"]


def test_chains_are_named_after_what_they_replace() -> None:
    result = testing.check(Twice(), "net (float[2, 3] x) => (float y) { y = Neg(x) }", ["Add", "Relu", "Mul"])
    assert [each.name for each in result.graph.nodes] == ["y/Add", "y/Relu", "y"]
    assert [tensor.name for tensor in graphs.constants(result.graph)] == ["y/Add.B", "y.B"]
    assert [each.outputs[0].shape for each in result.graph.nodes] == [[2, 3]] * 3
    assert [each.outputs[0].dtype for each in result.graph.nodes] == [np.float32] * 3
    assert testing.weights(result.graph)["y/Add.B"].dtype == np.float32


def test_two_matches_with_unnamed_nodes_and_names_that_are_taken() -> None:
    text = """net (float[2, 3] x) => (float y) <float[3] c> {
        a = Neg(x) b = Neg(a) d = Add(b, c) e = Relu(d) y = Sub(e, c) }"""
    before = testing.graph(text)
    before.nodes[2].name, before.nodes[2].outputs[0].name = "b/Add", "b/Add"
    result = testing.check(Twice(), before, exact=False)
    assert len({each.name for each in result.graph.nodes}) == len(result.graph.nodes) == 9


def test_node_used_twice_in_a_draft_is_made_once() -> None:
    class Square(Rewrite):
        """Neg(x) -> Mul(Relu(x), Relu(x))."""

        def rewrite(self, match: Match) -> gs.Node:
            relu = node("Relu", match.tensors["x"])
            return node("Mul", relu, relu)

    testing.check(Square(), "net (float[2, 3] x) => (float y) { y = Neg(x) }", ["Relu", "Mul"], exact=False)


def test_draft_that_is_dropped_leaves_no_trace() -> None:
    class Hesitate(Rewrite):
        """Make nodes, and think again."""

        def rewrite(self, match: Match) -> gs.Node:
            node("Relu", node("Add", match.tensors["x"], 1.0))
            raise NoMatch("thought again")

    before = testing.graph("net (float[3] x) => (float y) { a = Abs(x) y = Neg(a) }")
    result = testing.check_unchanged(Hesitate(), before, "thought again")
    assert len(result.graph.nodes[0].outputs[0].outputs) == 1


@pytest.mark.parametrize(
    ("text", "ops"),
    [
        ("net (float[3] x) => (float y) { a = Relu(x) y = Neg(a) }", ["Relu"]),
        ("net (float[3] x) => (float y, float z) { a = Relu(x) y = Neg(a) z = Abs(a) }", ["Relu", "Abs"]),
        ("net (float[3] x) => (float y) { a = Relu(x) b = Neg(a) c = Neg(b) y = Add(c, a) }", ["Relu", "Add"]),
        ("net (float[3] x) => (float y) { a = Neg(x) y = Add(a, a) }", ["Add"]),
    ],
)
def test_readers_and_outputs_move_to_the_tensor(text: str, ops: list[str]) -> None:
    result = testing.check(Drop(), text, ops, exact=False)
    assert result.graph.outputs[0].name == "y"


def test_input_and_output_are_not_joined() -> None:
    testing.check_unchanged(Drop(), "net (float[3] x) => (float y) { y = Neg(x) }", "'x' can't take its name")


def test_producers_that_nobody_reads_any_more_go() -> None:
    class Zero(Rewrite):
        """Neg(x) -> Neg's input is not needed."""

        pattern: ClassVar[Pattern] = op("Mul", var("x"), const("c"))

        def rewrite(self, match: Match) -> gs.Node:
            return node("ConstantOfShape", np.array(match.root.outputs[0].shape, np.int64))

    text = "net (float[3] x) => (float y) <float c> { a = Relu(x) b = Abs(a) d = Mul(b, c) y = Add(d, x) }"
    testing.check(Zero(), text, ["ConstantOfShape", "Add"], exact=False)


def test_interior_with_another_reader_or_as_output_stays() -> None:
    class Pair(Rewrite):
        """Neg(Relu(x)) -> x."""

        pattern: ClassVar[Pattern] = op("Neg", op("Relu", var("x")))

        def rewrite(self, match: Match) -> gs.Node:
            return node("Abs", match.tensors["x"])

    text = "net (float[3] x) => (float y%s) { a = Relu(x) b = Neg(a) c = Abs(%s) y = Add(b, c) }"
    testing.check(Pair(), text % ("", "b"), ["Abs", "Abs", "Add"], exact=False)
    testing.check_unchanged(Pair(), text % ("", "a"), "'a' has a second reader")
    testing.check_unchanged(Pair(), text % (", float[3] a", "b"), "'a' is an output of the graph")


def test_further_output_that_is_read_stays() -> None:
    class First(Rewrite):
        """Split(x) -> x."""

        pattern: ClassVar[Pattern] = op("Split")

        def rewrite(self, match: Match) -> gs.Tensor:
            raise AssertionError("not reached")

    text = "net (float[4] x) => (float y) <int64[2] s = {2, 2}> { a, b = Split(x, s) y = Add(a, b) }"
    testing.check_unchanged(First(), text, "'b', its further output, is read")


def test_included_and_excluded_by_name() -> None:
    text = "net (float[3] x) => (float y) { a = Neg(x) b = Neg(a) c = Neg(b) y = Abs(c) }"
    result = testing.check(Drop(include=("a", "b"), exclude=("b",)), text, ["Neg", "Neg", "Abs"], exact=False)
    assert result.skipped == {"b": "excluded by the recipe", "c": "excluded by the recipe"}


def test_reasons_are_those_of_the_last_sweep() -> None:
    class Patient(Rewrite):
        """Drop a Neg behind Relu only; others become one in the next sweep."""

        def rewrite(self, match: Match) -> gs.Tensor | gs.Node:
            if match.tensors["x"].inputs and match.tensors["x"].inputs[0].op == "Relu":
                return match.tensors["x"]
            raise NoMatch("not behind Relu")

    text = "net (float[3] x) => (float y) { a = Relu(x) b = Neg(a) c = Neg(b) d = Abs(c) e = Neg(d) y = Abs(e) }"
    result = testing.check(Patient(), text, ["Relu", "Abs", "Neg", "Abs"], exact=False)
    assert result.skipped == {"e": "not behind Relu"}


def test_no_match_without_a_message_is_not_reported() -> None:
    class Silent(Rewrite):
        """Look and leave."""

        def rewrite(self, match: Match) -> gs.Tensor:
            raise NoMatch

    result = testing.run(Silent(), "net (float[3] x) => (float y) { y = Neg(x) }")
    assert (result.changed, result.skipped) == (0, {})


def test_pass_that_rewrites_its_own_results_ends() -> None:
    class Again(Rewrite):
        """Neg(x) -> Neg(x)."""

        def rewrite(self, match: Match) -> gs.Node:
            return node("Neg", match.tensors["x"])

    with pytest.raises(RuntimeError, match="it rewrites its own results"):
        testing.run(Again(), "net (float[3] x) => (float y) { y = Neg(x) }")


def test_what_is_no_node_and_no_tensor() -> None:
    class Wrong(Rewrite):
        """Return a node that graphsurgeon made."""

        def rewrite(self, match: Match) -> gs.Node:
            return gs.Node("Abs")

    with pytest.raises(TypeError, match=r"a node made with nnc\.rewrite\.node"):
        testing.run(Wrong(), "net (float[3] x) => (float y) { y = Neg(x) }")


def test_optional_inputs_and_other_domains() -> None:
    class Other(Rewrite):
        """Neg(x) -> Clip(x, , 6) -> my.ops.Plugin."""

        def rewrite(self, match: Match) -> gs.Node:
            clip = node("Clip", match.tensors["x"], None, 6.0)
            return node("Plugin", clip, domain="my.ops", sizes=[], text="t")

    result = testing.run(Other(), "net (float[3] x) => (float y) { y = Neg(x) }")
    model = graphs.to_model(result.graph)
    assert list(model.graph.node[0].input) == ["x", "", "y/Clip.max"]
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 17, "my.ops": 1}


def test_driver_keeps_thousands_of_rewrites_in_order() -> None:
    chain = " ".join(
        f"v{index + 1} = {op_}(v{index})"
        for index, op_ in zip(range(1500), itertools.cycle(["Neg", "Abs"]), strict=False)
    )
    before = testing.graph(f"net (float[3] x) => (float y) {{ v0 = Relu(x) {chain} y = Abs(v1500) }}")
    result = testing.run(Drop(), before)
    assert result.changed == 750
    verify.check_invariants(result.graph)


def test_detach_takes_a_long_branch_without_recursion() -> None:
    chain = " ".join(f"v{index + 1} = Abs(v{index})" for index in range(3000))
    graph = testing.graph(f"net (float[3] x) => (float y) {{ v0 = Relu(x) {chain} y = Neg(x) }}")
    driver = Driver(graph)
    driver.detach(graph.nodes[-2])
    driver.tidy()
    assert [each.op for each in graph.nodes] == ["Neg"]
