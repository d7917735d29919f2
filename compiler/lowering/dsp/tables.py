"""What a chain of elementwise nodes makes of every byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from nnc import integers
from nnc.graph import OPSET
from nnc.lowering import model
from nnc.lowering.shapes import dtype_of, shape_of

_BYTES = np.arange(256, dtype=np.uint8)

_ALONG_CHANNELS = ("BatchNormalization", "Conv")  # parameters with an axis, of one channel here


def table_of(nodes: Sequence[gs.Node], x: gs.Tensor) -> np.ndarray | None:
    """The bytes that nodes make of 0, 1, ... 255 in `x`, uint8 [256], as onnxruntime computes them.

    None where `x` has other elements, or where a node reads something that has one value per channel.
    """
    if dtype_of(x) != "uint8":
        return None
    batch = _BYTES.reshape(-1, *[1] * (len(shape_of(x)) - 1))
    known = {id(x): batch}
    for node in nodes:
        operands = [_operand(node, tensor, known) for tensor in node.inputs]
        if any(each is None for each in operands):
            return None
        outputs = [gs.Variable("y", node.outputs[0].dtype, batch.shape)]
        single = gs.Node(node.op, node.op, dict(node.attrs), operands, outputs)
        (known[id(node.outputs[0])],) = model.evaluate(single, OPSET)
    return known[id(nodes[-1].outputs[0])].reshape(-1)


def _operand(node: gs.Node, tensor: gs.Tensor, known: dict[int, np.ndarray]) -> gs.Tensor | None:
    """An operand of a node, as a constant; None where it is unknown, or larger than a number."""
    if id(tensor) in known:
        return gs.Constant(tensor.name, known[id(tensor)])
    if tensor.is_empty():
        return tensor
    if isinstance(tensor, gs.Constant):
        shape = tensor.values.shape if node.op in _ALONG_CHANNELS else ()
        return gs.Constant(tensor.name, tensor.values.reshape(shape)) if tensor.values.size == 1 else None
    made = integers.dequantized(tensor)
    if made is None or id(made[0]) not in known:
        return None
    values = known[id(made[0])].astype(np.float32) - np.float32(made[1].zero)
    return gs.Constant(tensor.name, values * np.float32(made[1].scale))
