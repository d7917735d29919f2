"""Convolutions as a smaller one, the core, between two 1x1: Tucker-2."""

from collections.abc import Sequence

import numpy as np

from nnc.factorize.bilinear import Bilinear
from nnc.factorize.factors import Factors, balanced, measured_factors, require_rank
from nnc.factorize.linear import as_matrix, principal
from nnc.factorize.moments import kinds, unwhitened, whitened
from nnc.factorize.stages import tucker_stages


def tucker(W: np.ndarray, ranks: tuple[int, int], moment: np.ndarray | None = None, *, sweeps: int = 8) -> Factors:
    """W [K, C, taps...] ~ B [K, r2, 1...] after G [r2, r1, taps...] after A [r1, C, 1...]; `ranks` = (r1, r2).

    Tucker-2. Starts with the HOSVD of W whitened by the moment of the channels; then at most `sweeps` of alternating
    least squares on E ||(W - W') x||^2: B and G together by reduced-rank regression on what A computes, then A by
    preconditioned conjugate gradients. No sweep raises the error. Without a moment it is tensorly's HOOI.

    Kim et al., Compression of deep convolutional neural networks for fast and low power mobile applications, ICLR 2016.
    De Lathauwer, De Moor, Vandewalle, On the best rank-1 and rank-(R1, ..., RN) approximation, 2000 (HOOI).
    """
    (K, C), (inner, outer) = W.shape[:2], ranks
    require_rank(inner, C)
    require_rank(outer, K)
    channels, patch = kinds(W, moment)
    problem = _tucker_problem(whitened(W, channels), patch, outer)
    if patch is None:
        A, B = _hooi(problem.W, inner, outer)
    else:
        A = problem.start()
        A, B = problem.solve(np.pad(A, ((0, C - len(A)), (0, 0)))[:inner], sweeps)
    U = principal(as_matrix(B), None)[1]
    U = np.pad(U, ((0, 0), (0, K - U.shape[1])))[:, :outer]
    A, core = balanced(unwhitened(A, channels), (U.T @ as_matrix(B)).reshape(outer, inner, -1))
    core, U = balanced(core, U)
    return measured_factors(W, tucker_stages(W.shape, ranks), (A, core, U), moment)


def _hooi(W: np.ndarray, inner: int, outer: int) -> tuple[np.ndarray, np.ndarray]:
    """A [inner, C] and B [K, inner, taps], of rank `outer`, whose product is near W [K, C, taps]."""
    from tensorly.decomposition import partial_tucker

    K, C, taps = W.shape
    if not W.any():
        return np.zeros((inner, C)), np.zeros((K, inner, taps))
    most = min(inner, outer * taps)  # no core has more inputs
    rank = [min(outer, most * taps), most]
    (core, (U, A)), _ = partial_tucker(W, rank=rank, modes=[0, 1], random_state=0)
    A, B = A.T, np.tensordot(U, core, 1)
    return np.pad(A, ((0, inner - most), (0, 0))), np.pad(B, ((0, 0), (0, inner - most), (0, 0)))


def tucker_errors(W: np.ndarray, inner: Sequence[int], moment: np.ndarray | None = None) -> np.ndarray:
    """The error of `tucker` before the sweeps, which only lower it: [len(inner), K + 1].

    Row n is for r1 = inner[n], column r2 for the rank of the outputs.
    """
    channels, patch = kinds(W, moment)
    problem = _tucker_problem(whitened(W, channels), patch, None)
    return problem.errors_of_ranks(problem.start()[: max(inner)], inner)


def _tucker_problem(W: np.ndarray, moment: np.ndarray | None, outer: int | None) -> "Bilinear":
    return Bilinear(W.astype(np.float64).reshape(*W.shape[:2], -1), moment, outer)
