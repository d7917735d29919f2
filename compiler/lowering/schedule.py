"""A default schedule for functions that have no template: every loop nest parallel outside and vectorized inside.

A function is a sequence of blocks, each a computation in a perfect nest of loops (TVM's S-TIR). Producers that are read
once are inlined; what remains is either spatial (every element on its own) or a reduction. The decisions rest on one
analysis: by how many elements each access moves when a loop advances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import ScheduleError

from nnc.lowering.kernels.gemm import Unit

Block = Any  # a schedule's handle of a block
Loop = Any  # and of a loop

PARALLEL_FROM = 8192
"""Steps from which on a nest is shared among the threads: starting them takes microseconds."""

STRIDED = 8.0  # cost of one lane that is loaded or stored by itself, in vector accesses per register


def schedule(function: tirx.PrimFunc, unit: Unit) -> tirx.PrimFunc:
    """The same function with every nest that TVM's primitives can transform scheduled for a unit."""
    state = s_tir.Schedule(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))
    _inline(state)
    _decompose_padding(state)
    for name in _blocks(state):
        block = state.get_sblock(name)
        if not state.get_loops(block) or _is_placed(state, block):
            continue
        if _is_reduction(state, block):
            _reduction(state, block, unit)
        else:
            _spatial(state, block, unit)
    return state.mod["main"]


# -- analysis


@dataclass
class Nest:
    """A block with its loops, from the outside in: how far they go, and how far each access moves in elements."""

    loops: list[Loop]
    extents: list[int]
    reduced: list[bool]
    moves: list[list[int | None]]
    """Per access, the store first: elements per step of each loop; None where the address is not linear in it."""
    bits: int
    """Of the widest element."""

    @property
    def steps(self) -> int:
        return prod(self.extents)

    def merge(self, first: int) -> None:
        """Take loops `first` and `first + 1` for one."""
        inner = first + 1
        for moves in self.moves:
            moves[first : inner + 1] = [moves[first] if self.extents[inner] == 1 else moves[inner]]
        self.extents[first : inner + 1] = [self.extents[first] * self.extents[inner]]
        self.reduced[first : inner + 1] = [self.reduced[first] and self.reduced[inner]]

    def can_merge(self, first: int) -> bool:
        """Whether loops `first` and `first + 1` walk through every operand as one loop would."""
        outer, inner = self.extents[first : first + 2]
        if 1 in (outer, inner):
            return self.reduced[first] == self.reduced[first + 1]
        pairs = [(moves[first], moves[first + 1]) for moves in self.moves]
        return self.reduced[first] == self.reduced[first + 1] and all(
            a is not None and b is not None and a == b * inner for a, b in pairs
        )


def _nest(state: s_tir.Schedule, block: Block) -> Nest:
    """The nest of a block whose iterators are its loops, one to one."""
    statement, loops = state.get(block), state.get_loops(block)
    iterators = [each.var for each in statement.iter_vars]
    regions = [*statement.writes, *statement.reads]
    return Nest(
        loops,
        [int(state.get(loop).extent) for loop in loops],
        [each.iter_type == tirx.IterVar.CommReduce for each in statement.iter_vars],
        [_moves(region, iterators) for region in regions],
        max(tvm.DataType(str(region.buffer.dtype)).bits for region in regions),
    )


def _moves(region: Any, iterators: Sequence[Any]) -> list[int | None]:
    """By how many elements the start of a region moves for each iterator."""
    shape = [int(size) for size in region.buffer.shape]
    total: list[int | None] = [0] * len(iterators)
    for axis, span in enumerate(region.region):
        stride = prod(shape[axis + 1 :])
        for place, iterator in enumerate(iterators):
            factor = _factor(span.min, iterator)
            before = total[place]
            total[place] = None if factor is None or before is None else before + factor * stride
    return total


def _factor(index: Any, iterator: Any) -> int | None:
    """The factor of an iterator in an index, None where it is not linear."""
    if isinstance(index, tirx.IntImm):
        return 0
    found = tvm.arith.detect_linear_equation(index, [iterator])
    return int(found[0]) if len(found) == 2 and isinstance(found[0], tirx.IntImm) else None


def _blocks(state: s_tir.Schedule) -> list[str]:
    return [state.get(block).name_hint for block in state.get_child_blocks(state.get_sblock("root"))]


def _is_reduction(state: s_tir.Schedule, block: Block) -> bool:
    return any(each.iter_type == tirx.IterVar.CommReduce for each in state.get(block).iter_vars)


def _is_placed(state: s_tir.Schedule, block: Block) -> bool:
    """Whether a block was already scheduled, together with another."""
    return any(state.get(loop).kind != tirx.ForKind.SERIAL for loop in state.get_loops(block))


def _branches(state: s_tir.Schedule, block: Block) -> bool:
    """Whether a block computes its value only under a condition."""
    return "if_then_else" in state.get(block).script()


def _volume(state: s_tir.Schedule, block: Block) -> int:
    return prod(int(each.dom.extent) for each in state.get(block).iter_vars)


# -- which blocks stay


def _inline(state: s_tir.Schedule) -> None:
    """Compute values where they are read, unless they would be computed more than once or need a branch there."""
    for name in _blocks(state):
        block = state.get_sblock(name)
        consumers = state.get_consumers(block)
        if _is_reduction(state, block) or not consumers:
            continue
        copies = isinstance(state.get(block).body.value, tirx.BufferLoad)
        once = len(consumers) == 1 and _volume(state, consumers[0]) <= _volume(state, block)
        branches = _branches(state, block) and any(_is_reduction(state, each) for each in consumers)
        if (copies or once) and not branches:
            _attempt(state.compute_inline, block)


def _decompose_padding(state: s_tir.Schedule) -> None:
    """Fill and copy instead of one nest that asks for every element where it lies."""
    for name in _blocks(state):
        block = state.get_sblock(name)
        if not _is_reduction(state, block) and _branches(state, block):
            _attempt(state.decompose_padding, block, state.get_loops(block)[0])


def _attempt(primitive: Any, *arguments: Any) -> bool:
    """Apply a primitive of the schedule; it says itself whether it applies, and changes nothing when it doesn't."""
    try:
        primitive(*arguments)
    except ScheduleError:
        return False
    return True


# -- spatial blocks


def _spatial(state: s_tir.Schedule, block: Block, unit: Unit) -> None:
    """Loops that all operands walk through alike become one; the cheapest is vectorized, the others are shared."""
    nest = _nest(state, block)
    for first in range(len(nest.loops) - 2, -1, -1):
        if nest.can_merge(first):
            nest.loops[first : first + 2] = [state.fuse(*nest.loops[first : first + 2], preserve_unit_iters=False)]
            nest.merge(first)
    lanes = unit.vector_bits // nest.bits
    place = min(range(len(nest.loops)), key=lambda each: _cost(nest, each, lanes))
    inner = nest.loops.pop(place)
    if place < len(nest.loops):
        state.reorder(*nest.loops, inner)
    parallel = nest.steps >= PARALLEL_FROM
    outer = nest.extents[:place] + nest.extents[place + 1 :]
    shared = parallel and prod(outer) >= 2 * unit.threads
    if shared:
        state.parallel(_fuse_front(state, nest.loops, outer, 8 * unit.threads))
    _vectorize(state, inner, lanes, parallel and not shared)


def _cost(nest: Nest, place: int, lanes: int) -> float:
    """Vector accesses per element when a loop is vectorized."""
    extent = nest.extents[place]
    per_register = sum(1.0 if moves[place] in (0, 1) else STRIDED for moves in nest.moves)
    return per_register * ceil(extent / lanes) / extent


def _fuse_front(state: s_tir.Schedule, loops: Sequence[Loop], extents: Sequence[int], wanted: int) -> Loop:
    """The outermost loops as one with at least `wanted` steps, if they have that many."""
    count = next((n for n in range(1, len(loops)) if prod(extents[:n]) >= wanted), len(loops))
    return state.fuse(*loops[:count]) if count > 1 else loops[0]


def _vectorize(state: s_tir.Schedule, loop: Loop, lanes: int, parallel: bool = False) -> None:
    """Vectorize an innermost loop, in one piece if it is short, otherwise in registers and a rest."""
    extent = int(state.get(loop).extent)
    if extent <= 2 * lanes:
        if extent > 1:
            state.vectorize(loop)
        return
    width = _width(extent, lanes)
    if extent % width:
        loop, rest = state.loop_partition(loop, [extent - extent % width, None], preserve_unit_iters=False)
        if extent % width > 1:
            state.vectorize(rest)
    outer, inner = state.split(loop, [None, width])
    state.vectorize(inner)
    if parallel:
        state.parallel(outer)


def _width(extent: int, lanes: int) -> int:
    """Lanes of one step: whole registers, or a divisor of the extent that nearly fills them."""
    divisors = [width for width in range(4 * lanes, lanes // 2, -1) if extent % width == 0]
    return next((w for w in divisors if w % lanes == 0), lanes if extent >= 8 * lanes else (divisors or [lanes])[0])


# -- reductions


def _reduction(state: s_tir.Schedule, block: Block, unit: Unit) -> None:
    """Vectors of neighbouring results, each summed up in a register; an epilogue follows row by row."""
    nest = _nest(state, block)
    lanes, parallel = unit.vector_bits // nest.bits, nest.steps >= PARALLEL_FROM
    reader = _epilogue(state, block)
    if reader is not None:
        shared = _share_rows(state, reader, parallel, unit)
        state.compute_at(block, shared, preserve_unit_loops=True)
        _vectorize(state, state.get_loops(reader)[-1], lanes)
        nest.loops = state.get_loops(block)[-len(nest.loops) :]
        nest.extents = [int(state.get(loop).extent) for loop in nest.loops]
    spatial = [place for place, reduced in enumerate(nest.reduced) if not reduced]
    inner = min(spatial, key=lambda each: _cost(nest, each, lanes))
    rows = [nest.loops[place] for place in spatial if place != inner]
    sums = [loop for loop, reduced in zip(nest.loops, nest.reduced, strict=True) if reduced]
    state.reorder(*rows, nest.loops[inner], *sums)
    if reader is None and rows and parallel:
        sizes = [nest.extents[place] for place in spatial if place != inner]
        state.parallel(_fuse_front(state, rows, sizes, 8 * unit.threads))
    _vectorize_sums(state, nest.loops[inner], len(sums), lanes)


def _epilogue(state: s_tir.Schedule, block: Block) -> Block | None:
    """The one block that reads a reduction's results, if it reads them in order, one per element."""
    consumers = state.get_consumers(block)
    if len(consumers) != 1 or _is_reduction(state, consumers[0]):
        return None
    statement, results = state.get(consumers[0]), state.get(block).writes[0].buffer
    extents = [int(each.dom.extent) for each in statement.iter_vars]
    if len(extents) < 2 or prod(extents[:-1]) == 1 or prod(extents) != prod(map(int, results.shape)):
        return None
    iterators = [each.var for each in statement.iter_vars]
    read = [_moves(region, iterators) for region in statement.reads if region.buffer.same_as(results)]
    order = [prod(extents[place + 1 :]) for place in range(len(extents))]
    in_order = all(size == 1 or move == step for size, move, step in zip(extents, read[0], order, strict=True))
    return consumers[0] if len(read) == 1 and in_order else None


def _share_rows(state: s_tir.Schedule, block: Block, parallel: bool, unit: Unit) -> Loop:
    """One loop over rows of results, all axes but the last."""
    loops = state.get_loops(block)[:-1]
    shared = state.fuse(*loops) if len(loops) > 1 else loops[0]
    if parallel:
        state.parallel(shared)
    return shared


def _vectorize_sums(state: s_tir.Schedule, loop: Loop, sums: int, lanes: int) -> None:
    """Vectorize the loop over results, with the `sums` loops of the reduction around the lanes."""
    extent = int(state.get(loop).extent)
    width = extent if extent <= 2 * lanes else _width(extent, lanes)
    parts = [loop]
    if extent % width:
        parts = state.loop_partition(loop, [extent - extent % width, None], preserve_unit_iters=False)
    for part in parts:
        (block,) = state.get_child_blocks(part)
        around, lane = state.get_loops(block)[-sums:], part
        if int(state.get(part).extent) > width:
            _, lane = state.split(part, [None, width])
        state.reorder(*around, lane)
        if int(state.get(lane).extent) > 1:
            state.vectorize(lane)
        start = state.decompose_reduction(block, around[0])
        first = state.get_loops(start)[-1]
        if int(state.get(first).extent) > 1:
            state.vectorize(first)
