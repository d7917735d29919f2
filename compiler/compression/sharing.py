"""Layers that share their weights, as the heads of a detector at all scales do: they are fitted together."""

from collections import defaultdict
from collections.abc import Sequence

import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.layers import Layer


def units(graph: gs.Graph) -> list[list[gs.Node]]:
    """The nodes in an order of execution, those that can be fitted together as one; every other node is alone.

    They compute the same of what they read, and none depends on what another gives: what all of them read is there
    before the first of them runs.
    """
    order = [[node] for node in graph.nodes]
    together: list[list[gs.Node]] = []
    for group in _alike(graph):
        if found := _ordered(graph.nodes, [*together, group]):
            order, together = found, [*together, group]
    return order


def _alike(graph: gs.Graph) -> list[list[gs.Node]]:
    """The nodes that share weights, where all of their readers are layers of one kind, with the same bias."""
    readers: dict[int, list[gs.Node]] = defaultdict(list)
    for node in graph.nodes:
        if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
            readers[id(node.inputs[1])].append(node)
    return [each for each in readers.values() if len(each) > 1 and _are_alike(each)]


def _are_alike(nodes: Sequence[gs.Node]) -> bool:
    layers = [layer for layer in map(Layer.of, nodes) if layer is not None]
    is_whole = len(layers) == len(nodes) == 1 + len(layers[0].sharers)
    return is_whole and len(set(map(_kind, layers))) == 1 and nodes[0].op != "MatMul"  # whose bias would lie behind it


def _kind(layer: Layer) -> tuple[object, ...]:
    """What layers must have in common, besides their weights, that one fit is that of all."""
    node = layer.node
    bias = next((id(each) for each in node.inputs[2:] if not each.is_empty()), None)
    factors = [node.attrs.get(key, default) for key, default in (("alpha", 1.0), ("beta", 1.0), ("transB", 0))]
    return node.op, layer.groups, bias, *factors


def _ordered(nodes: Sequence[gs.Node], together: Sequence[Sequence[gs.Node]]) -> list[list[gs.Node]]:
    """The nodes in an order in which groups run as one, and else as they were; empty where there is none."""
    import networkx as nx  # takes longer than most commands

    unit = {id(node): place for place, node in enumerate(nodes)}
    for group in together:
        unit |= dict.fromkeys(map(id, group), unit[id(group[0])])
    members: dict[int, list[gs.Node]] = defaultdict(list)
    for node in nodes:
        members[unit[id(node)]].append(node)
    reads = nx.DiGraph()
    reads.add_nodes_from(members)
    reads.add_edges_from(
        (unit[id(tensor.inputs[0])], unit[id(node)]) for node in nodes for tensor in node.inputs if tensor.inputs
    )
    try:
        return [members[each] for each in nx.lexicographical_topological_sort(reads)]
    except nx.NetworkXUnfeasible:
        return []


def restore_order(graph: gs.Graph, names: Sequence[str]) -> None:
    """Put the nodes into the order of these names again; new ones stand in front of what they stood in front of."""
    places = {name: place for place, name in enumerate(names)}
    place, placed = len(names), []
    for node in reversed(graph.nodes):
        place = places.get(node.name, place)
        placed.append((place, node))
    graph.nodes = [node for _, node in sorted(reversed(placed), key=lambda each: each[0])]
    graphs.sort(graph)
