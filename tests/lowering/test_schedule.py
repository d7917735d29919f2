"""The default schedule: what is computed stays the same, and the loops are those that it promises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te, tirx, topi

from nnc.lowering.kernels import loops
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.schedule import schedule

AVX2 = Unit(256, 16, 2, 32 << 10, 512 << 10, 6.0)


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "PARALLEL_FROM", 1)


def check(inputs: list[te.Tensor], output: te.Tensor, expected: Callable[..., np.ndarray]) -> str:
    """Compare with numpy; returns the scheduled function's text."""
    function = schedule(te.create_prim_func([*inputs, output]), AVX2)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal([int(n) for n in each.shape], dtype=np.float32) for each in inputs]
    out = tvm.runtime.tensor(np.full([int(n) for n in output.shape], np.nan, np.float32))
    built = tvm.compile(tvm.IRModule({"main": function}), tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"}))
    built["main"](*map(tvm.runtime.tensor, arrays), out)
    np.testing.assert_allclose(out.numpy(), expected(*arrays), rtol=1e-5, atol=1e-5)
    return function.script()


@pytest.mark.parametrize("shape", [(1,), (5,), (16,), (197,), (3, 7), (64, 197), (2, 3, 5, 7), (300, 3), (1, 1, 1000)])
def test_elements(shape: tuple[int, ...]) -> None:
    X, Y = te.placeholder(shape, name="X"), te.placeholder(shape[-1:], name="Y")
    text = check([X, Y], topi.add(X, Y), lambda x, y: x + y)
    assert np.prod(shape) < 32 or ("T.parallel" in text and "T.vectorized" in text)


def test_neighbouring_axes_become_one() -> None:
    X, Y = te.placeholder((6, 7, 8), name="X"), te.placeholder((6, 1, 1), name="Y")
    text = check([X], te.compute(X.shape, lambda c, y, z: X[c, y, z] * 2.0), lambda x: 2 * x)
    assert text.count("for ") == 2  # tasks and lanes of one axis
    text = check([X, Y], topi.add(X, Y), lambda x, y: x + y)
    assert text.count("for ") == 3
    assert "T.parallel(6)" in text


def test_the_contiguous_axis_is_vectorized() -> None:
    X = te.placeholder((40, 3), name="X")
    text = check([X], te.compute((3, 40), lambda i, j: X[j, i] + 1.0), lambda x: x.T + 1)
    assert "T.vectorized(40)" in text or "T.vectorized(8)" in text


def test_padding_is_a_fill_and_a_copy() -> None:
    X = te.placeholder((3, 14, 14), name="X")
    text = check([X], topi.nn.pad(X, [0, 1, 1], [0, 2, 1]), lambda x: np.pad(x, ((0, 0), (1, 2), (1, 1))))
    assert "if_then_else" not in text


def test_a_branch_is_never_vectorized() -> None:
    """Where fill and copy are not possible, the loop that the branch depends on stays outside."""
    X, Y = te.placeholder((30, 20), name="X"), te.placeholder((1,), name="Y")
    out = te.compute((32, 20), lambda i, j: tirx.if_then_else(i < 30, X[i, j], Y[0]), "out")
    text = check([X, Y], out, lambda x, y: np.vstack([x, np.full((2, 20), y[0])]))
    (lanes,) = (line for line in text.splitlines() if "T.vectorized" in line)
    assert "i1" in lanes or "j" in lanes


@pytest.mark.parametrize("columns", [1, 5, 8, 27, 47, 64, 197])
def test_a_reduction_with_an_epilogue_is_computed_by_row(columns: int) -> None:
    X, W = te.placeholder((9, 33), name="X"), te.placeholder((33, columns), name="W")
    text = check([X, W], topi.nn.relu(topi.matmul(X, W)), lambda x, w: np.maximum(x @ w, 0))
    assert text.count("T.parallel") == 1


@pytest.mark.parametrize("columns", [1, 47, 197])
def test_a_reduction(columns: int) -> None:
    X, W = te.placeholder((9, 33), name="X"), te.placeholder((33, columns), name="W")
    check([X, W], topi.matmul(X, W), lambda x, w: x @ w)


def test_two_reductions_of_one_epilogue() -> None:
    """Only one of them can be computed with it."""
    X, Y = te.placeholder((9, 33, 20), name="X"), te.placeholder((9, 33, 20), name="Y")
    out = topi.add(topi.sum(X, 1), topi.sum(Y, 1))
    check([X, Y], out, lambda x, y: x.sum(1) + y.sum(1))


def test_values_that_are_read_often_are_computed_once() -> None:
    X, W = te.placeholder((1, 4, 9, 9), name="X"), te.placeholder((5, 4, 3, 3), name="W")
    padded = topi.nn.pad(topi.exp(X), [0, 0, 1, 1], [0, 0, 1, 1])
    out = topi.nn.conv2d_nchw(padded, W, 1, 0, 1)
    text = schedule(te.create_prim_func([X, W, out]), AVX2).script()
    assert "T.exp(" in text
    assert "T.exp(" not in text[text.index("conv2d_nchw_init") :]


def test_a_scalar_has_no_loop() -> None:
    X = te.placeholder((), name="X")
    assert "for " not in check([X], te.compute((), lambda: X[()] + 1.0), lambda x: x + 1)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.data())
def test_any_axes_in_any_order(shape: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    X = te.placeholder(shape, name="X")
    check([X], topi.transpose(X, order), lambda x: x.transpose(order))
