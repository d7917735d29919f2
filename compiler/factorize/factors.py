"""A chain of convolutions with its weights, and what it loses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnc.factorize.linear import blocks_of
from nnc.factorize.moments import output_energy
from nnc.factorize.stages import Stage, params


@dataclass(frozen=True, eq=False)
class Factors:
    """A chain of convolutions, in order of execution, in place of one; the layer's bias belongs to the last."""

    stages: tuple[Stage, ...]
    weights: tuple[np.ndarray, ...]
    error: float
    """Share of the layer's (output) energy that the chain loses, 0..1, with the weights as they are stored."""
    energy: float
    """E ||W x||^2, or ||W||^2 without a moment: what the error is a share of."""

    @property
    def params(self) -> int:
        return params(self.stages)

    def kernel(self) -> np.ndarray:
        """The weight W' [K, C / group, taps...] of the one convolution that computes the same; float64."""
        return composed(self.stages, self.weights)


def measured_factors(
    W: np.ndarray, stages: tuple[Stage, ...], weights: Sequence[np.ndarray], moment: np.ndarray | None
) -> Factors:
    """The weights as they are stored, with what they lose, measured."""
    shaped = (weight.reshape(stage.shape) for stage, weight in zip(stages, weights, strict=True))
    stored = tuple(np.ascontiguousarray(weight, W.dtype) for weight in shaped)
    head, last = composed(stages[:-1], stored[:-1]), stages[-1]
    lost = energy = 0.0
    for rows in blocks_of(len(W), math.prod(W.shape[1:])):
        block = W[rows].astype(np.float64)
        tail = replace(last, shape=(len(block), *last.shape[1:]))
        lost += output_energy(block - composed((stages[0], tail), (head, stored[-1][rows])), moment)
        energy += output_energy(block, moment)
    return Factors(stages, stored, lost / energy if energy else 0.0, energy)


def composed(stages: Sequence[Stage], weights: Sequence[np.ndarray]) -> np.ndarray:
    """The weight of the one convolution that computes what the chain does, float64."""
    kernel = weights[0].astype(np.float64)
    for stage, weight in zip(stages[1:], weights[1:], strict=True):
        inner = kernel.reshape(stage.group, -1, *kernel.shape[1:])
        outer = weight.astype(np.float64).reshape(stage.group, -1, *weight.shape[1:])
        product = np.moveaxis(outer, (0, 1, 2), (-3, -2, -1)) @ np.moveaxis(inner, (0, 1, 2), (-3, -2, -1))
        kernel = np.moveaxis(product, (-3, -2, -1), (0, 1, 2)).reshape(
            len(weight), kernel.shape[1], *product.shape[:-3]
        )
    return kernel


def balanced(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """first [r, ...] and second [K, r, ...], scaled along r so that both have the same norm there."""
    own = np.sqrt((first**2).sum(axis=tuple(range(1, first.ndim))))
    other = np.sqrt((second**2).sum(axis=(0, *range(2, second.ndim))))
    scale = np.sqrt(np.divide(other, own, out=np.ones_like(own), where=(own > 0) & (other > 0)))
    return first * scale.reshape(-1, *[1] * (first.ndim - 1)), second / scale.reshape(1, -1, *[1] * (second.ndim - 2))


def require_rank(rank: int, most: int) -> None:
    if not 1 <= rank <= most:
        raise ValueError(f"the rank must be from 1 to {most}, not {rank}")
