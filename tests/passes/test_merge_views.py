"""merge-views: one rearrangement behind the other."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import testing
from nnc.passes.merge_views import MergeViews

SHAPES = (
    "int64[2] flat = {2, 60}, int64[3] three = {6, 4, 5}, int64[1] a0 = {0}, int64[1] a1 = {1}, int64[2] a23 = {2, 3}"
)
TEXT = f"net (float[2, 3, 4, 5] x) => (float y) <{SHAPES}> {{ %s }}"


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("a = Flatten(x) y = Reshape(a, three)", ["Reshape"]),
        ("a = Unsqueeze(x, a0) b = Reshape(a, three) y = Flatten(b)", ["Reshape"]),
        ("a = Transpose<perm = [0, 2, 3, 1]>(x) b = Transpose<perm = [0, 3, 1, 2]>(a) y = Neg(b)", ["Neg"]),
        ("a = Transpose<perm = [0, 2, 3, 1]>(x) y = Transpose<perm = [1, 0, 3, 2]>(a)", ["Transpose"]),
        ("a = Transpose(x) b = Transpose(a) c = Transpose(b) y = Neg(c)", ["Transpose", "Neg"]),
        ("a = Unsqueeze(x, a1) b = Transpose<perm = [1, 0, 2, 3, 4]>(a) y = Neg(b)", ["Reshape", "Neg"]),
        ("a = ReduceMean<axes = [2, 3]>(x) y = Flatten(a)", ["ReduceMean"]),
        ("a = ReduceMax<axes = [2, 3], keepdims = 0>(x) y = Unsqueeze(a, a23)", ["ReduceMax"]),
        ("a = ReduceSum<keepdims = 0>(x, a23) y = Unsqueeze(a, a23)", ["ReduceSum"]),
        ("a = Concat<axis = 1>(x, x) b = Neg(x) y = Concat<axis = -3>(b, a, x)", ["Neg", "Concat"]),
    ],
)
def test_merged(body: str, ops: list[str]) -> None:
    testing.check(MergeViews(), TEXT % body, ops=ops)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Flatten(x) b = Reshape(a, three) c = Neg(a) d = Reshape(c, three) y = Add(b, d)", "second reader"),
        ("a = Transpose(x) y = Flatten(a)", "moves elements"),
        ("a = ReduceMean<axes = [2, 3]>(x) y = Reshape(a, six)", "more than the axes"),
    ],
)
def test_left_alone(body: str, reason: str) -> None:
    before = (TEXT % body).replace("int64[1] a0", "int64[1] six = {6}, int64[1] a0")
    testing.check_unchanged(MergeViews(), before, reason)


@pytest.mark.parametrize(
    "body",
    [
        "a = Concat<axis = 1>(x, x) y = Concat<axis = 2>(a, a)",
        "a = Concat<axis = 1>(x, x) b = Neg(a) y = Concat<axis = 1>(a, b)",
        "a = Relu(x) y = Flatten(a)",
    ],
)
def test_nothing_to_merge(body: str) -> None:
    assert testing.check(MergeViews(), TEXT % body).changed == 0


def test_bounds_that_the_model_computes() -> None:
    text = """net (float[8] x, int64[1] s) => (float[N] y) <int64[1] zero = {0}, int64[1] end = {4}>
    { a = Slice(x, s, end) y = Slice(a, zero, end) }"""
    testing.check_unchanged(MergeViews(), text, "is computed")


def test_slices_that_keep_everything() -> None:
    text = """net (float[8] x) => (float y) <int64[1] zero = {0}, int64[1] end = {8}>
    { a = Slice(x, zero, end) b = Slice(a, zero, end) y = Neg(b) }"""
    testing.check(MergeViews(), text, ops=["Neg"])


BOUND = st.integers(-12, 12)
STEP = st.sampled_from([-3, -2, -1, 1, 2, 3])


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.tuples(st.integers(0, 1), BOUND, BOUND, STEP), min_size=2, max_size=4),
    seed=st.integers(0, 9),
)
def test_any_slices(parts: list[tuple[int, int, int, int]], seed: int) -> None:
    constants, steps, x = "int64[1] none = {0}", "", "x"
    for index, (axis, *bounds) in enumerate(parts):
        names = [f"{name}{index}" for name in ("s", "e", "t", "a")]
        values = zip(names, (*bounds, axis), strict=True)
        constants += "".join(f", int64[1] {name} = {{{value}}}" for name, value in values)
        start, end, step, along = names
        steps += f"v{index} = Slice({x}, {start}, {end}, {along}, {step}) "
        x = f"v{index}"
    text = f"net (float[7, 9] x) => (float y) <{constants}> {{ {steps} y = Neg({x}) }}"
    testing.check(MergeViews(), text, seed=seed)


@settings(max_examples=30, deadline=None)
@given(first=st.sampled_from(list(permutations(range(4)))), second=st.sampled_from(list(permutations(range(4)))))
def test_any_transposes(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    body = f"a = Transpose<perm = {list(first)}>(x) b = Transpose<perm = {list(second)}>(a) y = Neg(b)"
    result = testing.check(MergeViews(), TEXT % body)
    assert result.ops.count("Transpose") <= 1
