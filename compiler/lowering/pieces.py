"""Pieces: the functions that a node without a template is lowered to, and the values between them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
import tvm
import tvm_ffi
from tvm import te, tirx

from nnc.errors import reason
from nnc.lowering import model
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.shapes import dtype_of, shape_of

Shape = tuple[int, ...]


class Refused(Exception):
    """Why a node can't be lowered."""


def refused(error: Exception) -> Refused:
    """An error of whatever a node was given to, as the reason why it can't be lowered."""
    if isinstance(error, KeyError):
        return Refused(f"{error} is not known")
    return error if isinstance(error, Refused) else Refused(reason(error))


@dataclass(frozen=True)
class Value:
    """An array that a piece reads or writes, under the shape that its function has for it: the same memory.

    "input": the node's index-th input that is not constant. "temporary": between the pieces of one node.
    """

    kind: Literal["input", "constant", "temporary", "output"]
    index: int
    shape: Shape
    dtype: str
    values: np.ndarray | None = field(default=None, compare=False)
    """Of a constant."""

    def view(self, *shape: int) -> Value:
        values = None if self.values is None else self.values.reshape(shape)
        return replace(self, shape=shape, values=values)


def constant(values: np.ndarray) -> Value:
    return Value("constant", 0, values.shape, str(values.dtype), values)


@dataclass(frozen=True)
class Piece:
    """One function of a node's lowering: `function(operands..., results...)`."""

    key: Hashable
    """Pieces with equal keys have the same function."""
    function: tirx.PrimFunc
    operands: tuple[Value, ...]
    results: tuple[Value, ...]


@dataclass
class Work:
    """A node that is being lowered: what it reads and makes, and the pieces so far."""

    node: gs.Node
    unit: Unit
    machine: tvm.target.Target
    opset: int
    scheduled: Callable[[tirx.PrimFunc], tirx.PrimFunc]
    """Gives loops a schedule that have none."""
    pieces: list[Piece] = field(default_factory=list)

    # -- the node

    def has(self, index: int) -> bool:
        return len(self.node.inputs) > index and not self.node.inputs[index].is_empty()

    def input(self, index: int) -> Value:
        """An input that is there."""
        tensor = self.node.inputs[index]
        if isinstance(tensor, gs.Constant):
            return constant(tensor.values)
        place = sum(not isinstance(each, gs.Constant) and not each.is_empty() for each in self.node.inputs[:index])
        return Value("input", place, shape_of(tensor), dtype_of(tensor))

    def inputs(self) -> list[Value]:
        return [self.input(index) for index in range(len(self.node.inputs)) if self.has(index)]

    def array(self, index: int, default: Any = None) -> np.ndarray:
        """The values of an input that has to be constant, or the default where it is left out."""
        if not self.has(index):
            return default
        tensor = self.node.inputs[index]
        if not isinstance(tensor, gs.Constant):
            raise Refused(f"its input {index} is not constant")
        return tensor.values

    def attribute(self, name: str, default: Any = None) -> Any:
        value = self.node.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def axis(self, default: int = -1, rank: int | None = None) -> int:
        """The attribute `axis` of an operator whose first input has `rank` axes, counted from the front."""
        rank = len(self.input(0).shape) if rank is None else rank
        return int(self.attribute("axis", default)) % rank

    def shape(self, index: int = 0) -> Shape:
        """Of an output."""
        return shape_of(self.node.outputs[index])

    def dtype(self, index: int = 0) -> str:
        return dtype_of(self.node.outputs[index])

    # -- pieces

    def add(
        self, function: tirx.PrimFunc, operands: Sequence[Value], results: Sequence[tuple[Shape, str]]
    ) -> list[Value]:
        """Append a piece; returns its results."""
        first = sum(len(piece.results) for piece in self.pieces)
        made = [Value("temporary", first + place, shape, dtype) for place, (shape, dtype) in enumerate(results)]
        key: Hashable = tvm_ffi.StructuralKey(function)  # type: ignore[call-arg]
        self.pieces.append(Piece(key, function, tuple(operands), tuple(made)))
        return made

    def kernel(self, operands: Sequence[Value], body: Callable[..., te.Tensor]) -> Value:
        """Append the piece of a template: `body` computes a tensor from placeholders of the operands."""
        return self.kernels(operands, lambda *ins: [body(*ins)])[0]

    def kernels(self, operands: Sequence[Value], body: Callable[..., Sequence[te.Tensor]]) -> list[Value]:
        """The same of a template that computes several tensors."""
        function, results = _function(operands, body)
        return self.add(function, operands, results)

    def compute(self, operands: Sequence[Value], body: Callable[..., te.Tensor]) -> Value:
        """The same of a computation that has no schedule."""
        function, results = _function(operands, lambda *ins: [body(*ins)])
        return self.add(self.scheduled(function), operands, results)[0]

    def apply(self, op: str, *operands: Value | None, outputs: int = 1, **attributes: Any) -> list[Value]:
        """Append the pieces of another node on values of this one; returns its outputs."""
        from nnc.lowering import generic

        try:
            node = model.typed(op, [_tensor(each) for each in operands], outputs, attributes, self.opset)
            inner = Work(node, self.unit, self.machine, self.opset, self.scheduled)
            made = generic.results(inner)
        except Exception as error:  # onnx infers no shapes of some operands
            raise Refused(f"its {op}: {refused(error)}") from error
        read = [each for each in operands if each is not None and each.kind != "constant"]
        first = sum(len(piece.results) for piece in self.pieces)

        def renamed(value: Value) -> Value:
            if value.kind == "input":
                return read[value.index].view(*value.shape)
            return replace(value, index=first + value.index) if value.kind == "temporary" else value

        self.pieces += [
            replace(piece, operands=tuple(map(renamed, piece.operands)), results=tuple(map(renamed, piece.results)))
            for piece in inner.pieces
        ]
        return [renamed(each).view(*shape_of(tensor)) for each, tensor in zip(made, node.outputs, strict=False)]

    def finish(self, results: Sequence[Value]) -> list[Piece]:
        """The pieces with the node's outputs as results: what a piece makes is renamed, anything else is copied."""
        names: dict[tuple[str, int], int] = {}
        for index, (tensor, result) in enumerate(zip(self.node.outputs, results, strict=False)):
            if not tensor.name:
                continue
            if result.dtype != self.dtype(index) or prod(result.shape) != prod(self.shape(index)):
                raise Refused(f"its output {index} would be {result.dtype} {list(result.shape)}")
            if result.kind != "temporary" or (result.kind, result.index) in names:
                result = self._copy(result)
            names[result.kind, result.index] = index

        def renamed(value: Value) -> Value:
            index = names.get((value.kind, value.index))
            return value if index is None else replace(value, kind="output", index=index)

        return [
            replace(piece, operands=tuple(map(renamed, piece.operands)), results=tuple(map(renamed, piece.results)))
            for piece in self.pieces
        ]

    def _copy(self, value: Value) -> Value:
        flat = value.view(prod(value.shape))
        return self.compute([flat], lambda X: te.compute(X.shape, lambda i: X[i], "copy"))


def _tensor(value: Value | None) -> gs.Tensor:
    """A tensor of a graph that stands for a value."""
    if value is None:
        return gs.Variable.empty()
    if value.values is not None:
        return gs.Constant("c", value.values)
    return gs.Variable("x", np.dtype(value.dtype), list(value.shape))


def _function(
    operands: Sequence[Value], body: Callable[..., Sequence[te.Tensor]]
) -> tuple[tirx.PrimFunc, list[tuple[Shape, str]]]:
    """The function of tensors computed from placeholders, and shapes and types of what it makes."""
    placeholders = [te.placeholder(each.shape, each.dtype, f"p{place}") for place, each in enumerate(operands)]
    tensors = body(*placeholders)
    results = [(tuple(int(size) for size in each.shape), str(each.dtype)) for each in tensors]
    return te.create_prim_func([*placeholders, *tensors]), results
