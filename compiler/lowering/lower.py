"""From a graph to a program: every group becomes calls of kernels on tensors in the layouts they want."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from tvm import tirx

from nnc.errors import NncError
from nnc.lowering.expression import Expression
from nnc.lowering.kernels.gemm import Epilogue, Unit, lanes_of
from nnc.lowering.program import Operand, Program, Tensor

PLAIN = 1  # the block of NCHW
Shape = tuple[int, ...]


def shape_of(tensor: gs.Tensor) -> Shape:
    """The static shape of a tensor."""
    shape = tensor.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        raise NncError(f"tensor '{tensor.name}' has no static shape", "fix the model's inputs with --shape")
    return tuple(shape)


def block_constant(array: np.ndarray, block: int) -> np.ndarray:
    """`[n, channels, height, width]` in blocks of channels; an axis of one channel keeps one lane."""
    n, channels, height, width = array.shape
    if channels == 1:
        return array[..., None]
    padded = np.pad(array, ((0, 0), (0, -channels % block), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, block, height, width).transpose(0, 1, 3, 4, 2))


@dataclass(frozen=True)
class Tail:
    """What follows a group's root: the expression, and its operands in the kernel's layout."""

    expression: Expression
    operands: tuple[Operand, ...]
    shapes: tuple[Shape, ...]
    """Of the operands, each axis that of the kernel's output or 1."""
    channels: int | None = None
    """Channels that are there, where the last block has fewer than it could and the expression may not run on zeros."""

    @property
    def key(self) -> Hashable:
        return self.expression, self.shapes, self.channels

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
            _, block, _, _, lane = index
            width = int(extras[0].shape[-1]) if False else self._lanes
            return tirx.Select(block * width + lane < self.channels, result, tirx.const(0, "float32"))

        return apply


class Lowering:
    """The state of a translation: where every tensor of the graph is, in which layouts, and the calls so far."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.block = lanes_of(unit)
        self.program = Program()
        self._forms: dict[int, dict[int, Tensor]] = {}  # id of a graph tensor -> block -> tensor
        self._functions: dict[Hashable, Any] = {}
