"""What convolutions and pools have in common: a window that slides along axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnc.attributes import window_pads
from nnc.lowering.pieces import Shape, Work


@dataclass(frozen=True)
class Sliding:
    """The attributes of a convolution or pool, one value per axis that it slides along."""

    kernel: Shape
    strides: Shape
    dilations: Shape
    starts: Shape
    """Padding before each axis, and after it."""
    ends: Shape
    groups: int

    @classmethod
    def of(cls, work: Work, kernel: Sequence[int]) -> Sliding:
        count = len(kernel)
        strides, dilations = (tuple(work.attribute(name, [1] * count)) for name in ("strides", "dilations"))
        starts, ends = window_pads(work.node, kernel, work.input(0).shape[2:], work.shape()[2:])
        return cls(tuple(kernel), strides, dilations, tuple(starts), tuple(ends), work.attribute("group", 1))

    @property
    def attributes(self) -> dict[str, Any]:
        """As those of an ONNX node."""
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": [*self.starts, *self.ends],
        }
