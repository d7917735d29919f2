"""Layers that multiply integers of eight bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from nnc.lowering.kernels import int8_conv2d, int8_gemm, int8_winograd, winograd
from nnc.lowering.kernels.int8_conv2d import Int8Conv2d
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.kinds.kind import Kernel, Kind, Plan, Shapes, flattens, in_tiles
from nnc.lowering.tail import Tail

if TYPE_CHECKING:
    from nnc.lowering.workload import Workload


class Int8Convolutions(Kind):
    """Direct, over images of any width where they are pointwise, or by Winograd's algorithm in 16 bits."""

    op = "int8_conv2d"

    def typical(self, problem: Int8Conv2d) -> Int8Conv2d:
        return replace(problem, zero=int(problem.zero != 0))

    def dtype(self, problem: Int8Conv2d) -> str:
        return problem.dot.dtype

    def default(self, workload: Workload, unit: Unit) -> Plan:
        problem = workload.problem
        if problem.winograd:
            plan = int8_winograd.best_plan(in_tiles(problem.conv), unit, problem.winograd)
            if int8_winograd.wins(in_tiles(problem.conv), plan, problem, unit):
                return plan
        choose = int8_conv2d.best_flat_plan if flattens(problem.conv, workload) else int8_conv2d.best_plan
        return choose(problem, unit)

    def plans(self, workload: Workload, unit: Unit) -> Iterator[Plan]:
        problem = workload.problem
        for width in problem.conv.widths() if flattens(problem.conv, workload) else [None]:
            for plan in int8_conv2d.plans(problem.of_width(width), unit):
                yield replace(plan, width=width)
        if problem.winograd:
            yield from int8_winograd.plans(in_tiles(problem.conv), unit, problem.winograd)

    def cycles(self, workload: Workload, plan: Plan, unit: Unit) -> float:
        """Both algorithms in cycles of one core."""
        problem = workload.problem
        if isinstance(plan, winograd.Plan):
            return unit.threads * int8_winograd.cycles(in_tiles(problem.conv), plan, unit)
        return problem.conv.batch * int8_conv2d.cycles(problem.of_width(plan.width), plan.tile)

    def kernel(self, workload: Workload, plan: Plan) -> Kernel:
        problem = workload.problem
        zero, dot = problem.zero, problem.dot
        if isinstance(plan, winograd.Plan):
            tiled = in_tiles(problem.conv)
            shapes = [(problem.conv.in_shape, dot.dtype), (int8_winograd.packed_shape(tiled, plan), "int16")]
            return shapes, lambda X, U, extras, epilogue, dtype: int8_winograd.compute(
                X, U, tiled, zero, dot, plan, dtype, extras, epilogue
            )
        flat = problem.of_width(plan.width)
        shapes = [
            (flat.conv.in_shape, dot.dtype),
            (int8_conv2d.packed_shape(flat, plan), "int8"),
            (int8_conv2d.starts_shape(flat, plan), "int32"),
        ]
        return shapes, lambda X, W, S, extras, epilogue, dtype: int8_conv2d.compute(
            X, W, S, flat, plan, dtype, extras, epilogue
        )

    def tail(self, workload: Workload, plan: Plan) -> Tail:
        width, tail = getattr(plan, "width", None), workload.tail
        return tail.reshaped(*workload.problem.of_width(width).conv.window.out_size) if width else tail


class Int8Products(Kind):
    op = "int8_gemm"

    def default(self, workload: Workload, unit: Unit) -> Plan:
        problem = workload.problem
        return int8_gemm.best_plan(problem.rows, problem.columns, problem.depth, unit)

    def plans(self, workload: Workload, unit: Unit) -> Iterator[Plan]:
        return int8_gemm.plans(workload.problem, unit)

    def kernel(self, workload: Workload, plan: Plan) -> Kernel:
        problem = workload.problem
        shapes: Shapes = [
            ((problem.rows, problem.depth), problem.dot.dtype),
            (int8_gemm.packed_shape(problem, plan), "int8"),
            (int8_gemm.starts_shape(problem, plan), "int32"),
        ]
        return shapes, lambda A, W, S, extras, epilogue, dtype: int8_gemm.compute(
            A, W, S, problem.columns, plan, problem.dot, dtype, extras, epilogue
        )
