"""The pattern language: what fits, what it binds, and what it refuses."""

import onnx_graphsurgeon as gs
import pytest

from nnc import testing
from nnc.pattern import ANY, Match, NoMatch, Pattern, const, match, number, op, through, var

TEXT = """net (float[2, 4] x, float[4, 3] z) => (float y)
<float[4, 3] W, float[3] b, float six = {6.0}, float[2] two = {2.0, 2.0}> { %s }"""


def found(pattern: Pattern, body: str) -> Match | None:
    """The match of a pattern at the last node of a graph."""
    graph = testing.graph(TEXT % body)
    return match(pattern, graph.nodes[-1], graph.opset)


GEMM = op("Gemm", var("x"), const("W"), const("b", default=0.0), name="gemm")


def test_constants_tensors_and_nodes_are_bound() -> None:
    result = found(op("Relu", GEMM), "a = Gemm(x, W, b) y = Relu(a)")
    assert result is not None
    assert result["W"].shape == (4, 3)
    assert (result.tensors["x"].name, result.nodes["gemm"].op, result.root.op) == ("x", "Gemm", "Relu")
    assert [node.op for node in result.interior] == ["Gemm"]


def test_default_stands_for_an_omitted_input() -> None:
    result = found(GEMM, "y = Gemm(x, W)")
    assert result is not None
    assert result["b"] == 0


@pytest.mark.parametrize(
    ("pattern", "body", "fits"),
    [
        (op("Relu|Neg", ANY), "y = Neg(x)", True),
        (op("Relu|Neg", ANY), "y = Abs(x)", False),
        (op("LeakyRelu", ANY, alpha=0.5), "y = LeakyRelu<alpha = 0.5>(x)", True),
        (op("LeakyRelu", ANY, alpha=0.5), "y = LeakyRelu<alpha = 0.25>(x)", False),
        (op("Add", const("c"), op("MatMul")), "a = MatMul(x, W) y = Add(a, b)", True),
        (op("Add", op("MatMul"), const("c")), "a = MatMul(x, W) y = Add(b, a)", True),
        (op("Sub", const("c"), op("MatMul")), "a = MatMul(x, W) y = Sub(a, b)", False),
        (op("Mul", var("t"), op("Sigmoid", var("t"))), "s = Sigmoid(x) y = Mul(x, s)", True),
        (op("Mul", var("t"), op("Sigmoid", var("t"))), "a = Neg(x) s = Sigmoid(a) y = Mul(x, s)", False),
        (op("Clip", ANY), "y = Clip(x)", True),
        (op("Clip", ANY), "y = Clip(x, six)", False),
        (op("Clip", ANY, ...), "y = Clip(x, six)", True),
        (op("Clip", ANY, ANY), "y = Clip(x, , six)", False),
        (op("Clip"), "y = Clip(x, , six)", True),
        (op("Clip", ANY, const("low", default=0.0), number(6)), "y = Clip(x, , six)", True),
        (op("Div", ANY, number(6)), "y = Div(x, six)", True),
        (op("Div", ANY, number(5)), "y = Div(x, six)", False),
        (op("MatMul", ANY, number(2)), "y = MatMul(x, z)", False),
        (op("Relu", op("Neg")) | op("Abs"), "y = Abs(x)", True),
        (op("Relu", op("Neg") | op("Abs")), "a = Abs(x) y = Relu(a)", True),
        (op("Relu", through("Flatten|Identity", op("Neg"))), "a = Neg(x) y = Relu(a)", True),
        (
            op("Relu", through("Flatten|Identity", op("Neg"))),
            "a = Neg(x) b = Flatten(a) c = Identity(b) y = Relu(c)",
            True,
        ),
        (op("Relu", through("Flatten|Identity", op("Neg"))), "a = Neg(x) b = Abs(a) y = Relu(b)", False),
        (op("Relu", op("Split")), "a, c = Split(x, two) y = Relu(a)", True),
        (op("Relu", op("Split")), "a, c = Split(x, two) y = Relu(c)", False),
    ],
)
def test_fits(pattern: Pattern, body: str, fits: bool) -> None:
    body = body.replace("Split(x, two)", "Split<num_outputs = 2>(x)")
    graph = testing.graph(TEXT % body, opset=18)
    assert (match(pattern, graph.nodes[-1], graph.opset) is not None) is fits


def test_same_name_in_another_domain_is_another_operator() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]> net (float[2] x) => (float[2] y) { y = my.ops.Relu(x) }'
    )
    graph = testing.graph(text)
    assert match(op("Relu"), graph.nodes[0], 17) is None


def test_interior_is_listed_from_the_root_down() -> None:
    result = found(op("Relu", through("Flatten", op("Neg"))), "a = Neg(x) b = Flatten(a) c = Flatten(b) y = Relu(c)")
    assert result is not None
    assert [node.outputs[0].name for node in result.interior] == ["c", "b", "a"]


def test_the_next_way_is_tried_when_one_is_refused() -> None:
    def accept(way: Match) -> None:
        if way.tensors["t"].name == "a":
            raise NoMatch("not a")

    graph = testing.graph(TEXT % "a = Neg(x) b = Abs(x) y = Add(a, b)")
    result = match(op("Add", var("t"), ANY), graph.nodes[-1], graph.opset, accept)
    assert result is not None
    assert result.tensors["t"].name == "b"
    with pytest.raises(NoMatch, match="not a"):
        match(op("Sub", var("t"), ANY), testing.graph(TEXT % "a = Neg(x) y = Sub(a, x)").nodes[-1], 17, accept)


def test_ways_do_not_disturb_each_other() -> None:
    body = "a = Neg(x) b = Abs(x) c = Add(a, b) d = Add(b, a) y = Mul(c, d)"
    pattern = op("Mul", op("Add", op("Neg", name="one"), ANY), op("Add", op("Abs", name="two"), ANY))
    result = found(pattern, body)
    assert result is not None
    assert sorted(result.nodes) == ["one", "two"]
    assert len(result.interior) == 4


def test_patterns_can_be_reused() -> None:
    pattern: Pattern = op("Relu", GEMM)
    for _ in range(2):
        assert isinstance(found(pattern, "a = Gemm(x, W) y = Relu(a)"), Match)
    assert isinstance(found(pattern, "a = Gemm(x, W) y = Relu(a)").root, gs.Node)  # type: ignore[union-attr]
