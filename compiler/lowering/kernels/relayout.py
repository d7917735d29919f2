"""Between plain NCHW and blocked NCHW[x]c: transposes in registers of tiles of x channels by x pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.loops import reshaped, shared, unravel
from nnc.lowering.kernels.registers import Expr, lane
from nnc.lowering.kernels.unit import Unit, lanes_of

Shape = tuple[int, ...]

TILES = 16
"""Tiles per task."""


def blocked_shape(shape: Shape, block: int) -> tuple[int, int, int, int, int]:
    """The shape of `[n, channels, height, width]` in blocks of channels."""
    n, channels, height, width = shape
    return n, ceil(channels / block), height, width, block


def to_blocked(X: te.Tensor, shape: Shape, block: int) -> te.Tensor:
    """Plain floats or bytes of `shape` to blocked; the channels that fill the last block are zero."""
    return te.extern(
        [blocked_shape(shape, block)],
        [X],
        lambda ins, outs: _body(ins[0], outs[0], shape, block, _tile_to_blocked, _pixel_to_blocked),
        name="to_blocked",
        dtype=str(X.dtype),
    )


def to_plain(X: te.Tensor, shape: Shape, block: int, unit: Unit) -> te.Tensor:
    """Blocked floats or bytes to plain NCHW of `shape`."""
    return te.extern(
        [shape],
        [X],
        lambda ins, outs: _body(outs[0], ins[0], shape, block, _tile_to_plain, _pixel_to_plain),
        name="to_plain",
        dtype=str(X.dtype),
    )


Move = Callable[[Any, Any, tuple[Expr, Expr, Expr], int, int], None]


def _body(plain: Any, blocked: Any, shape: Shape, block: int, move_tile: Move, move_pixel: Move) -> Any:
    """Move every block of channels in tiles of `block` pixels, or one by one where an image has fewer pixels.

    The last tile ends with the image: it may move pixels again that the tile before has moved.
    """
    n, channels, height, width = shape
    pixels, blocks = height * width, ceil(channels / block)
    move, steps = (move_tile, ceil(pixels / block)) if pixels >= block else (move_pixel, pixels)
    parts = ceil(steps / TILES)
    with IRBuilder() as builder:
        with shared(n * blocks * parts, n * channels * pixels) as task:
            rows = reshaped(plain, (n, channels, pixels))
            columns = reshaped(blocked, (n, blocks, pixels, block))
            image, group = T.bind(task // (blocks * parts)), T.bind(task // parts % blocks)
            first = T.bind(task % parts * TILES)
            with T.serial(first, tirx.min(first + TILES, steps)) as step:
                pixel = T.bind(tirx.min(step * block, pixels - block)) if pixels >= block else step
                place = image, group, pixel
                if channels % block == 0:
                    move(rows, columns, place, block, block)
                else:
                    with T.If(group < blocks - 1):
                        with T.Then():
                            move(rows, columns, place, block, block)
                        with T.Else():
                            move(rows, columns, place, block, channels % block)
        return builder.get()


def _tile_to_blocked(rows: Any, columns: Any, place: tuple[Expr, Expr, Expr], block: int, valid: int) -> None:
    image, group, pixel = place
    along = T.ramp(pixel, 1, block)
    read = [T.bind(rows[image, group * block + c, along]) for c in range(valid)]
    read += [_zeros(columns, block)] * (block - valid)
    for p, vector in enumerate(transposed(read)):
        columns[image, group, pixel + p, lane(block)] = vector


def _zeros(like: Any, count: int) -> Expr:
    return T.broadcast(tirx.const(0, like.dtype), count)


def _tile_to_plain(rows: Any, columns: Any, place: tuple[Expr, Expr, Expr], block: int, valid: int) -> None:
    image, group, pixel = place
    read = [T.bind(columns[image, group, pixel + p, lane(block)]) for p in range(block)]
    for c, vector in enumerate(transposed(read)[:valid]):
        rows[image, group * block + c, T.ramp(pixel, 1, block)] = vector


def _pixel_to_blocked(rows: Any, columns: Any, place: tuple[Expr, Expr, Expr], block: int, valid: int) -> None:
    image, group, pixel = place
    if valid < block:
        columns[image, group, pixel, lane(block)] = _zeros(columns, block)
    with T.vectorized(0, valid) as k:
        columns[image, group, pixel, k] = rows[image, group * block + k, pixel]


def _pixel_to_plain(rows: Any, columns: Any, place: tuple[Expr, Expr, Expr], block: int, valid: int) -> None:
    image, group, pixel = place
    with T.vectorized(0, valid) as k:
        rows[image, group * block + k, pixel] = columns[image, group, pixel, k]


def transpose(X: te.Tensor, order: Sequence[int], unit: Unit) -> te.Tensor:
    """`X` of 32-bit elements with its axes in another order, in which the last one is not the last.

    Tiles lie across the last axes of the two sides, which both have at least as many elements as a register.
    """
    sizes = [int(size) for size in X.shape]
    return te.extern(
        [[sizes[axis] for axis in order]],
        [X],
        lambda ins, outs: _transpose(T.buffer_proxy(ins[0]), T.buffer_proxy(outs[0]), sizes, order, lanes_of(unit)),
        name="transpose",
        dtype=str(X.dtype),
    )


def _transpose(X: Any, out: Any, sizes: Sequence[int], order: Sequence[int], size: int) -> Any:
    source, target = len(sizes) - 1, order[-1]  # the axes of X along which rows of a tile are read, and written
    tiles = [ceil(n / size) if axis in (source, target) else n for axis, n in enumerate(sizes)]
    outer = [axis for axis in order if axis != target]
    with IRBuilder() as builder:
        with shared(prod(tiles[axis] for axis in outer), prod(sizes)) as task:
            place = dict(zip(outer, unravel(task, [tiles[axis] for axis in outer]), strict=True))
            place[source] = T.bind(tirx.min(place[source] * size, sizes[source] - size))
            with T.serial(0, tiles[target]) as step:
                place[target] = T.bind(tirx.min(step * size, sizes[target] - size))

                def at(axis: int, offset: int) -> dict[int, Expr]:
                    """The place of a row of the tile that lies `offset` down an axis, along the other."""
                    along = source if axis == target else target
                    return place | {axis: place[axis] + offset, along: T.ramp(place[along], 1, size)}

                rows = [T.bind(X[tuple(at(target, j)[axis] for axis in range(len(sizes)))]) for j in range(size)]
                for i, row in enumerate(transposed(rows)):
                    out[tuple(at(source, i)[axis] for axis in order)] = row
        return builder.get()


def transposed(vectors: Sequence[Expr]) -> list[Expr]:
    """The columns of a square of vectors, in log2(size) rounds.

    Round k swaps, within every square of 2^(k + 1), the quarters above and below the diagonal (Eklundh, "A Fast
    Computer Method for Matrix Transposing", 1972).
    """
    rows, size, step = list(vectors), len(vectors), 1
    while step < size:
        keep = [j if not j & step else size + j - step for j in range(size)]
        swap = [j + step if not j & step else size + j for j in range(size)]
        for i in (i for i in range(size) if not i & step):
            pair = [rows[i], rows[i + step]]
            rows[i], rows[i + step] = (T.bind(tirx.Shuffle(pair, lanes)) for lanes in (keep, swap))
        step *= 2
    return rows
