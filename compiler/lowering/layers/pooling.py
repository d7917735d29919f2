"""Pools of images, and reductions over all of an image."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from nnc import integers
from nnc.attributes import Computed, reduced_axes
from nnc.lowering.fuse import Group
from nnc.lowering.kernels import pool
from nnc.lowering.kernels.window import Window
from nnc.lowering.layers.attributes import input_of, pads_of, two, used_outputs, window_of
from nnc.lowering.layers.emit import Kernel, emit
from nnc.lowering.shapes import dtype_of, shape_of

if TYPE_CHECKING:
    from nnc.lowering.lowering import Lowering


def spatial_pool(lowering: Lowering, group: Group) -> bool:
    """MaxPool and AveragePool of images."""
    problem = windowed(group.root, lowering.block_of(group.outputs[0]))
    if problem is None:
        return False
    _pool(lowering, group, group.root.inputs[0], problem)
    return True


def windowed(node: gs.Node, block: int) -> pool.Pool | None:
    """The problem that MaxPool or AveragePool is; None for other ranks, and where indices are asked for."""
    x, window = input_of(node, 0), window_of(node, node.attrs.get("kernel_shape", ()))
    if window is None or x is None or not _is_image(x) or len(used_outputs(node)) != 1:
        return None
    padded_end = None
    if node.op == "AveragePool" and node.attrs.get("count_include_pad", 0):
        ends = pads_of(node, window)[2:]
        padded_end = (window.size[0] + ends[0], window.size[1] + ends[1])
    kind: pool.Kind = "average" if node.op == "AveragePool" else "max"
    return pool.Pool(kind, shape_of(x)[0], shape_of(x)[1], window, block, padded_end)


def whole(node: gs.Node, block: int) -> pool.Pool | None:
    """The problem that a pool or reduction of whole images is; None for other axes and ranks."""
    x = input_of(node, 0)
    if x is None or not _is_image(x):
        return None
    if node.op.startswith("Reduce") and not _reduces_image(node):
        return None
    size = two(shape_of(x)[2:])
    window = Window(size, size, (1, 1), (1, 1), (0, 0), (1, 1))
    kind: pool.Kind = "max" if node.op.endswith("Max") or node.op == "GlobalMaxPool" else "average"
    return pool.Pool(kind, shape_of(x)[0], shape_of(x)[1], window, block)


def _reduces_image(node: gs.Node) -> bool:
    """Whether a reduction is known to be one over rows and columns."""
    try:
        return sorted(reduced_axes(node)) == [2, 3]
    except Computed:
        return False


def keeps_axes(node: gs.Node) -> bool:
    """Whether the result of a pool or reduction is an image too."""
    return not node.op.startswith("Reduce") or bool(node.attrs.get("keepdims", 1))


def global_pool(lowering: Lowering, group: Group) -> bool:
    """GlobalAveragePool, GlobalMaxPool, and ReduceMean or ReduceMax over rows and columns."""
    node, problem = group.root, whole(group.root, lowering.block_of(group.root.inputs[0]))
    if problem is None:
        return False
    if not keeps_axes(node) and len(group.nodes) > 1:
        return False  # the epilogue's operands have the rank of the output
    x = node.inputs[0]
    if keeps_axes(node):
        _pool(lowering, group, x, problem)
        return True
    output = node.outputs[0]
    kept = gs.Variable(output.name, output.dtype, [*shape_of(output), 1, 1])
    _pool(lowering, Group([gs.Node(node.op, node.name, inputs=[x], outputs=[kept])], [kept]), x, problem)
    lowering.define(output, lowering.plain(kept).view(shape_of(output)))
    return True


def _is_image(x: gs.Tensor) -> bool:
    return len(shape_of(x)) == 4 and dtype_of(x) in ("float32", "float16", "int8", "uint8")


def _pool(lowering: Lowering, group: Group, x: gs.Tensor, problem: pool.Pool) -> None:
    """Append a pool; an average reads the integers of what is dequantized."""
    made = integers.dequantized(x) if problem.kind == "average" else None
    scale = None
    if made is not None:
        (x, quantization), scale = made, made[1].scale
        problem = replace(problem, zero=quantization.zero)
    problem = replace(problem, dtype=dtype_of(x))
    tail = lowering.tail(group, None, problem.block, shape_of(group.root.outputs[0]), scale, problem.sums)
    emit(
        lowering,
        group,
        Kernel(f"{problem.kind}_pool", problem, None),
        [lowering.blocked(x, problem.block)],
        tail,
        (problem.batch, problem.blocks, *problem.window.out_size, problem.block),
        lambda X, extras: lowering.templates.pool.compute(
            X, problem, lowering.unit, extras, tail.epilogue(extras), tail.dtype
        ),
    )
