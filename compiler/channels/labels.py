"""Channels as numbers, and which of them go together."""

import numpy as np


class Labels:
    """Ids 0, 1, 2, ... of channels, and the equalities between them. Id 0 is everything that stays."""

    def __init__(self) -> None:
        import networkx as nx  # takes longer than most commands

        self._nx = nx
        self._equal = nx.Graph()  # with the reason on every edge; those of 0 tell why a channel stays
        self._equal.add_node(0)
        self._count = 1
        self._roots = np.zeros(1, np.int64)
        self._pending: list[np.ndarray] = []

    def fresh(self, count: int) -> np.ndarray:
        """`count` new ids, int64."""
        self._count += count
        return np.arange(self._count - count, self._count)

    def unite(self, first: np.ndarray, second: np.ndarray | int, reason: str) -> None:
        """Let the ids of two arrays, which are broadcast, go together; `reason` is told of those that meet a 0."""
        pairs = distinct_pairs(first, second)
        for one, other in pairs.tolist():
            if not self._equal.has_edge(one, other):
                self._equal.add_edge(one, other, reason=reason)
        if pairs.size:
            self._pending.append(pairs)

    def fix(self, ids: np.ndarray, reason: str) -> None:
        """Let the channels stay."""
        self.unite(ids, 0, reason)

    def roots(self) -> np.ndarray:
        """For every id the smallest one that it goes together with, int64 [ids]."""
        self._roots = np.concatenate([self._roots, np.arange(len(self._roots), self._count)])
        if self._pending:
            pairs = self._roots[np.concatenate(self._pending)]
            self._roots = self.merged(pairs)[self._roots]
            self._pending = []
        return self._roots

    def merged(self, pairs: np.ndarray) -> np.ndarray:
        """What `roots` would be of ids that are roots now, if the `pairs` [n, 2] of them went together."""
        roots = np.arange(self._count)
        for component in self._nx.connected_components(self._nx.Graph(pairs.tolist())):
            roots[list(component)] = min(component)
        return roots

    def reasons(self) -> dict[int, str]:
        """Why channels stay: for every id that goes together with 0 the reason that is fewest steps away."""
        reasons: dict[int, str] = {}
        for one, before in self._nx.bfs_predecessors(self._equal, 0):
            reasons[one] = self._equal.edges[0, one]["reason"] if before == 0 else reasons[before]
        return reasons


def distinct_pairs(first: np.ndarray, second: np.ndarray | int) -> np.ndarray:
    """The different pairs (smaller, larger) of unequal elements at the same places, int64 [n, 2]."""
    one, other = (each.reshape(-1) for each in np.broadcast_arrays(first, second))
    differ = one != other
    low, high = np.minimum(one, other)[differ], np.maximum(one, other)[differ]
    codes = np.unique(low << 32 | high)
    return np.stack([codes >> 32, codes & 0xFFFFFFFF], axis=1)


def varied(array: np.ndarray) -> list[int]:
    """The axes along which an array is not constant."""
    return [axis for axis, size in enumerate(array.shape) if size > 1 and (array != array.take([0], axis)).any()]
