"""Tasks: the different workloads of a network, in layouts of which some are faster, each with how often it occurs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from nnc.display import units
from nnc.target import Target

if TYPE_CHECKING:
    from nnc.lowering.kernels.unit import Unit
    from nnc.lowering.layout import Blocks, Layer, Layouts
    from nnc.lowering.workload import Workload

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """A workload, and the layers that have it."""

    bases: tuple[Workload, ...]
    """What it is compared with: in the unit's own blocks of channels, each layer alone."""
    workload: Workload
    layers: tuple[tuple[str, ...], ...]
    """By kernel: a pair has two."""

    @property
    def name(self) -> str:
        """'conv2d 64 -> 128, 3x3, 56x56'."""
        problem = self.workload.problem
        op = self.workload.op
        if op == "expand_depthwise":
            first, second = (Task((each,), each, ()).name for each in (problem.first, problem.second))
            return f"{first} + {second}"
        if op == "general":
            return f"{problem.operator} {' '.join(map(units.shape, problem.shapes))}"
        if op.endswith("gemm"):
            return f"{op} {problem.rows} x {problem.depth} -> {problem.columns}"
        conv = getattr(problem, "conv", problem)
        kernel, size = (units.shape(each) for each in (conv.window.kernel, conv.window.out_size))
        if op == "depthwise":
            return f"depthwise {problem.channels}, {kernel}, {size}"
        return f"{op} {conv.in_channels} -> {conv.out_channels}, {kernel}, {size}"

    @property
    def is_default(self) -> bool:
        return self.bases == (self.workload,)

    @property
    def is_required(self) -> bool:
        """Whether the network can't be tuned where this can't be measured: kernels may want values of some kind."""
        return self.is_default and self.workload.op != "general"

    @property
    def layout(self) -> str:
        """Of the images, 'NCHW8c', or 'NCHW4c -> NCHW8c' where they differ."""
        if self.workload.op.endswith("gemm") or self.workload.op == "general":
            return "plain"
        conv = getattr(self.workload.problem, "conv", self.workload.problem)
        blocks = [getattr(conv, "in_block", self.workload.block), self.workload.block]
        return " -> ".join(dict.fromkeys(f"NCHW{block}c" if block > 1 else "NCHW" for block in blocks))


@dataclass(frozen=True)
class Network:
    """The layers of a network, for the figures of the cores that share its kernels."""

    layouts: Layouts
    unit: Unit

    def placed(self, blocks: Blocks, time: Callable[[Workload], float] | None = None) -> list[Task]:
        """The tasks in these layouts, in the order of the graph; pairs are one where `time` says that it is less."""
        fused = {one.made: (other, both) for one, other, both in self.layouts.fused(blocks, time)} if time else {}
        behind = {other.made for other, _ in fused.values()}
        found: list[tuple[Workload, tuple[Layer, ...]]] = []
        for layer in self.layouts.layers:
            if layer.made in fused:
                second, both = fused[layer.made]
                found.append((both, (layer, second)))
            elif layer.made not in behind:
                found.append((layer.variant(blocks), (layer,)))
        return _tasks(found)

    def expansions(self, blocks: Blocks) -> list[Task]:
        """The pairs in these layouts, each as one kernel."""
        return _tasks((both, (one, other)) for one, other, both in self.layouts.expansions(blocks))

    @cached_property
    def tasks(self) -> list[Task]:
        """In the unit's own blocks."""
        return self.placed(self.layouts.default)

    @cached_property
    def elsewhere(self) -> list[Task]:
        """The same layers in other blocks, one size for all of the network at a time, and pairs in all blocks."""
        every = [self.layouts.uniform(block) for block in self.layouts.blocks]
        tasks = [task for blocks in every for task in (*self.placed(blocks), *self.expansions(blocks))]
        return list({task.workload: task for task in tasks if not task.is_default}.values())

    def cheapest(self, time: Callable[[Workload], float]) -> list[Task]:
        """The tasks in the layouts that take the least time; infinite ones are not chosen over others."""
        return self.placed(self.layouts.cheapest(time), time)


def _tasks(found: Iterable[tuple[Workload, tuple[Layer, ...]]]) -> list[Task]:
    """A task for every workload and what it is compared with."""
    layers: dict[tuple[tuple[Workload, ...], Workload], list[tuple[str, ...]]] = {}
    for workload, computed in found:
        bases = tuple(layer.workload for layer in computed)
        layers.setdefault((bases, workload), []).append(tuple(layer.name for layer in computed))
    return [Task(bases, workload, tuple(names)) for (bases, workload), names in layers.items()]


def network(graph: gs.Graph, target: Target, threads: int | None, progress: Progress) -> Network:
    """The tasks of a graph with static shapes. Raises NncError for a node that nnc can't lower."""
    from nnc.lowering.build import unit_of
    from nnc.lowering.lower import layouts
    from nnc.lowering.machine import machine as known_machine

    machine = known_machine(target)
    unit = unit_of(target, machine, threads or target.unit.threads)
    return Network(layouts(graph, unit, machine, progress), unit)
