"""Ranks by the noise in the weights: empirical variational Bayesian matrix factorization."""

import math

import numpy as np

from nnc.factorize.linear import energies_of


def vbmf_rank(matrix: np.ndarray) -> int:
    """The rank, at least 1, that empirical variational Bayes gives a matrix with noise of unknown variance.

    The global analytic solution of Nakajima, Sugiyama, Babacan, Tomioka, Global analytic solution of fully-observed
    variational Bayesian matrix factorization, JMLR 14, 2013, in the form of Nakajima, Tomioka, Sugiyama, Babacan,
    Condition for perfect dimensionality recovery by variational Bayesian PCA, JMLR 16, 2015: for a matrix [L, M] with
    L <= M and a = L / M, singular values above sqrt(M * v * x) are signal, where v is the noise variance,
    x = (1 + t) (1 + a / t), and t is the zero of F(t) + F(t / a) with F(z) = log(z + 1) / z - 1 / 2.
    """
    rows, columns = sorted(matrix.shape)
    squares = energies_of(matrix, None)
    if not squares[0]:
        return 1
    # An exact low rank leaves no noise to estimate: below the resolution of float32 all singular values are equal.
    squares = np.maximum(squares / squares[0], 1e-14) / columns
    threshold = threshold_ratio(rows / columns)
    variance = noise_variance(squares, rows / columns, threshold)
    return max(1, int((squares > threshold * variance).sum()))


def tucker_vbmf_ranks(W: np.ndarray) -> tuple[int, int]:
    """Ranks (inputs, outputs) of `tucker` by `vbmf_rank` of both unfoldings of W [K, C, taps...].

    Kim et al., Compression of deep convolutional neural networks for fast and low power mobile applications, ICLR 2016.
    """
    K, C = W.shape[:2]
    return vbmf_rank(W.reshape(K, C, -1).swapaxes(0, 1).reshape(C, -1)), vbmf_rank(W.reshape(K, -1))


def threshold_ratio(ratio: float) -> float:
    """The x of `vbmf_rank`, by bisection: t / sqrt(a) is 2.5129 for square matrices, and more for others."""
    low, high = 2 * math.sqrt(ratio), 10 * math.sqrt(ratio)

    def decreasing(t: float) -> float:
        return math.log1p(t) / t + math.log1p(t / ratio) / (t / ratio) - 1

    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if decreasing(middle) > 0 else (low, middle)
    return (1 + low) * (1 + ratio / low)


def noise_variance(squares: np.ndarray, ratio: float, threshold: float) -> float:
    """The variance that minimizes the free energy; `squares` [L] are squared singular values / M, descending.

    The free energy has a kink wherever a singular value crosses the threshold and is smooth between two of them: all
    kinks and a fine grid are tried, and the surroundings of the best are searched.
    """
    count = len(squares)
    most = min(math.ceil(count / (1 + ratio)) - 1, count - 1)  # no more singular values than this are signal
    lower = max(squares[most] / threshold, squares[most:].mean())
    upper = max(squares.mean(), lower)
    kinks = squares[(squares > lower * threshold) & (squares < upper * threshold)] / threshold
    tried = np.unique(np.concatenate([np.geomspace(lower, upper, 256), kinks]))
    best = int(np.argmin(free_energies(squares, tried, ratio, threshold)))
    around = tried[max(best - 1, 0) : best + 2]
    fine = np.concatenate([np.geomspace(around[0], around[-1], 257), tried[best : best + 1]])
    return float(fine[np.argmin(free_energies(squares, fine, ratio, threshold))])


def free_energies(squares: np.ndarray, variances: np.ndarray, ratio: float, threshold: float) -> np.ndarray:
    """The free energy, up to constants, for each of the variances [n]."""
    x = squares / variances[:, None]
    signal = np.maximum(x, threshold)
    excess = signal - (1 + ratio)
    tau = (excess + np.sqrt(excess**2 - 4 * ratio)) / 2
    gain = np.log1p(tau) + ratio * np.log1p(tau / ratio) - tau
    return (x - np.log(x) + np.where(x > threshold, gain, 0)).sum(axis=1)
