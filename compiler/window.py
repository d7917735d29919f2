"""The window of a convolution or pool: where it stops, and how much padding that takes."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import window_pads


@dataclass(frozen=True)
class Window:
    """A window that moves over `sizes` in steps and stops at `stops` places, per spatial axis."""

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    begins: Sequence[int]
    """Padding in front."""
    sizes: Sequence[int]
    stops: Sequence[int]

    @staticmethod
    def of(node: gs.Node, kernel: Sequence[int], large: Sequence[int], small: Sequence[int]) -> "Window":
        """The window that takes the sizes `large` to `small`, padded as the node's attributes say."""
        ones, (begins, _) = [1] * len(kernel), window_pads(node, kernel, large, small)
        strides, dilations = node.attrs.get("strides", ones), node.attrs.get("dilations", ones)
        return Window(kernel, strides, dilations, begins, large, small)

    @property
    def extents(self) -> list[int]:
        """From the first to the last element of the window, these included."""
        return [dilation * (size - 1) + 1 for dilation, size in zip(self.dilations, self.kernel, strict=True)]

    @property
    def reach(self) -> list[int]:
        """From the begin of the first window to the end of the last."""
        steps = zip(self.strides, self.stops, self.extents, strict=True)
        return [stride * (stops - 1) + extent for stride, stops, extent in steps]

    @property
    def ends(self) -> list[int]:
        """Padding behind that is just as large as the windows need; negative where the last window ends earlier."""
        return [reach - begin - size for reach, begin, size in zip(self.reach, self.begins, self.sizes, strict=True)]

    def shares(self, pool: gs.Node) -> np.ndarray:
        """By what part of the window's size an AveragePool divides the sum of each: float64 of the shape `stops`."""
        begins = ends = [0] * len(self.kernel)
        if pool.attrs.get("count_include_pad", 0):
            begins, ends = window_pads(pool, self.kernel, self.sizes, self.stops)
        return self._counts(begins, ends) / math.prod(self.kernel)

    def _counts(self, begins: Sequence[int], ends: Sequence[int]) -> np.ndarray:
        """How many elements each window holds of the axes and of so much padding: of the shape `stops`."""
        per_axis = []
        for axis, stops in enumerate(self.stops):
            first = np.arange(stops) * self.strides[axis] - self.begins[axis]
            places = first[:, None] + np.arange(self.kernel[axis]) * self.dilations[axis]
            inside = (places >= -begins[axis]) & (places < self.sizes[axis] + ends[axis])
            per_axis.append(inside.sum(axis=1))
        return functools.reduce(np.multiply.outer, per_axis)
