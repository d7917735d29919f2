"""Operators that mix values along single axes, each of which is a linear map: the matrices of these maps."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from nnc import session
from nnc.pattern import NoMatch

Imports = Sequence[onnx.OperatorSetIdProto]


def of_resize(resize: gs.Node, told: Callable[[int], np.ndarray | None], imports: Imports) -> dict[int, np.ndarray]:
    """What a Resize does along every axis that it changes: a matrix [before, behind], float32.

    Every mode is linear; only the way from scales to coordinates differs. `told` gives the values of an optional input.
    Raises NoMatch for a Resize that is no such map.
    """
    if resize.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise NoMatch("of a crop")
    if resize.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NoMatch("that keeps the aspect ratio")
    before, after = resize.inputs[0].shape, resize.outputs[0].shape
    scales, given = np.ones(len(before), np.float32), told(2)
    if given is not None and given.size:
        scales[resize.attrs.get("axes", range(len(before)))] = given
    found = {}
    for axis, scale in enumerate(scales.tolist()):
        chosen = np.arange(len(before)) == axis
        if scale != 1 and before[axis] == after[axis]:
            raise NoMatch("by a factor that keeps a size")  # onnxruntime copies when all sizes are kept
        if scale != 1:
            found[axis] = along(resize, axis, 2, np.where(chosen, scales, np.float32(1)), imports)
        elif before[axis] != after[axis]:
            sizes = np.where(chosen, after, _units(before, axis).shape)
            found[axis] = along(resize, axis, 3, sizes, imports)
    return found


def along(node: gs.Node, axis: int, index: int, setting: np.ndarray, imports: Imports) -> np.ndarray:
    """What a node does along an axis, as a matrix [before, behind], float32: what it makes of every unit vector.

    `setting` is its input `index`, with an effect on that axis alone. Raises NoMatch for a node that reads a vector.
    """
    shape = node.inputs[0].shape
    units = _units(shape, axis)
    attrs = {key: value for key, value in node.attrs.items() if key != "axes"}
    names = ["units", *[""] * (index - 1), "setting"]
    made = onnx.helper.make_node(node.op, names, ["moved"], **attrs)
    (moved,) = session.compute([made], {"units": units, "setting": setting}, ["moved"], imports)
    matrix: np.ndarray = np.moveaxis(moved, (_beside(axis), axis), (0, 1)).reshape(shape[axis], -1)
    return matrix


def _units(shape: Sequence[int], axis: int) -> np.ndarray:
    """The unit vectors of an axis, next to each other on another one, in the rank of a shape."""
    rank, size = len(shape), shape[axis]
    if rank < 2:
        raise NoMatch("of a vector")
    sizes = [size if each in (axis, _beside(axis)) else 1 for each in range(rank)]
    return np.eye(size, dtype=np.float32).reshape(sizes)


def _beside(axis: int) -> int:
    return 0 if axis else 1
