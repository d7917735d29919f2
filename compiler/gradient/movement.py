"""Rules of operators that move, copy or drop elements, or mix them along one axis: their gradients move them back."""

import math

import numpy as np
import onnx

from nnc import session
from nnc.gradient.step import NoGradient, Rule, Step, first
from nnc.gradient.value import Value, apply, scatter_add, zeros
from nnc.model import proto


def _same_elements(step: Step) -> Value:
    return step.g.reshape(step.x[0].shape)


def _dropout(step: Step) -> Value:
    if step.has(2) and step.constant(2, "a training mode").item():
        raise NoGradient("in training mode")
    return step.g


def _transpose(step: Step) -> Value:
    rank = len(step.x[0].shape)
    return step.g.transpose(np.argsort(step.attr("perm", range(rank)[::-1])).tolist())


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
    x, g = step.x[0], step.g
    starts, ends = step.constant(1, "starts").tolist(), step.constant(2, "ends").tolist()
    axes = step.constant(3, "axes").tolist() if step.has(3) else range(len(starts))
    steps = step.constant(4, "steps").tolist() if step.has(4) else [1] * len(starts)
    for axis, *bounds in zip(axes, starts, ends, steps, strict=True):
        size = x.shape[axis]
        g = _put(g, axis % len(x.shape), range(*slice(*bounds).indices(size)), size)
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
    if not (begin or end):
        return g
    pads = np.zeros((2, len(g.shape)), np.int64)
    pads[:, axis] = begin, end
    return apply("Pad", g, pads.reshape(-1))


def _pad(step: Step) -> Value:
    rank = len(step.x[0].shape)
    sizes = np.zeros((2, rank), np.int64)  # elements before and behind each axis
    axes = step.constant(3, "axes") if step.has(3) else np.arange(rank)
    sizes[:, axes] = step.constant(1, "pads").reshape(2, -1)
    if step.attr("mode", "constant") == "constant":
        return apply("Pad", step.g, -sizes.reshape(-1))
    g = step.g
    for axis in np.flatnonzero(sizes.any(axis=0)).tolist():
        pads = np.where(np.arange(rank) == axis, sizes, 0).reshape(-1)
        g = _mixed(g, axis, _matrix(step, axis, 1, pads))
    return g


def _resize(step: Step) -> Value:
    """Every mode is a linear map along each axis; only the way from scales to coordinates differs."""
    x, y, g = step.x[0], step.y[0], step.g
    rank = len(x.shape)
    if step.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise NoGradient("of a crop")
    if step.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NoGradient("that keeps the aspect ratio")
    scales = np.ones(rank, np.float32)
    if step.has(2) and step.x[2].shape != (0,):
        scales[step.attr("axes", range(rank))] = step.constant(2, "scales")
    for axis, scale in enumerate(scales.tolist()):
        chosen = np.arange(rank) == axis
        if scale != 1 and x.shape[axis] == y.shape[axis]:
            raise NoGradient("by a factor that keeps a size")  # onnxruntime copies when all sizes are kept
        if scale != 1:
            g = _mixed(g, axis, _matrix(step, axis, 2, np.where(chosen, scales, np.float32(1))))
        elif x.shape[axis] != y.shape[axis]:
            sizes = np.where(chosen, y.shape, _units(step, axis).shape)
            g = _mixed(g, axis, _matrix(step, axis, 3, sizes))
    return g


def _matrix(step: Step, axis: int, position: int, setting: np.ndarray) -> np.ndarray:
    """[before, behind] of the node as a linear map along an axis: what it makes of every unit vector.

    `setting` is its input at `position`, with an effect on that axis alone.
    """
    units = _units(step, axis)
    attrs = {key: value for key, value in step.node.attrs.items() if key != "axes"}
    names = ["units", *[""] * (position - 1), "setting"]
    node = onnx.helper.make_node(step.node.op, names, ["moved"], **attrs)
    imports = proto.opset_imports(step.g.writer.graph)
    (moved,) = session.compute([node], {"units": units, "setting": setting}, ["moved"], imports)
    return np.moveaxis(moved, (_beside(axis), axis), (0, 1)).reshape(step.x[0].shape[axis], -1).astype(step.g.dtype)


def _units(step: Step, axis: int) -> np.ndarray:
    """The unit vectors of an axis, next to each other on another one, in the node's rank."""
    rank, size = len(step.x[0].shape), step.x[0].shape[axis]
    if rank < 2:
        raise NoGradient("of a vector")
    return np.eye(size, dtype=np.float32).reshape(
        [size if each in (axis, _beside(axis)) else 1 for each in range(rank)]
    )


def _beside(axis: int) -> int:
    return 0 if axis else 1


def _mixed(g: Value, axis: int, matrix: np.ndarray) -> Value:
    """The matrix times g along an axis."""
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
