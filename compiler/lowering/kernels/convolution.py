"""A two-dimensional convolution as templates see it: its sizes, the layouts of both images, and what reads what.

A transposed convolution with stride s is s * s convolutions, each for one of the phases of the output's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from tvm import tirx

from nnc.lowering.kernels.registers import Expr
from nnc.lowering.kernels.window import Window


@dataclass(frozen=True)
class Phase:
    """Where the outputs of a convolution are in a larger image: every `strides`-th pixel from `first` on."""

    strides: tuple[int, int]
    first: tuple[int, int]
    size: tuple[int, int]
    """Of the larger image."""


@dataclass(frozen=True)
class Conv2d:
    """A convolution with `in_channels` and `out_channels` in all, its output in blocks of `block` channels."""

    batch: int
    in_channels: int
    out_channels: int
    window: Window
    groups: int
    in_block: int
    """Channels per block of the input; 1 is plain NCHW."""
    block: int
    phase: Phase | None = None
    dtype: str = "float32"
    """Of what is multiplied."""

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape of what is read."""
        if self.in_block == 1:
            return self.batch, self.in_channels, *self.window.size
        return self.batch, self.in_blocks, *self.window.size, self.in_block

    @property
    def out_shape(self) -> tuple[int, int, int, int, int]:
        """The shape of what is written, or written into."""
        size = self.phase.size if self.phase else self.window.out_size
        return self.batch, self.out_blocks, *size, self.block

    @property
    def in_blocks(self) -> int:
        return ceil(self.in_channels / self.in_block)

    @property
    def out_blocks(self) -> int:
        return ceil(self.out_channels / self.block)

    def reads(self, vectors: int) -> tuple[int, list[int]]:
        """How many input blocks a group of `vectors` output blocks reads, and for every such group, the first."""
        ins, outs, width = self.in_channels // self.groups, self.out_channels // self.groups, vectors * self.block
        spans = []
        for first in range(0, self.out_channels, width):
            last = min(first + width, self.out_channels) - 1
            spans.append((first // outs * ins // self.in_block, ((last // outs + 1) * ins - 1) // self.in_block + 1))
        most = max(end - start for start, end in spans)
        return most, [min(start, self.in_blocks - most) for start, _ in spans]

    def unrolls(self, steps: int) -> bool:
        """Whether the channels of every input block are a multiple of `steps`."""
        rest = self.in_channels % self.in_block if self.groups == 1 else 0
        return self.in_block % steps == 0 and rest % steps == 0

    def first_block(self, group: Expr, vectors: int) -> Expr:
        """The first input block that a group of `vectors` output blocks reads, as `reads` counts it."""
        most, firsts = self.reads(vectors)
        if not any(firsts):
            return 0
        ins, outs = self.in_channels // self.groups, self.out_channels // self.groups
        return tirx.min(group * vectors * self.block // outs * ins // self.in_block, self.in_blocks - most)

    def pixel(self, y: Expr, x: Expr) -> tuple[Expr, Expr]:
        """Row and column of an output in the image that is written."""
        if self.phase is None:
            return y, x
        (down, right), (top, left) = self.phase.strides, self.phase.first
        return y * down + top, x * right + left

    def widths(self) -> list[int]:
        """Of the images that a convolution can compute on: a pointwise one sees no rows."""
        if not self.window.is_pointwise or self.phase:
            return [self.window.out_size[1]]
        pixels = self.window.size[0] * self.window.size[1]
        return [w for w in range(1, min(pixels, 64) + 1) if pixels % w == 0] + [self.window.size[1]]

    def of_width(self, width: int) -> Conv2d:
        """The same pointwise convolution over an image with rows of `width` pixels; any other as it is."""
        if width == self.window.out_size[1]:
            return self
        size = (self.window.size[0] * self.window.size[1] // width, width)
        return replace(self, window=replace(self.window, size=size, out_size=size))


def blocked(W: np.ndarray, conv: Conv2d, vectors: int) -> np.ndarray:
    """Weights `[out, in / groups, kh, kw]` as `[group of out blocks][in block][in lane][kh][kw][vector][lane]`.

    A group of `vectors` output blocks has weights for all that it reads; between groups of channels they are zero.
    """
    width, (most, firsts) = vectors * conv.block, conv.reads(vectors)
    ins, outs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    dense = np.zeros((len(firsts), most * conv.in_block, *conv.window.kernel, width), W.dtype)
    for o in range(conv.out_channels):
        start = o // outs * ins - firsts[o // width] * conv.in_block
        dense[o // width, start : start + ins, :, :, o % width] = W[o]
    return dense.reshape(len(firsts), most, conv.in_block, *conv.window.kernel, vectors, conv.block)
