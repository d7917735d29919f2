"""Products of matrices computed at run time, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te

from nnc.lowering.kernels import matmul
from nnc.lowering.kernels.unit import Unit

AVX2 = Unit(256, 16, 2, 32 << 10, 512 << 10, 6.0)
AVX512 = Unit(512, 32, 2, 32 << 10, 512 << 10, 6.0)
MCPU = {AVX2: "x86-64-v3", AVX512: "x86-64-v4"}

Shape = tuple[int, ...]


def check(left: Shape, right: Shape, cpu: Unit) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in (left, right))
    A, B = te.placeholder(left, name="A"), te.placeholder(right, name="B")
    batch = int(np.prod(np.broadcast_shapes(left[:-2], right[:-2])))
    plan = matmul.best_plan(batch, left[-2], right[-1], cpu)
    function = te.create_prim_func([A, B, matmul.compute(A, B, plan)])
    target = tvm.target.Target({"kind": "llvm", "mcpu": MCPU[cpu]})
    expected = a.astype(np.float64) @ b
    out = tvm.runtime.tensor(np.full(expected.shape, np.nan, np.float32))
    tvm.compile(tvm.IRModule({"main": function}), target)["main"](tvm.runtime.tensor(a), tvm.runtime.tensor(b), out)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-5 * np.sqrt(left[-1]))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((1, 1), (1, 2)),
        ((197, 64), (64, 197)),
        ((5, 3), (3, 7)),
        ((100, 70), (70, 33)),
        ((12, 49, 32), (12, 32, 49)),
        ((3, 1, 8, 9), (1, 4, 9, 17)),
        ((1, 300), (300, 1000)),
    ],
)
@pytest.mark.parametrize("cpu", [AVX2, AVX512], ids=MCPU.get)
def test_matches_numpy(left: Shape, right: Shape, cpu: Unit, runnable: None) -> None:
    check(left, right, cpu)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 50), st.integers(2, 60))
def test_any_sizes(batch: int, rows: int, depth: int, columns: int) -> None:
    check((batch, rows, depth), (batch, depth, columns), AVX2)
