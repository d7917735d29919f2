"""Second moments of what layers read and shall give, streamed over samples and positions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from nnc.calibrate.flow import unbatched
from nnc.errors import NncError
from nnc.layers import Layer

#: Rows of patches per column that determine a layer well; more only cost time.
_ROWS_PER_COLUMN = 24
_LEAST_ROWS = 1 << 16
_CHUNK_VALUES = 1 << 22

#: Positions of one image that count as independent samples.
_INDEPENDENT = 8


class NotFinite(NncError):
    """What a layer reads or shall give has no second moments; passes may leave the layer alone and say this."""


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's inputs x (its patches) and targets y about their means, float64.

    A layer of g groups has g blocks: x is one of g rows of D values, y of K / g.
    """

    xx: np.ndarray
    """E[x x^T], [g, D, D]."""
    xy: np.ndarray
    """E[x y^T], [g, D, K / g]."""
    yy: np.ndarray
    """E[y y], [g, K / g]."""
    x_mean: np.ndarray
    """[g, D]."""
    y_mean: np.ndarray
    """[g, K / g]."""
    rows: int

    def error(self, W: np.ndarray) -> np.ndarray:
        """E[(y - W x)^2] about the means by output, [g, K / g], for W [g, K / g, D]."""
        cross = np.einsum("gkd,gdk->gk", W, self.xy)
        return np.maximum(self.yy - 2 * cross + np.einsum("gkd,gdk->gk", W, self.xx @ W.transpose(0, 2, 1)), 0.0)

    def bias(self, W: np.ndarray) -> np.ndarray:
        """What makes the means agree, [K]."""
        return (self.y_mean - np.einsum("gkd,gd->gk", W, self.x_mean)).reshape(-1)

    def with_(self, other: "Moments") -> "Moments":
        """The moments of the rows of both."""
        if other is self:
            return self
        rows = self.rows + other.rows
        own, theirs = self.rows / rows, other.rows / rows
        x, y = self.x_mean - other.x_mean, self.y_mean - other.y_mean
        return Moments(
            xx=own * self.xx + theirs * other.xx + own * theirs * x[:, :, None] * x[:, None],
            xy=own * self.xy + theirs * other.xy + own * theirs * x[:, :, None] * y[:, None],
            yy=own * self.yy + theirs * other.yy + own * theirs * y**2,
            x_mean=own * self.x_mean + theirs * other.x_mean,
            y_mean=own * self.y_mean + theirs * other.y_mean,
            rows=rows,
        )


@dataclass(frozen=True)
class Slack:
    """What a layer may give instead of its target where the activation behind it is constant.

    Any value up to `low`, or from `high` on, is as good as the target there: the one nearest to what the layer gives
    with the weights that it has is what it is fitted to. A layer spends nothing on what a Relu takes away.
    (Zhang, Zou, He, Sun, Accelerating very deep convolutional networks for classification and detection, 2015.)
    """

    low: float
    high: float
    W: np.ndarray
    """[g, K / g, D]."""
    bias: np.ndarray
    """[K]."""

    def targets(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The targets for rows x [g, rows, D] whose target is y [g, rows, K / g]."""
        given = x @ self.W.transpose(0, 2, 1).astype(x.dtype) + self.bias.reshape(len(y), 1, -1).astype(y.dtype)
        below = np.where(y <= self.low, np.minimum(given, self.low), y)
        return np.where(y >= self.high, np.maximum(given, self.high), below).astype(y.dtype, copy=False)


def moments(
    layer: Layer, x: np.ndarray, target: Callable[[slice], np.ndarray], seed: int, slack: Slack | None = None
) -> tuple[Moments, Moments]:
    """The moments of a layer that reads x [batches, N, C, ...] and shall give `target`, by samples [n, K, ...].

    One of every other sample, one of those between, so that what is fitted to the one half is tested on the other;
    `Moments.with_` has both. The samples of all batches are numbered through. Positions are drawn at random where there
    are more than the layer needs to be determined. Raises NotFinite where x or the targets are not finite.
    """
    halves = _Sums(), _Sums()
    near = y_near = np.zeros(())
    x = unbatched(x)
    for part, chosen in _positions(layer, x, seed):
        patches, targets = layer.rows(x[part], chosen), layer.targets(target(part), chosen)
        with np.errstate(invalid="ignore", over="ignore"):  # told below
            targets = targets if slack is None else slack.targets(patches, targets)
            if not halves[0].rows:
                near, y_near = _near_mean(patches), _near_mean(targets)
            patches, targets = patches - near, targets - y_near
            for sums, half in zip(halves, _halves(part, chosen.shape), strict=True):
                sums.add(patches[:, half], targets[:, half])
    for sums in halves if halves[1].rows else halves[:1]:
        _require_finite(layer, layer.node.inputs[0], sums.xx)
        _require_finite(layer, layer.node.outputs[0], sums.yy)
    first = halves[0].moments(near, y_near)
    return first, halves[1].moments(near, y_near) if halves[1].rows else first


def _halves(part: slice, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a part belong to samples of even and of odd numbers; `shape` is [samples, positions]."""
    even = np.repeat(np.arange(part.start, part.stop) % 2 == 0, shape[1])
    return even, ~even


@dataclass
class _Sums:
    """Sums over rows of x and y."""

    rows: int = 0
    x: np.ndarray = field(default_factory=lambda: np.zeros(()))
    y: np.ndarray = field(default_factory=lambda: np.zeros(()))
    yy: np.ndarray = field(default_factory=lambda: np.zeros(()))
    xx: np.ndarray = field(default_factory=lambda: np.zeros(()))
    xy: np.ndarray = field(default_factory=lambda: np.zeros(()))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """More rows x [g, rows, D] and y [g, rows, K / g]."""
        if not x.shape[1]:
            return
        self.rows += x.shape[1]
        self.x = self.x + x.sum(1, dtype=np.float64)
        self.y = self.y + y.sum(1, dtype=np.float64)
        self.yy = self.yy + np.square(y).sum(1, dtype=np.float64)
        self.xx = self.xx + x.transpose(0, 2, 1) @ x
        self.xy = self.xy + x.transpose(0, 2, 1) @ y

    def moments(self, near: np.ndarray, y_near: np.ndarray) -> Moments:
        """The moments of rows from which `near` and `y_near` [g, 1, n] were taken."""
        x_mean, y_mean = self.x / self.rows, self.y / self.rows
        return Moments(
            xx=self.xx / self.rows - x_mean[:, :, None] * x_mean[:, None],
            xy=self.xy / self.rows - x_mean[:, :, None] * y_mean[:, None],
            yy=np.maximum(self.yy / self.rows - y_mean**2, 0.0),
            x_mean=x_mean + near[:, 0],
            y_mean=y_mean + y_near[:, 0],
            rows=self.rows,
        )


def input_moments(layer: Layer, x: np.ndarray, seed: int) -> np.ndarray:
    """`Moments.xx` alone."""
    total, mean, near, rows = np.zeros(()), np.zeros(()), np.zeros(()), 0
    x = unbatched(x)
    for part, chosen in _positions(layer, x, seed):
        patches = layer.rows(x[part], chosen)
        with np.errstate(invalid="ignore", over="ignore"):  # told below
            near = near if rows else _near_mean(patches)
            patches = patches - near
            total = total + patches.transpose(0, 2, 1) @ patches
            mean = mean + patches.sum(1, dtype=np.float64)
        rows += chosen.size
    _require_finite(layer, layer.node.inputs[0], total)
    mean = mean / rows
    return shrunk(total / rows - mean[:, :, None] * mean[:, None], layer, len(x))


def shrunk(moments: np.ndarray, layer: Layer, samples: int) -> np.ndarray:
    """E[x x^T] [g, D, D] with less trust in correlations the fewer samples they were seen in.

    Towards the diagonal, by D / (D + n) with n what the samples count for: neighbouring positions of an image tell
    nearly the same (Schaefer, Strimmer, A shrinkage approach to large-scale covariance matrix estimation, 2005).
    """
    columns = moments.shape[1]
    kept = 1 - columns / (columns + samples * min(layer.positions, _INDEPENDENT))
    diagonal = np.einsum("gdd->gd", moments)
    result = moments * kept
    np.einsum("gdd->gd", result)[...] = diagonal
    return result


def _near_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the first rows [g, rows, n], [g, 1, n]: about it, float32 holds the variance of nearly constant x."""
    return values.mean(1, dtype=np.float64, keepdims=True).astype(values.dtype)


def channel_moments(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of x [batches, *shape] by channel, which `axis` of the shape counts; float64."""
    x = np.moveaxis(x, axis + 1, 1)
    sums, squares = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for part in _parts(len(x), x[0].size):
        values = x[part].reshape(*x[part].shape[:2], -1).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            sums += values.sum((0, 2))
            squares += np.square(values).sum((0, 2))
    count = x.size // x.shape[1]
    mean = sums / count
    with np.errstate(invalid="ignore"):
        return mean, np.maximum(squares / count - mean**2, 0.0)


def _require_finite(layer: Layer, tensor: gs.Tensor, moments: np.ndarray) -> None:
    if not np.isfinite(moments).all():
        raise NotFinite(
            f"'{tensor.name}' of '{layer.node.name}' is not finite on the calibration data",
            "check the data and [data.preprocess]",
        )


def _parts(count: int, values: int) -> Iterator[slice]:
    """`count` samples in parts, when something is made that has so many values per sample."""
    step = max(1, _CHUNK_VALUES // max(1, values))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _positions(layer: Layer, x: np.ndarray, seed: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Parts of the samples x, with random positions [samples, n] of each."""
    wanted = max(_LEAST_ROWS, _ROWS_PER_COLUMN * layer.columns)
    each = min(layer.positions, -(-wanted // len(x)))
    rng = np.random.default_rng(seed)
    for part in _parts(len(x), max(each * layer.columns * layer.groups, x[0].size)):
        yield part, np.stack([rng.permutation(layer.positions)[:each] for _ in range(part.stop - part.start)])
