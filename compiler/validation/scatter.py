"""Predicted over measured milliseconds as a drawing: SVG, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from nnc.display import units

_SIZE, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 64, 24, 616, 576

#: Of the units of chips, in the order in which they appear.
_COLOURS = {"cpu": "#2563eb", "gpu": "#d97706", "dsp": "#059669"}

#: Predictions within a fifth of the measurement are between the thin lines.
_BAND = 0.2


def svg(rows: Sequence[dict[str, Any]]) -> str:
    """The drawing of rows with "unit", "measured_ms" and "predicted_ms"; every dot says what it is when pointed at."""
    values = [row[key] for row in rows for key in ("measured_ms", "predicted_ms")]
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    low, high = float(decades[0]), float(max(decades[-1], decades[0] + 1))

    def across(milliseconds: float) -> float:
        return _LEFT + (math.log10(milliseconds) - low) / (high - low) * (_RIGHT - _LEFT)

    def up(milliseconds: float) -> float:
        return _BOTTOM - (math.log10(milliseconds) - low) / (high - low) * (_BOTTOM - _TOP)

    def axes() -> Iterator[str]:
        for decade in range(int(low), int(high) + 1):
            x, y, text = across(10.0**decade), up(10.0**decade), units.milliseconds(10.0**decade)
            yield f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_BOTTOM}"/>'
            yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}"/>'
            yield f'<text x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{text}</text>'
            yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        yield f'<text x="{_RIGHT}" y="{_BOTTOM + 40}" text-anchor="end">measured</text>'
        yield f'<text x="{_LEFT}" y="{_TOP - 8}">predicted</text>'

    def diagonals() -> Iterator[str]:
        ends = 10.0**low, 10.0**high
        for factor, kind in ((1.0, "equal"), (1 + _BAND, "band"), (1 - _BAND, "band")):
            points = " ".join(f"{across(end):.1f},{up(end * factor):.1f}" for end in ends)
            yield f'<polyline class="{kind}" points="{points}"/>'

    def dots() -> Iterator[str]:
        for row in rows:
            about = f"{row['model_id']}, {row['chip']} {row['framework']} {row['dtype']}"
            measured, predicted = (units.milliseconds(row[key]) for key in ("measured_ms", "predicted_ms"))
            said = f"{measured} measured, {predicted} predicted"
            at = f'cx="{across(row["measured_ms"]):.1f}" cy="{up(row["predicted_ms"]):.1f}"'
            yield f'<circle class="{row["unit"]}" {at} r="3"><title>{escape(about)}: {said}</title></circle>'

    colours = " ".join(f".{unit}{{fill:{colour}}}" for unit, colour in _COLOURS.items())
    style = (
        "text{font:12px sans-serif;fill:#555} .grid{stroke:#ddd} .equal{stroke:#333;fill:none} "
        f".band{{stroke:#999;fill:none;stroke-dasharray:4 4}} circle{{fill-opacity:.55}} {colours}"
    )
    inner = f'x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}"'
    clip = f'<clipPath id="in"><rect {inner}/></clipPath>'
    inside = "\n".join([*diagonals(), *dots()])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE} {_SIZE}">\n<style>{style}</style>\n{clip}\n'
        + "\n".join(axes())
        + f'\n<g clip-path="url(#in)">\n{inside}\n</g>\n</svg>\n'
    )
