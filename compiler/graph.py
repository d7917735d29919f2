"""The graph between the passes: an onnx-graphsurgeon Graph, shapes static and weights on disk until touched.

`load` brings a model into that form or says in one line why it can't; `save` streams it back.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import shape_inference, version_converter

from nnc import __version__, wire
from nnc.errors import NncError

#: Models of an older opset are converted to this one, so that a pass meets one form of each operator.
OPSET = 17

Shapes = Mapping[str, Sequence[int]]


def load(path: Path, shapes: Shapes | None = None) -> gs.Graph:
    """Read `path` into a graph: opset >= 17, functions inlined, Constant nodes as constants, input shapes static.

    `shapes` fixes the shape of graph inputs; an unknown first dimension without one becomes a batch of 1.
    """
    if not path.exists():
        raise NncError(f"{path}: no such file")
    if path.is_dir():
        raise NncError(f"{path}: a folder, not an ONNX model")
    model, weights = wire.read(path)
    return from_model(model, shapes, weights, str(path))


def from_model(
    model: onnx.ModelProto,
    shapes: Shapes | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    place: str = "model",
) -> gs.Graph:
    """The graph of a model in memory; `weights` are the arrays of initializers that the model only declares."""
    if weights is None:
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = dict(weights)
    _refuse(model, place)
    _refuse_nan(weights, place)
    model = _without_large_weights(model, weights)
    model = _inline_functions(model)
    _fix_input_shapes(model, shapes or {}, weights, place)
    model = _convert_opset(model, place)
    model = _check(_infer(model, place), place)
    return _import(model, weights)


def save(graph: gs.Graph, path: Path, metadata: Mapping[str, str] | None = None) -> list[Path]:
    """Write the graph as ONNX, streaming its weights; returns the files written."""
    skeleton, weights = split(graph)
    for key, value in (metadata or {}).items():
        skeleton.metadata_props.add(key=key, value=value)
    return wire.write(path, skeleton, weights)


def to_model(graph: gs.Graph) -> onnx.ModelProto:
    """The graph as one ModelProto in memory, weights included: for graphs that are known to be small."""
    skeleton, weights = split(graph)
    skeleton.graph.initializer.extend(onnx.numpy_helper.from_array(values, name) for name, values in weights.items())
    return skeleton


def split(graph: gs.Graph) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The graph as a model that holds only its small constants, and the arrays of the large ones."""
    weights = {}
    for tensor in constants(graph):
        values = tensor.values
        if values.nbytes > wire.INLINE_BYTES and values.dtype.name not in ("int4", "uint4", "int2", "uint2", "object"):
            weights[tensor.name] = values
    placeholder = {name: gs.Variable(name, values.dtype, values.shape) for name, values in weights.items()}
    exported = graph.copy()
    for node in exported.nodes:
        for index, tensor in enumerate(node.inputs):
            if tensor.name in placeholder:
                node.inputs[index] = placeholder[tensor.name]
    model = gs.export_onnx(exported, do_type_check=False)
    model.graph.ClearField("value_info")
    model.graph.value_info.extend(_value_infos(graph))
    model.producer_name, model.producer_version = "nnc", __version__
    return model, weights


def join(skeleton: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> gs.Graph:
    """The graph of a model that `split` took apart: its initializers named in `weights` hold no data."""
    model = _without_large_weights(skeleton, weights)
    return _import(model, weights)


def constants(graph: gs.Graph) -> list[gs.Constant]:
    """The distinct constants that the graph's nodes read, in order of first use."""
    found: dict[int, gs.Constant] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                found.setdefault(id(tensor), tensor)
    for tensor in graph.outputs:
        if isinstance(tensor, gs.Constant):
            found.setdefault(id(tensor), tensor)
    return list(found.values())


def infer_shapes(graph: gs.Graph) -> None:
    """Fill in the shapes and dtypes of tensors that a rewrite created."""
    inferred = _infer(skeleton_with_inputs(graph), "graph")
    known = {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name in known:
                dtype, shape = _tensor_type(known[tensor.name])
                tensor.dtype = dtype if dtype is not None else tensor.dtype
                tensor.shape = shape if shape is not None else tensor.shape


def skeleton_with_inputs(graph: gs.Graph) -> onnx.ModelProto:
    """A model whose large weights are graph inputs, so that the checker and shape inference need no data."""
    model, weights = split(graph)
    for name, values in weights.items():
        model.graph.input.append(_declare(name, values))
    return model


def _value_infos(graph: gs.Graph) -> Iterable[onnx.ValueInfoProto]:
    ends = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name and tensor.name not in ends and tensor.dtype is not None and tensor.shape is not None:
                yield onnx.helper.make_tensor_value_info(tensor.name, _onnx_dtype(tensor.dtype), tensor.shape)


def _onnx_dtype(dtype: object) -> int:
    return dtype if isinstance(dtype, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))  # type: ignore[call-overload]


def _declare(name: str, values: np.ndarray) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, _onnx_dtype(values.dtype), values.shape)


def _tensor_type(info: onnx.ValueInfoProto) -> tuple[np.dtype | None, list[int] | None]:
    kind = info.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else None
    if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
        return dtype, None
    return dtype, [dim.dim_value for dim in kind.shape.dim]


def _refuse(model: onnx.ModelProto, place: str) -> None:
    """Say which feature of the model nnc does not take."""
    for node in model.graph.node:
        if any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute
        ):
            raise NncError(
                f"{place}: node '{node.name}' ({node.op_type}) holds a subgraph; nnc takes graphs without control flow",
                "export the model with fixed control flow, for example by tracing it",
            )
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise NncError(f"{place}: initializer '{name}' is sparse", "store it dense; prune-channels makes it small")
    if not model.graph.output:
        raise NncError(f"{place}: the model has no output")
    if not any(entry.domain in ("", "ai.onnx") for entry in model.opset_import):
        raise NncError(f"{place}: the model does not say its opset", "export it again")
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and not 9 <= entry.version <= newest:
            raise NncError(
                f"{place}: opset {entry.version}; nnc reads opset 9 to {newest}", "export the model with opset 17"
            )


def _refuse_nan(weights: Mapping[str, np.ndarray], place: str) -> None:
    for name, values in weights.items():
        if values.dtype.kind == "f" and values.size and np.isnan(np.min(values)):
            raise NncError(
                f"{place}: initializer '{name}' holds NaN", "the training run diverged; use an earlier checkpoint"
            )


def _without_large_weights(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Declare large initializers as inputs; drop the duplicate declaration that IR versions below 4 ask for."""
    slim = onnx.ModelProto()
    slim.CopyFrom(model)
    slim.ir_version = max(slim.ir_version, 8)
    del slim.graph.initializer[:], slim.graph.input[:]
    slim.graph.input.extend(info for info in model.graph.input if info.name not in weights)
    for tensor in model.graph.initializer:
        values = weights[tensor.name] if tensor.name in weights else onnx.numpy_helper.to_array(tensor)
        if values.nbytes > wire.INLINE_BYTES:
            slim.graph.input.append(_declare(tensor.name, values))
        else:
            slim.graph.initializer.append(onnx.numpy_helper.from_array(values, tensor.name))
    return slim


def _inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.inliner.inline_local_functions(model) if model.functions else model


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
    if 0 in sizes:
        text = ",".join(str(size or dim.dim_param or "?") for size, dim in zip(sizes, dims, strict=True))
        example = ",".join(str(size or 224) for size in sizes)
        raise NncError(f"{place}: input '{info.name}' has open dimensions: {text}", f"--shape {info.name}={example}")
    del dims[:]
    for size in sizes:
        dims.add(dim_value=size)


def opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a model uses."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


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


def _infer(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    _forget_shapes(model)
    try:
        return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        raise NncError(f"{place}: {_first_reason(error)}", "the shapes of the graph contradict each other") from error


def _forget_shapes(model: onnx.ModelProto) -> None:
    """Drop shapes written for another batch size; keep those of operators that inference can't see through."""
    unknown = {name for node in model.graph.node if node.domain not in ("", "ai.onnx") for name in node.output}
    kept = [info for info in model.graph.value_info if info.name in unknown]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    for info in model.graph.output:
        if info.name not in unknown and info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")


def _check(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise NncError(
            f"{place}: {_first_reason(error)}", "the model breaks the ONNX standard; export it again"
        ) from error
    return model


def _first_reason(error: Exception) -> str:
    """The sentence of an onnx error that names the cause, without C++ locations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("==>")]
    text = re.sub(r"\[\w+Error\]\s*|\((op_type|node)[^)]*\):?\s*", lambda m: m[0] if m[0][0] == "(" else "", lines[0])
    return (text[0].lower() + text[1:]).rstrip(".")[:300]


def _import(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> gs.Graph:
    """The checked skeleton as a gs.Graph, with the large weights put back as constants."""
    graph = gs.import_onnx(model)
    _restore_constants(graph, weights)
    for node in graph.nodes:
        if node.op == "Constant" and node.domain in (None, "", "ai.onnx"):
            node.outputs[0].to_constant(_constant_values(node))
            node.outputs.clear()
    graph.nodes = [node for node in graph.nodes if node.outputs]
    name_nodes(graph)
    _set_static_types(graph, model)
    return graph.toposort()


def _restore_constants(graph: gs.Graph, weights: Mapping[str, np.ndarray]) -> None:
    for tensor in graph.tensors().values():
        if tensor.name not in weights:
            continue
        if isinstance(tensor, gs.Constant):
            tensor.values = weights[tensor.name]
        else:
            tensor.to_constant(weights[tensor.name])
    graph.inputs = [tensor for tensor in graph.inputs if not isinstance(tensor, gs.Constant)]


def _constant_values(node: gs.Node) -> np.ndarray:
    (key, value), *_ = node.attrs.items()
    if isinstance(value, gs.Constant):
        return value.values
    dtype = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.array(value, dtype.get(key, object))


def name_nodes(graph: gs.Graph) -> None:
    """Give every node a unique name: unnamed ones are called after their first output."""
    taken: set[str] = set()
    for node in graph.nodes:
        node.name = unique(node.name or node.outputs[0].name, taken)


def unique(name: str, taken: set[str]) -> str:
    """`name`, or `name_1`, `name_2`, ... when it is taken; the result is added to `taken`."""
    result, count = name, 0
    while result in taken:
        count += 1
        result = f"{name}_{count}"
    taken.add(result)
    return result


def _set_static_types(graph: gs.Graph, model: onnx.ModelProto) -> None:
    known = {info.name: info for info in (*model.graph.value_info, *model.graph.output, *model.graph.input)}
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor.name in known:
            dtype, shape = _tensor_type(known[tensor.name])
            tensor.dtype, tensor.shape = dtype, shape
