"""Loop nests without a template: functions as TVM computes them, scheduled as TVM's MetaSchedule found to be fast.

A plan is a trace, the steps of a schedule with all decisions (Shao et al., "Tensor Program Optimization with
Probabilistic Programs", 2022). The steps of a schedule keep what a function computes, so that a trace of another
function is slow at worst, or can't be applied. Nobody can list all of them: `nnc.tuning.drawn` draws some.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import tvm
from tvm import s_tir, tirx

from nnc.lowering.kernels.unit import Unit
from nnc.lowering.kinds.kind import Kind
from nnc.lowering.schedule import module_of, schedule

if TYPE_CHECKING:
    from nnc.lowering.workload import Workload


@dataclass(frozen=True)
class General:
    """A function of tensors, without a schedule."""

    operator: str
    """In ONNX."""
    text: str
    """As TVM prints it: equal texts are equal functions."""
    function: tirx.PrimFunc = field(compare=False, repr=False)

    @classmethod
    def of(cls, operator: str, function: tirx.PrimFunc) -> General:
        return cls(operator, function.script(), function)

    @property
    def shapes(self) -> list[list[int]]:
        """Of the operands, then the results."""
        return [[int(size) for size in each.ty.shape] for each in self.function.params]

    @property
    def module(self) -> tvm.IRModule:
        """What schedules and searches begin with, as "main"."""
        return module_of(self.function)


@dataclass(frozen=True)
class Trace:
    """A schedule of MetaSchedule's, or nnc's default schedule."""

    trace: str | None = None
    """JSON, as TVM has it; None: the default."""


class Generals(Kind):
    op = "general"

    def described(self, problem: General) -> dict[str, Any]:
        digest = hashlib.sha256(problem.text.encode()).hexdigest()[:16]
        return {"operator": problem.operator, "shapes": problem.shapes, "function": digest}

    def dtype(self, problem: General) -> str:
        return "float32"

    def default(self, workload: Workload, unit: Unit) -> Trace:
        return Trace()

    def plans(self, workload: Workload, unit: Unit) -> Iterator[Trace]:
        yield Trace()

    def holds(self, workload: Workload, plan: Any, unit: Unit) -> bool:
        return isinstance(plan, Trace) and (plan.trace is None or _applied(workload.problem, plan.trace) is not None)

    def function(self, workload: Workload, plan: Trace, unit: Unit) -> tirx.PrimFunc:
        return scheduled(workload.problem, plan, unit)


def scheduled(problem: General, plan: Trace, unit: Unit) -> tirx.PrimFunc:
    """The function with the schedule of a plan; raises ValueError for one that doesn't fit."""
    if plan.trace is None:
        return schedule(problem.module["main"], unit)
    function = _applied(problem, plan.trace)
    if function is None:
        raise ValueError("the trace is one of another function")
    return function


@lru_cache(maxsize=64)  # a compile asks whether a trace fits, and then for the function
def _applied(problem: General, trace: str) -> tirx.PrimFunc | None:
    """The function that a trace makes; None where it doesn't fit."""
    state = s_tir.Schedule(problem.module)
    try:
        s_tir.schedule.Trace.apply_json_to_schedule(json.loads(trace), state)
    except Exception:  # TVM has no common base class for what it refuses
        return None
    return state.mod["main"]
