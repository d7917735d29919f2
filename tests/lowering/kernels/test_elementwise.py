"""Elementwise kernels against numpy: merged axes, broadcast operands, types, and the tasks that threads share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te, tirx

from nnc.lowering.kernels import elementwise, loops
from nnc.lowering.kernels.unit import Unit

AVX2 = Unit(256, 16, 2, 32 << 10, 512 << 10, 6.0)

Shape = tuple[int, ...]
TARGET = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})


def kernel(
    shape: Shape, operands: Sequence[Shape], function: Callable[[list], tirx.Expr], dtype: str = "float32"
) -> tuple[tirx.PrimFunc, Shape, list[Shape]]:
    sizes, merged = elementwise.merged(shape, operands)
    ins = [te.placeholder(each, dtype, f"x{i}") for i, each in enumerate(merged)]
    out = elementwise.compute(ins, sizes, AVX2, function, dtype)
    return te.create_prim_func([*ins, out]), sizes, merged


def check(shape: Shape, operands: Sequence[Shape]) -> None:
    """The sum of operands that are broadcast."""
    function, sizes, merged = kernel(shape, operands, lambda xs: sum(xs[1:], xs[0]))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(each, dtype=np.float32) for each in operands]
    out = tvm.runtime.tensor(np.full(sizes, np.nan, np.float32))
    built = tvm.compile(tvm.IRModule({"main": function}), TARGET)
    built["main"](*(tvm.runtime.tensor(x.reshape(size)) for x, size in zip(arrays, merged, strict=True)), out)
    expected = sum(arrays[1:], np.broadcast_to(arrays[0], shape))
    np.testing.assert_allclose(out.numpy().reshape(shape), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "operands", "sizes", "merged"),
    [
        ((1, 4, 7, 7, 16), [(1, 4, 7, 7, 16), (1, 4, 1, 1, 16)], (4, 49, 16), [(4, 49, 16), (4, 1, 16)]),
        ((2, 3, 4), [(2, 3, 4), (2, 3, 4)], (24,), [(24,), (24,)]),
        ((2, 3, 4), [(4,), (2, 1, 1)], (2, 3, 4), [(1, 1, 4), (2, 1, 1)]),
        ((2, 3, 4), [(1,)], (24,), [(1,)]),
        ((1, 1), [(1, 1)], (1,), [(1,)]),
        ((), [()], (1,), [(1,)]),
        ((5, 1, 6), [(1, 6), (5, 1, 1)], (5, 6), [(1, 6), (5, 1)]),
    ],
)
def test_merges_axes(shape: Shape, operands: list[Shape], sizes: Shape, merged: list[Shape]) -> None:
    assert elementwise.merged(shape, operands) == (sizes, merged)


@pytest.mark.parametrize(
    ("shape", "operands"),
    [
        ((1,), [(1,)]),
        ((7,), [(7,), (1,)]),
        ((100_003,), [(100_003,)]),
        ((3, 33), [(3, 33), (3, 1), (33,)]),
        ((2, 70_001), [(2, 70_001), (2, 1)]),
        ((1, 40, 7, 7, 8), [(1, 40, 7, 7, 8), (1, 40, 1, 1, 8)]),
        ((300, 3), [(300, 3), (3,), (300, 1)]),
    ],
)
def test_adds_what_is_broadcast(shape: Shape, operands: list[Shape]) -> None:
    check(shape, operands)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_broadcast(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4)))
    masks = data.draw(st.lists(st.tuples(*[st.booleans()] * len(shape)), min_size=1, max_size=3))
    operands = [tuple(1 if one else n for one, n in zip(mask, shape, strict=True)) for mask in masks]
    check(shape, [shape, *operands])


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "float64", "uint8"])
def test_other_types(dtype: str) -> None:
    shape = (5, 37)
    function, sizes, _ = kernel(shape, [shape, shape], lambda xs: tirx.max(xs[0], xs[1]), dtype)
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 100, shape).astype(dtype) for _ in range(2))
    out = tvm.runtime.tensor(np.zeros(sizes, dtype))
    tvm.compile(tvm.IRModule({"main": function}), TARGET)["main"](
        *(tvm.runtime.tensor(each.reshape(sizes)) for each in (x, y)), out
    )
    np.testing.assert_array_equal(out.numpy().reshape(shape), np.maximum(x, y))


@pytest.mark.parametrize("shape", [(loops.PARALLEL_FROM,), (4, 100, 64), (1_000_000,), (64, 49, 16), (3, 70_001)])
def test_large_arrays_are_cut_into_enough_tasks(shape: Shape) -> None:
    function, *_ = kernel(shape, [shape, (*shape[:-1], 1)], lambda xs: xs[0] + xs[1])
    text = function.script()
    (tasks,) = (int(line.split("T.parallel(")[1].split(")")[0]) for line in text.splitlines() if "T.parallel" in line)
    assert AVX2.threads * loops.TASKS / 2 <= tasks <= prod(shape) / 8


def test_small_arrays_are_one_task() -> None:
    function, *_ = kernel((8, 100), [(8, 100)], lambda xs: xs[0])
    assert "T.parallel" not in function.script()
