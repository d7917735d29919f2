"""Conv and ConvTranspose of images: depthwise, by Winograd's algorithm, or direct."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from nnc.attributes import window_pads
from nnc.lowering.expression import FLOATS
from nnc.lowering.forms import PLAIN
from nnc.lowering.fuse import Group
from nnc.lowering.kernels import conv2d, depthwise, expand, pool, winograd
from nnc.lowering.kernels.convolution import Conv2d, Phase
from nnc.lowering.kernels.window import Window
from nnc.lowering.kinds import Expansion
from nnc.lowering.layers.attributes import array_of, bias_of, input_of, two, window_of
from nnc.lowering.layers.emit import Kernel, call, emit
from nnc.lowering.program import Tensor
from nnc.lowering.shapes import shape_of
from nnc.lowering.tail import Tail
from nnc.lowering.workload import Workload

if TYPE_CHECKING:
    from nnc.lowering.lowering import Lowering


def conv(lowering: Lowering, group: Group) -> bool:
    """Conv of images of floats with constant weights."""
    node = group.root
    x, weights = input_of(node, 0), array_of(node, 1)
    window = window_of(node, weights.shape[2:]) if weights is not None and weights.ndim == 4 else None
    if weights is None or window is None or weights.dtype not in FLOATS or x is None or x.dtype != weights.dtype:
        return False
    block, out_shape = lowering.block_of(group.outputs[0]), shape_of(node.outputs[0])
    tail = lowering.tail(group, bias_of(lowering, node), block, out_shape)
    groups, channels = node.attrs.get("group", 1), weights.shape[0]
    if groups == channels == shape_of(x)[1]:
        emit_depthwise(lowering, group, x, weights, window, tail)
    else:
        _dense(lowering, group, x, weights, window, groups, tail)
    return True


def emit_depthwise(
    lowering: Lowering, group: Group, x: gs.Tensor, W: np.ndarray, window: Window, tail: Tail, zero: int | None = None
) -> None:
    """Append a depthwise convolution of floats, or of bytes with the zero point `zero`."""
    source, template = lowering.blocked(x, tail.block), lowering.templates.depthwise
    problem = depthwise.Depthwise(shape_of(x)[0], W.shape[0], window, tail.block, zero, source.dtype)
    plan = lowering.plan(group, problem, tail)
    emit(
        lowering,
        group,
        Kernel("depthwise" if zero is None else "int8_depthwise", problem, plan),
        [source, partial(template.pack, W, problem)],
        tail,
        (problem.batch, problem.blocks, *window.out_size, problem.block),
        lambda X, P, extras: template.compute(X, P, problem, plan, extras, tail.epilogue(extras), tail.dtype),
    )


def expand_depthwise(lowering: Lowering, first: Group, second: Group) -> None:
    """Append one kernel for a pointwise convolution and the depthwise one that reads it."""
    block, tails, weights, windows = lowering.block_of(second.outputs[0]), [], [], []
    for group in (first, second):
        node, W = group.root, array_of(group.root, 1)
        assert W is not None
        window = window_of(node, W.shape[2:])
        assert window is not None
        tails.append(lowering.tail(group, bias_of(lowering, node), block, shape_of(node.outputs[0])))
        weights.append(W)
        windows.append(window)
    (W, D), (between, tail) = weights, tails
    source, conv = as_direct(lowering, first, first.root.inputs[0], W, windows[0], 1, block)
    problem = expand.Expand(conv, depthwise.Depthwise(conv.batch, D.shape[0], windows[1], block, None, conv.dtype))
    both = Group([*first.nodes, *second.nodes], second.outputs)
    workloads = Workload.of(problem.conv, between), Workload.of(problem.depthwise, tail)
    plan = lowering.plan(both, Expansion(*workloads), tail, (first.root, second.root))
    count = len(between.operands)
    emit(
        lowering,
        both,
        Kernel("expand_depthwise", (problem, between.key), plan),
        [source, *expand.packs(W, D, problem, plan), *between.operands],
        tail,
        (conv.batch, problem.depthwise.blocks, *windows[1].out_size, block),
        lambda X, P, Q, *rest: expand.compute(
            X,
            P,
            Q,
            problem,
            plan,
            (rest[:count], between.epilogue(rest[:count]), between.dtype),
            rest[count],
            tail.epilogue(rest[count]),
            tail.dtype,
        ),
    )


def _dense(
    lowering: Lowering, group: Group, x: gs.Tensor, W: np.ndarray, window: Window, groups: int, tail: Tail
) -> None:
    """Append a convolution by Winograd's algorithm or a direct one, whatever the plan says."""
    source, problem = as_direct(lowering, group, x, W, window, groups, tail.block)
    plan = lowering.plan(group, problem, tail)
    if isinstance(plan, winograd.Plan):
        _winograd(lowering, group, source, W, problem, plan, tail)
    else:
        _direct(lowering, group, source, W, problem, plan, tail)


def as_direct(
    lowering: Lowering,
    group: Group,
    x: gs.Tensor,
    W: np.ndarray,
    window: Window,
    groups: int,
    block: int,
    few: int = PLAIN,
) -> tuple[Tensor, Conv2d]:
    """What a convolution reads, and the direct one that it is, into blocks of `block`.

    Fewer channels than fill a block, as an image's colours, are read in blocks of `few`.
    """
    batch, channels = shape_of(x)[:2]
    fills = channels >= lowering.block or lowering.has_blocks(x)
    in_block = lowering.block_of(x) if fills else few
    source = lowering.plain(x) if in_block == PLAIN else lowering.blocked(x, in_block)
    if window.strides != (1, 1) and window.is_sampling and fills:
        source, window = _every_nth(lowering, group.root, source, channels, window)
    kind = "float16" if W.dtype == np.float16 else "float32"
    return source, Conv2d(batch, channels, W.shape[0], window, groups, in_block, block, dtype=kind)


def _winograd(
    lowering: Lowering,
    group: Group,
    x: Tensor,
    W: np.ndarray,
    conv: Conv2d,
    plan: winograd.Plan,
    tail: Tail,
) -> None:
    problem = winograd.Convolution.of(conv)
    assert problem is not None
    emit(
        lowering,
        group,
        Kernel("winograd", problem, plan),
        [x, partial(winograd.pack, W, plan)],
        tail,
        (problem.batch, problem.out_blocks, *problem.out_size, problem.block),
        lambda X, U, extras: winograd.compute(X, U, problem, plan, extras, tail.epilogue(extras), tail.dtype),
    )


def _direct(
    lowering: Lowering,
    group: Group,
    x: Tensor,
    W: np.ndarray,
    conv: Conv2d,
    plan: conv2d.Plan,
    tail: Tail,
) -> None:
    problem = conv.of_width(plan.width) if plan.width else conv
    result = Tensor(conv.out_shape, tail.dtype)
    tail = tail.reshaped(*problem.window.out_size) if problem != conv else tail
    direct_into(lowering, group, problem, x.view(problem.in_shape), W, tail, result, plan)
    lowering.define(group.outputs[0], result, conv.block)


def _every_nth(lowering: Lowering, node: gs.Node, x: Tensor, channels: int, window: Window) -> tuple[Tensor, Window]:
    """The pixels that a strided 1x1 convolution reads, side by side, so that its tiles can go on from row to row."""
    problem = pool.Pool("max", x.shape[0], channels, window, x.shape[4], dtype=x.dtype)
    result = Tensor((*x.shape[:2], *window.out_size, x.shape[4]), x.dtype)
    key = ("every_nth", problem)
    compute = partial(pool.compute, pool=problem, unit=lowering.unit, dtype=x.dtype)
    lowering.call("every_nth", key, [node.name], "", [x], [result], compute, f"NCHW{problem.block}c")
    return result, replace(window, size=window.out_size, strides=(1, 1))


def direct_into(
    lowering: Lowering,
    group: Group,
    problem: Conv2d,
    x: Tensor,
    W: np.ndarray,
    tail: Tail,
    result: Tensor,
    plan: Any = None,
) -> None:
    """Append a direct convolution that writes `result`; without a plan, the one that the figures choose."""
    template = lowering.templates.conv2d
    plan = plan or template.best_plan(problem, lowering.unit)
    call(
        lowering,
        group,
        Kernel("conv2d", problem, plan),
        [x, partial(template.pack, W, problem, plan)],
        tail,
        result.view(problem.out_shape),
        lambda X, P, extras: template.compute(X, P, problem, plan, extras, tail.epilogue(extras), tail.dtype),
        f"NCHW{problem.block}c",
    )


def conv_transpose(lowering: Lowering, group: Group) -> bool:
    """ConvTranspose of images of floats with constant weights: a convolution for each phase of the output's pixels."""
    node = group.root
    x, weights = input_of(node, 0), array_of(node, 1)
    if x is None or weights is None or weights.dtype not in FLOATS or x.dtype != weights.dtype:
        return False
    if not has_phases(node, weights):
        return False
    tail = lowering.tail(group, bias_of(lowering, node), lowering.block, shape_of(node.outputs[0]))
    result = transposed_result(lowering, node, tail)
    for problem, taps in phases(node, weights, lowering.block):
        direct_into(lowering, group, problem, lowering.blocked(x), taps, tail, result)
    lowering.define(group.outputs[0], result, lowering.block)
    return True


def has_phases(node: gs.Node, W: np.ndarray) -> bool:
    """Whether a ConvTranspose is one convolution per phase: of images, undilated, every output reached by a tap."""
    strides, dilations = (node.attrs.get(key, (1, 1)) for key in ("strides", "dilations"))
    return W.ndim == 4 and two(dilations) == (1, 1) and strides[0] <= W.shape[2] and strides[1] <= W.shape[3]


def transposed_result(lowering: Lowering, node: gs.Node, tail: Tail) -> Tensor:
    """What the phases of a ConvTranspose write together."""
    batch, channels, *size = shape_of(node.outputs[0])
    return Tensor((batch, -(-channels // lowering.block), *size, lowering.block), tail.dtype)


def phases(node: gs.Node, weights: np.ndarray, block: int) -> Iterator[tuple[Conv2d, np.ndarray]]:
    """The convolutions that a ConvTranspose consists of, each with its weights `[out, in / groups, kh, kw]`."""
    (batch, channels, *size), groups = shape_of(node.inputs[0]), node.attrs.get("group", 1)
    strides, out_size = two(node.attrs.get("strides", (1, 1))), two(shape_of(node.outputs[0])[2:])
    pads, W = _transposed_pads(node, two(weights.shape[2:]), out_size), _as_convolution(weights, groups)
    for phase in product(range(strides[0]), range(strides[1])):
        rows, columns = (_phase(*each) for each in zip(phase, strides, weights.shape[2:], pads, out_size, strict=True))
        window = Window(
            two(size),
            (rows.taps, columns.taps),
            (1, 1),
            (1, 1),
            (rows.origin, columns.origin),
            (rows.outputs, columns.outputs),
        )
        if min(window.out_size) < 1:
            continue
        spread = Phase(strides, phase, out_size)
        taps = W[:, :, rows.tap :: strides[0], columns.tap :: strides[1]][:, :, ::-1, ::-1]
        kind = "float16" if W.dtype == np.float16 else "float32"
        problem = Conv2d(batch, channels, W.shape[0], window, groups, block, block, spread, kind)
        yield problem, np.ascontiguousarray(taps)


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


def _transposed_pads(node: gs.Node, kernel: tuple[int, int], out: tuple[int, int]) -> tuple[int, int]:
    """The padding in front of rows and columns."""
    added = two(node.attrs.get("output_padding", (0, 0)))
    sizes = [size - extra for size, extra in zip(out, added, strict=True)]
    return two(window_pads(node, kernel, sizes, shape_of(node.inputs[0])[2:])[0])
