"""What nnc does not take of a model, told before anything is done with it."""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import AttributeProto

from nnc.errors import NncError
from nnc.model import wire
from nnc.model.proto import OPSET, STANDARD_DOMAINS

#: Attributes that a node of the graph can hold.
_ATTRIBUTES = {
    AttributeProto.FLOAT, AttributeProto.FLOATS, AttributeProto.INT, AttributeProto.INTS,
    AttributeProto.STRING, AttributeProto.STRINGS, AttributeProto.TENSOR,
}  # fmt: skip

#: Bytes of weights that are read before their pages are given back.
_MOST_RESIDENT = 2**26


def refuse_bytes(graph: onnx.GraphProto, place: str) -> None:
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


def refuse_features(model: onnx.ModelProto, place: str) -> None:
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
                f"{place}: {described(node)} is of the domain '{node.domain}', which the model does not import"
            )


def _refuse_opset(model: onnx.ModelProto, place: str) -> None:
    standard = [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]
    newest = onnx.defs.onnx_opset_version()
    if not standard:
        raise NncError(f"{place}: the model does not say its opset", "export it again")
    if not all(9 <= version <= newest for version in standard):
        raise NncError(
            f"{place}: opset {standard[0]}; nnc reads opset 9 to {newest}", f"export the model with opset {OPSET}"
        )


def _refused_attribute(node: onnx.NodeProto, attribute: AttributeProto, place: str) -> NncError:
    where = f"{place}: {described(node)}"
    if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        return NncError(
            f"{where} holds a subgraph; nnc takes graphs without control flow",
            "export the model with fixed control flow, for example by tracing it",
        )
    return NncError(f"{where} has an attribute '{attribute.name}' of a kind that nnc does not take")


def refuse_disorder(graph: onnx.GraphProto, weights: Iterable[str], place: str) -> None:
    """Raise unless every tensor is computed once, and before it is read."""
    computed = {"", *weights, *(info.name for info in graph.input)}
    later = {name for node in graph.node for name in node.output}
    hint = "the model breaks the ONNX standard; export it again"
    for node in graph.node:
        for name in node.input:
            if name not in computed:
                wrong = " before it is computed" if name in later else ", which nothing computes"
                raise NncError(f"{place}: {described(node)} reads '{name}'{wrong}", hint)
        for name in node.output:
            if name and name in computed:
                raise NncError(f"{place}: '{name}' is computed twice", hint)
            computed.add(name)
    for info in graph.output:
        if info.name not in computed:
            raise NncError(f"{place}: nothing computes the output '{info.name}'", hint)


def refuse_nan(weights: Mapping[str, np.ndarray], place: str) -> None:
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


def described(node: onnx.NodeProto) -> str:
    """The node as an error calls it: by its name or its first output."""
    return f"node '{node.name or next(iter(node.output), '')}' ({node.op_type})"
