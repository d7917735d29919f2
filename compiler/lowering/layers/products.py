"""Gemm and MatMul of floats with constant weights, which may be kept in memory as integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from nnc.lowering.expression import FLOATS
from nnc.lowering.fuse import Group
from nnc.lowering.kernels import gemm
from nnc.lowering.layers.attributes import array_of, input_of
from nnc.lowering.layers.emit import Kernel, emit
from nnc.lowering.program import Tensor
from nnc.lowering.shapes import shape_of

if TYPE_CHECKING:
    from nnc.lowering.lowering import Lowering


@dataclass(frozen=True)
class Weights:
    """What a product multiplies with."""

    W: np.ndarray
    """float32, float16 or int8 [depth, columns]."""
    scales: np.ndarray | None = None
    """float32 [groups, columns] of int8."""
    group: int = 0
    """Rows of W that share their scales."""


Bias: TypeAlias = gs.Tensor | np.ndarray | None
Product = Callable[["Lowering", Group, Tensor, Weights, Bias], None]
"""Emits the product of an x [rows, depth] with weights, and what follows it: `emit_product` on a CPU."""


def emit_product(lowering: Lowering, group: Group, x: Tensor, weights: Weights, bias: Bias) -> None:
    """The product on a CPU."""
    depth, columns = weights.W.shape
    rows, out_shape = prod(x.shape) // depth, shape_of(group.root.outputs[0])
    per_column, grouped = None, weights.scales is not None and len(weights.scales) > 1
    if weights.scales is not None and not grouped:
        per_column = weights.scales.reshape((1,) * (len(out_shape) - 1) + (-1,))
    tail = lowering.tail(group, bias, 1, out_shape, per_column).as_rows(rows, out_shape)
    if tail is None:
        alone = Group([group.root], [group.root.outputs[0]])
        emit_product(lowering, alone, x, weights, bias)
        lowering.elementwise(group.nodes[1:])
        return
    problem = gemm.Gemm(rows, columns, depth, weights.W.dtype.name, weights.group if grouped else None)
    plan = lowering.plan(group, problem, tail)
    packed = [partial(gemm.pack, weights.scales, plan)] if weights.scales is not None and grouped else []
    emit(
        lowering,
        group,
        Kernel("gemm", problem, plan),
        [x.view((rows, depth)), partial(gemm.pack, weights.W, plan), *packed],
        tail,
        (rows, columns),
        lambda A, P, *rest: gemm.compute(
            A, P, columns, plan, rest[-1], tail.epilogue(rest[-1]), tail.dtype, *rest[:-1]
        ),
        out_shape,
    )


def gemm_(lowering: Lowering, group: Group, product: Product = emit_product) -> bool:
    """Gemm with constant weights: `alpha` and `beta` are folded into the constants."""
    node = group.root
    x, bias, weights = input_of(node, 0), input_of(node, 2), _weights(lowering, node)
    if x is None or weights is None or node.attrs.get("transA", 0):
        return False
    beta = node.attrs.get("beta", 1.0)
    if isinstance(bias, gs.Constant):
        bias = np.float32(beta) * bias.values
    elif bias is not None and beta != 1.0:
        return False
    product(lowering, group, lowering.plain(x), weights, bias)
    return True


def matmul(lowering: Lowering, group: Group, product: Product = emit_product) -> bool:
    """MatMul of rows of floats with a constant matrix."""
    x, weights = input_of(group.root, 0), _weights(lowering, group.root)
    if x is None or weights is None or weights.W.ndim != 2 or len(shape_of(x)) < 2:
        return False
    product(lowering, group, lowering.plain(x), weights, None)
    return True


def _weights(lowering: Lowering, node: gs.Node) -> Weights | None:
    """Integers where the layer holds them, or constant floats."""
    alpha = np.float32(node.attrs.get("alpha", 1.0))
    if held := lowering.weights(node):
        return Weights(held.W, alpha * held.scales, held.group)
    W = array_of(node, 1)
    if W is None or W.dtype not in FLOATS or W.dtype != node.inputs[0].dtype:
        return None
    W = W.T if node.attrs.get("transB", 0) else W
    return Weights(W if alpha == 1 else (alpha * W).astype(W.dtype, copy=False))
