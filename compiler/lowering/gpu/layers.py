"""Nodes that have a schedule template for GPUs, as `nnc.lowering.layers` says it for CPUs."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from nnc import integers
from nnc.lowering.fuse import Group
from nnc.lowering.gpu import gemm
from nnc.lowering.gpu.conv2d import Convolution
from nnc.lowering.gpu.unit import Gpu
from nnc.lowering.layers import Template, convolution, factors, pooling, products
from nnc.lowering.layers.attributes import array_of, bias_of, input_of, window_of
from nnc.lowering.layers.emit import Kernel, emit
from nnc.lowering.layers.products import Bias, Weights
from nnc.lowering.program import Tensor
from nnc.lowering.shapes import shape_of

if TYPE_CHECKING:
    from nnc.lowering.lowering import Lowering


def conv(lowering: Lowering, group: Group) -> bool:
    """Conv of images with constant weights: of float32, or of bytes that stand for it, which become floats as read."""
    node = group.root
    x, W = input_of(node, 0), array_of(node, 1)
    window = window_of(node, W.shape[2:]) if W is not None and W.ndim == 4 else None
    if W is None or window is None or W.dtype != np.float32 or x is None or x.dtype != np.float32:
        return False
    batch, channels = shape_of(x)[:2]
    tail = lowering.tail(group, bias_of(lowering, node), lowering.block, shape_of(node.outputs[0]))
    groups, zero = node.attrs.get("group", 1), None
    if made := integers.dequantized(x):
        x, zero, W = made[0], made[1].zero, W * np.float32(made[1].scale)
    if groups == channels == W.shape[0]:
        convolution.emit_depthwise(lowering, group, x, W, window, tail, zero)
        return True
    few = channels < lowering.block and not lowering.has_blocks(x)
    source = lowering.plain(x) if few else lowering.blocked(x)
    in_block = 1 if few else lowering.block
    problem = Convolution(batch, channels, W.shape[0], window, groups, in_block, lowering.block, zero=zero or 0)
    result = Tensor(problem.out_shape, tail.dtype)
    convolution.direct_into(lowering, group, problem, source, W, tail, result)
    lowering.define(group.outputs[0], result, lowering.block)
    return True


def int8_conv(lowering: Lowering, group: Group) -> bool:
    """Conv of images of int8 around zero, not in groups: words of four channels are multiplied by one instruction."""
    node, found = group.root, factors.of_image(lowering, group)
    window = window_of(node, found.W.shape[2:]) if found else None
    if found is None or window is None or node.attrs.get("group", 1) != 1:
        return False
    if found.quantization.zero or found.W.dtype != np.int8:
        return False
    tail = lowering.tail(group, found.bias, lowering.block, shape_of(node.outputs[0]), found.worth, "int32")
    source, W = lowering.blocked(found.x), _words(found.W)
    problem = Convolution(shape_of(found.x)[0], W.shape[1], W.shape[0], window, 1, 1, lowering.block, dtype="int32")
    words, result = Tensor(problem.in_shape, "int32", source), Tensor(problem.out_shape, tail.dtype)
    convolution.direct_into(lowering, group, problem, words, W, tail, result)
    lowering.define(group.outputs[0], result, lowering.block)
    return True


def int8_product(lowering: Lowering, group: Group) -> bool:
    """Gemm and MatMul of rows of int8 around zero, of whole words, with constant weights."""
    assert isinstance(lowering.unit, Gpu)
    found = factors.of_rows(lowering, group)
    if found is None or found.quantization.zero or found.W.dtype != np.int8 or found.W.shape[0] % 4:
        return False
    (depth, columns), out_shape = found.W.shape, shape_of(group.root.outputs[0])
    rows, words = prod(out_shape) // columns, depth // 4
    tail = lowering.tail(group, found.bias, 1, out_shape, found.worth, "int32").as_rows(rows, out_shape)
    if tail is None:
        return False
    tile = gemm.best_plan(rows, columns, words, lowering.unit)
    packed = gemm.pack(_words(found.W.T[..., None, None])[..., 0, 0].T, tile)
    emit(
        lowering,
        group,
        Kernel("int8_gemm", (rows, columns, words), tile),
        [Tensor((rows, words), "int32", lowering.plain(found.x)), packed],
        tail,
        (rows, columns),
        lambda A, P, extras: gemm.compute(A, P, columns, tile, extras, tail.epilogue(extras), tail.dtype),
        out_shape,
    )
    return True


def _words(W: np.ndarray) -> np.ndarray:
    """Weights int8 `[out, in, kh, kw]` as words of four inputs, int32 `[out, in / 4, kh, kw]`."""
    padded = np.pad(W, ((0, 0), (0, -W.shape[1] % 4), (0, 0), (0, 0)))
    fours = padded.reshape(W.shape[0], -1, 4, *W.shape[2:]).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(fours).view(np.int32)[..., 0]


def _product(lowering: Lowering, group: Group, x: Tensor, weights: Weights, bias: Bias) -> None:
    assert isinstance(lowering.unit, Gpu)
    assert weights.scales is None  # integers are dequantized before
    depth, columns = weights.W.shape
    rows, out_shape = prod(x.shape) // depth, shape_of(group.root.outputs[0])
    tail = lowering.tail(group, bias, 1, out_shape).as_rows(rows, out_shape)
    if tail is None:
        alone = Group([group.root], [group.root.outputs[0]])
        _product(lowering, alone, x, weights, bias)
        lowering.elementwise(group.nodes[1:])
        return
    tile = gemm.best_plan(rows, columns, depth, lowering.unit)
    emit(
        lowering,
        group,
        Kernel("gemm", (rows, columns, depth), tile),
        [x.view((rows, depth)), gemm.pack(weights.W, tile)],
        tail,
        (rows, columns),
        lambda A, P, extras: gemm.compute(A, P, columns, tile, extras, tail.epilogue(extras), tail.dtype),
        out_shape,
    )


TEMPLATES: dict[str, Template] = {
    "AveragePool": pooling.spatial_pool,
    "Conv": conv,
    "ConvTranspose": convolution.conv_transpose,
    "Gemm": partial(products.gemm_, product=_product),
    "GlobalAveragePool": pooling.global_pool,
    "GlobalMaxPool": pooling.global_pool,
    "MatMul": partial(products.matmul, product=_product),
    "MaxPool": pooling.spatial_pool,
    "ReduceMax": pooling.global_pool,
    "ReduceMean": pooling.global_pool,
}
"""Operator -> the function that takes it."""

INTEGERS: dict[str, Template] = {"Conv": int8_conv, "Gemm": int8_product, "MatMul": int8_product}
"""The same of layers that multiply integers, on GPUs that do."""
