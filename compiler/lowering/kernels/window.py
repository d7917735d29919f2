"""Sliding windows without padded copies, shared by the convolutions and the pools.

A row of outputs is cut into tiles of columns. For every tile and every kernel column it is known at compile time which
of the tile's columns read inside of the image; tiles that agree become one loop, so that a row is at most a left edge,
a loop over the middle, and a right edge. Rows of the kernel that lie outside of the image are left out by loop bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import ceil
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

Expr = Any
Span = tuple[int, int]  # first, and one past the last


@dataclass(frozen=True)
class Taps:
    """`count` adjacent kernel columns, from `first`, that read inside of the image for the same columns of a tile."""

    first: int
    count: int
    inside: Span

    @contextmanager
    def loop(self) -> Iterator[Expr]:
        """Emit the loop over the kernel columns."""
        if self.count == 1:
            yield self.first
            return
        with T.serial(self.first, self.first + self.count) as kw:
            yield kw


@dataclass(frozen=True)
class Tiles:
    """`count` adjacent tiles of `columns` outputs, the first at column `first`."""

    first: int
    columns: int
    count: int
    inside: tuple[Span, ...]
    """Per kernel column, the columns of the tile that read inside of the image."""

    def taps(self) -> list[Taps]:
        """The kernel columns that read inside of the image for any column of the tile.

        They stay loops: unrolled, LLVM loads weights early and runs out of registers.
        """
        spans = [(kw, span) for kw, span in enumerate(self.inside) if span[0] < span[1]]
        runs = [list(run) for _, run in groupby(spans, key=lambda each: each[1])]
        return [Taps(run[0][0], len(run), run[0][1]) for run in runs]

    def readers(self, window: Window) -> dict[int, list[tuple[int, int]]]:
        """Who reads each column of the image: offset from `x * stride` -> (column of the tile, kernel column)."""
        found: dict[int, list[tuple[int, int]]] = {}
        for kw, span in enumerate(self.inside):
            for c in range(*span):
                found.setdefault(window.column(c, kw), []).append((c, kw))
        return dict(sorted(found.items()))

    @contextmanager
    def loop(self) -> Iterator[Expr]:
        """Emit the loop over the tiles; gives the column where a tile starts."""
        if self.count == 1:
            yield self.first
            return
        with T.serial(0, self.count) as tile:
            yield T.bind(self.first + tile * self.columns)


@dataclass(frozen=True)
class Window:
    """A window of `kernel` pixels that moves over an image of `size`; (rows, columns) everywhere.

    `out_size` may reach past the padded image (ONNX's ceil_mode): what is not there is left out.
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    origin: tuple[int, int]
    """Padding at the top and at the left."""
    out_size: tuple[int, int]

    @property
    def is_pointwise(self) -> bool:
        """Whether every output reads the one pixel at its own place."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and self.origin == (0, 0) and self.size == self.out_size

    @property
    def is_sampling(self) -> bool:
        """Whether every output reads one pixel, all of them inside of the image."""
        last = [(out - 1) * stride for out, stride in zip(self.out_size, self.strides, strict=True)]
        inside = all(place < size for place, size in zip(last, self.size, strict=True))
        return self.kernel == (1, 1) and self.origin == (0, 0) and inside

    def column(self, x: Expr, kw: Expr) -> Expr:
        """The column of the image that output column x reads at kernel column kw."""
        return x * self.strides[1] + kw * self.dilations[1] - self.origin[1]

    def row(self, y: Expr, kh: Expr) -> Expr:
        """The row of the image that output row y reads at kernel row kh."""
        return y * self.strides[0] + kh * self.dilations[0] - self.origin[0]

    def rows(self, y: Expr) -> tuple[Expr, Expr]:
        """The kernel rows, first and one past the last, that output row y reads inside of the image."""
        top, step, height = self.row(y, 0), self.dilations[0], self.size[0]
        first: Expr = 0
        last: Expr = self.kernel[0]
        if self.origin[0]:
            first = tirx.max(0, tirx.floordiv(step - 1 - top, step))
        if self.row(self.out_size[0] - 1, self.kernel[0] - 1) >= height:
            last = tirx.min(last, tirx.floordiv(height - 1 - top, step) + 1)
        return first, last

    def tiles(self, columns: int) -> list[Tiles]:
        """A row of outputs as tiles of at most `columns`, as even as they can be."""
        width = self.out_size[1]
        parts = ceil(width / columns)
        starts = [part * width // parts for part in range(parts + 1)]
        tiles = [self._tile(first, end - first) for first, end in pairwise(starts)]
        runs = [list(run) for _, run in groupby(tiles, key=lambda tile: (tile.columns, tile.inside))]
        return [Tiles(run[0].first, run[0].columns, len(run), run[0].inside) for run in runs]

    def _tile(self, first: int, columns: int) -> Tiles:
        def inside(kw: int) -> Span:
            columns_in = [c for c in range(columns) if 0 <= self.column(first + c, kw) < self.size[1]]
            return (columns_in[0], columns_in[-1] + 1) if columns_in else (0, 0)

        return Tiles(first, columns, 1, tuple(inside(kw) for kw in range(self.kernel[1])))
