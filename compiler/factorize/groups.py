"""Grouped convolutions: every group is factorized on its own."""

from collections.abc import Callable, Sequence

import numpy as np

from nnc.factorize.factors import Factors
from nnc.factorize.moments import output_energy
from nnc.factorize.stages import Stage

#: Those of the groups, in order.
Moments = Sequence[np.ndarray] | None


def by_group(
    method: Callable[[np.ndarray, np.ndarray | None], Factors], W: np.ndarray, group: int, moments: Moments = None
) -> Factors:
    """What `method`(W, moment) makes of every group of W [K, C / group, taps...], as one chain of grouped convolutions.

    `moments` are those of the channels of every group, in order. `method` must give all groups chains of one form: fix
    the order of `spatial`.
    """
    parts = [method(*each) for each in _groups(W, group, moments)]
    if any(part.stages != parts[0].stages for part in parts):
        raise ValueError("the groups have chains of different forms")
    stages = tuple(
        Stage((group * stage.shape[0], *stage.shape[1:]), group * stage.group, stage.axes) for stage in parts[0].stages
    )
    weights = tuple(np.concatenate(each) for each in zip(*(part.weights for part in parts), strict=True))
    energy = sum(part.energy for part in parts)
    lost = sum(part.error * part.energy for part in parts)
    return Factors(stages, weights, lost / energy if energy else 0.0, energy)


def errors_by_group(
    curve: Callable[[np.ndarray, np.ndarray | None], np.ndarray], W: np.ndarray, group: int, moments: Moments = None
) -> np.ndarray:
    """The errors of the whole layer, where `curve`(W, moment), such as `svd_errors`, says those of one group."""
    groups = _groups(W, group, moments)
    energies = np.array([output_energy(*each) for each in groups])
    shares = energies / energies.sum() if energies.any() else energies
    return np.tensordot(shares, np.stack([curve(*each) for each in groups]), 1)


def _groups(W: np.ndarray, group: int, moments: Moments) -> list[tuple[np.ndarray, np.ndarray | None]]:
    if len(W) % group:
        raise ValueError(f"{len(W)} channels can't be {group} groups")
    return [(part, moments[at] if moments else None) for at, part in enumerate(np.split(W, group))]
