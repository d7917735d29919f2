"""Between layouts, against numpy: odd sizes, channels that fill no block, transposes of any axes."""

from __future__ import annotations

import re
from itertools import permutations

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te, tirx

from nnc.lowering.kernels import relayout
from nnc.lowering.kernels.unit import Unit, lanes_of

Shape = tuple[int, int, int, int]

SIZES = (2, 32 << 10, 512 << 10, 6.0)
SSE, AVX2, AVX512 = (Unit(bits, registers, *SIZES) for bits, registers in ((128, 16), (256, 16), (512, 32)))
MCPU = {SSE: "x86-64-v2", AVX2: "x86-64-v3", AVX512: "x86-64-v4"}


def compiled(function: tirx.PrimFunc, cpu: Unit) -> tvm.runtime.Executable:
    return tvm.compile(tvm.IRModule({"main": function}), tvm.target.Target({"kind": "llvm", "mcpu": MCPU[cpu]}))


def in_blocks(x: np.ndarray, block: int) -> np.ndarray:
    n, channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, -channels % block), (0, 0), (0, 0)))
    return padded.reshape(n, -1, block, height, width).transpose(0, 1, 3, 4, 2)


def check(shape: Shape, cpu: Unit) -> None:
    """There, with zeros in the channels that fill up the last block, and back, whatever stands in them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, dtype=np.float32)
    plain = te.placeholder(shape, name="plain")
    blocked = te.placeholder(relayout.blocked_shape(shape, lanes_of(cpu)), name="blocked")
    forth = compiled(te.create_prim_func([plain, relayout.to_blocked(plain, shape, lanes_of(cpu))]), cpu)
    back = compiled(te.create_prim_func([blocked, relayout.to_plain(blocked, shape, lanes_of(cpu), cpu)]), cpu)
    result = tvm.runtime.tensor(np.full(relayout.blocked_shape(shape, lanes_of(cpu)), np.nan, np.float32))
    forth["main"](tvm.runtime.tensor(x), result)
    np.testing.assert_array_equal(result.numpy(), in_blocks(x, lanes_of(cpu)))
    dirty = in_blocks(
        np.pad(x, ((0, 0), (0, -shape[1] % lanes_of(cpu)), (0, 0), (0, 0)), constant_values=9), lanes_of(cpu)
    )
    returned = tvm.runtime.tensor(np.full(shape, np.nan, np.float32))
    back["main"](tvm.runtime.tensor(np.ascontiguousarray(dirty)), returned)
    np.testing.assert_array_equal(returned.numpy(), x)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 37, 5, 7), (1, 16, 1, 1), (1, 3, 30, 31), (3, 40, 2, 2), (1, 100, 4, 4), (1, 64, 56, 56)],
)
@pytest.mark.parametrize("cpu", [SSE, AVX2, AVX512], ids=MCPU.get)
def test_there_and_back(shape: Shape, cpu: Unit, runnable: None) -> None:
    check(shape, cpu)


@settings(max_examples=15, deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)))
def test_any_shape(shape: Shape) -> None:
    check(shape, AVX2)


def test_moves_squares_in_registers() -> None:
    """Every load and store of the loop is a whole register: no element is inserted or extracted by itself."""
    shape = (1, 64, 56, 56)
    plain = te.placeholder(shape, name="plain")
    kernel = compiled(te.create_prim_func([plain, relayout.to_blocked(plain, shape, 8)]), AVX2)
    body = kernel.mod.inspect_source("asm").split("main_compute_:")[1]
    assert re.search(r"v(shufps|unpck[lh]p[sd]|permt2ps|blendps)\s", body)
    assert not re.search(r"v(insertps|extractps|pinsrd)\s", body)


@pytest.mark.parametrize("order", [p for p in permutations(range(3)) if p[-1] != 2])
def test_transposes_any_axes(order: tuple[int, ...]) -> None:
    check_transpose((20, 9, 30), order)


@settings(max_examples=10, deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(8, 30), st.integers(1, 3), st.integers(8, 30)), st.data())
def test_transposes_any_sizes(shape: Shape, data: st.DataObject) -> None:
    check_transpose(shape, (*data.draw(st.permutations([0, 2, 3])), 1))


def check_transpose(shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    X = te.placeholder(shape, name="X")
    kernel = compiled(te.create_prim_func([X, relayout.transpose(X, order, AVX2)]), AVX2)
    result = tvm.runtime.tensor(np.full([shape[axis] for axis in order], np.nan, np.float32))
    kernel["main"](tvm.runtime.tensor(x), result)
    np.testing.assert_array_equal(result.numpy(), x.transpose(order))
