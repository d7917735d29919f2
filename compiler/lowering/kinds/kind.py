"""What a kind of problem has to tell: its plans, what they cost, and the kernel of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from tvm import te, tirx

from nnc.lowering.kernels import winograd
from nnc.lowering.kernels.convolution import Conv2d
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.tail import Tail

if TYPE_CHECKING:
    from nnc.lowering.workload import Workload


Plan = Any
"""A frozen dataclass of one of the templates."""

Shapes = list[tuple[tuple[int, ...], str]]
Kernel = tuple[Shapes, Callable[..., te.Tensor]]
"""Shapes and types of the operands, and what computes of operands, extras, epilogue and dtype."""


class Kind:
    """How workloads of a kind of problem are planned and computed."""

    op: str

    def default(self, workload: Workload, unit: Unit) -> Plan:
        raise NotImplementedError

    def plans(self, workload: Workload, unit: Unit) -> Iterator[Plan]:
        raise NotImplementedError

    def cycles(self, workload: Workload, plan: Plan, unit: Unit) -> float:
        """What a plan is expected to take, up to a factor; equal where the template does not tell plans apart."""
        return 1.0

    def holds(self, workload: Workload, plan: Plan, unit: Unit) -> bool:
        """Whether a plan is one of the workload's."""
        return plan in _space(workload, unit)

    def kernel(self, workload: Workload, plan: Plan) -> Kernel:
        raise NotImplementedError

    def function(self, workload: Workload, plan: Plan, unit: Unit) -> tirx.PrimFunc:
        """The kernel: of its input, packed weights, what the epilogue reads, and the result."""
        shapes, compute = self.kernel(workload, plan)
        tail = self.tail(workload, plan)
        read = [*shapes, *((tuple(each.shape), str(each.dtype)) for each in tail.operands)]
        tensors = [te.placeholder(shape, name=f"p{i}", dtype=dtype) for i, (shape, dtype) in enumerate(read)]
        operands, extras = tensors[: len(shapes)], tensors[len(shapes) :]
        return te.create_prim_func([*tensors, compute(*operands, extras, tail.epilogue(extras), tail.dtype)])

    def tail(self, workload: Workload, plan: Plan) -> Tail:
        return workload.tail

    def typical(self, problem: Any) -> Any:
        """The problem that stands for all that the same plans are good for."""
        return problem

    def described(self, problem: Any) -> dict[str, Any]:
        """The problem as records have it."""
        return asdict(problem)

    def dtype(self, problem: Any) -> str:
        """Of what is read."""
        return str(problem.dtype)

    def in_blocks(self, problem: Any, in_block: int | None, block: int) -> Any:
        raise NotImplementedError

    def channels(self, problem: Any) -> int:
        """Of the result."""
        raise NotImplementedError


@cache
def _space(workload: Workload, unit: Unit) -> frozenset[Plan]:
    return frozenset(workload.plans(unit))


def flattens(conv: Conv2d, workload: Workload) -> bool:
    """Whether the rows of the image don't matter, to the epilogue either."""
    return len(conv.widths()) > 1 and workload.tail.fits(*conv.window.out_size)


def in_tiles(conv: Conv2d) -> winograd.Convolution:
    tiled = winograd.Convolution.of(conv)
    assert tiled is not None
    return tiled
