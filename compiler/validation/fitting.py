"""Fits the coefficients of the roofline to measured rows: a profile per family of units, engine and dtype.

Residuals are logarithms, so that small and large networks count alike, and Huber's loss keeps single rows from
deciding. Every coefficient has a prior: a profile starts from that of the same engine in float32, from near that of all
engines of the family, or from what such machines usually do, and moves away only as far as its rows insist (ridge
regression, Hoerl and Kennard 1970). What is common to the rows of one setting counts less than what differs between its
networks: the machine's figures may be wrong, and then all are (random effects, Laird and Ware 1982).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from nnc.hardware.efficiency import NEAREST, Efficiency
from nnc.validation.samples import Progress, Sample, Stack, by_profile

#: The engine of a profile that is fitted on the rows of all engines, for those that have none of their own.
ANY = "any"

#: The engine of nnc's own code, whose kernels are known: they fuse what `nnc.simulation.kernels` says.
OWN = "nnc"

Key = tuple[str, str]
"""Of a profile: its name, "family/engine", and a dtype."""

# Where Huber's loss turns linear, and what a row is taken to scatter around its prediction, in logarithms.
_HUBER, _SCATTER = 0.25, 0.15

# By how much the rows of one setting are taken to be wrong together.
_COMMON = 0.07

# Coefficients with their usual values and how far profiles differ, as a factor: a standard deviation of the logarithm.
_CPU = {
    "winograd": (1.6, 0.4), "conv": (0.8, 0.3), "pointwise": (0.85, 0.3), "grouped": (0.5, 0.4),
    "depthwise": (0.25, 0.4), "packing": (4.0, 0.8), "narrow": (12.0, 0.6), "occupancy": (8.0, 0.7),
    "issue": (0.4, 0.4), "element": (2.0, 0.6), "function": (15.0, 0.6), "cache": (0.7, 0.5), "dram": (1.0, 0.3),
    "alone": (0.7, 0.4), "serial": (0.03, 0.7), "uneven": (0.3, 0.7),
    "kernel_us": (2.0, 0.7), "regroup": (0.3, 0.7), "sync_us": (8.0, 0.7), "unfused": (0.3, 0.7),
}  # fmt: skip
_ACCELERATOR = {
    "winograd": (0.5, 0.4), "conv": (0.35, 0.4), "pointwise": (0.3, 0.4), "grouped": (0.2, 0.5),
    "depthwise": (0.1, 0.5), "packing": (8.0, 0.8), "narrow": (16.0, 0.6), "occupancy": (30.0, 0.8),
    "element": (1.0, 0.7), "function": (4.0, 0.6),
    "cache": (1.0, 0.5), "dram": (0.8, 0.4), "kernel_us": (25.0, 0.8), "network_us": (200.0, 0.8),
    "unfused": (0.3, 0.7),
}  # fmt: skip
_CPUS = ("arm", "x86")
_FIXED = {"alone": 1.0} | dict.fromkeys(
    ("regroup", "issue", "serial", "uneven", "sync_us", "network_us", "unfused"), 0.0
)
_LIMITS = {"issue": 1.0, "uneven": 1.0, "regroup": 1.0, "unfused": 1.0, "serial": 0.9}
_MOST = 5.0  # of shares; and of channels, so that layers are still worth pruning


@dataclass(frozen=True)
class Fit:
    """The coefficients of all profiles."""

    profiles: dict[Key, Efficiency]

    def of(self, key: Key) -> Efficiency | None:
        """The profile itself, or the nearest: the engine's in another dtype, the family's of any engine."""
        name, dtype = key
        family = name.split("/")[0]
        for nearby in (name, f"{family}/{ANY}"):
            for other in NEAREST[dtype]:
                if found := self.profiles.get((nearby, other)):
                    return found
        return None


def fit(among: Sequence[Sample], start: Fit | None = None, keep: Callable[[Key], bool] = lambda key: False) -> Fit:
    """The profiles that explain the samples best; `start` has those of nearly the same samples.

    Profiles that are to `keep` are taken over from `start`.
    """
    groups = by_profile(among)
    for (name, dtype), members in list(groups.items()):
        groups.setdefault((f"{name.split('/')[0]}/{ANY}", dtype), []).extend(members)
    known = start.profiles if start else {}
    found: dict[Key, Efficiency] = {}
    for key in sorted(groups, key=_order):
        if key in known and keep(key):
            found[key] = known[key]
            continue
        found[key] = _fit(Stack(groups[key]), key, _prior(key, found, groups), known.get(key))
    return Fit(found)


def predict_ms(fitted: Fit, among: Sequence[Sample]) -> np.ndarray:
    """Milliseconds of every sample; not a number where no profile is near."""
    predicted, places = np.full(len(among), np.nan), {id(each): index for index, each in enumerate(among)}
    for key, members in by_profile(among).items():
        if efficiency := fitted.of(key):
            predicted[[places[id(each)] for each in members]] = Stack(members).predict_ms(efficiency)
    return predicted


def left_out(among: Sequence[Sample], full: Fit, attribute: str, progress: Progress) -> np.ndarray:
    """Milliseconds of every sample from fits that saw no row of the same chip, or model: cross-validation."""
    labels = np.array([getattr(each.row, attribute) for each in among])
    predicted = np.full(len(among), np.nan)
    values = sorted(set(labels))
    for index, label in enumerate(values):
        progress(f"leave out each {attribute}", index, len(values))
        out = labels == label
        others = [each for each, is_out in zip(among, out, strict=True) if not is_out]
        fitted = fit(others, full, partial(_is_untouched, touched=_touched(among, out)))
        predicted[out] = predict_ms(fitted, [each for each, is_out in zip(among, out, strict=True) if is_out])
    progress(f"leave out each {attribute}", len(values), len(values))
    return predicted


def _touched(among: Sequence[Sample], out: np.ndarray) -> set[Key]:
    """The profiles that lose rows: those of their engines, and those of all engines."""
    lost = {(each.profile, each.setting.dtype) for each, is_out in zip(among, out, strict=True) if is_out}
    return lost | {(f"{name.split('/')[0]}/{ANY}", dtype) for name, dtype in lost}


def _is_untouched(key: Key, touched: set[Key]) -> bool:
    return not _depends(key, touched)


def _depends(key: Key, touched: set[Key]) -> bool:
    return key in touched or any(_depends(parent, touched) for parent in _parents(key))


def _order(key: Key) -> tuple[bool, ...]:
    """Parents come before those that start from them."""
    _, dtype = key
    return dtype != "float32", dtype == "int8", not _is_any(key)


def _parents(key: Key) -> list[Key]:
    name, dtype = key
    family, engine = name.split("/", 1)
    if dtype != "float32":
        return [each for each in ((name, "float32"), (f"{family}/{ANY}", dtype)) if each != key]
    return [] if engine == ANY else [(f"{family}/{ANY}", "float32")]


def _prior(key: Key, found: Mapping[Key, Efficiency], groups: Mapping[Key, Sequence[Sample]]) -> list[float]:
    """Where the coefficients of a profile start from: those of its parent, or the usual ones.

    What the few engines of a family have in common says little of another one. With n of them, an engine starts at n
    parts of n + 1 of the way from the usual coefficients to theirs (partial pooling; Efron and Morris 1975).
    """
    usual = _usual(key)
    parent = next((each for each in _parents(key) if each in found), None)
    if parent is None:
        return [value for value, _ in usual.values()]
    engines = len({each.profile for each in groups[parent]})
    share = engines / (engines + 1) if _is_any(parent) and not _is_any(key) else 1.0
    return [max(getattr(found[parent], name), 1e-4) ** share * usual[name][0] ** (1 - share) for name in usual]


def _usual(key: Key) -> dict[str, tuple[float, float]]:
    family, engine = key[0].split("/")
    usual = _CPU if family in _CPUS else _ACCELERATOR
    return {name: value for name, value in usual.items() if name != "unfused" or engine != OWN}


def _is_any(key: Key) -> bool:
    return key[0].endswith(f"/{ANY}")


def _fit(stack: Stack, key: Key, usual: Sequence[float], start: Efficiency | None) -> Efficiency:
    names, prior = list(_usual(key)), np.log(usual)
    spread = np.array([deviation for _, deviation in _usual(key).values()])

    def built(point: np.ndarray) -> Efficiency:
        values = {name: _limited(name, value) for name, value in zip(names, np.exp(point), strict=True)}
        return Efficiency.model_construct(None, **_FIXED | values)

    def residuals(point: np.ndarray) -> np.ndarray:
        return stack.without_common(np.log(stack.predict_ms(built(point))) - stack.log_ms, _COMMON / _SCATTER)

    first = np.log([max(getattr(start, name), 1e-4) for name in names]) if start else prior
    steps = 8 if start else 30
    best = _least_squares(residuals, first, prior, spread / _SCATTER, stack.weights, steps)
    return Efficiency(**built(best).model_dump())


def _limited(name: str, value: float) -> float:
    counts = name.endswith("_us") or name in ("narrow", "occupancy", "element", "function")
    return float(value) if counts else min(float(value), _LIMITS.get(name, _MOST))


def _least_squares(
    residuals: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    prior: np.ndarray,
    spread: np.ndarray,
    weights: np.ndarray,
    steps: int,
) -> np.ndarray:
    """The point of least robust loss, by damped Gauss-Newton steps (Levenberg and Marquardt)."""

    def loss(point: np.ndarray, errors: np.ndarray) -> float:
        size = np.abs(errors)
        robust = np.where(size < _HUBER, 0.5 * size**2, _HUBER * (size - 0.5 * _HUBER))
        return float((weights * robust).sum() + 0.5 * (((point - prior) / spread) ** 2).sum())

    point, errors, damping = start, residuals(start), 1e-2
    current = loss(point, errors)
    for _ in range(steps):
        slopes = np.stack([(residuals(point + shift) - errors) / 1e-4 for shift in 1e-4 * np.eye(len(point))], axis=1)
        trust = weights * np.minimum(1.0, _HUBER / np.maximum(np.abs(errors), 1e-9))
        curvature = (slopes * trust[:, None]).T @ slopes + np.diag(spread**-2)
        gradient = slopes.T @ (trust * errors) + (point - prior) / spread**2
        improved = False
        for _ in range(8):
            step = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), -gradient)
            trial = point + np.clip(step, -1, 1)
            found = residuals(trial)
            if (reached := loss(trial, found)) < current:
                improved, damping = current - reached > 1e-3 * current, max(damping / 3, 1e-6)
                point, errors, current = trial, found, reached
                break
            damping *= 4
        if not improved:
            break
    return point
