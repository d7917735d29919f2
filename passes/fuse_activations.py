"""fuse-activations: one after another, bounds are one pair of bounds."""

import math
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import bounds, number
from nnc.measure import has_shape
from nnc.pattern import ANY, Match, NoMatch, Pattern, op
from nnc.rewrite import Effect, PatternPass, node

_BOUNDING = "Clip|Max|Min|Relu"

Bounds = tuple[float, float]


class FuseActivations(PatternPass):
    """Fuse chains of Relu, Clip, and Max or Min with a constant into one of them.

    Clip(Relu(x), -1, 6)  ->  Clip(x, 0, 6)          Relu(Clip(x, min=-1))  ->  Relu(x)

    Exact. Declines where bounds are not constant or not the same for all elements, cross each other, or the value
    between has another reader.

    Reference: the operators Clip and Relu of the ONNX standard.
    """

    name: ClassVar[str] = "fuse-activations"
    effect: ClassVar[Effect] = "exact"
    pattern: ClassVar[Pattern] = op(_BOUNDING, op(_BOUNDING, name="inner"), ...) | op(
        "Max|Min", ANY, op(_BOUNDING, name="inner")
    )

    def rewrite(self, match: Match) -> gs.Node | gs.Tensor:
        inner = match.nodes["inner"]
        x, (a, b) = _bounds(inner)
        _, (c, d) = _bounds(match.root)
        if a > b or c > d:
            raise NoMatch("the bounds cross")
        return _bounded(x, min(max(a, c), d), min(max(b, c), d))


def _bounds(activation: gs.Node) -> tuple[gs.Tensor, Bounds]:
    """What the node bounds, and by which numbers."""
    if activation.op in ("Clip", "Relu"):
        return activation.inputs[0], bounds(activation)
    if len(activation.inputs) != 2:
        raise NoMatch(f"{activation.op} has {len(activation.inputs)} inputs")
    x, bound = sorted(activation.inputs, key=lambda tensor: isinstance(tensor, gs.Constant))
    if not has_shape(x) or list(x.shape) != list(activation.outputs[0].shape):
        raise NoMatch("a constant makes its shape grow")
    if not isinstance(bound, gs.Constant) or bound.values.size != 1:
        raise NoMatch(f"the bound '{bound.name}' is not a constant number")
    return x, (number(bound), math.inf) if activation.op == "Max" else (-math.inf, number(bound))


def _bounded(x: gs.Tensor, low: float, high: float) -> gs.Node | gs.Tensor:
    """The simplest operator with these bounds."""
    if x.dtype is None:
        raise NoMatch(f"the type of '{x.name}' is not known")
    dtype = np.dtype(x.dtype)
    if (low, high) == (0.0, math.inf):
        return node("Relu", x)
    least, most = (None if math.isinf(bound) else np.asarray(bound, dtype) for bound in (low, high))
    if most is not None:
        return node("Clip", x, least, most)
    return x if least is None else node("Clip", x, least)
