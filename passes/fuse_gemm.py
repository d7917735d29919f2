"""fuse-gemm: a matrix product, the transposes before it and the sum behind it are one operator."""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from nnc.measure import has_shape
from nnc.pattern import ANY, Match, NoMatch, Pattern, op, var
from nnc.rewrite import Effect, PatternPass, node


class FuseGemm(PatternPass):
    """Fuse a product of matrices, transposes of them and a sum into Gemm.

    Add(MatMul(x, W), c)  ->  Gemm(x, W, c)
    MatMul(x, Transpose(W))  ->  Gemm(x, W, transB=1)

    Exact. Declines for products of more than two dimensions, for a sum that makes the product larger, and where the
    product has another reader.

    Reference: the operator Gemm of the ONNX standard.
    """

    name: ClassVar[str] = "fuse-gemm"
    effect: ClassVar[Effect] = "exact"
    pattern: ClassVar[Pattern] = (
        op("Add", op("MatMul|Gemm", ANY, ANY, name="product"), var("c"))
        | op("MatMul|Gemm", op("Transpose", var("A"), name="transposed"), ...)
        | op("MatMul|Gemm", ANY, op("Transpose", var("B"), name="transposed"), ...)
    )

    def rewrite(self, match: Match) -> gs.Node:
        product = match.nodes.get("product", match.root)
        a, b, *c = product.inputs
        if not has_shape(a, b, *product.outputs) or len(a.shape) != 2 or len(b.shape) != 2:
            raise NoMatch("it is no product of two matrices")
        if np.dtype(a.dtype).kind in "iu":
            raise NoMatch("it is a product of integers")
        attrs = dict(product.attrs)
        if "c" in match.tensors:
            return node("Gemm", a, b, _addend(match.tensors["c"], product), **attrs | {"beta": 1.0})
        if list(match.nodes["transposed"].attrs.get("perm", [1, 0])) != [1, 0]:
            raise NoMatch("the Transpose before it changes nothing")
        if "A" in match.tensors:
            return node("Gemm", match.tensors["A"], b, *c, **attrs | {"transA": 1 - attrs.get("transA", 0)})
        return node("Gemm", a, match.tensors["B"], *c, **attrs | {"transB": 1 - attrs.get("transB", 0)})


def _addend(c: gs.Tensor, product: gs.Node) -> gs.Tensor:
    """The tensor that is added, when it fits into the product."""
    wanted = product.outputs[0].shape
    fits = has_shape(c) and len(c.shape) <= 2
    if not fits or any(size not in (1, of) for size, of in zip(c.shape[::-1], wanted[::-1], strict=False)):
        raise NoMatch("what is added does not fit into the product")
    return c
