"""Convolutions as k x 1 and 1 x k."""

import numpy as np

from nnc.factorize.bilinear import Bilinear
from nnc.factorize.factors import Factors, balanced, measured_factors, require_rank
from nnc.factorize.linear import energies_of, tail_shares
from nnc.factorize.moments import kinds, unwhitened, whitened
from nnc.factorize.stages import spatial_stages


def spatial(
    W: np.ndarray, rank: int, moment: np.ndarray | None = None, *, vertical_first: bool | None = None, sweeps: int = 8
) -> Factors:
    """W [K, C, kh, kw] ~ B [K, rank, 1, kw] after A [rank, C, kh, 1], or B [K, rank, kh, 1] after A [rank, C, 1, kw].

    `vertical_first` chooses between the two; None takes the one that loses less. Without a moment it is the optimum:
    one singular value decomposition of W as [(K kw), (C kh)]. With one, that of W whitened by the moment of (c, i), the
    average over j, followed by at most `sweeps` of alternating least squares on E ||(W - W') x||^2: B in closed form
    for given A, A by preconditioned conjugate gradients for given B, so that no sweep raises the error.

    Jaderberg, Vedaldi, Zisserman, Speeding up convolutional neural networks with low rank expansions, BMVC 2014.
    Zhang, Zou, He, Sun, Accelerating very deep convolutional networks for classification and detection, 2015.
    """
    if vertical_first is None:
        both = [spatial(W, rank, moment, vertical_first=order, sweeps=sweeps) for order in (True, False)]
        return min(both, key=lambda factors: factors.error)
    K, C, kh, kw = W.shape if vertical_first else _turned(W).shape
    require_rank(rank, min(K * kw, C * kh))
    channels, patch = kinds(W, moment)
    problem = _spatial_problem(whitened(W, channels), patch, vertical_first)
    A, B = problem.solve(problem.start()[:rank], 0 if problem.moment is None else sweeps)
    A, B = balanced(unwhitened(A.reshape(rank, C, kh), channels), B)
    return measured_factors(W, spatial_stages(W.shape, rank, vertical_first), (A, B), moment)


def spatial_errors(
    W: np.ndarray, moment: np.ndarray | None = None, *, vertical_first: bool = True, limit: int | None = None
) -> np.ndarray:
    """The error of `spatial` at rank 0, 1, ..., limit (all of them by default).

    Without a moment it is exact. With one it is that before the sweeps, with the second factor by least squares on the
    objective: the sweeps only lower it.
    """
    channels, patch = kinds(W, moment)
    problem = _spatial_problem(whitened(W, channels), patch, vertical_first)
    if problem.moment is None:
        return tail_shares(energies_of(problem.tall, None))[: None if limit is None else limit + 1]
    return problem.errors(problem.start()[:limit])


def _spatial_problem(W: np.ndarray, moment: np.ndarray | None, vertical_first: bool) -> "Bilinear":
    """W as [K, (C, kh), kw]; for the other order both axes change places, in the moment of the patches too."""
    if not vertical_first:
        moment = None if moment is None else _turned_moment(moment, W.shape)
        W = _turned(W)
    K, C, kh, kw = W.shape
    return Bilinear(W.astype(np.float64).reshape(K, C * kh, kw), moment)


def _turned(W: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(W.swapaxes(2, 3))


def _turned_moment(moment: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The moment of patches whose two axes have changed places."""
    order = np.arange(len(moment)).reshape(shape[1:]).swapaxes(1, 2).ravel()
    return moment[np.ix_(order, order)]
