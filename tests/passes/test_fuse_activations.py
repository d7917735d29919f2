"""fuse-activations: chains of bounds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import testing
from nnc.passes.fuse_activations import FuseActivations

NUMBERS = "float none = {0.0}, float one = {1.0}, float six = {6.0}, float less = {-1.0}, float[1] two = {2.0}"
TEXT = f"net (float[2, 3, 4] x) => (float y) <{NUMBERS}, float[4] c> {{ %s }}"


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("a = Relu(x) y = Relu(a)", ["Relu"]),
        ("a = Relu(x) y = Clip(a, none, six)", ["Clip"]),
        ("a = Clip(x, less) y = Relu(a)", ["Relu"]),
        ("a = Clip(x, , six) y = Relu(a)", ["Clip"]),
        ("a = Clip(x, less, one) b = Relu(a) y = Clip(b, one, six)", ["Clip"]),
        ("a = Max(x, none) y = Min(a, six)", ["Clip"]),
        ("a = Max(x, two) y = Max(none, a)", ["Clip"]),
        ("a = Min(six, x) b = Relu(a) y = Relu(b)", ["Clip"]),
        ("a = Clip(x) y = Relu(a)", ["Relu"]),
        ("a = Clip(x) b = Clip(a) y = Neg(b)", ["Neg"]),
    ],
)
def test_chain(body: str, ops: list[str]) -> None:
    testing.check(FuseActivations(), TEXT % body, ops=ops)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Relu(x) b = Relu(a) y = Add(a, b)", "second reader"),
        ("a = Max(x, c) y = Relu(a)", "not a constant number"),
        ("a = Clip(x, six, one) y = Relu(a)", "bounds cross"),
        ("b = ReduceMax<keepdims = 0>(x) a = Clip(x, b) y = Relu(a)", "tells Clip 'a' is computed"),
        ("a = Max(x, none, one) y = Relu(a)", "has 3 inputs"),
    ],
)
def test_left_alone(body: str, reason: str) -> None:
    testing.check_unchanged(FuseActivations(), TEXT % body, reason)


def test_intermediate_value_is_an_output() -> None:
    before = (TEXT % "a = Relu(x) y = Relu(a)").replace("float y", "float y, float[2, 3, 4] a")
    testing.check_unchanged(FuseActivations(), before, "is an output")


def test_half_precision_keeps_its_type() -> None:
    text = "net (float16[3] x) => (float16 y) <float16 low, float16 high> { a = Clip(x, low, high) y = Relu(a) }"
    testing.check(FuseActivations(), testing.graph(text, low=-1, high=6), ops=["Clip"])


def test_constant_that_makes_the_shape_grow() -> None:
    text = "net (float[3] x) => (float y) <float[1, 1] zero = {0.0}> { a = Max(x, zero) y = Relu(a) }"
    testing.check_unchanged(FuseActivations(), text, "grow")


BOUNDS = st.sampled_from([None, -1.5, -0.5, 0.0, 0.5, 1.5])


@settings(max_examples=40, deadline=None)
@given(chain=st.lists(st.tuples(BOUNDS, BOUNDS), min_size=2, max_size=4))
def test_any_chain(chain: list[tuple[float | None, float | None]]) -> None:
    constants, steps, x = "", "", "x"
    for index, (low, high) in enumerate(chain):
        names = [f"{side}{index}" if bound is not None else "" for side, bound in (("l", low), ("h", high))]
        bounds = zip(names, (low, high), strict=True)
        constants += "".join(f", float {name} = {{{bound}}}" for name, bound in bounds if name)
        steps += f"a{index} = Clip({x}, {names[0]}, {names[1]}) "
        x = f"a{index}"
    text = f"net (float[64] x) => (float y) <float one = {{1.0}}{constants}> {{ {steps} y = Neg({x}) }}"
    testing.check(FuseActivations(), text)
