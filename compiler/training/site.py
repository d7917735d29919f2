"""What an operator sees of the node that it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
import torch

from nnc.errors import NncError
from nnc.gradient.step import known_values

Tensor: TypeAlias = torch.Tensor

#: Computes a node: from its inputs, None where one is omitted, to its output or outputs.
Compute: TypeAlias = Callable[..., Any]


class BatchInside(Exception):
    """A node makes a view of a batch whose samples don't lie one behind the other: its shape says no more."""

    def __init__(self, node: gs.Node) -> None:
        super().__init__(node.name)
        self.node = node


@dataclass
class Mode:
    """What all nodes of a module look up while it runs."""

    normalizes: bool = False
    """Whether BatchNormalization takes the statistics of the batch, and keeps their running mean."""


@dataclass(frozen=True)
class Site:
    """A node and the graph that it is in, whose shapes are static."""

    node: gs.Node
    graph: gs.Graph
    mode: Mode

    def attr(self, name: str, default: Any = None) -> Any:
        return self.node.attrs.get(name, default)

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.node.inputs) and not self.node.inputs[index].is_empty()

    def shape(self, index: int = 0) -> list[int]:
        """Of an input, with the batch size of the graph."""
        return list(self.node.inputs[index].shape)

    @property
    def result(self) -> list[int]:
        """The shape of the first output, likewise."""
        return list(self.node.outputs[0].shape)

    @property
    def rank(self) -> int:
        return len(self.shape())

    def setting(self, index: int, what: str) -> np.ndarray:
        """The values of an input that may depend on nothing but constants and shapes; `what` names it in errors."""
        values = known_values(self.node.inputs[index], self.graph)
        if values is None:
            raise self.refused(f"with {what} that the model computes")
        return values

    def told(self, index: int) -> list[int] | None:
        """The integers of an optional input, likewise; None where it is left out."""
        if not self.has(index):
            return None
        return [int(each) for each in self.setting(index, f"'{self.node.inputs[index].name}'").reshape(-1)]

    def refused(self, why: str) -> NncError:
        return NncError(f"'{self.node.name}': {self.node.op} {why} can't be trained", "put simplify-shapes before it")


Operator: TypeAlias = Callable[[Site], Compute]
"""Prepares a node: what is known of it is looked up once, and not in every step."""
