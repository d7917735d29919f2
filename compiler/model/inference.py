"""The shapes and types of all tensors of a model, and what can be wrong with them."""

import re
from collections.abc import Mapping

import onnx
from onnx import shape_inference

from nnc.errors import NncError
from nnc.model import shapes
from nnc.model.proto import STANDARD_DOMAINS, opset
from nnc.model.refusals import described

#: Where nodes of the standard domain that the standard does not have are put while onnx looks at the model.
UNKNOWN_DOMAIN = "unknown to onnx"


def infer(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
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
                    f"{place}: {described(node)} would have an output of {'x'.join(map(str, sizes))}",
                    "the input of the model is too small; --shape sets its size",
                )
    for info in model.graph.output:
        if not types[info.name].HasField("shape"):
            raise NncError(f"{place}: the shape of the output '{info.name}' is not known", _opaque(model, types))


def _opaque(model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto.Tensor]) -> str | None:
    """A hint that names the first node whose shape is not known."""
    for node in model.graph.node:
        if any(name and (name not in types or not types[name].HasField("shape")) for name in node.output):
            return f"{described(node)} hides it: declare the shape of its output in the model"
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


def hide_unknown(model: onnx.ModelProto) -> None:
    """Give nodes of the standard domain that the standard does not have a domain of their own: onnx lets those be."""
    version = opset(model)
    used = {node.op_type for node in model.graph.node if node.domain in STANDARD_DOMAINS}
    unknown = {op for op in used if not onnx.defs.has(op, version, "")}
    if unknown:
        if all(entry.domain != UNKNOWN_DOMAIN for entry in model.opset_import):
            model.opset_import.add(domain=UNKNOWN_DOMAIN, version=1)
        for node in model.graph.node:
            if node.op_type in unknown and node.domain in STANDARD_DOMAINS:
                node.domain = UNKNOWN_DOMAIN


def without_empty_windows(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
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
        model = infer(model, place)
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


def first_reason(error: Exception) -> str:
    """The sentence of an onnx error that names the cause, without C++ locations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("==>")]
    text = re.sub(r"\[\w+Error\]\s*", "", lines[0]).removeprefix("Inference error(s): ")
    return (text[0].lower() + text[1:]).rstrip(".")[:300]
