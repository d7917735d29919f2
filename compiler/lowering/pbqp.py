"""Partitioned Boolean quadratic problems: one alternative for every node, of the least sum of costs.

A node costs what its alternative costs, an edge what the alternatives of both its ends cost together. Nodes with at
most two neighbours are reduced exactly, so that chains, trees and series of branches are solved exactly; where only
nodes with more are left, the one with the most takes its locally best alternative (Scholz and Eckstein, "Register
Allocation for Irregular Architectures", 2002; for layouts of convolutions: Anderson and Gregg, "Optimal DNN Primitive
Selection with Partitioned Boolean Quadratic Programming", 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

import numpy as np

Node = TypeVar("Node", bound=Hashable)


def solve(costs: Mapping[Node, np.ndarray], edges: Mapping[tuple[Node, Node], np.ndarray]) -> dict[Node, int]:
    """The alternative of every node.

    `costs`: float64 [alternatives] by node, `edges`: float64 [alternatives of the first, of the second]; infinity where
    there is none. Where alternatives cost the same, the first one is taken.
    """
    problem = _Problem(costs, edges)
    taken: list[tuple[Node, Callable[[Mapping[Node, int]], np.ndarray]]] = []
    while problem.costs:
        node = min(problem.costs, key=problem.degree)
        if problem.degree(node) > 2:
            node = max(problem.costs, key=problem.degree)
        taken.append((node, problem.eliminate(node)))
    chosen: dict[Node, int] = {}
    for node, cost in reversed(taken):
        chosen[node] = int(np.argmin(cost(chosen)))
    return chosen


class _Problem(Generic[Node]):
    """What is left of a problem."""

    def __init__(self, costs: Mapping[Node, np.ndarray], edges: Mapping[tuple[Node, Node], np.ndarray]) -> None:
        self.costs = {node: np.array(cost, np.float64) for node, cost in costs.items()}
        self.edges: dict[Node, dict[Node, np.ndarray]] = {node: {} for node in costs}
        for (one, other), matrix in edges.items():
            if one == other:
                self.costs[one] += np.diagonal(matrix)
            else:
                self._connect(one, other, matrix)

    def degree(self, node: Node) -> int:
        return len(self.edges[node])

    def _connect(self, one: Node, other: Node, matrix: np.ndarray) -> None:
        before = self.edges[one].get(other, 0.0)
        self.edges[one][other] = before + np.asarray(matrix, np.float64)
        self.edges[other][one] = self.edges[one][other].T

    def eliminate(self, node: Node) -> Callable[[Mapping[Node, int]], np.ndarray]:
        """Leave a node out, what it costs moved to its neighbours; what its alternatives cost once they are chosen."""
        cost, edges = self.costs.pop(node), self.edges.pop(node)
        for other in edges:
            del self.edges[other][node]
        if len(edges) == 1:
            ((other, matrix),) = edges.items()
            self.costs[other] += (cost[:, None] + matrix).min(0)
        elif len(edges) == 2:
            (one, left), (other, right) = edges.items()
            self._connect(one, other, (cost[:, None, None] + left[:, :, None] + right[:, None, :]).min(0))
        elif edges:
            near = cost + sum((matrix + self.costs[other]).min(1) for other, matrix in edges.items())
            best = int(np.argmin(near))
            for other, matrix in edges.items():
                self.costs[other] += matrix[best]
            cost = np.where(np.arange(len(cost)) == best, 0.0, np.inf)
        return lambda chosen: cost + sum((matrix[:, chosen[other]] for other, matrix in edges.items()), 0.0)
