"""What a rule sees of the node that it differentiates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from nnc import session
from nnc.gradient.value import Value
from nnc.measure import has_shape
from nnc.model import proto


class NoGradient(Exception):
    """Raised by a rule; the text says what about the node it can't differentiate."""


@dataclass(frozen=True)
class Step:
    """A node on the way back from the loss."""

    node: gs.Node
    x: Sequence[Value]
    """Its inputs; an omitted one has an empty name."""
    y: Sequence[Value]
    """Its outputs."""
    gradients: Sequence[Value | None]
    """The gradient with respect to each output; None is zero."""

    @property
    def g(self) -> Value:
        """The gradient with respect to the first output."""
        if self.gradients[0] is None:
            raise NoGradient("with respect to its further outputs")
        return self.gradients[0]

    def attr(self, name: str, default: Any = None) -> Any:
        return self.node.attrs.get(name, default)

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.x) and not self.x[index].tensor.is_empty()

    def constant(self, index: int, what: str) -> np.ndarray:
        """The values of input `index`, which may depend on nothing but constants and shapes: `what` names it."""
        values = known_values(self.x[index].tensor, self.x[index].writer.graph)
        if values is None:
            raise NoGradient(f"with {what} that the model computes")
        return values

    def told(self, index: int) -> list[int] | None:
        """The integers of an optional input, likewise; None where it is left out."""
        if not self.has(index):
            return None
        return [int(each) for each in self.constant(index, f"'{self.x[index].tensor.name}'").reshape(-1)]


def known_values(tensor: gs.Tensor, graph: gs.Graph) -> np.ndarray | None:
    """The values of a tensor that depends on constants and shapes alone, None of another.

    Exporters compute the sizes of views and the bounds of slices from shapes.
    """
    constants: dict[str, np.ndarray] = {}
    nodes: set[int] = set()
    stack = [tensor]
    while stack:
        each = stack.pop()
        producer = each.inputs[0] if each.inputs else None
        if isinstance(each, gs.Constant):
            constants[each.name] = each.values
        elif producer is None:
            return None
        elif producer.op == "Shape" and has_shape(producer.inputs[0]):
            sizes = producer.inputs[0].shape[producer.attrs.get("start") : producer.attrs.get("end")]
            constants[each.name] = np.array(sizes, np.int64)
        elif id(producer) not in nodes:
            nodes.add(id(producer))
            stack.extend(read for read in producer.inputs if not read.is_empty())
    if tensor.name in constants:
        return constants[tensor.name]
    ordered = [proto.node_proto(node) for node in graph.nodes if id(node) in nodes]
    return session.compute(ordered, constants, [tensor.name], proto.opset_imports(graph))[0]


#: The gradient with respect to input `index` of the node, before it is summed over the axes along which the input was
#: broadcast; None is zero.
Rule: TypeAlias = Callable[[Step, int], Value | None]


def first(rule: Callable[[Step], Value | None]) -> Rule:
    """A rule for the first input only: the others are weights or settings."""

    def only_first(step: Step, index: int) -> Value | None:
        if index:
            raise NoGradient(f"with respect to its input {index}, '{step.node.inputs[index].name}'")
        return rule(step)

    return only_first
