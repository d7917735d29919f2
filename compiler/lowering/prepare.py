"""A graph before its groups are lowered: what computes with integers, and weights as kernels want them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc import halving, integers
from nnc.lowering.dsp.unit import Dsp
from nnc.lowering.gpu.unit import Gpu
from nnc.lowering.kernels.unit import Unit, dot_of
from nnc.lowering.settle import settle
from nnc.lowering.signals import as_images
from nnc.quantize import scheme


@dataclass(frozen=True)
class Prepared:
    """A graph, and what is known of its nodes, by their ids."""

    graph: gs.Graph
    layers: Mapping[int, integers.Layer | str | None]
    """What `integers.layer` says of every node."""
    weights: Mapping[int, integers.Weights]
    """The integers that products of floats keep as weights."""
    halves: bool
    """Whether kernels compute in float16: blocks then have as many channels as a register has of these."""


def prepared(graph: gs.Graph, unit: Unit) -> Prepared:
    """A copy of a graph in which moves are settled, weights folded or held, and signals are images."""
    executed, stored = halving.executed(graph, unit.halves), dot_of(unit).dtype
    halves = executed is graph and halving.has_halves(graph)
    graph = executed.copy()
    settle(graph, stored)
    layers = {id(node): integers.layer(node, wide=isinstance(unit, Dsp)) for node in graph.nodes}
    # GPUs multiply the floats that integers stand for.
    nodes = [] if isinstance(unit, Gpu) else graph.nodes
    held = {id(node): weights for node in nodes if (weights := integers.weights_of(node))}
    _hold_weights(graph, held)
    _fold_weights(graph)
    as_images(graph)
    settle(graph, stored)  # what stands between signals and images moves integers too
    return Prepared(graph, layers, held, halves)


def _hold_weights(graph: gs.Graph, held: Mapping[int, integers.Weights]) -> None:
    """Let products of floats that keep their weights as integers read these."""
    for node in graph.nodes:
        if id(node) in held:
            node.inputs[1] = gs.Constant(f"{node.inputs[1].name}/integers", held[id(node)].W)


def _fold_weights(graph: gs.Graph) -> None:
    """Let weights that are stored as integers be the floats that they stand for, where somebody reads them."""
    ends = {id(tensor) for tensor in graph.outputs}
    for node in graph.nodes:
        if node.op == "DequantizeLinear" and all(isinstance(t, gs.Constant) for t in node.inputs):
            if node.outputs[0].outputs or id(node.outputs[0]) in ends:
                node.outputs[0].to_constant(_dequantized(node))
            node.outputs.clear()
    graph.nodes = [node for node in graph.nodes if node.outputs]


def _dequantized(node: gs.Node) -> np.ndarray:
    values, scale, *zero = (tensor.values for tensor in node.inputs if not tensor.is_empty())
    axis, block = node.attrs.get("axis", 1), node.attrs.get("block_size", 0)
    return scheme.dequantized(values, scale, zero[0] if zero else None, axis, block).astype(np.float32)
