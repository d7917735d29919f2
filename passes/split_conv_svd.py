"""split-conv-svd: a Conv becomes one with fewer outputs and a 1x1."""

from typing import ClassVar

from nnc import splitting
from nnc.layers import Layer
from nnc.splitting import SvdSplit


class SplitConvSvd(SvdSplit):
    """Split a Conv into one with fewer outputs and a 1x1, by singular value decomposition.

    Conv(x, W [K, C, k, k], B)  ->  Conv(Conv(x, V [r, C, k, k]), U [K, r, 1, 1], B)

    Approximate: with calibration data the two lose the least of the layer's output that a rank r can lose, without of
    its weights. Grouped convolutions are split per group. BatchNormalization behind the layer may stay, but folding it
    first (fold-batchnorm) saves its work. Declines weights that are quantized, computed or shared, depthwise
    convolutions, layers that are factors already, and where the chain is no faster (or smaller, see `when`).

    Reference: Zhang, Zou, He, Sun, Accelerating very deep convolutional networks for classification and detection,
    2015; Denton et al., Exploiting linear structure within convolutional networks for efficient evaluation, 2014.
    """

    name: ClassVar[str] = "split-conv-svd"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)

    def refusal(self, layer: Layer) -> str:
        return splitting.factor(layer)
