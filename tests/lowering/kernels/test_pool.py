"""Pools against numpy: borders, dilation, what an average divides by, channels that fill no block, epilogues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te, tirx

from nnc.lowering.kernels import pool, relayout
from nnc.lowering.kernels.pool import Pool
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.kernels.window import Window

AVX2 = Unit(256, 16, 2, 32 << 10, 512 << 10, 6.0)

Two = tuple[int, int]
BLOCK = 8


def in_blocks(x: np.ndarray) -> np.ndarray:
    n, channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, -channels % BLOCK), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, BLOCK, height, width).transpose(0, 1, 3, 4, 2))


def expected(x: np.ndarray, problem: Pool) -> np.ndarray:
    """Element by element, float64."""
    window = problem.window
    result = np.empty((*x.shape[:2], *window.out_size))
    end = problem.padded_end or (x.shape[2], x.shape[3])
    start = window.origin if problem.padded_end else (0, 0)
    for y, column in product(*map(range, window.out_size)):
        rows = [window.row(y, k) for k in range(window.kernel[0])]
        columns = [window.column(column, k) for k in range(window.kernel[1])]
        inside = [(r, c) for r in rows for c in columns if 0 <= r < x.shape[2] and 0 <= c < x.shape[3]]
        counted = sum(-start[0] <= r < end[0] and -start[1] <= c < end[1] for r in rows for c in columns)
        taken = np.stack([x[:, :, r, c].astype(np.float64) for r, c in inside])
        result[:, :, y, column] = taken.max(0) if problem.kind == "max" else taken.sum(0) / counted
    return result


def check(problem: Pool, epilogue: Callable[[Any, Any], Any] | None = None, after: Callable = lambda y: y) -> None:
    shape = (problem.batch, problem.channels, *problem.window.size)
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    X = te.placeholder(relayout.blocked_shape(shape, BLOCK), name="X")
    options = {} if epilogue is None else {"epilogue": epilogue}
    function = te.create_prim_func([X, pool.compute(X, problem, AVX2, **options)])
    built = tvm.compile(tvm.IRModule({"main": function}), tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"}))
    out_shape = (problem.batch, problem.channels, *problem.window.out_size)
    result = tvm.runtime.tensor(np.full(relayout.blocked_shape(out_shape, BLOCK), np.nan, np.float32))
    built["main"](tvm.runtime.tensor(in_blocks(x)), result)
    assert np.isfinite(result.numpy()).all(), "the channels that fill the last block are finite too"
    plain = result.numpy().transpose(0, 1, 4, 2, 3).reshape(problem.batch, -1, *problem.window.out_size)
    np.testing.assert_allclose(plain[:, : problem.channels], after(expected(x, problem)), rtol=1e-5, atol=1e-6)


def sliding(size: Two, kernel: Two, strides: Two, pads: Two, dilations: Two = (1, 1), extra: Two = (0, 0)) -> Window:
    """A window with the same padding on both sides, and `extra` results beyond, as ceil_mode has them."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    first, second = (
        (n + 2 * p - r) // s + 1 + e for n, p, r, s, e in zip(size, pads, reach, strides, extra, strict=True)
    )
    return Window(size, kernel, strides, dilations, pads, (first, second))


WINDOWS = [
    sliding((14, 14), (2, 2), (2, 2), (0, 0)),
    sliding((13, 17), (3, 3), (2, 2), (1, 1)),
    sliding((12, 9), (3, 2), (1, 3), (1, 0)),
    sliding((11, 10), (3, 3), (1, 1), (2, 2), (2, 2)),
    sliding((10, 11), (3, 3), (2, 2), (0, 0), extra=(1, 0)),
    sliding((5, 40), (5, 1), (1, 1), (2, 0)),
    sliding((7, 7), (7, 7), (1, 1), (0, 0)),
    sliding((1, 1), (1, 1), (1, 1), (0, 0)),
]


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("window", WINDOWS, ids=lambda w: f"{w.size}-{w.kernel}-{w.strides}-{w.origin}-{w.dilations}")
def test_matches_numpy(window: Window, kind: Any) -> None:
    check(Pool(kind, 2, 21, window, BLOCK))


@pytest.mark.parametrize("window", WINDOWS[1:5], ids=lambda w: f"{w.size}-{w.kernel}")
def test_average_that_counts_padding(window: Window) -> None:
    """Of a window that reaches past the padded image, only what is inside of it counts."""
    end = (window.size[0] + window.origin[0], window.size[1] + window.origin[1])
    check(Pool("average", 1, 10, window, BLOCK, padded_end=end))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_window(data: st.DataObject) -> None:
    def two(low: int, high: int) -> Two:
        return data.draw(st.integers(low, high)), data.draw(st.integers(low, high))

    size, kernel, dilations = two(1, 20), two(1, 5), two(1, 2)
    # A window is never all padding, as ONNX wants it.
    kernel = tuple(min(k, (n - 1) // d + 1) for k, n, d in zip(kernel, size, dilations, strict=True))
    pads = tuple(data.draw(st.integers(0, (k - 1) * d // 2)) for k, d in zip(kernel, dilations, strict=True))
    window = sliding(size, kernel, two(1, 3), pads, dilations)  # type: ignore[arg-type]
    kind: Any = data.draw(st.sampled_from(["max", "average"]))
    check(Pool(kind, data.draw(st.integers(1, 2)), data.draw(st.integers(1, 20)), window, BLOCK))


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("window", [WINDOWS[1], WINDOWS[6]], ids=["sliding", "global"])
def test_epilogue(window: Window, kind: Any) -> None:
    """It sees every value once, with its place."""

    def epilogue(value: Any, index: Any) -> Any:
        channel = (index[1] * BLOCK + index[4]).astype("float32")
        return tirx.max(value, tirx.const(0, "float32")) + channel

    channels = np.arange(21).reshape(1, -1, 1, 1)
    check(Pool(kind, 2, 21, window, BLOCK), epilogue, lambda y: np.maximum(y, 0) + channels)


def test_global_pools_are_recognized() -> None:
    window = WINDOWS[6]
    assert Pool("max", 1, 8, window, BLOCK).is_global
    assert not Pool("max", 1, 8, replace(window, out_size=(2, 1)), BLOCK).is_global
    assert not Pool("max", 1, 8, WINDOWS[0], BLOCK).is_global
