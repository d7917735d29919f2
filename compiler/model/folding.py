"""Nodes that compute from constants alone, replaced by their values: what fold-constants and simplify-shapes share."""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from nnc import session
from nnc.errors import NncError
from nnc.measure import has_shape, tensor_bytes
from nnc.model import proto
from nnc.model.shapes import RANDOM
from nnc.pattern import NoMatch
from nnc.rewrite import Context


class Foldable:
    """The nodes of a graph that could be replaced by their values, found in order of execution."""

    def __init__(self, graph: gs.Graph, growth: int) -> None:
        """`growth` is by how many bytes the values of a node may exceed what it reads."""
        self._growth = growth
        self._ends = {id(tensor) for tensor in graph.outputs}
        self._nodes: dict[int, gs.Node] = {}

    @property
    def nodes(self) -> list[gs.Node]:
        return list(self._nodes.values())

    def add(self, node: gs.Node) -> bool:
        """Whether everything that the node reads is a constant or comes from a foldable node; then it is one.

        Raises NoMatch where it could be one and is left alone.
        """
        if not all(isinstance(tensor, gs.Constant) or self._made(tensor) for tensor in node.inputs):
            return False
        self._accept(node)
        self._nodes[id(node)] = node
        return True

    def _made(self, tensor: gs.Tensor) -> bool:
        return tensor.is_empty() or (bool(tensor.inputs) and id(tensor.inputs[0]) in self._nodes)

    def _accept(self, node: gs.Node) -> None:
        if node.domain not in proto.STANDARD_DOMAINS:
            raise NoMatch(f"nobody here knows operators of the domain '{node.domain}'")
        if node.op in RANDOM:
            raise NoMatch("its output is random")
        if node.op == "DequantizeLinear":
            raise NoMatch("it would store the weights in more bits")
        written = [tensor for tensor in node.outputs if not tensor.is_empty()]
        for tensor in written:
            if id(tensor) in self._ends:
                raise NoMatch(f"'{tensor.name}' is an output of the graph")
            if tensor.dtype is None or tensor.dtype == object or not has_shape(tensor):
                raise NoMatch(f"the shape of '{tensor.name}' is not known")
        growth = _bytes(written) - _bytes(tensor for tensor in node.inputs if not tensor.is_empty())
        if growth > self._growth:
            raise NoMatch(f"its value is {growth} bytes larger than what it is computed from")


def fold(graph: gs.Graph, nodes: Sequence[gs.Node], context: Context) -> int:
    """Replace foldable `nodes`, in order of execution, by their values; returns how many were."""
    inside = {id(node) for node in nodes}
    wanted = [
        tensor
        for node in nodes
        for tensor in node.outputs
        if not tensor.is_empty() and any(id(reader) not in inside for reader in tensor.outputs)
    ]
    try:
        values = _compute(nodes, wanted, graph)
    except NncError as error:
        if len(nodes) > 1:
            return _fold_singly(graph, nodes, context)
        context.skip(nodes[0], error.message)
        return 0
    for tensor, value in zip(wanted, values, strict=True):
        make_constant(tensor, value)
    for node in nodes:
        node.inputs.clear()
        node.outputs.clear()
    graph.nodes = [node for node in graph.nodes if id(node) not in inside]
    return len(nodes)


def make_constant(tensor: gs.Variable, values: np.ndarray) -> None:
    """Turn a tensor that a node produces into a constant; the node loses this output."""
    tensor.inputs.clear()
    tensor.to_constant(values)


def _fold_singly(graph: gs.Graph, nodes: Sequence[gs.Node], context: Context) -> int:
    """Fold what onnxruntime can compute, where it can't compute all of it."""
    return sum(fold(graph, [node], context) for node in nodes if all(_is_constant(tensor) for tensor in node.inputs))


def _compute(nodes: Sequence[gs.Node], wanted: Sequence[gs.Tensor], graph: gs.Graph) -> list[np.ndarray]:
    if not wanted:
        return []
    read = (tensor for node in nodes for tensor in node.inputs if isinstance(tensor, gs.Constant))
    constants = {tensor.name: tensor.values for tensor in read}
    names = [tensor.name for tensor in wanted]
    return session.compute([proto.node_proto(node) for node in nodes], constants, names, proto.opset_imports(graph))


def _is_constant(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) or tensor.is_empty()


def _bytes(tensors: Iterable[gs.Tensor]) -> int:
    return sum(tensor_bytes(tensor) for tensor in tensors if has_shape(tensor))
