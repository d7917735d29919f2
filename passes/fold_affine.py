"""fold-affine: arithmetic with constants costs nothing in the weights of a layer."""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from nnc import affine
from nnc.affine import Affine
from nnc.measure import has_shape
from nnc.pattern import Match, NoMatch, Pattern, const, op, var
from nnc.rewrite import Effect, PatternPass

_LAYERS = "|".join(affine.LAYERS)


class FoldAffine(PatternPass):
    """Fold Mul, Add, Sub and Div by constants into the layer before or behind them.

    Mul(Conv(x, W, B), s)  ->  Conv(x, s * W, s * B)          Add(Conv(x, W, B), t)  ->  Conv(x, W, B + t)
    Conv(Mul(x, s), W, B)  ->  Conv(x, s * W, B)              Conv(Add(x, t), W, B)  ->  Conv(x, W, B + sum(W * t))

    Exact, for Conv, ConvTranspose, Gemm, MatMul and BatchNormalization. Declines where the constant is not the same
    for all of a channel, the tensor between has another reader, or a layer behind pads its input and something was
    added: the zeros of the padding would be shifted, too.

    Reference: Jacob et al., https://arxiv.org/abs/1712.05877, section 3.2, which folds normalization likewise.
    """

    name: ClassVar[str] = "fold-affine"
    effect: ClassVar[Effect] = "exact"
    pattern: ClassVar[Pattern] = (
        op("Add|Div|Mul|Sub", op(_LAYERS, name="before"), const("c"))
        | op("Sub", const("c"), op(_LAYERS, name="before"))
        | op(_LAYERS, op("Add|Div|Mul|Sub", var("x"), const("c"), name="arithmetic"), ..., name="behind")
        | op(_LAYERS, op("Sub", const("c"), var("x"), name="arithmetic"), ..., name="behind")
    )

    def rewrite(self, match: Match) -> gs.Node:
        if "before" in match.nodes:
            layer = match.nodes["before"]
            return affine.after(layer, _map(match.root, layer.outputs[0], match, layer))
        x, layer = match.tensors["x"], match.nodes["behind"]
        return affine.before(layer, _map(match.nodes["arithmetic"], x, match, layer), x)


def _map(arithmetic: gs.Node, x: gs.Tensor, match: Match, layer: gs.Node) -> Affine:
    """The map that the arithmetic node computes on x, per channel of the layer."""
    c = _per_channel(match["c"].astype(np.float64), x, axis=-1 if layer.op == "MatMul" else 1)
    zero, one = np.zeros(1), np.ones(1)
    match arithmetic.op:
        case "Add":
            return Affine(one, c)
        case "Mul":
            return Affine(c, zero)
        case "Sub":
            return Affine(one, -c) if arithmetic.inputs[0] is x else Affine(-one, c)
    with np.errstate(all="ignore"):
        return Affine(1 / c, zero)


def _per_channel(c: np.ndarray, x: gs.Tensor, axis: int) -> np.ndarray:
    """The elements of a constant that is the same for all of a channel of x."""
    if not has_shape(x) or len(x.shape) < max(2, c.ndim):
        raise NoMatch(f"the shape of '{x.name}' is not known, or grows")
    shape = [1] * (len(x.shape) - c.ndim) + list(c.shape)
    if shape[axis] not in (1, x.shape[axis]) or c.size != shape[axis]:
        raise NoMatch("the constant is not the same for all of a channel")
    return c.reshape(-1)
