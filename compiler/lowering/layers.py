"""Nodes that have a schedule template: convolutions, matrix products, pools, with the epilogue of their group.

Each function here appends the calls of a group, or returns False where its template does not take the node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from nnc.lowering.fuse import Group
from nnc.lowering.kernels import conv2d, depthwise, gemm, pool, winograd
from nnc.lowering.kernels.window import Window
from nnc.lowering.program import Operand, Tensor
from nnc.lowering.shapes import shape_of
from nnc.lowering.tail import Tail

if TYPE_CHECKING:
    from nnc.lowering.lower import Lowering


def conv(lowering: Lowering, group: Group) -> bool:
    """Conv of float32 images with constant weights."""
    node = group.root
    x, weights, bias = _input(node, 0), _array(node, 1), _input(node, 2)
    window = _window(node, weights.shape[2:]) if weights is not None and weights.ndim == 4 else None
    if weights is None or window is None or weights.dtype != np.float32 or x is None or x.dtype != np.float32:
        return False
    out_shape = shape_of(node.outputs[0])
    tail = lowering.tail(group, _along_channels(bias, 4), lowering.block, out_shape)
    groups, channels = node.attrs.get("group", 1), weights.shape[0]
    if groups == channels == shape_of(x)[1]:
        _depthwise(lowering, group, x, weights, window, tail)
    elif not _winograd(lowering, group, x, weights, window, groups, tail):
        _direct(lowering, group, x, weights, window, groups, tail)
    return True


def _depthwise(lowering: Lowering, group: Group, x: gs.Tensor, W: np.ndarray, window: Window, tail: Tail) -> None:
    problem = depthwise.Depthwise(shape_of(x)[0], W.shape[0], window, lowering.block)
    plan = depthwise.best_plan(problem, lowering.unit)
    _emit(
        lowering,
        group,
        _Kernel("depthwise", problem, plan),
        [lowering.blocked(x), depthwise.pack(W, problem)],
        tail,
        (problem.batch, problem.blocks, *window.out_size, problem.block),
        lambda X, P, extras: depthwise.compute(X, P, problem, plan, extras, tail.epilogue(extras)),
    )


def _winograd(
    lowering: Lowering, group: Group, x: gs.Tensor, W: np.ndarray, window: Window, groups: int, tail: Tail
) -> bool:
    """3x3 with stride 1, where Winograd's algorithm is estimated to be faster."""
    plain_steps = window.strides == window.dilations == (1, 1)
    if window.kernel != (3, 3) or groups != 1 or not plain_steps or W.shape[1] < lowering.block:
        return False
    (top, left), (height, width) = window.origin, window.size
    bottom, right = window.out_size[0] + 2 - height - top, window.out_size[1] + 2 - width - left
    pads = (top, left, bottom, right)
    problem = winograd.Convolution(shape_of(x)[0], W.shape[1], W.shape[0], height, width, pads, lowering.block)
    if not winograd.wins(problem, lowering.unit):
        return False
    plan = winograd.best_plan(problem, lowering.unit)
    _emit(
        lowering,
        group,
        _Kernel("winograd", problem, plan),
        [lowering.blocked(x), winograd.pack(W, plan)],
        tail,
        (problem.batch, problem.out_blocks, *problem.out_size, problem.block),
        lambda X, U, extras: winograd.compute(X, U, problem, plan, extras, tail.epilogue(extras)),
    )
    return True


def _direct(
    lowering: Lowering, group: Group, x: gs.Tensor, W: np.ndarray, window: Window, groups: int, tail: Tail
) -> None:
    batch, channels, height, width = shape_of(x)
    few = channels < lowering.block and not lowering.has_blocks(x)
    in_block = 1 if few else lowering.block
    source = lowering.plain(x) if few else lowering.blocked(x)
    if window.kernel == (1, 1) and window.strides != (1, 1) and window.origin == (0, 0) and not few:
        source, window = _every_nth(lowering, group.root, source, channels, window)
        height, width = window.size
    problem = conv2d.Conv2d(batch, channels, W.shape[0], window, groups, in_block, lowering.block)
    out_size = window.out_size
    if tail.fits(*out_size):
        problem = problem.flattened(lowering.unit)
        height, width = problem.window.size
        tail = tail.reshaped(*problem.window.out_size)
    shape = (batch, channels, height, width) if few else (batch, problem.in_blocks, height, width, in_block)
    result = Tensor((batch, problem.out_blocks, *out_size, problem.block), "float32")
    _direct_into(lowering, group, problem, source.view(shape), W, tail, result)
    lowering.define(group.outputs[0], result, lowering.block)


def _every_nth(lowering: Lowering, node: gs.Node, x: Tensor, channels: int, window: Window) -> tuple[Tensor, Window]:
    """The pixels that a strided 1x1 convolution reads, side by side, so that its tiles can go on from row to row."""
    problem = pool.Pool("max", x.shape[0], channels, window, lowering.block)
    result = Tensor((*x.shape[:2], *window.out_size, lowering.block), "float32")
    key = ("every_nth", problem)
    lowering.call("every_nth", key, [node.name], "", [x], [result], lambda X: pool.compute(X, problem, lowering.unit))
    return result, replace(window, size=window.out_size, strides=(1, 1))


def _direct_into(
    lowering: Lowering, group: Group, problem: conv2d.Conv2d, x: Tensor, W: np.ndarray, tail: Tail, result: Tensor
) -> None:
    """Append a direct convolution that writes `result`."""
    plan = conv2d.best_plan(problem, lowering.unit)
    _call(
        lowering,
        group,
        _Kernel("conv2d", problem, plan),
        [x, conv2d.pack(W, problem, plan)],
        tail,
        result.view(problem.out_shape),
        lambda X, P, extras: conv2d.compute(X, P, problem, plan, extras, tail.epilogue(extras)),
    )


def conv_transpose(lowering: Lowering, group: Group) -> bool:
    """ConvTranspose of float32 images with constant weights: a convolution for each phase of the output's pixels."""
    node = group.root
    x, weights, bias = _input(node, 0), _array(node, 1), _input(node, 2)
    if x is None or weights is None or weights.ndim != 4 or weights.dtype != np.float32 or x.dtype != np.float32:
        return False
    if _two(node.attrs.get("dilations", (1, 1))) != (1, 1) or isinstance(x, gs.Constant):
        return False
    strides, out_size = _two(node.attrs.get("strides", (1, 1))), _two(shape_of(node.outputs[0])[2:])
    pads = _transposed_pads(node, strides, _two(weights.shape[2:]), out_size)
    if strides[0] > weights.shape[2] or strides[1] > weights.shape[3]:
        return False  # some outputs are nothing but the bias
    tail = lowering.tail(group, _along_channels(bias, 4), lowering.block, shape_of(node.outputs[0]))
    (batch, channels, *size), groups = shape_of(x), node.attrs.get("group", 1)
    W = _as_convolution(weights, groups)
    result = Tensor((batch, -(-W.shape[0] // lowering.block), *out_size, lowering.block), "float32")
    for phase in product(range(strides[0]), range(strides[1])):
        rows, columns = (_phase(*each) for each in zip(phase, strides, weights.shape[2:], pads, out_size, strict=True))
        window = Window(
            _two(size),
            (rows.taps, columns.taps),
            (1, 1),
            (1, 1),
            (rows.origin, columns.origin),
            (rows.outputs, columns.outputs),
        )
        if min(window.out_size) < 1:
            continue
        spread = conv2d.Phase(strides, phase, out_size)  # type: ignore[arg-type]
        problem = conv2d.Conv2d(batch, channels, W.shape[0], window, groups, lowering.block, lowering.block, spread)
        taps = np.ascontiguousarray(W[:, :, rows.tap :: strides[0], columns.tap :: strides[1]][:, :, ::-1, ::-1])
        _direct_into(lowering, group, problem, lowering.blocked(x), taps, tail, result)
    lowering.define(group.outputs[0], result, lowering.block)
    return True


@dataclass(frozen=True)
class _Phase:
    """One axis of the outputs `phase`, `phase` + stride, ... of a transposed convolution, as a convolution."""

    tap: int
    """The first of its kernel's taps, which are a stride apart."""
    taps: int
    origin: int
    """Padding in front."""
    outputs: int


def _phase(phase: int, stride: int, kernel: int, pad: int, out: int) -> _Phase:
    """Output y gets input i through tap k where y + pad = i * stride + k; of a phase, all k are equal modulo stride."""
    tap = (phase + pad) % stride
    taps = -(-(kernel - tap) // stride)
    return _Phase(tap, taps, taps - 1 - (phase + pad) // stride, -(-(out - phase) // stride))


def _as_convolution(W: np.ndarray, groups: int) -> np.ndarray:
    """Weights `[in, out / groups, kh, kw]` of ConvTranspose as `[out, in / groups, kh, kw]`."""
    ins, outs = W.shape[0] // groups, W.shape[1]
    split = W.reshape(groups, ins, outs, *W.shape[2:]).swapaxes(1, 2)
    return split.reshape(groups * outs, ins, *W.shape[2:])


def _transposed_pads(
    node: gs.Node, strides: tuple[int, int], kernel: tuple[int, int], out: tuple[int, int]
) -> tuple[int, int]:
    """The padding in front of rows and columns; `output_shape` and `auto_pad` decide over `pads`, as in ONNX."""
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID") and "output_shape" not in node.attrs:
        return _two(node.attrs.get("pads", (0, 0, 0, 0))[:2]) if auto == "NOTSET" else (0, 0)
    added = node.attrs.get("output_padding", (0, 0))
    totals = [
        max(0, (size - 1) * stride + extra + taps - result)
        for size, stride, extra, taps, result in zip(
            shape_of(node.inputs[0])[2:], strides, added, kernel, out, strict=True
        )
    ]
    return _two([total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals])


def gemm_node(lowering: Lowering, group: Group) -> bool:
    """Gemm with constant weights: `alpha` and `beta` are folded into the constants."""
    node = group.root
    x, weights, bias = _input(node, 0), _array(node, 1), _input(node, 2)
    if x is None or weights is None or weights.dtype != np.float32 or node.attrs.get("transA", 0):
        return False
    W = np.float32(node.attrs.get("alpha", 1.0)) * (weights.T if node.attrs.get("transB", 0) else weights)
    beta = node.attrs.get("beta", 1.0)
    if isinstance(bias, gs.Constant):
        bias = np.float32(beta) * bias.values
    elif bias is not None and beta != 1.0:
        return False
    _product(lowering, group, lowering.plain(x), W, bias)
    return True


def matmul(lowering: Lowering, group: Group) -> bool:
    """MatMul of float32 rows with a constant matrix."""
    x, weights = _input(group.root, 0), _array(group.root, 1)
    if x is None or isinstance(x, gs.Constant) or weights is None or weights.ndim != 2 or weights.dtype != np.float32:
        return False
    if len(shape_of(x)) < 2:
        return False
    _product(lowering, group, lowering.plain(x), weights, None)
    return True


def _product(lowering: Lowering, group: Group, x: Tensor, W: np.ndarray, bias: gs.Tensor | np.ndarray | None) -> None:
    depth, columns = W.shape
    rows, out_shape = prod(x.shape) // depth, shape_of(group.root.outputs[0])
    plan = gemm.best_plan(rows, columns, depth, lowering.unit)
    tail = lowering.tail(group, bias, 1, out_shape).as_rows(rows, out_shape)
    if tail is None:
        alone = Group([group.root], [group.root.outputs[0]])
        _product(lowering, alone, x, W, bias)
        lowering.elementwise(group.nodes[1:])
        return
    _emit(
        lowering,
        group,
        _Kernel("gemm", (rows, columns, depth), plan),
        [x.view((rows, depth)), gemm.pack(W, plan)],
        tail,
        (rows, columns),
        lambda A, P, extras: gemm.compute(A, P, columns, plan, extras, tail.epilogue(extras)),
        out_shape,
        block=1,
    )


def spatial_pool(lowering: Lowering, group: Group) -> bool:
    """MaxPool and AveragePool of images."""
    node = group.root
    x, window = _input(node, 0), _window(node, node.attrs.get("kernel_shape", ()))
    if window is None or x is None or x.dtype != np.float32 or len(_used(node)) != 1:
        return False
    kind, padded_end = "max", None
    if node.op == "AveragePool":
        kind = "average"
        if node.attrs.get("count_include_pad", 0):
            ends = _pads(node, window)[2:]
            padded_end = (window.size[0] + ends[0], window.size[1] + ends[1])
    _pool(lowering, group, x, pool.Pool(kind, shape_of(x)[0], shape_of(x)[1], window, lowering.block, padded_end))  # type: ignore[arg-type]
    return True


def global_pool(lowering: Lowering, group: Group) -> bool:
    """GlobalAveragePool, GlobalMaxPool, and ReduceMean or ReduceMax over rows and columns."""
    node, x = group.root, _input(group.root, 0)
    if x is None or x.dtype != np.float32 or len(shape_of(x)) != 4 or isinstance(x, gs.Constant):
        return False
    keeps_axes = not node.op.startswith("Reduce") or node.attrs.get("keepdims", 1)
    if node.op.startswith("Reduce") and _reduced_axes(node) != [2, 3]:
        return False
    if not keeps_axes and len(group.nodes) > 1:
        return False  # the epilogue's operands have the rank of the output
    size = _two(shape_of(x)[2:])
    window = Window(size, size, (1, 1), (1, 1), (0, 0), (1, 1))
    kind = "max" if node.op.endswith("Max") or node.op == "GlobalMaxPool" else "average"
    problem = pool.Pool(kind, shape_of(x)[0], shape_of(x)[1], window, lowering.block)  # type: ignore[arg-type]
    if keeps_axes:
        _pool(lowering, group, x, problem)
        return True
    output = node.outputs[0]
    kept = gs.Variable(output.name, np.float32, [*shape_of(output), 1, 1])
    _pool(lowering, Group([gs.Node(node.op, node.name, inputs=[x], outputs=[kept])], [kept]), x, problem)
    lowering.define(output, lowering.plain(kept).view(shape_of(output)))
    return True


def _pool(lowering: Lowering, group: Group, x: gs.Tensor, problem: pool.Pool) -> None:
    tail = lowering.tail(group, None, lowering.block, shape_of(group.root.outputs[0]))
    _emit(
        lowering,
        group,
        _Kernel(f"{problem.kind}_pool", problem, None),
        [lowering.blocked(x)],
        tail,
        (problem.batch, problem.blocks, *problem.window.out_size, problem.block),
        lambda X, extras: pool.compute(X, problem, lowering.unit, extras, tail.epilogue(extras)),
    )


TEMPLATES: dict[str, Callable[[Lowering, Group], bool]] = {
    "AveragePool": spatial_pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm_node,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
    "MatMul": matmul,
    "MaxPool": spatial_pool,
    "ReduceMax": global_pool,
    "ReduceMean": global_pool,
}


@dataclass(frozen=True)
class _Kernel:
    template: str
    problem: Any
    plan: Any


def _emit(
    lowering: Lowering,
    group: Group,
    kernel: _Kernel,
    operands: Sequence[Operand],
    tail: Tail,
    shape: tuple[int, ...],
    compute: Callable[..., Any],
    out_shape: tuple[int, ...] | None = None,
    block: int | None = None,
) -> None:
    """Append the call of a template; it computes `shape`, which is `out_shape` under another name."""
    result = Tensor(out_shape or shape, "float32")
    block = lowering.block if block is None else block
    _call(
        lowering, group, kernel, operands, tail, result.view(shape), compute, f"NCHW{block}c" if block > 1 else "plain"
    )
    lowering.define(group.outputs[0], result, block)


def _call(
    lowering: Lowering,
    group: Group,
    kernel: _Kernel,
    operands: Sequence[Operand],
    tail: Tail,
    result: Tensor,
    compute: Callable[..., Any],
    layout: str = "",
) -> None:
    """Append the call of a template that writes `result`."""
    count = len(operands)
    lowering.call(
        kernel.template,
        (kernel, tail.key),
        [node.name for node in group.nodes],
        "+".join(node.op for node in group.nodes),
        [*operands, *tail.operands],
        [result],
        lambda *ins: compute(*ins[:count], ins[count:]),
        layout,
    )


def _input(node: gs.Node, index: int) -> gs.Tensor | None:
    """An input, or None where it is omitted."""
    return node.inputs[index] if len(node.inputs) > index and not node.inputs[index].is_empty() else None


def _array(node: gs.Node, index: int) -> np.ndarray | None:
    """The values of a constant input."""
    tensor = _input(node, index)
    return tensor.values if isinstance(tensor, gs.Constant) else None


def _used(node: gs.Node) -> list[gs.Tensor]:
    return [tensor for tensor in node.outputs if tensor.name]


def _along_channels(bias: gs.Tensor | None, rank: int) -> gs.Tensor | np.ndarray | None:
    """A bias `[channels]` as an operand that broadcasts over images."""
    return bias.values.reshape(1, -1, *[1] * (rank - 2)) if isinstance(bias, gs.Constant) else bias


def _reduced_axes(node: gs.Node) -> list[int]:
    """The axes of a reduction, an attribute before opset 18 and then an input; none where they are not known."""
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        values = _array(node, 1)
        axes = values.tolist() if values is not None else None
    return sorted(axis % len(shape_of(node.inputs[0])) for axis in axes or ())


def _window(node: gs.Node, kernel: Sequence[int]) -> Window | None:
    """The sliding window of a convolution or pool over images; None for other ranks and negative padding."""
    shape, out = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if len(shape) != 4 or len(kernel) != 2:
        return None
    window = Window(
        _two(shape[2:]),
        _two(kernel),
        _two(node.attrs.get("strides", (1, 1))),
        _two(node.attrs.get("dilations", (1, 1))),
        (0, 0),
        _two(out[2:]),
    )
    pads = _pads(node, window)
    return replace(window, origin=pads[:2]) if min(pads) >= 0 else None


def _pads(node: gs.Node, window: Window) -> tuple[int, int, int, int]:
    """Top, left, bottom, right."""
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", b"NOTSET"):
        return tuple(node.attrs.get("pads", (0, 0, 0, 0)))
    if auto == "VALID":
        return 0, 0, 0, 0
    starts, ends = [], []
    for size, kernel, stride, dilation, out in zip(
        window.size, window.kernel, window.strides, window.dilations, window.out_size, strict=True
    ):
        total = max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size)
        first = total // 2 if auto == "SAME_UPPER" else total - total // 2
        starts.append(first)
        ends.append(total - first)
    return starts[0], starts[1], ends[0], ends[1]


def _two(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
