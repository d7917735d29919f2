"""From a model as somebody exported it to one in the form that the graph is made of.

Opset 17 or newer, functions inlined, QDQ where it computes with integers, input shapes static, large weights declared
only, all shapes inferred and checked.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import inliner, version_converter

from nnc.errors import NncError
from nnc.model import proto, refusals, wire
from nnc.model.inference import first_reason, hide_unknown, infer, without_empty_windows
from nnc.model.proto import OPSET, opset
from nnc.model.qoperator import as_qdq

Shapes = Mapping[str, Sequence[int]]


def conformed(
    model: onnx.ModelProto, shapes: Shapes, weights: Mapping[str, np.ndarray] | None, place: str
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model in that form, and all of its weights; NncError says what nnc can't take.

    `weights` are the arrays of initializers that the model only declares, `shapes` fix the shapes of inputs.
    """
    refusals.refuse_bytes(model.graph, place)
    if weights is None:
        weights = {tensor.name: wire.parse(tensor, place) for tensor in model.graph.initializer}
    refusals.refuse_features(model, place)
    refusals.refuse_disorder(model.graph, weights, place)
    refusals.refuse_nan(weights, place)
    model = _inline_functions(_without_large_weights(model, weights), place)
    _fix_input_shapes(model, shapes, weights, place)
    hide_unknown(model)
    model = _convert_opset(model, place)
    hide_unknown(model)
    as_qdq(model, weights)
    return _check(without_empty_windows(infer(model, place), place), place), dict(weights)


def _without_large_weights(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Declare large initializers as inputs; drop the duplicate declaration that IR versions below 4 ask for."""
    slim = onnx.ModelProto(ir_version=max(model.ir_version, proto.IR_VERSION))
    slim.opset_import.extend(model.opset_import)
    slim.metadata_props.extend(model.metadata_props)
    slim.functions.extend(model.functions)
    graph = slim.graph
    graph.name, graph.doc_string = model.graph.name or "graph", model.graph.doc_string
    graph.node.extend(model.graph.node)
    graph.value_info.extend(model.graph.value_info)
    graph.output.extend(model.graph.output)
    graph.input.extend(info for info in model.graph.input if info.name not in weights)
    for name, values in weights.items():
        if proto.is_large(values):
            graph.input.append(proto.value_info(name, values.dtype, values.shape))
        else:
            graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return slim


def _inline_functions(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    if not model.functions:
        return model
    model = inliner.inline_local_functions(model)
    refusals.refuse_bytes(model.graph, place)
    refusals.refuse_features(model, place)  # a function may hold what the graph may not
    return model


def _fix_input_shapes(model: onnx.ModelProto, shapes: Shapes, weights: Mapping[str, np.ndarray], place: str) -> None:
    inputs = {info.name: info for info in model.graph.input if info.name not in weights}
    for name in shapes:
        if name not in inputs:
            raise NncError(f"--shape: {place} has no input '{name}'", f"its inputs are {', '.join(map(repr, inputs))}")
    for name, info in inputs.items():
        _fix_shape(info, shapes.get(name), place)


def _fix_shape(info: onnx.ValueInfoProto, wanted: Sequence[int] | None, place: str) -> None:
    if not info.type.HasField("tensor_type"):
        raise NncError(f"{place}: input '{info.name}' is not a tensor")
    if not info.type.tensor_type.HasField("shape") and wanted is None:
        raise NncError(f"{place}: input '{info.name}' has no shape", f"--shape {info.name}=1,3,224,224")
    dims = info.type.tensor_type.shape.dim
    if wanted is not None:
        declared = [dim.dim_value for dim in dims]
        fits = len(declared) in (0, len(wanted)) and all(
            have in (0, want) for have, want in zip(declared, wanted, strict=False)
        )
        if not fits:
            text = ",".join(str(have or "?") for have in declared)
            raise NncError(f"--shape: input '{info.name}' of {place} is {text}, not {','.join(map(str, wanted))}")
    sizes = list(wanted) if wanted is not None else [dim.dim_value for dim in dims]
    if wanted is None and sizes and sizes[0] == 0:
        sizes[0] = 1
    if min(sizes, default=1) < 1:
        text = ",".join(str(size or dim.dim_param or "?") for size, dim in zip(sizes, dims, strict=True))
        example = ",".join(str(size or 224) for size in sizes)
        raise NncError(f"{place}: input '{info.name}' has open dimensions: {text}", f"--shape {info.name}={example}")
    del dims[:]
    for size in sizes:
        dims.add(dim_value=size)


def _convert_opset(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    if opset(model) >= OPSET:
        return model
    del model.graph.value_info[:]  # the converter trusts stale shapes
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises RuntimeError and ConvertError, with a C++ location in the text
        reason = re.sub(r"^.*?:\d+:\s*\w*:?\s*", "", str(error).splitlines()[0])
        raise NncError(
            f"{place}: opset {opset(model)} can't be converted to {OPSET}: {reason}", f"export it with opset {OPSET}"
        ) from error


def _check(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise NncError(
            f"{place}: {first_reason(error)}", "the model breaks the ONNX standard; export it again"
        ) from error
    return model
