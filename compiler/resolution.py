"""Networks that compute on smaller images than they read."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.errors import NncError
from nnc.pattern import NoMatch
from nnc.proto import is_standard
from nnc.rewrite import replace_input

Size = tuple[int, int]

#: Operators whose first input is an image: its height and width are behind N and C.
_WINDOWED = ("Conv", "AveragePool", "MaxPool")


def image(graph: gs.Graph) -> tuple[gs.Variable, tuple[int, int]]:
    """The input of the graph that is an image, and its axes of height and width; NoMatch where that is not clear."""
    read, *others = graph.inputs
    if others or len(read.shape) != 4 or not np.issubdtype(read.dtype, np.floating):
        raise NoMatch("the model doesn't read one image of floats")
    axes = {found for reader in read.outputs if (found := _axes(reader, (0, 1, 2, 3)))}
    if len(axes) != 1:
        raise NoMatch(f"no convolution tells which axes of '{read.name}' are height and width")
    return read, axes.pop()


def _axes(reader: gs.Node, order: Sequence[int]) -> tuple[int, int] | None:
    """The axes that the first convolution behind `reader` sees as height and width; `order` is that of the input's."""
    if is_standard(reader, *_WINDOWED):
        return order[2], order[3]
    if is_standard(reader, "Transpose"):
        order = [order[axis] for axis in reader.attrs.get("perm", (3, 2, 1, 0))]
    elif len(reader.outputs[0].shape or ()) != 4:
        return None
    return next((found for each in reader.outputs[0].outputs if (found := _axes(each, order))), None)


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
    first = min(height - 1, math.floor(start * height))
    for lines in range(first, smallest(graph)[0] - 1, -1):
        yield lines, round(width * lines / height)


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
    shapes = [list(tensor.shape) for tensor in graph.outputs]
    _pool_globally(graph)
    _put_behind(
        graph, read, [dict(zip(axes, size, strict=True)).get(axis, length) for axis, length in enumerate(read.shape)]
    )
    try:
        graphs.infer_shapes(graph)
    except NncError as error:
        raise NoMatch(f"of another size {error.message.removeprefix('graph: ')}") from error
    for tensor, shape in zip(graph.outputs, shapes, strict=True):
        if list(tensor.shape) != shape:
            raise NoMatch(f"the shape of the output '{tensor.name}' depends on the size of the image")


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
