"""Between onnx's protobuf messages and onnx-graphsurgeon's graph, without the data of large weights.

graphsurgeon's own importer and exporter drop what they have no class for (attributes that are not text, the types that
numpy lacks), and together with the copy that they need they take longer than the passes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto

from nnc import __version__
from nnc.model.wire import INLINE_BYTES

#: Types of which several values share a byte, and text: their arrays are not what a file holds.
NOT_RAW = frozenset({"float4_e2m1fn", "int2", "int4", "object", "uint2", "uint4"})

STANDARD_DOMAINS = (None, "", "ai.onnx")

#: Models of an older opset are converted to this one, so that a pass meets one form of each operator.
OPSET = 17

#: The oldest version of the file format that every operator set nnc writes may be stored in.
IR_VERSION = 8


def join(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> gs.Graph:
    """The graph of a model; an initializer or input named in `weights` is a constant with that array."""
    tensors: dict[str, gs.Tensor] = {name: gs.Constant(name, values) for name, values in weights.items()}
    for initializer in model.graph.initializer:
        if initializer.name not in tensors:
            values = onnx.numpy_helper.to_array(initializer)
            tensors[initializer.name] = gs.Constant(initializer.name, values)
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if info.name not in tensors:
            tensors[info.name] = gs.Variable(info.name, *tensor_type(info.type))
    for info in model.graph.output:
        if tensors[info.name].shape is None and info.type.tensor_type.HasField("shape"):
            tensors[info.name].shape = open_shape(info.type)  # what is known of an output is kept in the file

    def tensor(name: str) -> gs.Tensor:
        if not name:
            return gs.Variable.empty()
        if name not in tensors:
            tensors[name] = gs.Variable(name)
        return tensors[name]

    nodes = [
        gs.Node(
            node.op_type,
            node.name,
            {attribute.name: _value(attribute) for attribute in node.attribute},
            [tensor(name) for name in node.input],
            [tensor(name) for name in node.output],
            node.domain or None,
        )
        for node in model.graph.node
    ]
    inputs = [tensors[info.name] for info in model.graph.input]
    graph = gs.Graph(
        nodes,
        [each for each in inputs if not isinstance(each, gs.Constant)],
        [tensor(info.name) for info in model.graph.output],
        name=model.graph.name,
        doc_string=model.graph.doc_string,
        opset=opset(model),
        import_domains=[onnx.helper.make_opsetid(entry.domain, entry.version) for entry in model.opset_import],
        ir_version=model.ir_version,
    )
    graph.metadata = {entry.key: entry.value for entry in model.metadata_props}
    return graph


def split(graph: gs.Graph) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The graph as a model that holds only its small constants, and the arrays of the large ones by name."""
    model = onnx.ModelProto(producer_name="nnc", producer_version=__version__)
    model.opset_import.extend(opset_imports(graph))
    model.ir_version = max(graph.ir_version or 0, ir_version_for(model.opset_import))
    onnx.helper.set_model_props(model, metadata(graph))
    model.graph.name, model.graph.doc_string = graph.name, graph.doc_string
    model.graph.node.extend(map(node_proto, graph.nodes))
    model.graph.input.extend(map(_info, graph.inputs))
    model.graph.output.extend(map(_info, graph.outputs))
    ends = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name and id(tensor) not in ends and tensor.dtype is not None and tensor.shape is not None:
                model.graph.value_info.append(_info(tensor))
    weights = {}
    for constant in constants(graph):
        if is_large(constant.values):
            weights[constant.name] = constant.values
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(constant.values, constant.name))
    return model, weights


def is_standard(node: gs.Node, *ops: str) -> bool:
    """Whether the node is one of these operators of the ONNX standard, and not one of that name in another domain."""
    return node.op in ops and node.domain in STANDARD_DOMAINS


def metadata(graph: gs.Graph) -> dict[str, str]:
    """The model's metadata, such as the names of its classes; a graph that graphsurgeon made has none."""
    return dict(vars(graph).get("metadata", {}))


def constants(graph: gs.Graph) -> list[gs.Constant]:
    """The distinct constants that the graph's nodes read, in order of first use."""
    read = (tensor for node in graph.nodes for tensor in node.inputs)
    found = {id(tensor): tensor for tensor in (*read, *graph.outputs) if isinstance(tensor, gs.Constant)}
    return list(found.values())


def is_large(values: np.ndarray) -> bool:
    """Whether an array is kept out of the model, so that its bytes are neither copied nor read."""
    return values.nbytes > INLINE_BYTES and values.dtype.name not in NOT_RAW


def opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a model uses."""
    return next(entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS)


def opset_imports(graph: gs.Graph) -> list[onnx.OperatorSetIdProto]:
    """The operator sets that the graph's nodes are from; a domain that the model did not name is at version 1."""
    versions = {entry.domain: entry.version for entry in graph.import_domains or ()}
    versions |= {node.domain: 1 for node in graph.nodes if node.domain and node.domain not in versions}
    versions = {domain: version for domain, version in versions.items() if domain not in STANDARD_DOMAINS}
    return [onnx.helper.make_opsetid(domain, version) for domain, version in {"": graph.opset, **versions}.items()]


def ir_version_for(opset_imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    """The version of the file format for these operator sets: the oldest that nnc writes, where it may be that old."""
    return max(IR_VERSION, onnx.helper.find_min_ir_version_for(list(opset_imports), ignore_unknown=True))


def node_proto(node: gs.Node) -> onnx.NodeProto:
    """The message of one node."""
    proto = onnx.NodeProto(
        op_type=node.op,
        name=node.name,
        input=[tensor.name for tensor in node.inputs],
        output=[tensor.name for tensor in node.outputs],
        domain=node.domain or "",
    )
    for key, value in node.attrs.items():
        _add_attribute(proto, key, value)
    return proto


def unique(name: str, taken: set[str]) -> str:
    """`name`, or `name_1`, `name_2`, ... when it is taken; the result is added to `taken`."""
    result, count = name, 0
    while result in taken:
        count += 1
        result = f"{name}_{count}"
    taken.add(result)
    return result


def value_info(name: str, dtype: object, shape: Iterable[int | str | None] | None) -> onnx.ValueInfoProto:
    """The declaration of a tensor; `shape` None is an unknown rank."""
    return onnx.helper.make_tensor_value_info(name, onnx_dtype(dtype), None if shape is None else list(shape))


def onnx_dtype(dtype: object) -> int:
    """The element type of onnx for a numpy dtype; a number of onnx stays as it is."""
    return dtype if isinstance(dtype, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))  # type: ignore[call-overload]


def tensor_type(kind: onnx.TypeProto) -> tuple[np.dtype | None, list[int] | None]:
    """Dtype and static shape of a type, each None where it is open or no tensor's."""
    if not kind.HasField("tensor_type"):
        return None, None
    dtype = kind.tensor_type.elem_type
    known = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype)) if dtype else None
    return known, static_shape(kind)


def static_shape(kind: onnx.TypeProto) -> list[int] | None:
    """The shape of a tensor type, or None unless every dimension is a number."""
    if not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return [dim.dim_value for dim in dims] if all(dim.HasField("dim_value") for dim in dims) else None


def open_shape(kind: onnx.TypeProto) -> list[int | str | None]:
    """The dimensions of a tensor type: numbers, names, or None."""
    dims = kind.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims]


def _info(tensor: gs.Tensor) -> onnx.ValueInfoProto:
    if tensor.dtype is None:
        return onnx.ValueInfoProto(name=tensor.name)
    return value_info(tensor.name, tensor.dtype, tensor.shape)


def _value(attribute: AttributeProto) -> Any:
    """The attribute as Python's value: text where it is text, a constant for a tensor."""
    value = onnx.helper.get_attribute_value(attribute)
    match attribute.type:
        case AttributeProto.STRING:
            return _text(value)
        case AttributeProto.STRINGS:
            return [_text(each) for each in value]
        case AttributeProto.TENSOR:
            return gs.Constant(value.name, onnx.numpy_helper.to_array(value))
        case AttributeProto.INTS | AttributeProto.FLOATS:
            return list(value)
    return value


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:  # an operator of somebody else may keep a blob there
        return value


def _add_attribute(proto: onnx.NodeProto, key: str, value: Any) -> None:
    match value:
        case bool() | int() | np.integer():
            proto.attribute.add(name=key, type=AttributeProto.INT, i=int(value))
        case float() | np.floating():
            proto.attribute.add(name=key, type=AttributeProto.FLOAT, f=float(value))
        case gs.Constant():
            proto.attribute.append(
                onnx.helper.make_attribute(key, onnx.numpy_helper.from_array(value.values, value.name))
            )
        case list() | tuple() if not value:
            proto.attribute.add(name=key, type=_declared_type(proto, key))
        case _:
            proto.attribute.append(onnx.helper.make_attribute(key, value))


def _declared_type(proto: onnx.NodeProto, key: str) -> Any:
    """The type of an attribute whose empty list doesn't tell."""
    try:
        declared: Any = onnx.defs.get_schema(proto.op_type, domain=proto.domain).attributes[key].type
        return declared.value
    except (onnx.defs.SchemaError, KeyError):
        return AttributeProto.INTS
