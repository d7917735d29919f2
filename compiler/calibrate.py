"""What calibration data tells about a layer: a network run stretch by stretch, and moments of what a layer reads.

Two flows side by side, one over the original network and one over the compressed one, let a layer be fitted to what the
original computed from what the layers before it now give.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from nnc.data import Dataset
from nnc.errors import NncError
from nnc.layers import Layer
from nnc.measure import has_shape, tensor_bytes
from nnc.session import Session

Arrays = Mapping[str, np.ndarray]

#: What the tensors that are alive at once may take, in bytes, for all samples of one flow.
FLOW_BYTES = 3 << 30

#: Samples that are used of the calibration data: layers are fitted at many positions of each.
MOST_SAMPLES = 1024

#: Rows of patches per column that determine a layer well; more only cost time.
_ROWS_PER_COLUMN = 24
_LEAST_ROWS = 1 << 16
_CHUNK_VALUES = 1 << 22

#: Positions of one image that count as independent samples.
_INDEPENDENT = 8

#: Strengths of the ridge that are tried; fewer of them for layers of many columns, where each takes seconds.
_STRENGTHS = (1e-6, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FEW_STRENGTHS = (1e-2, 1.0)
_MANY_COLUMNS = 2048

#: A share of the targets' energy that is noise of the arithmetic, and no reason to change weights.
_NOISE = 1e-4


def samples(graph: gs.Graph, dataset: Dataset, seed: int, most: int = MOST_SAMPLES) -> dict[str, np.ndarray]:
    """Calibration data as arrays [batches, *shape of the input] by input name, as many as `FLOW_BYTES` leaves room for.

    The graph's own batch size is kept, so that a last batch which is not full is left out; where there are fewer
    samples than one batch holds, they are repeated.
    """
    batch = graph.inputs[0].shape[0]
    room = max(1, FLOW_BYTES // max(1, _peak_bytes(graph))) * batch
    count = min(len(dataset), room, most)
    chosen = dataset if count == len(dataset) else dataset.subset(seed, count)
    batches = [_filled(each, batch) for each in chosen.batches(batch)]
    full = batches[: max(1, count // batch)]
    return {name: np.stack([each[name] for each in full]) for name in full[0]}


def _filled(arrays: Arrays, batch: int) -> dict[str, np.ndarray]:
    return {name: np.resize(array, (batch, *array.shape[1:])) for name, array in arrays.items()}


def _peak_bytes(graph: gs.Graph) -> int:
    """The most bytes of tensors that are alive at once, for one batch."""
    last = {id(tensor): index for index, node in enumerate(graph.nodes) for tensor in node.inputs}
    last |= {id(tensor): len(graph.nodes) for tensor in graph.outputs}
    alive = {id(tensor): _bytes(tensor) for tensor in graph.inputs}
    peak = sum(alive.values())
    for index, node in enumerate(graph.nodes):
        alive |= {id(tensor): _bytes(tensor) for tensor in node.outputs}
        peak = max(peak, sum(alive.values()))
        alive = {key: size for key, size in alive.items() if last.get(key, -1) > index}
    return peak


def _bytes(tensor: gs.Tensor) -> int:
    return tensor_bytes(tensor) if tensor.dtype is not None and has_shape(tensor) else 0


class Flow:
    """A network that runs over all samples at once, one stretch of nodes after the other.

    Nodes that did not run yet may be edited and replaced. Values are arrays [batches, *shape of the tensor].
    """

    def __init__(self, graph: gs.Graph, given: Arrays) -> None:
        self._graph = graph
        self._values: dict[str, np.ndarray] = dict(given)
        self._done: set[int] = set()
        self._kept: set[str] = set()
        self.batches = len(next(iter(given.values())))

    def value(self, tensor: gs.Tensor) -> np.ndarray:
        """The value of a tensor that later nodes read or that is kept, for all samples."""
        return self._values[tensor.name]

    def holds(self, tensor: gs.Tensor) -> bool:
        """Whether the value of a tensor is at hand."""
        return tensor.name in self._values

    def keep(self, names: Iterable[str]) -> None:
        """Hold these tensors until `release`, even when nothing is left that reads them."""
        self._kept.update(names)

    def release(self, *names: str) -> None:
        """Hold these tensors no longer than nodes read them."""
        self._kept.difference_update(names)
        self._drop_dead()

    def run_before(self, node: gs.Node | None) -> None:
        """Run every node in front of `node`; all of them for None."""
        stretch = []
        for each in self._graph.nodes:
            if each is node:
                break
            if id(each) not in self._done:
                stretch.append(each)
        self._run(stretch)

    def run_through(self, node: gs.Node) -> None:
        """Run every node up to `node`, unless it ran already."""
        if id(node) not in self._done:
            self.run_before(node)
            self._run([node])

    def outputs(self, from_here: Arrays = {}) -> dict[str, np.ndarray]:  # noqa: B006  # never changed
        """The outputs of the graph if the rest ran now, with some tensors replaced; the flow stays where it is."""
        pending = [node for node in self._graph.nodes if id(node) not in self._done]
        produced = {tensor.name for tensor in self._graph.outputs if tensor.name in self._values}
        wanted = [tensor for tensor in self._graph.outputs if tensor.name not in produced]
        found = self._compute(pending, wanted, {**self._values, **from_here}) if wanted else {}
        return found | {name: self._values[name] for name in produced}

    def _run(self, stretch: list[gs.Node]) -> None:
        if not stretch:
            return
        self._done.update(id(node) for node in stretch)
        read = self._still_read()
        made = [tensor for node in stretch for tensor in node.outputs if tensor.name in read]
        self._values |= self._compute(stretch, made, self._values)
        self._drop_dead()

    def _compute(self, nodes: list[gs.Node], wanted: list[gs.Tensor], values: Arrays) -> dict[str, np.ndarray]:
        if not wanted:
            return {}
        made = {id(tensor) for node in nodes for tensor in node.outputs}
        read = {tensor.name: tensor for node in nodes for tensor in node.inputs if isinstance(tensor, gs.Variable)}
        given = {name: tensor for name, tensor in read.items() if name in values and id(tensor) not in made}
        stretch = gs.Graph(
            nodes, list(given.values()), wanted, opset=self._graph.opset,
            import_domains=self._graph.import_domains, ir_version=self._graph.ir_version,
        )  # fmt: skip
        session = Session(stretch, optimized=True)
        results: dict[str, np.ndarray] = {}
        for index in range(self.batches):
            for name, value in session.run({name: values[name][index] for name in given}).items():
                if name not in results:
                    results[name] = np.empty((self.batches, *value.shape), value.dtype)
                results[name][index] = value
        return results

    def _still_read(self) -> set[str]:
        pending = (node for node in self._graph.nodes if id(node) not in self._done)
        read = {tensor.name for node in pending for tensor in node.inputs}
        return read | self._kept | {tensor.name for tensor in self._graph.outputs}

    def _drop_dead(self) -> None:
        read = self._still_read()
        self._values = {name: value for name, value in self._values.items() if name in read}


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
    are more than the layer needs to be determined. Raises NncError where x or the targets are not finite.
    """
    halves = _Sums(), _Sums()
    near = y_near = np.zeros(())
    x = _samples(x)
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
    x = _samples(x)
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
        raise NncError(
            f"'{tensor.name}' of '{layer.node.name}' is not finite on the calibration data",
            "check the data and [data.preprocess]",
        )


def _samples(values: np.ndarray) -> np.ndarray:
    """[batches, N, ...] -> [batches N, ...]."""
    return values.reshape(-1, *values.shape[2:])


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


def ridge(moments: Moments, W: np.ndarray, strength: float) -> np.ndarray:
    """The weights V [g, K / g, D] that minimize E[(y - V x)^2] + s |V - W|^2, s a share of the mean of E[x x]."""
    columns = moments.xx.shape[1]
    scale = np.trace(moments.xx, axis1=1, axis2=2) / columns
    damping = (strength * scale + np.finfo(np.float64).tiny)[:, None, None] * np.eye(columns)
    return np.linalg.solve(moments.xx + damping, moments.xy + damping @ W.transpose(0, 2, 1)).transpose(0, 2, 1)


def fitted(halves: tuple[Moments, Moments], W: np.ndarray) -> np.ndarray:
    """The ridge solution near W whose strength does best on the half that it was not fitted to; W itself if none does.

    Few images don't determine a layer of many columns: what fits them may be worse than W on all others.
    """
    first, second = halves
    whole = first.with_(second)
    if first is second:
        return ridge(whole, W, _STRENGTHS[-1])
    strengths = _STRENGTHS if W.shape[2] <= _MANY_COLUMNS else _FEW_STRENGTHS
    pairs = ((first, second), (second, first))
    errors = [sum(float(test.error(ridge(fit, W, each)).sum()) for fit, test in pairs) for each in strengths]
    unfitted = sum(float(half.error(W).sum()) for half in halves)
    best = int(np.argmin(errors))
    noise = _NOISE * sum(float(half.yy.sum()) for half in halves)
    return ridge(whole, W, strengths[best]) if errors[best] < unfitted - noise else W
