"""Weights as one matrix, truncated: 1x1 convolutions, Gemm, weight SVD."""

from dataclasses import dataclass

import numpy as np

from nnc.factorize.factors import Factors, balanced, measured_factors, require_rank
from nnc.factorize.linear import as_matrix, eigen, energies_of, gram_of, principal, tail_shares, times
from nnc.factorize.moments import kinds, whitened
from nnc.factorize.stages import svd_stages


def svd(W: np.ndarray, rank: int, moment: np.ndarray | None = None) -> Factors:
    """W [K, C, taps...] ~ B [K, rank, 1...] after A [rank, C, taps...]; 1 <= rank <= min(K, C * taps).

    The optimum in closed form: without a moment the truncated singular value decomposition (Eckart, Young 1936), with
    one reduced-rank regression (Izenman 1975): B = U, A = U^T W, where U are the first left singular vectors of
    W M^(1/2). Nothing is divided by M.
    """
    matrix = as_matrix(W)
    require_rank(rank, min(matrix.shape))
    channels, patch = kinds(W, moment)
    U = principal(as_matrix(whitened(W, channels)), patch, rank)[1]
    A = times(U.T, matrix)
    return measured_factors(W, svd_stages(W.shape, rank), balanced(A, U), moment)


def svd_errors(W: np.ndarray, moment: np.ndarray | None = None) -> np.ndarray:
    """The error of `svd` at rank 0, 1, ..., min(K, C * taps)."""
    channels, patch = kinds(W, moment)
    return tail_shares(energies_of(as_matrix(whitened(W, channels)), patch))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What `svd` needs of a weight at every rank, without a moment, from one eigendecomposition of one Gram matrix."""

    errors: np.ndarray
    """As of `svd_errors`."""
    vectors: np.ndarray
    """Singular vectors of the smaller side of W [K, C * taps], the first ones first: [side, most]. In float32, as fine
    as factors are stored, so that many can be kept."""

    @staticmethod
    def of(W: np.ndarray, most: int) -> "Spectrum":
        """Of W [K, C, taps...], for ranks up to `most`."""
        kinds(W, None)
        energies, vectors = eigen(gram_of(_wide(as_matrix(W)), None), None)
        return Spectrum(tail_shares(energies), vectors[:, :most].astype(np.float32))

    def factors(self, W: np.ndarray, rank: int) -> Factors:
        """The chain that `svd` makes of the same W at a rank from 1 to `most`."""
        require_rank(rank, self.vectors.shape[1])
        matrix, V = as_matrix(W), self.vectors[:, :rank].astype(np.float64)
        A, B = (times(V.T, matrix), V) if len(V) == len(matrix) else (V.T, times(matrix, V))
        return measured_factors(W, svd_stages(W.shape, rank), balanced(A, B), None)


def _wide(matrix: np.ndarray) -> np.ndarray:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
