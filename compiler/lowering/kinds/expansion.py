"""Pairs: a pointwise convolution and the depthwise one that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nnc.lowering.kernels import expand
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.kinds.kind import Kernel, Kind, Plan, Shapes

if TYPE_CHECKING:
    from nnc.lowering.workload import Workload


@dataclass(frozen=True)
class Expansion:
    """A pointwise convolution and the depthwise one that reads it, in one kernel."""

    first: Workload
    second: Workload

    @property
    def kernel(self) -> expand.Expand:
        return expand.Expand(self.first.problem, self.second.problem)

    @property
    def in_block(self) -> int:
        return int(self.first.problem.in_block)

    @property
    def dtype(self) -> str:
        return str(self.first.problem.dtype)


def can_expand(first: Workload, second: Workload) -> bool:
    """Whether there is a kernel for both: of floats."""
    return first.op == "conv2d" and second.op == "depthwise" and second.problem.zero is None


def expanding(first: Workload, second: Workload) -> Workload:
    """The workload of both in one kernel."""
    return replace(second, problem=Expansion(first, second))


class Expansions(Kind):
    op = "expand_depthwise"

    def described(self, problem: Expansion) -> dict[str, Any]:
        return {"first": problem.first.key, "second": problem.second.key}

    def in_blocks(self, problem: Expansion, in_block: int | None, block: int) -> Expansion:
        return Expansion(problem.first.in_blocks(in_block, block), problem.second.in_blocks(None, block))

    def channels(self, problem: Expansion) -> int:
        return int(problem.second.problem.channels)

    def default(self, workload: Workload, unit: Unit) -> Plan:
        return expand.best_plan(workload.problem.kernel, unit)

    def plans(self, workload: Workload, unit: Unit) -> Iterator[Plan]:
        return expand.plans(workload.problem.kernel, unit)

    def cycles(self, workload: Workload, plan: Plan, unit: Unit) -> float:
        return expand.cycles(workload.problem.kernel, plan, unit)

    def kernel(self, workload: Workload, plan: Plan) -> Kernel:
        problem, first, dtype = workload.problem.kernel, workload.problem.first.tail, workload.problem.dtype
        packed: Shapes = [(shape, dtype) for shape in expand.packed_shapes(problem, plan)]
        shapes: Shapes = [(problem.conv.in_shape, dtype), *packed, *workload.problem.first.operands]
        return shapes, lambda X, W, D, *rest: expand.compute(
            X, W, D, problem, plan, (rest[:-3], first.epilogue(rest[:-3]), first.dtype), *rest[-3:]
        )
