"""Low-rank factorizations of a layer's weight into a chain of smaller convolutions: arrays in, arrays out.

A layer's weight is W [K, C, taps...]: Conv without groups as it is, Gemm as [K, C] or [K, C, 1, 1]. Computation is in
float64, factors come back in the dtype of W. `svd`, `spatial`, `tucker` and `cp` return `Factors`; the `*_errors`
functions say from one decomposition what every rank would lose; `vbmf_rank` and `largest_rank` choose ranks; `by_group`
serves grouped convolutions.

With `moment`, the second moment E[x x^T] of what the layer reads, the expected squared error of the layer's *output* is
minimized, E ||(W - W') x||^2, and not that of the weight. It is float64 [D, D] of the input patches, D = C * taps, in
the order of W.reshape(K, -1), or [C, C] of the channels alone, which takes the taps as uncorrelated. It may be
singular. Pass the covariance instead where the layer's bias absorbs the mean.

Errors are shares of the (output) energy that is lost, E ||(W - W') x||^2 / E ||W x||^2: 0 is exact, 1 is W' = 0.

The layer's bias belongs to the last convolution of the chain. A ValueError says what argument does not fit.
"""

from nnc.factorize.core import tucker, tucker_errors
from nnc.factorize.factors import Factors
from nnc.factorize.groups import Moments, by_group, errors_by_group
from nnc.factorize.moments import output_energy
from nnc.factorize.polyadic import cp
from nnc.factorize.ranks import largest_rank, proportional_ranks
from nnc.factorize.separable import spatial, spatial_errors
from nnc.factorize.stages import Stage, cp_stages, params, spatial_stages, svd_stages, tucker_stages
from nnc.factorize.truncation import Spectrum, svd, svd_errors
from nnc.factorize.vbmf import tucker_vbmf_ranks, vbmf_rank

__all__ = [
    "Factors",
    "Moments",
    "Spectrum",
    "Stage",
    "by_group",
    "cp",
    "cp_stages",
    "errors_by_group",
    "largest_rank",
    "output_energy",
    "params",
    "proportional_ranks",
    "spatial",
    "spatial_errors",
    "spatial_stages",
    "svd",
    "svd_errors",
    "svd_stages",
    "tucker",
    "tucker_errors",
    "tucker_stages",
    "tucker_vbmf_ranks",
    "vbmf_rank",
]
