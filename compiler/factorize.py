"""Low-rank factorizations of a layer's weight into a chain of smaller convolutions: arrays in, arrays out.

A layer's weight is W [K, C, taps...]: Conv without groups as it is, Gemm as [K, C] or [K, C, 1, 1]. Computation is in
float64, factors come back in the dtype of W. `svd`, `spatial`, `tucker` and `cp` return `Factors`; the `*_errors`
functions say from one decomposition what every rank would lose; `vbmf_rank`, `rank_of_energy` and `largest_rank`
choose ranks; `by_group` serves grouped convolutions.

With `moment`, the second moment E[x x^T] of what the layer reads, the expected squared error of the layer's *output* is
minimized, E ||(W - W') x||^2, and not that of the weight. It is float64 [D, D] of the input patches, D = C * taps, in
the order of W.reshape(K, -1), or [C, C] of the channels alone, which takes the taps as uncorrelated. It may be
singular. Pass the covariance instead where the layer's bias absorbs the mean.

Errors are shares of the (output) energy that is lost, E ||(W - W') x||^2 / E ||W x||^2: 0 is exact, 1 is W' = 0.

The layer's bias belongs to the last convolution of the chain. A ValueError says what argument does not fit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

# What is added to the diagonal of a moment, relative to its mean: directions that no input excites get an order.
_RIDGE = 1e-10

# The same for the Gram matrix of features, whose diagonal is 1, so that they may be linearly dependent.
_JITTER = 1e-11

# Of `cp`: what large components cost, per share of the energy that is lost. See there.
_CP_RIDGE = 0.1

# Values that are converted to float64 at a time: a large weight is never copied as a whole.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Stage:
    """One convolution of a chain that replaces a layer."""

    shape: tuple[int, ...]
    """Of its weight, [out, in / group, taps...]."""
    group: int = 1
    axes: tuple[int, ...] = ()
    """Spatial axes along which it does what the layer did: its taps, strides, pads and dilations."""

    @property
    def params(self) -> int:
        return math.prod(self.shape)

    def attributes(self, layer: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes of this Conv, given those of the layer's.

        Every spatial axis belongs to one stage of a chain, so that strides, pads and dilations are applied once: a
        k x k convolution with strides [2, 2] becomes k x 1 with [2, 1] and 1 x k with [1, 2]. Zeros that one stage pads
        are zeros in what the layer would have read, because no stage before the last has a bias. SAME_UPPER and
        SAME_LOWER pad nothing along an axis with one tap and stride 1, and stay.
        """
        rank = len(self.shape) - 2
        own = [axis in self.axes for axis in range(rank)]
        attributes: dict[str, Any] = {"group": self.group, "kernel_shape": list(self.shape[2:])}
        for key, neutral in (("strides", 1), ("dilations", 1), ("pads", 0)):
            if key in layer:
                mine = own * (2 if key == "pads" else 1)
                attributes[key] = [value if mine[at] else neutral for at, value in enumerate(layer[key])]
        if "auto_pad" in layer:
            attributes["auto_pad"] = layer["auto_pad"]
        return attributes


@dataclass(frozen=True, eq=False)
class Factors:
    """A chain of convolutions, in order of execution, in place of one; the layer's bias belongs to the last."""

    stages: tuple[Stage, ...]
    weights: tuple[np.ndarray, ...]
    error: float
    """Share of the layer's (output) energy that the chain loses, 0..1, with the weights as they are stored."""
    energy: float
    """E ||W x||^2, or ||W||^2 without a moment: what the error is a share of."""

    @property
    def params(self) -> int:
        return params(self.stages)

    def kernel(self) -> np.ndarray:
        """The weight W' [K, C / group, taps...] of the one convolution that computes the same; float64."""
        return _compose(self.stages, self.weights)


# --- Costs


def svd_stages(shape: Sequence[int], rank: int) -> tuple[Stage, ...]:
    """K x taps -> [rank, C, taps...], [K, rank, 1...]."""
    K, C, *taps = shape
    return Stage((rank, C, *taps), 1, tuple(range(len(taps)))), Stage((K, rank, *_ones(taps)))


def spatial_stages(shape: Sequence[int], rank: int, vertical_first: bool = True) -> tuple[Stage, ...]:
    """[rank, C, kh, 1], [K, rank, 1, kw]; the other way round [rank, C, 1, kw], [K, rank, kh, 1]."""
    K, C, kh, kw = shape
    if vertical_first:
        return Stage((rank, C, kh, 1), 1, (0,)), Stage((K, rank, 1, kw), 1, (1,))
    return Stage((rank, C, 1, kw), 1, (1,)), Stage((K, rank, kh, 1), 1, (0,))


def tucker_stages(shape: Sequence[int], ranks: tuple[int, int]) -> tuple[Stage, ...]:
    """[r1, C, 1...], [r2, r1, taps...], [K, r2, 1...] for `ranks` = (r1 of the inputs, r2 of the outputs)."""
    (K, C, *taps), (inner, outer) = shape, ranks
    core = Stage((outer, inner, *taps), 1, tuple(range(len(taps))))
    return Stage((inner, C, *_ones(taps))), core, Stage((K, outer, *_ones(taps)))


def cp_stages(shape: Sequence[int], rank: int) -> tuple[Stage, ...]:
    """[rank, C, 1, 1], depthwise [rank, 1, kh, 1] and [rank, 1, 1, kw], [K, rank, 1, 1]."""
    K, C, kh, kw = shape
    vertical, horizontal = Stage((rank, 1, kh, 1), rank, (0,)), Stage((rank, 1, 1, kw), rank, (1,))
    return Stage((rank, C, 1, 1)), vertical, horizontal, Stage((K, rank, 1, 1))


def params(stages: Sequence[Stage]) -> int:
    """Weights of a chain, without the bias."""
    return sum(stage.params for stage in stages)


def macs(stages: Sequence[Stage], read: Sequence[int], written: Sequence[int]) -> int:
    """Multiply-accumulates of a chain per image, for a layer that reads and writes these spatial sizes."""
    size, count = list(read), 0
    for stage in stages:
        for axis in stage.axes:
            size[axis] = written[axis]
        count += stage.params * math.prod(size)
    return count


# --- Ranks


def largest_rank(cost: Callable[[int], float], budget: float, most: int) -> int:
    """The largest rank of 1..most whose cost, which grows with the rank, is within the budget; 1 if none is."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle - 1)
    return low


def rank_of_energy(errors: np.ndarray, energy: float) -> int:
    """The smallest rank, at least 1, that keeps a share 0..1 of the energy, given a curve of errors [ranks + 1]."""
    kept = np.flatnonzero(errors <= 1 - energy + 1e-12)
    return max(1, int(kept[0]) if kept.size else len(errors) - 1)


def proportional_ranks(shape: Sequence[int], rank: int) -> tuple[int, int]:
    """Ranks (inputs, outputs) of `tucker` in the proportion of C to K; `rank`, 1..max(K, C), is the larger one."""
    K, C = shape[:2]
    return tuple(max(1, round(rank * each / max(K, C))) for each in (C, K))  # type: ignore[return-value]


def tucker_vbmf_ranks(W: np.ndarray) -> tuple[int, int]:
    """Ranks (inputs, outputs) of `tucker` by `vbmf_rank` of both unfoldings of W [K, C, taps...].

    Kim et al., Compression of deep convolutional neural networks for fast and low power mobile applications, ICLR 2016.
    """
    K, C = W.shape[:2]
    return vbmf_rank(W.reshape(K, C, -1).swapaxes(0, 1).reshape(C, -1)), vbmf_rank(W.reshape(K, -1))


def vbmf_rank(matrix: np.ndarray) -> int:
    """The rank, at least 1, that empirical variational Bayes gives a matrix with noise of unknown variance.

    The global analytic solution of Nakajima, Sugiyama, Babacan, Tomioka, Global analytic solution of fully-observed
    variational Bayesian matrix factorization, JMLR 14, 2013, in the form of Nakajima, Tomioka, Sugiyama, Babacan,
    Condition for perfect dimensionality recovery by variational Bayesian PCA, JMLR 16, 2015: for a matrix [L, M] with
    L <= M and a = L / M, singular values above sqrt(M * v * x) are signal, where v is the noise variance,
    x = (1 + t) (1 + a / t), and t is the zero of F(t) + F(t / a) with F(z) = log(z + 1) / z - 1 / 2.
    """
    rows, columns = sorted(matrix.shape)
    squares = _spectrum(matrix, None)
    if not squares[0]:
        return 1
    # An exact low rank leaves no noise to estimate: below the resolution of float32 all singular values are equal.
    squares = np.maximum(squares / squares[0], 1e-14) / columns
    threshold = _vbmf_threshold(rows / columns)
    variance = _noise_variance(squares, rows / columns, threshold)
    return max(1, int((squares > threshold * variance).sum()))


def _vbmf_threshold(ratio: float) -> float:
    """The x of `vbmf_rank`, by bisection: t / sqrt(a) is 2.5129 for square matrices, and more for others."""
    low, high = 2 * math.sqrt(ratio), 10 * math.sqrt(ratio)

    def decreasing(t: float) -> float:
        return math.log1p(t) / t + math.log1p(t / ratio) / (t / ratio) - 1

    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if decreasing(middle) > 0 else (low, middle)
    return (1 + low) * (1 + ratio / low)


def _noise_variance(squares: np.ndarray, ratio: float, threshold: float) -> float:
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
    best = int(np.argmin(_free_energies(squares, tried, ratio, threshold)))
    around = tried[max(best - 1, 0) : best + 2]
    fine = np.concatenate([np.geomspace(around[0], around[-1], 257), tried[best : best + 1]])
    return float(fine[np.argmin(_free_energies(squares, fine, ratio, threshold))])


def _free_energies(squares: np.ndarray, variances: np.ndarray, ratio: float, threshold: float) -> np.ndarray:
    """The free energy, up to constants, for each of the variances [n]."""
    x = squares / variances[:, None]
    signal = np.maximum(x, threshold)
    excess = signal - (1 + ratio)
    tau = (excess + np.sqrt(excess**2 - 4 * ratio)) / 2
    gain = np.log1p(tau) + ratio * np.log1p(tau / ratio) - tau
    return (x - np.log(x) + np.where(x > threshold, gain, 0)).sum(axis=1)


# --- One matrix: 1x1 convolutions, Gemm, weight SVD


def svd(W: np.ndarray, rank: int, moment: np.ndarray | None = None) -> Factors:
    """W [K, C, taps...] ~ B [K, rank, 1...] after A [rank, C, taps...]; 1 <= rank <= min(K, C * taps).

    The optimum in closed form: without a moment the truncated singular value decomposition (Eckart, Young 1936), with
    one reduced-rank regression (Izenman 1975): B = U, A = U^T W, where U are the first left singular vectors of
    W M^(1/2). Nothing is divided by M.
    """
    matrix = _matrix(W)
    _require_rank(rank, min(matrix.shape))
    channels, patch = _kinds(W, moment)
    U = _principal(_matrix(_whitened(W, channels)), patch, rank)[1]
    A = _times(U.T, matrix)
    return _factors(W, svd_stages(W.shape, rank), _balanced(A, U), moment)


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
        _kinds(W, None)
        energies, vectors = _largest(_gram(_wide(_matrix(W)), None), None)
        return Spectrum(_tails(energies), vectors[:, :most].astype(np.float32))

    def factors(self, W: np.ndarray, rank: int) -> Factors:
        """The chain that `svd` makes of the same W at a rank from 1 to `most`."""
        _require_rank(rank, self.vectors.shape[1])
        matrix, V = _matrix(W), self.vectors[:, :rank].astype(np.float64)
        A, B = (_times(V.T, matrix), V) if len(V) == len(matrix) else (V.T, _times(matrix, V))
        return _factors(W, svd_stages(W.shape, rank), _balanced(A, B), None)


def _wide(matrix: np.ndarray) -> np.ndarray:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def svd_errors(W: np.ndarray, moment: np.ndarray | None = None) -> np.ndarray:
    """The error of `svd` at rank 0, 1, ..., min(K, C * taps)."""
    channels, patch = _kinds(W, moment)
    return _tails(_spectrum(_matrix(_whitened(W, channels)), patch))


# --- k x 1 and 1 x k


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
    _require_rank(rank, min(K * kw, C * kh))
    channels, patch = _kinds(W, moment)
    problem = _spatial_problem(_whitened(W, channels), patch, vertical_first)
    A, B = problem.solve(problem.start()[:rank], 0 if problem.moment is None else sweeps)
    A, B = _balanced(_unwhitened(A.reshape(rank, C, kh), channels), B)
    return _factors(W, spatial_stages(W.shape, rank, vertical_first), (A, B), moment)


def spatial_errors(
    W: np.ndarray, moment: np.ndarray | None = None, *, vertical_first: bool = True, limit: int | None = None
) -> np.ndarray:
    """The error of `spatial` at rank 0, 1, ..., limit (all of them by default).

    Without a moment it is exact. With one it is that before the sweeps, with the second factor by least squares on the
    objective: the sweeps only lower it.
    """
    channels, patch = _kinds(W, moment)
    problem = _spatial_problem(_whitened(W, channels), patch, vertical_first)
    if problem.moment is None:
        return _tails(_spectrum(problem.tall, None))[: None if limit is None else limit + 1]
    return problem.errors(problem.start()[:limit])


def _spatial_problem(W: np.ndarray, moment: np.ndarray | None, vertical_first: bool) -> "_Bilinear":
    """W as [K, (C, kh), kw]; for the other order both axes change places, in the moment of the patches too."""
    if not vertical_first:
        moment = None if moment is None else _turned_moment(moment, W.shape)
        W = _turned(W)
    K, C, kh, kw = W.shape
    return _Bilinear(W.astype(np.float64).reshape(K, C * kh, kw), moment)


def _turned(W: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(W.swapaxes(2, 3))


def _turned_moment(moment: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The moment of patches whose two axes have changed places."""
    order = np.arange(len(moment)).reshape(shape[1:]).swapaxes(1, 2).ravel()
    return moment[np.ix_(order, order)]


# --- 1x1, core, 1x1


def tucker(W: np.ndarray, ranks: tuple[int, int], moment: np.ndarray | None = None, *, sweeps: int = 8) -> Factors:
    """W [K, C, taps...] ~ B [K, r2, 1...] after G [r2, r1, taps...] after A [r1, C, 1...]; `ranks` = (r1, r2).

    Tucker-2. Starts with the HOSVD of W whitened by the moment of the channels; then at most `sweeps` of alternating
    least squares on E ||(W - W') x||^2: B and G together by reduced-rank regression on what A computes, then A by
    preconditioned conjugate gradients. No sweep raises the error. Without a moment it is tensorly's HOOI.

    Kim et al., Compression of deep convolutional neural networks for fast and low power mobile applications, ICLR 2016.
    De Lathauwer, De Moor, Vandewalle, On the best rank-1 and rank-(R1, ..., RN) approximation, 2000 (HOOI).
    """
    (K, C), (inner, outer) = W.shape[:2], ranks
    _require_rank(inner, C)
    _require_rank(outer, K)
    channels, patch = _kinds(W, moment)
    problem = _tucker_problem(_whitened(W, channels), patch, outer)
    if patch is None:
        A, B = _hooi(problem.W, inner, outer)
    else:
        A = problem.start()
        A, B = problem.solve(np.pad(A, ((0, C - len(A)), (0, 0)))[:inner], sweeps)
    U = _principal(_matrix(B), None)[1]
    U = np.pad(U, ((0, 0), (0, K - U.shape[1])))[:, :outer]
    A, core = _balanced(_unwhitened(A, channels), (U.T @ _matrix(B)).reshape(outer, inner, -1))
    core, U = _balanced(core, U)
    return _factors(W, tucker_stages(W.shape, ranks), (A, core, U), moment)


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
    channels, patch = _kinds(W, moment)
    problem = _tucker_problem(_whitened(W, channels), patch, None)
    return problem.errors_of_ranks(problem.start()[: max(inner)], inner)


def _tucker_problem(W: np.ndarray, moment: np.ndarray | None, outer: int | None) -> "_Bilinear":
    return _Bilinear(W.astype(np.float64).reshape(*W.shape[:2], -1), moment, outer)


# --- 1x1, depthwise k x 1, depthwise 1 x k, 1x1


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
    _require_rank(rank, W.size)
    channels, patch = _kinds(W, moment)
    if patch is not None:
        channels = _marginal(patch, W.shape[1])
    found = _refined(_whitened(W, channels).astype(np.float64), rank, seed, sweeps)
    b, a, p, q = found.factors
    a, growth = _unit(_unwhitened(a.T, channels).T)
    b = b * growth
    if patch is not None:
        b = _refitted(W, (a, p, q), patch, found.error)
    b, norms = _unit(b)
    b, a, p, q = (factor * norms**0.25 for factor in (b, a, p, q))
    return _factors(W, cp_stages(W.shape, rank), (a.T, p.T, q.T, b), moment)


def sensitivity(factors: Factors) -> float:
    """Sum of the squared norms of the rank-one components that `cp` found, relative to that of their sum.

    About 1 where they are orthogonal, large where they cancel each other.
    """
    a, p, q, b = factors.weights
    columns = (_matrix(each.astype(np.float64)) for each in (a, p, q, b.swapaxes(0, 1)))
    components = math.prod((each**2).sum(axis=1) for each in columns)
    return float(np.sum(components) / (factors.kernel() ** 2).sum())


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
        ridge = max(_CP_RIDGE * error, _JITTER)
        factor = np.linalg.solve(gram + ridge * np.eye(len(gram)), products.T).T
        error = max(0.0, 1 - float(np.vdot(factor, 2 * products - factor @ gram)) / energy)
        return factor

    before = math.inf
    for _ in range(sweeps):
        b = _unit(b)[0]
        onto_b = (b.T @ _matrix(W)).reshape(-1, C, kh * kw)
        taps = _outer(p, q)
        a = _unit(fit((onto_b @ taps.T[:, :, None])[:, :, 0].T, b, p, q))[0]
        onto_a = (a.T[:, None] @ onto_b).reshape(-1, kh, kw)
        p = _unit(fit((onto_a @ q.T[:, :, None])[:, :, 0].T, b, a, q))[0]
        q = _unit(fit((p.T[:, None] @ onto_a)[:, 0].T, b, a, p))[0]
        b = fit(_matrix(W) @ _outer(a, p, q), a, p, q)
        if before - error < 1e-4 * error or error < 1e-15:
            break
        before = error
    return _Components([b, a, p, q], error)


def _algebraic_start(W: np.ndarray, rank: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The components of a W that has just `rank` of them, linearly independent: b diagonalizes two mixtures of taps.

    Sanchez, Kowalski, Tensorial resolution: a direct trilinear decomposition, 1990. `rank` <= min(K, C).
    """
    K, C, kh, kw = W.shape
    onto_K = _principal(_matrix(W), None)[1][:, :rank]
    onto_C = _principal(_matrix(W.swapaxes(0, 1)), None)[1][:, :rank]
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
    return _least_squares(features.T @ weighted, _matrix(W).astype(np.float64) @ weighted, _CP_RIDGE * error)[0]


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


# --- Alternating least squares, shared by `spatial` and `tucker`


@dataclass(frozen=True)
class _Bilinear:
    """W [K, a, j] ~ sum over r of B[k, r, j] A[r, a], in the norm of a moment [(a, j), (a, j)] or of the identity.

    With P[(r, j), (a, j')] = A[r, a] (j == j') this is W ~ B P as matrices.
    """

    W: np.ndarray
    moment: np.ndarray | None
    outer_rank: int | None = None
    """Of B as a matrix [K, (r, j)]; None: any."""

    @property
    def tall(self) -> np.ndarray:
        """W as a matrix [(K, j), a]."""
        return self.W.swapaxes(1, 2).reshape(-1, self.W.shape[1])

    @cached_property
    def weighted(self) -> np.ndarray:
        """W M, [K, a, j]."""
        return self.W if self.moment is None else (self.W.reshape(len(self.W), -1) @ self.moment).reshape(self.W.shape)

    @cached_property
    def marginal(self) -> np.ndarray | None:
        """The moment [a, a] of one j, averaged over all."""
        return None if self.moment is None else _marginal(self.moment, self.W.shape[1])

    def start(self) -> np.ndarray:
        """A [min(K j, a), a], the best rows first, for W whitened by the marginal moment."""
        energies, U = _principal(self.tall, self.marginal)
        A = U.T @ self.tall
        A[energies <= energies[0] * 1e-24] = 0  # the rank of W is lower: what is left is rounding
        return A

    def solve(self, A: np.ndarray, sweeps: int) -> tuple[np.ndarray, np.ndarray]:
        """A and the best B for it, after at most `sweeps`; the last is one that gains less than 1e-3 of the error."""
        B, lost = self._outer(A)
        for _ in range(sweeps):
            next_A = self._inner(A, B)
            next_B, next_lost = self._outer(next_A)
            gained = lost - next_lost
            if gained <= 0:
                break
            A, B, lost = next_A, next_B, next_lost
            if gained < 1e-3 * lost:
                break
        return self._normalized(A, B)

    def _normalized(self, A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same product, with outputs of energy 1 for every row of A, so that the size of B tells what matters."""
        energies = np.einsum("ra,ra->r", A if self.marginal is None else A @ self.marginal, A)
        scale = np.sqrt(np.where(energies > 0, energies, 1))
        return A / scale[:, None], B * scale[:, None]

    def errors(self, A: np.ndarray) -> np.ndarray:
        """The errors [len(A) + 1] with the first 0, 1, ... rows of A and the best B."""
        _, fitted = self._regression(A)
        return _lost((fitted**2).sum(axis=(0, 2)).cumsum(), self._energy())

    def errors_of_ranks(self, A: np.ndarray, ranks: Sequence[int]) -> np.ndarray:
        """The errors [len(ranks), K + 1] with the first `ranks` rows of A and the best B of rank 0..K."""
        _, fitted = self._regression(A)
        energies = [_spectrum(_matrix(fitted[:, :rank]), None) for rank in ranks]
        kept = [np.pad(each.cumsum(), (0, len(self.W) - len(each)), "edge") for each in energies]
        return np.stack([_lost(each, self._energy()) for each in kept])

    def _energy(self) -> float:
        return float(np.vdot(self.weighted, self.W))

    def _outer(self, A: np.ndarray) -> tuple[np.ndarray, float]:
        """The best B [K, r, j] for A, and the energy that is lost with it."""
        B, fitted = self._regression(A)
        if self.outer_rank is not None:
            U = _principal(_matrix(fitted), None)[1][:, : self.outer_rank]
            B, fitted = (np.tensordot(U, U.T @ _matrix(each), 1).reshape(B.shape) for each in (B, fitted))
        return B, self._energy() - float(np.vdot(fitted, fitted))

    def _regression(self, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best B [K, r, j] of any rank, and B in an orthonormal basis of what A computes."""
        (K, _, j), r = self.W.shape, len(A)
        if self.moment is None:  # every j by itself
            found = _least_squares(A @ A.T, self.tall @ A.T)
            B, fitted = (each.reshape(K, j, r).swapaxes(1, 2) for each in found)
            return B, fitted
        features = self._features(A)
        cross = self.W.reshape(K, -1) @ features.reshape(r * j, -1).T
        B, fitted = (each.reshape(K, r, j) for each in _least_squares((A @ features).reshape(r * j, -1), cross))
        return B, fitted

    def _features(self, A: np.ndarray) -> np.ndarray:
        """P M, [(r, j), a, j]."""
        assert self.moment is not None
        _, a, j = self.W.shape
        return (A @ self.moment.reshape(a, -1)).reshape(len(A) * j, a, j)

    def _inner(self, A: np.ndarray, B: np.ndarray) -> np.ndarray:
        """A better A for B, by some conjugate gradients from A."""
        j, r = self.W.shape[2], len(A)
        right = np.tensordot(B, self.weighted, ([0, 2], [0, 2]))
        gram = (_matrix(B).T @ _matrix(B)).reshape(r, j, r * j)
        diagonal = np.einsum("rjsj->rs", gram.reshape(r, j, r, j))
        assert self.marginal is not None
        # Steps along what no input excites would be rounding, magnified.
        ridge = np.eye(len(self.marginal)) * (1e-6 * np.trace(self.marginal) / len(self.marginal))
        left, across = _inverse(diagonal), _inverse(self.marginal + ridge)
        return _conjugate_gradients(
            lambda X: np.tensordot(gram, self._features(X), ([1, 2], [2, 0])), right, A, lambda X: left @ X @ across
        )


def _conjugate_gradients(
    normal: Callable[[np.ndarray], np.ndarray],
    right: np.ndarray,
    X: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
    steps: int = 6,
) -> np.ndarray:
    """X after some steps towards normal(X) == right; each lowers the quadratic error."""
    residual = right - normal(X)
    direction = preconditioned = precondition(residual)
    slope = first = np.vdot(residual, preconditioned)
    for _ in range(steps):
        image = normal(direction)
        curvature = np.vdot(direction, image)
        if not (curvature > 0 and slope > 1e-6 * first):
            break
        X = X + slope / curvature * direction
        residual = residual - slope / curvature * image
        preconditioned = precondition(residual)
        slope, before = np.vdot(residual, preconditioned), slope
        direction = preconditioned + slope / before * direction
    return X


# --- Grouped convolutions

Moments = Sequence[np.ndarray] | None


def by_group(
    method: Callable[[np.ndarray, np.ndarray | None], Factors], W: np.ndarray, group: int, moments: Moments = None
) -> Factors:
    """What `method`(W, moment) makes of every group of W [K, C / group, taps...], as one chain of grouped convolutions.

    `moments` are those of the channels of every group, in order. `method` must give all groups chains of one form: fix
    the order of `spatial`.
    """
    parts = [method(*each) for each in _groups(W, group, moments)]
    if any(part.stages != parts[0].stages for part in parts):
        raise ValueError("the groups have chains of different forms")
    stages = tuple(
        Stage((group * stage.shape[0], *stage.shape[1:]), group * stage.group, stage.axes) for stage in parts[0].stages
    )
    weights = tuple(np.concatenate(each) for each in zip(*(part.weights for part in parts), strict=True))
    energy = sum(part.energy for part in parts)
    lost = sum(part.error * part.energy for part in parts)
    return Factors(stages, weights, lost / energy if energy else 0.0, energy)


def errors_by_group(
    curve: Callable[[np.ndarray, np.ndarray | None], np.ndarray], W: np.ndarray, group: int, moments: Moments = None
) -> np.ndarray:
    """The errors of the whole layer, where `curve`(W, moment), such as `svd_errors`, says those of one group."""
    groups = _groups(W, group, moments)
    energies = np.array([output_energy(*each) for each in groups])
    shares = energies / energies.sum() if energies.any() else energies
    return np.tensordot(shares, np.stack([curve(*each) for each in groups]), 1)


def _groups(W: np.ndarray, group: int, moments: Moments) -> list[tuple[np.ndarray, np.ndarray | None]]:
    if len(W) % group:
        raise ValueError(f"{len(W)} channels can't be {group} groups")
    return [(part, moments[at] if moments else None) for at, part in enumerate(np.split(W, group))]


def output_energy(W: np.ndarray, moment: np.ndarray | None = None) -> float:
    """E ||W x||^2 for a moment of the patches or of the channels; ||W||^2 without one."""
    flat = _matrix(W).astype(np.float64)
    if moment is None:
        return float(np.vdot(flat, flat))
    whole = moment.shape == (W[0].size, W[0].size)
    weighted = flat @ moment if whole else _matrix(_along_channels(W, moment))
    return max(0.0, float(np.vdot(weighted, flat)))


# --- Linear algebra


def _principal(Y: np.ndarray, moment: np.ndarray | None, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` energies [n], descending, and left singular vectors [rows, n] of Y M^(1/2); all without it.

    From the smaller Gram matrix: what is lost of the energy is below 1e-15 of it, at a fraction of the time.
    """
    rows, columns = Y.shape
    if rows <= columns:
        return _largest(_gram(Y, moment), count)
    root = np.eye(columns) if moment is None else _root(moment)
    energies, vectors = _largest(root @ _gram(Y.T, None) @ root, count)
    return energies, np.linalg.qr(_times(Y, root @ vectors))[0]


def _largest(gram: np.ndarray, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, descending and at least 0, and eigenvectors; the first `count` take a third of the time of all."""
    from scipy.linalg import eigh

    last = len(gram) - 1
    first = 0 if count is None else len(gram) - count
    if first > len(gram) // 2:
        energies, vectors = eigh(gram, subset_by_index=[first, last], driver="evr", check_finite=False)
    else:
        energies, vectors = (part[..., first:] for part in np.linalg.eigh(gram))
    return np.maximum(energies[::-1], 0), vectors[:, ::-1]


def _spectrum(Y: np.ndarray, moment: np.ndarray | None) -> np.ndarray:
    """Energies [min(rows, columns)], descending, of Y M^(1/2)."""
    if Y.shape[0] <= Y.shape[1]:
        gram = _gram(Y, moment)
    else:
        root = np.eye(Y.shape[1]) if moment is None else _root(moment)
        gram = root @ _gram(Y.T, None) @ root
    return np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)


def _gram(Y: np.ndarray, moment: np.ndarray | None) -> np.ndarray:
    """Y M Y^T in float64."""
    if moment is not None:
        Y = Y.astype(np.float64)
        return _symmetric(Y @ moment @ Y.T)
    gram = np.zeros((len(Y), len(Y)))
    for columns in _blocks(Y.shape[1], len(Y)):
        block = Y[:, columns].astype(np.float64)
        gram += block @ block.T
    return gram


def _times(Y: np.ndarray, Z: np.ndarray) -> np.ndarray:
    """Y Z in float64."""
    if Y.dtype == Z.dtype == np.float64:
        return Y @ Z
    if Y.dtype != np.float64:
        return np.concatenate([Y[rows].astype(np.float64) @ Z for rows in _blocks(len(Y), Y.shape[1])])
    return np.concatenate([Y @ Z[:, columns].astype(np.float64) for columns in _blocks(Z.shape[1], len(Z))], axis=1)


def _blocks(count: int, width: int) -> list[slice]:
    step = max(1, _BLOCK // max(1, width))
    return [slice(start, start + step) for start in range(0, count, step)]


def _least_squares(gram: np.ndarray, cross: np.ndarray, ridge: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """cross @ inv(gram), and cross @ inv(L).T where L L^T = gram: its first n columns depend on n features only.

    `gram` is scaled to a unit diagonal, `ridge` added to that. It may be singular; features that are zero get zeros.
    """
    diagonal = np.diagonal(gram)
    scale = np.divide(1, np.sqrt(diagonal), out=np.zeros(len(gram)), where=diagonal > 0)
    L = _cholesky(_symmetric(gram) * scale * scale[:, None] + np.diag(np.where(scale > 0, ridge, 1)))
    fitted = np.linalg.solve(L, (cross * scale).T)
    return np.linalg.solve(L.T, fitted).T * scale, fitted.T


def _cholesky(matrix: np.ndarray) -> np.ndarray:
    """The Cholesky factor of a matrix with unit diagonal, with as little added to that as rounding asks for."""
    for jitter in (_JITTER, 1e-9, 1e-7, 1e-5, 1e-3):
        try:
            return np.linalg.cholesky(matrix + jitter * np.eye(len(matrix)))
        except np.linalg.LinAlgError:
            continue
    raise ValueError("the moment is not positive semidefinite")


def _inverse(matrix: np.ndarray) -> np.ndarray:
    return _least_squares(matrix, np.eye(len(matrix)))[0]


def _root(moment: np.ndarray) -> np.ndarray:
    """The symmetric S with S S = moment."""
    energies, vectors = np.linalg.eigh(moment)
    return (vectors * np.sqrt(np.maximum(energies, 0))) @ vectors.T


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def _lost(kept: np.ndarray, energy: float) -> np.ndarray:
    """1 and the shares of the energy that are not kept."""
    if energy <= 0:
        return np.zeros(len(kept) + 1)
    return np.concatenate([[1.0], np.clip(1 - kept / energy, 0, 1)])


def _tails(energies: np.ndarray) -> np.ndarray:
    """The share of the energies from 0, 1, ... on, [len + 1]."""
    total = energies.sum()
    tails = np.concatenate([energies[::-1].cumsum()[::-1], [0.0]])
    return tails / total if total else tails


# --- Weights and moments


def _matrix(W: np.ndarray) -> np.ndarray:
    return W.reshape(len(W), -1)


def _ones(taps: Sequence[int]) -> tuple[int, ...]:
    return (1,) * len(taps)


def _require_rank(rank: int, most: int) -> None:
    if not 1 <= rank <= most:
        raise ValueError(f"the rank must be from 1 to {most}, not {rank}")


def _kinds(W: np.ndarray, moment: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The moment, made positive, as one of channels alone or as one of patches; the other is None."""
    if not np.isfinite(W).all() or not (moment is None or np.isfinite(moment).all()):
        raise ValueError("the weight or the moment is not finite")
    if moment is None:
        return None, None
    if moment.shape == (W[0].size, W[0].size):
        return None, _regularized(moment)
    if moment.shape == (W.shape[1], W.shape[1]):
        return _regularized(moment), None
    raise ValueError(f"a moment {list(moment.shape)} fits neither the patches nor the channels of {list(W.shape)}")


def _regularized(moment: np.ndarray) -> np.ndarray:
    """The moment, symmetric and positive; all zeros become the identity: what is never excited is all alike."""
    moment = _symmetric(np.asarray(moment, np.float64))
    mean = np.trace(moment) / len(moment)
    return moment + np.eye(len(moment)) * (_RIDGE * mean if mean > 0 else 1.0)


def _whitened(W: np.ndarray, channels: np.ndarray | None) -> np.ndarray:
    """W, whose plain norm is then its output energy for a moment of the channels."""
    return W if channels is None else _along_channels(W, _root(channels))


def _unwhitened(A: np.ndarray, channels: np.ndarray | None) -> np.ndarray:
    """A [r, C, ...] to use before whitening, from one to use behind it."""
    return A if channels is None else _along_channels(A, np.linalg.inv(_root(channels)))


def _marginal(moment: np.ndarray, count: int) -> np.ndarray:
    """The moment [count, count] of the leading one of two indices, averaged over the other."""
    other = len(moment) // count
    return np.einsum("ajbj->ab", moment.reshape(count, other, count, other)) / other


def _along_channels(W: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.tensordot(W.astype(np.float64), matrix, (1, 0)), -1, 1)


def _balanced(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """first [r, ...] and second [K, r, ...], scaled along r so that both have the same norm there."""
    own = np.sqrt((first**2).sum(axis=tuple(range(1, first.ndim))))
    other = np.sqrt((second**2).sum(axis=(0, *range(2, second.ndim))))
    scale = np.sqrt(np.divide(other, own, out=np.ones_like(own), where=(own > 0) & (other > 0)))
    return first * scale.reshape(-1, *[1] * (first.ndim - 1)), second / scale.reshape(1, -1, *[1] * (second.ndim - 2))


def _compose(stages: Sequence[Stage], weights: Sequence[np.ndarray]) -> np.ndarray:
    """The weight of the one convolution that computes what the chain does, float64."""
    kernel = weights[0].astype(np.float64)
    for stage, weight in zip(stages[1:], weights[1:], strict=True):
        inner = kernel.reshape(stage.group, -1, *kernel.shape[1:])
        outer = weight.astype(np.float64).reshape(stage.group, -1, *weight.shape[1:])
        product = np.moveaxis(outer, (0, 1, 2), (-3, -2, -1)) @ np.moveaxis(inner, (0, 1, 2), (-3, -2, -1))
        kernel = np.moveaxis(product, (-3, -2, -1), (0, 1, 2)).reshape(
            len(weight), kernel.shape[1], *product.shape[:-3]
        )
    return kernel


def _factors(
    W: np.ndarray, stages: tuple[Stage, ...], weights: Sequence[np.ndarray], moment: np.ndarray | None
) -> Factors:
    """The weights as they are stored, with what they lose, measured."""
    shaped = (weight.reshape(stage.shape) for stage, weight in zip(stages, weights, strict=True))
    stored = tuple(np.ascontiguousarray(weight, W.dtype) for weight in shaped)
    head, last = _compose(stages[:-1], stored[:-1]), stages[-1]
    lost = energy = 0.0
    for rows in _blocks(len(W), math.prod(W.shape[1:])):
        block = W[rows].astype(np.float64)
        tail = replace(last, shape=(len(block), *last.shape[1:]))
        lost += output_energy(block - _compose((stages[0], tail), (head, stored[-1][rows])), moment)
        energy += output_energy(block, moment)
    return Factors(stages, stored, lost / energy if energy else 0.0, energy)
