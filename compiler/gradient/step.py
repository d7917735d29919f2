"""What a rule sees of the node that it differentiates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from nnc.gradient.value import Value


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

    @property
    def opset(self) -> int:
        return self.x[0].writer.graph.opset

    def attr(self, name: str, default: Any = None) -> Any:
        return self.node.attrs.get(name, default)

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.x) and not self.x[index].tensor.is_empty()

    def constant(self, index: int, what: str) -> np.ndarray:
        """The values of input `index`, which has to be constant: `what` names it."""
        tensor = self.x[index].tensor
        if not isinstance(tensor, gs.Constant):
            raise NoGradient(f"with {what} that the model computes")
        return tensor.values


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
