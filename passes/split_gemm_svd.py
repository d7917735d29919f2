"""split-gemm-svd: a Gemm or MatMul becomes two smaller ones."""

from typing import ClassVar

from nnc import splitting
from nnc.layers import Layer
from nnc.splitting import SvdSplit


class SplitGemmSvd(SvdSplit):
    """Split a Gemm or MatMul into two of low rank, by singular value decomposition.

    Gemm(x, W [K, C], B)  ->  Gemm(Gemm(x, V [r, C]), U [K, r], B)

    Approximate: with calibration data the two lose the least of the layer's output that a rank r can lose, without of
    its weights. Declines weights that are quantized, computed or shared, a transposed input, layers that are factors
    already, and where the chain is no faster (or smaller, see `when`).

    Reference: Eckart, Young, The approximation of one matrix by another of lower rank, 1936; Izenman, Reduced-rank
    regression for the multivariate linear model, 1975.
    """

    name: ClassVar[str] = "split-gemm-svd"
    ops: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul")

    def refusal(self, layer: Layer) -> str:
        return splitting.factor(layer)
