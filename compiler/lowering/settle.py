"""A QDQ graph in the form that shows what computes with integers: moves read and write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from nnc.integers import Quantization, dequantized, is_move, of


def settle(graph: gs.Graph, dtype: Literal["int8", "uint8"]) -> None:
    """Rewrite a QDQ graph in place, without changing what it computes.

    Activations become `dtype` where nothing outside sees them. Then, from the inputs to the outputs:

    Move(DequantizeLinear(q))                 ->  DequantizeLinear(Move(q))
    QuantizeLinear(Move(x))                   ->  Move(QuantizeLinear(x))
    QuantizeLinear(DequantizeLinear(q))       ->  q     where both say the same
    """
    _settle_types(graph, dtype)
    ends = {id(tensor) for tensor in graph.outputs}
    nodes: list[gs.Node] = []
    for node in list(graph.nodes):
        quantization = of(node) if node.op == "QuantizeLinear" else None
        if quantization and _cancels(node, quantization) and id(node.outputs[0]) not in ends:
            _replace(node.outputs[0], node.inputs[0].inputs[0].inputs[0])
            node.inputs.clear()
            node.outputs.clear()
        elif is_move(node):
            nodes += _moved(node, ends)
        else:
            nodes.append(node)
    graph.nodes = [node for node in nodes if node.outputs]
    _drop_unread(graph, ends)


def _settle_types(graph: gs.Graph, dtype: str) -> None:
    """Shift the integers of another type by 128, where they are written; where that can't be, behind."""
    ends = {id(tensor) for tensor in graph.outputs}
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        nodes.append(node)
        quantization = of(node)
        if quantization is None or quantization.dtype == dtype:
            continue
        wanted = Quantization(dtype, quantization.scale, quantization.zero + (128 if dtype == "uint8" else -128))
        integers = node.outputs[0]
        if node.op == "QuantizeLinear":
            readers = list(integers.outputs)
            if id(integers) not in ends and all(of(reader) == quantization for reader in readers):
                for each in (node, *readers):
                    _set(each, wanted)
                integers.dtype = np.dtype(dtype)
                node.attrs.pop("output_dtype", None)
        elif not isinstance(node.inputs[0], gs.Constant) and id(integers) not in ends:
            nodes += _shifted(node, wanted)
    graph.nodes = nodes


def _set(node: gs.Node, quantization: Quantization) -> None:
    scale, zero = _parameters(node.outputs[0].name, quantization)
    node.inputs = [node.inputs[0], scale, zero]


def _parameters(name: str, quantization: Quantization) -> list[gs.Constant]:
    scale, zero = np.float32(quantization.scale), np.array(quantization.zero, quantization.dtype)
    return [gs.Constant(f"{name}.scale", np.array(scale)), gs.Constant(f"{name}.zero", zero)]


def _quantize(x: gs.Tensor, quantization: Quantization, name: str) -> gs.Node:
    """A QuantizeLinear of `x`."""
    q = gs.Variable(f"{name}/integers", np.dtype(quantization.dtype), x.shape)
    return gs.Node("QuantizeLinear", q.name, {}, [x, *_parameters(q.name, quantization)], [q])


def _dequantize(q: gs.Tensor, quantization: Quantization, x: gs.Tensor) -> gs.Node:
    """A DequantizeLinear that writes `x`."""
    return gs.Node("DequantizeLinear", f"{x.name}/value", {}, [q, *_parameters(x.name, quantization)], [x])


def _shifted(node: gs.Node, wanted: Quantization) -> list[gs.Node]:
    """What lets the readers of a DequantizeLinear see integers of another type."""
    x = node.outputs[0]
    before = gs.Variable(f"{x.name}/before", x.dtype, x.shape)
    node.outputs = [before]
    quantize = _quantize(before, wanted, x.name)
    return [quantize, _dequantize(quantize.outputs[0], wanted, x)]


def _cancels(node: gs.Node, quantization: Quantization) -> bool:
    """Whether a QuantizeLinear gives back the integers that its input is made of."""
    made = dequantized(node.inputs[0])
    return made is not None and made[1] == quantization


def _replace(old: gs.Tensor, new: gs.Tensor) -> None:
    for reader in list(old.outputs):
        reader.inputs = [new if each is old else each for each in reader.inputs]


def _moved(node: gs.Node, ends: set[int]) -> list[gs.Node]:
    """A move, of integers where its input or all of its readers have them."""
    data = list(node.inputs) if node.op == "Concat" else [node.inputs[0]]
    made = [dequantized(tensor) for tensor in data]
    kinds = {each[1] if each else None for each in made}
    x = node.outputs[0]
    if len(kinds) == 1 and None not in kinds:
        (quantization,) = kinds
        q = gs.Variable(f"{x.name}/moved", np.dtype(quantization.dtype), x.shape)  # type: ignore[union-attr]
        _move_integers(node, [each[0] for each in made if each], q, quantization)  # type: ignore[arg-type]
        return [node, _dequantize(q, quantization, x)]  # type: ignore[arg-type]
    wanted = {of(reader) if reader.op == "QuantizeLinear" else None for reader in x.outputs}
    if len(wanted) != 1 or None in wanted or id(x) in ends:
        return [node]
    (quantization,) = wanted
    before: list[gs.Node] = []
    sources = []
    for index, (tensor, origin) in enumerate(zip(data, made, strict=True)):
        if origin and origin[1] == quantization:
            sources.append(origin[0])
            continue
        before.append(_quantize(tensor, quantization, f"{x.name}/{index}"))  # type: ignore[arg-type]
        sources.append(before[-1].outputs[0])
    q = gs.Variable(f"{x.name}/moved", np.dtype(quantization.dtype), x.shape)  # type: ignore[union-attr]
    readers = list(x.outputs)
    _move_integers(node, sources, q, quantization)  # type: ignore[arg-type]
    behind = _dequantize(q, quantization, x)  # type: ignore[arg-type]
    assert readers
    return [*before, node, behind]


def _move_integers(node: gs.Node, sources: Sequence[gs.Tensor], q: gs.Tensor, quantization: Quantization) -> None:
    rest = [] if node.op == "Concat" else list(node.inputs[1:])
    if node.op == "Pad":
        zero = np.array(quantization.zero, quantization.dtype)
        rest = [rest[0], gs.Constant(f"{q.name}.pad", zero), *rest[2:]]
    node.inputs = [*sources, *rest]
    node.outputs = [q]


def _drop_unread(graph: gs.Graph, ends: set[int]) -> None:
    """Remove what only served readers that read something else now."""
    for node in reversed(list(graph.nodes)):
        rounds = node.op in ("QuantizeLinear", "DequantizeLinear")
        if rounds and not node.outputs[0].outputs and id(node.outputs[0]) not in ends:
            node.inputs.clear()
            node.outputs.clear()
    graph.nodes = [node for node in graph.nodes if node.outputs]
