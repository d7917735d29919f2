"""Making layers wider without changing what they compute: channels are copied, and their readers share them out.

Chen, Goodfellow, Shlens, Net2Net: accelerating learning via knowledge transfer, ICLR 2016.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.attributes import pads
from nnc.channels.groups import Channels, Use
from nnc.channels.removal import ADAPTED
from nnc.model.proto import is_standard


def duplicate(graph: gs.Graph, channels: Channels, copies: Mapping[int, int], seed: int = 0) -> None:
    """Let channels be there several times, in place: `copies` says how often by id, all together at least once.

    Outputs stay the same within rounding. What reads the copies of a channel takes a random share of it from each, so
    that training tells them apart. Raises ValueError where `refusal` gives a reason.
    """
    if reason := refusal(graph, channels, [one for one, count in copies.items() if count > 1]):
        raise ValueError(reason)
    counts = np.ones(1 + max([0, *copies, *(int(group.ids.max()) for group in channels.groups)]), np.int64)
    counts[list(copies)] = list(copies.values())
    copying = _Copying(graph, channels, counts)
    copying.copy_constants(np.random.default_rng(seed))
    copying.finish()


def refusal(graph: gs.Graph, channels: Channels, ids: Collection[int]) -> str:
    """Why channels can't be copied, or nothing: a copy lies behind its original wherever that is."""
    copied = list(ids)
    for use in channels.uses:
        if np.isin(use.ids, copied).any() and not isinstance(use.node.inputs[use.input], gs.Constant):
            return f"the weights of {use.node.op} '{use.node.name}' are quantized"
    axes = {name: here for name, (_, all_) in channels.axes.items() if (here := all_[np.isin(all_, copied)]).size}
    for node in graph.nodes:
        touched = any(tensor.name in axes for tensor in (*node.inputs, *node.outputs))
        if touched and _counts_channels(node, channels):
            return f"{node.op} '{node.name}' is told how many channels there are"
    for name, here in axes.items():
        if len(np.unique(here)) < len(here):
            return f"'{name}' holds a channel in several places"
    return ""


def _counts_channels(node: gs.Node, channels: Channels) -> bool:
    """Whether what a node is told of sizes, or its grouping, says how many channels there are."""
    if is_standard(node, "Conv"):
        return node.attrs.get("group", 1) > 1 and node.inputs[1].shape[1] > 1
    if is_standard(node, "Pad"):
        place = channels.of(node.outputs[0])
        return place is None or place[0] in pads(node)
    return is_standard(node, *ADAPTED)


@dataclass
class _Copying:
    graph: gs.Graph
    channels: Channels
    counts: np.ndarray
    """How often a channel shall be there, by id."""

    def copied(self, ids: np.ndarray) -> bool:
        """Whether one of the channels shall be there several times."""
        return bool((self.counts[ids] > 1).any())

    def copy_constants(self, rng: np.random.Generator) -> None:
        """Give every reader of a constant its copies."""
        consumed = {(use.node.name, use.input, use.axis) for group in self.channels.groups for use in group.consumers}
        names = graphs.tensor_names(self.graph)
        nodes = {node.name: node for node in self.graph.nodes}
        by_input: dict[tuple[str, int], list[Use]] = defaultdict(list)
        for use in self.channels.uses:
            if self.copied(use.ids):
                by_input[use.node.name, use.input].append(use)
        for (name, index), uses in by_input.items():
            whole = nodes[name].inputs[index]
            values = whole.values
            for use in uses:
                counts = self.counts[use.ids]
                values = np.repeat(values, counts, use.axis)
                if (name, index, use.axis) in consumed:
                    values = _shared_out(values, counts, use.axis, rng)
            nodes[name].inputs[index] = copied = gs.Constant(whole.name, values)
            names -= {whole.name} if not whole.outputs else set()
            copied.name = graphs.unique(whole.name, names)

    def finish(self) -> None:
        """Note the new shapes, and that there are more groups."""
        for node in self.graph.nodes:
            for tensor in node.outputs:
                axis, ids = self.channels.of(tensor) or (0, np.zeros(0, np.int64))
                if self.copied(ids):
                    tensor.shape[axis] = int(self.counts[ids].sum())
            if node.op == "Conv" and node.attrs.get("group", 1) > 1:
                node.attrs["group"] = node.inputs[0].shape[1] // node.inputs[1].shape[1]


def _shared_out(values: np.ndarray, counts: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
    """Weights whose copies along an axis add up to what they were, `counts` of each."""
    shares = rng.uniform(0.5, 1.5, values.shape)
    sums = np.add.reduceat(shares, np.cumsum(counts) - counts, axis)
    return (values * (shares / np.repeat(sums, counts, axis))).astype(values.dtype)
