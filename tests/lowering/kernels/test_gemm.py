"""Gemm against numpy: odd shapes, every vector width this machine can run, epilogues, and the code that comes out."""

from __future__ import annotations

from dataclasses import replace

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


def build(
    rows: int, columns: int, depth: int, cpu: Unit, dtype: str = "float32", group: int | None = None
) -> tuple[tvm.runtime.Executable, gemm.GemmPlan]:
    """`relu(A @ W + bias) + residual` compiled for a CPU; a `group` of the depth shares its scales."""
    plan = gemm.best_plan(rows, columns, depth, cpu)
    plan = replace(plan, depth_block=group) if group else plan
    A = te.placeholder((rows, depth), name="A")
    W = te.placeholder(gemm.packed_shape(depth, columns, plan), name="W", dtype=dtype)
    groups = -(-depth // plan.depth_block)
    scales = te.placeholder(gemm.packed_shape(groups, columns, plan), name="scales") if group else None
    bias = te.placeholder((columns,), name="bias")
    residual = te.placeholder((rows, columns), name="residual")

    def epilogue(value: tirx.Expr, index: tuple) -> tirx.Expr:
        return tirx.max(value + bias[index[1]], tirx.const(0, "float32")) + residual[index[0], index[1]]

    out = gemm.compute(A, W, columns, plan, [bias, residual], epilogue, scales=scales)
    read = [A, W, *([scales] if group else []), bias, residual]
    module = tvm.IRModule({"main": te.create_prim_func([*read, out])})
    target = tvm.target.Target({"kind": "llvm", "mcpu": MCPU[cpu], "num-cores": cpu.threads})
    return tvm.compile(module, target=target), plan


def check(rows: int, columns: int, depth: int, cpu: Unit, dtype: str = "float32", group: int | None = None) -> None:
    rng = np.random.default_rng(0)
    A, W, bias, residual = (
        rng.standard_normal(shape, dtype=np.float32)
        for shape in ((rows, depth), (depth, columns), (columns,), (rows, columns))
    )
    worth = np.ones((1, columns))
    if dtype == "int8":
        W = rng.integers(-128, 128, W.shape).astype(np.int8)
        A /= 128
    if group:
        worth = rng.uniform(0.5, 2, (-(-depth // group), columns)).astype(np.float32)
    kernel, plan = build(rows, columns, depth, cpu, dtype, group)
    scales = [gemm.pack(worth, plan)] if group else []
    tensors = [tvm.runtime.tensor(x) for x in (A, gemm.pack(W, plan), *scales, bias, residual, np.empty_like(residual))]
    kernel["main"](*tensors)
    exact = W * np.repeat(worth, group or depth, 0)[:depth]
    expected = np.maximum(A.astype(np.float64) @ exact + bias, 0) + residual
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


@pytest.mark.parametrize("shape", [(1, 100, 300), (1, 1, 1), (5, 33, 100), (29, 47, 70), (196, 64, 512)])
@pytest.mark.parametrize("group", [None, 32, 1000])
@pytest.mark.parametrize("cpu", [AVX2, AVX512], ids=MCPU.get)
def test_weights_are_integers(shape: tuple[int, int, int], group: int | None, cpu: Unit, runnable: None) -> None:
    check(*shape, cpu, "int8", group)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(1, 100), st.integers(1, 300), st.none() | st.integers(1, 300))
def test_any_shape_with_integer_weights(rows: int, columns: int, depth: int, group: int | None) -> None:
    check(rows, columns, depth, AVX2, "int8", group)
