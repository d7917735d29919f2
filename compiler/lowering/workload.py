"""Workloads: what a schedule is chosen for, and the plans that it can be chosen from.

A workload is the problem of a template and the epilogue of its group. Two layers with equal workloads have the same
kernel, whatever their weights; a plan that was found to be fast for one is fast for the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Protocol

import numpy as np
from tvm import te, tirx

from nnc.lowering.expression import Expression
from nnc.lowering.kernels import conv2d, depthwise, expand, gemm, int8_conv2d, int8_gemm, int8_winograd, winograd
from nnc.lowering.kernels.conv2d import Conv2d
from nnc.lowering.kernels.depthwise import Depthwise
from nnc.lowering.kernels.gemm import Gemm, GemmPlan, RegisterTile
from nnc.lowering.kernels.int8_conv2d import Int8Conv2d
from nnc.lowering.kernels.int8_gemm import Int8Gemm
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.tail import Tail
from nnc.output import as_json

Plan = Any
"""A frozen dataclass of one of the templates."""


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
        typical = _KINDS[type(problem)].typical(problem)
        return cls(typical, tail.expression, operands, tail.block, tail.channels)

    @property
    def op(self) -> str:
        return self._kind.op

    @property
    def _kind(self) -> _Kind:
        return _KINDS[type(self.problem)]

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
        plan = _decoded(content)
        return plan if plan is not None and plan in _space(self, unit) else None

    def function(self, plan: Plan, unit: Unit) -> tirx.PrimFunc:
        """The kernel: of its input, packed weights, what the epilogue reads, and the result."""
        shapes, compute = self._kind.kernel(self, plan)
        tail = self._kind.tail(self, plan)
        read = [*shapes, *((tuple(each.shape), str(each.dtype)) for each in tail.operands)]
        tensors = [te.placeholder(shape, name=f"p{i}", dtype=dtype) for i, (shape, dtype) in enumerate(read)]
        operands, extras = tensors[: len(shapes)], tensors[len(shapes) :]
        return te.create_prim_func([*tensors, compute(*operands, extras, tail.epilogue(extras), tail.dtype)])


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

    def time(self, workload: Workload) -> float:
        """What a workload takes with its best plan, milliseconds; infinity where nothing is known."""


class Unknown:
    """Nothing is known."""

    def find(self, workload: Workload) -> None:
        return None

    def time(self, workload: Workload) -> float:
        return math.inf


def encoded(plan: Plan) -> dict[str, Any]:
    """A plan in JSON's types."""
    return {"template": _NAMES[type(plan)], **asdict(plan)}


def _decoded(content: Mapping[str, Any]) -> Plan | None:
    try:
        fields = dict(content)
        template = _TEMPLATES[fields.pop("template")]
        if "tile" in fields:
            fields["tile"] = RegisterTile(**fields["tile"])
        if "expand" in fields:
            fields["expand"] = _decoded({"template": "conv2d", **fields["expand"]})
        return template(**fields)
    except (KeyError, TypeError):
        return None


_TEMPLATES: dict[str, Any] = {
    "conv2d": conv2d.Plan,
    "winograd": winograd.Plan,
    "depthwise": depthwise.Plan,
    "gemm": GemmPlan,
    "int8_conv2d": int8_conv2d.Int8Plan,
    "expand_depthwise": expand.ExpandPlan,
}
_NAMES = {template: name for name, template in _TEMPLATES.items()}

Shapes = list[tuple[tuple[int, ...], str]]
Kernel = tuple[Shapes, Callable[..., te.Tensor]]
"""Shapes and types of the operands, and what computes of operands, extras, epilogue and dtype."""


class _Kind:
    """How workloads of a kind of problem are planned and computed."""

    op: str

    def default(self, workload: Workload, unit: Unit) -> Plan:
        raise NotImplementedError

    def plans(self, workload: Workload, unit: Unit) -> Iterator[Plan]:
        raise NotImplementedError

    def cycles(self, workload: Workload, plan: Plan, unit: Unit) -> float:
        """What a plan is expected to take, up to a factor; equal where the template does not tell plans apart."""
        return 1.0

    def kernel(self, workload: Workload, plan: Plan) -> Kernel:
        raise NotImplementedError

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


class _Convolutions(_Kind):
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
        if not _flattens(conv, workload):
            return conv2d.best_plan(conv, unit)
        flat = conv.flattened(unit)
        return replace(conv2d.best_plan(flat, unit), width=flat.window.out_size[1])

    def plans(self, workload: Workload, unit: Unit) -> Iterator[Plan]:
        conv, tiled = workload.problem, winograd.Convolution.of(workload.problem)
        for width in conv.widths() if _flattens(conv, workload) else [None]:
            for plan in conv2d.plans(conv.of_width(width) if width else conv, unit):
                yield replace(plan, width=width)
        if tiled is not None:
            yield from winograd.plans(tiled, unit)

    def cycles(self, workload: Workload, plan: Plan, unit: Unit) -> float:
        """Both algorithms in cycles of one core."""
        if isinstance(plan, winograd.Plan):
            return unit.threads * winograd.cycles(_tiled(workload.problem), plan, unit)
        return conv2d.cycles(_direct(workload, plan), plan, unit)

    def kernel(self, workload: Workload, plan: Plan) -> Kernel:
        if isinstance(plan, winograd.Plan):
            tiled = _tiled(workload.problem)
            shapes = [(workload.problem.in_shape, tiled.dtype), (winograd.packed_shape(tiled, plan), tiled.dtype)]
            return shapes, lambda X, U, *rest: winograd.compute(X, U, tiled, plan, *rest)
        conv = _direct(workload, plan)
        shapes = [(conv.in_shape, conv.dtype), (conv2d.packed_shape(conv, plan), conv.dtype)]
        return shapes, lambda X, W, *rest: conv2d.compute(X, W, conv, plan, *rest)

    def tail(self, workload: Workload, plan: Plan) -> Tail:
        tail = workload.tail
        return tail.reshaped(*_direct(workload, plan).window.out_size) if getattr(plan, "width", None) else tail


def _flattens(conv: Conv2d, workload: Workload) -> bool:
    """Whether the rows of the image don't matter, to the epilogue either."""
    return len(conv.widths()) > 1 and workload.tail.fits(*conv.window.out_size)


def _tiled(conv: Conv2d) -> winograd.Convolution:
    tiled = winograd.Convolution.of(conv)
    assert tiled is not None
    return tiled


def _direct(workload: Workload, plan: conv2d.Plan) -> Conv2d:
    return workload.problem.of_width(plan.width) if plan.width else workload.problem


class _Depthwises(_Kind):
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


class _Expansions(_Kind):
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


class _Products(_Kind):
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


class _Int8Convolutions(_Kind):
    """Direct, over images of any width where they are pointwise, or by Winograd's algorithm in 16 bits."""

    op = "int8_conv2d"

    def typical(self, problem: Int8Conv2d) -> Int8Conv2d:
        return replace(problem, zero=int(problem.zero != 0))

    def dtype(self, problem: Int8Conv2d) -> str:
        return problem.dot.dtype

    def default(self, workload: Workload, unit: Unit) -> Plan:
        problem = workload.problem
        if problem.winograd:
            plan = int8_winograd.best_plan(_tiled(problem.conv), unit, problem.winograd)
            if int8_winograd.wins(_tiled(problem.conv), plan, problem, unit):
                return plan
        choose = int8_conv2d.best_flat_plan if _flattens(problem.conv, workload) else int8_conv2d.best_plan
        return choose(problem, unit)

    def plans(self, workload: Workload, unit: Unit) -> Iterator[Plan]:
        problem = workload.problem
        for width in problem.conv.widths() if _flattens(problem.conv, workload) else [None]:
            for plan in int8_conv2d.plans(problem.of_width(width), unit):
                yield replace(plan, width=width)
        if problem.winograd:
            yield from int8_winograd.plans(_tiled(problem.conv), unit, problem.winograd)

    def cycles(self, workload: Workload, plan: Plan, unit: Unit) -> float:
        """Both algorithms in cycles of one core."""
        problem = workload.problem
        if isinstance(plan, winograd.Plan):
            return unit.threads * int8_winograd.cycles(_tiled(problem.conv), plan, unit)
        return problem.conv.batch * int8_conv2d.cycles(problem.of_width(plan.width), plan.tile)

    def kernel(self, workload: Workload, plan: Plan) -> Kernel:
        problem = workload.problem
        zero, dot = problem.zero, problem.dot
        if isinstance(plan, winograd.Plan):
            tiled = _tiled(problem.conv)
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


class _Int8Products(_Kind):
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


_KINDS: dict[type, _Kind] = {
    Conv2d: _Convolutions(),
    Depthwise: _Depthwises(),
    Gemm: _Products(),
    Int8Conv2d: _Int8Convolutions(),
    Int8Gemm: _Int8Products(),
    Expansion: _Expansions(),
}


@cache
def _space(workload: Workload, unit: Unit) -> frozenset[Plan]:
    return frozenset(workload.plans(unit))
