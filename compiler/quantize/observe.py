"""Ranges of a tensor from its values, seen batch by batch, in memory that doesn't grow with them."""

from typing import Literal, Protocol, get_args

import numpy as np

from nnc.quantize.scheme import Scheme, fake_quantized, scale_zero_point

Method = Literal["min-max", "moving-average", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

Range = tuple[float, float]

#: Bins on each side of zero.
BINS = 4096

#: What a new batch counts in a moving average.
_NEW = 0.01

#: Values that are sorted into bins at once.
_CHUNK = 1 << 20

#: Shares of the whole range that are tried.
_SHARES = np.linspace(0.02, 1.0, 99)


class Observer(Protocol):
    """Sees the values of one tensor."""

    finite: bool
    """Whether every value was a number so far."""

    def add(self, values: np.ndarray) -> None:
        """See a batch of values, float32 of any shape."""

    def range(self, scheme: Scheme) -> Range:
        """The range to quantize; (0, 0) where nothing was seen."""


def observer(method: Method, percentile: float = 99.99) -> Observer:
    """What finds a range by a method.

    - min-max: everything that was seen
    - moving-average: the ends of each batch count 1 % against those before (Jacob et al., 2018)
    - percentile: all but the share 100 - `percentile` at each end
    - entropy: least Kullback-Leibler divergence of the values from what they become (Migacz, 8-bit inference with
      TensorRT, 2017)
    - mse: least squared error
    """
    match method:
        case "min-max":
            return MinMax()
        case "moving-average":
            return MovingAverage()
    return Histogram(method, percentile)


class MinMax:
    """The least and the largest value."""

    def __init__(self) -> None:
        self.finite = True
        self.low = self.high = 0.0
        self.seen = False

    def add(self, values: np.ndarray) -> None:
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            self.finite = False
            return
        self._take(low, high)
        self.seen = True

    def _take(self, low: float, high: float) -> None:
        self.low, self.high = (min(self.low, low), max(self.high, high)) if self.seen else (low, high)

    def range(self, scheme: Scheme) -> Range:
        return self.low, self.high


class MovingAverage(MinMax):
    """Moving averages of the least and the largest value of each batch."""

    def _take(self, low: float, high: float) -> None:
        if self.seen:
            low, high = self.low + _NEW * (low - self.low), self.high + _NEW * (high - self.high)
        self.low, self.high = low, high


class Histogram(MinMax):
    """Counts of values in bins from -limit to limit, which doubles when values lie beyond it.

    Then pairs of bins become one, so that a bin is never wider than two thousandths of the range. Zeros, which are
    exact in every scheme, are counted apart.
    """

    def __init__(self, method: Literal["percentile", "entropy", "mse"], percentile: float = 99.99) -> None:
        super().__init__()
        self._method, self._percentile = method, percentile
        self.counts = np.zeros(2 * BINS)
        self.zeros = 0
        self.limit = 0.0

    @property
    def centres(self) -> np.ndarray:
        """The middles of the bins."""
        return (np.arange(2 * BINS) + 0.5 - BINS) * (self.limit / BINS)

    def add(self, values: np.ndarray) -> None:
        super().add(values)
        largest = max(-self.low, self.high)
        if not self.finite or not values.size:
            return
        if largest > self.limit:
            self._grow(largest)
        zeros = values.size - int(np.count_nonzero(values))
        self.zeros += zeros
        if self.limit:
            flat = values.reshape(-1)
            for start in range(0, flat.size, _CHUNK):
                self.counts += self._binned(flat[start : start + _CHUNK])
            self.counts[BINS] -= zeros

    def _binned(self, values: np.ndarray) -> np.ndarray:
        places = (values / self.limit) * BINS + BINS
        return np.bincount(np.clip(places.astype(np.int32), 0, 2 * BINS - 1), minlength=2 * BINS)

    def _grow(self, largest: float) -> None:
        """Double the limit until it holds `largest`."""
        if not self.limit:
            self.limit = largest
            return
        while self.limit < largest:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.pad(merged, BINS // 2)
            self.limit *= 2

    def range(self, scheme: Scheme) -> Range:
        if not self.limit:
            return 0.0, 0.0
        if self._method == "percentile":
            return self._quantiles()
        scheme = scheme.above(self.low)
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        loss = self._divergence if self._method == "entropy" else self._squared_error
        _, share = min((loss(share * low, share * high, scheme), -share) for share in _SHARES)
        low, high = -share * low, -share * high
        return self._refined(low, high, scheme) if self._method == "mse" else (low, high)

    def _quantiles(self) -> Range:
        counts = self.counts.copy()
        counts[BINS] += self.zeros
        below = np.cumsum(counts) / counts.sum()
        rest = 1 - self._percentile / 100
        width = self.limit / BINS
        first, last = np.searchsorted(below, rest, "right"), np.searchsorted(below, 1 - rest, "left")
        return max(self.low, (first - BINS) * width), min(self.high, (last + 1 - BINS) * width)

    def _squared_error(self, low: float, high: float, scheme: Scheme) -> float:
        values = self.centres
        found = fake_quantized(values, *scale_zero_point(low, high, scheme), scheme)
        return float(self.counts @ np.square(values - found))

    def _refined(self, low: float, high: float, scheme: Scheme) -> Range:
        """Each end by itself, between its share of the whole range and all of it."""
        if low == 0 or high == 0 or scheme.symmetric:
            return low, high
        for _ in range(2):
            _, low = min((self._squared_error(share * self.low, high, scheme), share * self.low) for share in _SHARES)
            _, high = min((self._squared_error(low, share * self.high, scheme), share * self.high) for share in _SHARES)
        return low, high

    def _divergence(self, low: float, high: float, scheme: Scheme) -> float:
        """KL(P | Q): P clipped to the range, Q the same spread evenly over the bins that share an integer."""
        values = self.centres
        inside = (values >= low) & (values <= high)
        least, largest = scheme.limits
        if np.count_nonzero(inside) < largest - least + 1:  # a bin for every integer: nothing is told
            return np.inf
        counts = self.counts[inside]
        clipped = counts.copy()
        clipped[0] += self.counts[values < low].sum()
        clipped[-1] += self.counts[values > high].sum()
        scale, zero = scale_zero_point(low, high, scheme)
        steps = np.clip(np.rint(values[inside] / float(scale)) + int(zero), least, largest).astype(np.int64) - least
        spread = _spread(counts, steps)
        held = clipped > 0
        if not spread.any() or not clipped.any():
            return np.inf
        p, q = clipped[held] / clipped.sum(), spread[held] / spread.sum()
        return float(np.sum(p * np.log(p / np.maximum(q, 1e-12))))


def _spread(counts: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Counts evenly over the bins that hold any and have the same step."""
    held = counts > 0
    total, bins = np.bincount(steps, counts), np.bincount(steps, held)
    return np.where(held, total[steps] / np.maximum(bins[steps], 1), 0.0)
