"""Partition a graph into groups, one kernel each: a root and the elementwise nodes that follow it.

A group is grown from its root along its value. An elementwise node joins if, with it, all readers of every value inside
of the group except the last are inside of the group too: so `Conv -> Add -> Relu` is one group, and so is
`Conv -> (Sigmoid, Mul)`, where two nodes read the same value. QuantizeLinear ends a group, so that integers are stored;
DequantizeLinear begins none: its readers load the integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from nnc.integers import dequantized
from nnc.lowering.expression import is_elementwise

_LOOKAHEAD = 12  # nodes that are taken on trial until their values come together in one


@dataclass
class Group:
    """Nodes in topological order that one kernel computes."""

    nodes: list[gs.Node]
    outputs: list[gs.Tensor] = field(default_factory=list)

    @property
    def root(self) -> gs.Node:
        return self.nodes[0]

    @property
    def is_elementwise(self) -> bool:
        return is_elementwise(self.root)

    @property
    def name(self) -> str:
        return self.root.name or self.root.outputs[0].name

    def inputs(self) -> list[gs.Variable]:
        """The variables that the group reads from memory, each once."""
        made = {id(tensor) for node in self.nodes for tensor in node.outputs}
        read = {id(tensor): tensor for node in self.nodes for tensor in node.inputs}
        return [t for key, t in read.items() if key not in made and isinstance(t, gs.Variable) and t.name]


def partition(graph: gs.Graph, takes_epilogue: frozenset[str]) -> list[Group]:
    """The groups of a graph in topological order. Only roots with an op in `takes_epilogue` are grown, and chains."""
    position = {id(node): place for place, node in enumerate(graph.nodes)}
    outputs = {id(tensor) for tensor in graph.outputs}
    taken: set[int] = set()
    groups = []
    for node in graph.nodes:
        if id(node) in taken or dequantized(node.outputs[0]):  # what is dequantized belongs to its readers
            continue
        group = Group([node])
        if node.op in takes_epilogue or is_elementwise(node):
            _grow(group, outputs, taken)
        group.nodes.sort(key=lambda each: position[id(each)])
        taken.update(id(each) for each in group.nodes)
        group.outputs = group.outputs or [tensor for tensor in node.outputs if tensor.name]
        groups.append(group)
    # A group runs when its last operand is there.
    return sorted(groups, key=lambda group: position[id(group.nodes[-1])])


def expansions(graph: gs.Graph, groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Pointwise convolutions and the depthwise ones that alone read them: one kernel can compute both, row by row."""
    outputs = {id(tensor) for tensor in graph.outputs}
    starts = {id(group.root): group for group in groups}
    found = []
    for group in groups:
        (made, *_), readers = group.outputs, group.outputs[0].outputs
        if _is_pointwise(group.root) and len(readers) == 1 and id(made) not in outputs:
            second = starts.get(id(readers[0]))
            if second is not None and _is_depthwise(second.root) and all(_reads_one(g) for g in (group, second)):
                found.append((group, second))
    return found


def _is_pointwise(node: gs.Node) -> bool:
    dense = node.op == "Conv" and node.attrs.get("group", 1) == 1 and isinstance(node.inputs[1], gs.Constant)
    ones = all(each == 1 for each in [*node.attrs.get("strides", ()), *(node.inputs[1].shape[2:] if dense else ())])
    return dense and len(node.inputs[1].shape) == 4 and ones and not any(node.attrs.get("pads", ()))


def _is_depthwise(node: gs.Node) -> bool:
    if node.op != "Conv" or not isinstance(node.inputs[1], gs.Constant):
        return False
    channels, per_group = node.inputs[1].shape[:2]
    return bool(node.attrs.get("group", 1) == channels and per_group == 1)


def _reads_one(group: Group) -> bool:
    """Whether a group reads nothing but the input of its root."""
    return [id(each) for each in group.inputs()] == [id(group.root.inputs[0])]


def _grow(group: Group, outputs: set[int], taken: set[int]) -> None:
    """Extend a group with one output as far as it goes; where it passes integers, to the last of them."""
    value = group.root.outputs[0]
    last = [(len(group.nodes), value)] if group.root.op == "QuantizeLinear" else []
    while id(value) not in outputs:
        chain = _extension(value, outputs, taken)
        if not chain:
            break
        group.nodes += chain
        value = chain[-1].outputs[0]
        if chain[-1].op == "QuantizeLinear":
            last.append((len(group.nodes), value))
    if last:
        count, value = last[-1]
        del group.nodes[count:]
    group.outputs = [value]


def _extension(value: gs.Tensor, outputs: set[int], taken: set[int]) -> list[gs.Node]:
    """The fewest elementwise nodes after `value` that take over all of its readers and leave one value; or none."""
    chain: list[gs.Node] = []
    open_values = [value]
    while len(chain) < _LOOKAHEAD:
        readers = {id(reader): reader for tensor in open_values for reader in tensor.outputs}
        ready = [node for node in readers.values() if _joins(node, value, taken) and node not in chain]
        if not ready:
            return []
        # A node that waits for another one of the group has to come after it.
        node = next((n for n in ready if not _waits(n, ready)), ready[0])
        chain.append(node)
        open_values.append(node.outputs[0])
        inside = {id(each) for each in chain}
        open_values = [
            t for t in open_values if any(id(r) not in inside for r in t.outputs) or id(t) in outputs or not t.outputs
        ]
        if open_values == [node.outputs[0]]:
            return chain
    return []


def _joins(node: gs.Node, value: gs.Tensor, taken: set[int]) -> bool:
    """Whether a node can be computed where `value` is: it is elementwise and has the same shape."""
    return (
        id(node) not in taken and is_elementwise(node) and list(node.outputs[0].shape or []) == list(value.shape or [])
    )


def _waits(node: gs.Node, others: list[gs.Node]) -> bool:
    """Whether a node reads what another one of `others` computes."""
    return any(other is not node and any(t is other.outputs[0] for t in node.inputs) for other in others)
