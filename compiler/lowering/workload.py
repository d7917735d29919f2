"""Workloads: what a schedule is chosen for, and the plans that it can be chosen from.

A workload is the problem of a template and the epilogue of its group. Two layers with equal workloads have the same
kernel, whatever their weights; a plan that was found to be fast for one is fast for the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from tvm import tirx

from nnc.lowering import kinds
from nnc.lowering.expression import Expression
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.kinds import Kind, Plan
from nnc.lowering.tail import Tail
from nnc.store import as_json


@dataclass(frozen=True)
class Workload:
    """The problem of a template, and what its epilogue computes and reads."""

    problem: Any
    expression: Expression
    operands: tuple[tuple[tuple[int, ...], str], ...]
    """Shapes and types of what the epilogue reads beside the value."""
    block: int
    channels: int | None

    @classmethod
    def of(cls, problem: Any, tail: Tail) -> Workload:
        operands = tuple((tuple(each.shape), str(each.dtype)) for each in tail.operands)
        typical = kinds.KINDS[type(problem)].typical(problem)
        return cls(typical, tail.expression, operands, tail.block, tail.channels)

    @property
    def op(self) -> str:
        return self._kind.op

    @property
    def _kind(self) -> Kind:
        return kinds.KINDS[type(self.problem)]

    @property
    def tail(self) -> Tail:
        """The epilogue on operands of zeros, which take no memory."""
        zeros = (np.broadcast_to(np.zeros((), dtype), shape) for shape, dtype in self.operands)
        return Tail(self.expression, tuple(zeros), self.block, self.channels)

    @property
    def key(self) -> dict[str, Any]:
        """The workload in JSON's types. Constants of the epilogue don't count: they change no schedule."""
        epilogue = {
            "steps": [step.op for step in self.expression.steps],
            "operands": [[list(shape), dtype] for shape, dtype in self.operands],
            "dtype": self.expression.dtype,
        }
        return as_json({"op": self.op, "problem": self._kind.described(self.problem), "epilogue": epilogue})

    @property
    def is_image(self) -> bool:
        """Whether it makes an image in blocks of any size."""
        return self.op in ("conv2d", "depthwise")

    @property
    def reads_blocks(self) -> bool:
        """Whether what is read is an image in blocks of channels."""
        return getattr(self.problem, "in_block", self.block) > 1

    def in_blocks(self, in_block: int | None, block: int) -> Workload:
        """The same layer where the images that it reads and writes are in these blocks; None: as it is read now.

        What the epilogue reads beside the value is in the blocks of the result, or has one channel.
        """
        problem = self._kind.in_blocks(self.problem, in_block, block)
        channels = self._kind.channels(self.problem)
        operands = tuple(
            (shape if shape[4] == 1 else (shape[0], -(-channels // block), *shape[2:4], block), dtype)
            for shape, dtype in self.operands
        )
        masked = channels % block and not self.expression.is_finite
        return replace(self, problem=problem, operands=operands, block=block, channels=channels if masked else None)

    def default(self, unit: Unit) -> Plan:
        """The plan that the unit's figures choose."""
        return self._kind.default(self, self._seen(unit))

    def plans(self, unit: Unit) -> list[Plan]:
        """The candidates; the default is the first."""
        return list(dict.fromkeys([self.default(unit), *self._kind.plans(self, self._seen(unit))]))

    def estimates(self, plans: Sequence[Plan], unit: Unit) -> list[float]:
        """What the figures expect plans to take, up to a factor."""
        return [self._kind.cycles(self, plan, self._seen(unit)) for plan in plans]

    def _seen(self, unit: Unit) -> Unit:
        """The unit as kernels of the problem's type see it."""
        return unit.of("float16" if self._kind.dtype(self.problem) == "float16" else "float32")

    def decoded(self, content: Mapping[str, Any], unit: Unit) -> Plan | None:
        """The plan that `encoded` wrote; None where it is none of this workload on this unit."""
        plan = kinds.decoded(content)
        return plan if plan is not None and self._kind.holds(self, plan, unit) else None

    def function(self, plan: Plan, unit: Unit) -> tirx.PrimFunc:
        """The kernel: of its input, packed weights, what the epilogue reads, and the result."""
        return self._kind.function(self, plan, unit)


@dataclass(frozen=True)
class Choice:
    """The plan of one layer of a network, or of a pair."""

    layers: list[str]
    """The nodes of the ONNX graph that it is about: one, or two that one kernel computes."""
    workload: Workload
    plan: Plan
    tuned: bool
    """Whether it was known to be fast, and not chosen by figures."""
    reads: str
    """The tensor of the graph that the layer's first input is."""
    writes: str


class Schedules(Protocol):
    """What is known of good plans."""

    def find(self, workload: Workload) -> Mapping[str, Any] | None:
        """The plan of a workload, as `encoded` wrote it; None where nothing is known."""

    def times(self, workloads: Iterable[Workload]) -> Callable[[Workload], float]:
        """What gives the milliseconds of a workload with its best plan; infinity where nothing is known.

        `workloads` are those of a network: all times for it were measured in the same way.
        """


class Unknown:
    """Nothing is known."""

    def find(self, workload: Workload) -> None:
        return None

    def times(self, workloads: Iterable[Workload]) -> Callable[[Workload], float]:
        return lambda workload: math.inf
