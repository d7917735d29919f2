"""Networks that compute on smaller images than they read."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc import accuracy
from nnc import graph as graphs
from nnc.accuracy import Accuracy
from nnc.compression.budget import Budget, Metric, Solution
from nnc.digests import digest, graph_digest
from nnc.errors import NncError
from nnc.measure import has_shape
from nnc.model.proto import is_standard
from nnc.pattern import NoMatch
from nnc.rewrite import Context, replace_input

Size = tuple[int, int]

#: Operators whose first input is an image: its height and width are behind N and C.
_WINDOWED = ("Conv", "AveragePool", "MaxPool")

#: Calibration samples on which the loss is measured.
_SAMPLES = 512

#: Sizes that are compared, and how far below a budget they go: a size that strides divide may lose less than one above.
_MOST_OPTIONS = 20
_BELOW = 0.9


@dataclass(frozen=True)
class Option:
    """A size to compute on."""

    size: Size
    share: float
    """Of the cost that is left."""
    loss: float
    """Cross-entropy on the calibration data, in nats."""


def image(graph: gs.Graph) -> tuple[gs.Variable, tuple[int, int]]:
    """The input of the graph that is an image, and its axes of height and width; NoMatch where that is not clear."""
    read, *others = graph.inputs
    if others or len(read.shape) != 4 or not np.issubdtype(read.dtype, np.floating):
        raise NoMatch("the model doesn't read one image of floats")
    axes = _axes(read)
    if len(axes) != 1:
        raise NoMatch(f"no convolution tells which axes of '{read.name}' are height and width")
    return read, axes.pop()


def _axes(read: gs.Variable) -> set[tuple[int, int]]:
    """The axes of an input that the first convolutions behind it see as height and width."""
    found, seen = set(), set()
    reached: list[tuple[gs.Node, tuple[int, ...]]] = [(reader, (0, 1, 2, 3)) for reader in read.outputs]
    while reached:
        reader, order = reached.pop()  # of the axes of the input
        if id(reader) in seen:
            continue
        seen.add(id(reader))
        if is_standard(reader, *_WINDOWED):
            found.add((order[2], order[3]))
            continue
        if is_standard(reader, "Transpose"):
            order = tuple(order[axis] for axis in reader.attrs.get("perm", (3, 2, 1, 0)))
        if len(reader.outputs[0].shape or ()) == 4:
            reached += [(each, order) for each in reader.outputs[0].outputs]
    return found


def size(graph: gs.Graph) -> Size:
    """Height and width of the graph's image."""
    read, axes = image(graph)
    height, width = (read.shape[axis] for axis in axes)
    return height, width


def smallest(graph: gs.Graph) -> Size:
    """The least height and width that `resized` takes: a bilinear Resize to less than half leaves pixels out."""
    height, width = size(graph)
    return math.ceil(height / 2), math.ceil(width / 2)


def smaller(graph: gs.Graph, start: float = 1.0) -> Iterator[Size]:
    """Sizes below `start` times that of the graph's image, of nearly its proportions, in falling order."""
    height, width = size(graph)
    first = min(height - 1, math.ceil(start * height))
    for lines in range(first, smallest(graph)[0] - 1, -1):
        yield lines, round(width * lines / height)


def costs(graph: gs.Graph, metric: Metric, start: float, context: Context) -> Iterator[tuple[Size, float]]:
    """`smaller` sizes that the graph can compute on, and the shares of its cost that are left with them.

    Raises NoMatch where there is none.
    """
    whole, reason, some = context.cost(graph, metric), NoMatch("its images can't be smaller"), False
    for each in smaller(graph, start):
        try:
            share = context.cost(resized(graph, each), metric) / whole
        except NoMatch as error:  # a network may need even sizes
            reason = error
            continue
        some = True
        yield each, share
    if not some:
        raise reason


def instead(
    graph: gs.Graph, compressed: gs.Graph, solution: Solution, budget: Budget, context: Context
) -> Option | None:
    """The size at which less is lost than by compressing within the budget alone, None where that loses least.

    What the budget still asks for at a size is left to compression, whose loss is taken to grow with the error that
    `solution` predicts. Raises NoMatch where the calibration data don't tell, and where no size fits.
    """
    if not has_labels(graph, context):
        raise NoMatch("without labels of its classes the calibration data don't tell what smaller images lose")
    whole = loss(graph, context)
    lost = loss(compressed, context) - whole
    if lost <= 0 or not solution.error:
        return None
    points = sorted((float(each["budget"]), float(each["error"])) for each in solution.points)
    shares, errors = np.array([*points, (1.0, 0.0)]).T

    def expected(option: Option) -> float:
        rest = budget.share / option.share
        error = float(np.interp(rest, shares, errors, left=np.inf)) if rest < 1 else 0.0
        return option.loss - whole + lost * error / solution.error

    best = min(_options(graph, budget, context), key=expected)
    return best if expected(best) < lost else None


def _options(graph: gs.Graph, budget: Budget, context: Context) -> list[Option]:
    """Sizes that leave between all of the cost and a little less than the budget does."""
    found = []
    for size, share in costs(graph, budget.metric, 1.0, context):
        found.append((size, share))
        if share < _BELOW * budget.share:
            break
    picked = np.unique(np.linspace(0, len(found) - 1, _MOST_OPTIONS).round().astype(int))
    options: list[Option] = []
    for index in picked:
        context.progress("compare sizes", len(options), len(picked))
        size, share = found[index]
        options.append(Option(size, share, loss(resized(graph, size), context)))
    return options


def has_labels(graph: gs.Graph, context: Context) -> bool:
    """Whether the calibration data have labels, and these are classes that the graph tells apart."""
    labels, classes = context.calibration.labels, accuracy.classes(graph)
    return labels is not None and labels.max() < classes and _measured(graph, context).beats_guessing(classes)


def loss(graph: gs.Graph, context: Context) -> float:
    """Cross-entropy of the graph on the labels of the calibration data, in nats."""
    return _measured(graph, context).loss


def _measured(graph: gs.Graph, context: Context) -> Accuracy:
    key = digest(graph_digest(graph), context.data_key, str(context.seed))
    data = context.calibration.subset(context.seed, _SAMPLES)
    return Accuracy(**context.once("accuracy", key, lambda: asdict(accuracy.evaluate(graph, data))))


def resized(graph: gs.Graph, size: Size) -> gs.Graph:
    """A copy of the graph that computes on images of `size` and has outputs of the same shapes.

    What it reads keeps its shape: a bilinear Resize stands in front. Raises NoMatch with the reason where something
    depends on the size.
    """
    result = graphs.copy(graph)
    insert_resize(result, size)
    return result


def insert_resize(graph: gs.Graph, size: Size) -> None:
    """`resized` in place; after a NoMatch the graph is of no use."""
    read, axes = image(graph)
    shapes = [tensor.shape for tensor in graph.outputs]
    _pool_globally(graph)
    _put_behind(
        graph, read, [dict(zip(axes, size, strict=True)).get(axis, length) for axis, length in enumerate(read.shape)]
    )
    try:
        graphs.infer_shapes(graph)
    except NncError as error:
        raise NoMatch(f"of another size {error.message.removeprefix('graph: ')}") from error
    for node in graph.nodes:
        if is_standard(node, "Reshape") and not _fits(node.inputs[0], node.outputs[0]):
            raise NoMatch(f"Reshape '{node.name}' is told a size that depends on that of the image")
    for tensor, shape in zip(graph.outputs, shapes, strict=True):
        if tensor.shape != shape:
            raise NoMatch(f"the shape of the output '{tensor.name}' depends on the size of the image")


def _fits(x: gs.Tensor, y: gs.Tensor) -> bool:
    """Whether one tensor may be a view of another: shape inference lets any size pass that a constant tells."""
    return not has_shape(x, y) or math.prod(x.shape) == math.prod(y.shape)


def _put_behind(graph: gs.Graph, read: gs.Variable, shape: list[int]) -> None:
    """A Resize of `read` to `shape`, for all that read it."""
    names = {tensor.name for each in graph.nodes for tensor in (*each.inputs, *each.outputs)} | {read.name}
    name = graphs.unique(f"{read.name}/Resize", {each.name for each in graph.nodes})
    small = gs.Variable(graphs.unique(name, names), read.dtype, shape)
    for reader in list(read.outputs):
        replace_input(reader, read, small)
    sizes = gs.Constant(graphs.unique(f"{name}.sizes", names), np.array(shape))
    empty = gs.Variable.empty()
    graph.nodes.insert(0, gs.Node("Resize", name, {"mode": "linear"}, [read, empty, empty, sizes], [small]))


def _pool_globally(graph: gs.Graph) -> None:
    """Let pools that cover the whole image do so at any size."""
    for each in graph.nodes:
        for pool in ("AveragePool", "MaxPool"):
            if is_standard(each, pool) and len(each.outputs) == 1 and _covers(each):
                each.op = f"Global{pool}"
                each.attrs.clear()


def _covers(pool: gs.Node) -> bool:
    whole = list(pool.attrs["kernel_shape"]) == list(pool.inputs[0].shape[2:])
    return whole and not any(pool.attrs.get("pads", ())) and set(pool.outputs[0].shape[2:]) == {1}
