"""Between plain NCHW and blocked NCHW[x]c."""

from __future__ import annotations

from math import ceil
from typing import Any

from tvm import te
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.gemm import Unit, lane, lanes_of, splat

Shape = tuple[int, ...]


def blocked_shape(shape: Shape, block: int) -> tuple[int, int, int, int, int]:
    """The shape of `[n, channels, height, width]` in blocks of channels."""
    n, channels, height, width = shape
    return n, ceil(channels / block), height, width, block


def to_blocked(X: te.Tensor, shape: Shape, block: int) -> te.Tensor:
    """Plain float32 of `shape` to blocked; the channels that fill the last block are zero."""
    return te.extern(
        [blocked_shape(shape, block)],
        [X],
        lambda ins, outs: _to_blocked(ins[0], outs[0], shape, block),
        name="to_blocked",
        dtype="float32",
    )


def to_plain(X: te.Tensor, shape: Shape, block: int, unit: Unit) -> te.Tensor:
    """Blocked float32 to plain NCHW of `shape`."""
    return te.extern(
        [shape],
        [X],
        lambda ins, outs: _to_plain(T.buffer_proxy(ins[0]), outs[0], shape, block, lanes_of(unit)),
        name="to_plain",
        dtype="float32",
    )


def _to_blocked(X: Any, out: Any, shape: Shape, block: int) -> Any:
    n, channels, height, width = shape
    full, rest = divmod(channels, block)

    def rows(blocks: int, first: int, valid: int) -> None:
        with T.parallel(0, n * blocks * height) as task, T.serial(0, width) as x:
            place = (task // (blocks * height), first + task // height % blocks, task % height)
            if valid < block:
                T.buffer_proxy(out)[*place, x, lane(block)] = splat(0.0, block)
            with T.vectorized(0, valid) as k:
                T.buffer_store(out, X[place[0], place[1] * block + k, place[2], x], (*place, x, k))

    with IRBuilder() as builder:
        with T.serial(0, 1):  # the builder wants one statement at the top
            if full:
                rows(full, 0, block)
            if rest:
                rows(1, full, rest)
        return builder.get()


def _to_plain(X: Any, out: Any, shape: Shape, block: int, lanes: int) -> Any:
    n, channels, height, width = shape
    with IRBuilder() as builder:
        with T.parallel(0, n * channels * height) as task:
            image, c, y = task // (channels * height), task // height % channels, task % height

            def vector(start: Any, size: int) -> None:
                with T.vectorized(0, size) as k:
                    T.buffer_store(out, X[image, c // block, y, start + k, c % block], (image, c, y, start + k))

            with T.serial(0, width // lanes) as part:
                vector(part * lanes, lanes)
            if width % lanes:
                vector(width - width % lanes, width % lanes)
        return builder.get()
