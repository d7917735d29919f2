"""Computations over slices against numpy: along and across the last axis, in odd sizes, and what joins the lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tvm import te, tirx

from nnc.lowering.kernels import slices
from nnc.lowering.kernels.slices import Slice, Slices
from nnc.lowering.kernels.unit import Unit

AVX2 = Unit(256, 16, 2, 32 << 10, 512 << 10, 6.0)


def zero() -> tirx.Expr:
    return tirx.const(0, "float32")


def centred(s: Slice, ins: Sequence[Any], outs: Sequence[Any]) -> None:
    """x - mean(x), the means, and where the maxima are."""
    (X,), (out, means, places) = ins, outs
    total = s.fold(lambda a, b: a + b, zero(), lambda at, lane: X[tuple(at)])
    mean = s.stat(lambda lane: total[lane] * tirx.const(1 / s.slices.length, "float32"))
    axis = s.slices.reduced.index(True)
    lowest = tirx.const(-np.inf, "float32")
    place = s.best(lambda a, b: a > b, lowest, lambda at: X[tuple(at)], axis, last=False)

    def store(at: list, lane: Any) -> None:
        out[tuple(at)] = X[tuple(at)] - mean[lane]

    s.each(store)
    s.put(means, lambda lane: mean[lane])
    s.put(places, lambda lane: place[lane])


def check(sizes: Sequence[int], reduced: Sequence[bool]) -> None:
    problem = Slices(tuple(sizes), tuple(reduced))
    kept = problem.kept or (1,)
    X = te.placeholder(problem.sizes, name="X")
    results = [(problem.sizes, "float32"), (kept, "float32"), (kept, "int32")]
    function = te.create_prim_func([X, *slices.compute([X], problem, AVX2, results, centred)])
    built = tvm.compile(tvm.IRModule({"main": function}), tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"}))
    x = np.random.default_rng(0).integers(-9, 10, problem.sizes).astype(np.float32)  # with ties
    out, means, places = (tvm.runtime.tensor(np.full(shape, 77, dtype)) for shape, dtype in results)
    built["main"](tvm.runtime.tensor(x), out, means, places)
    axes = tuple(axis for axis, flag in enumerate(reduced) if flag)
    mean = x.mean(axes, dtype=np.float64, keepdims=True)
    np.testing.assert_allclose(out.numpy(), x - mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(means.numpy(), mean.reshape(kept), rtol=1e-5, atol=1e-5)
    if len(axes) == 1:
        np.testing.assert_array_equal(places.numpy(), x.argmax(axes[0]).reshape(kept))


@pytest.mark.parametrize(
    ("sizes", "reduced"),
    [
        ((1,), (True,)),
        ((100,), (True,)),
        ((3, 5), (False, True)),
        ((3, 77), (False, True)),
        ((5, 3), (True, False)),
        ((7, 77), (True, False)),
        ((2, 7, 40), (False, True, False)),
        ((3, 4, 5, 6), (True, False, True, False)),
        ((3, 4, 5, 65), (False, True, False, True)),
        ((2, 3, 4, 9), (False, False, True, True)),
        ((1, 1), (False, True)),
        ((9, 1), (True, False)),
    ],
)
def test_matches_numpy(sizes: tuple[int, ...], reduced: tuple[bool, ...]) -> None:
    check(sizes, reduced)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=3))
def test_any_slices(axes: list[tuple[int, bool]]) -> None:
    assume(any(flag for _, flag in axes))
    check([size for size, _ in axes], [flag for _, flag in axes])
