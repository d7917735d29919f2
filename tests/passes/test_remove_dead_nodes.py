"""remove-dead-nodes: what no output depends on."""

from nnc import graph as graphs
from nnc import testing
from nnc.passes.remove_dead_nodes import RemoveDeadNodes


def test_dead_branch_goes_with_its_weights() -> None:
    text = "net (float[3] x, float[3] z) => (float y) <float[3] c> { a = Relu(x) b = Add(z, c) d = Neg(b) y = Neg(a) }"
    result = testing.check(RemoveDeadNodes(), text, ops=["Relu", "Neg"])
    assert result.changed == 2
    assert [tensor.name for tensor in result.graph.inputs] == ["x", "z"]
    assert graphs.constants(result.graph) == []


def test_one_output_of_several_is_enough() -> None:
    text = "net (float[4] x) => (float y) <int64[2] h = {2, 2}> { y, b = Split(x, h) c = Neg(b) }"
    testing.check(RemoveDeadNodes(), text, ops=["Split"])


def test_nothing_dead() -> None:
    assert testing.check(RemoveDeadNodes(), "net (float[3] x) => (float y) { a = Relu(x) y = Neg(a) }").changed == 0


def test_long_chain() -> None:
    chain = " ".join(f"v{index + 1} = Neg(v{index})" for index in range(3000))
    text = f"net (float[3] x) => (float y) {{ v0 = Relu(x) {chain} y = Neg(x) }}"
    testing.check(RemoveDeadNodes(), text, ops=["Neg"])
