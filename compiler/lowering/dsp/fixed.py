"""Elementwise steps between integers in fixed point: what bytes become of sums and of other bytes.

Steps that add, multiply and scale are a polynomial of the integers they read; each rounding to bytes ends one. A
polynomial is evaluated in words of 32 bits, with as many bits behind the point as its largest value leaves:

    byte = clip((sum of multiplier * product of integers + addend) >> fraction)

Sums are first shifted to the top of a word, and multiplied by a Q31 multiplier (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import floor, log2, prod
from typing import Any, Literal

import numpy as np

from nnc.lowering.dsp import hvx
from nnc.lowering.dsp.hvx import Vector
from nnc.lowering.expression import Expression, Step

_BYTE = 255
"""The largest integer of a byte."""

_MOST_FRACTION, _LEAST_FRACTION = 24, 6
"""Bits behind the point: more do not make it better, with fewer the result may be off by more than one step."""


@dataclass(frozen=True)
class Term:
    """The product of some slots and of a multiplier, which is a slot too."""

    factors: tuple[int, ...]
    multiplier: int
    shift: int | None
    """Bits that the product is shifted left before a Q31 multiplication; None: an ordinary one."""

    def emit(self, slots: Sequence[Vector]) -> Vector:
        value, multiplier = prod(slots[factor] for factor in self.factors), slots[self.multiplier]
        if self.shift is None:
            return value * multiplier
        return hvx.high_product(hvx.shifted_left(value, self.shift), multiplier)


@dataclass(frozen=True)
class Stage:
    """One rounding: the sum of terms with `fraction` bits behind the point, as an integer from `low` to `high`."""

    terms: tuple[Term, ...]
    addend: int
    """The slot of what is added; where there are no ties, with the half that rounds."""
    fraction: int
    low: int
    high: int
    ties: Literal["even", "odd"] | None
    """Where values that lie exactly between two integers go, if there are such values.

    QuantizeLinear rounds before it adds the zero point, which may be odd.
    """

    def emit(self, slots: Sequence[Vector], bind: Callable[[Vector], Vector]) -> Vector:
        total = bind(sum((term.emit(slots) for term in self.terms), start=slots[self.addend]))
        if self.ties is not None:
            half, odd = 1 << self.fraction - 1, hvx.shifted_right(total, self.fraction) & hvx.splat(1)
            total = total + hvx.splat(half - 1) + odd if self.ties == "even" else total + hvx.splat(half) - odd
        rounded = hvx.shifted_right(total, self.fraction)
        is_byte = (self.low, self.high) == (0, _BYTE)
        return rounded if is_byte else hvx.clipped(rounded, self.low, self.high)


@dataclass(frozen=True)
class FixedPoint:
    """Stages one after the other. Slots are the inputs, then the result of every stage."""

    inputs: int
    stages: tuple[Stage, ...]

    def emit(self, values: Sequence[Vector], bind: Callable[[Vector], Vector]) -> Vector:
        """Words to be packed with saturation, given registers of words."""
        slots = list(values)
        for index, stage in enumerate(self.stages):
            value = bind(stage.emit(slots, bind))
            last = index == len(self.stages) - 1
            slots.append(value if last else bind(hvx.clipped(value, stage.low, stage.high)))
        return slots[-1]


# -- polynomials

Monomial = tuple[int, ...]  # slots in ascending order; none of them is the constant
Polynomial = dict[Monomial, np.ndarray]  # coefficients, float64, which broadcast over the result


@dataclass
class _Value:
    """What a slot holds: a polynomial, and limits that the rounding behind it still has to keep."""

    polynomial: Polynomial
    low: float = -np.inf
    high: float = np.inf

    @property
    def is_free(self) -> bool:
        return (self.low, self.high) == (-np.inf, np.inf)


class _NotFixed(Exception):
    """The steps are not polynomials between roundings to unsigned bytes."""


@dataclass
class _Builder:
    """Turns the steps of an expression into stages."""

    bounds: dict[int, int]
    """By slot of an integer: the largest magnitude."""
    inputs: int
    values: list[_Value]
    constants: list[np.ndarray] = field(default_factory=list)
    """Multipliers and addends, int32, whose slots follow the integers that are read."""
    stages: list[Stage] = field(default_factory=list)
    rounds: int = 0

    def add(self, step: Step) -> None:
        attributes = dict(step.attributes)
        arguments = [self._argument(each) for each in step.arguments]
        if step.op in ("Quantize", "Requantize"):
            self.values.append(self._rounded(arguments, attributes))
        elif step.op in ("Relu", "Clip"):
            self.values.append(_limited(arguments))
        elif step.op in _ARITHMETIC and all(each.is_free for each in arguments):
            self.values.append(_Value(_ARITHMETIC[step.op](*(each.polynomial for each in arguments))))
        else:
            raise _NotFixed

    def _argument(self, argument: int | float) -> _Value:
        return self.values[argument] if isinstance(argument, int) else _Value({(): np.array(argument, np.float64)})

    def _rounded(self, arguments: Sequence[_Value], attributes: Mapping[str, Any]) -> _Value:
        value, *scale, zero = arguments
        (step,) = [_scalar(each) for each in scale] or [1.0]
        offset = _scalar(zero)
        polynomial = _plus(_scaled(value.polynomial, 1 / step), {(): np.array(offset)})
        low, high = (
            int(np.clip(np.rint(bound / step) + offset, attributes["low"], attributes["high"]))
            for bound in (value.low, value.high)
        )
        if (attributes["low"], attributes["high"]) < (0, 0) or high > _BYTE or low < 0:
            raise _NotFixed
        self._stage(polynomial, low, max(low, high), "odd" if int(offset) % 2 else "even")
        slot = -len(self.stages)  # its number is known when those of the constants are
        self.bounds[slot] = _BYTE
        return _Value({(slot,): np.array(1.0)})

    def _stage(self, polynomial: Polynomial, low: int, high: int, ties: Literal["even", "odd"]) -> None:
        bounds = {each: prod(self.bounds[slot] for slot in each) for each in polynomial}
        total = sum(float(np.abs(c).max()) * bounds[each] for each, c in polynomial.items())
        fraction = min(_MOST_FRACTION, floor(30 - log2(max(total, 1.0))))
        if fraction < _LEAST_FRACTION:
            raise _NotFixed
        addend = polynomial.get((), np.array(0.0)) * 2.0**fraction
        has_ties = all(np.all(c * 2.0**fraction % 1 == 0) for c in polynomial.values())
        half = 0 if has_ties else 1 << fraction - 1
        terms = [
            self._term(each, coefficient * 2.0**fraction, bounds[each])
            for each, coefficient in polynomial.items()
            if each and np.any(coefficient)
        ]
        stage = Stage(tuple(terms), self._constant(addend + half), fraction, low, high, ties if has_ties else None)
        self.stages.append(stage)

    def _term(self, factors: Monomial, scaled: np.ndarray, bound: int) -> Term:
        if bound <= _BYTE:
            return Term(factors, self._constant(scaled), None)
        shift = 31 - bound.bit_length()
        return Term(factors, self._constant(np.ldexp(scaled, 31 - shift)), shift)

    def _constant(self, values: np.ndarray) -> int:
        limits = np.iinfo(np.int32)
        self.constants.append(np.clip(np.rint(values), limits.min, limits.max).astype(np.int32))
        return self.inputs + len(self.constants) - 1

    def finish(self) -> FixedPoint:
        """The stages with the slots of their results, which come after all that is read."""
        first = self.inputs + len(self.constants)

        def slot(number: int) -> int:
            return number if number >= 0 else first - number - 1

        stages = [
            Stage(
                tuple(Term(tuple(map(slot, term.factors)), term.multiplier, term.shift) for term in stage.terms),
                *(stage.addend, stage.fraction, stage.low, stage.high, stage.ties),
            )
            for stage in self.stages
        ]
        return FixedPoint(first, tuple(stages))


def fixed_point(
    expression: Expression, integers: Mapping[int, int], constants: Mapping[int, np.ndarray]
) -> tuple[FixedPoint, list[np.ndarray]] | None:
    """The expression in fixed point, and the constants that it reads behind the integers, int32.

    `integers` are the largest magnitudes of the inputs that are integers, `constants` the others, by slot; an input
    that is neither, and whatever is no polynomial between roundings to unsigned bytes, gives None. Integers keep
    their order.
    """
    if expression.dtype != "uint8" or len(integers) + len(constants) < expression.inputs:
        return None
    order = {slot: place for place, slot in enumerate(integers)}
    values = [
        _Value({(order[slot],): np.array(1.0)} if slot in integers else {(): constants[slot].astype(np.float64)})
        for slot in range(expression.inputs)
    ]
    builder = _Builder({order[slot]: bound for slot, bound in integers.items()}, len(integers), values)
    try:
        for step in expression.steps:
            builder.add(step)
    except _NotFixed:
        return None
    return builder.finish(), builder.constants


# -- arithmetic of polynomials


def _plus(a: Polynomial, b: Polynomial) -> Polynomial:
    return {each: a.get(each, np.array(0.0)) + b.get(each, np.array(0.0)) for each in {**a, **b}}


def _scaled(a: Polynomial, factor: float) -> Polynomial:
    return {each: coefficient * factor for each, coefficient in a.items()}


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    result: Polynomial = {}
    for (first, c), (second, d) in product(a.items(), b.items()):
        if len(first) + len(second) > 2:
            raise _NotFixed
        result = _plus(result, {tuple(sorted((*first, *second))): c * d})
    return result


def _over(a: Polynomial, b: Polynomial) -> Polynomial:
    if set(b) != {()} or not np.all(b[()]):
        raise _NotFixed
    return _times(a, {(): 1 / b[()]})


def _sum(*each: Polynomial) -> Polynomial:
    total: Polynomial = {}
    for polynomial in each:
        total = _plus(total, polynomial)
    return total


_ARITHMETIC: dict[str, Callable[..., Polynomial]] = {
    "Add": _plus,
    "Affine": lambda x, scale, shift: _plus(_times(x, scale), shift),
    "Dequantize": lambda x, scale, zero: _times(_plus(x, _scaled(zero, -1)), scale),
    "Div": _over,
    "Identity": lambda x: x,
    "Mean": lambda *each: _scaled(_sum(*each), 1 / len(each)),
    "Mul": _times,
    "Neg": lambda x: _scaled(x, -1),
    "Sub": lambda a, b: _plus(a, _scaled(b, -1)),
    "Sum": _sum,
}


def _limited(arguments: Sequence[_Value]) -> _Value:
    """Relu or Clip: limits that the rounding keeps, which is monotonous."""
    value, *bounds = arguments
    low, high = map(_scalar, bounds) if bounds else (0.0, np.inf)
    kept = max(value.low, low)
    return _Value(value.polynomial, kept, max(kept, min(value.high, high)))


def _scalar(value: _Value) -> float:
    """The number that a constant is."""
    constant = value.polynomial.get(())
    if set(value.polynomial) != {()} or constant is None or constant.size != 1:
        raise _NotFixed
    return float(constant.reshape(()))
