"""fuse-padding: convolutions and pools pad for themselves."""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import number, pads
from nnc.measure import has_shape
from nnc.pattern import Match, NoMatch, Pattern, op
from nnc.rewrite import Effect, PatternPass, node


class FusePadding(PatternPass):
    """Fuse Pad into the Conv, MaxPool or AveragePool behind it.

    Conv<pads=p>(Pad<q>(x), W)  ->  Conv<pads=p + q>(x, W)

    Exact. Declines where Pad reaches into batch or channels, cuts off, or pads with what the operator would not: Conv
    and AveragePool pad with 0, MaxPool with the smallest number; and where the padded tensor has another reader.

    Reference: the operators Pad and Conv of the ONNX standard.
    """

    name: ClassVar[str] = "fuse-padding"
    effect: ClassVar[Effect] = "exact"
    pattern: ClassVar[Pattern] = op("AveragePool|Conv|MaxPool", op("Pad", name="pad"), ...)

    def rewrite(self, match: Match) -> gs.Node:
        pad, reader = match.nodes["pad"], match.root
        x = pad.inputs[0]
        if not has_shape(x) or reader.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            raise NoMatch("it pads by a rule of its own")
        if reader.op == "MaxPool" and len(reader.outputs) > 1:
            raise NoMatch("it also returns indices")
        if reader.attrs.get("ceil_mode", 0):
            raise NoMatch("it has windows that reach over the padding")
        own = np.array(reader.attrs.get("pads", [0] * 2 * (len(x.shape) - 2))).reshape(2, -1)
        attrs = {key: value for key, value in reader.attrs.items() if key != "auto_pad"}
        if reader.op == "AveragePool":
            attrs["count_include_pad"] = _counted(reader, own)
        _require_value(pad, _filling(reader))
        both = own + _pads(pad)
        if reader.op != "Conv" and (both >= reader.attrs["kernel_shape"]).any():
            raise NoMatch("the padding would be as large as its window")
        attrs["pads"] = both.reshape(-1).tolist()
        return node(reader.op, x, *reader.inputs[1:], **attrs)


def _pads(pad: gs.Node) -> np.ndarray:
    """Elements added before and behind, [2, spatial]."""
    amounts = pads(pad)
    if any(axis < 2 or min(pair) < 0 for axis, pair in amounts.items()):
        raise NoMatch("Pad reaches into batch or channels, or cuts off")
    return np.array([amounts.get(axis, (0, 0)) for axis in range(2, len(pad.inputs[0].shape))]).T


def _filling(reader: gs.Node) -> float:
    """What the operator pads with."""
    return -np.inf if reader.op == "MaxPool" else 0.0


def _require_value(pad: gs.Node, wanted: float) -> None:
    """Raise NoMatch unless Pad pads with a constant, `wanted`."""
    value = pad.inputs[2] if len(pad.inputs) > 2 else gs.Variable.empty()
    if pad.attrs.get("mode", "constant") != "constant":
        raise NoMatch(f"Pad continues the image in mode '{pad.attrs['mode']}'")
    if not value.is_empty() and not isinstance(value, gs.Constant):
        raise NoMatch("what it pads with is not constant")
    given = 0.0 if value.is_empty() else number(value)
    if given != wanted:
        raise NoMatch(f"Pad pads with {given:g}, the operator behind it with {wanted:g}")


def _counted(pool: gs.Node, own: np.ndarray) -> int:
    """count_include_pad of an average over a padded tensor: all of the padding counts."""
    if own.any() and not pool.attrs.get("count_include_pad", 0):
        raise NoMatch("the average leaves its own padding out")
    return 1
