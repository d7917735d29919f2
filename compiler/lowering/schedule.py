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
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.schedule import ScheduleError

from nnc.lowering.gpu.threads import GROUP
from nnc.lowering.gpu.unit import Gpu
from nnc.lowering.kernels import loops
from nnc.lowering.kernels.loops import TASKS
from nnc.lowering.kernels.unit import Unit

Block = Any  # a schedule's handle of a block
Loop = Any  # and of a loop

STRIDED = 8.0  # cost of an access whose lanes are loaded or stored one by one, in vector accesses
BRANCH = 8.0  # cost of a lane that is computed by itself


def schedule(function: tirx.PrimFunc, unit: Unit) -> tirx.PrimFunc:
    """The same function with every nest parallel and vectorized for a unit."""
    if isinstance(unit, Gpu):
        return schedule_threads(function)
    state = s_tir.Schedule(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))
    _inline(state)
    _decompose_padding(state)
    nests = [_nest(state, state.get_sblock(name)) for name in _blocks(state)]
    readers: dict[str, Nest] = {}
    for nest in nests:
        reader = _epilogue(state, nest, nests)
        if reader is not None and reader.name not in readers:
            _attach(state, nest, reader, unit)
            readers[reader.name] = reader
    for nest in nests:
        if any(nest.reduced):
            _reduction(state, nest, unit)
        elif nest.name in readers:
            _vectorize(state, nest.loops[-1], unit.vector_bits // nest.bits)
        elif nest.loops:
            _spatial(state, nest, unit)
    return state.mod["main"]


def module_of(function: tirx.PrimFunc) -> tvm.IRModule:
    """A copy of a function as "main": the steps of a schedule change what they find, whoever else holds it."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return tvm.ir.load_json(tvm.ir.save_json(module))


def is_large(function: tirx.PrimFunc) -> bool:
    """Whether a function, which has no schedule yet, has a nest that `schedule` shares among the threads."""
    state = s_tir.Schedule(module_of(function))
    _inline(state)
    return any(_nest(state, state.get_sblock(name)).is_large for name in _blocks(state))


def schedule_threads(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The same function as one kernel per nest: a thread per element, which computes a whole sum in a register."""
    state = s_tir.Schedule(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))
    _inline(state)
    for name in _blocks(state):
        block = state.get_sblock(name)
        loops, reduced = state.get_loops(block), _nest(state, block).reduced
        if not loops:
            loops, reduced = [state.add_unit_loop(block)], [False]
        if all(reduced):
            loops, reduced = [state.add_unit_loop(loops[0]), *loops], [False, *reduced]
        outer = [loop for loop, sums in zip(loops, reduced, strict=True) if not sums]
        inner = [loop for loop, sums in zip(loops, reduced, strict=True) if sums]
        state.reorder(*outer, *inner)
        thread = state.fuse(*outer) if len(outer) > 1 else outer[0]
        grid, thread = state.split(thread, [None, min(GROUP, int(state.get(thread).extent))])
        state.bind(grid, "blockIdx.x")
        state.bind(thread, "threadIdx.x")
        if inner:
            sums = state.cache_write(block, 0, "local")
            state.reverse_compute_at(sums, thread, preserve_unit_loops=True)
            state.decompose_reduction(block, inner[0])
    return state.mod["main"]


# -- analysis


@dataclass
class Nest:
    """A block with its loops, from the outside in: how far they go, and how far each access moves in elements."""

    name: str
    loops: list[Loop]
    extents: list[int]
    reduced: list[bool]
    moves: list[list[int | None]]
    """Per access, the store first: elements per step of each loop; None where the address is not linear in it."""
    tested: list[bool]
    """Per loop, whether a branch inside depends on it: such a loop is never vectorized if there is another."""
    bits: int
    """Of the widest element."""
    is_shared: bool = False
    """Whether the loops around it are parallel already."""

    @property
    def is_large(self) -> bool:
        return prod(self.extents) >= loops.PARALLEL_FROM

    def cost(self, place: int, lanes: int) -> float:
        """Vector accesses per element when a loop is vectorized."""
        extent = self.extents[place]
        store, *loads = (1.0 if moves[place] in (0, 1) else STRIDED for moves in self.moves)
        branch = lanes * BRANCH if self.tested[place] else 0.0
        return (2 * store + sum(loads) + branch) * ceil(extent / lanes) / extent

    def can_merge(self, first: int) -> bool:
        """Whether loops `first` and `first + 1` walk through every operand as one loop would."""
        outer, inner = self.extents[first : first + 2]
        if any(self.tested[first : first + 2]):
            return False
        pairs = [moves[first : first + 2] for moves in self.moves]
        return 1 in (outer, inner) or all(None not in (a, b) and a == b * inner for a, b in pairs)  # type: ignore[operator]

    def merge(self, first: int, loop: Loop) -> None:
        """Take loops `first` and `first + 1` for one, `loop`."""
        pair = slice(first, first + 2)
        for moves in self.moves:
            moves[pair] = [moves[first] if self.extents[first + 1] == 1 else moves[first + 1]]
        self.loops[pair], self.reduced[pair], self.tested[pair] = [loop], [False], [False]
        self.extents[pair] = [prod(self.extents[pair])]


def _blocks(state: s_tir.Schedule) -> list[str]:
    return [state.get(block).name_hint for block in state.get_child_blocks(state.get_sblock("root"))]


def _nest(state: s_tir.Schedule, block: Block) -> Nest:
    """The nest of a block whose iterators are its loops, one to one."""
    statement = state.get(block)
    iterators = [each.var for each in statement.iter_vars]
    regions = [*statement.writes, *statement.reads]
    return Nest(
        statement.name_hint,
        list(state.get_loops(block)),
        [int(each.dom.extent) for each in statement.iter_vars],
        [each.iter_type == tirx.IterVar.CommReduce for each in statement.iter_vars],
        [_moves(region, iterators) for region in regions],
        [any(each.same_as(tested) for tested in _tested(statement)) for each in iterators],
        max(tvm.DataType(str(region.source.dtype)).bits for region in regions),
    )


def _moves(region: Any, iterators: Sequence[Any]) -> list[int | None]:
    """By how many elements the start of a region moves for each iterator."""
    shape = [int(size) for size in region.source.shape]
    total: list[int | None] = [0] * len(iterators)
    for axis, span in enumerate(region.region):
        stride = prod(shape[axis + 1 :])
        for place, iterator in enumerate(iterators):
            factor, before = _factor(span.min, iterator), total[place]
            total[place] = None if factor is None or before is None else before + factor * stride
    return total


def _factor(index: Any, iterator: Any) -> int | None:
    """The factor of an iterator in an index, None where the index is not linear in it."""
    if isinstance(index, tirx.IntImm):
        return 0
    found = tvm.sym.detect_linear_equation(index, [iterator])
    return int(found[0]) if len(found) == 2 and isinstance(found[0], tirx.IntImm) else None


# -- which blocks stay


def _inline(state: s_tir.Schedule) -> None:
    """Compute values where they are read, unless they would be computed more than once or need a branch there."""
    for name in _blocks(state):
        block = state.get_sblock(name)
        consumers = state.get_consumers(block)
        if _is_reduction(state, block) or not consumers:
            continue
        copies = isinstance(state.get(block).body.value, tvm.ir.TensorLoad)
        once = len(consumers) == 1 and _volume(state, consumers[0]) <= _volume(state, block)
        branches = _branches(state, block) and any(_is_reduction(state, each) for each in consumers)
        if (copies or once) and not branches:
            _attempt(state.compute_inline, block)


def _decompose_padding(state: s_tir.Schedule) -> None:
    """Fill and copy, instead of one nest that asks for every element where it lies."""
    for name in _blocks(state):
        block = state.get_sblock(name)
        if not _is_reduction(state, block) and _branches(state, block):
            _attempt(state.decompose_padding, block, state.get_loops(block)[0])


def _is_reduction(state: s_tir.Schedule, block: Block) -> bool:
    return any(each.iter_type == tirx.IterVar.CommReduce for each in state.get(block).iter_vars)


def _branches(state: s_tir.Schedule, block: Block) -> bool:
    """Whether a block computes its value only under a condition."""
    return bool(_conditions(state.get(block)))


def _conditions(statement: Any) -> list[Any]:
    """What the values of a block are computed under."""
    found: list[Any] = []

    def visit(call: tvm.ir.Call) -> None:
        if getattr(call.op, "name", "") == "prim.if_then_else":
            found.append(call.args[0])

    tvm_ffi.structural_walk(statement.body, (tvm.ir.Call, visit))
    return found


def _tested(statement: Any) -> list[Any]:
    """The variables in the conditions of a block."""
    found: list[Any] = []
    for condition in _conditions(statement):
        tvm_ffi.structural_walk(condition, (tirx.Var, found.append))
    return found


def _volume(state: s_tir.Schedule, block: Block) -> int:
    return prod(int(each.dom.extent) for each in state.get(block).iter_vars)


def _attempt(primitive: Any, *arguments: Any) -> None:
    """Apply a primitive of the schedule; it knows itself where it applies, and changes nothing where it doesn't."""
    try:
        primitive(*arguments)
    except ScheduleError:
        return


# -- spatial blocks


def _spatial(state: s_tir.Schedule, nest: Nest, unit: Unit) -> None:
    """Loops that all operands walk through alike become one; the cheapest is vectorized, the others are shared."""
    for first in range(len(nest.loops) - 2, -1, -1):
        if nest.can_merge(first):
            nest.merge(first, state.fuse(*nest.loops[first : first + 2], preserve_unit_iters=False))
    lanes = unit.vector_bits // nest.bits
    place = min(range(len(nest.loops)), key=lambda each: nest.cost(each, lanes))
    inner, outer = nest.loops[place], nest.loops[:place] + nest.loops[place + 1 :]
    extents = nest.extents[:place] + nest.extents[place + 1 :]
    if place < len(outer):
        state.reorder(*outer, inner)
    extent = nest.extents[place]
    whole = _width(extent, lanes) == extent
    many = prod(extents) >= (2 if whole else 2 * unit.threads)
    if nest.is_large and many:
        state.parallel(_fuse_front(state, outer, extents, TASKS * unit.threads))
    _vectorize(state, inner, lanes, parallel=nest.is_large and not many)


def _fuse_front(state: s_tir.Schedule, loops: Sequence[Loop], extents: Sequence[int], wanted: int) -> Loop:
    """The outermost loops as one with at least `wanted` steps, if they have that many."""
    count = next((n for n in range(1, len(loops)) if prod(extents[:n]) >= wanted), len(loops))
    return state.fuse(*loops[:count]) if count > 1 else loops[0]


def _vectorize(state: s_tir.Schedule, loop: Loop, lanes: int, parallel: bool = False) -> None:
    """Vectorize an innermost loop: in one piece if it is short, otherwise in registers and a rest."""
    for part, width in _parts(state, loop, lanes):
        if int(state.get(part).extent) > width:
            outer, part = state.split(part, [None, width])
            if parallel:
                state.parallel(outer)
        if width > 1:
            state.vectorize(part)


def _parts(state: s_tir.Schedule, loop: Loop, lanes: int) -> list[tuple[Loop, int]]:
    """A loop, cut so that the lanes of a step divide each part, with those lanes."""
    extent = int(state.get(loop).extent)
    width = _width(extent, lanes)
    rest = extent % width
    if rest == 0:
        return [(loop, width)]
    first, last = state.loop_partition(loop, [extent - rest, None], preserve_unit_iters=False)
    return [(first, width), (last, rest)]


def _width(extent: int, lanes: int) -> int:
    """Lanes of one step: all of a short loop, whole registers, or a divisor that nearly fills them."""
    if extent <= 2 * lanes:
        return extent
    divisors = [width for width in range(4 * lanes, lanes // 2, -1) if extent % width == 0]
    whole = [width for width in divisors if width % lanes == 0]
    if whole or extent >= 8 * lanes:
        return whole[0] if whole else lanes
    return divisors[0] if divisors else lanes


# -- reductions


def _epilogue(state: s_tir.Schedule, nest: Nest, nests: Sequence[Nest]) -> Nest | None:
    """The one nest that reads a reduction's results, if it reads them in order, each once."""
    block = state.get_sblock(nest.name)
    consumers = state.get_consumers(block)
    if not any(nest.reduced) or len(consumers) != 1:
        return None
    reader = next(each for each in nests if each.name == state.get(consumers[0]).name_hint)
    results = state.get(block).writes[0].source
    if any(reader.reduced) or prod(reader.extents[:-1]) == 1 or prod(reader.extents) != prod(map(int, results.shape)):
        return None
    iterators = [each.var for each in state.get(consumers[0]).iter_vars]
    reads = [_moves(each, iterators) for each in state.get(consumers[0]).reads if each.source.same_as(results)]
    order = [prod(reader.extents[place + 1 :]) for place in range(len(reader.extents))]
    in_order = all(n == 1 or move == step for n, move, step in zip(reader.extents, reads[0], order, strict=True))
    return reader if len(reads) == 1 and in_order else None


def _attach(state: s_tir.Schedule, nest: Nest, reader: Nest, unit: Unit) -> None:
    """Compute a reduction row by row, all axes but the last, where its results are read."""
    rows = reader.loops[:-1]
    shared = state.fuse(*rows) if len(rows) > 1 else rows[0]
    if nest.is_large:
        state.parallel(shared)
    block = state.get_sblock(nest.name)
    state.compute_at(block, shared, preserve_unit_loops=True)
    nest.loops = list(state.get_loops(block))[1:]
    nest.extents = [int(state.get(loop).extent) for loop in nest.loops]
    nest.is_shared = True


def _reduction(state: s_tir.Schedule, nest: Nest, unit: Unit) -> None:
    """Vectors of neighbouring results, each summed up in a register."""
    places = [place for place, reduced in enumerate(nest.reduced) if not reduced]
    if not places:
        return
    lanes = unit.vector_bits // nest.bits
    inner = min(places, key=lambda each: nest.cost(each, lanes))
    outer = [place for place in places if place != inner]
    sums = [loop for loop, reduced in zip(nest.loops, nest.reduced, strict=True) if reduced]
    state.reorder(*(nest.loops[place] for place in outer), nest.loops[inner], *sums)
    if nest.is_large and outer and not nest.is_shared:
        sizes = [nest.extents[place] for place in outer]
        state.parallel(_fuse_front(state, [nest.loops[place] for place in outer], sizes, TASKS * unit.threads))
    for part, width in _parts(state, nest.loops[inner], lanes):
        (block,) = state.get_child_blocks(part)
        around, lane = state.get_loops(block)[-len(sums) :], part
        if int(state.get(part).extent) > width:
            _, lane = state.split(part, [None, width])
        state.reorder(*around, lane)
        if width > 1:
            state.vectorize(lane)
        start = state.decompose_reduction(block, around[0])
        if width > 1:
            state.vectorize(state.get_loops(start)[-1])
