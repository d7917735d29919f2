"""Which F(m x m, 3 x 3), register tile and split of the work a Winograd convolution takes, and whether it wins.

Every plan of a small space is estimated from the shapes and the unit's figures; there is no table of layers. The
estimate counts the cycles of the thread with the most work. It was fitted on a Sapphire Rapids, with 512-bit and with
256-bit code, on the 3x3 layers of VGG-16, ResNet, DenseNet and SqueezeNet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import ClassVar, Literal

from nnc.lowering.kernels.convolution import Conv2d
from nnc.lowering.kernels.registers import RegisterTile, max_rows
from nnc.lowering.kernels.unit import Unit, lanes_of

# The interpolation points beside infinity; pairs (a, -a) share half of their arithmetic. With 2/3 and 3/2 the error of
# F(4x4) is 3.5 times smaller than with the usual 1 and 2, and their product 1 saves multiplications.
POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)),
}


@dataclass(frozen=True)
class Convolution:
    """A 3x3 convolution with stride 1 and one group, its channels padded to whole blocks."""

    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    pads: tuple[int, int, int, int]  # top, left, bottom, right, as in ONNX
    block: int  # channels per block, x of NCHW[x]c
    dtype: str = "float32"

    @classmethod
    def of(cls, conv: Conv2d) -> Convolution | None:
        """The same convolution; None where the algorithm does not apply."""
        window = conv.window
        plain_steps = window.strides == window.dilations == (1, 1) and conv.phase is None
        is_blocked = conv.in_block == conv.block <= conv.in_channels
        if window.kernel != (3, 3) or conv.groups != 1 or not plain_steps or not is_blocked:
            return None
        (top, left), (height, width) = window.origin, window.size
        bottom, right = window.out_size[0] + 2 - height - top, window.out_size[1] + 2 - width - left
        pads = (top, left, bottom, right)
        return cls(conv.batch, conv.in_channels, conv.out_channels, height, width, pads, conv.block, conv.dtype)

    @property
    def in_blocks(self) -> int:
        return -(-self.in_channels // self.block)

    @property
    def out_blocks(self) -> int:
        return -(-self.out_channels // self.block)

    @property
    def out_size(self) -> tuple[int, int]:
        top, left, bottom, right = self.pads
        return self.height + top + bottom - 2, self.width + left + right - 2

    def tiles(self, outputs: int) -> tuple[int, int]:
        """Rows and columns of output tiles per image."""
        height, width = self.out_size
        return -(-height // outputs), -(-width // outputs)

    def all_tiles(self, outputs: int) -> int:
        """Output tiles of the whole batch."""
        rows, columns = self.tiles(outputs)
        return self.batch * rows * columns


@dataclass(frozen=True)
class Plan:
    """F(m x m, 3 x 3) with a register tile of tiles x output-channel blocks, in chunks of `chunk` tiles."""

    outputs: int
    tile: RegisterTile
    chunk: int
    split: Literal["tiles", "channels"]

    @property
    def positions(self) -> int:
        return (self.outputs + 2) ** 2


def best_plan(conv: Convolution, unit: Unit) -> Plan:
    """The plan with the least estimated time."""
    return min(plans(conv, unit), key=lambda candidate: cycles(conv, candidate, unit))


def wins(conv: Convolution, unit: Unit) -> bool:
    """Whether the best plan is estimated to beat a direct convolution."""
    return cycles(conv, best_plan(conv, unit), unit) < direct_cycles(conv, unit)


def plans(conv: Convolution, unit: Unit, sizes: Iterable[int] = POINTS) -> Iterator[Plan]:
    """Every register tile that fits, in chunks of up to 8 of them, of F(m x m, 3 x 3) for every m of `sizes`."""
    for outputs in sizes:
        tiles = conv.all_tiles(outputs)
        for vectors in (v for v in (1, 2, 3, 4) if conv.out_blocks % v == 0):
            for rows in range(1, min(tiles, max_rows(vectors, conv.block, unit)) + 1):
                tile = RegisterTile(rows, vectors, conv.block)
                for passes in range(1, min(8, ceil(tiles / rows)) + 1):
                    yield Plan(outputs, tile, passes * rows, "tiles")
                    yield Plan(outputs, tile, passes * rows, "channels")


# A core does two vector multiply-adds and one broadcast in a cycle.
FMA_LATENCY = 4.0  # cycles in which the accumulators of one step must not be needed again
INNER_BYTES = 32.0  # bytes per cycle from the second-level cache
OUTER_BYTES = 6.0  # bytes per cycle and thread from beyond it, at most
CACHE_SHARE = 0.6  # of the second-level cache that a chunk may fill
INPUT_CYCLES = 8.0  # of the input transform, per position of a tile and vector of channels
OUTPUT_CYCLES = 6.0  # the same of the output transform
LAUNCH = 15_000.0  # cycles to start a second parallel loop
DIRECT_EFFICIENCY = 0.85  # of a direct convolution, as a share of the peak


def cycles(conv: Convolution, plan: Plan, unit: Unit) -> float:
    """The estimated time of a plan."""
    return _estimate(conv)(conv, plan, unit).cycles


def direct_cycles(conv: Convolution, unit: Unit) -> float:
    """The estimated time of a direct convolution."""
    height, width = conv.out_size
    weights = 9 * conv.in_blocks * conv.out_blocks * conv.block**2
    product = conv.batch * weights * height * width / lanes_of(unit) / 2 / DIRECT_EFFICIENCY
    return max(product, _estimate(conv).value_bytes * weights / outer_bytes(unit)) / unit.threads


def outer_bytes(unit: Unit) -> float:
    """Bytes per cycle that one thread gets from beyond the second-level cache."""
    return min(OUTER_BYTES, unit.memory_bytes_per_cycle)


@dataclass(frozen=True)
class Estimate:
    """The cycles of a plan. A task is one chunk of tiles with one group of output channels."""

    conv: Convolution
    plan: Plan
    unit: Unit
    value_bytes: ClassVar[int] = 4
    """Of a transformed input or weight."""

    @property
    def cycles(self) -> float:
        outer = outer_bytes(self.unit)
        second_loop = LAUNCH + self.all_inputs / outer if self.plan.split == "channels" else 0.0
        return max(self.product, self.outer_bytes / outer) + self.transforms + second_loop

    @property
    def width(self) -> float:
        """Vector registers per block."""
        return self.conv.block / lanes_of(self.unit)

    @property
    def depth(self) -> int:
        return self.conv.in_blocks * self.conv.block

    @property
    def chunks(self) -> int:
        return ceil(self.conv.all_tiles(self.plan.outputs) / self.plan.chunk)

    @property
    def groups(self) -> int:
        return self.conv.out_blocks // self.plan.tile.vectors

    @property
    def rounds(self) -> int:
        """Chunks, or groups, of the thread with the most."""
        return ceil((self.chunks if self.plan.split == "tiles" else self.groups) / self.unit.threads)

    @property
    def tasks(self) -> int:
        return self.rounds * (self.groups if self.plan.split == "tiles" else self.chunks)

    @property
    def group_weights(self) -> int:
        """Bytes of U for one group."""
        return self.value_bytes * self.plan.positions * self.depth * self.plan.tile.vectors * self.conv.block

    @property
    def all_inputs(self) -> int:
        """Bytes of V for all tiles."""
        return self.value_bytes * self.plan.positions * self.depth * self.plan.chunk * self.chunks

    @property
    def products(self) -> int:
        """Bytes of M."""
        return 4 * self.plan.positions * self.plan.tile.vectors * self.conv.block * self.plan.chunk

    @property
    def outer_bytes(self) -> float:
        """What a thread reads from beyond the second-level cache: weights or inputs once per round unless they fit."""
        weights, room = self.group_weights * self.groups, CACHE_SHARE * self.unit.l2_bytes
        if self.plan.split == "tiles":
            near = self.all_inputs // self.chunks + self.products
            streamed = weights * (1 if weights + near < room else self.rounds)
        else:
            near = self.products
            inputs = self.all_inputs * (1 if self.all_inputs + near < room else self.rounds)
            streamed = self.group_weights * self.rounds + inputs
        return streamed + (2 * near * self.tasks if near > room else 0)

    @property
    def product(self) -> float:
        """One step reads the broadcast rows and, if they are not in the first-level cache, the weights."""
        tile, passes = self.plan.tile, self.plan.chunk // self.plan.tile.rows
        accumulators = tile.rows * tile.vectors * self.width
        weights = self.value_bytes * tile.vectors * tile.lanes
        stay = weights * self.depth < self.unit.l1d_bytes / 2
        near = self.value_bytes * tile.rows + weights / (passes if stay else 1)
        step = self.step_cycles + near / INNER_BYTES
        return self.tasks * passes * self.plan.positions * (self.depth * step + 2 * accumulators + 20)

    @property
    def step_cycles(self) -> float:
        """Of the products of one input channel for a register tile."""
        tile = self.plan.tile
        return max(tile.rows * tile.vectors * self.width / 2, tile.rows, FMA_LATENCY)

    @property
    def transforms(self) -> float:
        if self.plan.split == "tiles":
            inputs = self.rounds * self.conv.in_blocks
        else:
            inputs = ceil(self.chunks * self.conv.in_blocks / self.unit.threads)
        outputs = self.tasks * self.plan.tile.vectors
        per_chunk = self.plan.positions * self.width * self.plan.chunk
        return per_chunk * (INPUT_CYCLES * inputs + OUTPUT_CYCLES * outputs)


class HalfEstimate(Estimate):
    """The same of float16, whose transforms compute in float32."""

    value_bytes: ClassVar[int] = 2

    @property
    def transforms(self) -> float:
        return 2 * super().transforms


def _estimate(conv: Convolution) -> type[Estimate]:
    return HalfEstimate if conv.dtype == "float16" else Estimate
