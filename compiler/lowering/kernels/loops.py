"""Loops that every template of the movement of data needs: shared among the threads, nested, unravelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm.script.ir_builder import tirx as T

Expr = Any

TASKS = 8
"""Tasks per thread that keep the threads busy until the end."""

PARALLEL_FROM = 8192
"""Elements from which on a loop is shared among the threads: starting them takes microseconds."""


@contextmanager
def shared(tasks: int, elements: int) -> Iterator[Expr]:
    """Emit the loop over the tasks of a kernel that computes so many elements."""
    loop = T.parallel if tasks > 1 and elements >= PARALLEL_FROM else T.serial
    with loop(0, tasks) as task:
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


def reshaped(buffer: Any, shape: Sequence[int]) -> Any:
    """The same memory under another shape."""
    return T.buffer_proxy(T.decl_buffer(tuple(shape), buffer.dtype, data=buffer.data))
