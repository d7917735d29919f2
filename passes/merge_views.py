"""merge-views: operators that only rearrange, one behind the other, are one."""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import permutation, reduced_axes, slices
from nnc.measure import has_shape
from nnc.model import proto
from nnc.pattern import Match, NoMatch, Pattern, op
from nnc.rewrite import Effect, PatternPass, node

_VIEWS = "Flatten|Reshape|Squeeze|Unsqueeze"
_REDUCTIONS = (
    "ReduceL1|ReduceL2|ReduceLogSum|ReduceLogSumExp|ReduceMax|ReduceMean|ReduceMin|ReduceProd|ReduceSum|ReduceSumSquare"
)


class MergeViews(PatternPass):
    """Merge consecutive Reshape, Transpose, Slice and Concat nodes.

    Reshape(Flatten(x), shape)  ->  Reshape(x, shape)        Transpose<q>(Transpose<p>(x))  ->  Transpose<p[q]>(x)
    Slice(Slice(x, ...), ...)   ->  Slice(x, ...)            Concat(a, Concat(b, c))        ->  Concat(a, b, c)
    Unsqueeze(ReduceMean<keepdims=0>(x))  ->  ReduceMean<keepdims=1>(x)

    Exact. A Transpose that only moves axes of size 1 counts as a Reshape. Declines where shapes or bounds are not
    known, and where the value between has another reader.

    Reference: the operators Reshape, Transpose, Slice and Concat of the ONNX standard.
    """

    name: ClassVar[str] = "merge-views"
    effect: ClassVar[Effect] = "exact"
    pattern: ClassVar[Pattern] = (
        op("Concat")
        | op("Slice", op("Slice"), ...)
        | op(f"Transpose|{_VIEWS}", op(f"Transpose|{_VIEWS}"), ...)
        | op(_VIEWS, op(_REDUCTIONS), ...)
    )

    def rewrite(self, match: Match) -> gs.Node | gs.Tensor:
        outer = match.root
        if outer.op == "Concat":
            return _merge_concats(outer)
        (inner,) = match.interior
        if outer.op == "Slice":
            return _merge_slices(inner, outer)
        if outer.op == inner.op == "Transpose":
            return _merge_transposes(inner, outer)
        if inner.op in _REDUCTIONS.split("|"):
            return _keep_dims(inner, outer)
        return _merge_views(inner, outer)


def _merge_concats(outer: gs.Node) -> gs.Node:
    axis = _concat_axis(outer)
    inputs: list[gs.Tensor] = []
    for tensor in outer.inputs:
        inner = tensor.inputs[0] if tensor.inputs and len(tensor.outputs) == 1 else outer
        merges = inner is not outer and proto.is_standard(inner, "Concat") and _concat_axis(inner) == axis
        inputs.extend(inner.inputs if merges else [tensor])
    if len(inputs) == len(outer.inputs):
        raise NoMatch
    return node("Concat", *inputs, axis=axis)


def _concat_axis(concat: gs.Node) -> int:
    """The axis, counted from the front where the rank is known."""
    axis, shape = concat.attrs["axis"], concat.outputs[0].shape
    return axis + len(shape) if axis < 0 and shape is not None else axis


def _merge_slices(inner: gs.Node, outer: gs.Node) -> gs.Node | gs.Tensor:
    x = inner.inputs[0]
    if not has_shape(x):
        raise NoMatch(f"the shape of '{x.name}' is not known")
    whole = [range(size) for size in x.shape]
    kept = list(whole)  # the indices of x that are left, for each axis
    for part in (inner, outer):
        for axis, indices in slices(part, list(map(len, kept))).items():
            kept[axis] = _of_those(kept[axis], indices)
    axes = [axis for axis, indices in enumerate(kept) if indices != whole[axis]]
    starts, steps = [kept[axis].start for axis in axes], [kept[axis].step for axis in axes]
    stops = [kept[axis].stop if kept[axis].stop >= 0 else np.iinfo(np.int64).min for axis in axes]
    return node("Slice", x, *(np.array(each, np.int64) for each in (starts, stops, axes, steps))) if axes else x


def _of_those(indices: range, part: range) -> range:
    """The elements of `indices` at the places `part`."""
    start, stop = (indices.start + end * indices.step for end in (part.start, part.stop))
    return range(start, stop, indices.step * part.step) if part else range(0)


def _merge_transposes(inner: gs.Node, outer: gs.Node) -> gs.Node | gs.Tensor:
    x = inner.inputs[0]
    first, second = permutation(inner), permutation(outer)
    perm = [first[axis] for axis in second]
    return x if perm == sorted(perm) else node("Transpose", x, perm=perm)


def is_view(transpose: gs.Node) -> bool:
    """Whether a Transpose only moves axes of size 1, so that no element moves."""
    shape = transpose.inputs[0].shape
    moved = [axis for axis in permutation(transpose) if shape is None or shape[axis] != 1]
    return moved == sorted(moved)


def _merge_views(inner: gs.Node, outer: gs.Node) -> gs.Node | gs.Tensor:
    x, shape = inner.inputs[0], outer.outputs[0].shape
    for each in (inner, outer):
        if each.op == "Transpose" and not is_view(each):
            raise NoMatch("the Transpose moves elements")
    if not has_shape(x, outer.outputs[0]) or 0 in shape:
        raise NoMatch(f"the shape of '{outer.outputs[0].name}' is not known")
    return x if x.shape == shape else node("Reshape", x, np.array(shape, np.int64))


def _keep_dims(reduction: gs.Node, view: gs.Node) -> gs.Node:
    """The reduction that keeps the axes that the view puts back, or drops those that it takes away."""
    x, wanted = reduction.inputs[0], view.outputs[0].shape
    if not has_shape(x, view.outputs[0]):
        raise NoMatch(f"the shape of '{view.outputs[0].name}' is not known")
    reduced = reduced_axes(reduction)
    kept = [1 if axis in reduced else size for axis, size in enumerate(x.shape)]
    dropped = [size for axis, size in enumerate(x.shape) if axis not in reduced]
    if wanted not in (kept, dropped):
        raise NoMatch("it changes more than the axes that were reduced")
    attrs = reduction.attrs | {"keepdims": int(wanted == kept)}
    return node(reduction.op, *reduction.inputs, **attrs)
