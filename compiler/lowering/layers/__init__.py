"""Nodes that have a schedule template: convolutions, matrix products, pools, with the epilogue of their group.

Each function appends the calls of a group, or returns False where its template does not take the node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nnc.lowering.fuse import Group
from nnc.lowering.layers import convolution, pooling, products, quantized

if TYPE_CHECKING:
    from nnc.lowering.lowering import Lowering

Template = Callable[["Lowering", Group], bool]

TEMPLATES: dict[str, Template] = {
    "AveragePool": pooling.spatial_pool,
    "Conv": convolution.conv,
    "ConvTranspose": convolution.conv_transpose,
    "Gemm": products.gemm_,
    "GlobalAveragePool": pooling.global_pool,
    "GlobalMaxPool": pooling.global_pool,
    "MatMul": products.matmul,
    "MaxPool": pooling.spatial_pool,
    "ReduceMax": pooling.global_pool,
    "ReduceMean": pooling.global_pool,
}
"""Operator -> the function that takes it."""

INTEGERS: dict[str, Template] = {
    "Conv": quantized.conv,
    "ConvTranspose": quantized.conv_transpose,
    "Gemm": quantized.product,
    "MatMul": quantized.product,
}
"""Operator -> the function that takes it where it multiplies integers."""
