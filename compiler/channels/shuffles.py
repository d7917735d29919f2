"""Channel shuffles: runs of views and transposes that only change the order of channels.

    Reshape(Transpose<0, 2, 1, 3, 4>(Reshape(x, [N, 2, C / 2, H, W])), [N, C, H, W])  =  Gather(x, order, axis=1)

The tensors between are boxes only while the same channels of both halves are there. As a Gather the shuffle lets every
channel be removed alone.

Reference: ShuffleNet (Zhang et al., https://arxiv.org/abs/1707.01083).
"""

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from nnc.channels.labels import varied
from nnc.channels.movement import VIEWS, moved
from nnc.channels.walk import Shuffle, is_constant
from nnc.measure import has_shape
from nnc.model import proto


def shuffles(graph: gs.Graph) -> Iterator[Shuffle]:
    """The channel shuffles of a graph; between their nodes nobody else reads."""
    ends = {id(tensor) for tensor in graph.outputs}
    inside: set[int] = set()
    for node in graph.nodes:
        if id(node) not in inside and _moves(node):
            found = _shuffle(node, ends)
            if found is not None:
                inside |= set(map(id, found.nodes))
                yield found


def _shuffle(first: gs.Node, ends: set[int]) -> Shuffle | None:
    """The shortest shuffle that starts at a node."""
    nodes, x, y = [first], first.inputs[0], first.outputs[0]
    while len(nodes) < 3 or list(y.shape) != list(x.shape):
        if len(y.outputs) != 1 or id(y) in ends or not _moves(y.outputs[0]):
            return None
        nodes.append(y.outputs[0])
        y = nodes[-1].outputs[0]
    changed = []
    for axis, places in enumerate(np.ogrid[tuple(map(slice, x.shape))]):
        for node in nodes:
            places = moved(node, places)
        if varied(places) not in ([], [axis]):
            return None
        order = np.moveaxis(places, axis, 0).reshape(places.shape[axis], -1)[:, 0]
        if not np.array_equal(order, np.arange(x.shape[axis])):
            changed.append(Shuffle(tuple(nodes), axis, order))
    return changed[0] if len(changed) == 1 else None


def _moves(node: gs.Node) -> bool:
    known = proto.is_standard(node, *VIEWS) and has_shape(node.inputs[0], node.outputs[0])
    return known and 0 not in node.inputs[0].shape and all(map(is_constant, node.inputs[1:]))
