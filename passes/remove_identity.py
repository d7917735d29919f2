"""remove-identity: what returns its input unchanged is not needed."""

from collections.abc import Callable
from typing import ClassVar

import onnx_graphsurgeon as gs

from nnc.attributes import permutation
from nnc.measure import has_shape
from nnc.model import proto
from nnc.passes.merge_views import is_view
from nnc.pattern import Match, NoMatch, op
from nnc.rewrite import Effect, PatternPass

#: The element that changes nothing, as the second input; for Add and Mul also as the first.
_NEUTRAL = {"Add": 0, "Div": 1, "Mul": 1, "Pow": 1, "Sub": 0}

#: Operators that return their input when its shape is the output's.
_KEEPING = (
    "Expand", "GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "Split", "Tile",
)  # fmt: skip

_VIEWS = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}


class RemoveIdentity(PatternPass):
    """Remove nodes that return their input unchanged.

    Relu(Identity(x))  ->  Relu(x)          Reshape(x, shape of x)  ->  x          Transpose(Transpose(x))  ->  x

    Identity, Dropout, Cast to the same type; Reshape, Expand, Tile, Pad, Slice, Concat, Split, Resize and the like
    that keep the shape; pools over one element; arithmetic with 0 or 1; a Transpose or Reshape that undoes the one
    before it.

    Exact. Declines where it would join an input of the graph with an output, and for Dropout in training mode.

    Reference: Aho, Lam, Sethi and Ullman, Compilers, 2nd edition, section 8.5.4, algebraic identities.
    """

    name: ClassVar[str] = "remove-identity"
    effect: ClassVar[Effect] = "exact"

    def rewrite(self, match: Match) -> gs.Tensor:
        same = _RULES[match.root.op](match.root)
        if same is None:
            raise NoMatch
        return same


def _first(node: gs.Node) -> gs.Tensor:
    return node.inputs[0]


def _first_if_alone(node: gs.Node) -> gs.Tensor | None:
    """For operators that combine any number of inputs."""
    return node.inputs[0] if len(node.inputs) == 1 else None


def _first_if_alike(node: gs.Node) -> gs.Tensor | None:
    """For operators that only rearrange, repeat or leave out."""
    read, written = node.inputs[0], node.outputs[0]
    return read if has_shape(read, written) and list(read.shape) == list(written.shape) else None


def _dropout(node: gs.Node) -> gs.Tensor:
    training = node.inputs[2] if len(node.inputs) > 2 else gs.Variable.empty()
    if training.is_empty() or (isinstance(training, gs.Constant) and not training.values.any()):
        return node.inputs[0]
    raise NoMatch("it is in training mode")


def _cast(node: gs.Node) -> gs.Tensor | None:
    read = node.inputs[0]
    return read if read.dtype is not None and proto.onnx_dtype(read.dtype) == node.attrs["to"] else None


def _view(node: gs.Node) -> gs.Tensor | None:
    return _undone(node, _VIEWS) or _first_if_alike(node)


def _undone(node: gs.Node, inverses: set[str]) -> gs.Tensor | None:
    """What the node before read, when it is one of the inverses and this one brings back its shape."""
    before = _before(node, *inverses)
    if before is None or not has_shape(before.inputs[0], node.outputs[0]):
        return None
    return before.inputs[0] if list(before.inputs[0].shape) == list(node.outputs[0].shape) else None


def _before(node: gs.Node, *ops: str) -> gs.Node | None:
    """The node that computes what `node` reads, when it is one of these operators."""
    producers = node.inputs[0].inputs
    return producers[0] if producers and proto.is_standard(producers[0], *ops) else None


def _transpose(node: gs.Node) -> gs.Tensor | None:
    if is_view(node):
        return _first_if_alike(node)
    before = _before(node, "Transpose")
    if before is None:
        return None
    first = permutation(before)
    perm = [first[axis] for axis in permutation(node)]
    return before.inputs[0] if perm == sorted(perm) else None


def _pad(node: gs.Node) -> gs.Tensor | None:
    pads = node.inputs[1]
    return node.inputs[0] if isinstance(pads, gs.Constant) and not pads.values.any() else None


def _slice(node: gs.Node) -> gs.Tensor | None:
    steps = node.inputs[4] if len(node.inputs) > 4 else gs.Variable.empty()
    forward = steps.is_empty() or (isinstance(steps, gs.Constant) and (steps.values > 0).all())
    return _first_if_alike(node) if forward else None


def _resize(node: gs.Node) -> gs.Tensor | None:
    """Every mode of interpolation returns the pixels where they are, but for two ways to place them."""
    scales = node.inputs[2] if len(node.inputs) > 2 else gs.Variable.empty()
    placed = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    if placed in ("tf_half_pixel_for_nn", "tf_crop_and_resize"):
        return None
    by_one = scales.is_empty() or (isinstance(scales, gs.Constant) and (scales.values == 1).all())
    return _first_if_alike(node) if by_one else None


def _pool(node: gs.Node) -> gs.Tensor | None:
    windows = [*node.attrs["kernel_shape"], *node.attrs.get("strides", [1])]
    one_each = set(windows) == {1} and not any(node.attrs.get("pads", [0]))
    return node.inputs[0] if one_each and len(node.outputs) == 1 else None


def _arithmetic(node: gs.Node) -> gs.Tensor | None:
    for index in (1, 0) if node.op in ("Add", "Mul") else (1,):
        constant, other = node.inputs[index], node.inputs[1 - index]
        if isinstance(constant, gs.Constant) and has_shape(other, node.outputs[0]):
            values = constant.values.reshape(-1)
            if values[:1] == _NEUTRAL[node.op] and list(other.shape) == list(node.outputs[0].shape):
                return other if (values == _NEUTRAL[node.op]).all() else None
    return None


def _block(node: gs.Node) -> gs.Tensor | None:
    return node.inputs[0] if node.attrs["blocksize"] == 1 else None


def _clip(node: gs.Node) -> gs.Tensor | None:
    return node.inputs[0] if all(bound.is_empty() for bound in node.inputs[1:]) else None


_RULES: dict[str, Callable[[gs.Node], gs.Tensor | None]] = {
    **dict.fromkeys(_NEUTRAL, _arithmetic),
    **dict.fromkeys(_VIEWS, _view),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("Concat", "Max", "Mean", "Min", "Sum"), _first_if_alone),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _block),
    **dict.fromkeys(_KEEPING, _first_if_alike),
    "Cast": _cast,
    "Clip": _clip,
    "Dropout": _dropout,
    "Identity": _first,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Transpose": _transpose,
}

RemoveIdentity.pattern = op("|".join(_RULES))
