"""A node as a model of its own: what onnx and onnxruntime know about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
import onnxruntime

from nnc.lowering.shapes import shape_of


def alone(node: gs.Node, opset: int) -> onnx.ModelProto:
    """A model of one node. Its constants stay constants; every other input becomes an input, x0, x1, ..."""
    operands: list[gs.Tensor] = []
    for index, tensor in enumerate(node.inputs):
        if isinstance(tensor, gs.Constant):
            operands.append(gs.Constant(f"x{index}", tensor.values))
        elif tensor.is_empty():
            operands.append(gs.Variable.empty())
        else:
            operands.append(gs.Variable(f"x{index}", tensor.dtype, shape_of(tensor)))
    outputs = [
        gs.Variable(f"y{index}", tensor.dtype, tensor.shape) if tensor.name else gs.Variable.empty()
        for index, tensor in enumerate(node.outputs)
    ]
    inputs = [each for each in operands if isinstance(each, gs.Variable) and not each.is_empty()]
    single = gs.Node(node.op, node.op, dict(node.attrs), operands, outputs)
    graph = gs.Graph([single], inputs, [each for each in outputs if each.name], opset=opset)
    return gs.export_onnx(graph, do_type_check=False)


def typed(op: str, operands: Sequence[gs.Tensor], outputs: int, attributes: Mapping[str, Any], opset: int) -> gs.Node:
    """A node whose outputs have the shapes and types that onnx infers."""
    results = [gs.Variable(f"y{index}") for index in range(outputs)]
    node = gs.Node(op, op, dict(attributes), list(operands), results)
    model = alone(node, opset)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    for result, info in zip(results, inferred.graph.output, strict=True):
        kind = info.type.tensor_type
        result.dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        result.shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim]
    return node


def evaluate(node: gs.Node, opset: int) -> list[np.ndarray]:
    """The outputs of a node that depend on constants and on shapes alone."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(alone(node, opset).SerializeToString(), options, ["CPUExecutionProvider"])
    feeds = {
        f"x{index}": np.zeros(shape_of(tensor), tensor.dtype)
        for index, tensor in enumerate(node.inputs)
        if not isinstance(tensor, gs.Constant) and not tensor.is_empty()
    }
    return list(session.run(None, feeds))


def definition(node: gs.Node, opset: int) -> onnx.GraphProto | None:
    """The graph that the standard defines an operator by, on x0, x1, ...; None where it is not defined by one."""
    model = alone(node, opset)
    for each in model.graph.initializer:  # the inliner wants to read their types there
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(each.name, each.data_type, each.dims))
    inlined = onnx.inliner.inline_selected_functions(model, [("", node.op)], inline_schema_functions=True)
    return None if any(each.op_type == node.op for each in inlined.graph.node) else inlined.graph
