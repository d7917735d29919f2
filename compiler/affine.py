"""scale * x + shift per channel, taken into the weights of the layer before or behind it.

BatchNormalization in evaluation mode is such a map, and so are Mul, Add, Sub and Div by constants. `after` and `before`
make the layer with the map in its weights; they raise NoMatch where that would not be exact.
"""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import output_axis
from nnc.pattern import NoMatch
from nnc.rewrite import Draft, node

#: Operators that have weights per channel. A channel is an index of axis 1; for MatMul, of the last axis.
LAYERS = ("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Affine:
    """y = scale * x + shift: float64 arrays with an element per channel, or with one for all."""

    scale: np.ndarray
    shift: np.ndarray

    def of(self, channels: int) -> "Affine":
        """The same with an element per channel."""
        count = max(self.scale.size, self.shift.size)
        if count not in (1, channels):
            raise NoMatch(f"it has {count} channels, its neighbour has {channels}")
        return Affine(np.broadcast_to(self.scale, channels), np.broadcast_to(self.shift, channels))

    def of_affine(self, inner: "Affine") -> "Affine":
        """The map that applies `inner` first."""
        return Affine(self.scale * inner.scale, self.scale * inner.shift + self.shift)

    @property
    def shifts(self) -> bool:
        return bool(self.shift.any())


def of_batchnorm(batchnorm: gs.Node) -> Affine:
    """The map of a BatchNormalization in evaluation mode."""
    if batchnorm.attrs.get("training_mode", 0):
        raise NoMatch("it is in training mode")
    gamma, beta, mean, variance = (_constant(tensor).astype(np.float64) for tensor in batchnorm.inputs[1:5])
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + batchnorm.attrs.get("epsilon", 1e-5))
        shift = beta - mean * scale
    return Affine(_finite(scale), _finite(shift))


def depthwise(x: gs.Tensor, affine: Affine, dtype: np.dtype) -> Draft:
    """A 1x1 convolution, one group per channel, that computes the map on x [N, C, ...]."""
    channels, spatial = x.shape[1], [1] * (len(x.shape) - 2)
    affine = affine.of(channels)
    with np.errstate(all="ignore"):
        scale, shift = _finite(affine.scale.astype(dtype)), _finite(affine.shift.astype(dtype))
    return node("Conv", x, scale.reshape(channels, 1, *spatial), shift, group=channels, kernel_shape=spatial)


def after(layer: gs.Node, affine: Affine) -> Draft:
    """The layer that computes affine(layer(x))."""
    if layer.op == "BatchNormalization":
        return _batchnorm(layer, layer.inputs[0], affine.of_affine(of_batchnorm(layer)))
    weights = _Weights(layer)
    affine = affine.of(weights.outputs)
    bias = affine.scale * weights.bias + affine.shift
    return weights.rebuilt(layer.inputs[0], weights.scaled(affine.scale, weights.out_axis), bias)


def before(layer: gs.Node, affine: Affine, x: gs.Tensor | Draft) -> Draft:
    """The layer that computes layer(affine(x))."""
    require_before(layer, affine)
    if layer.op == "BatchNormalization":
        return _batchnorm(layer, x, of_batchnorm(layer).of_affine(affine))
    weights = _Weights(layer)
    affine = affine.of(weights.inputs)
    bias = weights.bias + weights.constant_response(affine.shift) if affine.shifts else weights.bias
    return weights.rebuilt(x, weights.scaled(affine.scale, weights.in_axis), bias)


def require_before(layer: gs.Node, affine: Affine) -> None:
    """Raise NoMatch unless `before` is exact."""
    if layer.op == "BatchNormalization":
        of_batchnorm(layer)
        return
    weights = _Weights(layer)
    affine.of(weights.inputs)
    if layer.attrs.get("transA", 0):
        raise NoMatch("the layer behind it transposes its input")
    if affine.shifts:
        weights.require_bias()
        if layer.op in ("Conv", "ConvTranspose") and not _has_uniform_response(layer):
            raise NoMatch("the layer behind it pads its input with zeros")


class _Weights:
    """The constants of a layer: W as [groups, channels, channels, taps], out or in channels first."""

    def __init__(self, layer: gs.Node) -> None:
        self._layer = layer
        self._W = W = _constant(layer.inputs[1])
        if W.dtype.kind not in "fV" or W.ndim < 2 or (layer.op == "MatMul" and W.ndim != 2):
            raise NoMatch(f"'{layer.inputs[1].name}' is not a matrix of floats")
        groups = layer.attrs.get("group", 1)
        self._view = W.reshape(groups, W.shape[0] // groups, W.shape[1], -1)
        self.out_axis, self.in_axis = (1, 2) if output_axis(layer) == 0 else (2, 1)

    @property
    def outputs(self) -> int:
        return self._view.shape[0] * self._view.shape[self.out_axis]

    @property
    def inputs(self) -> int:
        return self._view.shape[0] * self._view.shape[self.in_axis]

    @property
    def bias(self) -> np.ndarray:
        """What the layer adds, as float64."""
        if not self._has_bias:
            return np.zeros(1)
        return self._layer.attrs.get("beta", 1.0) * _constant(self._layer.inputs[2]).astype(np.float64)

    def require_bias(self) -> None:
        """Raise NoMatch unless the layer can add a constant."""
        if self._layer.op == "MatMul" and len(self._layer.inputs[0].shape or ()) != 2:
            raise NoMatch("MatMul has no bias")
        if self._has_bias:
            _constant(self._layer.inputs[2])

    @property
    def _has_bias(self) -> bool:
        return len(self._layer.inputs) > 2 and not self._layer.inputs[2].is_empty()

    def rebuilt(self, x: gs.Tensor | Draft, W: np.ndarray, bias: np.ndarray) -> Draft:
        """The layer with other weights; `bias` has an element per output, or one for all."""
        op, attrs = self._layer.op, dict(self._layer.attrs)
        if not self._has_bias and not bias.any():
            return node(op, x, W, **attrs)
        self.require_bias()
        if op in ("Gemm", "MatMul"):
            op, attrs = "Gemm", attrs | {"beta": 1.0}
        else:
            bias = np.broadcast_to(bias, self.outputs)
        with np.errstate(all="ignore"):
            return node(op, x, W, _finite(bias.astype(W.dtype)), **attrs)

    def scaled(self, factors: np.ndarray, axis: int) -> np.ndarray:
        """W with its channels along `axis` multiplied."""
        exact = np.float64 if self._W.dtype == np.float64 else np.float32
        with np.errstate(all="ignore"):
            scaled = self._view.astype(exact, copy=False) * self._along(factors, axis).astype(exact)
            return _finite(scaled.astype(self._W.dtype, copy=False).reshape(self._W.shape))

    def constant_response(self, values: np.ndarray) -> np.ndarray:
        """The outputs, without bias, for an input whose channels are constant."""
        weighed = self._along(values, self.in_axis)
        axes = "goit" if self.out_axis == 1 else "giot"
        response = np.einsum(f"{axes},gi->go", self._view, weighed.reshape(len(weighed), -1), dtype=np.float64)
        return self._layer.attrs.get("alpha", 1.0) * response.reshape(-1)

    def _along(self, per_channel: np.ndarray, axis: int) -> np.ndarray:
        shape = [self._view.shape[0], 1, 1, 1]
        shape[axis] = self._view.shape[axis]
        return per_channel.reshape(shape)


def _batchnorm(layer: gs.Node, x: gs.Tensor | Draft, affine: Affine) -> Draft:
    """A BatchNormalization that computes the map."""
    channels = _constant(layer.inputs[1]).size
    affine = affine.of(channels)
    with np.errstate(all="ignore"):
        scale, shift = (_finite(each.astype(layer.inputs[1].dtype)) for each in (affine.scale, affine.shift))
    return node("BatchNormalization", x, scale, shift, np.zeros_like(scale), np.ones_like(scale), epsilon=0.0)


def _has_uniform_response(layer: gs.Node) -> bool:
    """Whether a constant input gives a constant output: no window reaches over the border, none is smaller."""
    kernel = layer.inputs[1].shape[2:]
    pads, padding = layer.attrs.get("pads", [0]), layer.attrs.get("auto_pad", "NOTSET")
    unpadded = padding == "VALID" or (padding == "NOTSET" and not any(pads))
    if layer.op == "Conv":
        return unpadded or (padding != "NOTSET" and max(kernel, default=1) == 1)
    spread = [*layer.attrs.get("strides", [1]), *kernel]
    grown = any(layer.attrs.get("output_padding", [0])) or "output_shape" in layer.attrs
    return unpadded and max(spread) == 1 and not grown


def _constant(tensor: gs.Tensor) -> np.ndarray:
    if not isinstance(tensor, gs.Constant):
        raise NoMatch(f"'{tensor.name}' is not constant")
    return tensor.values


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise NoMatch("the weights would not be finite")
    return values
