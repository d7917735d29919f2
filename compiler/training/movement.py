"""Operators that move values, reduce axes, or mix the values of an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch.nn import functional as F  # as everybody calls it

from nnc import session
from nnc.model import proto
from nnc.training.site import Compute, Operator, Site, Tensor


def _view(site: Site) -> Compute:
    """Reshape, Flatten, Squeeze, Unsqueeze: the shape in the graph, whose batch may be another one than here."""
    before, after = site.shape(), site.result
    first = before[0] if before else 1

    def compute(x: Tensor, *_: object) -> Tensor:
        if not after or not x.dim() or x.shape[0] == first:
            return x.reshape(after)
        return x.reshape([after[0] * x.shape[0] // first, *after[1:]])

    return compute


def _expand(site: Site) -> Compute:
    new = len(site.result) - site.rank  # axes in front, whose sizes torch wants to be told
    kept = [-1 if a == b else b for a, b in zip(site.shape(), site.result[new:], strict=True)]
    return lambda x, *_: x.expand([*site.result[:new], *kept])


def _slice(site: Site) -> Compute:
    starts, ends = site.ints(1, "starts"), site.ints(2, "ends")
    axes, steps = site.ints(3, "axes", range(len(starts))), site.ints(4, "steps", [1] * len(starts))
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    if min(steps) < 0:
        chosen = {
            axis % site.rank: list(range(site.shape()[axis]))[_bound(start) : _bound(end) : step]
            for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
        }
        return lambda x, *_: _picked(x, chosen)
    places = [slice(None)] * site.rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        places[axis % site.rank] = slice(start, end, step)
    return lambda x, *_: x[tuple(places)]


def _bound(value: int) -> int | None:
    return None if abs(value) > 2**31 else value


def _picked(x: Tensor, chosen: dict[int, list[int]]) -> Tensor:
    for axis, indices in chosen.items():
        x = x.index_select(axis, torch.tensor(indices, device=x.device))
    return x


def _split(site: Site) -> Compute:
    axis = site.attr("axis", 0)
    sizes = [tensor.shape[axis] for tensor in site.node.outputs]
    return lambda x, *_: torch.split(x, sizes, axis)


def _gather(site: Site) -> Compute:
    axis, indices = site.attr("axis", 0) % max(site.rank, 1), site.setting(1, "indices")
    size = site.shape()[axis]
    flat, shape = torch.from_numpy(np.atleast_1d(indices % size).reshape(-1).astype(np.int64)), indices.shape

    def compute(x: Tensor, *_: object) -> Tensor:
        return x.index_select(axis, flat.to(x.device)).reshape([*x.shape[:axis], *shape, *x.shape[axis + 1 :]])

    return compute


def _pad(site: Site) -> Compute:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(site.attr("mode", "constant"))
    if mode is None:
        raise site.refused(f"of the mode '{site.attr('mode')}'")
    pads, axes = site.ints(1, "pads"), site.ints(3, "axes") or list(range(site.rank))
    around = [(0, 0)] * site.rank
    for axis, *ends in zip(axes, pads, pads[len(axes) :], strict=False):
        around[axis % site.rank] = (ends[0], ends[1])
    value = float(site.setting(2, "a value").reshape(())) if site.has(2) else float(site.attr("value", 0.0))
    if mode == "constant":
        flat = [end for pair in reversed(around) for end in pair]
        return lambda x, *_: F.pad(x, flat, value=value)
    if any(map(any, around[:2])):
        raise site.refused("of channels")
    flat = [end for pair in reversed(around[2:]) for end in pair]
    return lambda x, *_: F.pad(x, flat, mode)


def _transpose(site: Site) -> Compute:
    perm = site.attr("perm", list(range(site.rank))[::-1])
    return lambda x: x.permute(perm)


def _concat(site: Site) -> Compute:
    """A constant among the inputs, which has a batch of 1, goes to every sample."""
    axis = site.attr("axis") % site.rank
    if axis == 0:
        return lambda *xs: torch.cat(xs)

    def compute(*xs: Tensor) -> Tensor:
        count = max(len(x) for x in xs)
        return torch.cat([x.expand(count, *x.shape[1:]) if len(x) == 1 else x for x in xs], axis)

    return compute


def _depth_to_space(site: Site) -> Compute:
    block, order = site.attr("blocksize"), (0, 3, 4, 1, 5, 2)

    def compute(x: Tensor) -> Tensor:
        if site.attr("mode", "DCR") == "CRD":
            return F.pixel_shuffle(x, block)
        n, c, h, w = x.shape
        parts = x.reshape(n, block, block, c // block**2, h, w).permute(order)
        return parts.reshape(n, c // block**2, h * block, w * block)

    return compute


def _space_to_depth(site: Site) -> Compute:
    block = site.attr("blocksize")

    def compute(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * block**2, h // block, w // block)

    return compute


def _tile(site: Site) -> Compute:
    repeats = site.ints(1, "repeats")
    return lambda x, *_: x.repeat(repeats)


def _resize(site: Site) -> Compute:
    """Axis by axis: every result is a weighted sum of values along the axis, with the weights that onnxruntime takes.

    Found by resizing unit vectors, which holds for nearest, linear and cubic interpolation.
    """
    before, after = site.shape(), site.result
    axes = [axis for axis in range(site.rank) if before[axis] != after[axis]]
    if 0 in axes:
        raise site.refused("of the batch")
    matrices = {axis: torch.from_numpy(_matrix(site, axis)) for axis in axes}

    def compute(x: Tensor, *_: object) -> Tensor:
        for axis, matrix in matrices.items():
            x = torch.movedim(torch.movedim(x, axis, -1) @ matrix.to(x.device, x.dtype), -1, axis)
        return x

    return compute


def _matrix(site: Site, axis: int) -> np.ndarray:
    """[before, behind] of a Resize along one axis."""
    rank, size = site.rank, site.shape()[axis]
    units = np.eye(size, dtype=np.float32).reshape([size if each in (0, axis) else 1 for each in range(rank)])
    axes = [axis_ % rank for axis_ in site.attr("axes", range(rank))]
    scaled = site.has(2) and site.setting(2, "scales").size > 0
    given = site.setting(2, "scales") if scaled else site.setting(3, "sizes")
    shape = np.array(units.shape if not scaled else np.ones(rank), np.float32 if scaled else np.int64)
    shape[axis] = given[axes.index(axis)] if scaled else site.result[axis]
    attrs = {key: value for key, value in site.node.attrs.items() if key not in ("axes", "keep_aspect_ratio_policy")}
    node = onnx.helper.make_node("Resize", ["units", "", *([] if scaled else [""]), "setting"], ["moved"], **attrs)
    imports = proto.opset_imports(site.graph)
    (moved,) = session.compute([node], {"units": units, "setting": shape}, ["moved"], imports)
    return np.moveaxis(moved, (0, axis), (0, 1)).reshape(size, -1).astype(np.float32)


def _reduction(function: Callable[..., Tensor]) -> Operator:
    def operator(site: Site) -> Compute:
        axes = site.ints(1, "axes")
        if not axes and site.attr("noop_with_empty_axes", 0):
            return lambda x, *_: x
        along, keep = tuple(axes) or tuple(range(site.rank)), bool(site.attr("keepdims", 1))
        return lambda x, *_: function(x, along, keep)

    return operator


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _softmax(function: Any) -> Operator:
    return lambda site: lambda x: function(x, site.attr("axis", -1))


def _gemm(site: Site) -> Compute:
    alpha, beta = site.attr("alpha", 1.0), site.attr("beta", 1.0)
    ta, tb = site.attr("transA", 0), site.attr("transB", 0)

    def compute(A: Tensor, B: Tensor, C: Tensor | None = None) -> Tensor:
        y = (A.T if ta else A) @ (B.T if tb else B)
        y = y if alpha == 1 else alpha * y
        return y if C is None else y + (C if beta == 1 else beta * C)

    return compute


def _batch_norm(site: Site) -> Compute:
    """The running statistics follow those of the batches as the node's momentum says, which torch counts from 1."""
    epsilon, momentum, mode = site.attr("epsilon", 1e-5), 1 - site.attr("momentum", 0.9), site.mode

    def compute(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, gamma, beta, mode.normalizes, momentum, epsilon)

    return compute


def _instance_norm(site: Site) -> Compute:
    return lambda x, gamma, beta: F.instance_norm(x, None, None, gamma, beta, eps=site.attr("epsilon", 1e-5))


def _layer_norm(site: Site) -> Compute:
    axis, epsilon = site.attr("axis", -1) % site.rank, site.attr("epsilon", 1e-5)
    return lambda x, gamma, beta=None: F.layer_norm(x, x.shape[axis:], gamma, beta, epsilon)


def _group_norm(site: Site) -> Compute:
    return lambda x, gamma, beta: F.group_norm(x, site.attr("num_groups"), gamma, beta, site.attr("epsilon", 1e-5))


def _lrn(site: Site) -> Compute:
    size, alpha = site.attr("size"), site.attr("alpha", 1e-4)
    beta, bias = site.attr("beta", 0.75), site.attr("bias", 1.0)

    def compute(x: Tensor) -> Tensor:
        squares = F.pad(x.square().flatten(2)[:, None], (0, 0, (size - 1) // 2, size // 2))
        near = F.avg_pool2d(squares, (size, 1), 1)[:, 0].reshape(x.shape)
        return x * (bias + alpha * near) ** -beta

    return compute


_VIEWS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")

OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(_VIEWS, _view),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": lambda site: torch.matmul,
    "Pad": _pad,
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(torch.sum),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Tile": _tile,
    "Transpose": _transpose,
}
