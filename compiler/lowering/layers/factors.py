"""What layers that multiply integers multiply, and what their sums are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from nnc import integers
from nnc.lowering.fuse import Group
from nnc.lowering.kernels.unit import dot_of
from nnc.lowering.layers.attributes import bias_of, input_of
from nnc.lowering.shapes import shape_of

if TYPE_CHECKING:
    from nnc.lowering.lowering import Lowering


@dataclass(frozen=True)
class Factors:
    """The integers of a layer."""

    x: gs.Tensor
    quantization: integers.Quantization
    """What those of `x` stand for."""
    W: np.ndarray
    """int8 or int16; zero stands for zero."""
    worth: np.ndarray
    """float32, what a sum of products stands for: it broadcasts over the result."""
    bias: gs.Tensor | np.ndarray | None


def of_image(lowering: Lowering, group: Group) -> Factors | None:
    """Those of a Conv or ConvTranspose of images, W `[.., .., kh, kw]`; None where it computes in floats.

    None of signals, too, which are no images where their bias is computed.
    """
    found = _found(lowering, group)
    if found is None or len(shape_of(group.root.outputs[0])) != 4:
        return None
    x, quantization, W, scales = found
    W = W[..., None, :] if W.ndim == 3 else W
    worth = scales.reshape(1, -1, 1, 1) * np.float32(quantization.scale)
    return Factors(x, quantization, W, worth, bias_of(lowering, group.root))


def of_rows(lowering: Lowering, group: Group) -> Factors | None:
    """Those of a Gemm or MatMul with a matrix W `[depth, columns]`; None where it computes in floats."""
    node, found = group.root, _found(lowering, group)
    if found is None:
        return None
    x, quantization, W, scales = found
    bias, beta = input_of(node, 2), node.attrs.get("beta", 1.0)
    if isinstance(bias, gs.Constant):
        bias = np.float32(beta) * bias.values
    elif bias is not None and beta != 1.0:
        return None
    worth = scales * np.float32(quantization.scale * node.attrs.get("alpha", 1.0))
    along = worth.reshape((1,) * (len(shape_of(node.outputs[0])) - 1) + (-1,))
    return Factors(x, quantization, W.T if node.attrs.get("transB", 0) else W, along, bias)


def _found(lowering: Lowering, group: Group) -> tuple[gs.Tensor, integers.Quantization, np.ndarray, np.ndarray] | None:
    """Input, what it stands for, weights and their scales, of a root that multiplies integers."""
    layer, made = lowering.layer(group.root), integers.dequantized(group.root.inputs[0])
    if layer is None or made is None or made[1].dtype != dot_of(lowering.unit).dtype:
        return None
    return *made, layer.W, layer.scales
