"""fuse-gates: every way that exporters write the gated activations."""

import math

import pytest

from nnc import testing
from nnc.passes.fuse_gates import FuseGates

NUMBERS = (
    "float zero = {0.0}, float half = {0.5}, float one = {1.0}, float three = {3.0}, float six = {6.0}, "
    f"float sixth = {{{1 / 6}}}, float root = {{{math.sqrt(2)}}}, float inverse = {{{math.sqrt(0.5)}}}"
)
TEXT = f"net (float[2, 3, 4] x) => (float y) <{NUMBERS}> {{ %s }}"
RELU6 = "a = Add(x, three) b = Clip(a, zero, six) "
ERF = "a = Div(x, root) e = Erf(a) b = Add(e, one) "


@pytest.mark.parametrize(
    ("body", "op", "opset"),
    [
        (RELU6 + "y = Div(b, six)", "HardSigmoid", 17),
        (RELU6 + "y = Mul(b, sixth)", "HardSigmoid", 17),
        (RELU6 + "c = Div(b, six) y = Mul(x, c)", "HardSwish", 17),
        (RELU6 + "c = Mul(x, b) y = Div(c, six)", "HardSwish", 17),
        (RELU6 + "c = Mul(b, x) y = Mul(sixth, c)", "HardSwish", 17),
        ("a = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(a, x)", "HardSwish", 17),
        (ERF + "c = Mul(x, b) y = Mul(c, half)", "Gelu", 20),
        (ERF + "c = Mul(b, half) y = Mul(c, x)", "Gelu", 20),
        (ERF.replace("Div(x, root)", "Mul(inverse, x)") + "c = Mul(half, x) y = Mul(b, c)", "Gelu", 20),
        ("a = Softplus(x) b = Tanh(a) y = Mul(x, b)", "Mish", 18),
        ("a = Sigmoid(x) y = Mul(x, a)", "Swish", 24),
    ],
)
def test_one_operator(body: str, op: str, opset: int) -> None:
    testing.check(FuseGates(), testing.graph(TEXT % body, opset=opset), ops=[op])


@pytest.mark.parametrize(
    ("body", "opset", "reason"),
    [
        ("a = Sigmoid(x) y = Mul(x, a)", 17, "Swish needs opset 24; the model is at 17"),
        ("a = Softplus(x) b = Tanh(a) y = Mul(x, b)", 17, "Mish needs opset 18"),
        (ERF + "c = Mul(x, b) y = Mul(c, half)", 19, "Gelu needs opset 20"),
        ("a = HardSigmoid(x) y = Mul(x, a)", 17, "not that of HardSwish"),
        (RELU6 + "c = Div(b, six) y = Add(c, a)", 17, "second reader"),
    ],
)
def test_left_alone(body: str, opset: int, reason: str) -> None:
    testing.check_unchanged(FuseGates(), testing.graph(TEXT % body, opset=opset), reason)


@pytest.mark.parametrize("number", ["2.5", "3.01"])
def test_other_numbers_are_other_functions(number: str) -> None:
    result = testing.run(FuseGates(), (TEXT % (RELU6 + "y = Div(b, six)")).replace("{3.0}", f"{{{number}}}"))
    assert result.changed == 0


def test_gate_of_something_else() -> None:
    assert testing.run(FuseGates(), TEXT % "z = Neg(x) a = HardSigmoid(z) y = Mul(x, a)").changed == 0


def test_constant_that_makes_the_shape_grow() -> None:
    text = (TEXT % (RELU6 + "y = Div(b, six)")).replace("float six =", "float[1, 1, 1, 1] six =")
    testing.check_unchanged(FuseGates(), text.replace("b = Clip(a, zero, six)", "b = Clip(a, zero, most)")
                            .replace("float half", "float most = {6.0}, float half"), "grow")  # fmt: skip
