"""The weights that fit moments best, held near those that a layer had."""

import numpy as np

from nnc.calibrate.statistics import Moments

#: Strengths of the ridge that are tried; fewer of them for layers of many columns, where each takes seconds.
_STRENGTHS = (1e-6, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FEW_STRENGTHS = (1e-2, 1.0)
_MANY_COLUMNS = 2048

#: Columns up to which systems are solved together by LU: of small ones there are many, one per group.
_FEW_COLUMNS = 64

#: A share of the targets' energy that is noise of the arithmetic, and no reason to change weights.
_NOISE = 1e-4


def ridge(moments: Moments, W: np.ndarray, strength: float) -> np.ndarray:
    """The weights V [g, K / g, D] that minimize E[(y - V x)^2] + s |V - W|^2, s a share of the mean of E[x x]."""
    columns = moments.xx.shape[1]
    scale = np.trace(moments.xx, axis1=1, axis2=2) / columns
    damping = (strength * scale + np.finfo(np.float64).tiny)[:, None, None]
    return _solved(moments.xx + damping * np.eye(columns), moments.xy + damping * W.transpose(0, 2, 1)).transpose(
        0, 2, 1
    )


def _solved(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """The solutions [g, D, K] of systems of symmetric A [g, D, D], which are positive but for rounding."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    if A.shape[1] <= _FEW_COLUMNS:
        return np.linalg.solve(A, B)
    try:  # half the time
        pairs = zip(A, B, strict=True)
        return np.stack([cho_solve(cho_factor(a, check_finite=False), b, check_finite=False) for a, b in pairs])
    except LinAlgError:
        return np.linalg.solve(A, B)


def fitted(halves: tuple[Moments, Moments], W: np.ndarray) -> np.ndarray:
    """The ridge solution near W whose strength does best on the half that it was not fitted to; W itself if none does.

    Few images don't determine a layer of many columns: what fits them may be worse than W on all others.
    """
    first, second = halves
    whole = first.with_(second)
    if first is second:
        return ridge(whole, W, _STRENGTHS[-1])
    strengths = _STRENGTHS if W.shape[2] <= _MANY_COLUMNS else _FEW_STRENGTHS
    pairs = ((first, second), (second, first))
    errors = [sum(float(test.error(ridge(fit, W, each)).sum()) for fit, test in pairs) for each in strengths]
    unfitted = sum(float(half.error(W).sum()) for half in halves)
    best = int(np.argmin(errors))
    noise = _NOISE * sum(float(half.yy.sum()) for half in halves)
    return ridge(whole, W, strengths[best]) if errors[best] < unfitted - noise else W
