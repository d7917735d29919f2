"""Nodes without a template, on plain tensors of any type.

Most operators have a kernel of their own in `operators/`, or are a few others in a row. What is left goes through TVM's
ONNX frontend. Loops get the default schedule of `schedule.py`, or one that `nnc tune` found (`kinds/general.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import tvm
from onnx import helper, numpy_helper
from tvm import tirx

from nnc.errors import NncError
from nnc.graph import OPSET
from nnc.lowering import frontend, model
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.operators import MOVES, OPERATORS
from nnc.lowering.pieces import Piece, Refused, Value, Work, constant, refused
from nnc.lowering.schedule import schedule
from nnc.lowering.shapes import static_shape
from nnc.model.proto import is_standard

HINT = "--no-lower writes model.onnx, which runs in onnxruntime"

_OPEN = "the shape of what it makes depends on values"

_OF_SHAPES = ("EyeLike", "Shape", "Size")


def lower(
    node: gs.Node,
    unit: Unit,
    machine: tvm.target.Target,
    opset: int = OPSET,
    scheduled: Callable[[tirx.PrimFunc], tirx.PrimFunc] | None = None,
) -> list[Piece]:
    """The pieces that compute a node, in order.

    `machine` is what TVM knows of the unit, `opset` the version that the node is written in, and `scheduled` gives
    loops a schedule (else nnc's default one). Raises NncError, naming the node, where nnc can't lower it.
    """
    work = Work(node, unit, machine, opset, scheduled or partial(schedule, unit=unit))
    try:
        return work.finish(results(work))
    except Exception as error:  # of an operator, of onnx, TVM or numpy, whatever stumbles over the node
        raise _error(node, refused(error)) from error


def require_standard(nodes: Iterable[gs.Node]) -> None:
    """Raise NncError for an operator that is not of the ONNX standard: nobody knows what it makes."""
    for node in nodes:
        if not is_standard(node, node.op):
            raise _error(node, Refused(f"it is an operator of the domain '{node.domain}'"))


def require_static(node: gs.Node, outputs: Iterable[gs.Tensor]) -> None:
    """Raise NncError, naming the node, where what it makes has no static shape."""
    if any(static_shape(tensor) is None for tensor in outputs):
        raise _error(node, Refused(_OPEN))


def _error(node: gs.Node, refusal: Refused) -> NncError:
    return NncError(
        f"node '{node.name}' ({node.op}): nnc can't lower it: {refusal}",
        HINT,
    )


def results(work: Work) -> list[Value]:
    """Append the pieces of a node; returns its outputs."""
    node = work.node
    if any(tensor.name and static_shape(tensor) is None for tensor in node.outputs):
        raise Refused(_OPEN)
    if node.op.startswith("Random"):
        raise Refused("it draws random numbers")
    if node.op in _OF_SHAPES or all(each.kind == "constant" for each in work.inputs()):
        return _evaluated(work)
    if node.op not in MOVES and any(each.dtype == "float16" for each in work.inputs()):
        return _in_float32(work)
    made = OPERATORS[node.op](work) if node.op in OPERATORS else None
    if made is not None:
        return list(made)
    return frontend.results(work) if node.op in frontend.OPERATORS else _inlined(work)


def _evaluated(work: Work) -> list[Value]:
    """What a node makes of constants, or of shapes alone."""
    try:
        return [constant(values) for values in model.evaluate(work.node, work.opset)]
    except Exception as error:  # onnxruntime raises errors of its own
        raise refused(error) from error


def _in_float32(work: Work) -> list[Value]:
    """Compute in float32 what is stored as float16, as onnxruntime does on a CPU."""
    operands = [work.input(index) if work.has(index) else None for index in range(len(work.node.inputs))]
    wide = [
        work.apply("Cast", each, to=onnx.TensorProto.FLOAT)[0] if each is not None and each.dtype == "float16" else each
        for each in operands
    ]
    made = work.apply(work.node.op, *wide, outputs=len(work.node.outputs), **work.node.attrs)
    return [
        work.apply("Cast", value, to=onnx.TensorProto.FLOAT16)[0] if work.dtype(index) == "float16" else value
        for index, value in enumerate(made)
    ]


def _inlined(work: Work) -> list[Value]:
    """The operators that the standard defines an operator by, one by one."""
    graph = model.definition(work.node, work.opset)
    if graph is None:
        raise Refused("there is no kernel for it")
    values = {f"x{index}": work.input(index) for index in range(len(work.node.inputs)) if work.has(index)}
    values |= {each.name: constant(numpy_helper.to_array(each)) for each in graph.initializer}
    for node in graph.node:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "Constant":
            made = [constant(_constant(attributes))]
        else:
            operands = [values.get(name) for name in node.input]
            made = work.apply(node.op_type, *operands, outputs=len(node.output), **attributes)
        values |= dict(zip(node.output, made, strict=True))
    return [values[each.name] for each in graph.output]


def _constant(attributes: Mapping[str, Any]) -> np.ndarray:
    """The value of a Constant node."""
    ((key, value),) = attributes.items()
    if key == "value":
        return numpy_helper.to_array(value)
    return np.array(value, np.float32 if "float" in key else np.int64)
