"""What follows the root of a group: the elementwise chain that its kernel computes before it stores a value."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import tirx

from nnc.lowering.expression import Expression
from nnc.lowering.kernels.registers import Epilogue
from nnc.lowering.program import Operand


def block_constant(array: np.ndarray, block: int) -> np.ndarray:
    """`[n, channels, height, width]` in blocks of channels; an axis of one channel keeps one lane."""
    n, channels, height, width = array.shape
    if channels == 1:
        return array[..., None]
    padded = np.pad(array, ((0, 0), (0, -channels % block), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, block, height, width).transpose(0, 1, 3, 4, 2))


@dataclass(frozen=True)
class Tail:
    """An expression, and its operands in the layout of the kernel's output: each axis as long as there, or 1."""

    expression: Expression
    operands: tuple[Operand, ...]
    block: int
    channels: int | None = None
    """The channels that are there, where the expression must not run on those that fill the last block."""

    @property
    def dtype(self) -> str:
        """Of what the kernel stores."""
        return self.expression.dtype

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(operand.shape) for operand in self.operands)

    @property
    def key(self) -> Hashable:
        return self.expression, self.shapes, self.channels

    def fits(self, height: int, width: int) -> bool:
        """Whether rows and columns can be reshaped: each operand has all of them, or one."""
        return all(shape[2:4] in ((height, width), (1, 1)) for shape in self.shapes)

    def reshaped(self, height: int, width: int) -> Tail:
        """The same over images of another height and width, with as many pixels."""

        def reshape(operand: Operand) -> Operand:
            if operand.shape[2:4] == (1, 1):
                return operand
            shape = (*operand.shape[:2], height, width, operand.shape[4])
            return operand.reshape(shape) if isinstance(operand, np.ndarray) else operand.view(shape)

        return replace(self, operands=tuple(map(reshape, self.operands)))

    def as_rows(self, rows: int, shape: tuple[int, ...]) -> Tail | None:
        """The same over `[rows, columns]` instead of `shape`; None where an operand has some of its rows."""
        if not all(each[:-1] in (shape[:-1], (1,) * (len(shape) - 1)) for each in self.shapes):
            return None

        def reshape(operand: Operand) -> Operand:
            flat = (rows if operand.shape[:-1] == shape[:-1] else 1, operand.shape[-1])
            return operand.reshape(flat) if isinstance(operand, np.ndarray) else operand.view(flat)

        return replace(self, operands=tuple(map(reshape, self.operands)))

    def epilogue(self, extras: Sequence[Any]) -> Epilogue:
        """The epilogue of a kernel, given the operands as tensors of TE."""

        def apply(value: Any, index: Sequence[Any]) -> Any:
            read = [
                extra[tuple(0 if size == 1 else i for size, i in zip(shape, index, strict=True))]
                for extra, shape in zip(extras, self.shapes, strict=True)
            ]
            result = self.expression.emit([value, *read])
            if self.channels is None:
                return result
            there = index[1] * self.block + index[-1] < self.channels
            return tirx.Select(there, result, tirx.const(0, self.dtype))

        return apply
