"""Gemm and MatMul with constant weights."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from nnc.lowering.fuse import Group
from nnc.lowering.kernels import gemm
from nnc.lowering.layers.attributes import array_of, input_of
from nnc.lowering.layers.emit import Kernel, emit
from nnc.lowering.program import Tensor
from nnc.lowering.shapes import shape_of

if TYPE_CHECKING:
    from nnc.lowering.lower import Lowering


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
    x, weights = input_of(group.root, 0), array_of(group.root, 1)
    if x is None or isinstance(x, gs.Constant) or weights is None or weights.ndim != 2 or weights.dtype != np.float32:
        return False
    if len(shape_of(x)) < 2:
        return False
    _product(lowering, group, lowering.plain(x), weights, None)
    return True


def _product(lowering: Lowering, group: Group, x: Tensor, W: np.ndarray, bias: gs.Tensor | np.ndarray | None) -> None:
    depth, columns = W.shape
    rows, out_shape = prod(x.shape) // depth, shape_of(group.root.outputs[0])
    plan = gemm.best_plan(rows, columns, depth, lowering.unit)
    tail = lowering.tail(group, bias, 1, out_shape).as_rows(rows, out_shape)
    if tail is None:
        alone = Group([group.root], [group.root.outputs[0]])
        _product(lowering, alone, x, W, bias)
        lowering.elementwise(group.nodes[1:])
        return
    emit(
        lowering,
        group,
        Kernel("gemm", (rows, columns, depth), plan),
        [x.view((rows, depth)), gemm.pack(W, plan)],
        tail,
        (rows, columns),
        lambda A, P, extras: gemm.compute(A, P, columns, plan, extras, tail.epilogue(extras), tail.dtype),
        out_shape,
        block=1,
    )
