"""fuse-padding: Pad disappears into convolutions and pools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import testing
from nnc.passes.fuse_padding import FusePadding


def text(pads: list[int], layer: str, more: str = "", attributes: str = "") -> str:
    weights = f"float[4, 3, 3, 3] W, int64[{len(pads)}] pads = {{{', '.join(map(str, pads))}}}"
    pad = f"a = Pad{attributes}(x, pads{more})"
    constants = "float zero = {0.0}, float one = {1.0}, float low = {-inf}, int64[2] axes = {2, 3}"
    return f"net (float[1, 3, 6, 7] x) => (float y) <{weights}, {constants}> {{ {pad} y = {layer} }}"


SIDES = [0, 0, 1, 2, 0, 0, 0, 3]  # top 1, left 2, bottom 0, right 3


@pytest.mark.parametrize(
    ("pads", "layer", "more"),
    [
        (SIDES, "Conv(a, W)", ""),
        (SIDES, "Conv<pads = [1, 1, 2, 2], strides = [2, 1]>(a, W)", ", zero"),
        (SIDES, 'Conv<auto_pad = "VALID">(a, W)', ""),
        (SIDES, "AveragePool<kernel_shape = [4, 4]>(a)", ""),
        (SIDES, "AveragePool<kernel_shape = [4, 6], pads = [1, 0, 1, 2], count_include_pad = 1>(a)", ""),
    ],
)
def test_pads_add_up(pads: list[int], layer: str, more: str) -> None:
    testing.check(FusePadding(), text(pads, layer, more), ops=[layer.split("<")[0].split("(")[0]])


def test_axes_are_named() -> None:
    before = testing.graph(text([1, 2, 0, 3], "Conv(a, W)", ", , axes"), opset=18)
    testing.check(FusePadding(), before, ops=["Conv"])


def test_max_pool_pads_with_the_smallest_number() -> None:
    before = testing.graph(text([0, 0, 1, 1, 0, 0, 1, 1], "MaxPool<kernel_shape = [3, 3]>(a)", ", low"), low=-np.inf)
    testing.check(FusePadding(), before, ops=["MaxPool"])
    zeros = text([0, 0, 1, 1, 0, 0, 1, 1], "MaxPool<kernel_shape = [3, 3]>(a)")
    testing.check_unchanged(FusePadding(), zeros, "pads with 0, the operator behind it with -inf")


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (text([0, 0, -1, 0, 0, 0, 1, 0], "Conv(a, W)"), "cuts off"),
        (text(SIDES, "Conv(a, W)", ", one"), "pads with 1, the operator behind it with 0"),
        (text(SIDES, "Conv(a, W)", attributes='<mode = "reflect">'), "mode 'reflect'"),
        (text(SIDES, 'Conv<auto_pad = "SAME_UPPER">(a, W)'), "rule of its own"),
        (text(SIDES, "AveragePool<kernel_shape = [3, 3], pads = [1, 0, 1, 0]>(a)"), "leaves its own padding out"),
        (text(SIDES, "AveragePool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(a)"), "reach over"),
        (text(SIDES, "MaxPool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(a)", ", low"), "reach over"),
        (text(SIDES, "AveragePool<kernel_shape = [3, 3]>(a)"), "as large as its window"),
        (text(SIDES, "Conv(a, W) z = Relu(a)").replace("float y", "float y, float z"), "second reader"),
    ],
)
def test_left_alone(before: str, reason: str) -> None:
    testing.check_unchanged(FusePadding(), before.replace("low = {-inf}", "low = {0.0}"), reason)


def test_padded_channels_stay() -> None:
    before = """net (float[1, 3, 6, 6] x) => (float y) <float[4, 5, 3, 3] W, int64[8] pads = {0, 1, 0, 0, 0, 1, 0, 0}>
    { a = Pad(x, pads) y = Conv(a, W) }"""
    testing.check_unchanged(FusePadding(), before, "batch or channels")


def test_pads_that_the_model_computes() -> None:
    before = """net (float[1, 3, 6, 6] x, int64[8] pads) => (float[1, 4, H, W] y) <float[4, 3, 3, 3] W>
    { a = Pad(x, pads) y = Conv(a, W) }"""
    result = testing.run(FusePadding(), before)
    assert (result.changed, result.ops) == (0, ["Pad", "Conv"])


@settings(max_examples=25, deadline=None)
@given(
    sides=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    own=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
)
def test_any_sides(sides: list[int], own: list[int], stride: int, dilation: int) -> None:
    attributes = f"pads = {own}, strides = [{stride}, {stride}], dilations = [{dilation}, {dilation}]"
    pads = [0, 0, *sides[:2], 0, 0, *sides[2:]]
    before = text(pads, f"Conv<{attributes}>(a, W)").replace("low = {-inf}", "low = {0.0}")
    testing.check(FusePadding(), before, ops=["Conv"])
