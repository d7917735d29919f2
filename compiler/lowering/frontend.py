"""Nodes through TVM's own ONNX frontend and legalization.

A node becomes a model of its own, with its constants as constants, so that all that depends on them is decided here.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax.frontend.onnx import from_onnx

from nnc.lowering import model
from nnc.lowering.pieces import Refused, Shape, Value, Work, constant, refused

OPERATORS = frozenset({
    "AffineGrid", "AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "Einsum", "Expand", "GlobalLpPool",
    "GridSample", "Hardmax", "LpPool", "MatMul", "MatMulInteger", "MaxPool", "Slice", "SpaceToDepth", "Split", "Trilu",
    # Of float64 numbers.
    "Ceil", "Cos", "Exp", "Floor", "Gemm", "Log", "LogSoftmax", "Reciprocal", "Sigmoid", "Sin", "Softmax", "Sqrt",
    "Tanh",
})  # fmt: skip
"""Those whose results agree with onnxruntime's: some others of TVM's frontend compute something else."""


def results(work: Work) -> list[Value]:
    """Append the pieces of a node; returns its outputs."""
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.DeadCodeElimination(),
    ]
    alone = model.alone(work.node, work.opset)
    # The frontend warns of harmless things, and prints what it can't import.
    with work.machine, warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        try:
            module = tvm.transform.Sequential(passes)(from_onnx(alone, keep_params_in_input=False))
        except Exception as error:  # of TVM or Python, whatever the frontend stumbles over
            raise refused(error) from error
    return _Walk(module, work).results()


class _Walk:
    """Turns the bindings of a Relax function into pieces; values are followed through the variables that hold them."""

    def __init__(self, module: tvm.IRModule, work: Work) -> None:
        self._module, self._work = module, work
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
            return constant(value.value.numpy())
        if _name(value) == "relax.reshape":
            return self._bound(value.args[0], None).view(*_type(kind)[0])
        if _name(value) == "relax.call_tir":
            return self._call(self._module[value.args[0]], value.args[1], kind)
        raise Refused(f"TVM has no kernel for {_name(value)}")

    def _call(self, function: tirx.PrimFunc, arguments: Any, kind: Any) -> Any:
        kinds = list(kind.fields) if isinstance(kind, relax.TupleType) else [kind]
        operands = [self._bound(argument, argument.ty) for argument in arguments]
        made = self._work.add(self._work.scheduled(function), operands, [_type(each) for each in kinds])
        return made if isinstance(kind, relax.TupleType) else made[0]


def _name(value: Any) -> str:
    """What a Relax expression calls."""
    return getattr(getattr(value, "op", None), "name", type(value).__name__)


def _type(kind: Any) -> tuple[Shape, str]:
    """Shape and type of a Relax tensor."""
    shape = kind.shape if isinstance(kind, relax.TensorType) else None
    if shape is None or not all(isinstance(size, tirx.IntImm) for size in shape):
        raise Refused("the shape of a value inside of it depends on values")
    return tuple(int(size) for size in shape), str(kind.dtype)
