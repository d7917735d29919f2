"""Residual branches: what is computed from a tensor and added to it again, and can be left out as a whole.

A network of many such branches is one of many depths (Veit, Wilber, Belongie, Residual networks behave like ensembles
of relatively shallow networks, NeurIPS 2016): without one of them it still works, and runs fewer layers, which is all
that helps where every layer costs as much by being there as by what it computes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import Computed, bounds
from nnc.calibrate import Flow
from nnc.logits import before_softmax
from nnc.measure import has_shape, macs
from nnc.model.proto import is_standard
from nnc.rewrite import Context, Driver

#: Samples on which the outputs without a branch are compared with those with it.
_COMPARED = 64


@dataclass(frozen=True)
class Branch:
    """A residual branch, by the names of its nodes: it stands for copies of its graph, too."""

    add: str
    """What adds the branch to its input."""
    side: int
    """The input of the Add that is what the branch reads."""
    nodes: frozenset[str]
    """What computes it; the Add is none of them."""


def find(graph: gs.Graph) -> list[Branch]:
    """The branches that have layers, and no other branch in them, in the order of execution."""
    ends = {id(tensor) for tensor in graph.outputs}
    found = []
    for add in graph.nodes:
        if is_standard(add, "Add", "Sum") and len(add.inputs) == 2 and id(add.outputs[0]) not in ends:
            branches = (_branch(add, side, ends) for side in (0, 1))
            found += [branch for branch in branches if branch is not None]
    return [branch for branch in found if not any(other.add in branch.nodes for other in found)]


def _branch(add: gs.Node, side: int, ends: set[int]) -> Branch | None:
    """The branch that computes one input of nothing but the other, and that nobody else reads; None without one."""
    x, y = add.inputs[side], add.inputs[1 - side]
    if not has_shape(x, y, add.outputs[0]) or not list(x.shape) == list(y.shape) == list(add.outputs[0].shape):
        return None
    nodes: dict[int, gs.Node] = {}
    stack = [y]
    while stack:
        tensor = stack.pop()
        if tensor is x or isinstance(tensor, gs.Constant) or tensor.is_empty():
            continue
        if not tensor.inputs:
            return None  # an input of the graph
        if id(tensor.inputs[0]) not in nodes:
            nodes[id(tensor.inputs[0])] = tensor.inputs[0]
            stack += tensor.inputs[0].inputs
    made = [tensor for node in nodes.values() for tensor in node.outputs]
    leaks = any(id(reader) not in nodes and reader is not add for tensor in made for reader in tensor.outputs)
    if leaks or any(id(tensor) in ends for tensor in made) or not any(map(macs, nodes.values())):
        return None
    return Branch(add.name, side, frozenset(node.name for node in nodes.values()))


def leave_out(graph: gs.Graph, branches: Sequence[Branch]) -> set[str]:
    """Let what read the sums of branches read their inputs, in place; returns the names of the nodes that do now.

    An activation that changes nothing any more, since it has been applied to the input already, goes as well.
    """
    nodes, driver = {node.name: node for node in graph.nodes}, Driver(graph)
    changed: set[str] = set()
    for branch in branches:
        add = nodes[branch.add]
        x, readers = add.inputs[branch.side], list(add.outputs[0].outputs)
        driver.redirect(add.outputs[0], x)
        driver.detach(add)
        for reader in readers:
            if _applied_already(reader) and not driver.is_output(reader.outputs[0]):
                changed |= {each.name for each in reader.outputs[0].outputs}
                driver.redirect(reader.outputs[0], x)
                driver.detach(reader)
            else:
                changed.add(reader.name)
    driver.tidy()
    return changed & {node.name for node in graph.nodes}


def _applied_already(node: gs.Node) -> bool:
    """Whether a node bounds what is bounded so by the one before."""
    x = node.inputs[0]
    if not is_standard(node, "Clip", "Relu") or not x.inputs or not is_standard(x.inputs[0], "Clip", "Relu"):
        return False
    try:
        (low, high), (least, most) = bounds(node), bounds(x.inputs[0])
    except Computed:
        return False
    return low <= least and most <= high


def worth(
    graph: gs.Graph, branches: Sequence[Branch], samples: Mapping[str, np.ndarray], context: Context
) -> list[float] | None:
    """The share of the variance of the outputs that is lost without each branch.

    Measured on a few of the samples, as `nnc.calibrate.samples` gives them. None where no output tells, since the data
    decide the shape of each.
    """
    batch = int(graph.inputs[0].shape[0])
    whole = before_softmax(graph)
    flow = Flow(whole, {name: values[: max(1, _COMPARED // batch)] for name, values in samples.items()})
    expected = {name: values for name, values in flow.outputs().items() if values.dtype.kind == "f"}
    if not expected:
        return None
    adds, lost = {node.name: node for node in whole.nodes}, []
    for index, branch in enumerate(branches):
        context.progress("leave out branches", index, len(branches))
        add = adds[branch.add]
        x = add.inputs[branch.side]
        flow.keep([x.name])
        flow.run_through(add)
        found = flow.outputs({add.outputs[0].name: flow.value(x)})
        flow.release(x.name)
        pairs = ((_by_sample(found[name], batch), _by_sample(values, batch)) for name, values in expected.items())
        lost.append(float(np.mean([_share(*pair) for pair in pairs])))
    return lost


def _by_sample(values: np.ndarray, batch: int) -> np.ndarray:
    """[batches, rows, ...], of which each sample of a batch has as many -> [samples, values]."""
    samples = len(values) * batch if values.shape[1:2] and values.shape[1] % batch == 0 else len(values)
    return values.reshape(samples, -1)


def _share(found: np.ndarray, expected: np.ndarray) -> float:
    """The share of the variance over samples that is lost, since errors in the mean are up to biases.

    Where nothing varies, as over one sample, the share of the energy.
    """
    lost = found - expected
    if variance := expected.var(0, dtype=np.float64).sum():
        return float(lost.var(0, dtype=np.float64).sum() / variance)
    noise, energy = (np.square(each, dtype=np.float64).sum() for each in (lost, expected))
    return float(noise / (energy or 1.0))
