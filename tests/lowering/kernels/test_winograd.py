"""Winograd against a direct convolution in float64: odd sizes, paddings, widths, splits, epilogues and the choice."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te, tirx

from nnc.lowering.kernels import winograd
from nnc.lowering.kernels.registers import RegisterTile
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.kernels.winograd import Convolution, Plan

TOLERANCE = {2: 2e-6, 4: 1e-5}
OUTPUTS = sorted(TOLERANCE)
AVX2 = Unit(256, 16, 2, 32 << 10, 512 << 10, 6.0)
AVX512 = Unit(512, 32, 2, 32 << 10, 2 << 20, 6.0)
MCPU = {AVX2: "haswell", AVX512: "skylake-avx512"}


def conv3x3(size: int, channels: tuple[int, int], block: int = 8) -> Convolution:
    return Convolution(1, *channels, size, size, (1, 1, 1, 1), block)


def build(conv: Convolution, plan: Plan, mcpu: str) -> tvm.runtime.Executable:
    """`relu(conv + bias + residual)` compiled for a CPU."""
    X = te.placeholder((conv.batch, conv.in_blocks, conv.height, conv.width, conv.block), name="X")
    U = te.placeholder(winograd.packed_shape(conv, plan), name="U")
    bias = te.placeholder((conv.out_blocks, conv.block), name="bias")
    residual = te.placeholder((conv.batch, conv.out_blocks, *conv.out_size, conv.block), name="residual")

    def epilogue(value: tirx.Expr, index: list) -> tirx.Expr:
        _, block, _, _, lane = index
        return tirx.max(value + bias[block, lane] + residual[tuple(index)], tirx.const(0, "float32"))

    out = winograd.compute(X, U, conv, plan, [bias, residual], epilogue)
    module = tvm.IRModule({"main": te.create_prim_func([X, U, bias, residual, out])})
    return tvm.compile(module, target=tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": 2}))


def blocked(x: np.ndarray, block: int) -> np.ndarray:
    """`[n, c, h, w]` to `[n, c / block, h, w, block]`, padded with zero channels."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, -c % block), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, block, h, w).transpose(0, 1, 3, 4, 2))


def direct(x: np.ndarray, W: np.ndarray, pads: tuple[int, int, int, int]) -> np.ndarray:
    """The convolution in float64."""
    top, left, bottom, right = pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, W.astype(np.float64), optimize=True)


def error(conv: Convolution, plan: Plan, mcpu: str) -> float:
    """The largest error of the kernel, relative to the largest output (and 1, the deviation of all inputs)."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((conv.batch, conv.in_channels, conv.height, conv.width), np.float32), 0)
    W = rng.standard_normal((conv.out_channels, conv.in_channels, 3, 3), np.float32) / np.sqrt(9 * conv.in_channels)
    bias = rng.standard_normal(conv.out_channels, np.float32)
    residual = rng.standard_normal((conv.batch, conv.out_channels, *conv.out_size), np.float32)
    inputs = (
        blocked(x, conv.block),
        winograd.pack(W, plan),
        blocked(bias[None, :, None, None], conv.block).reshape(-1, conv.block),
        blocked(residual, conv.block),
    )
    out = tvm.runtime.tensor(np.full_like(inputs[3], np.nan))
    build(conv, plan, mcpu)["main"](*[tvm.runtime.tensor(i) for i in inputs], out)
    expected = blocked(np.maximum(direct(x, W, conv.pads) + bias[:, None, None] + residual, 0), conv.block)
    return float(np.abs(out.numpy() - expected).max() / max(1.0, np.abs(expected).max()))


def check(conv: Convolution, plan: Plan, mcpu: str) -> None:
    assert error(conv, plan, mcpu) < TOLERANCE[plan.outputs]


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_the_transforms_are_exact(outputs: int) -> None:
    """In exact fractions the minimal algorithm computes the correlation of any input with any filter."""
    rng = np.random.default_rng(0)
    At, G, Bt = winograd.cook_toom(outputs, winograd.POINTS[outputs])
    d, g = (np.array([int(v) for v in rng.integers(-9, 9, n)], dtype=object) for n in (outputs + 2, 3))
    expected = [sum(d[i + k] * g[k] for k in range(3)) for i in range(outputs)]
    assert (At @ ((G @ g) * (Bt @ d)) == expected).all()


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_the_factors_of_a_transform_are_the_transform(outputs: int) -> None:
    At, _, Bt = winograd.cook_toom(outputs, winograd.POINTS[outputs])
    (first, then), (pairs, last), _ = winograd.transforms(outputs)
    assert (then @ first == Bt).all()
    assert (last @ pairs == At).all()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 13, 14, 15, 28])
@pytest.mark.parametrize("split", ["tiles", "channels"])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_sizes_that_are_no_multiple_of_the_tile(size: int, split: str, outputs: int) -> None:
    check(conv3x3(size, (16, 24)), Plan(outputs, RegisterTile(3, 3, 8), 6, split), MCPU[AVX2])


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 0, 1, 0), (0, 2, 1, 1), (2, 2, 2, 2)])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_any_padding(pads: tuple[int, int, int, int], outputs: int) -> None:
    conv = Convolution(2, 8, 16, 9, 12, pads, 8)
    check(conv, Plan(outputs, RegisterTile(5, 2, 8), 10, "tiles"), MCPU[AVX2])


@pytest.mark.parametrize("cpu", [AVX2, AVX512], ids=MCPU.get)
@pytest.mark.parametrize(
    "layer", [(64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7), (16, 16, 32), (20, 36, 11)]
)
def test_the_best_plan_of_real_layers(layer: tuple[int, int, int], cpu: Unit, runnable: None) -> None:
    conv = conv3x3(layer[2], layer[:2], cpu.vector_bits // 32)
    plan = winograd.best_plan(conv, cpu)
    check(conv, plan, MCPU[cpu])


def test_blocks_of_two_registers() -> None:
    """NCHW16c on a machine with eight lanes."""
    conv = conv3x3(14, (32, 32), 16)
    check(conv, winograd.best_plan(conv, AVX2), MCPU[AVX2])


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(1, 20),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.sampled_from([4, 8, 16]),
)
def test_any_shape(
    batch: int, in_channels: int, out_channels: int, height: int, width: int, pads: tuple, block: int
) -> None:
    conv = Convolution(batch, in_channels, out_channels, height, width, pads, block)
    if min(conv.out_size) < 1:
        return
    plan = winograd.best_plan(conv, AVX2)
    check(conv, plan, MCPU[AVX2])


def test_the_chosen_points_are_more_accurate_than_the_usual_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, plan = conv3x3(28, (256, 8)), Plan(4, RegisterTile(7, 1, 8), 49, "tiles")
    chosen = error(conv, plan, MCPU[AVX2])
    monkeypatch.setitem(winograd.POINTS, 4, tuple(map(Fraction, (0, 1, -1, 2, -2))))
    winograd.transforms.cache_clear()
    usual = error(conv, plan, MCPU[AVX2])
    winograd.transforms.cache_clear()
    assert chosen < usual / 2


@pytest.mark.parametrize("cpu", [AVX2, AVX512], ids=MCPU.get)
def test_wins_where_arithmetic_rules(cpu: Unit) -> None:
    block = cpu.vector_bits // 32
    for channels, size in [(64, 224), (64, 56), (128, 28), (256, 28), (512, 28)]:
        assert winograd.wins(conv3x3(size, (channels, channels), block), cpu), (channels, size)


@pytest.mark.parametrize("cpu", [AVX2, AVX512], ids=MCPU.get)
def test_loses_where_weights_or_transforms_rule(cpu: Unit) -> None:
    block = cpu.vector_bits // 32
    assert not winograd.wins(conv3x3(2, (512, 512), block), cpu), "36 times the weights of a 1x1 for 4 outputs"
    assert not winograd.wins(conv3x3(56, (block, block), block), cpu) or block > 8, "one block of channels"


@pytest.mark.parametrize("cpu", [AVX2, AVX512], ids=MCPU.get)
def test_the_inner_loop_keeps_its_sums_in_registers(cpu: Unit) -> None:
    conv = conv3x3(56, (64, 64), cpu.vector_bits // 32)
    plan = winograd.best_plan(conv, cpu)
    assembly = build(conv, plan, MCPU[cpu]).mod.inspect_source("asm")
    loops = inner_loops(assembly)
    product = max(loops, key=lambda loop: sum("vfmadd231ps" in line for line in loop) / len(loop))
    assert sum("vfmadd231ps" in line for line in product) >= plan.tile.rows * plan.tile.vectors
    assert not [line for line in product if re.match(r"vmov\w+\s+%[yz]mm\d+, .*\(", line)], "a vector is stored"
    assert not [line for line in product if "(%rsp)" in line and "mm" in line], "a vector comes from the stack"


def inner_loops(assembly: str) -> list[list[str]]:
    """The instructions of every loop that is one basic block."""
    loops: list[list[str]] = []
    label, block = "", []
    for line in (line.strip() for line in assembly.splitlines()):
        if named := re.match(r"([\w.$]+):", line):
            label, block = named[1], []
        elif re.match(r"j\w+\s", line):
            if block and line.split()[-1] == label:
                loops.append(block)
            block = []
        elif line and not line.startswith((".", "#")):
            block.append(line)
    return loops
