"""Loops that every template of the movement of data needs: shared among the threads, nested, unravelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import ceil, prod
from typing import Any

from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.registers import Expr
from nnc.lowering.kernels.unit import Unit, lanes_of

TASKS_LOOP = "nnc.tasks"
"""The mark of a loop over tasks that is too short to be shared on a CPU, and is shared on a GPU."""

TASKS = 8
"""Tasks per thread that keep the threads busy until the end."""

PARALLEL_FROM = 8192
"""Elements from which on a loop is shared among the threads: starting them takes microseconds."""


@contextmanager
def shared(tasks: int, elements: int) -> Iterator[Expr]:
    """Emit the loop over the tasks of a kernel that computes so many elements."""
    large = tasks > 1 and elements >= PARALLEL_FROM
    with T.parallel(0, tasks) if large else T.serial(0, tasks, annotations={TASKS_LOOP: 1}) as task:
        yield task


@contextmanager
def nest(sizes: Sequence[int]) -> Iterator[list[Expr]]:
    """Emit nested serial loops."""
    with ExitStack() as stack:
        yield [stack.enter_context(T.serial(0, size)) for size in sizes]


def unravel(index: Expr, shape: Sequence[int]) -> list[Expr]:
    """The place in an array of `shape` that an index of its elements stands for."""
    place = []
    for size in list(shape)[:0:-1]:
        place.append(T.bind(index % size))
        index = T.bind(index // size)
    return [*([index] if shape else []), *place[::-1]]


def vectors(start: Expr, size: int, end: int, lanes: int, emit: Callable[[Expr, int], None]) -> None:
    """Emit `emit(first, lanes)` for the elements from `start` on, `size` of them or as many as there are up to `end`.

    The pieces of all tasks but the last have the same size, which is a multiple of the lanes.
    """

    def piece(count: int) -> None:
        if count >= lanes:
            with T.serial(0, count // lanes) as step:
                emit(T.bind(start + step * lanes), lanes)
        if count % lanes:
            emit(start + (count - count % lanes), count % lanes)

    if end % size == 0:
        piece(size)
    else:
        with T.If(start + size <= end):
            with T.Then():
                piece(size)
            with T.Else():
                piece(end % size)


def copy(source: Any, result: Any, shape: Sequence[int], unit: Unit) -> None:
    """Emit the copy of a whole array."""
    length, lanes = prod(shape), lanes_of(unit)
    chunk = min(length, lanes * ceil(length / (TASKS * unit.threads) / lanes))
    with shared(ceil(length / chunk), length) as part:
        flat, target = reshaped(source, (length,)), reshaped(result, (length,))

        def store(start: Expr, width: int) -> None:
            with T.vectorized(0, width) as lane:
                target[start + lane] = flat[start + lane]

        vectors(T.bind(part * chunk), chunk, length, lanes, store)


def reshaped(buffer: Any, shape: Sequence[int]) -> Any:
    """The same memory under another shape."""
    return T.buffer_proxy(T.decl_buffer(tuple(shape), buffer.dtype, data=buffer.data))
