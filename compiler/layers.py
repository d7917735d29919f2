"""Layers with weights, seen alike: a Conv, Gemm or MatMul as a matrix that is applied at every position.

A Conv is a Gemm over patches of its input (im2col): K outputs from D = C / g * taps values, in each of g groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import bias, output_axis, window_pads
from nnc.measure import has_shape
from nnc.model.proto import is_standard
from nnc.quantize import scheme
from nnc.rewrite import Driver, replace_input


@dataclass(frozen=True)
class Layer:
    """A Conv, Gemm or MatMul whose weights, and bias if it has one, are constants of floats."""

    node: gs.Node

    @staticmethod
    def of(node: gs.Node) -> "Layer | None":
        """The node as a layer, or None."""
        if not is_standard(node, "Conv", "Gemm", "MatMul") or not has_shape(*node.inputs[:2], *node.outputs):
            return None
        constants = [tensor for tensor in node.inputs[1:] if not tensor.is_empty()]
        if not all(isinstance(each, gs.Constant) and each.dtype in (np.float32, np.float16) for each in constants):
            return None
        rank = len(node.inputs[1].shape)
        fits = rank >= 3 if node.op == "Conv" else rank == 2 and not node.attrs.get("transA", 0)
        fits = fits and len(node.inputs[0].shape) >= 2
        adds = len(node.inputs) > 2 and not node.inputs[2].is_empty()
        return Layer(node) if fits and (not adds or bias(node) is not None) else None

    @property
    def is_conv(self) -> bool:
        return self.node.op == "Conv"

    @property
    def groups(self) -> int:
        return self.node.attrs.get("group", 1) if self.is_conv else 1

    @property
    def is_depthwise(self) -> bool:
        return self.is_conv and self.groups > 1 and self.node.inputs[1].shape[1] == 1

    @cached_property
    def outputs(self) -> int:
        """Output channels or features K."""
        return self._shape[0]

    @cached_property
    def inputs(self) -> int:
        """Input channels or features, of all groups."""
        return self._shape[1] * self.groups

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self._shape[2:])

    @property
    def columns(self) -> int:
        """Values D in one group's patch."""
        return math.prod(self._shape[1:])

    @property
    def positions(self) -> int:
        """Places per sample at which the weights are applied."""
        output = self.node.outputs[0].shape
        return math.prod(output[2:]) if self.is_conv else math.prod(output[1:-1])

    @property
    def _shape(self) -> Sequence[int]:
        """[K, C / g, taps...]."""
        shape = self.node.inputs[1].shape
        return tuple(shape) if self._out_first else (shape[1], shape[0])

    @property
    def _out_first(self) -> bool:
        return output_axis(self.node) == 0

    @property
    def sharers(self) -> list[gs.Node]:
        """The other nodes that read its weights."""
        return [each for each in self.node.inputs[1].outputs if each is not self.node]

    @property
    def weight(self) -> np.ndarray:
        """The weights [K, C / g, taps...] in their own dtype, not copied; Gemm's alpha is included, which copies."""
        W = self.node.inputs[1].values
        W = W if self._out_first else W.T
        alpha = self.node.attrs.get("alpha", 1.0) if self.node.op == "Gemm" else 1.0
        return W if alpha == 1 else W * W.dtype.type(alpha)

    @property
    def matrix(self) -> np.ndarray:
        """The weights, float64 [g, K / g, D]; Gemm's alpha included."""
        W = self.node.inputs[1].values
        W = W if self._out_first else W.T
        scaled = W.reshape(self.groups, self.outputs // self.groups, -1).astype(np.float64)
        return scaled * self.node.attrs.get("alpha", 1.0) if self.node.op == "Gemm" else scaled

    @property
    def bias(self) -> np.ndarray:
        """float64 [K]; zeros where the layer has none."""
        added = bias(self.node)
        return np.zeros(self.outputs) if added is None else added.copy()

    def rows(self, x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Patches of x [N, C, ...] at the positions `chosen` [N, n] (flat indices): float32 [g, N n, D]."""
        x = x.astype(np.float32, copy=False)  # sums of float16 would overflow
        if not self.is_conv:
            features = x.reshape(len(x), -1, x.shape[-1])
            return np.take_along_axis(features, chosen[:, :, None], 1).reshape(1, -1, x.shape[-1])
        places = np.unravel_index(chosen, self.node.outputs[0].shape[2:])
        windows = np.moveaxis(self._windows(x), 1, 1 + len(places))  # [N, positions..., C, taps...]
        patches = windows[(np.arange(len(x))[:, None], *places)]  # [N, n, C, taps...]
        grouped = patches.reshape(chosen.size, self.groups, self.columns)
        return np.ascontiguousarray(grouped.transpose(1, 0, 2))

    def targets(self, y: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Values of y [N, K, ...] at the positions `chosen`: float32 [g, N n, K / g]."""
        y = y.astype(np.float32, copy=False)
        if self.is_conv:
            y = np.moveaxis(y.reshape(*y.shape[:2], -1), 1, 2)
        features = y.reshape(len(y), -1, y.shape[-1])
        taken = np.take_along_axis(features, chosen[:, :, None], 1)
        return np.ascontiguousarray(taken.reshape(chosen.size, self.groups, -1).transpose(1, 0, 2))

    def _windows(self, x: np.ndarray) -> np.ndarray:
        """A view [N, C, positions..., taps...] of x, padded."""
        kernel, (begin, end) = self.kernel, self.pads
        dilations = self.node.attrs.get("dilations") or [1] * len(kernel)
        strides = self.node.attrs.get("strides") or [1] * len(kernel)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
        reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
        spatial = tuple(range(2, 2 + len(kernel)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, spatial)
        steps = (*map(_every, strides), *map(_every, dilations))
        cut = windows[(slice(None), slice(None), *steps)]
        return cut[(slice(None), slice(None), *(slice(size) for size in self.node.outputs[0].shape[2:]))]

    @property
    def pads(self) -> tuple[list[int], list[int]]:
        """Values added in front of and behind each spatial axis."""
        sizes, stops = self.node.inputs[0].shape[2:], self.node.outputs[0].shape[2:]
        return window_pads(self.node, self.kernel, sizes, stops)

    def in_layout(self, W: np.ndarray) -> np.ndarray:
        """Weights [g, K / g, D] in the shape of the node's."""
        values = W.reshape(self.outputs, *self._shape[1:])
        return np.ascontiguousarray(values if self._out_first else values.T)

    def set(self, W: np.ndarray, bias: np.ndarray, driver: Driver) -> None:
        """Give the layer the weights W [g, K / g, D] and the bias [K], in constants that no other node reads.

        A MatMul becomes a Gemm where it needs a bias and may have one; where it may not, an Add behind it has the bias.
        """
        node, weight = self.node, self.node.inputs[1]
        values = self.in_layout(W).astype(weight.dtype)
        biased = bias.any() or len(node.inputs) > 2
        if node.op == "MatMul" and biased and len(node.inputs[0].shape) == 2:
            node.op = "Gemm"
        if node.op == "Gemm":
            node.attrs |= {"alpha": 1.0, "beta": 1.0}
        name = node.outputs[0].name
        node.inputs[1] = driver.constant(f"{name}.W", values)
        if biased and node.op == "MatMul":
            self._add_behind(bias.astype(weight.dtype), driver)
        elif biased:
            made = driver.constant(f"{name}.B", bias.astype(weight.dtype))
            node.inputs = [*node.inputs[:2], made]

    def share(self, other: "Layer") -> None:
        """Read the weights and the bias that `set` gave another layer, which had the same ones before."""
        self.node.inputs = [self.node.inputs[0], *other.node.inputs[1:]]
        self.node.attrs |= {key: value for key, value in other.node.attrs.items() if key in ("alpha", "beta")}

    def _add_behind(self, bias: np.ndarray, driver: Driver) -> None:
        """Add the bias [K] to the constant that is added to the output; to the output itself where there is none."""
        output = self.node.outputs[0]
        readers = [] if driver.is_output(output) else output.outputs
        add = readers[0] if len(readers) == 1 and is_standard(readers[0], "Add") else None
        added = next((each for each in add.inputs if isinstance(each, gs.Constant)), None) if add is not None else None
        if added is not None:
            replace_input(add, added, driver.constant(added.name, added.values + bias))
            return
        driver.append(self.node, "Add", bias)


def _every(step: int) -> slice:
    return slice(None, None, step)


def dequantized(tensor: gs.Tensor) -> np.ndarray:
    """The values of a constant, or of what quantized weights and moved axes make of one, float64."""
    if isinstance(tensor, gs.Constant):
        return tensor.values.astype(np.float64)
    maker = tensor.inputs[0]
    if maker.op == "Transpose":
        return dequantized(maker.inputs[0]).transpose(maker.attrs.get("perm"))
    stored, *scales = maker.inputs
    if maker.op != "DequantizeLinear":
        return dequantized(stored)
    if not isinstance(stored, gs.Constant) and stored.inputs[0].op == "QuantizeLinear":
        return dequantized(stored.inputs[0].inputs[0])
    scale, *zero = (each.values for each in scales if not each.is_empty())
    axis, block = maker.attrs.get("axis", 1), maker.attrs.get("block_size", 0)
    return scheme.dequantized(dequantized(stored), scale, zero[0] if zero else None, axis, block)
