"""Calls of templates with the epilogue of their group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnc.lowering.fuse import Group
from nnc.lowering.program import Operand, Packed, Tensor
from nnc.lowering.tail import Tail

if TYPE_CHECKING:
    from nnc.lowering.lowering import Lowering


@dataclass(frozen=True)
class Kernel:
    template: str
    problem: Any
    plan: Any


def emit(
    lowering: Lowering,
    group: Group,
    kernel: Kernel,
    operands: Sequence[Operand | Packed],
    tail: Tail,
    shape: tuple[int, ...],
    compute: Callable[..., Any],
    out_shape: tuple[int, ...] | None = None,
) -> None:
    """Append the call of a template; it computes `shape`, which is `out_shape` under another name."""
    result = Tensor(out_shape or shape, tail.dtype)
    layout = f"NCHW{tail.block}c" if tail.block > 1 else "plain"
    call(lowering, group, kernel, operands, tail, result.view(shape), compute, layout)
    lowering.define(group.outputs[0], result, tail.block)


def call(
    lowering: Lowering,
    group: Group,
    kernel: Kernel,
    operands: Sequence[Operand | Packed],
    tail: Tail,
    result: Tensor,
    compute: Callable[..., Any],
    layout: str,
) -> None:
    """Append the call of a template that writes `result`."""
    count = len(operands)
    lowering.call(
        kernel.template,
        (kernel, tail.key),
        [node.name for node in group.nodes],
        "+".join(node.op for node in group.nodes),
        [*operands, *tail.operands],
        [result],
        lambda *ins: compute(*ins[:count], ins[count:]),
        layout,
    )
