"""Nodes that HVX computes: layers, pools and elementwise steps between bytes; all others are the scalar core's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from nnc import integers
from nnc.lowering.dsp import conv2d, depthwise, elementwise, gemm, steps, tables
from nnc.lowering.dsp import pool as max_pool
from nnc.lowering.dsp.finish import Finish
from nnc.lowering.dsp.unit import LANES, Dsp
from nnc.lowering.expression import Builder
from nnc.lowering.fuse import Group
from nnc.lowering.kernels import int8_conv2d, int8_gemm
from nnc.lowering.kernels.convolution import Conv2d
from nnc.lowering.kernels.depthwise import Depthwise
from nnc.lowering.kernels.int8_conv2d import Int8Conv2d
from nnc.lowering.kernels.int8_dot import DEPTH, Dot
from nnc.lowering.kernels.pool import Pool
from nnc.lowering.kernels.unit import Unit, dot_of
from nnc.lowering.layers import TEMPLATES as SCALAR
from nnc.lowering.layers import Template, factors, pooling
from nnc.lowering.layers.attributes import window_of
from nnc.lowering.layers.convolution import phases
from nnc.lowering.layers.quantized import whole_steps
from nnc.lowering.program import Operand, Tensor
from nnc.lowering.shapes import dtype_of, shape_of

if TYPE_CHECKING:
    from nnc.lowering.lowering import Lowering


_BYTE = 255

_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean")


def vectors(lowering: Lowering) -> Unit:
    """The figures of the vector unit."""
    unit = lowering.unit
    assert isinstance(unit, Dsp)
    return unit.vectors


# -- convolutions


def conv(lowering: Lowering, group: Group) -> bool:
    """Conv of images."""
    node, found = group.root, factors.of_image(lowering, group)
    window = window_of(node, found.W.shape[2:]) if found else None
    if found is None or window is None:
        return False
    x, quantization, W = found.x, found.quantization, found.W
    finish = steps.of_image(lowering, group, found.bias, found.worth, steps.largest_sum(W, quantization))
    (batch, channels), groups = shape_of(x)[:2], node.attrs.get("group", 1)
    if groups == channels == W.shape[0] and channels > 1:
        _depthwise(lowering, group, x, W, Depthwise(batch, channels, window, LANES, quantization.zero), finish)
        return True
    few = channels < LANES and not lowering.has_blocks(x)
    in_block = max(DEPTH, 1 << (channels - 1).bit_length()) if few else LANES
    direct = Conv2d(batch, channels, W.shape[0], window, groups, in_block, LANES)
    problem, out_size = Int8Conv2d(direct, quantization.zero, _dot(lowering, W)), window.out_size
    if finish.fits(*out_size):
        problem = problem.of_width(int8_conv2d.best_flat_plan(problem, vectors(lowering)).width)
        finish = finish.reshaped(*problem.conv.window.out_size)
    result = Tensor((batch, direct.out_blocks, *out_size, LANES), finish.dtype)
    shape = (batch, direct.in_blocks, *problem.conv.window.size, in_block)
    _direct(lowering, group, problem, lowering.blocked(x, in_block).view(shape), W, finish, result)
    lowering.define(group.outputs[0], result, LANES)
    return True


def conv_transpose(lowering: Lowering, group: Group) -> bool:
    """ConvTranspose of images: a convolution for each phase of the output's pixels."""
    node, found = group.root, factors.of_image(lowering, group)
    if found is None:
        return False
    x, quantization, W = found.x, found.quantization, found.W
    largest = steps.largest_sum(W, quantization, axis=1)
    finish = steps.of_image(lowering, group, found.bias, found.worth, largest)
    batch, channels, *size = shape_of(node.outputs[0])
    result = Tensor((batch, -(-channels // LANES), *size, LANES), finish.dtype)
    for direct, taps in phases(node, W, LANES):
        problem = Int8Conv2d(direct, quantization.zero, _dot(lowering, W))
        _direct(lowering, group, problem, lowering.blocked(x), taps, finish, result)
    lowering.define(group.outputs[0], result, LANES)
    return True


def _dot(lowering: Lowering, W: np.ndarray) -> Dot:
    """The dot product with weights of a byte, or of two that are added up."""
    return replace(dot_of(vectors(lowering)), parts=W.dtype.itemsize)


def _direct(
    lowering: Lowering, group: Group, problem: Int8Conv2d, x: Tensor, W: np.ndarray, finish: Finish, result: Tensor
) -> None:
    """Append a direct convolution that writes `result`."""
    plan = int8_conv2d.best_plan(problem, vectors(lowering))
    _call(
        lowering,
        group,
        ("dsp_conv2d", problem, plan, finish.key),
        [x, int8_conv2d.pack(W, problem, plan), int8_conv2d.starts(W, problem, plan), *finish.operands],
        result.view(problem.conv.out_shape),
        lambda X, P, S, *extras: conv2d.compute(X, P, S, problem, plan, finish, extras),
    )


def _depthwise(
    lowering: Lowering, group: Group, x: gs.Tensor, W: np.ndarray, problem: Depthwise, finish: Finish
) -> None:
    """Append a depthwise convolution."""
    result = Tensor((problem.batch, problem.blocks, *problem.window.out_size, LANES), finish.dtype)
    _call(
        lowering,
        group,
        ("dsp_depthwise", problem, W.dtype.itemsize, finish.key),
        [lowering.blocked(x), depthwise.pack(W, problem), depthwise.starts(W, problem), *finish.operands],
        result,
        lambda X, P, S, *extras: depthwise.compute(X, P, S, problem, finish, extras),
    )
    lowering.define(group.outputs[0], result, LANES)


# -- pools


def pool(lowering: Lowering, group: Group) -> bool:
    """Pools of bytes: a maximum, or an average of as many pixels everywhere, whose weights are one."""
    node = group.root
    problem = (pooling.windowed if node.op in ("AveragePool", "MaxPool") else pooling.whole)(node, LANES)
    if problem is None or not pooling.keeps_axes(node):
        return SCALAR[node.op](lowering, group)
    if problem.kind == "max":
        return _max_pool(lowering, group, problem) or SCALAR[node.op](lowering, group)
    made, count = integers.dequantized(node.inputs[0]), _counted(problem)
    if made is None or made[1].dtype != "uint8" or count is None:
        return SCALAR[node.op](lowering, group)
    x, quantization = made
    ones = np.ones((problem.channels, 1, *problem.window.kernel), np.int8)
    finish = steps.of_image(lowering, group, None, quantization.scale / count, _BYTE * ones[0].size)
    conv = Depthwise(problem.batch, problem.channels, problem.window, LANES, quantization.zero)
    _depthwise(lowering, group, x, ones, conv, finish)
    return True


def _counted(problem: Pool) -> int | None:
    """How many pixels an average divides by; None where that depends on its place."""
    counts = [{problem.counted(axis, at) for at in range(problem.window.out_size[axis])} for axis in (0, 1)]
    return prod(count.pop() for count in counts) if all(len(count) == 1 for count in counts) else None


def _max_pool(lowering: Lowering, group: Group, problem: Pool) -> bool:
    x = group.root.inputs[0]
    if dtype_of(x) != "uint8":
        return False
    result = Tensor((problem.batch, problem.blocks, *problem.window.out_size, LANES), "uint8")
    source = lowering.blocked(x)
    _call(lowering, group, ("dsp_max_pool", problem), [source], result, lambda X: max_pool.compute(X, problem))
    lowering.define(group.outputs[0], result, LANES)
    return True


# -- products


def product(lowering: Lowering, group: Group) -> bool:
    """Gemm and MatMul of rows with a constant matrix."""
    node, found = group.root, factors.of_rows(lowering, group)
    if found is None:
        return False
    x, quantization, W = found.x, found.quantization, found.W
    (depth, columns), out_shape = W.shape, shape_of(node.outputs[0])
    rows = prod(shape_of(x)) // depth
    largest = steps.largest_sum(W, quantization, axis=1)
    finish = steps.of_rows(lowering, group, found.bias, found.worth, largest, rows)
    if finish is None:
        return False
    plan, dot = int8_gemm.best_plan(rows, columns, depth, vectors(lowering)), _dot(lowering, W)
    result = Tensor(out_shape, finish.dtype)
    _call(
        lowering,
        group,
        ("dsp_gemm", rows, columns, depth, plan, dot, finish.key),
        [
            whole_steps(lowering, node, lowering.plain(x).view((rows, depth))),
            int8_gemm.pack(W, plan, dot),
            int8_gemm.starts(W, quantization.zero, plan),
            *finish.operands,
        ],
        result.view((rows, columns)),
        lambda A, P, S, *extras: gemm.compute(A, P, S, columns, plan, dot, finish, extras),
        "plain",
    )
    lowering.define(group.outputs[0], result)
    return True


# -- elementwise


def elementwise_(lowering: Lowering, nodes: list[gs.Node], builder: Builder) -> bool:
    """A chain of elementwise nodes from bytes to bytes; False leaves it to the scalar core."""
    output = nodes[-1].outputs[0]
    shape = shape_of(output)
    if builder.expression().dtype != "uint8":
        return False
    if _looked_up(lowering, nodes, builder):
        return True
    in_blocks = lowering.in_blocks(shape, builder.operands)
    finish = steps.of_bytes(lowering, builder, shape, in_blocks)
    if finish is None:
        return False
    result = Tensor((shape[0], -(-shape[1] // LANES), *shape[2:], LANES) if in_blocks else shape, "uint8")
    rows = shape[0] * result.shape[1] if in_blocks else 1
    size = prod(result.shape) // rows
    _call(
        lowering,
        Group(nodes),
        ("dsp_elementwise", rows, size, finish.key),
        list(finish.operands),
        result.view((rows, size)),
        lambda *ins: elementwise.compute(ins, rows, size, finish),
        f"NCHW{LANES}c" if in_blocks else "plain",
    )
    lowering.define(output, result, LANES if in_blocks else 1)
    return True


def _looked_up(lowering: Lowering, nodes: list[gs.Node], builder: Builder) -> bool:
    """Steps that read one array of bytes, which a table of 256 has the results for."""
    read = [each for each in builder.operands if isinstance(each, gs.Tensor)]
    table = tables.table_of(nodes, read[0]) if len(read) == 1 else None
    if table is None:
        return False
    shape = shape_of(nodes[-1].outputs[0])
    in_blocks = lowering.in_blocks(shape, read)
    source = lowering.blocked(read[0]) if in_blocks else lowering.plain(read[0])
    result, size = Tensor(source.shape, "uint8"), prod(source.shape)
    _call(
        lowering,
        Group(nodes),
        ("dsp_lookup", size),
        [source.view((size,)), elementwise.arranged(table)],
        result.view((size,)),
        elementwise.looked_up,
        f"NCHW{LANES}c" if in_blocks else "plain",
    )
    lowering.define(nodes[-1].outputs[0], result, LANES if in_blocks else 1)
    return True


def _call(
    lowering: Lowering,
    group: Group,
    key: tuple[Any, ...],
    operands: Sequence[Operand],
    result: Tensor,
    compute: Callable[..., Any],
    layout: str = "",
) -> None:
    """Append a call of the template that the key begins with."""
    nodes = group.nodes
    names, ops = [node.name for node in nodes], "+".join(node.op for node in nodes)
    lowering.call(key[0], key, names, ops, operands, [result], compute, layout)


TEMPLATES: dict[str, Template] = {**SCALAR, **dict.fromkeys(_POOLS, pool)}
"""Operator -> the function that takes it."""

INTEGERS: dict[str, Template] = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": product, "MatMul": product}
"""Operator -> the function that takes it where it multiplies integers."""
