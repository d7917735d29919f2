"""The k best of each slice against a stable sort."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te

from nnc.lowering.kernels import topk


def check(x: np.ndarray, count: int, largest: bool) -> None:
    X = te.placeholder(x.shape, str(x.dtype), "X")
    function = te.create_prim_func([X, *topk.compute(X, count, largest)])
    built = tvm.compile(tvm.IRModule({"main": function}), tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"}))
    shape = (x.shape[0], count, x.shape[2])
    values, places = (tvm.runtime.tensor(np.zeros(shape, dtype)) for dtype in (x.dtype, np.int64))
    built["main"](tvm.runtime.tensor(x), values, places)
    expected = np.argsort(-x.astype(np.float64) if largest else x, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(places.numpy(), expected)
    np.testing.assert_array_equal(values.numpy(), np.take_along_axis(x, expected, 1))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("shape", "count"), [((1, 1000, 1), 5), ((3, 40, 2), 40), ((1, 1, 1), 1), ((2, 3000, 1), 700)])
def test_sorts_stably(shape: tuple[int, int, int], count: int, largest: bool) -> None:
    x = np.random.default_rng(0).integers(-20, 20, shape)
    check(x.astype(np.float32), count, largest)
    check(x, count, largest)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.integers(1, 60), st.integers(1, 3), st.booleans(), st.data())
def test_any_slices(outer: int, length: int, inner: int, largest: bool, data: st.DataObject) -> None:
    x = np.random.default_rng(0).integers(0, 9, (outer, length, inner)).astype(np.float32)
    check(x, data.draw(st.integers(1, length)), largest)
