"""How far predictions are from measurements: errors, bias, ranks, and the ratios that people decide by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from nnc.validation.energy import predict_mj
from nnc.validation.samples import Excluded, Sample

#: Kinds of speed-ups: of one network over another, of a narrower type, of a compressed network over the original.
RATIOS = ("networks", "types", "compression")

Figures = dict[str, Any]


def compare(kept: Sequence[Sample], predicted: np.ndarray, excluded: Sequence[Excluded]) -> Figures:
    """The comparison as JSON holds it; `predicted` are milliseconds of the `kept` rows.

    {"overall": {...}, "groups": [{"chip", "unit", "framework", "dtype", "rows", "mape", "bias", "spearman",
    "ratios": {"networks", "types", "compression"}, "energy": {"rows", "mape", "bias"}}], "rows": [...],
    "excluded": [{"reason", "rows", "models", "lines"}], "energy_excluded": [{...}]}

    `mape` is the mean absolute relative error, `bias` the mean relative error, and a ratio's error the median of
    max(r, 1 / r) - 1, r = predicted ratio / measured ratio: twice as fast as predicted and half as fast are both off by
    100 %. Figures of which there are too few rows are None. Energies are compared where one was measured of the whole
    board and the target has figures of power; of the other rows that have one, `energy_excluded` says why not.
    """
    measured = np.array([each.row.latency_ms for each in kept])
    measured_mj = np.array([each.row.energy_mj for each in kept], float)  # not a number for None
    predicted_mj, energy_excluded = predict_mj(kept, predicted)
    groups = [
        dict(zip(("chip", "unit", "framework", "dtype"), key, strict=True))
        | figures([kept[index] for index in members], measured[members], predicted[members])
        | {"energy": _energy(measured_mj[members], predicted_mj[members])}
        for key, members in _grouped(
            kept, lambda each: (each.row.chip, each.row.unit, each.row.framework, each.setting.dtype)
        )
    ]
    return {
        "overall": figures(kept, measured, predicted) | {"energy": _energy(measured_mj, predicted_mj)},
        "groups": groups,
        "rows": [_row(*each) for each in zip(kept, predicted.tolist(), predicted_mj.tolist(), strict=True)],
        "excluded": _excluded(excluded),
        "energy_excluded": _excluded(energy_excluded),
    }


def figures(kept: Sequence[Sample], measured: np.ndarray, predicted: np.ndarray) -> Figures:
    """The errors of some rows."""
    errors = predicted / measured - 1
    logs = np.log(predicted / measured)
    return {
        "rows": len(kept),
        "mape": float(np.abs(errors).mean()) if len(kept) else None,
        "bias": float(errors.mean()) if len(kept) else None,
        "spearman": spearman(kept, measured, predicted),
        "ratios": {kind: _median(ratio_errors(kept, logs, kind)) for kind in RATIOS},
    }


def _energy(measured: np.ndarray, predicted: np.ndarray) -> Figures:
    """The errors of the energies that are known on both sides."""
    errors = (predicted / measured - 1)[np.isfinite(predicted)]
    return {
        "rows": len(errors),
        "mape": float(np.abs(errors).mean()) if len(errors) else None,
        "bias": float(errors.mean()) if len(errors) else None,
    }


def spearman(kept: Sequence[Sample], measured: np.ndarray, predicted: np.ndarray) -> float | None:
    """Spearman's rank correlation between the networks of one setting, the mean over settings of three or more."""
    found = [
        (len(members), rank_correlation(measured[members], predicted[members]))
        for _, members in _grouped(kept, lambda each: each.circumstances)
        if len(members) > 2
    ]
    if not found:
        return None
    weights, values = zip(*found, strict=True)
    return float(np.average(values, weights=weights))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's coefficient; equal values share the mean of their ranks."""
    first, second = _ranks(a), _ranks(b)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 1.0 if np.array_equal(first, second) else 0.0
    return float(np.corrcoef(first, second)[0, 1])


def ratio_errors(kept: Sequence[Sample], logs: np.ndarray, kind: str) -> list[float]:
    """max(r, 1 / r) - 1 of every ratio of two rows that differ in nothing but what `kind` says, r being the predicted
    ratio over the measured one: which of the two rows comes first makes no difference.

    `logs` are logarithms of predicted over measured milliseconds: a ratio is off by the difference of two of them.
    """

    def same(each: Sample) -> tuple[str, ...]:
        but_type = *each.circumstances[:-1], each.row.model_id, each.row.input_shape
        return but_type if kind == "types" else each.circumstances

    return [
        float(np.exp(abs(logs[one] - logs[other])) - 1)
        for _, members in _grouped(kept, same)
        for one, other in itertools.combinations(members, 2)
        if _differ(kept[one], kept[other], kind)
    ]


def _differ(one: Sample, other: Sample, kind: str) -> bool:
    names = one.row.model_id, other.row.model_id
    match kind:
        case "networks":
            return names[0] != names[1]
        case "types":
            return one.setting.dtype != other.setting.dtype
    original, compressed = sorted((one, other), key=lambda each: len(each.row.model_id))
    named = names[0] != names[1] and compressed.row.model_id.startswith(original.row.model_id)
    smaller = compressed.work.macs.sum() < 0.99 * original.work.macs.sum()
    return bool(named and smaller and one.row.input_shape == other.row.input_shape)


def _grouped(kept: Sequence[Sample], key: Callable[[Sample], Any]) -> Iterable[tuple[Any, list[int]]]:
    """Indices by key, in the order of the keys."""
    groups: dict[Any, list[int]] = {}
    for index, each in enumerate(kept):
        groups.setdefault(key(each), []).append(index)
    return sorted(groups.items())


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None


def _row(each: Sample, predicted_ms: float, predicted_mj: float) -> Figures:
    row = each.row
    names = ("line", "chip", "unit", "framework", "model_id", "input_shape", "cores_used", "core_type", "clock_ghz")
    return {name: getattr(row, name) for name in names} | {
        "dtype": each.setting.dtype,
        "measured_ms": row.latency_ms,
        "predicted_ms": predicted_ms,
        "measured_mj": row.energy_mj,
        "predicted_mj": predicted_mj if math.isfinite(predicted_mj) else None,
    }


def _excluded(excluded: Sequence[Excluded]) -> list[Figures]:
    """By reason, the most frequent first."""
    reasons: dict[str, list[Excluded]] = {}
    for each in excluded:
        reasons.setdefault(each.reason, []).append(each)
    listed = [
        {
            "reason": reason,
            "rows": len(members),
            "models": sorted({each.row.model_id for each in members}),
            "lines": [each.row.line for each in members],
        }
        for reason, members in reasons.items()
    ]
    return sorted(listed, key=lambda entry: -len(entry["lines"]))
