"""What stands for the kernels before and behind one that is timed alone: every thread writes or reads its part.

A line of memory is touched by one of its elements: it moves into the caches of the core whose thread has its part, as
it does in a network, where each thread has an equal part of most images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, prod
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.loops import reshaped
from nnc.lowering.kernels.registers import CACHE_LINE, Expr

Shape = tuple[int, ...]


def sums_shape(threads: int) -> Shape:
    """Of the float32 sums that `read` writes: a line of memory for each thread."""
    return threads, CACHE_LINE // 4


def write(shape: Shape, dtype: str, threads: int) -> tirx.PrimFunc:
    """A function of a float32 one [1] and an array, whose elements it multiplies with it: they stay what they are."""
    one = te.placeholder((1,), "float32", "one")

    def body(ins: list[Any], outs: list[Any]) -> Any:
        with IRBuilder() as builder:
            factor = T.buffer_proxy(ins[0])
            with _lines(outs[0], threads) as (flat, at, _):
                flat[at] = flat[at] * factor[0].astype(dtype)
            return builder.get()

    return te.create_prim_func([one, te.extern([shape], [one], body, name="write", dtype=dtype)])


def read(shape: Shape, dtype: str, threads: int) -> tirx.PrimFunc:
    """A function of an array and of sums of what is touched of it, `sums_shape`."""
    X = te.placeholder(shape, dtype, "X")

    def body(ins: list[Any], outs: list[Any]) -> Any:
        with IRBuilder() as builder:
            sums = T.buffer_proxy(outs[0])
            with _lines(ins[0], threads) as (flat, at, thread):
                sums[thread, 0] = sums[thread, 0] + flat[at].astype("float32")
            return builder.get()

    return te.create_prim_func([X, te.extern([sums_shape(threads)], [X], body, name="read", dtype="float32")])


@contextmanager
def _lines(array: Any, threads: int) -> Iterator[tuple[Any, Expr, Expr]]:
    """Emit a loop over the lines of an array, in equal parts: the array as a row, an element of each, the thread."""
    size, step = prod(map(int, array.shape)), CACHE_LINE // np.dtype(str(array.dtype)).itemsize
    share = ceil(ceil(size / step) / threads)
    with T.parallel(0, threads) as thread:
        flat = reshaped(array, (size,))
        with T.serial(0, share) as line:
            at = T.bind((thread * share + line) * step)
            with T.If(at < size), T.Then():
                yield flat, at, thread
