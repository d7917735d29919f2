"""Winograd convolution of bytes: 3x3, stride 1, with sums in int32 that are exact.

The algorithm is that of `winograd.py`, with interpolation points 0, 1, -1, 2, -2 and with the fractions of its matrices
moved from the weights to the sums, so that all three transforms are of integers:

    L^2 Y = A'^T [ (G' g G'^T) * (B^T d B) ] A'    where G = G' / N by rows, and A'^T = A^T L / N by columns

Transformed inputs and weights fit into 16 bits, and vpmaddwd multiplies them. The sums in between may pass the limits
of int32: arithmetic modulo 2^32 is a ring, so that L^2 Y is right as soon as it fits. The odd factor of L^2 (L is 24
for 4x4 outputs, 2 for 2x2) has an inverse in that ring, and what is left is a shift.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import ceil, lcm
from typing import Any, ClassVar

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels import int8_conv2d, winograd_plan
from nnc.lowering.kernels.int8_dot import Dot, fenced
from nnc.lowering.kernels.registers import CACHE_LINE, Epilogue, Expr, lane, prefetch, scratch
from nnc.lowering.kernels.unit import Unit, dot_of
from nnc.lowering.kernels.winograd import Kernel, butterflies, cook_toom, exact
from nnc.lowering.kernels.winograd_plan import Convolution, Estimate, Plan

POINTS = {m: tuple(map(Fraction, (0, 1, -1, 2, -2)[: m + 1])) for m in (2, 4)}
"""The interpolation points beside infinity, by outputs along an axis."""


@dataclass(frozen=True)
class Transforms:
    """The matrices of F(m, 3) in integers; what the last one gives is `factor` times the outputs."""

    inputs: tuple[np.ndarray, np.ndarray]
    """Factors of B^T, the first is applied first."""
    weights: np.ndarray
    sums: tuple[np.ndarray, np.ndarray]
    """Factors of A'^T."""
    factor: int


@cache
def transforms(outputs: int) -> Transforms:
    At, G, Bt = cook_toom(outputs, POINTS[outputs])
    norms = [lcm(*(Fraction(each).denominator for each in row)) for row in G]
    signs = [-1 if next(each for each in row if each) < 0 else 1 for row in G]
    scales = exact([norm * sign for norm, sign in zip(norms, signs, strict=True)])
    factor = lcm(*norms)
    H, inverse = butterflies(outputs)
    return Transforms(
        (inverse @ Bt, H),
        (G * scales[:, None]).astype(np.int64),
        (H, At * (factor / scales) @ inverse),
        factor**2,
    )


def sizes(W: np.ndarray, zero: int) -> list[int]:
    """The m of F(m x m, 3 x 3) that are exact for int8 weights `[out, in, 3, 3]` and bytes around `zero`."""
    W = W.astype(np.int64)
    high, low = 255 - zero, -zero
    most = (np.maximum(W * high, W * low)).sum((1, 2, 3)).max(initial=0)
    least = (np.minimum(W * high, W * low)).sum((1, 2, 3)).min(initial=0)
    largest = max(most, -least)
    return [m for m in POINTS if largest * _even(transforms(m).factor) < 2**31]


def _even(factor: int) -> int:
    """The largest power of two that divides it."""
    return factor & -factor


# -- the plan


@dataclass(frozen=True)
class _Estimate(Estimate):
    """The cycles of a plan, with two input channels in every step."""

    value_bytes: ClassVar[int] = 2

    @property
    def step_cycles(self) -> float:
        return int8_conv2d.step_cycles(dot_of(self.unit), self.plan.tile.rows, self.plan.tile.vectors) / 2


def best_plan(conv: Convolution, unit: Unit, sizes: Sequence[int]) -> Plan:
    """The plan of F(m x m, 3 x 3), m one of `sizes`, with the least estimated time."""
    return min(plans(conv, unit, sizes), key=lambda plan: cycles(conv, plan, unit))


def plans(conv: Convolution, unit: Unit, sizes: Sequence[int]) -> Iterator[Plan]:
    """Those of the product of floats whose sums fit into the registers beside what is multiplied."""
    for plan in winograd_plan.plans(conv, unit, sizes):
        if dot_of(unit).fits(plan.tile.rows, plan.tile.vectors, unit.vector_registers):
            yield plan


def cycles(conv: Convolution, plan: Plan, unit: Unit) -> float:
    """The estimated time of a plan."""
    return _Estimate(conv, plan, unit).cycles


def wins(conv: Convolution, plan: Plan, direct: int8_conv2d.Int8Conv2d, unit: Unit) -> bool:
    """Whether a plan is estimated to beat the direct convolution."""
    directly = conv.batch * int8_conv2d.cycles(direct, int8_conv2d.best_plan(direct, unit).tile)
    return cycles(conv, plan, unit) < directly / unit.threads


# -- the weights


def pack(W: np.ndarray, plan: Plan) -> np.ndarray:
    """Transform int8 weights `[out, in, 3, 3]` to int16 `[group][position][pair of channels][vector][lane][2]`."""
    G, lanes, vectors = transforms(plan.outputs).weights, plan.tile.lanes, plan.tile.vectors
    out_channels, in_channels = W.shape[:2]
    groups, depth = -(-out_channels // (vectors * lanes)), -(-in_channels // lanes) * lanes
    U = np.zeros((plan.positions, depth, groups * vectors * lanes), np.int16)
    taps = W.transpose(2, 3, 1, 0).reshape(9, -1)
    U[:, :in_channels, :out_channels] = (np.kron(G, G) @ taps).reshape(plan.positions, in_channels, out_channels)
    pairs = U.reshape(plan.positions, depth // 2, 2, groups, vectors, lanes).transpose(3, 0, 1, 4, 5, 2)
    return np.ascontiguousarray(pairs).reshape(groups, plan.positions, depth // 2, vectors, 2 * lanes)


def packed_shape(conv: Convolution, plan: Plan) -> tuple[int, ...]:
    """The shape of `pack`'s result."""
    tile = plan.tile
    return (
        conv.out_blocks // tile.vectors,
        plan.positions,
        conv.in_blocks * conv.block // 2,
        tile.vectors,
        2 * tile.lanes,
    )


# -- the kernel


def compute(
    X: te.Tensor,
    U: te.Tensor,
    conv: Convolution,
    zero: int,
    dot: Dot,
    plan: Plan,
    dtype: str,
    extras: Sequence[te.Tensor],
    epilogue: Epilogue,
) -> te.Tensor:
    """`epilogue(conv(X - zero, W))` as `dtype` `[batch, out block, out height, out width, lane]`.

    `X` holds bytes `[batch, in block, height, width, lane]`, `U` the packed weights; the epilogue gets int32 sums.
    """
    kernel = _Kernel(conv, plan, epilogue, "int16", "int32", zero, dot)
    return te.extern(
        [(conv.batch, conv.out_blocks, *conv.out_size, conv.block)],
        [X, U, *extras],
        lambda ins, outs: kernel.body(ins[0], T.buffer_proxy(ins[1]), outs[0]),
        name="int8_winograd",
        dtype=dtype,
    )


@dataclass(frozen=True)
class _Kernel(Kernel):
    """Emits the loops of one convolution of bytes."""

    zero: int = 0
    dot: Dot | None = None

    @property
    def transforms(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        found = transforms(self.plan.outputs)
        return found.inputs, found.sums

    def _value(self, loaded: Expr) -> Expr:
        wide = loaded.astype(f"int16x{self.conv.block}")
        return wide - T.broadcast(tirx.const(self.zero, "int16"), self.conv.block) if self.zero else wide

    def _multiply(self, V: Any, U: Any, M: Any, chunk: Expr, group: Expr) -> None:
        """M = the products of a chunk of tiles with a group of output channels."""
        tile, index = self.plan.tile, lane(self.conv.block)
        with T.serial(0, self.plan.positions) as p, T.serial(0, self.plan.chunk // tile.rows) as part:
            row = T.bind(part * tile.rows)
            sums = [[scratch(tile.lanes, dtype="int32") for _ in range(tile.vectors)] for _ in range(tile.rows)]
            for total in (total for totals in sums for total in totals):
                total[index] = T.broadcast(tirx.const(0, "int32"), tile.lanes)
            with T.serial(0, self.conv.in_blocks) as i, T.serial(0, tile.lanes // 2) as j:
                self._step(V, U, sums, (chunk, p, i), row, (group, p, i * (tile.lanes // 2) + j), j)
                self._fetch_next_pair(U, group, p, part, i * (tile.lanes // 2) + j)
            for r, totals in enumerate(sums):
                for c, total in enumerate(totals):
                    M[row + r, c, p, index] = total[index]

    def _step(
        self, V: Any, U: Any, sums: list[list[Any]], inputs: Sequence[Expr], row: Expr, weights: Sequence[Expr], j: Expr
    ) -> None:
        """Add the products of two input channels."""
        assert self.dot is not None
        index, lanes = lane(self.conv.block), self.plan.tile.lanes
        read = [T.bind(U[(*weights, c, lane(2 * lanes))]) for c in range(self.plan.tile.vectors)]
        for r, totals in enumerate(sums):

            def load(first: int, count: int, r: int = r) -> Expr:
                return V[(*inputs, row + r, T.ramp(2 * j + first, 1, count))]

            values = self.dot.spread(load)
            for total, weight in zip(totals, read, strict=True):
                total[index] = self.dot.add(total[index], values, [weight])

    def _fetch_next_pair(self, U: Any, group: Expr, p: Expr, part: Expr, pair: Expr) -> None:
        """Prefetch the weights of the next position, an equal share in each pass over the present ones."""
        tile, pairs = self.plan.tile, self.conv.in_blocks * self.plan.tile.lanes // 2
        share = ceil(2 * tile.vectors * tile.lanes / (self.plan.chunk // tile.rows))
        for line in range(ceil(share * 2 / CACHE_LINE)):
            prefetch(U, (group, p + 1, 0, 0, (part * pairs + pair) * share + line * (CACHE_LINE // 2)))

    def _finished(self, transformed: Expr) -> Expr:
        factor, lanes = transforms(self.plan.outputs).factor, self.conv.block
        even = _even(factor)
        inverse = np.int64(pow(factor // even, -1, 2**32)).astype(np.int32)
        whole = transformed * T.broadcast(tirx.const(int(inverse), "int32"), lanes) if even != factor else transformed
        # LLVM takes it for granted that sums don't overflow, and must not conclude anything from that about the shift.
        return fenced(whole, lanes) >> T.broadcast(tirx.const(even.bit_length() - 1, "int32"), lanes)
