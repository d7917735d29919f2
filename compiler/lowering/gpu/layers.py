"""Nodes that have a schedule template for GPUs, as `nnc.lowering.layers` says it for CPUs."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from nnc import integers
from nnc.lowering.fuse import Group
from nnc.lowering.gpu import gemm
from nnc.lowering.gpu.conv2d import Convolution
from nnc.lowering.gpu.unit import Gpu
from nnc.lowering.layers import Template, convolution, pooling
from nnc.lowering.layers.attributes import along_channels, array_of, input_of, window_of
from nnc.lowering.layers.emit import Kernel, emit
from nnc.lowering.program import Tensor
from nnc.lowering.shapes import shape_of

if TYPE_CHECKING:
    from nnc.lowering.lower import Lowering


def conv(lowering: Lowering, group: Group) -> bool:
    """Conv of images with constant weights: of float32, or of bytes that stand for it, which become floats as read."""
    node = group.root
    x, W, bias = input_of(node, 0), array_of(node, 1), input_of(node, 2)
    window = window_of(node, W.shape[2:]) if W is not None and W.ndim == 4 else None
    if W is None or window is None or W.dtype != np.float32 or x is None or x.dtype != np.float32:
        return False
    batch, channels = shape_of(x)[:2]
    tail = lowering.tail(group, along_channels(bias, 4), lowering.block, shape_of(node.outputs[0]))
    groups, zero = node.attrs.get("group", 1), None
    if made := integers.dequantized(x):
        x, zero, W = made[0], made[1].zero, W * np.float32(made[1].scale)
    if groups == channels == W.shape[0]:
        convolution.emit_depthwise(lowering, group, x, W, window, tail, zero)
        return True
    few = channels < lowering.block and not lowering.has_blocks(x)
    source = lowering.plain(x) if few else lowering.blocked(x)
    in_block = 1 if few else lowering.block
    problem = Convolution(batch, channels, W.shape[0], window, groups, in_block, lowering.block, None, zero or 0)
    result = Tensor(problem.out_shape, tail.dtype)
    convolution.direct_into(lowering, group, problem, source, W, tail, result)
    lowering.define(group.outputs[0], result, lowering.block)
    return True


def gemm_(lowering: Lowering, group: Group) -> bool:
    """Gemm with constant weights: `alpha` and `beta` are folded into the constants."""
    node = group.root
    x, weights, bias = input_of(node, 0), array_of(node, 1), input_of(node, 2)
    if x is None or weights is None or weights.dtype != np.float32 or node.attrs.get("transA", 0):
        return False
    W = np.float32(node.attrs.get("alpha", 1.0)) * (weights.T if node.attrs.get("transB", 0) else weights)
    beta = node.attrs.get("beta", 1.0)
    if isinstance(bias, gs.Constant):
        bias = np.float32(beta) * bias.values
    elif bias is not None and beta != 1.0:
        return False
    _product(lowering, group, lowering.plain(x), W, bias)
    return True


def matmul(lowering: Lowering, group: Group) -> bool:
    """MatMul of float32 rows with a constant matrix."""
    x, W = input_of(group.root, 0), array_of(group.root, 1)
    if x is None or isinstance(x, gs.Constant) or W is None or W.ndim != 2 or W.dtype != np.float32:
        return False
    if len(shape_of(x)) < 2:
        return False
    _product(lowering, group, lowering.plain(x), W, None)
    return True


def _product(lowering: Lowering, group: Group, x: Tensor, W: np.ndarray, bias: gs.Tensor | np.ndarray | None) -> None:
    assert isinstance(lowering.unit, Gpu)
    depth, columns = W.shape
    rows, out_shape = prod(x.shape) // depth, shape_of(group.root.outputs[0])
    tail = lowering.tail(group, bias, 1, out_shape).as_rows(rows, out_shape)
    if tail is None:
        alone = Group([group.root], [group.root.outputs[0]])
        _product(lowering, alone, x, W, bias)
        lowering.elementwise(group.nodes[1:])
        return
    tile = gemm.best_plan(rows, columns, depth, lowering.unit)
    emit(
        lowering,
        group,
        Kernel("gemm", (rows, columns, depth), tile),
        [x.view((rows, depth)), gemm.pack(W, tile)],
        tail,
        (rows, columns),
        lambda A, P, extras: gemm.compute(A, P, columns, tile, extras, tail.epilogue(extras), tail.dtype),
        out_shape,
        block=1,
    )


TEMPLATES: dict[str, Template] = {
    "AveragePool": pooling.spatial_pool,
    "Conv": conv,
    "ConvTranspose": convolution.conv_transpose,
    "Gemm": gemm_,
    "GlobalAveragePool": pooling.global_pool,
    "GlobalMaxPool": pooling.global_pool,
    "MatMul": matmul,
    "MaxPool": pooling.spatial_pool,
    "ReduceMax": pooling.global_pool,
    "ReduceMean": pooling.global_pool,
}
"""Operator -> the function that takes it."""
