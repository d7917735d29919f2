"""The translation of a graph's nodes: where every tensor is, in which forms, and the steps so far."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import tvm
from tvm import te, tirx

from nnc import integers
from nnc.lowering import generic, layers, views
from nnc.lowering.dsp import layers as dsp_layers
from nnc.lowering.dsp.unit import LANES, Dsp
from nnc.lowering.expression import Builder, Expression, rounding
from nnc.lowering.forms import PLAIN, Forms, Shape
from nnc.lowering.fuse import Group
from nnc.lowering.gpu import layers as gpu_layers
from nnc.lowering.gpu.unit import Gpu
from nnc.lowering.kernels import elementwise, relayout
from nnc.lowering.kernels.unit import Unit, lanes_of
from nnc.lowering.kinds import general
from nnc.lowering.prepare import Prepared
from nnc.lowering.program import Call, Constant, Copy, Operand, Packed, Place, Program, Tensor
from nnc.lowering.schedule import is_large, schedule
from nnc.lowering.shapes import dtype_of, shape_of
from nnc.lowering.tail import Tail, block_constant
from nnc.lowering.workload import Choice, Schedules, Workload
from nnc.model.proto import STANDARD_DOMAINS


@dataclass(frozen=True)
class Decisions:
    """What is decided before a graph is lowered."""

    schedules: Schedules
    layout: Mapping[str, int] = field(default_factory=dict)
    """Channels per block of the images that are not in the unit's own blocks."""
    fused: frozenset[str] = frozenset()
    """The images that are computed row by row, in one kernel with the depthwise convolution that reads them."""
    place: Place | None = None
    """Writes constants. Without it no steps are made: a sketch tells only what can be chosen."""


class Lowering(Forms):
    """The state of a translation: where every tensor of the graph is, in which forms, and the steps so far."""

    def __init__(
        self,
        unit: Unit,
        machine: tvm.target.Target,
        ready: Prepared,
        decisions: Decisions,
    ) -> None:
        super().__init__(unit, LANES if isinstance(unit, Dsp) else lanes_of(unit), decisions.layout)
        self._ready, self._decisions = ready, decisions
        self.machine = machine
        self.layers, self.integers = _templates(unit)
        # The loops of a DSP read whole registers.
        self.program = Program(alignment=unit.alignment, slack=unit.alignment if isinstance(unit, Dsp) else 0)
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

    # -- integers

    def layer(self, node: gs.Node) -> integers.Layer | None:
        """The integers that a node multiplies; None where it computes in floats."""
        found = self._ready.layers.get(id(node))
        return found if isinstance(found, integers.Layer) else None

    def weights(self, node: gs.Node) -> integers.Weights | None:
        """The integers that a node multiplies floats with; None where its weights are floats."""
        return self._ready.weights.get(id(node))

    # -- steps

    def plan(self, group: Group, problem: Any, tail: Tail, roots: Sequence[gs.Node] = ()) -> Any:
        """The plan that a template computes a problem with: what is known to be fast, or what the figures choose.

        `roots` are the layers that the problem is about, where it is not the group's root alone.
        """
        if isinstance(self.unit, Gpu):  # its templates are others
            return self.templates.of(problem).best_plan(problem, self.unit)
        workload = Workload.of(problem, tail)
        known = self._decisions.schedules.find(workload)
        plan = None if known is None else workload.decoded(known, self.unit)
        made = workload.default(self.unit) if plan is None else plan
        names = [node.name for node in roots or (group.root,)]
        reads, writes = group.root.inputs[0].name if group.root.inputs else "", group.outputs[0].name
        placed = workload.is_image and writes in self._layout
        tuned = plan is not None or placed or workload.op == "expand_depthwise"
        self.program.choices.append(Choice(names, workload, made, tuned, reads, writes))
        return made

    def call(
        self,
        template: str,
        key: Hashable,
        nodes: list[str],
        op: str,
        operands: Sequence[Operand | Packed],
        results: Sequence[Tensor],
        compute: Callable[..., te.Tensor],
        layout: str,
    ) -> None:
        if self._decisions.place is None:
            return
        read = [self._placed(each() if callable(each) else each, nodes) for each in operands]
        if key not in self._functions:
            arguments = [te.placeholder(each.shape, name=f"p{i}", dtype=str(each.dtype)) for i, each in enumerate(read)]
            self._functions[key] = te.create_prim_func([*arguments, compute(*arguments)])
        self.program.steps.append(Call(key, self._functions[key], template, nodes, op, read, list(results), layout))

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
        if self._decisions.place is not None:
            read = self._placed(source, nodes)
            self.program.steps.append(Copy(nodes, read, result, rows, size, source_step, result_step))

    def _placed(self, operand: Operand, nodes: Sequence[str]) -> Tensor | Constant:
        """What a step of these nodes reads: constants are written, so that not all that are packed are in memory."""
        if isinstance(operand, Tensor):
            return operand
        assert self._decisions.place is not None
        return self._decisions.place(operand, nodes)

    # -- groups

    def add(self, group: Group) -> None:
        """Append the steps of one group."""
        node = group.root
        generic.require_static(node, group.outputs)
        if all(prod(shape_of(tensor)) == 0 for tensor in group.outputs):
            for tensor in group.outputs:  # a window that is larger than its image, a slice of nothing
                self.define(tensor, Tensor(shape_of(tensor), dtype_of(tensor)))
            return
        is_constant = bool(node.inputs) and isinstance(
            node.inputs[0], gs.Constant
        )  # what templates know to be computed
        templates = () if is_constant else (self.integers.get(node.op), self.layers.get(node.op))
        for lower_ in (*templates, views.VIEWS.get(node.op)):
            if lower_ is not None and node.domain in STANDARD_DOMAINS and lower_(self, group):
                return
        if group.is_elementwise:
            self.elementwise(group.nodes)
            return
        self._generic(node)
        if len(group.nodes) > 1:
            self.elementwise(group.nodes[1:])

    def elementwise(self, nodes: list[gs.Node]) -> None:
        """One kernel for a chain of elementwise nodes, in the layout of its inputs; alone, DequantizeLinear too."""
        builder = Builder(None)
        for node in nodes:
            builder.add(node)
        if isinstance(self.unit, Dsp) and dsp_layers.elementwise_(self, nodes, builder):
            return
        output, expression = nodes[-1].outputs[0], builder.expression()
        shape, block, blocks = shape_of(output), PLAIN, self.block_of(output)
        if self.in_blocks(shape, builder.operands) and (expression.is_finite or shape[1] % blocks == 0):
            block, shape = blocks, relayout.blocked_shape(shape, blocks)
        operands = [self.operand(each, len(shape_of(output)), block, shape_of(output)) for each in builder.operands]
        sizes, merged = elementwise.merged(shape, [each.shape for each in operands])
        result = Tensor(shape, expression.dtype)
        self.call(
            "elementwise",
            ("elementwise", sizes, tuple(merged), expression, tuple(str(each.dtype) for each in operands)),
            [node.name for node in nodes],
            "+".join(node.op for node in nodes),
            [_reshaped(each, size) for each, size in zip(operands, merged, strict=True)],
            [result.view(sizes)],
            lambda *ins: elementwise.compute(ins, sizes, self.unit, expression.emit, expression.dtype),
            f"NCHW{block}c" if block > 1 else "plain",
        )
        self.define(output, result, block)

    def in_blocks(self, shape: Shape, operands: Sequence[gs.Tensor | np.ndarray]) -> bool:
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
            return self.blocked(value, block)
        return self._to_blocked(self.plain(value).view(own), own, value.name, block)

    def steps(
        self, group: Group, bias: gs.Tensor | np.ndarray | None, scale: np.ndarray | float | None = None
    ) -> Builder:
        """The steps of a group after its root, whose integers are worth `scale`."""
        builder = _requantizing(group, bias, scale) or Builder(group.root.outputs[0], bias, scale)
        if not builder.is_integer:
            for node in group.nodes[1:]:
                builder.add(node)
        return builder

    def tail(
        self,
        group: Group,
        bias: gs.Tensor | np.ndarray | None,
        block: int,
        out_shape: Shape,
        scale: np.ndarray | float | None = None,
        dtype: str = "float32",
    ) -> Tail:
        """The epilogue of a group whose root computes `dtype` of `out_shape`, plain or in blocks of `block`.

        `scale`, which broadcasts over `out_shape`, is what integers of the root are worth.
        """
        if dtype not in ("float32", "float16", "int32"):
            return Tail(Expression(1, (), dtype), (), block)
        builder = self.steps(group, bias, scale)
        expression = builder.expression()
        operands = [self.operand(each, len(out_shape), block, out_shape) for each in builder.operands]
        masked = block > 1 and out_shape[1] % block and not expression.is_finite
        return Tail(expression, tuple(operands), block, out_shape[1] if masked else None)

    def _scheduled(self, node: gs.Node, function: tirx.PrimFunc) -> tirx.PrimFunc:
        """A function of a node without a template, with the best schedule that is known."""
        unit = self.unit.of("float32")
        if type(unit) is not Unit or not is_large(function):
            return schedule(function, unit)
        problem, none = general.General.of(node.op, function), Tail(Expression(1, (), "float32"), (), PLAIN)
        plan = self.plan(Group([node], list(node.outputs)), problem, none)
        return function if self._decisions.place is None else general.scheduled(problem, plan, unit)

    def _generic(self, node: gs.Node) -> None:
        """A node without a template: TVM's own lowering, on plain tensors, computing in float32."""
        variables = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant) and not tensor.is_empty()]
        made: dict[tuple[str, int], Tensor] = {}

        def operand(value: generic.Value) -> Tensor | Constant:
            if value.values is not None:
                return self._placed(value.values, [node.name])
            source = self.plain(variables[value.index]) if value.kind == "input" else made[value.kind, value.index]
            return source.view(value.shape)

        unit = self.unit.of("float32")
        for piece in generic.lower(node, unit, self.machine, self._ready.graph.opset, partial(self._scheduled, node)):
            for value in piece.results:
                made.setdefault((value.kind, value.index), Tensor(value.shape, value.dtype))
            if self._decisions.place is None:
                continue
            results = [made[value.kind, value.index].view(value.shape) for value in piece.results]
            operands = [operand(value) for value in piece.operands]
            self.program.steps.append(
                Call(piece.key, piece.function, node.op.lower(), [node.name], node.op, operands, results, "plain")
            )
        for index, tensor in enumerate(node.outputs):
            if ("output", index) in made:
                self.define(tensor, made["output", index].view(shape_of(tensor)))


def _templates(unit: Unit) -> tuple[Mapping[str, layers.Template], Mapping[str, layers.Template]]:
    """What takes nodes on a unit, by operator, and what takes those that multiply integers."""
    if isinstance(unit, Gpu):
        return gpu_layers.TEMPLATES, gpu_layers.INTEGERS if unit.multiplies_bytes else {}
    if isinstance(unit, Dsp):
        return dsp_layers.TEMPLATES, dsp_layers.INTEGERS
    return layers.TEMPLATES, layers.INTEGERS


def _requantizing(
    group: Group, bias: gs.Tensor | np.ndarray | None, scale: np.ndarray | float | None
) -> Builder | None:
    """The steps from integers of the root to integers again, where nothing but a limit is between."""
    limits = rounding(group.nodes[1:])
    if limits is None or scale is None or not (bias is None or isinstance(bias, np.ndarray)):
        return None
    value, step = group.root.outputs[0], limits.quantization.scale
    builder = Builder(value, None if bias is None else _ratio(bias, step), _ratio(scale, step))
    builder.requantize(value, limits)
    return builder


def _ratio(values: np.ndarray | float, step: float) -> np.ndarray:
    return (np.asarray(values, np.float64) / step).astype(np.float32)


def _owns_memory(tensor: Tensor) -> bool:
    """Whether the caller's memory can stand for that of `tensor`."""
    root, offset = tensor.root()
    return not root.fixed and offset == 0 and root.bytes == tensor.bytes


def _reshaped(operand: Operand, shape: Shape) -> Operand:
    return operand.reshape(shape) if isinstance(operand, np.ndarray) else operand.view(shape)
