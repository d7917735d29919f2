"""Between layouts, against numpy: odd sizes, channels that fill no block, transposes of any axes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te, tirx

from nnc.lowering.kernels import relayout

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Cpu:
    mcpu: str
    vector_bits: int
    vector_registers: int = 32
    threads: int = 2
    l1d_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10

    @property
    def block(self) -> int:
        return self.vector_bits // 32


SSE, AVX2, AVX512 = Cpu("x86-64-v2", 128), Cpu("x86-64-v3", 256), Cpu("x86-64-v4", 512)


def compiled(function: tirx.PrimFunc, cpu: Cpu) -> tvm.runtime.Executable:
    return tvm.compile(tvm.IRModule({"main": function}), tvm.target.Target({"kind": "llvm", "mcpu": cpu.mcpu}))


def in_blocks(x: np.ndarray, block: int) -> np.ndarray:
    n, channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, -channels % block), (0, 0), (0, 0)))
    return padded.reshape(n, -1, block, height, width).transpose(0, 1, 3, 4, 2)


def check(shape: Shape, cpu: Cpu) -> None:
    """There, with zeros in the channels that fill up the last block, and back, whatever stands in them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, dtype=np.float32)
    plain = te.placeholder(shape, name="plain")
    blocked = te.placeholder(relayout.blocked_shape(shape, cpu.block), name="blocked")
    forth = compiled(te.create_prim_func([plain, relayout.to_blocked(plain, shape, cpu.block)]), cpu)
    back = compiled(te.create_prim_func([blocked, relayout.to_plain(blocked, shape, cpu.block, cpu)]), cpu)
    result = tvm.runtime.tensor(np.full(relayout.blocked_shape(shape, cpu.block), np.nan, np.float32))
    forth["main"](tvm.runtime.tensor(x), result)
    np.testing.assert_array_equal(result.numpy(), in_blocks(x, cpu.block))
    dirty = in_blocks(np.pad(x, ((0, 0), (0, -shape[1] % cpu.block), (0, 0), (0, 0)), constant_values=9), cpu.block)
    returned = tvm.runtime.tensor(np.full(shape, np.nan, np.float32))
    back["main"](tvm.runtime.tensor(np.ascontiguousarray(dirty)), returned)
    np.testing.assert_array_equal(returned.numpy(), x)


@pytest.fixture
def runnable(cpu: Cpu) -> None:
    feature = {"x86-64-v2": "sse4_2", "x86-64-v3": "avx2", "x86-64-v4": "avx512f"}[cpu.mcpu]
    with open("/proc/cpuinfo") as info:
        if feature not in info.read():
            pytest.skip(f"this machine has no {feature}")


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 37, 5, 7), (1, 16, 1, 1), (1, 3, 30, 31), (3, 40, 2, 2), (1, 100, 4, 4), (1, 64, 56, 56)],
)
@pytest.mark.parametrize("cpu", [SSE, AVX2, AVX512], ids=lambda cpu: cpu.mcpu)
def test_there_and_back(shape: Shape, cpu: Cpu, runnable: None) -> None:
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
