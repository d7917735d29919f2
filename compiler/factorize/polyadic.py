"""Convolutions as 1x1, depthwise k x 1, depthwise 1 x k and 1x1: the canonical polyadic decomposition (CP)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnc.factorize.factors import Factors, measured_factors, require_rank
from nnc.factorize.linear import JITTER, as_matrix, least_squares, principal
from nnc.factorize.moments import kinds, marginal_moment, unwhitened, whitened
from nnc.factorize.stages import cp_stages

# Of `cp`: what large components cost, per share of the energy that is lost. See there.
_CP_RIDGE = 0.1


def cp(W: np.ndarray, rank: int, moment: np.ndarray | None = None, *, seed: int = 0, sweeps: int = 150) -> Factors:
    """W [K, C, kh, kw] ~ sum over r of b[K, r] a[r, C] p[r, kh] q[r, kw]: 1x1, two depthwise convolutions, 1x1.

    Norm-regularized alternating least squares: one factor after the other minimizes

        ||W - W'||^2 + ridge * sum over r of ||component r||^2,    ridge = 0.1 * ||W - W'||^2 / ||W||^2,

    for at most `sweeps`, until one gains less than 1e-4 of the error. Plain least squares (ALS) degenerates on real
    kernels: components grow and cancel each other. The ridge keeps them small from the start, and fades with the error,
    so that weights of exact rank are found exactly. The alternative, error-preserving correction (EPC, Phan 2020), lets
    them grow first: it minimizes their norms afterwards within a bound on the error. At half of the weights, 150 sweeps
    each, EPC 50 more with a bound 2 % above the error of ALS, error and sensitivity (the sum of squared norms of the
    components relative to ||W||^2) were

        layer                          rank   ALS               EPC               this
        resnet56 on cifar10, 16 -> 16    30   0.0453   14.5     0.0462    3.8     0.0479    2.0
                             32 -> 32    65   0.0763   26.2     0.0779    4.8     0.0786    1.8
                             64 -> 64   137   0.1163   20.9     0.1187    4.6     0.1182    1.7
        He-initialized, 128 -> 128      281   0.2369    8.6     0.2417    2.4     0.2398    1.4
                        256 -> 256      569   0.2350    8.0     0.2397    2.4     0.2388    1.4

    at a third of the time of EPC, which needs an eigendecomposition for every factor.

    With a moment, W is whitened by that of the channels, and the last factor is fitted to the outputs in the end, under
    the same ridge. Deterministic for a seed.

    Lebedev et al., Speeding-up convolutional neural networks using fine-tuned CP-decomposition, ICLR 2015.
    Astrid, Lee, CP-decomposition with tensor power method for convolutional neural networks compression, 2017.
    Phan et al., Stable low-rank tensor decomposition for compression of convolutional neural network, ECCV 2020.
    """
    require_rank(rank, W.size)
    channels, patch = kinds(W, moment)
    if patch is not None:
        channels = marginal_moment(patch, W.shape[1])
    found = _refined(whitened(W, channels).astype(np.float64), rank, seed, sweeps)
    b, a, p, q = found.factors
    a, growth = _unit(unwhitened(a.T, channels).T)
    b = b * growth
    if patch is not None:
        b = _refitted(W, (a, p, q), patch, found.error)
    b, norms = _unit(b)
    b, a, p, q = (factor * norms**0.25 for factor in (b, a, p, q))
    return measured_factors(W, cp_stages(W.shape, rank), (a.T, p.T, q.T, b), moment)


@dataclass(frozen=True)
class _Components:
    """Rank-one components as columns: b [K, r], a [C, r], p [kh, r] and q [kw, r]; the last three have norm 1."""

    factors: Sequence[np.ndarray]
    error: float


def _refined(W: np.ndarray, rank: int, seed: int, sweeps: int) -> _Components:
    """The components of W after the sweeps, from the better of two starts: random and algebraic."""
    if not W.any():
        return _Components([np.zeros((size, rank)) for size in W.shape], 0.0)
    rng = np.random.default_rng(seed)
    starts = [_Components([_unit(rng.standard_normal((size, rank)))[0] for size in W.shape], 1.0)]
    if rank <= min(W.shape[:2]):
        starts.append(_Components(_algebraic_start(W, rank, rng), 0.0))
    first = min(sweeps, 20)
    tried = [_sweep(W, start, first) for start in starts]
    return _sweep(W, min(tried, key=lambda each: each.error), sweeps - first)


def _sweep(W: np.ndarray, found: _Components, sweeps: int) -> _Components:
    """Components after some sweeps over a, p, q, b. The first ridge is that for the error they come with."""
    energy = float(np.vdot(W, W))
    (b, a, p, q), error = found.factors, found.error
    C, kh, kw = W.shape[1:]

    def fit(products: np.ndarray, *others: np.ndarray) -> np.ndarray:
        """The factor, given the inner products [n, r] of W with what the others, of unit columns, make."""
        nonlocal error
        gram = math.prod(other.T @ other for other in others)
        ridge = max(_CP_RIDGE * error, JITTER)
        factor = np.linalg.solve(gram + ridge * np.eye(len(gram)), products.T).T
        error = max(0.0, 1 - float(np.vdot(factor, 2 * products - factor @ gram)) / energy)
        return factor

    before = math.inf
    for _ in range(sweeps):
        b = _unit(b)[0]
        onto_b = (b.T @ as_matrix(W)).reshape(-1, C, kh * kw)
        taps = _outer(p, q)
        a = _unit(fit((onto_b @ taps.T[:, :, None])[:, :, 0].T, b, p, q))[0]
        onto_a = (a.T[:, None] @ onto_b).reshape(-1, kh, kw)
        p = _unit(fit((onto_a @ q.T[:, :, None])[:, :, 0].T, b, a, q))[0]
        q = _unit(fit((p.T[:, None] @ onto_a)[:, 0].T, b, a, p))[0]
        b = fit(as_matrix(W) @ _outer(a, p, q), a, p, q)
        if before - error < 1e-4 * error or error < 1e-15:
            break
        before = error
    return _Components([b, a, p, q], error)


def _algebraic_start(W: np.ndarray, rank: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The components of a W that has just `rank` of them, linearly independent: b diagonalizes two mixtures of taps.

    Sanchez, Kowalski, Tensorial resolution: a direct trilinear decomposition, 1990. `rank` <= min(K, C).
    """
    K, C, kh, kw = W.shape
    onto_K = principal(as_matrix(W), None)[1][:, :rank]
    onto_C = principal(as_matrix(W.swapaxes(0, 1)), None)[1][:, :rank]
    core = np.einsum("kct,kr,cs->rst", W.reshape(K, C, -1), onto_K, onto_C, optimize=True)
    first, second = np.moveaxis(core @ rng.standard_normal((kh * kw, 2)), -1, 0)
    values, vectors = np.linalg.eig(first @ np.linalg.pinv(second))
    mixed = np.where(values.imag < 0, vectors.imag, vectors.real)  # a pair of complex vectors spans a plane
    rows = (np.linalg.pinv(mixed) @ core.reshape(rank, -1)).reshape(core.shape)
    left, _, right = np.linalg.svd(rows, full_matrices=False)
    vertical, _, horizontal = np.linalg.svd(right[:, 0].reshape(rank, kh, kw), full_matrices=False)
    return onto_K @ mixed, onto_C @ left[:, :, 0].T, vertical[:, :, 0].T, horizontal[:, 0].T


def _refitted(W: np.ndarray, heads: tuple[np.ndarray, ...], moment: np.ndarray, error: float) -> np.ndarray:
    """The b [K, r] with the least error of the outputs, for a, p and q."""
    features = _outer(*heads)
    weighted = moment @ features
    return least_squares(features.T @ weighted, as_matrix(W).astype(np.float64) @ weighted, _CP_RIDGE * error)[0]


def _outer(*factors: np.ndarray) -> np.ndarray:
    """Column by column the outer product of the factors [n, r], flattened: [n * m * ..., r]."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None] * factor).reshape(-1, factor.shape[1])
    return product


def _unit(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns scaled to norm 1, and their norms [r]; columns of zeros stay."""
    norms = np.sqrt((factor**2).sum(axis=0))
    return factor / np.where(norms > 0, norms, 1), norms
