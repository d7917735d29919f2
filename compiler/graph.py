"""The graph between the passes: an onnx-graphsurgeon Graph, shapes static and weights on disk until touched.

`load` brings a model into that form or says in one line why it can't; `save` streams it back.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, inliner, shape_inference, version_converter

from nnc import proto, shapes, wire
from nnc.errors import NncError
from nnc.proto import STANDARD_DOMAINS, constants, opset, split

__all__ = [
    "OPSET", "constants", "copy", "first_reason", "from_model", "infer_node", "infer_shapes", "join", "load", "opset",
    "save", "skeleton_with_inputs", "sort", "split", "to_model", "unique",
]  # fmt: skip

#: Models of an older opset are converted to this one, so that a pass meets one form of each operator.
OPSET = 17

#: Where nodes of the standard domain that the standard does not have are put while onnx looks at the model.
_UNKNOWN_DOMAIN = "unknown to onnx"

#: Attributes that a node of the graph can hold.
_ATTRIBUTES = {
    AttributeProto.FLOAT, AttributeProto.FLOATS, AttributeProto.INT, AttributeProto.INTS,
    AttributeProto.STRING, AttributeProto.STRINGS, AttributeProto.TENSOR,
}  # fmt: skip

Shapes = Mapping[str, Sequence[int]]


def load(path: Path, shapes: Shapes | None = None) -> gs.Graph:
    """Read `path` into a graph: opset >= 17, functions inlined, Constant nodes as constants, input shapes static.

    `shapes` fixes the shape of graph inputs; an unknown first dimension without one becomes a batch of 1.
    """
    if not path.exists():
        raise NncError(f"{path}: no such file")
    if path.is_dir():
        raise NncError(f"{path}: a folder, not an ONNX model")
    try:
        model, weights = wire.read(path)
    except OSError as error:
        raise NncError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    return from_model(model, shapes, weights, str(path))


def from_model(
    model: onnx.ModelProto,
    shapes: Shapes | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    place: str = "model",
) -> gs.Graph:
    """The graph of a model in memory; `weights` are the arrays of initializers that the model only declares."""
    _refuse_bytes(model.graph, place)
    if weights is None:
        weights = {tensor.name: wire.parse(tensor, place) for tensor in model.graph.initializer}
    _refuse(model, place)
    _refuse_disorder(model.graph, weights, place)
    _refuse_nan(weights, place)
    model = _inline_functions(_without_large_weights(model, weights), place)
    _fix_input_shapes(model, shapes or {}, weights, place)
    _hide_unknown(model)
    model = _convert_opset(model, place)
    _hide_unknown(model)
    return _import(_check(_without_empty_windows(_infer(model, place), place), place), weights)


def save(graph: gs.Graph, path: Path, metadata: Mapping[str, str] | None = None) -> list[Path]:
    """Write the graph as ONNX, streaming its weights; returns the files written."""
    skeleton, weights = split(graph)
    del skeleton.metadata_props[:]
    onnx.helper.set_model_props(skeleton, proto.metadata(graph) | dict(metadata or {}))
    return wire.write(path, skeleton, weights)


def to_model(graph: gs.Graph) -> onnx.ModelProto:
    """The graph as one ModelProto in memory, weights included: for graphs that are known to be small."""
    skeleton, weights = split(graph)
    skeleton.graph.initializer.extend(onnx.numpy_helper.from_array(values, name) for name, values in weights.items())
    return skeleton


def join(skeleton: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> gs.Graph:
    """The graph of a model that `split` took apart: its initializers named in `weights` hold no data."""
    return proto.join(skeleton, weights)


def copy(graph: gs.Graph) -> gs.Graph:
    """A graph of its own with the same weights: what is done to its nodes and tensors does not show in `graph`."""
    twins: dict[int, gs.Tensor] = {}

    def twin(tensor: gs.Tensor) -> gs.Tensor:
        if id(tensor) not in twins:
            if isinstance(tensor, gs.Constant):
                twins[id(tensor)] = tensor.copy()
            else:
                shape = None if tensor.shape is None else list(tensor.shape)
                twins[id(tensor)] = gs.Variable(tensor.name, tensor.dtype, shape)
        return twins[id(tensor)]

    nodes = [
        gs.Node(
            node.op,
            node.name,
            {key: list(value) if isinstance(value, list) else value for key, value in node.attrs.items()},
            [twin(tensor) for tensor in node.inputs],
            [twin(tensor) for tensor in node.outputs],
            node.domain,
        )
        for node in graph.nodes
    ]
    copied = gs.Graph(
        nodes,
        [twin(tensor) for tensor in graph.inputs],
        [twin(tensor) for tensor in graph.outputs],
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=graph.import_domains,
        ir_version=graph.ir_version,
    )
    copied.metadata = proto.metadata(graph)
    return copied


def sort(graph: gs.Graph) -> None:
    """Put every node behind the producers of what it reads, and otherwise leave the order as it is."""
    placed: set[int] = set()
    ordered: list[gs.Node] = []
    for node in graph.nodes:
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [] if id(top) in placed else [made for made in _producers(top) if id(made) not in placed]
            if missing and len(stack) <= len(graph.nodes):  # a longer path is a cycle, which verification reports
                stack.append(missing[0])
            else:
                stack.pop()
                if id(top) not in placed:
                    placed.add(id(top))
                    ordered.append(top)
    graph.nodes = ordered


def _producers(node: gs.Node) -> Iterable[gs.Node]:
    return (tensor.inputs[0] for tensor in node.inputs if tensor.inputs)


def infer_shapes(graph: gs.Graph) -> None:
    """Fill in the shapes and dtypes of all tensors that nodes produce, from the shapes of inputs and constants."""
    inferred = _infer(skeleton_with_inputs(graph), "graph")
    known = {info.name: info.type for info in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name in known:
                _set_type(tensor, known[tensor.name])


def infer_node(node: gs.Node, opset: int) -> None:
    """Fill in the shapes and dtypes of one node's outputs, as far as those of its inputs tell."""
    read = {tensor.name: tensor for tensor in node.inputs if not tensor.is_empty()}
    if node.domain not in STANDARD_DOMAINS or any(tensor.dtype is None for tensor in read.values()):
        return
    types = {name: proto.value_info(name, tensor.dtype, tensor.shape).type for name, tensor in read.items()}
    values = {
        name: onnx.numpy_helper.from_array(tensor.values, name)
        for name, tensor in read.items()
        if isinstance(tensor, gs.Constant) and not proto.is_large(tensor.values)
    }
    try:
        schema = onnx.defs.get_schema(node.op, opset, "")
        found = shape_inference.infer_node_outputs(schema, proto.node_proto(node), types, values)
    except (onnx.defs.SchemaError, shape_inference.InferenceError, onnx.checker.ValidationError):
        return  # verification says what is wrong
    for tensor in node.outputs:
        if tensor.name in found:
            _set_type(tensor, found[tensor.name])


def skeleton_with_inputs(graph: gs.Graph) -> onnx.ModelProto:
    """A model whose large weights are graph inputs, so that the checker and shape inference need no data."""
    model, weights = split(graph)
    model.graph.input.extend(proto.value_info(name, each.dtype, each.shape) for name, each in weights.items())
    _hide_unknown(model)
    return model


def unique(name: str, taken: set[str]) -> str:
    """`name`, or `name_1`, `name_2`, ... when it is taken; the result is added to `taken`."""
    result, count = name, 0
    while result in taken:
        count += 1
        result = f"{name}_{count}"
    taken.add(result)
    return result


def _set_type(tensor: gs.Tensor, kind: onnx.TypeProto) -> None:
    dtype, shape = proto.tensor_type(kind)
    tensor.dtype = dtype if dtype is not None else tensor.dtype
    tensor.shape = shape if shape is not None else tensor.shape


def _refuse_bytes(graph: onnx.GraphProto, place: str) -> None:
    """Raise where protobuf gives the bytes of a name because they are not text."""
    infos = (*graph.input, *graph.output, *graph.value_info)
    texts: Iterable[str | bytes] = (
        graph.name,
        graph.doc_string,
        *(text for node in graph.node for text in (node.op_type, node.domain, node.name, *node.input, *node.output)),
        *(attribute.name for node in graph.node for attribute in node.attribute),
        *(tensor.name for tensor in graph.initializer),
        *(info.name for info in infos),
        *(dim.dim_param for info in infos for dim in info.type.tensor_type.shape.dim),
    )
    for text in texts:
        if isinstance(text, bytes):
            raise NncError(f"{place}: {text!r} is not text", "export or copy the file again")


def _refuse(model: onnx.ModelProto, place: str) -> None:
    """Say which feature of the model nnc does not take."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type not in _ATTRIBUTES:
                raise _refused_attribute(node, attribute, place)
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise NncError(f"{place}: initializer '{name}' is sparse", "store it dense; prune-channels makes it small")
    names = Counter(tensor.name for tensor in model.graph.initializer)
    if names and (most := names.most_common(1)[0])[1] > 1:
        raise NncError(f"{place}: two initializers are called '{most[0]}'", "export it again")
    if not model.graph.output:
        raise NncError(f"{place}: the model has no output")
    for info in model.graph.output:
        if info.HasField("type") and not info.type.HasField("tensor_type"):
            raise NncError(f"{place}: output '{info.name}' is not a tensor", "export the model with tensors as outputs")
    _refuse_opset(model, place)
    domains = {entry.domain for entry in model.opset_import}
    for node in model.graph.node:
        if node.domain not in STANDARD_DOMAINS and node.domain not in domains:
            raise NncError(
                f"{place}: {_described(node)} is of the domain '{node.domain}', which the model does not import"
            )


def _refuse_disorder(graph: onnx.GraphProto, weights: Iterable[str], place: str) -> None:
    """Raise unless every tensor is computed once, and before it is read."""
    computed = {"", *weights, *(info.name for info in graph.input)}
    later = {name for node in graph.node for name in node.output}
    hint = "the model breaks the ONNX standard; export it again"
    for node in graph.node:
        for name in node.input:
            if name not in computed:
                wrong = " before it is computed" if name in later else ", which nothing computes"
                raise NncError(f"{place}: {_described(node)} reads '{name}'{wrong}", hint)
        for name in node.output:
            if name and name in computed:
                raise NncError(f"{place}: '{name}' is computed twice", hint)
            computed.add(name)
    for info in graph.output:
        if info.name not in computed:
            raise NncError(f"{place}: nothing computes the output '{info.name}'", hint)


def _described(node: onnx.NodeProto) -> str:
    """The node as an error calls it: by its name or its first output."""
    return f"node '{node.name or next(iter(node.output), '')}' ({node.op_type})"


def _refused_attribute(node: onnx.NodeProto, attribute: AttributeProto, place: str) -> NncError:
    where = f"{place}: {_described(node)}"
    if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        return NncError(
            f"{where} holds a subgraph; nnc takes graphs without control flow",
            "export the model with fixed control flow, for example by tracing it",
        )
    return NncError(f"{where} has an attribute '{attribute.name}' of a kind that nnc does not take")


def _refuse_opset(model: onnx.ModelProto, place: str) -> None:
    standard = [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]
    newest = onnx.defs.onnx_opset_version()
    if not standard:
        raise NncError(f"{place}: the model does not say its opset", "export it again")
    if not all(9 <= version <= newest for version in standard):
        raise NncError(
            f"{place}: opset {standard[0]}; nnc reads opset 9 to {newest}", f"export the model with opset {OPSET}"
        )


def _refuse_nan(weights: Mapping[str, np.ndarray], place: str) -> None:
    read = 0
    for name, values in weights.items():
        is_float = values.dtype.kind == "f" or values.dtype.name == "bfloat16"
        if is_float and values.size and np.isnan(np.min(values)):
            raise NncError(
                f"{place}: initializer '{name}' holds NaN", "the training run diverged; use an earlier checkpoint"
            )
        read += values.nbytes
        if read > _MOST_RESIDENT:
            wire.release_pages()
            read = 0
    wire.release_pages()


#: Bytes of weights that are read before their pages are given back.
_MOST_RESIDENT = 2**26


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
    _refuse_bytes(model.graph, place)
    _refuse(model, place)  # a function may hold what the graph may not
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


def _hide_unknown(model: onnx.ModelProto) -> None:
    """Give nodes of the standard domain that the standard does not have a domain of their own: onnx lets those be."""
    version = opset(model)
    used = {node.op_type for node in model.graph.node if node.domain in STANDARD_DOMAINS}
    unknown = {op for op in used if not onnx.defs.has(op, version, "")}
    if unknown:
        if all(entry.domain != _UNKNOWN_DOMAIN for entry in model.opset_import):
            model.opset_import.add(domain=_UNKNOWN_DOMAIN, version=1)
        for node in model.graph.node:
            if node.op_type in unknown and node.domain in STANDARD_DOMAINS:
                node.domain = _UNKNOWN_DOMAIN


def _without_empty_windows(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    """Turn `ceil_mode` off where its last window would start behind the image and its padding.

    The standard leaves such a window out, and so does onnxruntime; onnx's shape inference counts it.
    """
    for _ in range(len(model.graph.node)):
        infos = (*model.graph.value_info, *model.graph.input, *model.graph.output)
        known = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in infos}
        pools = [node for node in model.graph.node if _counts_empty_windows(node, known)]
        if not pools:
            break
        for attribute in pools[0].attribute:
            if attribute.name == "ceil_mode":
                attribute.i = 0
        model = _infer(model, place)
    return model


def _counts_empty_windows(node: onnx.NodeProto, known: Mapping[str, list[int]]) -> bool:
    """Whether every window that `ceil_mode` adds is empty, and there is one."""
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    shape = known.get(node.input[0]) if node.op_type in ("AveragePool", "LpPool", "MaxPool") else None
    if not shape or not attributes.get("ceil_mode") or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        return False
    axes = len(attributes["kernel_shape"])
    ones, pads = [1] * axes, attributes.get("pads", [0] * 2 * axes)
    spans = [
        (size + before + after - (taps - 1) * dilation - 1, stride, size + before)
        for size, before, after, taps, dilation, stride in zip(
            shape[2:],
            pads[:axes],
            pads[axes:],
            attributes["kernel_shape"],
            attributes.get("dilations", ones),
            attributes.get("strides", ones),
            strict=True,
        )
    ]
    added = [(-(-span // stride) * stride, end) for span, stride, end in spans if span % stride]
    return bool(added) and all(start >= end for start, end in added)


def _infer(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    declared = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in model.graph.output]
    _forget_shapes(model)
    try:
        model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        raise NncError(f"{place}: {first_reason(error)}", "the shapes of the graph contradict each other") from error
    shapes.complete(model)
    for info, before in zip(model.graph.output, declared, strict=True):
        _keep_open_dimensions(info.type.tensor_type, before.type.tensor_type)
    _refuse_shapes(model, place)
    return model


def _keep_open_dimensions(inferred: onnx.TypeProto.Tensor, declared: onnx.TypeProto.Tensor) -> None:
    """Take from the declaration of an output what inference does not know."""
    if declared.HasField("shape") and not inferred.HasField("shape"):
        inferred.shape.CopyFrom(declared.shape)
    elif len(declared.shape.dim) == len(inferred.shape.dim):
        for dim, before in zip(inferred.shape.dim, declared.shape.dim, strict=True):
            if not dim.HasField("dim_value"):
                dim.CopyFrom(before)


def _refuse_shapes(model: onnx.ModelProto, place: str) -> None:
    """Raise where a window does not fit into its input, and where an operator hides the shape of an output."""
    types = {info.name: info.type.tensor_type for info in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        for name in node.output:
            sizes = [dim.dim_value for dim in types[name].shape.dim] if name in types else []
            if min(sizes, default=0) < 0:
                raise NncError(
                    f"{place}: {_described(node)} would have an output of {'x'.join(map(str, sizes))}",
                    "the input of the model is too small; --shape sets its size",
                )
    for info in model.graph.output:
        if not types[info.name].HasField("shape"):
            raise NncError(f"{place}: the shape of the output '{info.name}' is not known", _opaque(model, types))


def _opaque(model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto.Tensor]) -> str | None:
    """A hint that names the first node whose shape is not known."""
    for node in model.graph.node:
        if any(name and (name not in types or not types[name].HasField("shape")) for name in node.output):
            return f"{_described(node)} hides it: declare the shape of its output in the model"
    return None


def _forget_shapes(model: onnx.ModelProto) -> None:
    """Drop shapes written for another batch size; keep those of operators that inference can't see through."""
    unknown = {name for node in model.graph.node if node.domain not in STANDARD_DOMAINS for name in node.output}
    kept = [info for info in model.graph.value_info if info.name in unknown]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    given = {info.name for info in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    for info in model.graph.output:
        if info.name not in unknown | given and info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")


def _check(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise NncError(
            f"{place}: {first_reason(error)}", "the model breaks the ONNX standard; export it again"
        ) from error
    return model


def first_reason(error: Exception) -> str:
    """The sentence of an onnx error that names the cause, without C++ locations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("==>")]
    text = re.sub(r"\[\w+Error\]\s*", "", lines[0]).removeprefix("Inference error(s): ")
    return (text[0].lower() + text[1:]).rstrip(".")[:300]


def _import(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> gs.Graph:
    """The checked skeleton as a graph, with the large weights put back, Constant nodes and names resolved."""
    graph = proto.join(model, {name: values for name, values in weights.items() if proto.is_large(values)})
    for node in graph.nodes:
        if node.domain == _UNKNOWN_DOMAIN:
            node.domain = None
        if node.op == "Constant" and node.domain in STANDARD_DOMAINS:
            node.outputs[0].to_constant(_constant_values(node))
            node.outputs.clear()
    graph.import_domains = [entry for entry in graph.import_domains if entry.domain != _UNKNOWN_DOMAIN]
    graph.nodes = [node for node in graph.nodes if node.outputs]
    _name_nodes(graph)
    _compute_outputs(graph)
    sort(graph)
    return graph


def _constant_values(node: gs.Node) -> np.ndarray:
    (key, value), *_ = node.attrs.items()
    if isinstance(value, gs.Constant):
        return value.values
    dtype = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.array(value, dtype.get(key, object))


def _name_nodes(graph: gs.Graph) -> None:
    """Give every node a unique name: unnamed ones are called after their first output."""
    taken: set[str] = set()
    for node in graph.nodes:
        node.name = unique(node.name or node.outputs[0].name or node.op, taken)


def _compute_outputs(graph: gs.Graph) -> None:
    """Put an Identity between a constant and the graph output that it is, so that nodes produce all outputs."""
    names = {node.name for node in graph.nodes}
    tensors = {tensor.name for tensor in graph.tensors().values()}
    for index, tensor in enumerate(graph.outputs):
        if isinstance(tensor, gs.Constant):
            output = gs.Variable(tensor.name, tensor.dtype, list(tensor.shape))
            tensor.name = unique(f"{tensor.name}.value", tensors)
            node = gs.Node("Identity", unique(output.name, names), inputs=[tensor], outputs=[output])
            graph.nodes.append(node)
            graph.outputs[index] = output
