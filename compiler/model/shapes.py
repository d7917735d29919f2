"""Shapes that onnx's inference leaves open because they depend on values which the model computes itself.

Exporters write `x.view(n, 2, c // 2, h, w)` as Shape -> Gather -> Div -> Unsqueeze -> Concat -> Reshape. onnx follows
values through some of these operators; here the others are computed in onnxruntime, all that one shape depends on in
one go, and the nodes whose shape was open are inferred again, one by one.
"""

import math
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import shape_inference

from nnc import session
from nnc.errors import NncError
from nnc.model.proto import STANDARD_DOMAINS, static_shape

#: Values of more elements are not followed: they are data, not shapes.
_MOST_ELEMENTS = 1024

#: Operators whose result is not determined by their inputs.
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def complete(model: onnx.ModelProto) -> None:
    """Declare in `model.graph.value_info` and the outputs every static shape that can be found."""
    walk = _Walk(model)
    if not all(walk.is_known(name) for node in model.graph.node for name in node.output):
        walk.run()
        walk.declare()


class _Walk:
    """The types and values known so far, and the nodes that would compute more values."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._nodes = list(model.graph.node)
        self._imports = {entry.domain: entry.version for entry in model.opset_import}
        infos = (*model.graph.value_info, *model.graph.input, *model.graph.output)
        self._types = {info.name: info.type for info in infos}
        self._values: dict[str, onnx.TensorProto] = {}
        for tensor in model.graph.initializer:
            self._know(tensor.name, tensor)
        self._pending: dict[str, int] = {}  # output -> index of the node that would compute it
        self._found: set[str] = set()

    def is_known(self, name: str) -> bool:
        """Whether the tensor's shape is static; an omitted one has none."""
        return not name or self._shape(name) is not None

    def run(self) -> None:
        """Infer what is open, node by node in the order of execution."""
        for index, node in enumerate(self._nodes):
            if node.domain in STANDARD_DOMAINS:
                if not all(map(self.is_known, node.output)):
                    self._infer(node)
                self._follow(index, node)

    def declare(self) -> None:
        """Write the types that were found into the model."""
        graph = self._model.graph
        for info in graph.output:
            if info.name in self._found:
                info.type.CopyFrom(self._types[info.name])
                self._found.remove(info.name)
        kept = [info for info in graph.value_info if info.name not in self._found]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        for name in sorted(self._found):
            graph.value_info.add(name=name).type.CopyFrom(self._types[name])

    def _shape(self, name: str) -> list[int] | None:
        return static_shape(self._types[name]) if name in self._types else None

    def _know(self, name: str, tensor: onnx.TensorProto) -> None:
        self._values[name] = tensor
        self._types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)

    def _follow(self, index: int, node: onnx.NodeProto) -> None:
        """Note the node's outputs when they are small and computed from nothing but values that can be known."""
        if node.op_type in ("Shape", "Size"):
            self._measure(node)
        elif node.op_type not in RANDOM and all(map(self._has_value, node.input)):
            shapes = [self._shape(name) for name in node.output if name]
            if all(shape is not None and math.prod(shape) <= _MOST_ELEMENTS for shape in shapes):
                self._pending |= dict.fromkeys(node.output, index)

    def _measure(self, node: onnx.NodeProto) -> None:
        """The value of a Shape or Size node."""
        shape = self._shape(node.input[0]) if len(node.input) == 1 else None
        if shape is None:
            return
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        sizes = shape[ends.get("start") : ends.get("end")] if node.op_type == "Shape" else math.prod(shape)
        self._know(node.output[0], onnx.numpy_helper.from_array(np.array(sizes, np.int64)))

    def _has_value(self, name: str) -> bool:
        return not name or name in self._values or name in self._pending

    def _infer(self, node: onnx.NodeProto) -> None:
        read = [name for name in node.input if name]
        if not all(name in self._types for name in read):
            return
        self._compute(name for name in read if name in self._pending and name not in self._values)
        try:
            types = shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op_type, self._imports.get("", self._imports.get("ai.onnx", 1)), ""),
                node,
                {name: self._types[name] for name in read},
                {name: self._values[name] for name in read if name in self._values},
            )
        except (shape_inference.InferenceError, onnx.defs.SchemaError, onnx.checker.ValidationError):
            return  # what is wrong, and not merely unknown, is for the checker and for inference over the whole model
        found = {name: kind for name, kind in types.items() if static_shape(kind) is not None}
        self._types |= found
        self._found |= found.keys()

    def _compute(self, wanted: Iterable[str]) -> None:
        """Move tensors from the pending to the known values."""
        wanted = list(wanted)
        indices, constants = self._cone(wanted)
        try:
            nodes = [self._nodes[index] for index in sorted(indices)]
            results = session.compute(nodes, constants, wanted, self._model.opset_import) if wanted else []
        except NncError:
            return  # onnxruntime can't run one of them
        for name, values in zip(wanted, results, strict=True):
            self._know(name, onnx.numpy_helper.from_array(values))

    def _cone(self, wanted: Iterable[str]) -> tuple[set[int], dict[str, np.ndarray]]:
        """The nodes that compute `wanted`, and the constants that these read."""
        indices: set[int] = set()
        constants: dict[str, np.ndarray] = {}
        stack = list(wanted)
        while stack:
            name = stack.pop()
            if name in self._values:
                constants[name] = onnx.numpy_helper.to_array(self._values[name])
            elif name and self._pending[name] not in indices:
                indices.add(self._pending[name])
                stack.extend(self._nodes[self._pending[name]].input)
        return indices, constants
