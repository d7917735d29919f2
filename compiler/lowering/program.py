"""The lowered network: kernels called one after the other on tensors in one block of memory.

Tensors that are views of others (a reshape, a slice of a concatenation) share their memory. A concatenation along the
outermost axis costs nothing: its operands are placed inside of its result, and their kernels write there at once.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

_ATTEMPTS = 32  # to place tensors without gaps


@dataclass(eq=False)
class Tensor:
    """A dense array in memory, or a view of one: `offset` bytes into `base`."""

    shape: tuple[int, ...]
    dtype: str
    base: Tensor | None = None
    offset: int = 0
    fixed: bool = False
    """Whether its memory is the caller's: inputs and outputs of the network."""

    @property
    def bytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def root(self) -> tuple[Tensor, int]:
        """The tensor that owns the memory, and the offset in it."""
        if self.base is None:
            return self, 0
        root, offset = self.base.root()
        return root, offset + self.offset

    def view(self, shape: tuple[int, ...], offset: int = 0) -> Tensor:
        """The same memory, from `offset` bytes on, under another shape."""
        return self if shape == self.shape and not offset else Tensor(shape, self.dtype, self, offset)


@dataclass(frozen=True)
class Constant:
    """A constant that was written to where the library has it: `offset` bytes into `region`, as network.c names it."""

    shape: tuple[int, ...]
    dtype: str
    region: str
    offset: int

    @property
    def bytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


Operand = Tensor | np.ndarray  # an array is a constant that is not yet written
Packed = Callable[[], np.ndarray]  # one that is packed when it is written
Place = Callable[[np.ndarray, Sequence[str]], Constant]
"""Writes a constant that nodes of these names read."""


@dataclass(eq=False)
class Call:
    """One call of a kernel, which was compiled for just these shapes."""

    key: Hashable
    """Calls with equal keys share one function."""
    function: Any
    """tvm.tirx.PrimFunc of the operands, then the results."""
    template: str
    nodes: list[str]
    """The ONNX nodes that it computes."""
    op: str
    """Their operators, joined by "+"."""
    operands: list[Tensor | Constant]
    results: list[Tensor]
    layout: str

    @property
    def reads(self) -> list[Tensor]:
        return [operand for operand in self.operands if isinstance(operand, Tensor)]


@dataclass(eq=False)
class Copy:
    """`rows` pieces of `bytes` bytes each, every so many bytes apart in the source and in the result."""

    nodes: list[str]
    source: Tensor | Constant
    result: Tensor
    rows: int
    bytes: int
    source_stride: int
    result_stride: int

    @property
    def reads(self) -> list[Tensor]:
        return [self.source] if isinstance(self.source, Tensor) else []

    @property
    def results(self) -> list[Tensor]:
        return [self.result]


@dataclass
class Program:
    """Steps in order; `inputs` and `outputs` by name, in the model's order, all of them fixed."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Call | Copy] = field(default_factory=list)
    choices: list[Any] = field(default_factory=list)
    """nnc.lowering.workload.Choice, of every layer that could have had another plan."""
    alignment: int = 64
    """Bytes; of every tensor that a kernel reads or writes."""
    slack: int = 0
    """Bytes behind the end of a tensor that kernels may read."""

    @property
    def calls(self) -> list[Call]:
        return [step for step in self.steps if isinstance(step, Call)]


@dataclass(frozen=True)
class Plan:
    """Where every tensor that owns memory lies in the workspace."""

    offsets: dict[int, int]
    """id of a root tensor -> bytes."""
    bytes: int


def plan_memory(program: Program) -> Plan:
    """Place tensors so that those which are alive at the same time don't overlap: one by one, lowest gap first.

    Of two orders, the one that takes less: by size, and by what is alive beside a tensor at its worst (Pisarchyk and
    Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020, greedy by size and by breadth). Where that
    is more than what is alive at one time, what lies highest comes first in a further attempt.
    """
    alive: dict[int, _Life] = {}
    for time, step in enumerate(program.steps):
        for tensor in [*step.reads, *step.results]:
            root, _ = tensor.root()
            first = alive[id(root)].first if id(root) in alive else time
            alive[id(root)] = _Life(root, -(-root.bytes // program.alignment) * program.alignment, first, time)
    lives = [life for life in alive.values() if not life.tensor.fixed]
    breadth = [sum(life.bytes for life in lives if life.first <= t <= life.last) for t in range(len(program.steps))]
    orders = [
        sorted(lives, key=lambda life: -life.tensor.bytes),
        sorted(lives, key=lambda life: (-max(breadth[life.first : life.last + 1]), -life.bytes)),
    ]
    best = min((_placed(order) for order in orders), key=lambda plan: plan.bytes)
    order = orders[1]
    for _ in range(_ATTEMPTS):
        if best.bytes <= max(breadth, default=0):
            break
        plan = _placed(order)
        best = min(best, plan, key=lambda each: each.bytes)
        highest = max(order, key=lambda life: plan.offsets[id(life.tensor)] + life.bytes)
        order = [highest, *(life for life in order if life is not highest)]
    return best


@dataclass(frozen=True)
class _Life:
    """A tensor that owns memory, and the steps from its first to its last use."""

    tensor: Tensor
    bytes: int
    """In whole units of alignment."""
    first: int
    last: int


def _placed(lives: Sequence[_Life]) -> Plan:
    placed: list[tuple[int, int, int, _Life]] = []  # start, end, and when it was placed
    for count, life in enumerate(lives):
        start = 0
        for begin, end, _, other in placed:
            if other.first <= life.last and life.first <= other.last:
                if begin - start >= life.bytes:
                    break
                start = max(start, end)
        insort(placed, (start, start + life.bytes, count, life))
    offsets = {id(life.tensor): start for start, _, _, life in placed}
    return Plan(offsets, max((end for _, end, _, _ in placed), default=0))
