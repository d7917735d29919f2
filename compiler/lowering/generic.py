"""Nodes without a template: TVM's own ONNX frontend and legalization, with the default schedule of `schedule.py`.

A node becomes a model of its own, with its constants as constants, so that all that depends on them is decided here.
What TVM refuses, computes differently from ONNX, or leaves as a scalar loop is written down in `operators.py`.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import tvm
import tvm_ffi
from tvm import relax, te, tirx

from nnc.errors import NncError
from nnc.graph import OPSET
from nnc.lowering.kernels.gemm import Unit
from nnc.lowering.schedule import schedule
from nnc.lowering.shapes import shape_of

Shape = tuple[int, ...]


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

    def view(self, shape: Shape) -> Value:
        values = None if self.values is None else self.values.reshape(shape)
        return replace(self, shape=shape, values=values)


@dataclass(frozen=True)
class Piece:
    """One function of a node's lowering: `function(operands..., results...)`."""

    key: Hashable
    """Pieces with equal keys have the same function."""
    function: tirx.PrimFunc
    operands: tuple[Value, ...]
    results: tuple[Value, ...]


def lower(node: gs.Node, unit: Unit, machine: tvm.target.Target, opset: int = OPSET) -> list[Piece]:
    """The pieces that compute a node on plain tensors of static shapes, in order.

    `machine` is what TVM knows of the unit, `opset` the version that the node is written in. Raises NncError, naming
    the node, where nnc can't lower it.
    """
    for tensor in node.outputs:
        if tensor.name:
            shape_of(tensor)
    try:
        return _through_tvm(node, unit, machine, opset)
    except Refused as refusal:
        reason = f": {refusal}" if str(refusal) else ""
        raise NncError(
            f"node '{node.name}' ({node.op}): nnc can't lower it{reason}",
            "--no-lower writes model.onnx, which runs in onnxruntime",
        ) from refusal


class Refused(Exception):
    """Why a node can't be lowered."""


# -- through TVM


def _through_tvm(node: gs.Node, unit: Unit, machine: tvm.target.Target, opset: int) -> list[Piece]:
    if node.domain not in (None, "", "ai.onnx"):
        raise Refused(f"operators of the domain '{node.domain}' are not known")
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.DeadCodeElimination(),
    ]
    with machine:
        module = tvm.transform.Sequential(passes)(_imported(_model(node, opset)))
    walk = _Walk(module, unit)
    results = walk.results()
    return _with_outputs(node, walk.pieces, results, unit)


def _model(node: gs.Node, opset: int) -> onnx.ModelProto:
    """A model of one node; constants stay constants, every other input becomes an input of the model."""
    inputs: list[gs.Tensor] = []
    copied: list[gs.Tensor] = []
    for index, tensor in enumerate(node.inputs):
        if isinstance(tensor, gs.Constant):
            copied.append(gs.Constant(f"x{index}", tensor.values))
        elif tensor.is_empty():
            copied.append(gs.Variable.empty())
        else:
            copied.append(gs.Variable(f"x{index}", tensor.dtype, shape_of(tensor)))
            inputs.append(copied[-1])
    outputs = [
        gs.Variable(f"y{index}", tensor.dtype, shape_of(tensor)) if tensor.name else gs.Variable.empty()
        for index, tensor in enumerate(node.outputs)
    ]
    alone = gs.Node(node.op, node.op, dict(node.attrs), copied, outputs, node.domain)
    graph = gs.Graph([alone], inputs, [each for each in outputs if each.name], opset=opset)
    return gs.export_onnx(graph, do_type_check=False)


def _imported(model: onnx.ModelProto) -> tvm.IRModule:
    from tvm.relax.frontend.onnx import from_onnx

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints what it can't import
        warnings.simplefilter("ignore")
        try:
            return from_onnx(model, keep_params_in_input=False)
        except Exception as error:  # whatever the frontend stumbles over
            raise Refused(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


class _Walk:
    """Turns the bindings of a Relax function into pieces; values are followed by the variables that hold them."""

    def __init__(self, module: tvm.IRModule, unit: Unit) -> None:
        self.pieces: list[Piece] = []
        self._module, self._unit = module, unit
        self._values: dict[Any, Any] = {
            parameter: Value("input", index, *_type(parameter.ty))
            for index, parameter in enumerate(module["main"].params)
        }

    def results(self) -> list[Value]:
        """Go through the function; returns what it returns."""
        body = self._module["main"].body
        for binding in (each for block in body.blocks for each in block.bindings):
            self._values[binding.var] = self._bound(binding.value, binding.var.ty)
        result = self._bound(body.body, body.body.ty)
        return result if isinstance(result, list) else [result]

    def _bound(self, value: Any, kind: Any) -> Any:
        if isinstance(value, relax.Var):
            return self._values[value]
        if isinstance(value, relax.Tuple):
            return [self._bound(field, field.ty) for field in value.fields]
        if isinstance(value, relax.TupleGetItem):
            return self._bound(value.tuple_value, None)[value.index]
        if isinstance(value, tvm.ir.GenericConst):
            array = value.value.numpy()
            return constant(array)
        if isinstance(value, relax.Call) and _name(value) == "relax.reshape":
            return self._bound(value.args[0], None).view(_type(kind)[0])
        if isinstance(value, relax.Call) and _name(value) == "relax.call_tir":
            return self._call(self._module[value.args[0]], value.args[1], kind)
        raise Refused(f"TVM has no kernel for {_name(value)}")

    def _call(self, function: tirx.PrimFunc, arguments: Any, kind: Any) -> Any:
        kinds = list(kind.fields) if isinstance(kind, relax.TupleType) else [kind]
        count = sum(len(piece.results) for piece in self.pieces)
        results = [Value("temporary", count + place, *_type(each)) for place, each in enumerate(kinds)]
        operands = [self._bound(argument, argument.ty) for argument in arguments]
        scheduled = schedule(function, self._unit)
        key = tvm_ffi.StructuralKey(scheduled)
        self.pieces.append(Piece(key, scheduled, tuple(operands), tuple(results)))
        return results if isinstance(kind, relax.TupleType) else results[0]


def _name(value: Any) -> str:
    """What a Relax expression calls."""
    return getattr(getattr(value, "op", None), "name", type(value).__name__)


def _type(kind: Any) -> tuple[Shape, str]:
    """Shape and dtype of a Relax tensor."""
    if not isinstance(kind, relax.TensorType) or kind.shape is None:
        raise Refused("the shape of its result depends on values")
    if not all(isinstance(size, tirx.IntImm) for size in kind.shape):
        raise Refused("the shape of its result depends on values")
    return tuple(int(size) for size in kind.shape), str(kind.dtype)


# -- the ends of a node


def constant(values: np.ndarray) -> Value:
    return Value("constant", 0, values.shape, str(values.dtype), values)


def _with_outputs(node: gs.Node, pieces: list[Piece], results: Sequence[Value], unit: Unit) -> list[Piece]:
    """The pieces with the node's outputs as results: what a piece makes is renamed, anything else is copied."""
    names: dict[tuple[str, int], int] = {}
    for index, (tensor, result) in enumerate(zip(node.outputs, results, strict=False)):
        if not tensor.name:
            continue
        if result.dtype != np.dtype(tensor.dtype).name or prod(result.shape) != prod(shape_of(tensor)):
            raise Refused(f"TVM computes {result.dtype} {result.shape} for output {index}")
        if result.kind == "temporary" and (result.kind, result.index) not in names:
            names[result.kind, result.index] = index
        else:
            pieces = [*pieces, _copy(result, index, unit)]

    def rename(value: Value) -> Value:
        index = names.get((value.kind, value.index))
        return value if index is None else replace(value, kind="output", index=index)

    return [
        replace(piece, operands=tuple(map(rename, piece.operands)), results=tuple(map(rename, piece.results)))
        for piece in pieces
    ]


def _copy(source: Value, index: int, unit: Unit) -> Piece:
    """The piece that copies a value to an output."""
    length = prod(source.shape)
    X = te.placeholder((length,), source.dtype, "X")
    function = te.create_prim_func([X, te.compute((length,), lambda i: X[i], "copy")])
    return Piece(
        ("copy", length, source.dtype),
        schedule(function, unit),
        (source.view((length,)),),
        (Value("output", index, (length,), source.dtype),),
    )
