"""Activations of fewer bits than the bytes that store them: a Clip in front of QuantizeLinear ends their grid early.

QuantizeLinear rounds and saturates at the ends of its type, and few runtimes know types of 4 bits. Behind a Clip at
(least - zero) * scale and (largest - zero) * scale it writes no integer below `least` and none above `largest`, in
every runtime: rounding is monotonous. A Relu in front becomes this Clip.
"""

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import bounds
from nnc.model.proto import is_standard


def ends(scale: np.ndarray, zero: np.ndarray, least: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """The values, float32, of the two integers at the ends of a grid."""
    offset = int(zero.reshape(-1)[0])
    low, high = (np.asarray(np.float32((each - offset) * float(scale.reshape(-1)[0]))) for each in (least, largest))
    return low, high


def bounding(quantize: gs.Node, outputs: Iterable[gs.Tensor]) -> gs.Node | None:
    """The Clip with constant bounds in front of a QuantizeLinear, where nobody else reads it; or None.

    `outputs` are those of the graph.
    """
    x = quantize.inputs[0]
    maker = x.inputs[0] if x.inputs else None
    if maker is None or not is_standard(maker, "Clip") or len(x.outputs) != 1 or any(x is each for each in outputs):
        return None
    bounds = maker.inputs[1:3]
    return maker if all(isinstance(each, gs.Constant) or each.is_empty() for each in bounds) else None


def limits(quantize: gs.Node, clip: gs.Node | None) -> tuple[int, int]:
    """The least and the largest integer that a QuantizeLinear with one scale writes behind `clip`."""
    dtype = np.iinfo(quantize.outputs[0].dtype)
    if clip is None:
        return int(dtype.min), int(dtype.max)
    scale = float(quantize.inputs[1].values.reshape(-1)[0])
    zero = int(quantize.inputs[2].values.reshape(-1)[0]) if len(quantize.inputs) > 2 else 0
    least, largest = (np.clip(np.rint(end / scale) + zero, dtype.min, dtype.max) for end in bounds(clip))
    return int(least), int(max(least, largest))
