"""Reverse-mode differentiation: from the gradients of the outputs to those of the tensors before them."""

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from nnc.errors import NncError
from nnc.gradient.rules import RULES
from nnc.gradient.step import NoGradient, Step
from nnc.gradient.value import Value, Writer, apply
from nnc.measure import has_shape, numpy_dtype
from nnc.model.proto import STANDARD_DOMAINS
from nnc.pattern import NoMatch


class Backward:
    """The gradients of tensors, collected while the nodes are visited in reverse order of execution."""

    def __init__(self, writer: Writer, wanted: Sequence[gs.Tensor]) -> None:
        self._writer = writer
        self._nodes = list(writer.graph.nodes)
        self._active = _dependent(self._nodes, wanted)
        self._parts: dict[int, list[Value]] = {}

    def add(self, tensor: gs.Tensor, gradient: Value) -> None:
        """One more summand of a tensor's gradient, in the tensor's shape."""
        self._parts.setdefault(id(tensor), []).append(gradient)

    def gradient(self, tensor: gs.Tensor) -> Value | None:
        """The gradient from all readers that were visited; None is zero."""
        parts = self._parts.get(id(tensor), [])
        if len(parts) > 1:
            self._writer.prefix = f"{tensor.name}.gradient"
            parts[:] = [apply("Sum", *parts)]
        return parts[0] if parts else None

    def run(self) -> None:
        """Pass the gradients of the outputs through all nodes that a wanted tensor reaches."""
        for node in reversed(self._nodes):
            if any(id(tensor) in self._active for tensor in node.inputs):
                gradients = [self.gradient(tensor) for tensor in node.outputs]
                if any(gradient is not None for gradient in gradients):
                    self._pass(node, gradients)

    def _pass(self, node: gs.Node, gradients: Sequence[Value | None]) -> None:
        rule = RULES.get(node.op) if node.domain in STANDARD_DOMAINS else None
        if rule is None:
            raise _refused(node, "")
        if not has_shape(*(tensor for tensor in (*node.inputs, *node.outputs) if not tensor.is_empty())):
            raise _refused(node, " whose shapes are not known")
        self._writer.prefix = f"{node.outputs[0].name}.gradient"
        read, written = ([Value(self._writer, each) for each in side] for side in (node.inputs, node.outputs))
        step = Step(node, read, written, gradients)
        for index, tensor in enumerate(node.inputs):
            if id(tensor) in self._active:
                try:
                    gradient = rule(step, index)
                except (NoGradient, NoMatch) as reason:
                    raise _refused(node, f" {reason}") from None
                if gradient is not None:
                    self.add(tensor, gradient.sum_to(tensor.shape))


def _dependent(nodes: Sequence[gs.Node], wanted: Sequence[gs.Tensor]) -> set[int]:
    """The tensors with a gradient: floats, or levels of floats, that depend on a wanted tensor; these included."""
    found = {id(tensor) for tensor in wanted}
    for node in nodes:
        if any(id(tensor) in found for tensor in node.inputs):
            found |= {id(tensor) for tensor in node.outputs if not tensor.is_empty() and _is_number(tensor)}
    return found


def _is_number(tensor: gs.Tensor) -> bool:
    """Whether it may hold floats or their levels; int8 and uint8 are read as levels."""
    dtype = None if tensor.dtype is None else numpy_dtype(tensor.dtype)
    return dtype is None or dtype.kind in "fV" or (dtype.kind in "iu" and dtype.itemsize == 1)


def _refused(node: gs.Node, reason: str) -> NncError:
    domain = "" if node.domain in STANDARD_DOMAINS else f"{node.domain}."
    return NncError(
        f"node '{node.name}': no rule for the gradient of {domain}{node.op}{reason}",
        "name tensors behind it, or an output that does not depend on it",
    )
