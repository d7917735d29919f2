"""Rules of operators that move, copy or drop elements, or mix them along one axis: their gradients move them back."""

import math
from collections.abc import Mapping

import numpy as np
import onnx

from nnc.attributes import pads, permutation, slices
from nnc.gradient.step import NoGradient, Rule, Step, first
from nnc.gradient.value import Value, apply, scatter_add, zeros
from nnc.mixing import along, of_resize
from nnc.model import proto


def _same_elements(step: Step) -> Value:
    return step.g.reshape(step.x[0].shape)


def _dropout(step: Step) -> Value:
    if step.has(2) and step.constant(2, "a training mode").item():
        raise NoGradient("in training mode")
    return step.g


def _transpose(step: Step) -> Value:
    return step.g.transpose(np.argsort(permutation(step.node)).tolist())


def _concat(step: Step, index: int) -> Value:
    axis = step.attr("axis") % len(step.g.shape)
    begin = sum(x.shape[axis] for x in step.x[:index])
    bounds = [np.array([each], np.int64) for each in (begin, begin + step.x[index].shape[axis], axis)]
    return apply("Slice", step.g, *bounds)


def _split(step: Step) -> Value:
    like = next(g for g in step.gradients if g is not None)
    parts = [zeros(like, y.shape) if g is None else g for g, y in zip(step.gradients, step.y, strict=True)]
    return apply("Concat", *parts, axis=step.attr("axis", 0)) if len(parts) > 1 else parts[0]


def _slice(step: Step) -> Value:
    shape, g = step.x[0].shape, step.g
    for axis, places in slices(step.node, shape, step.told).items():
        g = _put(g, axis, places, shape[axis])
    return g


def _put(g: Value, axis: int, places: range, size: int) -> Value:
    """g with its elements along the axis at `places` of `size`, and zeros between them."""
    if places.step < 0:
        places = places[::-1]
        backwards = [np.array([each], np.int64) for each in (-1, np.iinfo(np.int64).min, axis, -1)]
        g = apply("Slice", g, *backwards)
    if places.step > 1:
        single = g.reshape([*g.shape[: axis + 1], 1, *g.shape[axis + 1 :]])
        spread = _padded(single, axis + 1, 0, places.step - 1)
        g = spread.reshape([*g.shape[:axis], -1, *g.shape[axis + 1 :]])
    return _padded(g, axis, places.start, size - places.start - g.shape[axis])


def _padded(g: Value, axis: int, begin: int, end: int) -> Value:
    """g with zeros before and behind, along an axis; negative numbers cut off."""
    return apply("Pad", g, _amounts(len(g.shape), {axis: (begin, end)})) if begin or end else g


def _amounts(rank: int, pads: Mapping[int, tuple[int, int]]) -> np.ndarray:
    """What Pad is told: int64 [2 rank], in front of all axes and behind them."""
    amounts = np.zeros((2, rank), np.int64)
    for axis, pair in pads.items():
        amounts[:, axis] = pair
    return amounts.reshape(-1)


def _pad(step: Step) -> Value:
    rank, amounts, g = len(step.x[0].shape), pads(step.node, step.told), step.g
    if step.attr("mode", "constant") == "constant":
        return apply("Pad", g, -_amounts(rank, amounts))
    for axis, pair in amounts.items():
        g = _mixed(g, axis, along(step.node, axis, 1, _amounts(rank, {axis: pair}), _imports(step)))
    return g


def _resize(step: Step) -> Value:
    g = step.g
    matrices = of_resize(
        step.node, lambda index: step.constant(index, "scales") if step.has(index) else None, _imports(step)
    )
    for axis, matrix in matrices.items():
        g = _mixed(g, axis, matrix)
    return g


def _imports(step: Step) -> list[onnx.OperatorSetIdProto]:
    return proto.opset_imports(step.g.writer.graph)


def _mixed(g: Value, axis: int, matrix: np.ndarray) -> Value:
    """The matrix times g along an axis."""
    matrix = matrix.astype(g.dtype, copy=False)
    if axis == len(g.shape) - 1:
        return apply("MatMul", g, np.ascontiguousarray(matrix.T))
    flat = g.reshape([math.prod(g.shape[:axis]), g.shape[axis], math.prod(g.shape[axis + 1 :])])
    return apply("MatMul", matrix, flat).reshape([*g.shape[:axis], len(matrix), *g.shape[axis + 1 :]])


def _gather(step: Step, index: int) -> Value | None:
    if index:
        return None
    x, indices = step.x[:2]
    axis = step.attr("axis", 0) % len(x.shape)
    count = math.prod(indices.shape)
    shape = [*x.shape[:axis], count, *x.shape[axis + 1 :]]
    places = indices.reshape([count if each == axis else 1 for each in range(len(shape))]).broadcast(shape)
    return scatter_add("ScatterElements", x.shape, places, step.g.reshape(shape), axis=axis)


def _gather_elements(step: Step, index: int) -> Value | None:
    if index:
        return None
    return scatter_add("ScatterElements", step.x[0].shape, step.x[1], step.g, axis=step.attr("axis", 0))


def _gather_nd(step: Step, index: int) -> Value | None:
    if index:
        return None
    if step.attr("batch_dims", 0):
        raise NoGradient("with batch dimensions")
    return scatter_add("ScatterND", step.x[0].shape, step.x[1], step.g)


def _tile(step: Step) -> Value:
    shape = step.x[0].shape
    repeats = step.constant(1, "repeats").tolist()
    blocks = [size for pair in zip(repeats, shape, strict=True) for size in pair]
    return step.g.reshape(blocks).sum(range(0, len(blocks), 2)).reshape(shape)


def _depth_to_space(step: Step) -> Value:
    """Depth is [blocks, blocks, C] (DCR) or [C, blocks, blocks] (CRD)."""
    block, x = step.attr("blocksize"), step.x[0]
    if step.attr("mode", "DCR") == "DCR":
        return apply("SpaceToDepth", step.g, blocksize=block)
    n, c, h, w = x.shape
    split = step.g.reshape([n, c // block**2, h, block, w, block])
    return split.transpose([0, 1, 3, 5, 2, 4]).reshape(x.shape)


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "DepthToSpace": first(_depth_to_space),
    "Dropout": first(_dropout),
    "Expand": first(lambda step: step.g),
    "Flatten": first(_same_elements),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": first(lambda step: step.g),
    "Pad": first(_pad),
    "Reshape": first(_same_elements),
    "Resize": first(_resize),
    "Slice": first(_slice),
    "SpaceToDepth": first(lambda step: apply("DepthToSpace", step.g, blocksize=step.attr("blocksize"))),
    "Split": first(_split),
    "Squeeze": first(_same_elements),
    "Tile": first(_tile),
    "Transpose": first(_transpose),
    "Unsqueeze": first(_same_elements),
}
