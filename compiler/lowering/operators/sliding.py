"""What convolutions and pools have in common: a window that slides along axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
        pads, auto = work.attribute("pads", [0] * 2 * count), work.attribute("auto_pad", "NOTSET")
        if auto == "VALID":
            pads = [0] * 2 * count
        elif auto != "NOTSET":
            totals = [
                max(0, (out - 1) * stride + (size - 1) * dilation + 1 - axis)
                for axis, out, size, stride, dilation in zip(
                    work.input(0).shape[2:], work.shape()[2:], kernel, strides, dilations, strict=True
                )
            ]
            less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
            pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
        return cls(
            tuple(kernel), strides, dilations, tuple(pads[:count]), tuple(pads[count:]), work.attribute("group", 1)
        )

    @property
    def attributes(self) -> dict[str, Any]:
        """As those of an ONNX node."""
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": [*self.starts, *self.ends],
        }
