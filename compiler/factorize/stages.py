"""The convolutions of a chain, before they have weights: their shapes, attributes and costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One convolution of a chain that replaces a layer."""

    shape: tuple[int, ...]
    """Of its weight, [out, in / group, taps...]."""
    group: int = 1
    axes: tuple[int, ...] = ()
    """Spatial axes along which it does what the layer did: its taps, strides, pads and dilations."""

    @property
    def params(self) -> int:
        return math.prod(self.shape)

    def attributes(self, layer: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes of this Conv, given those of the layer's.

        Every spatial axis belongs to one stage of a chain, so that strides, pads and dilations are applied once: a
        k x k convolution with strides [2, 2] becomes k x 1 with [2, 1] and 1 x k with [1, 2]. Zeros that one stage pads
        are zeros in what the layer would have read, because no stage before the last has a bias. SAME_UPPER and
        SAME_LOWER pad nothing along an axis with one tap and stride 1, and stay.
        """
        rank = len(self.shape) - 2
        own = [axis in self.axes for axis in range(rank)]
        attributes: dict[str, Any] = {"group": self.group, "kernel_shape": list(self.shape[2:])}
        for key, neutral in (("strides", 1), ("dilations", 1), ("pads", 0)):
            if key in layer:
                mine = own * (2 if key == "pads" else 1)
                attributes[key] = [value if mine[at] else neutral for at, value in enumerate(layer[key])]
        if "auto_pad" in layer:
            attributes["auto_pad"] = layer["auto_pad"]
        return attributes


def svd_stages(shape: Sequence[int], rank: int) -> tuple[Stage, ...]:
    """K x taps -> [rank, C, taps...], [K, rank, 1...]."""
    K, C, *taps = shape
    return Stage((rank, C, *taps), 1, tuple(range(len(taps)))), Stage((K, rank, *_ones(taps)))


def spatial_stages(shape: Sequence[int], rank: int, vertical_first: bool = True) -> tuple[Stage, ...]:
    """[rank, C, kh, 1], [K, rank, 1, kw]; the other way round [rank, C, 1, kw], [K, rank, kh, 1]."""
    K, C, kh, kw = shape
    if vertical_first:
        return Stage((rank, C, kh, 1), 1, (0,)), Stage((K, rank, 1, kw), 1, (1,))
    return Stage((rank, C, 1, kw), 1, (1,)), Stage((K, rank, kh, 1), 1, (0,))


def tucker_stages(shape: Sequence[int], ranks: tuple[int, int]) -> tuple[Stage, ...]:
    """[r1, C, 1...], [r2, r1, taps...], [K, r2, 1...] for `ranks` = (r1 of the inputs, r2 of the outputs)."""
    (K, C, *taps), (inner, outer) = shape, ranks
    core = Stage((outer, inner, *taps), 1, tuple(range(len(taps))))
    return Stage((inner, C, *_ones(taps))), core, Stage((K, outer, *_ones(taps)))


def cp_stages(shape: Sequence[int], rank: int) -> tuple[Stage, ...]:
    """[rank, C, 1, 1], depthwise [rank, 1, kh, 1] and [rank, 1, 1, kw], [K, rank, 1, 1]."""
    K, C, kh, kw = shape
    vertical, horizontal = Stage((rank, 1, kh, 1), rank, (0,)), Stage((rank, 1, 1, kw), rank, (1,))
    return Stage((rank, C, 1, 1)), vertical, horizontal, Stage((K, rank, 1, 1))


def params(stages: Sequence[Stage]) -> int:
    """Weights of a chain, without the bias."""
    return sum(stage.params for stage in stages)


def _ones(taps: Sequence[int]) -> tuple[int, ...]:
    return (1,) * len(taps)
