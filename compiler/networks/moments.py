"""The mean and variance that the elements of a tensor are expected to have, carried from layer to layer.

They set the scale of the weights drawn, as He initialization does for a plain chain of convolutions and ReLUs
(https://arxiv.org/abs/1502.01852), so that activations keep a standard deviation near 1 behind any layer, at any depth.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

#: Gauss-Hermite points and weights: the mean of f(z) for z ~ N(0, 1) is the weighted sum of f at the points.
_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
_WEIGHTS /= _WEIGHTS.sum()


@dataclass(frozen=True)
class Moments:
    mean: float
    variance: float

    @property
    def power(self) -> float:
        """The mean square."""
        return self.mean**2 + self.variance

    def through(self, function: Callable[[np.ndarray], np.ndarray]) -> "Moments":
        """Those of function(z) for a normal z."""
        values = function(self.mean + math.sqrt(self.variance) * _POINTS)
        mean = float(_WEIGHTS @ values)
        return Moments(mean, float(_WEIGHTS @ values**2) - mean**2)

    def maximum(self) -> "Moments":
        """Those of the largest of a few neighbouring pixels, which are alike: measured behind convolutions."""
        return Moments(self.mean + 0.8 * math.sqrt(self.variance), self.variance)

    def average(self, kept: float) -> "Moments":
        """Those of an average over pixels that keeps the share `kept` of the variance."""
        return Moments(self.mean, self.variance * kept)

    def __add__(self, other: "Moments") -> "Moments":
        """Those of the sum of independent elements."""
        return Moments(self.mean + other.mean, self.variance + other.variance)

    def __mul__(self, other: "Moments") -> "Moments":
        """Those of the product of independent elements."""
        mean = self.mean * other.mean
        return Moments(mean, self.power * other.power - mean**2)


STANDARD = Moments(0.0, 1.0)


def mixture(parts: Sequence[Moments], sizes: Sequence[int]) -> Moments:
    """The moments of tensors of the given sizes, put together."""
    shares = np.array(sizes) / sum(sizes)
    mean = float(shares @ [part.mean for part in parts])
    return Moments(mean, float(shares @ [part.power for part in parts]) - mean**2)
