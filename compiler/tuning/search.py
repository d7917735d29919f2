"""Which plans of a workload to measure next: Bayesian optimization over a small discrete space.

What the template's own estimate says is the prior mean, a Gaussian process learns how reality differs from it, and the
candidates with the largest expected improvement are next (Jones et al., "Efficient Global Optimization of Expensive
Black-Box Functions", 1998). Several are drawn at once by letting the process believe its own mean for those that are
drawn already (Ginsbourger et al., "Kriging Is Well-Suited to Parallelize Optimization", 2010).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LENGTH = 0.35  # of the process, in units of a parameter's whole range
PRIOR = 0.5  # share of the template's estimate, in logarithms, that is believed
SPREAD = 0.15  # standard deviation of the process: how much plans differ from their estimate, in logarithms
NOISE = 0.02  # of a measurement, likewise
SLOWEST = -1.0  # a plan that can't be built counts as exp(SLOWEST) times the default


class Search:
    """The candidates of one workload, and what was measured of them so far."""

    def __init__(self, plans: Sequence[Mapping[str, Any]], estimates: Sequence[float]) -> None:
        """`plans` in JSON's types, the default first, and what each is expected to take, in any unit."""
        self.plans = list(plans)
        self.measured: dict[int, float] = {}  # index of a plan -> logarithm of its speed over the default
        cost = np.log(np.maximum(np.asarray(estimates, np.float64), 1e-300))
        self._prior = PRIOR * np.clip(cost[0] - cost, -1.0, 1.0)
        self._points = features(self.plans)
        self._places = {_canonical(plan): index for index, plan in enumerate(self.plans)}
        self._first: list[int] = []

    def start(self, plans: Iterable[Mapping[str, Any]]) -> None:
        """Measure the candidates nearest to these plans of other workloads first."""
        joint = features([*self.plans, *plans])
        for point in joint[len(self.plans) :]:
            self._first.append(int(np.argmin(np.abs(joint[: len(self.plans)] - point).sum(1))))

    def place(self, plan: Mapping[str, Any]) -> int | None:
        """The index of a plan; None where it is no candidate."""
        return self._places.get(_canonical(plan))

    def tell(self, index: int, speed: float | None) -> None:
        """Record how many times faster than the default a plan is; None: it can't be built."""
        self.measured[index] = SLOWEST if speed is None else max(math.log(speed), SLOWEST)

    @property
    def best(self) -> tuple[int, float]:
        """The fastest plan so far, and its speed over the default."""
        index = max(self.measured, key=lambda each: self.measured[each], default=0)
        return (index, math.exp(self.measured[index])) if self.measured.get(index, -1.0) > 0 else (0, 1.0)

    def propose(self, count: int) -> list[int]:
        """Up to `count` candidates that were not measured, the most promising first; none when all were."""
        chosen: list[int] = []
        for index in [0, *self._first]:
            if index not in self.measured and index not in chosen and len(chosen) < count:
                chosen.append(index)
        believed = dict(self.measured)
        while len(chosen) < min(count, len(self.plans) - len(self.measured)):
            mean = self._posterior(believed)[0]
            believed |= {index: float(mean[index]) for index in chosen if index not in believed}
            gains = self._gains(believed)
            gains[[*believed]] = -1.0
            chosen.append(int(np.argmax(gains)))
        return chosen

    @property
    def gain(self) -> float:
        """The improvement to expect of the next candidate, as a logarithm of a ratio."""
        if len(self.measured) >= len(self.plans):
            return 0.0
        gains = self._gains(self.measured)
        gains[[*self.measured]] = 0.0
        return float(gains.max(initial=0.0))

    def _gains(self, known: Mapping[int, float]) -> np.ndarray:
        """The expected improvement of every candidate over the best that is known."""
        mean, deviation = self._posterior(known)
        better = (mean - max([0.0, *known.values()])) / deviation
        density = np.exp(-(better**2) / 2) / math.sqrt(2 * math.pi)
        return deviation * (better * _normal(better) + density)

    def _posterior(self, known: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of every candidate's logarithm of speed."""
        if not known:
            return self._prior.copy(), np.full(len(self.plans), SPREAD)
        at, values = list(known), np.array(list(known.values()))
        across = _kernel(self._points, self._points[at])
        inverse = np.linalg.inv(across[at] + NOISE**2 * np.eye(len(at)))
        mean = self._prior + across @ (inverse @ (values - self._prior[at]))
        variance = SPREAD**2 - np.einsum("ij,jk,ik->i", across, inverse, across)
        return mean, np.sqrt(np.maximum(variance, 1e-8))


def _canonical(plan: Mapping[str, Any]) -> str:
    return json.dumps(plan, sort_keys=True)


def _kernel(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T
    return SPREAD**2 * np.exp(-np.maximum(squares, 0) / (2 * LENGTH**2))


def _normal(values: np.ndarray) -> np.ndarray:
    """The cumulative normal distribution."""
    return (1 + _erf(values / math.sqrt(2))) / 2


_erf = np.vectorize(math.erf, otypes=[np.float64])


def features(plans: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Plans as points, float64 [plans, parameters]: numbers by their logarithm from 0 to 1, words one axis each."""
    flat = [dict(_flat(plan)) for plan in plans]
    axes = []
    for name in dict.fromkeys(name for plan in flat for name in plan):
        values = [plan.get(name) for plan in flat]
        numbers = [value for value in values if isinstance(value, int | float)]
        if numbers and not any(isinstance(value, str) for value in values):
            axes.append(_scaled(values, min(numbers), max(numbers)))
        else:
            axes += [np.array([float(value == word) for value in values]) for word in sorted(map(str, set(values)))]
    return np.stack(axes, 1)


def _flat(plan: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in plan.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _scaled(values: Sequence[Any], least: float, most: float) -> np.ndarray:
    """Logarithms from 0 to 1; what a plan does not have is in the middle."""
    span = math.log1p(most - least) or 1.0
    return np.array([0.5 if value is None else math.log1p(value - least) / span for value in values])
