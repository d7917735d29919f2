"""Which channels can be scaled without moving the outputs, and factors that make their ranges alike.

A channel that is divided by s where it is written and multiplied by s where it is read leaves the network as it was,
if everything between is positively homogeneous, f(s x) = s f(x) for s > 0: Relu, PRelu, pooling, sums, everything that
only moves elements. The channels are found by the walk of nnc.channels, with rules of that kind: channels that a sum
adds go together, but what a depthwise convolution writes is scaled apart from what it reads.

Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019, section 4.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc import affine
from nnc.affine import Affine
from nnc.channels import elementwise, layers, movement
from nnc.channels.labels import varied
from nnc.channels.walk import Layer, Rule, Stays, Walk, is_constant, run, title
from nnc.extremes import Extremes
from nnc.pattern import NoMatch
from nnc.rewrite import Draft, Driver, node

_MOST_SWEEPS = 100

#: Logarithms of factors that change less than this are settled.
_SETTLED = 1e-3

#: Factors are from 1 / this to this: further apart, rounding would show.
MOST = 2.0**12


@dataclass(frozen=True)
class Scalable:
    """The channels of a graph that can be scaled. Id 0 is everything that can't."""

    count: int
    axes: dict[str, tuple[int, np.ndarray]]
    """Where channels lie, by the tensor's name: the axis, and the id of every index along it, int64."""
    layers: dict[str, tuple[np.ndarray, np.ndarray]]
    """The ids that a layer reads and writes, by the node's name."""
    fixed: dict[str, str]
    """Why output channels of a layer stay, by the node's name."""

    def along(self, tensor: gs.Tensor, factors: np.ndarray) -> np.ndarray | None:
        """The factors of a tensor's channels, shaped so that they broadcast; None where it has none."""
        if tensor.name not in self.axes:
            return None
        axis, ids = self.axes[tensor.name]
        return factors[ids].reshape([-1] + [1] * (len(tensor.shape) - axis - 1))


def trace(graph: gs.Graph, *, bounds: bool = True) -> Scalable:
    """Find the channels that can be scaled; with `bounds` also through Clip, whose bounds then differ by channel."""
    walk = run(graph, _RULES if bounds else {**_RULES, "Clip": _not_homogeneous})
    roots, axes = walk.labels.roots(), {}
    for name, array in walk.arrays.items():
        if places := varied(roots[array]):
            (axis,) = places
            axes[name] = axis, np.moveaxis(roots[array], axis, 0).reshape(walk.tensors[name].shape[axis], -1)[:, 0]
    found = {name: (roots[each.read], roots[each.written]) for name, each in walk.layers.items()}
    reasons = walk.labels.reasons() | {0: "what it reads stays"}
    fixed = {
        name: reasons[int(each.written[roots[each.written] == 0][0])]
        for name, each in walk.layers.items()
        if not roots[each.written].all()
    }
    return Scalable(len(roots), axes, found, fixed)


def _layer(walk: Walk, each: gs.Node) -> None:
    """Conv, ConvTranspose, Gemm, MatMul: what they write is scaled apart from what they read."""
    x, y = each.inputs[0], each.outputs[0]
    if not all(isinstance(tensor, gs.Constant) for tensor in each.inputs[1:] if not tensor.is_empty()):
        raise Stays(f"the weights of {title(each)} are no constants of floats")
    try:
        affine.require_before(each, Affine(np.ones(1), np.zeros(1)))
    except NoMatch as reason:
        raise Stays(f"{title(each)}: {reason}") from reason
    axis = len(x.shape) - 1 if each.op == "MatMul" else 1
    read, written = walk.along(x, axis), walk.fresh(each, y.shape[axis])
    walk.layers[each.name] = Layer(read, written)
    walk.put(y, written.reshape([-1 if place == axis else 1 for place in range(len(y.shape))]))


def _sum(walk: Walk, each: gs.Node) -> None:
    """Operators that are homogeneous in all of their inputs together."""
    for tensor in each.inputs:
        if is_constant(tensor) and not isinstance(tensor, gs.Constant):
            raise Stays(f"'{tensor.name}', which {title(each)} reads, is quantized")
    elementwise.RULES[each.op](walk, each)


def _product(walk: Walk, each: gs.Node) -> None:
    """Mul and Div are homogeneous in one of their inputs, if the others don't change."""
    y = each.outputs[0]
    scaled = [tensor for tensor in each.inputs if walk[tensor].any()]
    if not scaled:
        return
    x = scaled[0]
    if len(scaled) > 1 or (each.op == "Div" and x is not each.inputs[0]):
        raise Stays(f"{title(each)} is not proportional to what it reads")
    labels = walk[x].reshape((1,) * (len(y.shape) - len(x.shape)) + walk[x].shape)
    if any(labels.shape[axis] not in (1, y.shape[axis]) for axis in range(labels.ndim)):
        raise Stays(f"{title(each)} broadcasts '{x.name}' along other channels")
    walk.put(y, labels)


def _bounded(walk: Walk, each: gs.Node) -> None:
    if not all(isinstance(bound, gs.Constant) for bound in each.inputs[1:] if not bound.is_empty()):
        raise Stays(f"the bounds of {title(each)} are computed at run time")
    walk.put(each.outputs[0], walk[each.inputs[0]])


def _concat(walk: Walk, each: gs.Node) -> None:
    axis = each.attrs["axis"] % len(each.outputs[0].shape)
    apart = any(set(varied(walk[x])) - {axis} for x in each.inputs)
    if apart and any(is_constant(x) for x in each.inputs):
        raise Stays(f"{title(each)} joins it with a constant")
    movement.RULES["Concat"](walk, each)


def _pad(walk: Walk, each: gs.Node) -> None:
    filled = len(each.inputs) > 2 and not each.inputs[2].is_empty()
    if filled and not (isinstance(each.inputs[2], gs.Constant) and not each.inputs[2].values.any()):
        raise Stays(f"{title(each)} pads with a value that is not 0")
    movement.RULES["Pad"](walk, each)


def _resize(walk: Walk, each: gs.Node) -> None:
    if each.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Stays(f"{title(each)} fills with a value of its own")
    movement.RULES["Resize"](walk, each)


def _cast(walk: Walk, each: gs.Node) -> None:
    if np.dtype(each.outputs[0].dtype).kind != "f":
        raise Stays(f"{title(each)} rounds to integers")
    movement.RULES["Cast"](walk, each)


def _not_homogeneous(walk: Walk, each: gs.Node) -> None:
    raise Stays(f"{title(each)} is not proportional to what it reads")


_POSITIVELY_HOMOGENEOUS = ("Abs", "Dropout", "LeakyRelu", "Neg", "PRelu", "Relu")
_SUMS = ("Add", "Max", "Mean", "Min", "Sub", "Sum")
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_KNOWN: dict[str, Rule] = {**movement.RULES, **elementwise.RULES, **layers.RULES}

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_KNOWN, _not_homogeneous),
    **movement.RULES,
    **{op: _KNOWN[op] for op in (*_POSITIVELY_HOMOGENEOUS, *_POOLS, *_REDUCTIONS)},
    **dict.fromkeys(_SUMS, _sum),
    **dict.fromkeys(_LAYERS, _layer),
    "Mul": _product, "Div": _product, "Clip": _bounded, "Concat": _concat, "Pad": _pad, "Resize": _resize,
    "Cast": _cast, "CastLike": _not_homogeneous, "Shape": _not_homogeneous, "Size": _not_homogeneous,
}  # fmt: skip


# --- Factors


@dataclass(frozen=True)
class _Term:
    """Ranges that a factor changes: those of a layer's rows or columns, or of its bias."""

    ids: np.ndarray
    """[groups, rows or columns]."""
    ranges: np.ndarray
    """float64 [groups, rows, columns]; the terms of a layer share it."""
    axis: int
    """Of the ranges, which the ids are along: 1 or 2."""
    sign: int
    """-1: the ranges shrink where s grows, as what writes a channel does."""

    def log(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the largest range by id, and where there is one."""
        largest = np.zeros(max(int(ids.max()), int(self.ids.max())) + 1)
        np.maximum.at(largest, self.ids, self.ranges.max(3 - self.axis, initial=0.0))
        there = largest[ids] > 0
        return np.log(np.where(there, largest[ids], 1.0)), there

    def follow(self, logs: np.ndarray) -> None:
        """Let the ranges change with the factors, by id."""
        self.ranges[...] *= np.expand_dims(np.exp(self.sign * logs)[self.ids], 3 - self.axis)

    def holds(self, ids: np.ndarray) -> bool:
        return bool(np.isin(ids, self.ids).any())


def alike(graph: gs.Graph, traced: Scalable) -> np.ndarray:
    """s by id, float64 with s[0] = 1: channels are to be divided by it where they are written.

    For every channel the ranges of the weights that write it and of those that read it become equal:
    s = sqrt(r_out / r_in), Nagel's equation 11, sweep by sweep, as every layer reads some channels and writes others.
    Over several layers r is the geometric mean.
    """
    terms = _terms({each.name: each for each in graph.nodes}, traced)
    logs, together = np.zeros(traced.count), groups(traced)
    touched = [[term for term in terms if term.holds(ids)] for ids in together]
    for _ in range(_MOST_SWEEPS):
        moved = 0.0
        for ids, held in zip(together, touched, strict=True):
            step = np.zeros(traced.count)
            step[ids] = np.clip(logs[ids] + _step(ids, held), -_MOST_LOG, _MOST_LOG) - logs[ids]
            logs += step
            for each in held:
                each.follow(step)
            moved = max(moved, float(np.abs(step).max()))
        if moved < _SETTLED:
            break
    return np.exp(logs)


def groups(traced: Scalable) -> list[np.ndarray]:
    """Ids that lie in the same layers, in the order of execution."""
    found, seen = [], np.zeros(traced.count, bool)
    seen[0] = True
    for _, written in traced.layers.values():
        ids = np.unique(written[~seen[written]])
        seen[ids] = True
        found += [ids] if ids.size else []
    return found


def _terms(nodes: dict[str, gs.Node], traced: Scalable) -> list[_Term]:
    """The ranges of all weights, and of biases: a channel of small weights and a large bias is not small."""
    terms = []
    for name, (read, written) in traced.layers.items():
        extent = _extent(nodes[name])
        terms.append(_Term(written.reshape(len(extent), -1), extent, 1, -1))
        terms.append(_Term(read.reshape(len(extent), -1), extent, 2, +1))
        if (bias := _bias(nodes[name], written.size)).any():
            terms.append(_Term(written[None], bias[None, :, None], 1, -1))
    return terms


def _step(ids: np.ndarray, terms: Sequence[_Term]) -> np.ndarray:
    """What to add to the logarithms of the factors of some ids."""
    sums, counts = {sign: np.zeros(len(ids)) for sign in (-1, 1)}, {sign: np.zeros(len(ids)) for sign in (-1, 1)}
    for each in terms:
        log, there = each.log(ids)
        sums[each.sign] += np.where(there, log, 0.0)
        counts[each.sign] += there
    out, into = (sums[sign] / np.maximum(counts[sign], 1) for sign in (-1, 1))
    if counts[-1].any() and counts[1].any():
        return np.where((counts[-1] > 0) & (counts[1] > 0), (out - into) / 2, 0.0)
    sign = -1 if counts[-1].any() else 1  # nothing minds the other side: all channels get one range
    alive, log = counts[sign] > 0, out if sign < 0 else into
    return np.where(alive, sign * (log[alive].mean() - log), 0.0) if alive.any() else np.zeros(len(ids))


_MOST_LOG = float(np.log(MOST))


def _extent(layer: gs.Node) -> np.ndarray:
    """The largest magnitude over the taps of a layer's weights, float64 [groups, outputs, inputs]."""
    W, groups = np.abs(layer.inputs[1].values.astype(np.float64)), layer.attrs.get("group", 1)
    blocks = W.reshape(groups, W.shape[0] // groups, W.shape[1], -1).max(-1)
    return blocks if layer.op == "Conv" or layer.attrs.get("transB", 0) else blocks.transpose(0, 2, 1)


def _bias(layer: gs.Node, outputs: int) -> np.ndarray:
    """Magnitudes of a layer's bias, float64 [outputs]."""
    if len(layer.inputs) < 3 or layer.inputs[2].is_empty():
        return np.zeros(outputs)
    values = np.abs(layer.inputs[2].values.astype(np.float64)) * abs(layer.attrs.get("beta", 1.0))
    return np.broadcast_to(values, (*values.shape[:-1], outputs)).reshape(-1, outputs).max(0)


# --- Scaling


def scale(graph: gs.Graph, traced: Scalable, factors: np.ndarray) -> None:
    """Divide channels by their factors [ids] where they are written, and multiply by them where they are read."""
    driver = Driver(graph)
    for each in list(graph.nodes):
        if each.name in traced.layers:
            read = factors[traced.layers[each.name][0]]
            if (read != 1).any():
                driver.replace(each, affine.before(each, Affine(read, np.zeros(1)), each.inputs[0]))
        elif each.op in _SUMS:
            _scale_constants(each, traced.along(each.outputs[0], factors), driver)
        elif each.op == "Clip":
            _scale_bounds(each, traced.along(each.outputs[0], factors), driver)
    driver.tidy()
    for each in list(graph.nodes):
        if each.name in traced.layers:
            written = factors[traced.layers[each.name][1]]
            if (written != 1).any():
                driver.replace(each, affine.after(each, Affine(1 / written, np.zeros(1))))
    driver.tidy()


def _scale_constants(each: gs.Node, along: np.ndarray | None, driver: Driver) -> None:
    """Give a sum constants that are scaled like what they are added to."""
    for index, tensor in enumerate(each.inputs):
        if along is not None and (along != 1).any() and isinstance(tensor, gs.Constant):
            values = (tensor.values / along).astype(tensor.values.dtype)
            each.inputs[index] = driver.constant(f"{each.outputs[0].name}.{index}", values)


def _scale_bounds(clip: gs.Node, along: np.ndarray | None, driver: Driver) -> None:
    """Clip(x, 0, b)  ->  Min(Relu(x), b / s): a bound for every channel."""
    if along is None or (along == 1).all():
        return
    low, high = (bound(clip, index) for index in (1, 2))
    dtype = clip.outputs[0].dtype
    bounded: gs.Tensor | Draft = clip.inputs[0]
    if low is not None:
        bounded = node("Max", bounded, (low / along).astype(dtype)) if low else node("Relu", bounded)
    if high is not None:
        bounded = node("Min", bounded, (high / along).astype(dtype))
    driver.replace(clip, bounded)


def bound(clip: gs.Node, index: int) -> float | None:
    """A bound of a Clip; None where it has none."""
    if len(clip.inputs) <= index or clip.inputs[index].is_empty():
        return None
    value = float(clip.inputs[index].values)
    return value if np.isfinite(value) else None


# --- Factors for weights with a scale per channel


@dataclass(frozen=True)
class Noise:
    """What tells how much quantization disturbs layers whose weights have a scale for every output channel."""

    activations: Mapping[str, Extremes]
    """Of the channels of what layers read, by the tensor's name."""
    weight_bits: int
    activation_bits: int = 8


def quietest(graph: gs.Graph, traced: Scalable, noise: Noise) -> np.ndarray:
    """s by id, float64 with s[0] = 1, so that the layers that read the channels are disturbed least.

    Rows don't mind being scaled here. A layer's noise is that of activations, whose step is set by their widest
    channel, and that of weights, whose steps are set by their largest columns; s = a^p / w^q, of ranges a of
    activations and w of columns, moves one into the other (SmoothQuant, p + q = 1). Of some p and q the best is taken,
    by the power of the noise over that of the signal, and none where it gains little.
    """
    nodes = {each.name: each for each in graph.nodes}
    readers = [
        _Reader(each[0], nodes[name], noise.activations[nodes[name].inputs[0].name], noise)
        for name, each in traced.layers.items()
        if nodes[name].inputs[0].name in noise.activations
    ]
    logs = np.zeros(traced.count)
    for ids in groups(traced):
        reading = [each for each in readers if np.isin(each.ids, ids).any()]
        logs[ids] = _quietest(ids, reading, logs) if reading else 0.0
    return np.exp(logs)


class _Reader:
    """The noise of one layer by the factors of what it reads."""

    def __init__(self, ids: np.ndarray, layer: gs.Node, read: Extremes, noise: Noise) -> None:
        self.ids, self._read = ids, read
        self._extent = _extent(layer)
        self._columns = self._extent.max(1).reshape(-1)
        W, blocks = np.square(layer.inputs[1].values.astype(np.float64)), len(self._extent)
        powers = W.reshape(blocks, W.shape[0] // blocks, W.shape[1], -1).sum(-1)
        out_first = layer.op == "Conv" or layer.attrs.get("transB", 0)
        self._power = powers.sum(1 if out_first else 2).reshape(-1)
        self._moment = np.square(read.mean) + np.square(read.deviation)
        self._taps = W[0, 0].size
        self._levels = 2.0**noise.activation_bits - 1, 2.0**noise.weight_bits - 1
        self._signal = float((self._power * self._moment).sum()) or 1.0

    def ranges(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The largest magnitudes of activations and of columns, by id; 0 where there are none."""
        found = np.zeros((2, max(int(ids.max()), int(self.ids.max())) + 1))
        for row, values in zip(found, (self._read.largest, self._columns), strict=True):
            np.maximum.at(row, self.ids, values)
        return found[0, ids], found[1, ids]

    def noise(self, logs: np.ndarray) -> float:
        """Power of the noise over that of the signal."""
        s = np.exp(logs[self.ids])
        step = ((self._read.high / s).max(initial=0.0) - (self._read.low / s).min(initial=0.0)) / self._levels[0]
        blocks = len(self._extent)
        steps = 2 * (self._extent * s.reshape(blocks, 1, -1)).max(2) / self._levels[1]
        read = (self._moment / s**2).reshape(blocks, -1).sum(1) * self._taps
        weights = float((np.square(steps).sum(1) * read).sum())
        return float((step**2 * (s**2 * self._power).sum() + weights) / self._signal)


#: The share of the noise that a change of factors has to save.
_GAIN = 0.1

_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def _quietest(ids: np.ndarray, readers: Sequence[_Reader], logs: np.ndarray) -> np.ndarray:
    """Logarithms of the factors of the ids at which their readers are disturbed least."""
    found = [each.ranges(ids) for each in readers]
    activations, columns = (_log_mean([pair[side] for pair in found]) for side in (0, 1))

    def noise(step: np.ndarray) -> float:
        tried = logs.copy()
        tried[ids] = step
        return sum(each.noise(tried) for each in readers)

    none = np.zeros(len(ids))
    steps = [np.clip(p * activations - q * columns, -_MOST_LOG, _MOST_LOG) for p in _POWERS for q in _POWERS]
    best = min(steps, key=noise)
    return best if noise(best) < (1 - _GAIN) * noise(none) else none


def _log_mean(ranges: Sequence[np.ndarray]) -> np.ndarray:
    """Logarithms about their mean of the geometric means of ranges; 0 where one is 0."""
    alive = np.all([each > 0 for each in ranges], axis=0)
    logs = np.mean([np.log(np.where(alive, each, 1.0)) for each in ranges], axis=0)
    return np.where(alive, logs - (logs[alive].mean() if alive.any() else 0.0), 0.0)
