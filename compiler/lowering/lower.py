"""From a graph to a program: every group of nodes becomes calls of kernels on tensors in the layouts they want.

A tensor of the graph can be in memory in several forms: plain, as ONNX has it, or, if it is an image of floats or
bytes, in blocks of channels. They are made on demand, once. Convolutions and pools write blocks and read them;
elementwise nodes follow their inputs; everything else reads and writes plain tensors. What DequantizeLinear makes of
integers is in memory only where a kernel has no use for the integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_graphsurgeon as gs
import tvm

from nnc.lowering import fuse, generic, layers
from nnc.lowering.fuse import Group
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.layout import Blocks, Layer, Layouts
from nnc.lowering.lowering import Decisions, Lowering
from nnc.lowering.prepare import Prepared, prepared
from nnc.lowering.program import Place, Program
from nnc.lowering.workload import Schedules, Unknown
from nnc.simulation.kernels import Storage


def lower(
    graph: gs.Graph,
    unit: Unit,
    machine: tvm.target.Target,
    place: Place,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
    schedules: Schedules | None = None,
) -> Program:
    """The program of a graph with static shapes for one unit; `machine` is what TVM knows of it.

    `place` writes its constants, one by one as they are packed, in the order in which the steps read them. Plans and
    layouts are those that `schedules` knows; what it does not know is planned from the unit's figures.

    Raises NncError for a node that nnc can't lower.
    """
    generic.require_standard(graph.nodes)
    ready = prepared(graph, unit)
    if schedules is None:
        return _lowered(unit, machine, ready, Decisions(Unknown(), place=place), progress).program
    known = _lowered(unit, machine, ready, SKETCH, progress).layouts
    blocks, fused = _chosen(known, schedules)
    decisions = Decisions(schedules, known.images(blocks), frozenset(first.made for first, _ in fused), place)
    return _lowered(unit, machine, ready, decisions, progress).program


def storage(graph: gs.Graph, unit: Unit, machine: tvm.target.Target, schedules: Schedules) -> Storage:
    """What `lower` keeps in memory; raises NncError for a node that nnc can't lower."""
    known = layouts(graph, unit, machine)
    blocks, fused = _chosen(known, schedules)
    images = {image: blocks[name] for name, images in known.members.items() for image in images}
    return Storage([(first.name, second.name) for first, second in fused], images)


def layouts(
    graph: gs.Graph,
    unit: Unit,
    machine: tvm.target.Target,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> Layouts:
    """What can be chosen for a graph with static shapes; raises NncError for a node that nnc can't lower."""
    generic.require_standard(graph.nodes)
    ready = prepared(graph, unit)
    return _lowered(unit, machine, ready, SKETCH, progress).layouts


def _chosen(known: Layouts, schedules: Schedules) -> tuple[Blocks, list[tuple[Layer, Layer]]]:
    """The blocks of all images, and the pairs of layers that one kernel computes."""
    time = schedules.times(layer.workload for layer in known.layers)
    blocks = known.cheapest(time)
    return blocks, [(first, second) for first, second, _ in known.fused(blocks, time)]


SKETCH = Decisions(Unknown())


@dataclass(frozen=True)
class _Lowered:
    program: Program
    groups: list[Group]
    pairs: list[tuple[Group, Group]]
    unit: Unit

    @property
    def layouts(self) -> Layouts:
        return Layouts.of(self.groups, self.pairs, self.program.choices, self.unit)


def _lowered(
    unit: Unit,
    machine: tvm.target.Target,
    ready: Prepared,
    decisions: Decisions,
    progress: Callable[[str, int, int], None],
) -> _Lowered:
    """Lower all of a graph, group by group."""
    lowering = Lowering(unit.of("float16") if ready.halves else unit, machine, ready, decisions)
    lowering.add_inputs(ready.graph.inputs)
    groups = fuse.partition(ready.graph, frozenset(lowering.layers))
    pairs = fuse.expansions(ready.graph, groups)
    fused = {id(one): other for one, other in pairs if one.outputs[0].name in decisions.fused}
    behind = {id(other) for other in fused.values()}
    for done, group in enumerate(groups):
        progress("lower layers", done, len(groups))
        if id(group) in fused:
            layers.convolution.expand_depthwise(lowering, group, fused[id(group)])
        elif id(group) not in behind:
            lowering.add(group)
    lowering.add_outputs(ready.graph.outputs)
    return _Lowered(lowering.program, groups, pairs, lowering.unit)
