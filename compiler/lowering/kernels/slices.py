"""Computations over slices of an array: sums, maxima, softmax, normalization, wherever the slices lie.

Each axis is either *reduced*, part of a slice, or *kept*. A task takes one slice, or, where the last axis is kept, as
many neighbouring slices as fill a few registers. Either way the innermost loop is over neighbouring elements: along a
slice the results of the lanes are combined at the end, across slices every lane has a result of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.loops import nest, shared, unravel
from nnc.lowering.kernels.registers import Expr, scratch
from nnc.lowering.kernels.unit import Unit, lanes_of

Index = list[Expr]
Combine = Callable[[Expr, Expr], Expr]
Program = Callable[["Slice", Sequence[Any], Sequence[Any]], None]

REGISTERS = 4  # per step, so that as many sums are in flight


@dataclass(frozen=True)
class Slices:
    """The axes of an array, and which of them are reduced."""

    sizes: tuple[int, ...]
    reduced: tuple[bool, ...]

    @property
    def across(self) -> bool:
        """Whether neighbouring elements belong to different slices."""
        return not self.reduced[-1]

    @property
    def kept(self) -> tuple[int, ...]:
        """The sizes of the kept axes."""
        return tuple(size for size, reduced in zip(self.sizes, self.reduced, strict=True) if not reduced)

    @property
    def length(self) -> int:
        """Elements of a slice."""
        return prod(self.sizes) // prod(self.kept)

    def width(self, lanes: int) -> int:
        """Lanes of a step: whole registers along a slice, no more than there are across slices."""
        registers = REGISTERS
        while registers > 1 and registers * lanes > self.sizes[-1]:
            registers //= 2
        return min(lanes * registers, self.sizes[-1]) if self.across else lanes * registers


def compute(
    operands: Sequence[te.Tensor],
    slices: Slices,
    unit: Unit,
    results: Sequence[tuple[tuple[int, ...], str]],
    program: Program,
) -> list[te.Tensor]:
    """Arrays of the shapes and types `results`, written by `program(slice, operands, results)` for every task."""
    made = te.extern(
        [shape for shape, _ in results],
        list(operands),
        lambda ins, outs: _body(slices, unit, [*map(T.buffer_proxy, ins)], [*map(T.buffer_proxy, outs)], program),
        name="slices",
        dtype=[dtype for _, dtype in results],
    )
    return [made] if isinstance(made, te.Tensor) else list(made)


def _body(slices: Slices, unit: Unit, ins: Sequence[Any], outs: Sequence[Any], program: Program) -> Any:
    width = slices.width(lanes_of(unit))
    kept = slices.kept[:-1] if slices.across else slices.kept
    steps, rest = divmod(slices.sizes[-1], width) if slices.across else (1, 0)
    parts = steps + (rest > 0)
    with IRBuilder() as builder:
        with shared(prod(kept) * parts, prod(slices.sizes)) as task:
            place = tuple(unravel(T.bind(task // parts), kept))
            part = T.bind(task % parts)

            def emit(lanes: int) -> None:
                program(Slice(slices, place, T.bind(part * width), lanes), ins, outs)

            if not rest:
                emit(width)
            else:
                with T.If(part < steps):
                    with T.Then():
                        emit(width)
                    with T.Else():
                        emit(rest)
        return builder.get()


@dataclass(frozen=True)
class Stat:
    """A value per slice."""

    held: Any
    across: bool

    def __getitem__(self, lane: Expr) -> Expr:
        """Of the slice that a lane belongs to."""
        return self.held[lane if self.across else 0]


@dataclass(frozen=True)
class Slice:
    """The slices of one task: emits loops over their elements."""

    slices: Slices
    place: tuple[Expr, ...]
    """Of the kept axes, without the last where that is across."""
    start: Expr
    """Across: the first of the neighbouring slices."""
    lanes: int
    """Of a step."""

    def each(self, function: Callable[[Index, Expr], None]) -> None:
        """Emit `function(index, lane)` for every element."""
        sizes, last = self.slices.sizes, len(self.slices.sizes) - 1
        summed = [axis for axis in range(last) if self.slices.reduced[axis]]
        with nest([sizes[axis] for axis in summed]) as inner:
            kept, loops = iter(self.place), iter(inner)
            front = [next(loops) if axis in summed else next(kept) for axis in range(last)]

            def vector(start: Expr, lanes: int) -> None:
                with T.vectorized(0, lanes) as lane:
                    function([*front, start + lane], lane)

            if self.slices.across:
                vector(self.start, self.lanes)
                return
            steps, rest = divmod(sizes[last], self.lanes)
            if steps:
                with T.serial(0, steps) as step:
                    vector(T.bind(step * self.lanes), self.lanes)
            if rest:
                vector(steps * self.lanes, rest)

    def fold(self, combine: Combine, start: Expr, value: Callable[[Index, Expr], Expr]) -> Stat:
        """Combine `value(index, lane)` of all elements of a slice, from `start` on."""
        held = self.filled(start)

        def step(index: Index, lane: Expr) -> None:
            held[lane] = combine(held[lane], value(index, lane))

        def join(lane: Expr, other: Expr) -> None:
            held[lane] = combine(held[lane], held[other])

        self.each(step)
        self._halve(join)
        return Stat(held, self.slices.across)

    def best(self, better: Combine, start: Expr, value: Callable[[Index], Expr], axis: int, last: bool) -> Stat:
        """Where along an axis the best value of a slice is: of equal ones the first, or the last."""
        held, places = self.filled(start), self.filled(tirx.const(0, "int32"))

        def take(lane: Expr, other: Expr, place: Expr, wins: Expr) -> None:
            places[lane] = tirx.Select(wins, place, places[lane])
            held[lane] = tirx.Select(better(other, held[lane]), other, held[lane])

        def step(index: Index, lane: Expr) -> None:
            other = value(index)
            wins = tirx.Not(better(held[lane], other)) if last else better(other, held[lane])
            take(lane, other, tirx.Cast("int32", index[axis]), wins)

        def join(lane: Expr, other: Expr) -> None:
            farther = places[other] > places[lane] if last else places[other] < places[lane]
            equal = tirx.And(held[other] == held[lane], farther)
            take(lane, held[other], places[other], tirx.Or(better(held[other], held[lane]), equal))

        self.each(step)
        self._halve(join)
        return Stat(places, self.slices.across)

    def stat(self, function: Callable[[Expr], Expr]) -> Stat:
        """`function(lane)` of other stats, once per slice, float32."""
        lanes = self.lanes if self.slices.across else 1
        held = scratch(lanes)
        with T.vectorized(0, lanes) as lane:
            held[lane] = function(lane)
        return Stat(held, self.slices.across)

    def put(self, out: Any, function: Callable[[Expr], Expr]) -> None:
        """Store `function(lane)` for each slice, at its place among the kept axes."""
        with T.vectorized(0, self.lanes if self.slices.across else 1) as lane:
            index = (*self.place, self.start + lane) if self.slices.across else self.place
            out[index or (0,)] = function(lane)

    def filled(self, value: Expr) -> Any:
        """A buffer with a value for each lane."""
        held = scratch(self.lanes, dtype=str(value.ty.dtype))
        with T.vectorized(0, self.lanes) as lane:
            held[lane] = value
        return held

    def _halve(self, join: Callable[[Expr, Expr], None]) -> None:
        """Emit `join(lane, other)` until all lanes along a slice are joined in the first."""
        lanes = 1 if self.slices.across else self.lanes
        while lanes > 1:
            lanes //= 2
            with T.vectorized(0, lanes) as lane:
                join(lane, lane + lanes)
