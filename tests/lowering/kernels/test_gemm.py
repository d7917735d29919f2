"""Gemm against numpy: odd shapes, every vector width this machine can run, epilogues, and the code that comes out."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te, tirx

from nnc.lowering.kernels import gemm
from nnc.lowering.kernels.unit import Unit

AVX2 = Unit(256, 16, 2, 32 << 10, 512 << 10, 6.0)
AVX512 = Unit(512, 32, 2, 32 << 10, 512 << 10, 6.0)
MCPU = {AVX2: "haswell", AVX512: "skylake-avx512"}


def build(rows: int, columns: int, depth: int, cpu: Unit) -> tuple[tvm.runtime.Executable, gemm.GemmPlan]:
    """`relu(A @ W + bias) + residual` compiled for a CPU."""
    plan = gemm.best_plan(rows, columns, depth, cpu)
    A = te.placeholder((rows, depth), name="A")
    W = te.placeholder(gemm.packed_shape(depth, columns, plan), name="W")
    bias = te.placeholder((columns,), name="bias")
    residual = te.placeholder((rows, columns), name="residual")

    def epilogue(value: tirx.Expr, index: tuple) -> tirx.Expr:
        return tirx.max(value + bias[index[1]], tirx.const(0, "float32")) + residual[index[0], index[1]]

    out = gemm.compute(A, W, columns, plan, [bias, residual], epilogue)
    module = tvm.IRModule({"main": te.create_prim_func([A, W, bias, residual, out])})
    target = tvm.target.Target({"kind": "llvm", "mcpu": MCPU[cpu], "num-cores": cpu.threads})
    return tvm.compile(module, target=target), plan


def check(rows: int, columns: int, depth: int, cpu: Unit) -> None:
    rng = np.random.default_rng(0)
    A, W, bias, residual = (
        rng.standard_normal(shape, dtype=np.float32)
        for shape in ((rows, depth), (depth, columns), (columns,), (rows, columns))
    )
    kernel, plan = build(rows, columns, depth, cpu)
    tensors = [tvm.runtime.tensor(x) for x in (A, gemm.pack(W, plan), bias, residual, np.empty_like(residual))]
    kernel["main"](*tensors)
    expected = np.maximum(A.astype(np.float64) @ W + bias, 0) + residual
    np.testing.assert_allclose(tensors[-1].numpy(), expected, rtol=1e-5, atol=1e-5 * np.sqrt(depth))


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1000, 2048),
        (1, 10, 64),
        (1, 1, 1),
        (2, 17, 5),
        (5, 33, 100),
        (8, 100, 1000),
        (8, 96, 3000),
        (29, 47, 3),
        (64, 1000, 300),
        (77, 130, 1100),
        (196, 64, 512),
    ],
)
@pytest.mark.parametrize("cpu", [AVX2, AVX512], ids=MCPU.get)
def test_matches_numpy(shape: tuple[int, int, int], cpu: Unit, runnable: None) -> None:
    check(*shape, cpu)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 70), st.integers(1, 150), st.integers(1, 600))
def test_any_shape(rows: int, columns: int, depth: int) -> None:
    check(rows, columns, depth, AVX2)
