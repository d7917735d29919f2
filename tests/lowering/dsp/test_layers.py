"""Every class of operators between bytes: vector code, and numbers that are onnxruntime's up to one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Draft = Any  # of conftest.py


def templates(built: Any) -> set[str]:
    """Templates of kernels that compute; moves of whole tensors are left out."""
    return {kernel.template for kernel in built.kernels} - {"copy", "to_blocked", "to_plain"}


def test_convolutions(draft: Draft, compare: Callable[..., Any]) -> None:
    """Channels that fill neither steps of four nor blocks of 32, and windows of all kinds."""
    problems: list[tuple[tuple[int, int, int, int], int, tuple[int, int], dict[str, Any]]] = [
        ((1, 3, 17, 15), 24, (5, 3), {"pads": [2, 1, 2, 1], "strides": [2, 2]}),
        ((2, 40, 5, 6), 33, (3, 3), {"pads": [1, 1, 1, 1]}),
        ((1, 70, 7, 3), 130, (1, 1), {}),
        ((1, 64, 5, 5), 8, (1, 1), {"strides": [2, 2]}),
        ((1, 12, 6, 9), 24, (3, 2), {"group": 3, "dilations": [2, 1], "pads": [0, 1, 1, 0]}),
        ((1, 1, 1, 1), 37, (1, 1), {}),
        ((1, 37, 1, 1), 1, (1, 1), {}),
        ((1, 8, 2, 2), 5, (3, 3), {"pads": [1, 1, 1, 1]}),
    ]
    for shape, outs, kernel, attrs in problems:
        draft.output(draft.q(draft.conv(draft.input(*shape), shape[1], outs, kernel, **attrs)))
    built = compare(draft.graph())
    assert templates(built) <= {"dsp_conv2d", "elementwise", "dsp_elementwise"}


def test_computed_biases(draft: Draft, compare: Callable[..., Any]) -> None:
    """As recipes leave them that do not fold constants."""
    x = draft.input(1, 40, 5, 6)
    bias = [draft.add("Identity", draft.bias(channels)) for channels in (40, 10)]
    draft.output(draft.q(draft.add("Conv", x, draft.weights(40, 40, 3, 3), bias[0], pads=[1, 1, 1, 1])))
    draft.output(draft.q(draft.add("Conv", x, draft.weights(40, 1, 3, 3), bias[0], group=40)))
    draft.output(draft.q(draft.add("ConvTranspose", x, draft.weights(40, 10, 3, 3, axis=1), bias[1])))
    draft.output(draft.q(draft.add("Gemm", draft.input(3, 16), draft.weights(16, 40, axis=1), bias[0])))
    assert templates(compare(draft.graph())) >= {"dsp_conv2d", "dsp_depthwise", "dsp_gemm"}


def test_depthwise(draft: Draft, compare: Callable[..., Any]) -> None:
    problems: list[tuple[tuple[int, int, int, int], tuple[int, int], dict[str, Any]]] = [
        ((1, 40, 9, 9), (3, 3), {"pads": [1, 1, 1, 1]}),
        ((2, 5, 7, 11), (3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((1, 33, 12, 8), (5, 5), {"pads": [2, 2, 2, 2], "strides": [1, 2]}),
        ((1, 32, 10, 13), (2, 7), {"strides": [3, 3], "dilations": [2, 1]}),
        ((1, 36, 3, 3), (3, 3), {"pads": [1, 2, 1, 2], "dilations": [1, 2]}),
        ((1, 34, 3, 20), (1, 19), {}),
    ]
    for (n, channels, *size), kernel, attrs in problems:
        x = draft.input(n, channels, *size)
        draft.output(draft.q(draft.conv(x, channels, channels, kernel, group=channels, **attrs)))
    assert templates(compare(draft.graph())) == {"dsp_depthwise"}


def test_pools(draft: Draft, compare: Callable[..., Any]) -> None:
    x = draft.input(2, 40, 9, 10)
    for attrs in (
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [2, 4], "strides": [1, 3], "ceil_mode": 1},
        {"kernel_shape": [1, 1], "strides": [2, 2]},
    ):
        draft.output(draft.q(draft.add("MaxPool", x, **attrs), 0.03, 117))
    draft.output(draft.q(draft.add("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2]), 0.023))
    padded = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    draft.output(draft.q(draft.add("AveragePool", x, count_include_pad=1, **padded), 0.023))
    draft.output(draft.q(draft.add("AveragePool", x, **padded), 0.023))  # its edges divide by less
    draft.output(draft.q(draft.add("GlobalAveragePool", x), 0.011))
    draft.output(draft.q(draft.add("GlobalMaxPool", x), 0.03, 117))
    draft.output(draft.q(draft.add("ReduceMean", x, axes=[2, 3]), 0.011))
    built = compare(draft.graph())
    assert templates(built) == {"dsp_max_pool", "dsp_depthwise", "dsp_lookup", "average_pool"}


def test_values_between_two_integers_go_where_onnx_says(draft: Draft, compare: Callable[..., Any]) -> None:
    """Averages of four, in steps that floats hold exactly: every fourth is a tie."""
    for zero in (100, 101):
        x = draft.input(1, 32, 8, 8, scale=0.25, zero=zero)
        draft.output(draft.q(draft.add("AveragePool", x, kernel_shape=[2, 2]), 0.25, zero))
        y = draft.input(1, 32, 8, 8, scale=0.25, zero=zero)
        draft.output(draft.q(draft.add("Add", x, y), 0.5, zero))
    compare(draft.graph(), share=0.0)


def test_steps_behind_a_convolution(draft: Draft, compare: Callable[..., Any]) -> None:
    """Residuals, limits, a second rounding, and a gate for each channel."""
    x = draft.input(1, 40, 6, 7)
    y = draft.rounded(draft.conv(x, 40, 40, (3, 3), pads=[1, 1, 1, 1]), 0.06, 90)
    draft.output(draft.q(draft.add("Relu", draft.add("Add", y, x)), 0.03, 0))
    draft.output(draft.q(draft.add("Clip", y, draft.constant(-0.5), draft.constant(2.0)), 0.05, 77))
    gate = draft.rounded(draft.add("Sigmoid", draft.add("GlobalAveragePool", y)), 1 / 256, 0)
    draft.output(draft.q(draft.add("Mul", y, gate), 0.05))
    built = compare(draft.graph())
    assert templates(built) <= {"dsp_conv2d", "dsp_elementwise", "dsp_depthwise", "dsp_lookup"}


def test_elementwise(draft: Draft, compare: Callable[..., Any]) -> None:
    """On images and on plain arrays whose size is no multiple of a register's."""
    rng = draft.rng
    for shape in ((3, 37), (1, 2, 130), (7,)):
        a = draft.input(*shape, scale=float(rng.uniform(0.01, 0.05)), zero=int(rng.integers(256)))
        b = draft.input(*shape, scale=float(rng.uniform(0.01, 0.05)), zero=int(rng.integers(256)))
        for op, scale in (("Add", 0.06), ("Sub", 0.06), ("Mul", 0.2)):
            draft.output(draft.q(draft.add(op, a, b), scale, int(rng.integers(80, 160))))
        for op in ("HardSwish", "Tanh", "LeakyRelu", "Neg"):
            draft.output(draft.q(draft.add(op, a), 0.04))
    built = compare(draft.graph())
    assert templates(built) == {"dsp_elementwise", "dsp_lookup"}


def test_parameters_of_one_channel(draft: Draft, compare: Callable[..., Any]) -> None:
    """They are one number, but onnxruntime wants them with their axes."""
    parameters = [draft.constant([value]) for value in (1.5, 0.2, -0.1, 2.0)]
    for shape in ((1, 1, 28, 28), (2, 1, 9)):
        draft.output(draft.q(draft.add("BatchNormalization", draft.input(*shape), *parameters)))
    scale = draft.constant(np.full((1, 1, 1, 1), 1.3))
    draft.output(draft.q(draft.add("Relu", draft.add("Conv", draft.input(1, 1, 6, 6), scale, parameters[1]))))
    draft.output(draft.q(draft.add("PRelu", draft.input(1, 1, 6, 6), parameters[1])))
    built = compare(draft.graph())
    assert {kernel.template for kernel in built.kernels if "BatchNormalization" in kernel.op} == {"dsp_lookup"}


def test_products(draft: Draft, compare: Callable[..., Any]) -> None:
    for rows, depth, columns in ((1, 64, 10), (3, 50, 70), (13, 130, 257), (1, 1, 1)):
        W = draft.weights(depth, columns, axis=1)
        x = draft.input(rows, depth)
        draft.output(draft.q(draft.add("Gemm", x, W, draft.bias(columns)), 0.05))
        draft.output(draft.add("Gemm", x, W, draft.bias(columns)))  # scores in floats
    assert templates(compare(draft.graph())) == {"dsp_gemm"}


def test_transposed_convolutions(draft: Draft, compare: Callable[..., Any]) -> None:
    for strides, pads in (([2, 2], [1, 1, 1, 1]), ([2, 1], [0, 1, 0, 1])):
        W = draft.weights(6, 34, 3, 3, axis=1)
        y = draft.add("ConvTranspose", draft.input(1, 6, 5, 4), W, draft.bias(34), strides=strides, pads=pads)
        draft.output(draft.q(y, 0.05))
    assert templates(compare(draft.graph())) == {"dsp_conv2d"}


@pytest.mark.parametrize("channels", [3, 40])
def test_planes_become_blocks_and_planes_again(draft: Draft, compare: Callable[..., Any], channels: int) -> None:
    """Images of more than a register of pixels, which are shuffled, and one that is larger by a few."""
    for size in ((16, 17), (3, 5)):
        x = draft.input(2, channels, *size)
        y = draft.rounded(draft.conv(x, channels, channels, (1, 1)))
        draft.output(draft.q(draft.add("Transpose", y, perm=[0, 2, 3, 1])), draft.q(draft.add("Concat", y, y, axis=1)))
    compare(draft.graph())


def test_weights_of_nine_bits(draft: Draft, compare: Callable[..., Any]) -> None:
    """Unsigned ones less their zero point: sums of two bytes, whichever they are."""

    def weights(*shape: int, zero: int, axis: int = 0) -> str:
        values = draft.constant(draft.rng.integers(0, 256, shape), np.uint8)
        scales = draft.constant(np.full(shape[axis], 0.003))
        return draft.add(
            "DequantizeLinear", values, scales, draft.constant(np.full(shape[axis], zero), np.uint8), axis=axis
        )

    for zero in (1, 120, 255):
        x = draft.input(1, 9, 5, 6)
        draft.output(draft.q(draft.add("Conv", x, weights(34, 9, 3, 3, zero=zero), pads=[1, 1, 1, 1]), 0.5))
        draft.output(draft.q(draft.add("Conv", x, weights(9, 1, 3, 3, zero=zero), group=9), 0.1))
        draft.output(draft.q(draft.add("MatMul", draft.input(3, 18), weights(18, 40, zero=zero, axis=1)), 0.2))
    assert templates(compare(draft.graph())) == {"dsp_conv2d", "dsp_depthwise", "dsp_gemm"}


def test_what_is_left_in_floats_behind_a_layer(draft: Draft, compare: Callable[..., Any]) -> None:
    """Signed outputs and functions of sums are the scalar core's, and must not take the compiler minutes."""
    y = draft.conv(draft.input(1, 40, 9, 9), 40, 33, (1, 1))
    draft.output(draft.q(draft.add("Mul", y, draft.add("Sigmoid", y))))
    signed = (draft.constant(0.05), draft.constant(-3, np.int8))
    draft.output(draft.add("QuantizeLinear", draft.conv(draft.input(1, 8, 7, 7), 8, 40, (3, 3)), *signed))
    assert templates(compare(draft.graph())) == {"dsp_conv2d"}
