"""simplify-shapes: shapes are constants, whatever arithmetic the exporter wrote."""

import pytest

from nnc import testing
from nnc.passes.simplify_shapes import SimplifyShapes

INDICES = "int64 i0 = {0}, int64 i1 = {1}, int64[1] v0 = {0}, int64[1] m1 = {-1}, int64 two = {2}"
TEXT = f"net (float[2, 8, 3, 5] x) => (float y) <{INDICES}> {{ %s }}"


HALVED = (
    "s = Shape(x) n = Gather(s, i1) h = Div(n, two) u = Unsqueeze(h, v0) c = Concat<axis = 0>(u, m1) a = Reshape(x, c)"
)
AGAIN = "t = Shape(a) w = Gather(t, i1) v = Unsqueeze(w, v0) d = Concat<axis = 0>(m1, v) y = Reshape(a, d)"


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        (
            "s = Shape(x) n = Gather(s, i0) u = Unsqueeze(n, v0) c = Concat<axis = 0>(u, m1) y = Reshape(x, c)",
            ["Reshape"],
        ),
        ("s = Shape<start = 1, end = -1>(x) c = Concat<axis = 0>(m1, s) y = Reshape(x, c)", ["Reshape"]),
        ("n = Size(x) u = Unsqueeze(n, v0) y = Reshape(x, u)", ["Reshape"]),
        ("s = Shape(x) z = ConstantOfShape(s) y = Add(x, z)", ["Add"]),
        (f"{HALVED} {AGAIN}", ["Reshape", "Reshape"]),
    ],
)
def test_becomes_constant(body: str, ops: list[str]) -> None:
    testing.check(SimplifyShapes(), TEXT % body, ops=ops)


def test_shapes_of_the_import_are_complete() -> None:
    shapes = {node.op: node.outputs[0].shape for node in testing.graph(TEXT % f"{HALVED} y = Neg(a)").nodes}
    assert (shapes["Reshape"], shapes["Neg"]) == ([4, 60], [4, 60])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TEXT.replace("float y", "float y, int64[4] s") % "s = Shape(x) y = Neg(x)", "'s' is an output of the graph"),
        ("net (float[6] x) => (int64[1] y) { k = NonZero(x) s = Shape(k) y = Neg(s) }", "'k' is not known"),
    ],
)
def test_left_alone(text: str, reason: str) -> None:
    testing.check_unchanged(SimplifyShapes(), text.replace("int64[1] y", "int64[2] y"), reason)


def test_shape_that_depends_on_data_but_is_known() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]>
    net (float[2, 6] x) => (float[3, 4] y) { s = my.ops.Sizes(x) y = Reshape(x, s) }"""
    result = testing.run(SimplifyShapes(), text)
    assert result.ops == ["Reshape"]
    assert testing.weights(result.graph)["y.shape"].tolist() == [3, 4]


def test_other_arithmetic_stays() -> None:
    result = testing.check(SimplifyShapes(), TEXT % "a = Neg(two) b = Cast<to = 1>(a) y = Mul(x, b)")
    assert result.changed == 0
