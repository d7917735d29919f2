"""What residual connections add to a layer's output: a layer that is refitted makes up for its errors, too."""

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from nnc.calibrate.flow import Flow
from nnc.model.proto import is_standard

_PAIR = ("DequantizeLinear", "QuantizeLinear")


def shortcut(
    layer: gs.Node, now: Flow, originals: Mapping[str, gs.Node], then: Flow
) -> tuple[gs.Tensor, gs.Tensor] | None:
    """What an Add adds to a layer's output, in the original and now, where both flows hold it.

    `originals` are the original's nodes by name; between the layer and the Add may be QuantizeLinear pairs.
    """
    own, output = originals[layer.name].outputs[0], layer.outputs[0]
    while len(output.outputs) == 1 and is_standard(output.outputs[0], *_PAIR):
        output = output.outputs[0].outputs[0]
    if len(output.outputs) != 1 or not is_standard(output.outputs[0], "Add"):
        return None
    add, original = output.outputs[0], originals.get(output.outputs[0].name)
    if original is None or not any(each is own for each in original.inputs):
        return None
    before, after = _other(original, own), _other(add, output)
    if before is None or after is None or before.shape != own.shape or after.shape != output.shape:
        return None
    return (before, after) if then.holds(before) and now.holds(after) else None


def _other(add: gs.Node, tensor: gs.Tensor) -> gs.Tensor | None:
    return next((each for each in add.inputs if each is not tensor), None)
