"""The k best elements of each slice, in order: a heap of the best so far, whose root is the worst of them.

Elements are compared by value and then by place, so that equal ones keep their order. Slices are shared among the
threads; one slice is one loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.loops import shared
from nnc.lowering.kernels.registers import Expr, scratch


def compute(X: te.Tensor, count: int, largest: bool) -> list[te.Tensor]:
    """The best of `[outer, n, inner]` along n, and their places as int64: both `[outer, count, inner]`."""
    shape = (X.shape[0], count, X.shape[2])

    def body(ins: list[Any], outs: list[Any]) -> Any:
        values, places = map(T.buffer_proxy, outs)
        return _body(T.buffer_proxy(ins[0]), values, places, count, largest)

    return list(te.extern([shape, shape], [X], body, name="topk", dtype=[str(X.dtype), "int64"]))


def _body(X: Any, values: Any, places: Any, count: int, largest: bool) -> Any:
    outer, length, inner = (int(size) for size in X.shape)
    with IRBuilder() as builder:
        with shared(outer * inner, outer * inner * length) as task:
            o, i = T.bind(task // inner), T.bind(task % inner)
            held, found = (scratch(count, dtype=dtype) for dtype in (str(X.dtype), "int32"))
            heap = _Heap(held, found, largest)
            with T.serial(0, count) as k:
                heap.put(k, X[o, k, i], k)
            with T.serial(0, count // 2) as k:
                heap.sink(count // 2 - 1 - k, count)
            with T.serial(count, length) as k, T.If(heap.better(X[o, k, i], k, 0)), T.Then():
                heap.put(0, X[o, k, i], k)
                heap.sink(0, count)
            with T.serial(0, count) as k:
                last = T.bind(count - 1 - k)
                values[o, last, i] = heap.values[0]
                places[o, last, i] = heap.places[0].astype("int64")
                heap.put(0, heap.values[last], heap.places[last])
                heap.sink(0, last)
        return builder.get()


@dataclass(frozen=True)
class _Heap:
    """Emits the steps of a binary heap in two local buffers: no element is better than those below it."""

    values: Any
    places: Any
    largest: bool

    def put(self, node: Expr, value: Expr, place: Expr) -> None:
        self.values[node] = value
        self.places[node] = place

    def better(self, value: Expr, place: Expr, node: Expr) -> Expr:
        """Whether an element is better than that of a node."""
        other = self.values[node]
        wins = value > other if self.largest else value < other
        return tirx.any(wins, tirx.all(value == other, place < self.places[node]))

    def sink(self, start: Expr, size: Expr) -> None:
        """Let an element sink below those that are worse, of the first `size`."""
        node = scratch(1, dtype="int32")
        node[0] = start
        with T.While(node[0] * 2 + 1 < size):
            top, left = T.bind(node[0]), T.bind(node[0] * 2 + 1)
            right = T.bind(tirx.min(left + 1, size - 1))
            below = T.bind(tirx.Select(self.better(self.values[left], self.places[left], right), right, left))
            value, place = T.bind(self.values[top]), T.bind(self.places[top])
            with T.If(self.better(value, place, below)):
                with T.Then():
                    self.put(top, self.values[below], self.places[below])
                    self.put(below, value, place)
                    node[0] = below
                with T.Else():
                    node[0] = size
