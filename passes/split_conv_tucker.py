"""split-conv-tucker: a Conv becomes a 1x1, a smaller core and a 1x1."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from nnc import factorize, splitting
from nnc.factorize import Factors, Stage
from nnc.layers import Layer
from nnc.splitting import Split

#: Ranks of the inputs, and of the outputs: channels of the core.
Rank = tuple[int, int]

#: Ranks on either side that are tried together.
_TRIED = 16


class SplitConvTucker(Split):
    """Split a Conv into a 1x1, a core with fewer inputs and outputs, and a 1x1.

    Conv(x, W [K, C, k, k], B)  ->  Conv(Conv(Conv(x, [r, C, 1, 1]), [s, r, k, k]), [K, s, 1, 1], B)

    Approximate: Tucker-2 decomposition; with calibration data alternating least squares lower the error of the layer's
    output. `rank` is the larger of r and s, the other one follows in proportion to C and K; `energy` and `budget` take
    pairs. Grouped convolutions are split per group. BatchNormalization behind the layer may stay, but folding it first
    (fold-batchnorm) saves its work. Declines 1x1 and depthwise convolutions, weights that are quantized, computed
    or shared, layers that are factors already, and where the chain is no faster (or smaller, see `when`).

    Reference: Kim et al., Compression of deep convolutional neural networks for fast and low power mobile
    applications, ICLR 2016.
    """

    name: ClassVar[str] = "split-conv-tucker"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)

    def refusal(self, layer: Layer) -> str:
        if math.prod(layer.kernel) == 1:
            return "its kernel has one tap: split-conv-svd splits it"
        return splitting.factor(layer)

    def most(self, shape: Sequence[int]) -> int:
        return max(shape[:2])

    def variants(self, shape: Sequence[int], rank: int) -> list[Rank]:
        return [factorize.proportional_ranks(shape, rank)]

    def ladder(self, shape: Sequence[int], step: int, limited: bool) -> list[Rank]:
        outer, inner = (_some(splitting.steps(most, step)) for most in shape[:2])
        pairs = [(r, s) for r in inner for s in outer]
        whole = math.prod(shape)
        return [pair for pair in pairs if not limited or factorize.params(self.stages(shape, pair)) < whole]

    def of_noise(self, W: np.ndarray) -> Rank:
        return factorize.tucker_vbmf_ranks(W)

    def clamped(self, shape: Sequence[int], rank: Rank) -> Rank:
        return min(rank[0], shape[1]), min(rank[1], shape[0])

    def stages(self, shape: Sequence[int], rank: Rank) -> tuple[Stage, ...]:
        return factorize.tucker_stages(shape, rank)

    def errors(self, W: np.ndarray, moment: np.ndarray | None, ranks: list[Rank]) -> np.ndarray:
        inner = sorted({r for r, _ in ranks})
        errors = factorize.tucker_errors(W, inner, moment)
        return np.array([errors[inner.index(r), s] for r, s in ranks])

    def factors(self, W: np.ndarray, moment: np.ndarray | None, rank: Rank, seed: int) -> Factors:
        return factorize.tucker(W, rank, moment)

    def spelled(self, shape: Sequence[int], rank: Rank) -> str:
        K, C = shape[:2]
        return f"ranks {rank[0]} of {C} and {rank[1]} of {K}"


def _some(ranks: list[int]) -> list[int]:
    """At most `_TRIED` of them, evenly spread, the largest included."""
    return sorted({ranks[round(index)] for index in np.linspace(0, len(ranks) - 1, min(_TRIED, len(ranks)))})
