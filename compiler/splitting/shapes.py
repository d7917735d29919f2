"""Layers and their chains as one group sees them: shapes, moments, and the nodes of a chain in a graph."""

from collections.abc import Container, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from nnc.compression import reconstruct
from nnc.factorize import Stage
from nnc.layers import Layer
from nnc.rewrite import Driver


def grouped(stages: Sequence[Stage], groups: int) -> list[Stage]:
    """The chain of all groups, from that of one."""
    return [Stage((groups * each.shape[0], *each.shape[1:]), groups * each.group, each.axes) for each in stages]


def weight_shape(layer: Layer) -> tuple[int, ...]:
    """[K, C / g, taps...]; Gemm and MatMul have no taps."""
    return (layer.outputs, layer.inputs // layer.groups, *(layer.kernel if layer.is_conv else ()))


def group_shape(layer: Layer) -> tuple[int, ...]:
    """The shape of the weight of one group."""
    outputs, *rest = weight_shape(layer)
    return (outputs // layer.groups, *rest)


def chain_nodes(last: gs.Node, starts: Container[str]) -> list[gs.Node]:
    """The nodes from a tensor whose name is in `starts` to what `last` computes."""
    nodes = [last]
    while nodes[-1].inputs[0].name not in starts:
        nodes.append(nodes[-1].inputs[0].inputs[0])
    return nodes


def replace_hollow(layer: Layer, stages: Sequence[Stage], bias: np.ndarray, driver: Driver) -> None:
    """Put a chain of dummies, which take no memory, in the place of a layer, for figures of the graph."""
    weights = [np.broadcast_to(np.zeros((), layer.node.inputs[1].dtype), stage.shape) for stage in stages]
    driver.replace(layer.node, reconstruct.chain(layer, stages, weights, bias))


def held(moments: np.ndarray) -> list[np.ndarray]:
    """The moments [g, D, D] by group; what hardly any input excites counts as much as it does in the fit of a layer."""
    damping = reconstruct.RIDGE * np.trace(moments, axis1=1, axis2=2) / moments.shape[1]
    return list(moments + damping[:, None, None] * np.eye(moments.shape[1]))
