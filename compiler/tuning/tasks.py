"""Tasks: the different workloads of a network, each with how often it occurs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from nnc import units
from nnc.target import Target

if TYPE_CHECKING:
    from nnc.lowering.kernels.unit import Unit
    from nnc.lowering.workload import Workload

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """A workload, and the layers that have it."""

    workload: Workload
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """'conv2d 64 -> 128, 3x3, 56x56'."""
        problem = self.workload.problem
        if self.workload.op == "gemm":
            return f"gemm {problem.rows} x {problem.depth} -> {problem.columns}"
        kernel, size = (units.shape(each) for each in (problem.window.kernel, problem.window.out_size))
        if self.workload.op == "depthwise":
            return f"depthwise {problem.channels}, {kernel}, {size}"
        return f"conv2d {problem.in_channels} -> {problem.out_channels}, {kernel}, {size}"


@dataclass(frozen=True)
class Network:
    """The tasks of a network, for the figures of the cores that share its kernels."""

    tasks: list[Task]
    unit: Unit


def network(graph: gs.Graph, target: Target, threads: int | None, progress: Progress) -> Network:
    """The tasks of a graph with static shapes, in its order. Raises NncError for a node that nnc can't lower."""
    from nnc.lowering.build import unit_of
    from nnc.lowering.lower import lower
    from nnc.lowering.machine import machine as known_machine

    machine = known_machine(target)
    unit = unit_of(target, machine, threads or target.unit.threads)
    layers: dict[Workload, list[str]] = {}
    for choice in lower(graph, unit, machine, progress).choices:
        layers.setdefault(choice.workload, []).append(choice.nodes[0])
    return Network([Task(workload, tuple(names)) for workload, names in layers.items()], unit)
