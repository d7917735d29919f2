"""Layers that multiply integers: Conv, ConvTranspose, Gemm and MatMul of dequantized activations and weights."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from nnc.lowering.fuse import Group
from nnc.lowering.kernels import int8_conv2d, int8_gemm, int8_winograd, winograd_plan
from nnc.lowering.kernels.int8_dot import DEPTH, Dot
from nnc.lowering.kernels.unit import dot_of
from nnc.lowering.kernels.window import Window
from nnc.lowering.layers import factors
from nnc.lowering.layers.attributes import window_of
from nnc.lowering.layers.convolution import as_direct, emit_depthwise, phases, transposed_result
from nnc.lowering.layers.emit import Kernel, call, emit
from nnc.lowering.layers.factors import Factors
from nnc.lowering.program import Tensor
from nnc.lowering.shapes import shape_of
from nnc.lowering.tail import Tail

if TYPE_CHECKING:
    from nnc.lowering.lowering import Lowering

_EXACT = 2**24  # whole numbers up to here are floats
_WIDEST = 255 * 128  # product of bytes


def conv(lowering: Lowering, group: Group) -> bool:
    """Conv of images, depthwise or direct."""
    node, found = group.root, factors.of_image(lowering, group)
    window = window_of(node, found.W.shape[2:]) if found else None
    if found is None or window is None:
        return False
    x, quantization, W = found.x, found.quantization, found.W
    groups, is_exact = node.attrs.get("group", 1), prod(window.kernel) * _WIDEST < _EXACT
    if groups == W.shape[0] == shape_of(x)[1] and is_exact:
        tail = lowering.tail(group, found.bias, lowering.block, shape_of(node.outputs[0]), found.worth)
        emit_depthwise(lowering, group, x, W, window, tail, quantization.zero)
        return True
    tail = lowering.tail(group, found.bias, lowering.block, shape_of(node.outputs[0]), found.worth, "int32")
    _dense(lowering, group, x, quantization.zero, W, window, tail)
    return True


def _dense(
    lowering: Lowering, group: Group, x: gs.Tensor, zero: int, W: np.ndarray, window: Window, tail: Tail
) -> None:
    """Append a convolution by Winograd's algorithm or a direct one, whatever the plan says."""
    groups, dot = group.root.attrs.get("group", 1), _dot(lowering, W)
    few = max(DEPTH, 1 << (shape_of(x)[1] - 1).bit_length())
    source, direct = as_direct(lowering, group, x, W, window, groups, lowering.block, few)
    tiled = winograd_plan.Convolution.of(direct) if dot.widens else None
    problem = int8_conv2d.Int8Conv2d(direct, zero, dot, tuple(int8_winograd.sizes(W, zero)) if tiled else ())
    plan = lowering.plan(group, problem, tail)
    if isinstance(plan, winograd_plan.Plan):
        assert tiled is not None
        _winograd(lowering, group, source, W, problem, tiled, plan, tail)
    else:
        _direct(lowering, group, source, W, problem, plan, tail)


def _winograd(
    lowering: Lowering,
    group: Group,
    x: Tensor,
    W: np.ndarray,
    direct: int8_conv2d.Int8Conv2d,
    problem: winograd_plan.Convolution,
    plan: winograd_plan.Plan,
    tail: Tail,
) -> None:
    zero, dot = direct.zero, direct.dot
    emit(
        lowering,
        group,
        Kernel("int8_winograd", (problem, zero), plan),
        [x, partial(int8_winograd.pack, W, plan)],
        tail,
        (problem.batch, problem.out_blocks, *problem.out_size, problem.block),
        lambda X, U, extras: int8_winograd.compute(
            X, U, problem, zero, dot, plan, tail.dtype, extras, tail.epilogue(extras)
        ),
    )


def _direct(
    lowering: Lowering,
    group: Group,
    x: Tensor,
    W: np.ndarray,
    conv: int8_conv2d.Int8Conv2d,
    plan: int8_conv2d.Int8Plan,
    tail: Tail,
) -> None:
    problem, result = conv.of_width(plan.width), Tensor(conv.conv.out_shape, tail.dtype)
    tail = tail.reshaped(*problem.conv.window.out_size) if problem != conv else tail
    _direct_into(lowering, group, problem, x.view(problem.conv.in_shape), W, tail, result, plan)
    lowering.define(group.outputs[0], result, conv.conv.block)


def _direct_into(
    lowering: Lowering,
    group: Group,
    problem: int8_conv2d.Int8Conv2d,
    x: Tensor,
    W: np.ndarray,
    tail: Tail,
    result: Tensor,
    plan: int8_conv2d.Int8Plan | None = None,
) -> None:
    """Append a direct convolution that writes `result`; without a plan, the one that the figures choose."""
    plan = plan or int8_conv2d.best_plan(problem, lowering.unit)
    call(
        lowering,
        group,
        Kernel("int8_conv2d", problem, plan),
        [x, partial(int8_conv2d.pack, W, problem, plan), partial(int8_conv2d.starts, W, problem, plan)],
        tail,
        result.view(problem.conv.out_shape),
        lambda X, P, S, extras: int8_conv2d.compute(X, P, S, problem, plan, tail.dtype, extras, tail.epilogue(extras)),
        f"NCHW{problem.conv.block}c",
    )


def conv_transpose(lowering: Lowering, group: Group) -> bool:
    """ConvTranspose of images: a convolution for each phase of the output's pixels."""
    node, found = group.root, factors.of_image(lowering, group)
    if found is None:
        return False
    tail = lowering.tail(group, found.bias, lowering.block, shape_of(node.outputs[0]), found.worth, "int32")
    result = transposed_result(lowering, node, tail)
    for direct, taps in phases(node, found.W, lowering.block):
        problem = int8_conv2d.Int8Conv2d(direct, found.quantization.zero, _dot(lowering, found.W))
        _direct_into(lowering, group, problem, lowering.blocked(found.x), taps, tail, result)
    lowering.define(group.outputs[0], result, lowering.block)
    return True


def _dot(lowering: Lowering, W: np.ndarray) -> Dot:
    """The unit's instruction, or what takes its place for weights of -128."""
    dot = dot_of(lowering.unit)
    return Dot("smull", dot.lanes) if dot.instruction == "smlal" and W.min(initial=0) == -128 else dot


def product(lowering: Lowering, group: Group) -> bool:
    """Gemm and MatMul of rows with a constant matrix."""
    found = factors.of_rows(lowering, group)
    if found is not None:
        _product(lowering, group, found)
    return found is not None


def _product(lowering: Lowering, group: Group, found: Factors) -> None:
    (depth, columns), out_shape = found.W.shape, shape_of(group.root.outputs[0])
    rows = prod(shape_of(found.x)) // depth
    tail = lowering.tail(group, found.bias, 1, out_shape, found.worth, "int32").as_rows(rows, out_shape)
    if tail is None:
        _product(lowering, Group([group.root], [group.root.outputs[0]]), found)
        lowering.elementwise(group.nodes[1:])
        return
    problem = int8_gemm.Int8Gemm(rows, columns, -(-depth // DEPTH) * DEPTH, _dot(lowering, found.W))
    plan, dot = lowering.plan(group, problem, tail), problem.dot
    emit(
        lowering,
        group,
        Kernel("int8_gemm", problem, plan),
        [
            whole_steps(lowering, group.root, lowering.plain(found.x).view((rows, depth))),
            partial(int8_gemm.pack, found.W, plan, dot),
            partial(int8_gemm.starts, found.W, found.quantization.zero, plan),
        ],
        tail,
        (rows, columns),
        lambda A, P, S, extras: int8_gemm.compute(
            A, P, S, columns, plan, dot, tail.dtype, extras, tail.epilogue(extras)
        ),
        out_shape,
    )


def whole_steps(lowering: Lowering, node: gs.Node, x: Tensor) -> Tensor:
    """Rows whose length is a multiple of a step's; what is behind their ends meets weights of zero."""
    rows, depth = x.shape
    if depth % DEPTH == 0:
        return x
    longer = Tensor((rows, -(-depth // DEPTH) * DEPTH), x.dtype)
    lowering.copy([node.name], x, longer, rows, depth, depth, longer.shape[1])
    return longer
