"""Operators that compute every value by itself, and quantization."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # as everybody calls it

from nnc.measure import numpy_dtype
from nnc.training.site import Compute, Operator, Site, Tensor


def _plain(function: Callable[..., Any]) -> Operator:
    return lambda site: function


def _clip(site: Site) -> Compute:
    low, high = (float(site.setting(index, "bounds")) if site.has(index) else None for index in (1, 2))
    low = site.attr("min") if low is None else low
    high = site.attr("max") if high is None else high
    if low is None and high is None:
        return lambda x, *_: x
    return lambda x, *_: x.clamp(low, high)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _gelu(site: Site) -> Compute:
    return lambda x: F.gelu(x, approximate=site.attr("approximate", "none"))


def _hard_sigmoid(site: Site) -> Compute:
    alpha, beta = site.attr("alpha", 0.2), site.attr("beta", 0.5)
    return lambda x: (alpha * x + beta).clamp(0.0, 1.0)


def _swish(site: Site) -> Compute:
    alpha = site.attr("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


def _cast(site: Site) -> Compute:
    kind = numpy_dtype(site.node.outputs[0].dtype)
    dtype = torch.from_numpy(np.zeros(0, kind)).dtype
    return lambda x, *_: x.to(dtype)


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda site: lambda *xs: reduce(function, xs)


def _mean(site: Site) -> Compute:
    return lambda *xs: reduce(torch.add, xs) / len(xs)


# -- quantization: rounding passes gradients straight through (Bengio et al. 2013, arXiv:1308.3432)


class Rounded(torch.autograd.Function):
    """The nearest integers, ties to even; the gradient goes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


def rounded(x: Tensor) -> Tensor:
    result: Tensor = Rounded.apply(x)
    return result


def along(values: Tensor, rank: int, axis: int) -> Tensor:
    """A scale or zero point in a shape that is broadcast to a tensor of this rank."""
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if each == axis else 1 for each in range(rank)])


def _quantize(site: Site) -> Compute:
    """Integers, as floats: in the range of the type, the gradient goes straight through, and none outside."""
    axis, limits = site.attr("axis", 1) % max(site.rank, 1), np.iinfo(numpy_dtype(site.node.outputs[0].dtype))

    def compute(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        steps = rounded(x / along(scale, x.dim(), axis))
        shifted = steps if zero is None else steps + along(zero, x.dim(), axis).to(x.dtype)
        return shifted.clamp(float(limits.min), float(limits.max))

    return compute


def _dequantize(site: Site) -> Compute:
    axis = site.attr("axis", 1) % max(site.rank, 1)
    if site.attr("block_size", 0):
        raise site.refused("with a scale per block")

    def compute(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        shifted = x.to(scale.dtype)
        if zero is not None:
            shifted = shifted - along(zero, x.dim(), axis).to(scale.dtype)
        return shifted * along(scale, x.dim(), axis)

    return compute


OPERATORS: dict[str, Operator] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "Cast": _cast,
    "Ceil": _plain(torch.ceil),
    "Celu": lambda site: lambda x: F.celu(x, site.attr("alpha", 1.0)),
    "Clip": _clip,
    "Cos": _plain(torch.cos),
    "DequantizeLinear": _dequantize,
    "Div": _plain(torch.div),
    "Dropout": lambda site: lambda x, *_: x,
    "Elu": lambda site: lambda x: F.elu(x, site.attr("alpha", 1.0)),
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Floor": _plain(torch.floor),
    "Gelu": _gelu,
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(F.hardswish),
    "Identity": _plain(lambda x: x),
    "LeakyRelu": lambda site: lambda x: F.leaky_relu(x, site.attr("alpha", 0.01)),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Log": _plain(torch.log),
    "Max": _variadic(torch.maximum),
    "Mean": _mean,
    "Min": _variadic(torch.minimum),
    "Mish": _plain(F.mish),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "PRelu": _plain(_prelu),
    "Pow": _plain(torch.pow),
    "QuantizeLinear": _quantize,
    "Reciprocal": _plain(torch.reciprocal),
    "Relu": _plain(torch.relu),
    "Round": _plain(torch.round),
    "Selu": _plain(F.selu),
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Softplus": _plain(F.softplus),
    "Softsign": _plain(F.softsign),
    "Sqrt": _plain(torch.sqrt),
    "Sub": _plain(torch.sub),
    "Sum": _variadic(torch.add),
    "Swish": _swish,
    "Tanh": _plain(torch.tanh),
    "ThresholdedRelu": lambda site: lambda x: torch.where(x > site.attr("alpha", 1.0), x, torch.zeros_like(x)),
    "Where": _plain(torch.where),
}
