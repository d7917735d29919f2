"""How the matrix products of `product.py` are shared among threads: the tile with the fewest estimated cycles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil, prod

from nnc.lowering.gpu.threads import GROUP
from nnc.lowering.gpu.unit import Gpu

LANES = 4  # of a vector


@dataclass(frozen=True)
class Tile:
    """How a product is shared among threads."""

    rows: int
    """Per thread."""
    vectors: int
    """Of columns, per thread."""
    threads: tuple[int, int]
    """Of a group, along rows and along columns."""
    slices: int = 1
    """Threads that share the depth of one tile."""
    depth: int = 0
    """Units of the depth that a group stages in shared memory at a time; 0: operands come from the caches."""

    @property
    def group_rows(self) -> int:
        return self.rows * self.threads[0]

    @property
    def group_vectors(self) -> int:
        return self.vectors * self.threads[1]

    @property
    def size(self) -> int:
        """Threads of a group."""
        return prod(self.threads) * self.slices


@dataclass(frozen=True)
class Shape:
    """The sizes of a product: the depth is that of `units` loops, outermost first, of `lanes` elements each."""

    rows: int
    vectors: int
    units: tuple[int, ...]
    lanes: int

    @property
    def depth(self) -> int:
        return prod(self.units) * self.lanes


@cache
def best_tile(shape: Shape, unit: Gpu) -> Tile:
    """The tile with the fewest estimated cycles; of equals, the one that loads least, in groups of a usual size."""

    def cost(tile: Tile) -> tuple[float, ...]:
        usual = abs(tile.size - GROUP)
        return cycles(shape, tile, unit), _loads(tile), tile.slices, usual, -tile.threads[0]

    return min(_tiles(shape, unit), key=cost)


RESIDENT_PER_LANE = 4
"""Threads per lane of a core that hide the latency of arithmetic and of the caches."""

MOST_LOADS = 16
"""Of a thread for one stage: each holds an address in registers."""

SUM_STEPS = 8
"""What adding a partial sum through shared memory costs, in steps of the depth."""

GROUP_CYCLES = 600.0
"""To start a group, to fill its pipelines and to store what it computed."""


def _tiles(shape: Shape, unit: Gpu) -> Iterator[Tile]:
    yield Tile(1, 1, (min(32, unit.most_threads), 1))  # of the smallest products, in which most threads idle
    for rows in (1, 2, 4, 8):
        for vectors in (1, 2, 4):
            if rows * vectors > max(1, unit.vectors_per_thread // 4) or vectors > shape.vectors:
                continue
            for along in (1, 4, 8, 16, 32, 64):
                if along > 1 and rows * along >= 2 * shape.rows:
                    continue
                for across in (1, 2, 4, 8, 16):
                    if across > 1 and vectors * across >= 2 * shape.vectors:
                        continue
                    yield from _variants(shape, Tile(rows, vectors, (along, across)), unit)


def _variants(shape: Shape, tile: Tile, unit: Gpu) -> Iterator[Tile]:
    threads = tile.size
    if unit.stages and 64 <= threads <= min(256, unit.most_threads):
        for depth in (4, 2, 1) if shape.lanes > 1 else (16, 8, 4):
            few = tile.group_rows * depth <= MOST_LOADS * threads
            if few and _staged_bytes(shape, tile, depth) <= unit.shared_bytes // 2 and _even(tile, threads):
                yield Tile(tile.rows, tile.vectors, tile.threads, 1, depth)
                break
    for slices in (1, 2, 4, 8, 16, 32):
        if slices > 1 and (slices > shape.units[0] or threads > 64):
            continue
        partial = (slices - 1) * threads * tile.rows * tile.vectors * 16
        if 32 <= threads * slices <= min(256, unit.most_threads) and partial <= unit.shared_bytes // 2:
            yield Tile(tile.rows, tile.vectors, tile.threads, slices, 0)


def _staged_bytes(shape: Shape, tile: Tile, depth: int) -> int:
    return depth * shape.lanes * (tile.group_rows + LANES * tile.group_vectors) * 4


def _even(tile: Tile, threads: int) -> bool:
    """Whether every thread loads for the same rows in every round."""
    return threads % tile.group_rows == 0 or tile.group_rows % threads == 0


def _loads(tile: Tile) -> float:
    """Elements that a thread loads per multiply-add."""
    return (tile.rows + LANES * tile.vectors) / (LANES * tile.rows * tile.vectors)


def cycles(shape: Shape, tile: Tile, unit: Gpu) -> float:
    """Cycles of the whole product on the busiest core."""
    groups = ceil(shape.rows / tile.group_rows) * ceil(shape.vectors / tile.group_vectors)
    rounds = ceil(groups / unit.cores)  # of the busiest core
    lanes = unit.macs_per_cycle
    outputs = tile.group_rows * tile.group_vectors * LANES
    macs = outputs * (shape.depth + SUM_STEPS * (tile.slices - 1))
    bytes_in = 4 * (tile.group_rows + LANES * tile.group_vectors) * shape.depth
    inner = 1.0 + (0.25 if tile.depth else 0.5) * LANES * _loads(tile)  # loads beside the arithmetic
    busy = max(macs * inner / lanes, bytes_in / unit.l2_bytes_per_cycle)
    threads = rounds * tile.size
    filled = min(1.0, threads * min(4, tile.rows * tile.vectors) / (RESIDENT_PER_LANE * lanes))
    return rounds * (busy / filled + GROUP_CYCLES / max(1.0, threads / tile.size))
