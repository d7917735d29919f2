"""simplify-shapes: shapes that the model computes for itself are known already."""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from nnc.measure import has_shape
from nnc.model import folding, proto
from nnc.pattern import NoMatch
from nnc.rewrite import Context, Driver, Effect, Pass

#: Operators whose input of this index says the shape of the output.
_SHAPED = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}

#: More than a shape ever has; a larger value is data.
_MOST_BYTES = 8192


class SimplifyShapes(Pass):
    """Replace shapes that the model computes by constants.

    Reshape(x, Concat(Unsqueeze(Gather(Shape(x), 0)), [-1]))  ->  Reshape(x, [1, -1])

    Exact: the shapes of inputs are fixed. Declines where a shape depends on data or on an operator nobody knows, and
    for shapes that are outputs of the graph.

    Reference: the operators Shape and Size of the ONNX standard.
    """

    name: ClassVar[str] = "simplify-shapes"
    effect: ClassVar[Effect] = "exact"

    def run(self, graph: gs.Graph, context: Context) -> int:
        driver = Driver(graph)
        changed, known = 0, set[int]()
        foldable = folding.Foldable(graph, _MOST_BYTES)
        for node in list(graph.nodes):
            try:
                if proto.is_standard(node, "Shape", "Size"):
                    known.add(id(_measure(node, driver)))
                    changed += 1
                elif any(id(tensor) in known for tensor in node.inputs) and foldable.add(node):
                    known |= {id(tensor) for tensor in node.outputs}
            except NoMatch as reason:
                context.skip(node, str(reason))
        changed += folding.fold(graph, foldable.nodes, context) if foldable.nodes else 0
        changed += sum(_shape_output(node, driver) for node in graph.nodes)
        driver.tidy()
        return changed


def _measure(node: gs.Node, driver: Driver) -> gs.Tensor:
    """Make the output of a Shape or Size node a constant."""
    read, written = node.inputs[0], node.outputs[0]
    if driver.is_output(written):
        raise NoMatch(f"'{written.name}' is an output of the graph")
    if not has_shape(read):
        raise NoMatch(f"the shape of '{read.name}' is not known")
    sizes = np.array(read.shape, np.int64)
    value = sizes[node.attrs.get("start") : node.attrs.get("end")] if node.op == "Shape" else sizes.prod()
    folding.make_constant(written, np.asarray(value))
    driver.detach(node)
    return written


def _shape_output(node: gs.Node, driver: Driver) -> bool:
    """Write the shape of the node's output into it, where that is known although the model computes it."""
    if not proto.is_standard(node, *_SHAPED) or not node.outputs:
        return False
    index, written = _SHAPED[node.op], node.outputs[0]
    computed = node.inputs[index]
    if isinstance(computed, gs.Constant) or not has_shape(written) or 0 in written.shape:
        return False
    node.inputs[index] = driver.constant(f"{written.name}.shape", np.array(written.shape, np.int64))
    if not computed.outputs and computed.inputs and not driver.holds(computed.inputs[0]):
        driver.detach(computed.inputs[0])
    return True
