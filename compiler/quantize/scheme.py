"""Affine quantization: real = (integer - zero) * scale."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import output_axis
from nnc.hardware import chip
from nnc.integers import spread

#: The least scale: the product of two of them, the scale of a bias, is still a normal float32.
LEAST_SCALE = 2.0**-63

#: Shares of the largest magnitude that are tried as the end of the range of weights.
_SHRUNK = np.linspace(0.3, 1.0, 71)

#: Values that are quantized at once while ranges are searched.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Scheme:
    """How one kind of tensor is quantized."""

    dtype: Literal["int8", "uint8"]
    symmetric: bool
    """Zero is in the middle of the integers: 0 of int8, 128 of uint8."""
    per_channel: bool = False
    bits: int = 8
    """Integers of fewer bits are stored in 8."""
    positive: bool = False
    """Symmetric, of fewer than 8 bits: no value is below zero, so that all integers are for those above."""

    @staticmethod
    def of(scheme: chip.Scheme, bits: int = 8) -> "Scheme":
        """The scheme of a target's unit."""
        return Scheme(scheme.dtype, scheme.symmetric, scheme.granularity == "per-channel", bits)

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest integer; symmetric, both are as far from zero."""
        if self.positive:
            return self.centre, self.centre + 2**self.bits - 1
        least, largest = (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)
        shift = 2 ** (self.bits - 1) if self.dtype == "uint8" else 0
        return least + shift + (1 if self.symmetric else 0), largest + shift

    def above(self, low: float) -> "Scheme":
        """The scheme for values from `low`: one byte has room for twice the integers of a few bits above its zero."""
        return replace(self, positive=self.symmetric and self.bits < 8 and low >= 0)

    @property
    def centre(self) -> int:
        """The integer that zero is in a symmetric scheme."""
        return 2 ** (self.bits - 1) if self.dtype == "uint8" else 0


def scale_zero_point(
    low: float | np.ndarray, high: float | np.ndarray, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray]:
    """Scale (float32) and zero point (of the scheme's dtype) for values from `low` to `high`, elementwise.

    Zero is always one of the values that are represented exactly. A range without extent has the scale 1; one that is
    too narrow for float32 the least scale, so that its values become zero. Raises ValueError for ends that are not
    finite.
    """
    low, high = np.minimum(np.asarray(low, np.float64), 0.0), np.maximum(np.asarray(high, np.float64), 0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("the ends of a range must be finite")
    least, largest = scheme.limits
    if scheme.symmetric:
        extent, steps = np.maximum(-low, high), largest - scheme.centre
    else:
        extent, steps = high - low, largest - least
    scale = np.asarray(np.where(extent > 0, np.maximum(extent / steps, LEAST_SCALE), 1.0)).astype(np.float32)
    zero = np.full(scale.shape, scheme.centre) if scheme.symmetric else np.rint(least - low / scale.astype(np.float64))
    return scale, np.asarray(np.clip(zero, least, largest)).astype(scheme.dtype)


def quantized(
    values: np.ndarray, scale: np.ndarray, zero: np.ndarray, scheme: Scheme, axis: int | None = None
) -> np.ndarray:
    """The nearest integers, ties to even, in the scheme's dtype; `axis` is what scale and zero are along."""
    scale, zero = (spread(each.astype(np.float64), values.shape, axis) for each in (scale, zero))
    return np.asarray(np.clip(np.rint(values / scale) + zero, *scheme.limits)).astype(scheme.dtype)


def dequantized(
    integers: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None = None,
    axis: int | None = None,
    block: int = 0,
) -> np.ndarray:
    """The values that integers stand for, float64; scale and zero are as `nnc.integers.spread` says."""
    shifted = integers.astype(np.float64)
    if zero is not None:
        shifted = shifted - spread(zero.astype(np.float64), integers.shape, axis, block)
    return shifted * spread(scale.astype(np.float64), integers.shape, axis, block)


def fake_quantized(
    values: np.ndarray, scale: np.ndarray, zero: np.ndarray, scheme: Scheme, axis: int | None = None
) -> np.ndarray:
    """The values after rounding to integers and back, float64."""
    return dequantized(quantized(values, scale, zero, scheme, axis), scale, zero, axis)


def weight_scale(
    W: np.ndarray, scheme: Scheme, axis: int | None, method: Literal["min-max", "mse"] = "min-max"
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of weights, along `axis` or one for all.

    "mse" shrinks each range to the share of it that makes the squared error of the weights least.
    """
    rows = W.reshape(1, -1) if axis is None else np.moveaxis(W, axis, 0).reshape(W.shape[axis], -1)
    low, high = rows.min(1, initial=0.0).astype(np.float64), rows.max(1, initial=0.0).astype(np.float64)
    if method == "mse":
        share = _best_share(rows, low, high, scheme)
        low, high = share * low, share * high
    scale, zero = scale_zero_point(low, high, scheme)
    return (scale.reshape(()), zero.reshape(())) if axis is None else (scale, zero)


def quantized_blocks(
    W: np.ndarray, scheme: Scheme, axis: int, block: int, method: Literal["min-max", "mse"] = "min-max"
) -> tuple[np.ndarray, np.ndarray]:
    """Integers around zero, and scales of a matrix of which `block` neighbours along `axis` share one.

    The scales are [ceil(n / block), ...] where the weights are [n, ...] along the axis. The scheme is symmetric int8.
    """
    rows = np.moveaxis(W, axis, 1)
    columns, depth = rows.shape
    padded = np.pad(rows, ((0, 0), (0, -depth % block)))
    blocks = padded.reshape(-1, block)
    scale, zero = weight_scale(blocks, scheme, 0, method)
    integers = quantized(blocks, scale, zero, scheme, 0).reshape(padded.shape)[:, :depth]
    whole, scales = (np.moveaxis(each, 1, axis) for each in (integers, scale.reshape(columns, -1)))
    return np.ascontiguousarray(whole), np.ascontiguousarray(scales)


def _best_share(rows: np.ndarray, low: np.ndarray, high: np.ndarray, scheme: Scheme) -> np.ndarray:
    """For every row the share of its range with the least squared error; the whole range where several have it."""
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    best = np.ones(len(rows))
    for chosen in (slice(start, start + step) for start in range(0, len(rows), step)):
        values, least = rows[chosen], np.full(len(rows[chosen]), np.inf)
        for share in _SHRUNK[::-1]:
            scale, zero = scale_zero_point(share * low[chosen], share * high[chosen], scheme)
            error = np.square(values - fake_quantized(values, scale, zero, scheme, 0)).sum(1)
            best[chosen] = np.where(error < least, share, best[chosen])
            least = np.minimum(error, least)
    return best


def scale_axis(layer: gs.Node) -> int | None:
    """The axis of a layer's weights that scales are along, one for each output channel; None where there can't be."""
    rank = len(layer.inputs[1].shape)
    if isinstance(layer.inputs[0], gs.Constant) or rank < 2:
        return None
    shares = layer.op == "ConvTranspose" and layer.attrs.get("group", 1) > 1  # an index serves as many channels
    return None if shares else output_axis(layer)
