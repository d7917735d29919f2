"""Templates in float16 against float64: drawn sizes, and sums that do not lose what sums in float16 would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tvm import te

from nnc.lowering.kernels import conv2d, depthwise, gemm, winograd
from nnc.lowering.kernels.convolution import Conv2d
from nnc.lowering.kernels.depthwise import Depthwise
from nnc.lowering.kernels.unit import Unit, lanes_of
from nnc.lowering.kernels.window import Window

NEON = Unit(128, 32, 2, 32 << 10, 512 << 10, 6.0, halves=True).of("float16")
BLOCK = lanes_of(NEON)

# Processors without the arithmetic convert, multiply and round: the same values, if the conversion is an instruction.
pytestmark = pytest.mark.skipif("f16c" not in Path("/proc/cpuinfo").read_text().split(), reason="no f16c here")


def run(operands: Sequence[np.ndarray], shape: Sequence[int], compute: Callable[..., te.Tensor]) -> np.ndarray:
    """What a kernel computes of arrays, as float16 of `shape`."""
    tensors = [te.placeholder(each.shape, each.dtype.name, f"p{i}") for i, each in enumerate(operands)]
    function = te.create_prim_func([*tensors, compute(*tensors)])
    built = tvm.compile(tvm.IRModule({"main": function}), tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"}))
    result = tvm.runtime.tensor(np.full(shape, np.nan, np.float16))
    built["main"](*map(tvm.runtime.tensor, operands), result)
    return result.numpy()


def cast(value: Any, index: Any) -> Any:
    """The epilogue that only stores."""
    return value.astype("float16")


def in_blocks(x: np.ndarray) -> np.ndarray:
    n, channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, -channels % BLOCK), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, BLOCK, height, width).transpose(0, 1, 3, 4, 2))


def plain(y: np.ndarray, channels: int) -> np.ndarray:
    return y.transpose(0, 1, 4, 2, 3).reshape(y.shape[0], -1, *y.shape[2:4])[:, :channels]


def convolved(x: np.ndarray, W: np.ndarray, window: Window, groups: int) -> np.ndarray:
    """Tap by tap, float64."""
    (height, width), (ins, outs) = window.out_size, (x.shape[1] // groups, W.shape[0] // groups)
    result = np.zeros((x.shape[0], W.shape[0], height, width))
    for y, column, kh, kw in product(*map(range, (height, width, *window.kernel))):
        row, place = window.row(y, kh), window.column(column, kw)
        if 0 <= row < x.shape[2] and 0 <= place < x.shape[3]:
            for group in range(groups):
                read = x[:, group * ins : (group + 1) * ins, row, place].astype(np.float64)
                taps = W[group * outs : (group + 1) * outs, :, kh, kw].astype(np.float64)
                result[:, group * outs : (group + 1) * outs, y, column] += read @ taps.T
    return result


def halves(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(np.float16)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 4e-3) -> bool:
    """Relative to the largest value; NaN is not close."""
    return bool(np.abs(found - expected).max() <= tolerance * np.abs(expected).max())


@settings(max_examples=12, deadline=None)
@example((16, 1), 1, (5, 5), (1, 1), 1)
@given(
    st.sampled_from([(3, 1), (16, 1), (21, 1), (24, 3), (40, 1)]),
    st.integers(1, 19),
    st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 7), (9, 2)]),
    st.sampled_from([(1, 1), (2, 1), (2, 2)]),
    st.integers(0, 2),
)
def test_convolutions(
    channels: tuple[int, int], outs: int, kernel: tuple[int, int], strides: tuple[int, int], pad: int
) -> None:
    (ins, groups), size = channels, (9, 11)
    outs, pads = outs * groups, (min(pad, kernel[0] - 1), min(pad, kernel[1] - 1))
    out = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, pads, kernel, strides, strict=True))
    window = Window(size, kernel, strides, (1, 1), pads, (out[0], out[1]))
    in_block = 1 if ins < BLOCK else BLOCK
    conv = Conv2d(1, ins, outs, window, groups, in_block, BLOCK, dtype="float16")
    x, W = halves(1, ins, *size), halves(outs, ins // groups, *kernel, seed=1)
    plan = conv2d.best_plan(conv, NEON)
    found = run(
        [x if in_block == 1 else in_blocks(x), conv2d.pack(W, conv, plan)],
        conv.out_shape,
        lambda X, P: conv2d.compute(X, P, conv, plan, (), cast, "float16"),
    )
    assert close(plain(found, outs), convolved(x, W, window, groups))


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 20), st.sampled_from([3, 5]), st.integers(1, 2), st.integers(0, 2))
def test_depthwise_convolutions(channels: int, kernel: int, stride: int, pad: int) -> None:
    out = (10 + 2 * pad - kernel) // stride + 1
    window = Window((10, 10), (kernel, kernel), (stride, stride), (1, 1), (pad, pad), (out, out))
    conv = Depthwise(2, channels, window, BLOCK, None, "float16")
    x, W = halves(2, channels, 10, 10), halves(channels, 1, kernel, kernel, seed=1)
    plan = depthwise.best_plan(conv, NEON)
    found = run(
        [in_blocks(x), depthwise.pack(W, conv)],
        (2, conv.blocks, out, out, BLOCK),
        lambda X, P: depthwise.compute(X, P, conv, plan, (), cast, "float16"),
    )
    assert close(plain(found, channels), convolved(x, W, window, channels))


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 400))
def test_products(rows: int, columns: int, depth: int) -> None:
    A, W = halves(rows, depth), halves(depth, columns, seed=1)
    plan = gemm.best_plan(rows, columns, depth, NEON)
    found = run(
        [A, gemm.pack(W, plan)],
        (rows, columns),
        lambda X, P: gemm.compute(X, P, columns, plan, (), cast, "float16"),
    )
    assert close(found, A.astype(np.float64) @ W.astype(np.float64))


@pytest.mark.parametrize("outputs", [2, 4])
def test_winograd(outputs: int) -> None:
    size, channels = 11, 72
    window = Window((size, size), (3, 3), (1, 1), (1, 1), (1, 1), (size, size))
    problem = winograd.Convolution.of(Conv2d(1, channels, 16, window, 1, BLOCK, BLOCK, dtype="float16"))
    assert problem is not None
    plan = next(each for each in winograd.plans(problem, NEON) if each.outputs == outputs)
    x, W = halves(1, channels, size, size), halves(16, channels, 3, 3, seed=1)
    found = run(
        [in_blocks(x), winograd.pack(W, plan)],
        (1, 2, size, size, BLOCK),
        lambda X, U: winograd.compute(X, U, problem, plan, (), cast, "float16"),
    )
    assert close(plain(found, 16), convolved(x, W, window, 1), {2: 8e-3, 4: 2e-2}[outputs])


def test_long_sums_are_exact_where_sums_in_float16_stand_still() -> None:
    """4096 ones: float16 has no odd numbers from 2048 on, and adding 1 to it changes nothing."""
    A, W = np.ones((1, 4096), np.float16), np.ones((4096, 8), np.float16)
    plan = gemm.best_plan(1, 8, 4096, NEON)
    found = run([A, gemm.pack(W, plan)], (1, 8), lambda X, P: gemm.compute(X, P, 8, plan, (), cast, "float16"))
    assert (found == 4096).all()
    x, W = np.ones((1, 512, 4, 4), np.float16), np.ones((8, 512, 3, 3), np.float16)
    window = Window((4, 4), (3, 3), (1, 1), (1, 1), (0, 0), (2, 2))
    conv = Conv2d(1, 512, 8, window, 1, BLOCK, BLOCK, dtype="float16")
    tile = conv2d.best_plan(conv, NEON)
    found = run(
        [in_blocks(x), conv2d.pack(W, conv, tile)],
        conv.out_shape,
        lambda X, P: conv2d.compute(X, P, conv, tile, (), cast, "float16"),
    )
    assert (found == 4608).all()
