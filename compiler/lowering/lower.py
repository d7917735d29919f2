"""From a graph to a program: every group of nodes becomes calls of kernels on tensors in the layouts they want.

A tensor of the graph can be in memory in two forms: plain, as ONNX has it, or, if it is a float32 image, in blocks of
channels. Both are made on demand, once. Convolutions and pools write blocks and read them; elementwise nodes follow
their inputs; everything else reads and writes plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import tvm
from tvm import te

from nnc.lowering import fuse, generic, layers, views
from nnc.lowering.expression import Builder
from nnc.lowering.fuse import Group
from nnc.lowering.kernels import elementwise, relayout
from nnc.lowering.kernels.unit import Unit, lanes_of
from nnc.lowering.program import Call, Copy, Operand, Program, Tensor
from nnc.lowering.shapes import dtype_of, shape_of
from nnc.lowering.signals import as_images
from nnc.lowering.tail import Tail, block_constant

PLAIN = 1  # the block of NCHW
Shape = tuple[int, ...]


def lower(
    graph: gs.Graph,
    unit: Unit,
    machine: tvm.target.Target,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> Program:
    """The program of a graph with static shapes for one unit; `machine` is what TVM knows of it.

    Raises NncError for a node that nnc can't lower.
    """
    graph = _with_float_weights(graph)
    as_images(graph)
    lowering = Lowering(unit, machine, graph.opset)
    lowering.add_inputs(graph.inputs)
    groups = fuse.partition(graph, frozenset(layers.TEMPLATES))
    for done, group in enumerate(groups):
        progress("lower layers", done, len(groups))
        lowering.add(group)
    lowering.add_outputs(graph.outputs)
    return lowering.program


def _with_float_weights(graph: gs.Graph) -> gs.Graph:
    """A copy of the graph in which weights that are stored as integers are the floats that they stand for."""
    graph = graph.copy()
    for node in graph.nodes:
        if node.op == "DequantizeLinear" and all(isinstance(t, gs.Constant) for t in node.inputs):
            node.outputs[0].to_constant(_dequantized(node))
            node.outputs.clear()
    graph.nodes = [node for node in graph.nodes if node.outputs]
    return graph


def _dequantized(node: gs.Node) -> np.ndarray:
    values, scale, *zero = (tensor.values for tensor in node.inputs if not tensor.is_empty())
    axis = node.attrs.get("axis", 1)
    along = [1] * values.ndim
    if scale.size > 1:
        along[axis] = scale.size
    shifted = values.astype(np.int32) - (zero[0].astype(np.int32).reshape(along) if zero else 0)
    return shifted.astype(np.float32) * scale.reshape(along)


class Lowering:
    """The state of a translation: where every tensor of the graph is, in which forms, and the steps so far."""

    def __init__(self, unit: Unit, machine: tvm.target.Target, opset: int) -> None:
        self.unit = unit
        self._opset = opset
        self.machine = machine
        self.block = lanes_of(unit)
        self.program = Program()
        self._forms: dict[int, dict[int, Tensor]] = {}  # id of a graph tensor -> block -> tensor
        self._defined: list[gs.Tensor] = []  # ids are good while their objects live
        self._functions: dict[Hashable, Any] = {}

    # -- the ends of the graph

    def add_inputs(self, tensors: Sequence[gs.Tensor]) -> None:
        for tensor in tensors:
            made = Tensor(shape_of(tensor), dtype_of(tensor), fixed=True)
            self.program.inputs[tensor.name] = made
            self.define(tensor, made)

    def add_outputs(self, tensors: Sequence[gs.Tensor]) -> None:
        """Let kernels write the outputs where the caller wants them; what can't be written there is copied."""
        for tensor in tensors:
            source = self.read(tensor)
            if isinstance(source, Tensor) and _owns_memory(source):
                source.root()[0].fixed = True
                self.program.outputs[tensor.name] = source
                continue
            result = Tensor(shape_of(tensor), dtype_of(tensor), fixed=True)
            self.program.outputs[tensor.name] = result
            self.copy([tensor.name], source, result, 1, result.bytes, 0, 0)

    # -- forms

    def define(self, tensor: gs.Tensor, made: Tensor, block: int = PLAIN) -> None:
        """`tensor` is there, in blocks of `block` channels or plain."""
        self._forms.setdefault(id(tensor), {})[block] = made
        self._defined.append(tensor)

    def has_blocks(self, tensor: gs.Tensor) -> bool:
        return self.block in self._forms.get(id(tensor), {})

    def read(self, tensor: gs.Tensor) -> Operand:
        """The plain form of a tensor or a constant."""
        if isinstance(tensor, gs.Constant):
            return tensor.values
        return self.plain(tensor)

    def plain(self, tensor: gs.Tensor) -> Tensor:
        forms = self._forms[id(tensor)]
        if PLAIN not in forms:
            forms[PLAIN] = self._to_plain(forms[self.block], shape_of(tensor), tensor.name)
        return forms[PLAIN]

    def blocked(self, tensor: gs.Tensor) -> Tensor:
        """`[n, channels / block, height, width, block]` of a float32 image."""
        forms = self._forms[id(tensor)]
        if self.block not in forms:
            forms[self.block] = self._to_blocked(forms[PLAIN], shape_of(tensor), tensor.name)
        return forms[self.block]

    def _to_plain(self, source: Tensor, shape: Shape, name: str) -> Tensor:
        n, channels, height, width = shape
        if height * width == 1 and (n == 1 or channels % self.block == 0):
            return source.view(shape)
        result = Tensor(shape, "float32")
        key = ("to_plain", shape, self.block)
        self.call(
            "to_plain",
            key,
            [name],
            "",
            [source],
            [result],
            lambda X: relayout.to_plain(X, shape, self.block, self.unit),
        )
        return result

    def _to_blocked(self, source: Tensor, shape: Shape, name: str) -> Tensor:
        blocked = relayout.blocked_shape(shape, self.block)
        if shape[2] * shape[3] == 1 and shape[1] % self.block == 0:
            return source.view(blocked)
        result = Tensor(blocked, "float32")
        key = ("to_blocked", shape, self.block)
        self.call(
            "to_blocked", key, [name], "", [source], [result], lambda X: relayout.to_blocked(X, shape, self.block)
        )
        return result

    # -- steps

    def call(
        self,
        template: str,
        key: Hashable,
        nodes: list[str],
        op: str,
        operands: Sequence[Operand],
        results: Sequence[Tensor],
        compute: Callable[..., te.Tensor],
        layout: str = "",
    ) -> None:
        """Append a call of the kernel that `compute` builds from placeholders of the operands; equal keys share it."""
        if key not in self._functions:
            arguments = [
                te.placeholder(each.shape, name=f"p{i}", dtype=str(each.dtype)) for i, each in enumerate(operands)
            ]
            self._functions[key] = te.create_prim_func([*arguments, compute(*arguments)])
        layout = layout or f"NCHW{self.block}c"
        self.program.steps.append(
            Call(key, self._functions[key], template, nodes, op, list(operands), list(results), layout)
        )

    def copy(
        self,
        nodes: list[str],
        source: Operand,
        result: Tensor,
        rows: int,
        size: int,
        source_step: int,
        result_step: int,
    ) -> None:
        self.program.steps.append(Copy(nodes, source, result, rows, size, source_step, result_step))

    # -- groups

    def add(self, group: Group) -> None:
        """Append the steps of one group."""
        node = group.root
        if all(prod(tensor.shape) == 0 for tensor in group.outputs if tensor.shape is not None):
            for tensor in group.outputs:  # a window that is larger than its image, a slice of nothing
                self.define(tensor, Tensor(shape_of(tensor), dtype_of(tensor)))
            return
        for lower_ in (layers.TEMPLATES.get(node.op), views.VIEWS.get(node.op)):
            if lower_ is not None and node.domain in (None, "", "ai.onnx") and lower_(self, group):
                return
        if group.is_elementwise:
            self.elementwise(group.nodes)
            return
        self._generic(node)
        if len(group.nodes) > 1:
            self.elementwise(group.nodes[1:])

    def elementwise(self, nodes: list[gs.Node]) -> None:
        """One kernel for a chain of elementwise nodes, in the layout of its inputs."""
        builder = Builder(None)
        for node in nodes:
            builder.add(node)
        output, expression = nodes[-1].outputs[0], builder.expression()
        shape, block = shape_of(output), PLAIN
        if self._in_blocks(shape, builder.operands) and (expression.is_finite or shape[1] % self.block == 0):
            block, shape = self.block, relayout.blocked_shape(shape, self.block)
        operands = [self.operand(each, len(shape_of(output)), block, shape_of(output)) for each in builder.operands]
        sizes, merged = elementwise.merged(shape, [each.shape for each in operands])
        result = Tensor(shape, "float32")
        self.call(
            "elementwise",
            ("elementwise", sizes, tuple(merged), expression),
            [node.name for node in nodes],
            "+".join(node.op for node in nodes),
            [_reshaped(each, size) for each, size in zip(operands, merged, strict=True)],
            [result.view(sizes)],
            lambda *ins: elementwise.compute(ins, sizes, self.unit, expression.emit),
            f"NCHW{block}c" if block > 1 else "plain",
        )
        self.define(output, result, block)

    def _in_blocks(self, shape: Shape, operands: Sequence[gs.Tensor | np.ndarray]) -> bool:
        """Whether an image is computed in blocks: when one of its operands that is as large is there in blocks."""
        images = [each for each in operands if isinstance(each, gs.Tensor) and shape_of(each) == shape]
        return len(shape) == 4 and any(map(self.has_blocks, images))

    def operand(self, value: gs.Tensor | np.ndarray, rank: int, block: int, shape: Shape) -> Operand:
        """What an elementwise step reads beside its value, with the axes of the result, each as long as there or 1."""
        if isinstance(value, gs.Constant):
            value = value.values
        if isinstance(value, np.ndarray):
            array = value.astype(np.float32).reshape((1,) * (rank - value.ndim) + value.shape)
            return array if block == PLAIN else block_constant(array, block)
        own = (1,) * (rank - len(shape_of(value))) + shape_of(value)
        if block == PLAIN:
            return self.plain(value).view(own)
        if own[1] == 1 and shape[1] > 1:
            return self.plain(value).view((own[0], 1, *own[2:], 1))
        if len(shape_of(value)) == 4:
            return self.blocked(value)
        return self._to_blocked(self.plain(value).view(own), own, value.name)

    def tail(self, group: Group, bias: gs.Tensor | np.ndarray | None, block: int, out_shape: Shape) -> Tail:
        """The epilogue of a group whose root computes float32 of `out_shape`, plain or in blocks of `block`."""
        builder = Builder(group.root.outputs[0], bias)
        for node in group.nodes[1:]:
            builder.add(node)
        expression = builder.expression()
        operands = [self.operand(each, len(out_shape), block, out_shape) for each in builder.operands]
        masked = block > 1 and out_shape[1] % block and not expression.is_finite
        return Tail(expression, tuple(operands), block, out_shape[1] if masked else None)

    def _generic(self, node: gs.Node) -> None:
        """A node without a template: TVM's own lowering, on plain tensors."""
        variables = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant) and not tensor.is_empty()]
        made: dict[tuple[str, int], Tensor] = {}

        def operand(value: generic.Value) -> Operand:
            if value.values is not None:
                return value.values
            source = self.plain(variables[value.index]) if value.kind == "input" else made[value.kind, value.index]
            return source.view(value.shape)

        for piece in generic.lower(node, self.unit, self.machine, self._opset):
            for value in piece.results:
                made.setdefault((value.kind, value.index), Tensor(value.shape, value.dtype))
            results = [made[value.kind, value.index].view(value.shape) for value in piece.results]
            operands = [operand(value) for value in piece.operands]
            self.program.steps.append(
                Call(piece.key, piece.function, node.op.lower(), [node.name], node.op, operands, results, "plain")
            )
        for index, tensor in enumerate(node.outputs):
            if ("output", index) in made:
                self.define(tensor, made["output", index].view(shape_of(tensor)))


def _owns_memory(tensor: Tensor) -> bool:
    """Whether the caller's memory can stand for that of `tensor`."""
    root, offset = tensor.root()
    return not root.fixed and offset == 0 and root.bytes == tensor.bytes


def _reshaped(operand: Operand, shape: Shape) -> Operand:
    return operand.reshape(shape) if isinstance(operand, np.ndarray) else operand.view(shape)
