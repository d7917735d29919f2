"""The geometry of a plot: axes with round numbers, and where points lie between them. The page draws it as SVG."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Of the drawing, in its own units; the margins hold the numbers.
WIDTH, HEIGHT = 640, 270
LEFT, RIGHT, TOP, BOTTOM = 64, 612, 16, 222

#: Room for the label of a dot.
_LABEL = 190

#: Values that the axis shows besides those of the curve: an error is seen against none.
_START: dict[str, list[float]] = {"error": [0.0], "accuracy": []}

#: Steps between two numbers of an axis, as multiples of a power of ten.
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Tick:
    """A number on an axis, and where it stands."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A point of the curve in the drawing, and what it stands for in percent; its label is away from the curve."""

    x: float
    y: float
    chosen: bool
    across: str
    up: str
    below: bool

    @property
    def anchor(self) -> str:
        """Which end of the dot's label is beside it, so that the label stays in the drawing."""
        return "start" if self.x < WIDTH - _LABEL else "end"

    @property
    def label_x(self) -> float:
        return self.x + (12 if self.anchor == "start" else -4)

    @property
    def label_y(self) -> float:
        return min(self.y + 22, BOTTOM - 4) if self.below else max(self.y - 14, TOP + 4)


@dataclass(frozen=True)
class Plot:
    """A curve of shares over shares, both in percent."""

    dots: list[Dot]
    across: list[Tick]
    up: list[Tick]

    @property
    def line(self) -> str:
        """The dots for SVG's polyline."""
        return " ".join(f"{dot.x},{dot.y}" for dot in self.dots)


def plot(points: Iterable[Mapping[str, Any]], key: str) -> Plot | None:
    """`key` ("error", "accuracy") over "budget", both shares; None without a point where both are numbers.

    Points that are not are left out.
    """
    known = [point for point in points if _is_known(point["budget"], point[key])]
    if not known:
        return None
    across, up = axis([point["budget"] for point in known]), axis([*_START[key], *(point[key] for point in known)])
    dots = [
        Dot(
            x=_place(point["budget"], across, LEFT, RIGHT),
            y=_place(point[key], up, BOTTOM, TOP),
            chosen=point["chosen"],
            across=_text(point["budget"]),
            up=_text(point[key]),
            below=key == "accuracy",  # which rises with the budget, where an error falls
        )
        for point in known
    ]
    return Plot(dots, _ticks(across, LEFT, RIGHT), _ticks(up, BOTTOM, TOP))


def axis(values: Sequence[float]) -> list[float]:
    """Round numbers at equal distances: the first not above any value, the last not below any, at most five between."""
    low, high = min(values), max(values)
    if high - low <= max(1e-4 * abs(high), 1e-9):  # one value: it stands in the middle, or on the ground
        margin = max(0.05, abs(high) / 10)
        low, high = min(low, max(low - margin, 0.0)), high + margin
    least = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in _STEPS if factor * power >= least * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(count * step, 12) for count in range(first, last + 1)]


def _is_known(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def _place(value: float, numbers: Sequence[float], start: float, end: float) -> float:
    return round(start + (value - numbers[0]) / (numbers[-1] - numbers[0]) * (end - start), 1)


def _ticks(numbers: Sequence[float], start: float, end: float) -> list[Tick]:
    return [Tick(_place(number, numbers, start, end), f"{number * 100:.6g} %") for number in numbers]


def _text(share: float) -> str:
    return f"{share * 100:.3g} %"
