"""Winograd convolution: 3x3, stride 1, float32 or float16, in blocked layout NCHW[x]c.

    Y = A^T [ (G g G^T) * (B^T d B) ] A        Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016

F(m x m, 3 x 3) computes a tile of m x m outputs from n x n inputs, n = m + 2, with n^2 multiplications per channel
pair where the direct convolution needs 9 m^2: 4 times fewer for m = 4, 2.25 times for m = 2. The weights G g G^T are
computed at compile time in float64.

A chunk of tiles goes through all three phases while it is in the second-level cache:

    input transform    V[chunk][position][channel block][tile][lane] = B^T d B, padding handled here
    product            M[tile][vector][position][lane]               = sum over input channels of V * U, per position
    output transform   out[n][channel block][y][x][lane]             = epilogue(A^T M A)

Threads share the work by chunks of tiles, or, where there are few tiles and many weights, by groups of output channels,
so that each weight is read once.

Of float16, what is multiplied is float16, and the transforms compute in float32. What F(4x4) loses is three times what
the direct convolution does, because transforms make errors larger; a quarter of HALF_DEPTH is added up in float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import ceil, prod
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.registers import (
    CACHE_LINE,
    HALF_DEPTH,
    Epilogue,
    Expr,
    accumulate,
    as_float,
    lane,
    prefetch,
    scratch,
    store,
    when,
)
from nnc.lowering.kernels.winograd_plan import POINTS, Convolution, Plan, best_plan, cycles, plans, wins

__all__ = ["Convolution", "Plan", "best_plan", "compute", "cycles", "pack", "packed_shape", "plans", "wins"]

# -- the transforms


def exact(rows: Any) -> np.ndarray:
    """A matrix of fractions."""
    return np.vectorize(Fraction, otypes=[object])(np.array(rows, dtype=object))


def cook_toom(outputs: int, points: Sequence[Fraction]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T `[m, n]`, G `[n, 3]` and B^T `[n, n]` of F(m, 3), as exact fractions, for n - 1 points and infinity."""
    others = [[q for q in points if q != p] for p in points]
    norms = [prod(p - q for q in rest) for p, rest in zip(points, others, strict=True)]
    At = [[p**i for p in points] + [int(i == outputs - 1)] for i in range(outputs)]
    G = [[p**i / norm for i in range(3)] for p, norm in zip(points, norms, strict=True)] + [[0, 0, 1]]
    Bt = [[*_monic(rest), 0] for rest in others] + [_monic(points)]
    return exact(At), exact(G), exact(Bt)


def _monic(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients, lowest first, of the polynomial with these roots."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [s - root * c for s, c in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


@cache
def transforms(outputs: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The input and the output transform of F(m, 3), each as two sparse factors (the first is applied first), and G.

    The factor that both share adds and subtracts the pairs (a, -a): B^T = H (H^-1 B^T), A^T = (A^T H^-1) H.
    """
    At, G, Bt = cook_toom(outputs, POINTS[outputs])
    H, inverse = butterflies(outputs)
    return (inverse @ Bt, H), (H, At @ inverse), G.astype(np.float64)


def butterflies(outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrix that adds and subtracts the pairs of F(m, 3), and its inverse."""
    H = exact(np.eye(outputs + 2, dtype=int))
    for i in range(1, outputs + 1, 2):
        H[i : i + 2, i : i + 2] = exact([[1, 1], [1, -1]])
    return H, H / abs(H).sum(axis=1)  # H is symmetric and its square is diagonal


def apply(factors: Sequence[np.ndarray], vectors: Sequence[Expr], lanes: int) -> list[Expr]:
    """Emit the product of constant matrices with a column of vectors."""
    for matrix in factors:
        vectors = [T.bind(_combination(row, vectors, lanes)) for row in matrix]
    return list(vectors)


def _combination(row: np.ndarray, vectors: Sequence[Expr], lanes: int) -> Expr:
    """The sum of coefficient * vector; terms with coefficient 1 come first, the others become multiply-adds."""

    def constant(c: Fraction) -> Expr:
        kind = str(vectors[0].ty.dtype).partition("x")[0]
        return T.broadcast(tirx.const(float(c) if kind == "float32" else int(c), kind), lanes)

    terms = sorted(((c, x) for c, x in zip(row, vectors, strict=True) if c), key=lambda term: term[0] != 1)
    (c, x), *rest = terms
    total = x if c == 1 else constant(c) * x
    for c, x in rest:
        term = x if abs(c) == 1 else x * constant(abs(c))
        total = total + term if c > 0 else total - term
    return total


# -- the weights


def pack(W: np.ndarray, plan: Plan) -> np.ndarray:
    """Transform weights `[out, in, 3, 3]` to `[group][position][in channel][block][lane]`, in reading order.

    The result is float32, or float16 of float16.
    """
    _, _, G = transforms(plan.outputs)
    block, group = plan.tile.lanes, plan.tile.vectors * plan.tile.lanes
    out_channels, in_channels = W.shape[:2]
    groups, rows = -(-out_channels // group), -(-in_channels // block) * block
    U = np.zeros((plan.positions, rows, groups * group), np.float16 if W.dtype == np.float16 else np.float32)
    taps = W.astype(np.float64).transpose(2, 3, 1, 0).reshape(9, -1)
    U[:, :in_channels, :out_channels] = (np.kron(G, G) @ taps).reshape(plan.positions, in_channels, out_channels)
    tiled = U.reshape(plan.positions, rows, groups, plan.tile.vectors, block)
    return np.ascontiguousarray(tiled.transpose(2, 0, 1, 3, 4))


def packed_shape(conv: Convolution, plan: Plan) -> tuple[int, int, int, int, int]:
    """The shape of `pack`'s result."""
    groups = conv.out_blocks // plan.tile.vectors
    return groups, plan.positions, conv.in_blocks * conv.block, plan.tile.vectors, conv.block


# -- the kernel


def compute(
    X: te.Tensor,
    U: te.Tensor,
    conv: Convolution,
    plan: Plan,
    extras: Sequence[te.Tensor] = (),
    epilogue: Epilogue = lambda value, index: value,
    dtype: str = "float32",
) -> te.Tensor:
    """`epilogue(conv(X, W))` as `dtype` `[batch, out block, out height, out width, lane]`.

    `X` is `[batch, in block, height, width, lane]`, `U` the packed weights, `extras` the tensors that the
    epilogue closes over, and `epilogue(value, (n, block, y, x, lane))` a scalar expression.
    """
    shape = (conv.batch, conv.out_blocks, *conv.out_size, conv.block)
    kernel = Kernel(conv, plan, epilogue, conv.dtype)
    return te.extern(
        [shape],
        [X, U, *extras],
        lambda ins, outs: kernel.body(ins[0], ins[1], outs[0]),
        name="winograd",
        dtype=dtype,
    )


@dataclass(frozen=True)
class Kernel:
    """Emits the loops of one convolution. V, M and tmp are the scratch buffers of the module's docstring."""

    conv: Convolution
    plan: Plan
    epilogue: Epilogue
    inputs: str = "float32"
    """Type of V."""
    sums: str = "float32"
    """Type of M."""

    @property
    def transforms(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """The factors of the input and of the output transform."""
        return transforms(self.plan.outputs)[:2]

    @property
    def transformed(self) -> str:
        """Type that inputs are transformed in."""
        return "float32" if self.inputs == "float16" else self.inputs

    @property
    def tiles(self) -> int:
        return self.conv.all_tiles(self.plan.outputs)

    @property
    def chunks(self) -> int:
        return -(-self.tiles // self.plan.chunk)

    def body(self, X: Any, U: Any, out: Any) -> Any:
        with IRBuilder() as builder:
            with T.serial(0, 1):  # the builder wants one statement at the top
                (self._split_tiles if self.plan.split == "tiles" else self._split_channels)(X, U, out)
            return builder.get()

    def _split_tiles(self, X: Any, U: Any, out: Any) -> None:
        chunk = self.plan.chunk
        with T.parallel(0, self.chunks) as part:
            V, M = self._inputs(1), self._products()
            before = self._square(self.transformed)
            behind = before if self.transformed == self.sums else self._square(self.sums)
            with T.serial(0, self.conv.in_blocks) as block, T.serial(0, chunk) as slot:
                self._input_tile(X, V, before, part * chunk + slot, (0, slot), block)
            with T.serial(0, packed_shape(self.conv, self.plan)[0]) as group:
                self._multiply(V, U, M, 0, group)
                self._output_chunk(M, out, behind, part, group)

    def _split_channels(self, X: Any, U: Any, out: Any) -> None:
        chunk = self.plan.chunk
        V = self._inputs(self.chunks)
        with T.parallel(0, self.conv.in_blocks * self.chunks) as task:
            tmp = self._square(self.transformed)
            part, block = T.bind(task % self.chunks), T.bind(task // self.chunks)
            with T.serial(0, chunk) as slot:
                self._input_tile(X, V, tmp, part * chunk + slot, (part, slot), block)
        with T.parallel(0, packed_shape(self.conv, self.plan)[0]) as group:
            M, tmp = self._products(), self._square(self.sums)
            with T.serial(0, self.chunks) as part:
                self._multiply(V, U, M, part, group)
                self._output_chunk(M, out, tmp, part, group)

    def _inputs(self, chunks: int) -> Any:
        shape = (chunks, self.plan.positions, self.conv.in_blocks, self.plan.chunk, self.conv.block)
        return scratch(*shape, dtype=self.inputs)

    def _products(self) -> Any:
        return scratch(self.plan.chunk, self.plan.tile.vectors, self.plan.positions, self.conv.block, dtype=self.sums)

    def _square(self, dtype: str) -> Any:
        size = self.plan.outputs + 2
        return scratch(size, size, self.conv.block, dtype=dtype)

    def _origin(self, t: Expr) -> list[Expr]:
        """Image, first row and first column of the outputs of a tile."""
        rows, columns = self.conv.tiles(self.plan.outputs)
        m = self.plan.outputs
        return [T.bind(e) for e in (t // (rows * columns), t // columns % rows * m, t % columns * m)]

    def _exists(self, t: Expr) -> Expr | None:
        return t < self.tiles if self.tiles % self.plan.chunk else None

    def _input_tile(self, X: Any, V: Any, tmp: Any, t: Expr, place: tuple[Expr, Expr], block: Expr) -> None:
        """V[chunk, :, block, tile] = B^T d B: a row of inputs at a time, then columns."""
        size, lanes = self.plan.outputs + 2, self.conv.block
        factors, index = self.transforms[0], lane(lanes)
        with when(self._exists(t)):
            n, y, x = self._origin(t)
            with T.serial(0, size) as i:
                row = self._input_row(X, n, block, T.bind(y - self.conv.pads[0] + i), T.bind(x - self.conv.pads[1]))
                for j, value in enumerate(apply(factors, row, lanes)):
                    tmp[i, j, index] = value
            with T.serial(0, size) as j:
                column = [T.bind(tmp[i, j, index]) for i in range(size)]
                for i, value in enumerate(apply(factors, column, lanes)):
                    V[place[0], i * size + j, block, place[1], index] = value.astype(f"{self.inputs}x{lanes}")

    def _input_row(self, X: Any, n: Expr, block: Expr, y: Expr, x: Expr) -> list[Expr]:
        """The inputs (y, x), (y, x + 1), ..., zero outside of the image; only what can be outside is tested."""
        conv, m = self.conv, self.plan.outputs
        last = (conv.tiles(m)[1] - 1) * m - conv.pads[1]  # the first column of the last tile
        inside = T.bind(tirx.all(y >= 0, y < conv.height))

        def load(j: int) -> Expr:
            tests = [inside]
            tests += [x + j >= 0] if j < conv.pads[1] else []
            tests += [x + j < conv.width] if last + j >= conv.width else []
            value = T.buffer_proxy(X)[n, block, y, x + j, lane(conv.block)]
            return T.bind(tirx.if_then_else(tirx.all(*tests), self._value(value), self._zero()))

        return [load(j) for j in range(m + 2)]

    def _value(self, loaded: Expr) -> Expr:
        """A vector of the input as it is transformed."""
        return as_float(loaded, self.conv.block)

    def _zero(self) -> Expr:
        return T.broadcast(tirx.const(0, self.transformed), self.conv.block)

    def _multiply(self, V: Any, U: Any, M: Any, chunk: Expr, group: Expr) -> None:
        """M = the products of a chunk of tiles with a group of output channels."""
        tile, index = self.plan.tile, lane(self.conv.block)
        passes = self.plan.chunk // tile.rows
        with T.serial(0, self.plan.positions) as p, T.serial(0, passes) as part:
            row = T.bind(part * tile.rows)
            sums = accumulate(
                tile,
                (self.conv.in_blocks, tile.lanes),
                left=lambda r, i, j: V[chunk, p, i, row + r, j],
                right=lambda c, i, j: T.buffer_proxy(U)[group, p, i * tile.lanes + j, c, index],
                ahead=lambda i, j: self._fetch_next(U, group, p, part, i * tile.lanes + j),
                halves=HALF_DEPTH // 4 // tile.lanes if self.inputs == "float16" else None,
            )
            for r in range(tile.rows):
                for c in range(tile.vectors):
                    M[row + r, c, p, index] = sums[r][c]

    def _fetch_next(self, U: Any, group: Expr, p: Expr, part: Expr, k: Expr) -> None:
        """Prefetch the weights of the next position, an equal share in each pass over the present ones."""
        _, _, depth, vectors, lanes = packed_shape(self.conv, self.plan)
        share, size = ceil(vectors * lanes / (self.plan.chunk // self.plan.tile.rows)), np.dtype(self.inputs).itemsize
        for line in range(ceil(share * size / CACHE_LINE)):
            offset = (part * depth + k) * share + line * (CACHE_LINE // size)
            prefetch(U, (group, p + 1, 0, 0, offset))

    def _output_chunk(self, M: Any, out: Any, tmp: Any, part: Expr, group: Expr) -> None:
        vectors, chunk = self.plan.tile.vectors, self.plan.chunk
        with T.serial(0, vectors) as vector, T.serial(0, chunk) as slot:
            self._output_tile(M, out, tmp, part * chunk + slot, slot, vector, group * vectors + vector)

    def _output_tile(self, M: Any, out: Any, tmp: Any, t: Expr, slot: Expr, vector: Expr, block: Expr) -> None:
        """out = epilogue(A^T M A): columns first, then a row of outputs at a time."""
        m, lanes = self.plan.outputs, self.conv.block
        size, factors, index = m + 2, self.transforms[1], lane(lanes)
        (height, width), (_, columns) = self.conv.out_size, self.conv.tiles(m)
        with when(self._exists(t)):
            n, y, x = self._origin(t)
            with T.serial(0, size) as j:
                column = [T.bind(M[slot, vector, i * size + j, index]) for i in range(size)]
                for i, value in enumerate(apply(factors, column, lanes)):
                    tmp[i, j, index] = value
            with T.serial(0, m) as i, when(y + i < height if height % m else None):
                row = [T.bind(tmp[i, j, index]) for j in range(size)]
                for j, value in enumerate(apply(factors, row, lanes)):
                    with when(x + j < width if (columns - 1) * m + j >= width else None):
                        index = (n, block, y + i, x + j, 0)
                        store(out, self._finished(value), index, lanes, self.epilogue, dtype=self.sums)

    def _finished(self, transformed: Expr) -> Expr:
        """The outputs, of the output transform's."""
        return transformed
