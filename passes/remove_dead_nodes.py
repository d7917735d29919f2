"""remove-dead-nodes: what no output of the graph depends on."""

from typing import ClassVar

import onnx_graphsurgeon as gs

from nnc.rewrite import Context, Driver, Effect, Pass


class RemoveDeadNodes(Pass):
    """Remove nodes that no output of the graph depends on.

    a = Relu(x), b = Sigmoid(x), return a  ->  a = Relu(x), return a

    Exact. Declines for nothing; inputs of the graph stay, read or not.

    Reference: Aho, Lam, Sethi and Ullman, Compilers, 2nd edition, section 9.1.6.
    """

    name: ClassVar[str] = "remove-dead-nodes"
    effect: ClassVar[Effect] = "exact"

    def run(self, graph: gs.Graph, context: Context) -> int:
        live: set[int] = set()
        stack = [tensor.inputs[0] for tensor in graph.outputs if tensor.inputs]
        while stack:
            node = stack.pop()
            if id(node) not in live:
                live.add(id(node))
                stack.extend(tensor.inputs[0] for tensor in node.inputs if tensor.inputs)
        dead = [node for node in graph.nodes if id(node) not in live]
        driver = Driver(graph)
        for node in dead:
            driver.detach(node)
        driver.tidy()
        return len(dead)
