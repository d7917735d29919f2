"""remove-identity: what changes nothing goes, what changes something stays."""

import pytest

from nnc import testing
from nnc.passes.remove_identity import RemoveIdentity

CONSTANTS = (
    "float zero = {0.0}, float one = {1.0}, float[1, 1] ones = {1.0}, int64[2] same = {3, 4}, int64[2] ones2 = {1, 1}, "
    "int64[4] no_pads = {0, 0, 0, 0}, int64[4] pads = {1, 0, -1, 0}, int64[1] start = {0}, int64[1] end = {9}, "
    "int64[1] axis = {1}, int64[1] back = {-1}, int64[1] last = {3}, int64[1] before = {-9}, "
    "float[2] scales = {1.0, 1.0}, int64[3] grown = {3, 1, 4}, "
    "int64[1] middle = {1}, bool no = {0}, bool yes = {1}, float half = {0.5}"
)
TEXT = f"net (float[3, 4] x) => (float y) <{CONSTANTS}> {{ %s y = Neg(a) }}"


@pytest.mark.parametrize(
    "identity",
    [
        "a = Identity(x)",
        "a = Dropout(x)",
        "a, mask = Dropout(x, half, no)",
        "a = Cast<to = 1>(x)",
        "a = Reshape(x, same)",
        "a = Flatten(x)",
        "a = Expand(x, same)",
        "a = Expand(x, ones2)",
        "a = Tile(x, ones2)",
        "a = Pad(x, no_pads)",
        "a = Slice(x, start, end, axis)",
        "a = Slice(x, start, end)",
        "a = Transpose<perm = [0, 1]>(x)",
        "a = Concat<axis = 0>(x)",
        "a = Split<axis = 0>(x)",
        "a = Resize(x, , scales)",
        'a = Resize<mode = "linear">(x, , , same)',
        'a = Resize<mode = "cubic", coordinate_transformation_mode = "align_corners">(x, , scales)',
        "a = Max(x)",
        "a = Sum(x)",
        "a = Clip(x)",
        "a = Mul(x, one)",
        "a = Mul(ones, x)",
        "a = Div(x, one)",
        "a = Add(zero, x)",
        "a = Sub(x, zero)",
        "a = Pow(x, one)",
        "b = Transpose(x) a = Transpose(b)",
        "b = Unsqueeze(x, middle) a = Squeeze(b, middle)",
        "b = Reshape(x, grown) a = Reshape(b, same)",
        "b = Identity(x) c = Dropout(b) a = Identity(c)",
    ],
)
def test_gone(identity: str) -> None:
    testing.check(RemoveIdentity(), TEXT % identity, ops=["Neg"])


@pytest.mark.parametrize(
    "needed",
    [
        "b = Cast<to = 10>(x) a = Cast<to = 1>(b)",
        "b = Relu(x) a = Transpose(b)",
        "a = Pad(x, pads)",
        "a = Slice(x, last, before, axis, back)",
        "a = Mul(x, half)",
        "a = Sub(zero, x)",
        "a = Div(one, x)",
        "a = Add(x, one)",
        'a = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn", nearest_mode = "ceil">(x, , scales)',
        "b = Unsqueeze(x, middle) c = Relu(b) a = Squeeze(c, middle)",
        "a = Concat<axis = 0>(x, x)",
        "a = ReduceMax<axes = [0]>(x)",
    ],
)
def test_needed(needed: str) -> None:
    assert testing.check(RemoveIdentity(), TEXT % needed).changed == 0


@pytest.mark.parametrize(
    "pool",
    [
        "a = MaxPool<kernel_shape = [1, 1]>(x)",
        "a = AveragePool<kernel_shape = [1, 1], strides = [1, 1]>(x)",
        "a = GlobalAveragePool(x)",
        "a = ReduceMean<axes = [2, 3]>(x)",
        "a = DepthToSpace<blocksize = 1>(x)",
        "a = Transpose<perm = [0, 1, 3, 2]>(x)",
    ],
)
def test_of_one_pixel(pool: str) -> None:
    testing.check(RemoveIdentity(), f"net (float[2, 3, 1, 1] x) => (float y) {{ {pool} y = Neg(a) }}", ops=["Neg"])


def test_pool_that_strides_is_needed() -> None:
    text = "net (float[2, 3, 4, 4] x) => (float y) { y = MaxPool<kernel_shape = [1, 1], strides = [2, 2]>(x) }"
    assert testing.check(RemoveIdentity(), text).changed == 0


def test_outputs_of_the_graph_keep_their_names() -> None:
    result = testing.check(RemoveIdentity(), "net (float[3] x) => (float y) { a = Relu(x) y = Identity(a) }", ["Relu"])
    assert [tensor.name for tensor in result.graph.outputs] == ["y"]


def test_output_that_has_other_readers() -> None:
    text = "net (float[3] x) => (float y, float z) { a = Relu(x) y = Identity(a) z = Neg(a) }"
    testing.check(RemoveIdentity(), text, ops=["Relu", "Neg"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("net (float[3] x) => (float y) { y = Identity(x) }", "'x' can't take its name"),
        ("net (float[3] x) => (float a, float y) { a = Relu(x) y = Identity(a) }", "'a' can't take its name"),
        ("net (float[3] x) => (float y) <float[3] c> { y = Identity(c) }", "'c' can't take its name"),
        ("net (float[3] x) => (float y) <float h = {0.5}, bool t = {1}> { y = Dropout(x, h, t) }", "training mode"),
        ("net (float[3] x) => (float y, bool m) { a, m = Dropout(x) y = Neg(a) }", "further output, is read"),
    ],
)
def test_left_alone(text: str, reason: str) -> None:
    testing.check_unchanged(RemoveIdentity(), text, reason)


def test_constant_that_makes_the_shape_grow() -> None:
    text = "net (float[4] x) => (float y) <float[2, 4] zeros = {0, 0, 0, 0, 0, 0, 0, 0}> { y = Add(x, zeros) }"
    assert testing.check(RemoveIdentity(), text).changed == 0


def test_undone_although_others_read_what_is_between() -> None:
    text = "net (float[3, 4] x) => (float y) { t = Transpose(x) a = Transpose(t) b = Neg(t) y = MatMul(a, b) }"
    testing.check(RemoveIdentity(), text, ops=["Transpose", "Neg", "MatMul"])
