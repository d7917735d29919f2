"""The graph between the passes: an onnx-graphsurgeon Graph, shapes static and weights on disk until touched.

`load` brings a model into that form or says in one line why it can't; `save` streams it back.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import shape_inference

from nnc.errors import NncError
from nnc.model import proto, wire
from nnc.model.importing import Shapes, conformed
from nnc.model.inference import UNKNOWN_DOMAIN, first_reason, hide_unknown, infer
from nnc.model.proto import OPSET, STANDARD_DOMAINS, constants, opset, split, unique

__all__ = [
    "OPSET", "Shapes", "constants", "copy", "first_reason", "from_model", "infer_node", "infer_shapes", "join", "load",
    "opset", "restore", "save", "skeleton_with_inputs", "sort", "split", "tensor_names", "to_model", "unique",
]  # fmt: skip


def load(path: Path, shapes: Shapes | None = None) -> gs.Graph:
    """Read `path` into a graph: opset >= 17, functions inlined, Constant nodes as constants, input shapes static.

    What computes with integers is QDQ, in whatever operators the file has it.
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
    return _import(*conformed(model, shapes or {}, weights, place))


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


def restore(graph: gs.Graph, other: gs.Graph) -> None:
    """Make `graph` what `other` is, whose nodes and tensors it takes over."""
    graph.nodes, graph.inputs, graph.outputs = other.nodes, other.inputs, other.outputs


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
    inferred = infer(skeleton_with_inputs(graph), "graph")
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
    hide_unknown(model)
    return model


def tensor_names(graph: gs.Graph) -> set[str]:
    """The names of all tensors of a graph."""
    tensors = (tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs))
    return {tensor.name for tensor in (*tensors, *graph.inputs, *graph.outputs)}


def _set_type(tensor: gs.Tensor, kind: onnx.TypeProto) -> None:
    dtype, shape = proto.tensor_type(kind)
    tensor.dtype = dtype if dtype is not None else tensor.dtype
    tensor.shape = shape if shape is not None else tensor.shape


def _import(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> gs.Graph:
    """The checked skeleton as a graph, with the large weights put back, Constant nodes and names resolved."""
    graph = proto.join(model, {name: values for name, values in weights.items() if proto.is_large(values)})
    for node in graph.nodes:
        if node.domain == UNKNOWN_DOMAIN:
            node.domain = None
        if node.op == "Constant" and node.domain in STANDARD_DOMAINS:
            node.outputs[0].to_constant(_constant_values(node))
            node.outputs.clear()
    graph.import_domains = [entry for entry in graph.import_domains if entry.domain != UNKNOWN_DOMAIN]
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
    tensors = tensor_names(graph)
    for index, tensor in enumerate(graph.outputs):
        if isinstance(tensor, gs.Constant):
            output = gs.Variable(tensor.name, tensor.dtype, list(tensor.shape))
            tensor.name = unique(f"{tensor.name}.value", tensors)
            node = gs.Node("Identity", unique(output.name, names), inputs=[tensor], outputs=[output])
            graph.nodes.append(node)
            graph.outputs[index] = output
