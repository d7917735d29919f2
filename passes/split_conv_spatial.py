"""split-conv-spatial: a k x k Conv becomes a k x 1 and a 1 x k."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from nnc import factorize
from nnc.factorize import Factors, Stage
from nnc.layers import Layer
from nnc.splitting import Split

#: A rank, and whether the column k x 1 comes before the row 1 x k.
Rank = tuple[int, bool]


class SplitConvSpatial(Split):
    """Split a k x k Conv into a k x 1 and a 1 x k.

    Conv(x, W [K, C, k, k], B)  ->  Conv(Conv(x, V [r, C, k, 1]), U [K, r, 1, k], B)

    or the row first, whichever loses less. Approximate: without calibration data the two lose the least of the weights
    that a rank r can lose; with it alternating least squares lower the error of the layer's output. Strides, pads and
    dilations go to the factor of their axis; grouped convolutions are split per group. BatchNormalization behind the
    layer may stay, but folding it first (fold-batchnorm) saves its work. Declines kernels without two axes of several
    taps, depthwise convolutions, weights that are quantized, computed or shared, and where the chain is no faster (or
    smaller, see `when`).

    Reference: Jaderberg, Vedaldi, Zisserman, Speeding up convolutional neural networks with low rank expansions, BMVC
    2014; Zhang, Zou, He, Sun, Accelerating very deep convolutional networks for classification and detection, 2015.
    """

    name: ClassVar[str] = "split-conv-spatial"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)

    def refusal(self, layer: Layer) -> str:
        return needs_two_axes(layer)

    def most(self, shape: Sequence[int]) -> int:
        return max(_most(shape, order) for order in (True, False))

    def variants(self, shape: Sequence[int], rank: int) -> list[Rank]:
        return [(rank, order) for order in (True, False) if rank <= _most(shape, order)]

    def of_noise(self, W: np.ndarray) -> Rank:
        columns, rows = W.transpose(0, 3, 1, 2), W.transpose(0, 2, 1, 3)
        found = [
            (factorize.vbmf_rank(each.reshape(len(W) * each.shape[1], -1)), order)
            for each, order in ((columns, True), (rows, False))
        ]
        return min(found, key=lambda rank: factorize.params(self.stages(W.shape, rank)))

    def stages(self, shape: Sequence[int], rank: Rank) -> tuple[Stage, ...]:
        return factorize.spatial_stages(shape, *rank)

    def errors(self, W: np.ndarray, moment: np.ndarray | None, ranks: list[Rank]) -> np.ndarray:
        curves = {
            order: factorize.spatial_errors(
                W, moment, vertical_first=order, limit=max(rank for rank, each in ranks if each == order)
            )
            for order in {order for _, order in ranks}
        }
        return np.array([curves[order][rank] for rank, order in ranks])

    def factors(self, W: np.ndarray, moment: np.ndarray | None, rank: Rank, seed: int) -> Factors:
        return factorize.spatial(W, rank[0], moment, vertical_first=rank[1])

    def spelled(self, shape: Sequence[int], rank: Rank) -> str:
        (height, width), (number, vertical_first) = shape[2:], rank
        parts = [f"{height} x 1", f"1 x {width}"]
        first, second = parts if vertical_first else parts[::-1]
        return f"rank {number} of {_most(shape, vertical_first)}, {first} then {second}"


def _most(shape: Sequence[int], vertical_first: bool) -> int:
    K, C, height, width = shape
    return min(K * width, C * height) if vertical_first else min(K * height, C * width)


def needs_two_axes(layer: Layer) -> str:
    """Why a kernel can't be split by its axes, or nothing."""
    kernel = layer.kernel
    if math.prod(kernel) == 1:
        return "its kernel has one tap: split-conv-svd splits it"
    if len(kernel) != 2 or 1 in kernel:
        return f"its kernel {' x '.join(map(str, kernel))} has no two axes to split"
    return ""
