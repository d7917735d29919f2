"""Nodes without a template: TVM's own ONNX frontend and legalization, with the default schedule of `schedule.py`.

A node becomes a model of its own, with its constants as constants, so that all that depends on them is decided here.
What TVM refuses, computes differently from ONNX, or leaves as a scalar loop is written down in `operators.py`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import tvm
from onnx import helper
from tvm import relax, tirx

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
    walk.run()
    results = [walk.value(each) for each in walk.outputs()]
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
    """Reads the calls of a Relax function."""

    def __init__(self, module: tvm.IRModule, unit: Unit) -> None:
        self.pieces: list[Piece] = []
        self._module, self._main, self._unit = module, module["main"], unit
        self._values: dict[Any, Any] = {
            parameter: Value("input", index, *_type(parameter.ty)) for index, parameter in enumerate(self._main.params)
        }

    def run(self) -> None:
        for block in self._main.body.blocks:
            for binding in block.bindings:
                self._values[binding.var] = self._bound(binding.value, binding.var.ty)

    def outputs(self) -> list[Any]:
        result = self._main.body.body
        found = self._values.get(result, result) if isinstance(result, relax.Var) else result
        return list(found) if isinstance(found, list) else [found]
