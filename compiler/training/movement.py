"""Operators that move values, reduce axes, or mix the values of an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # as everybody calls it

from nnc.attributes import pads, permutation, reduced_axes, slices
from nnc.mixing import of_resize
from nnc.model import proto
from nnc.training.site import BatchInside, Compute, Operator, Site, Tensor


def _view(site: Site) -> Compute:
    """Reshape and Flatten: to the shape in the graph, but for the batch, which is in front."""
    before, after = site.shape(), site.result

    def compute(x: Tensor, *_: object) -> Tensor:
        if list(x.shape) == before:
            return x.reshape(after)
        if list(x.shape[1:]) != before[1:] or not after or after[0] * x.shape[0] % before[0]:
            raise BatchInside(site.node)
        return x.reshape([after[0] * x.shape[0] // before[0], *after[1:]])

    return compute


def _squeeze(site: Site) -> Compute:
    """Without axes, all of one element; those that the batch makes longer stay."""
    named = site.told(1)
    axes = [axis for axis, size in enumerate(site.shape()) if size == 1] if named is None else named
    return lambda x, *_: x.squeeze(tuple(axes))


def _unsqueeze(site: Site) -> Compute:
    axes = sorted(axis % len(site.result) for axis in site.told(1) or ())

    def compute(x: Tensor, *_: object) -> Tensor:
        for axis in axes:
            x = x.unsqueeze(axis)
        return x

    return compute


def _expand(site: Site) -> Compute:
    new = len(site.result) - site.rank  # axes in front, whose sizes torch wants to be told
    kept = [-1 if a == b else b for a, b in zip(site.shape(), site.result[new:], strict=True)]
    return lambda x, *_: x.expand([*site.result[:new], *kept])


def _slice(site: Site) -> Compute:
    """Axes that are kept whole, of which the batch is one, may have another size than in the graph."""
    named = slices(site.node, site.shape(), site.told)
    kept = {axis: places for axis, places in named.items() if places != range(site.shape()[axis])}

    def compute(x: Tensor, *_: object) -> Tensor:
        for axis, places in kept.items():
            x = _kept(x, axis, places)
        return x

    return compute


def _kept(x: Tensor, axis: int, places: range) -> Tensor:
    """x at the places along an axis."""
    if places.step < 0:
        return x.index_select(axis, torch.tensor(list(places), device=x.device))
    return x[(*[slice(None)] * axis, slice(places.start, places.stop, places.step))]


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
    amounts = pads(site.node, site.told)
    around = [amounts.get(axis, (0, 0)) for axis in range(site.rank)]
    value = float(site.setting(2, "a value").reshape(())) if site.has(2) else 0.0
    if mode == "constant":
        flat = [end for pair in reversed(around) for end in pair]
        return lambda x, *_: F.pad(x, flat, value=value)
    if any(map(any, around[:2])):
        raise site.refused("of channels")
    flat = [end for pair in reversed(around[2:]) for end in pair]
    return lambda x, *_: F.pad(x, flat, mode)


def _transpose(site: Site) -> Compute:
    perm = permutation(site.node)
    return lambda x: x.permute(perm)


def _concat(site: Site) -> Compute:
    """A constant among the inputs, which has a batch of 1, goes to every sample."""
    axis = site.attr("axis") % site.rank

    def compute(*xs: Tensor) -> Tensor:
        sizes = [max(each) for each in zip(*(x.shape for x in xs), strict=True)]
        return torch.cat([x.expand(*sizes[:axis], x.shape[axis], *sizes[axis + 1 :]) for x in xs], axis)

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
    repeats = site.told(1) or []
    return lambda x, *_: x.repeat(repeats)


def _resize(site: Site) -> Compute:
    found = of_resize(
        site.node, lambda index: site.setting(index, "scales") if site.has(index) else None,
        proto.opset_imports(site.graph),
    )  # fmt: skip
    if 0 in found:
        raise site.refused("of the batch")
    matrices = {axis: torch.from_numpy(matrix) for axis, matrix in found.items()}

    def compute(x: Tensor, *_: object) -> Tensor:
        for axis, matrix in matrices.items():
            x = torch.movedim(torch.movedim(x, axis, -1) @ matrix.to(x.device, x.dtype), -1, axis)
        return x

    return compute


def _reduction(function: Callable[..., Tensor]) -> Operator:
    def operator(site: Site) -> Compute:
        axes, keep = tuple(reduced_axes(site.node, site.told)), bool(site.attr("keepdims", 1))
        return (lambda x, *_: function(x, axes, keep)) if axes else (lambda x, *_: x)

    return operator


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
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


OPERATORS: dict[str, Operator] = {
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _view,
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
    "Reshape": _view,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
