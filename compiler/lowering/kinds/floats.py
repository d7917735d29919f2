"""Layers that multiply floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from nnc.lowering.kernels import conv2d, depthwise, gemm, winograd
from nnc.lowering.kernels.convolution import Conv2d
from nnc.lowering.kernels.depthwise import Depthwise
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.kinds.kind import Kernel, Kind, Plan, Shapes, flattens, in_tiles
from nnc.lowering.tail import Tail

if TYPE_CHECKING:
    from nnc.lowering.workload import Workload


class Convolutions(Kind):
    """Direct, over images of any width where they are pointwise, or by Winograd's algorithm."""

    op = "conv2d"

    def described(self, problem: Conv2d) -> dict[str, Any]:
        content = asdict(problem)
        if problem.dtype == "float32":
            del content["dtype"]  # as records have it that are older than other types
        return content

    def in_blocks(self, problem: Conv2d, in_block: int | None, block: int) -> Conv2d:
        return replace(problem, in_block=in_block or problem.in_block, block=block)

    def channels(self, problem: Conv2d) -> int:
        return problem.out_channels

    def default(self, workload: Workload, unit: Unit) -> Plan:
        conv, tiled = workload.problem, winograd.Convolution.of(workload.problem)
        if tiled is not None and winograd.wins(tiled, unit):
            return winograd.best_plan(tiled, unit)
        if not flattens(conv, workload):
            return conv2d.best_plan(conv, unit)
        flat = conv2d.flattened(conv, unit)
        return replace(conv2d.best_plan(flat, unit), width=flat.window.out_size[1])

    def plans(self, workload: Workload, unit: Unit) -> Iterator[Plan]:
        conv, tiled = workload.problem, winograd.Convolution.of(workload.problem)
        for width in conv.widths() if flattens(conv, workload) else [None]:
            for plan in conv2d.plans(conv.of_width(width) if width else conv, unit):
                yield replace(plan, width=width)
        if tiled is not None:
            yield from winograd.plans(tiled, unit)

    def cycles(self, workload: Workload, plan: Plan, unit: Unit) -> float:
        """Both algorithms in cycles of one core."""
        if isinstance(plan, winograd.Plan):
            return unit.threads * winograd.cycles(in_tiles(workload.problem), plan, unit)
        return workload.problem.batch * conv2d.cycles(_direct(workload, plan), plan, unit)

    def kernel(self, workload: Workload, plan: Plan) -> Kernel:
        if isinstance(plan, winograd.Plan):
            tiled = in_tiles(workload.problem)
            shapes = [(workload.problem.in_shape, tiled.dtype), (winograd.packed_shape(tiled, plan), tiled.dtype)]
            return shapes, lambda X, U, *rest: winograd.compute(X, U, tiled, plan, *rest)
        conv = _direct(workload, plan)
        shapes = [(conv.in_shape, conv.dtype), (conv2d.packed_shape(conv, plan), conv.dtype)]
        return shapes, lambda X, W, *rest: conv2d.compute(X, W, conv, plan, *rest)

    def tail(self, workload: Workload, plan: Plan) -> Tail:
        tail = workload.tail
        return tail.reshaped(*_direct(workload, plan).window.out_size) if getattr(plan, "width", None) else tail


def _direct(workload: Workload, plan: conv2d.Plan) -> Conv2d:
    return workload.problem.of_width(plan.width) if plan.width else workload.problem


class Depthwises(Kind):
    op = "depthwise"

    def typical(self, problem: Depthwise) -> Depthwise:
        return problem if problem.zero is None else replace(problem, zero=int(problem.zero != 0))

    def in_blocks(self, problem: Depthwise, in_block: int | None, block: int) -> Depthwise:
        return replace(problem, block=block)

    def channels(self, problem: Depthwise) -> int:
        return problem.channels

    def default(self, workload: Workload, unit: Unit) -> Plan:
        return depthwise.best_plan(workload.problem, unit)

    def plans(self, workload: Workload, unit: Unit) -> Iterator[Plan]:
        return depthwise.plans(workload.problem, unit)

    def kernel(self, workload: Workload, plan: Plan) -> Kernel:
        conv = workload.problem
        weights = conv.dtype if conv.zero is None else "int8"
        shapes: Shapes = [(conv.in_shape, conv.dtype), (depthwise.packed_shape(conv), weights)]
        return shapes, lambda X, W, *rest: depthwise.compute(X, W, conv, plan, *rest)


class Products(Kind):
    op = "gemm"

    def default(self, workload: Workload, unit: Unit) -> Plan:
        problem = workload.problem
        plan = gemm.best_plan(problem.rows, problem.columns, problem.depth, unit)
        return replace(plan, depth_block=problem.group) if problem.group else plan

    def plans(self, workload: Workload, unit: Unit) -> Iterator[Plan]:
        return gemm.plans(workload.problem, unit)

    def kernel(self, workload: Workload, plan: Plan) -> Kernel:
        problem = workload.problem
        packed = gemm.packed_shape(problem.depth, problem.columns, plan)
        rows = "float16" if problem.dtype == "float16" else "float32"
        shapes: Shapes = [((problem.rows, problem.depth), rows), (packed, problem.dtype)]
        if problem.group:
            groups = -(-problem.depth // problem.group)
            shapes.append((gemm.packed_shape(groups, problem.columns, plan), "float32"))
        return shapes, lambda A, W, *rest: gemm.compute(
            A, W, problem.columns, plan, rest[-3], rest[-2], rest[-1], rest[0] if problem.group else None
        )
