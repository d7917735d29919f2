"""split-conv-cp: a k x k Conv becomes a 1x1, two depthwise rows and a 1x1."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from nnc import factorize
from nnc.factorize import Factors, Stage
from nnc.layers import Layer
from nnc.passes.split_conv_spatial import needs_two_axes
from nnc.splitting import Split

#: Ranks of a layer that are tried, what lies between is interpolated; and sweeps that tell what a rank will lose.
_TRIED, _SWEEPS = 4, 12


class SplitConvCp(Split):
    """Split a k x k Conv into a 1x1, a depthwise k x 1, a depthwise 1 x k and a 1x1.

    Conv(x, W [K, C, k, k], B)
      ->  Conv(Conv(Conv(Conv(x, [r, C, 1, 1]), [r, 1, k, 1]), [r, 1, 1, k]), [K, r, 1, 1], B)

    Approximate: the canonical polyadic decomposition, by least squares whose ridge keeps components from growing and
    cancelling each other (see nnc.factorize.cp); with calibration data the last factor is fitted to the layer's output.
    Energies of ranks are estimated from a few. Takes minutes for wide layers. Grouped convolutions are split per group.
    BatchNormalization behind the layer may stay, but folding it first (fold-batchnorm) saves its work. Declines kernels
    without two axes of several taps, depthwise convolutions, weights that are quantized, computed or shared, and where
    the chain is no faster (or smaller, see `when`).

    Reference: Lebedev et al., Speeding-up convolutional neural networks using fine-tuned CP-decomposition, ICLR 2015;
    Phan et al., Stable low-rank tensor decomposition for compression of convolutional neural network, ECCV 2020.
    """

    name: ClassVar[str] = "split-conv-cp"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)

    def refusal(self, layer: Layer) -> str:
        return needs_two_axes(layer)

    def most(self, shape: Sequence[int]) -> int:
        return math.prod(shape) // max(shape)

    def ladder(self, shape: Sequence[int], step: int, limited: bool) -> list[int]:
        return super().ladder(shape, step, True)

    def of_noise(self, W: np.ndarray) -> int:
        return max(factorize.tucker_vbmf_ranks(W))

    def stages(self, shape: Sequence[int], rank: int) -> tuple[Stage, ...]:
        return factorize.cp_stages(shape, rank)

    def errors(self, W: np.ndarray, moment: np.ndarray | None, ranks: list[int]) -> np.ndarray:
        tried = np.unique(np.geomspace(max(1, max(ranks) // 8), max(ranks), _TRIED).round().astype(int))
        lost = [factorize.cp(W, int(rank), moment, sweeps=_SWEEPS).error for rank in tried]
        logarithms = np.log([1.0, *np.maximum(lost, 1e-16)])
        return np.exp(np.interp(ranks, [0, *tried], np.minimum.accumulate(logarithms)))

    def factors(self, W: np.ndarray, moment: np.ndarray | None, rank: int, seed: int) -> Factors:
        return factorize.cp(W, rank, moment, seed=seed)

    def spelled(self, shape: Sequence[int], rank: int) -> str:
        return f"rank {rank}"
