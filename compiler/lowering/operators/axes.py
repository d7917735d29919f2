"""Operators along axes: reductions, softmax, normalization, cumulative sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from nnc.lowering import scalar
from nnc.lowering.kernels import slices, topk
from nnc.lowering.kernels.slices import Slice, Slices
from nnc.lowering.pieces import Shape, Value, Work

Expr = Any


def _merged(shape: Shape, axes: Sequence[int]) -> Slices:
    """The axes of an array, reduced along `axes`, with as few as possible."""
    sizes: list[int] = []
    reduced: list[bool] = []
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        if reduced and reduced[-1] == (axis in axes):
            sizes[-1] *= size
        else:
            sizes.append(size)
            reduced.append(axis in axes)
    return Slices(tuple(sizes), tuple(reduced)) if sizes else Slices((1,), (True,))


def _slices(work: Work, x: Value, axes: Sequence[int], dtype: str, program: slices.Program) -> Value:
    """One result of a type per slice."""
    parts = _merged(x.shape, axes)
    shape = parts.kept or (1,)
    return work.kernel(
        [x.view(*parts.sizes)], lambda X: slices.compute([X], parts, work.unit, [(shape, dtype)], program)[0]
    )


# -- reductions


def _add(x: Expr, y: Expr) -> Expr:
    return x + y


def _limit(dtype: str, largest: bool) -> Expr:
    """The largest or smallest value of a type."""
    if dtype.startswith("float"):
        return tirx.const(np.inf if largest else -np.inf, dtype)
    limits = np.iinfo(dtype)
    return tirx.const(int(limits.max if largest else limits.min), dtype)


def _fold(combine: slices.Combine, start: Callable[[str], Expr], value: Callable[[Expr], Expr], last: Any) -> Any:
    """The program that combines `value(x)` and stores `last(result, length)`."""

    def program(s: Slice, ins: Sequence[Any], outs: Sequence[Any]) -> None:
        (X,), (out,) = ins, outs
        result = s.fold(combine, start(str(X.dtype)), lambda at, lane: value(X[tuple(at)]))
        s.put(out, lambda lane: last(result[lane], s.slices.length))

    return program


def _log_sum_exp(s: Slice, ins: Sequence[Any], outs: Sequence[Any]) -> None:
    (X,), (out,) = ins, outs
    top = s.fold(tirx.max, scalar.real(-np.inf), lambda at, lane: X[tuple(at)])
    total = s.fold(_add, scalar.real(0), lambda at, lane: scalar.exp(X[tuple(at)] - top[lane]))
    s.put(out, lambda lane: scalar.log(total[lane]) + top[lane])


def _zero(dtype: str) -> Expr:
    return tirx.const(0, dtype)


def _same(x: Expr) -> Expr:
    return x


def _square(x: Expr) -> Expr:
    return x * x


def _mean(total: Expr, length: int) -> Expr:
    if str(total.ty.dtype).startswith("float"):
        return total * tirx.const(1 / length, total.ty.dtype)
    return tirx.truncdiv(total, tirx.const(length, total.ty.dtype))


REDUCTIONS: dict[str, slices.Program] = {
    "ReduceL1": _fold(_add, _zero, tirx.abs, lambda x, n: x),
    "ReduceL2": _fold(_add, _zero, _square, lambda x, n: tirx.sqrt(x)),
    "ReduceLogSum": _fold(_add, _zero, _same, lambda x, n: scalar.log(x)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _fold(tirx.max, lambda dtype: _limit(dtype, False), _same, lambda x, n: x),
    "ReduceMean": _fold(_add, _zero, _same, _mean),
    "ReduceMin": _fold(tirx.min, lambda dtype: _limit(dtype, True), _same, lambda x, n: x),
    "ReduceProd": _fold(lambda x, y: x * y, lambda dtype: tirx.const(1, dtype), _same, lambda x, n: x),
    "ReduceSum": _fold(_add, _zero, _same, lambda x, n: x),
    "ReduceSumSquare": _fold(_add, _zero, _square, lambda x, n: x),
}
_FLOAT32_ONLY = {"ReduceLogSum", "ReduceLogSumExp"}
_FLOAT_ONLY = {"ReduceL2"}
_TWICE = {"ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"}  # a reduction of reductions is the reduction of all


def reduce(work: Work) -> list[Value] | None:
    x, op = work.input(0), work.node.op
    axes = work.attribute("axes")
    axes = work.array(1, axes) if axes is None else axes
    if axes is None or len(axes) == 0:
        axes = [] if work.attribute("noop_with_empty_axes", 0) else range(len(x.shape))
    axes = [int(axis) % len(x.shape) for axis in axes]
    if x.dtype == "bool" or (op in _FLOAT32_ONLY and x.dtype != "float32") or (op in _FLOAT_ONLY and "int" in x.dtype):
        return None
    if op in _TWICE:
        x, axes = _partial(work, x, axes)
    return [_slices(work, x, axes, x.dtype, REDUCTIONS[op])]


def global_pool(work: Work) -> list[Value] | None:
    """GlobalAveragePool and GlobalMaxPool: reductions over all axes but the first two."""
    x = work.input(0)
    op = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}[work.node.op]
    return [_slices(work, x, range(2, len(x.shape)), x.dtype, REDUCTIONS[op])]


def summed(work: Work, x: Value, along: Sequence[int]) -> Value:
    """`x` without the axes that it is summed along."""
    if not along:
        return x
    shape = [size for axis, size in enumerate(x.shape) if axis not in along]
    return _slices(work, x, along, x.dtype, REDUCTIONS["ReduceSum"]).view(*shape)


def _partial(work: Work, x: Value, axes: Sequence[int]) -> tuple[Value, Sequence[int]]:
    """Where one slice is all there is: reduce its parts first, so that the threads share them."""
    parts = _merged(x.shape, axes)
    if prod(parts.kept) > 1 or parts.length < 65536:
        return x, axes
    most = min(16 * work.unit.threads, parts.length // 256)
    count = next((n for n in range(most, 1, -1) if parts.length % n == 0), 1)
    if count == 1:
        return x, axes
    return _slices(work, x.view(count, parts.length // count), [1], x.dtype, REDUCTIONS[work.node.op]), [0]


def arg_best(work: Work) -> list[Value]:
    """ArgMax and ArgMin."""
    x, axis = work.input(0), work.axis(0)
    largest, last = work.node.op == "ArgMax", bool(work.attribute("select_last_index", 0))
    shape = (prod(x.shape[:axis]), x.shape[axis], prod(x.shape[axis + 1 :]))
    parts = Slices(shape, (False, True, False)) if shape[2] > 1 else Slices(shape[:2], (False, True))

    def program(s: Slice, ins: Sequence[Any], outs: Sequence[Any]) -> None:
        (X,), (out,) = ins, outs
        better = (lambda a, b: a > b) if largest else (lambda a, b: a < b)
        place = s.best(better, _limit(str(X.dtype), not largest), lambda at: X[tuple(at)], 1, last)
        s.put(out, lambda lane: place[lane].astype("int64"))

    result = (parts.kept, "int64")
    return [work.kernel([x.view(*parts.sizes)], lambda X: slices.compute([X], parts, work.unit, [result], program)[0])]


def top_k(work: Work) -> list[Value]:
    x, axis, count = work.input(0), work.axis(), int(work.array(1).reshape(()))
    view = x.view(prod(x.shape[:axis]), x.shape[axis], prod(x.shape[axis + 1 :]))
    return work.kernels([view], lambda X: topk.compute(X, count, bool(work.attribute("largest", 1))))


def cumulative_sum(work: Work) -> list[Value]:
    """The sums of the elements before each one, with it or without."""
    x, axis = work.input(0), int(work.array(1).reshape(())) % len(work.input(0).shape)
    exclusive, reverse = work.attribute("exclusive", 0), work.attribute("reverse", 0)
    length = x.shape[axis]
    parts = Slices((prod(x.shape[:axis]), length, prod(x.shape[axis + 1 :])), (False, True, False))

    def program(s: Slice, ins: Sequence[Any], outs: Sequence[Any]) -> None:
        (X,), (out,) = ins, outs
        total = s.filled(_zero(x.dtype))

        def step(at: list[Expr], lane: Expr) -> None:
            place = (at[0], length - 1 - at[1] if reverse else at[1], at[2])
            if exclusive:
                out[place] = total[lane]
            total[lane] = total[lane] + X[place]
            if not exclusive:
                out[place] = total[lane]

        s.each(step)

    result = (parts.sizes, x.dtype)
    return [work.kernel([x.view(*parts.sizes)], lambda X: slices.compute([X], parts, work.unit, [result], program)[0])]


# -- softmax


def _softmax(s: Slice, ins: Sequence[Any], outs: Sequence[Any]) -> None:
    (X,), (out,) = ins, outs
    top = s.fold(tirx.max, scalar.real(-np.inf), lambda at, lane: X[tuple(at)])

    def kept(at: list[Expr], lane: Expr) -> Expr:
        out[tuple(at)] = scalar.exp(X[tuple(at)] - top[lane])
        return out[tuple(at)]

    total = s.fold(_add, scalar.real(0), kept)
    factor = s.stat(lambda lane: scalar.real(1) / total[lane])
    s.each(lambda at, lane: _store(out, at, out[tuple(at)] * factor[lane]))


def _log_softmax(s: Slice, ins: Sequence[Any], outs: Sequence[Any]) -> None:
    (X,), (out,) = ins, outs
    top = s.fold(tirx.max, scalar.real(-np.inf), lambda at, lane: X[tuple(at)])
    total = s.fold(_add, scalar.real(0), lambda at, lane: scalar.exp(X[tuple(at)] - top[lane]))
    shift = s.stat(lambda lane: scalar.log(total[lane]) + top[lane])
    s.each(lambda at, lane: _store(out, at, X[tuple(at)] - shift[lane]))


def softmax(work: Work) -> list[Value] | None:
    x = work.input(0)
    program = {"Softmax": _softmax, "LogSoftmax": _log_softmax}[work.node.op]
    return [_mapped(work, [x], x, [work.axis()], program)] if x.dtype == "float32" else None


def _mapped(work: Work, operands: Sequence[Value], x: Value, axes: Sequence[int], program: slices.Program) -> Value:
    """An array like `x`, whose slices along `axes` are computed from themselves."""
    parts = _merged(x.shape, axes)
    views = [each.view(*parts.sizes) for each in operands]
    return work.kernel(views, lambda *ins: slices.compute(ins, parts, work.unit, [(parts.sizes, x.dtype)], program)[0])


def _store(out: Any, at: Sequence[Expr], value: Expr) -> None:
    out[tuple(at)] = value


# -- normalization


def _normalized(
    work: Work,
    x: Value,
    sizes: Shape,
    reduced: tuple[bool, ...],
    scale: Value | None,
    bias: Value | None,
    statistics: int = 0,
) -> list[Value]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over slices of `x` seen as `sizes`.

    Scale and bias have as many axes, each as long as in `sizes` or 1. With `statistics`, mean and 1 / sqrt too.
    """
    parts, epsilon = Slices(sizes, reduced), float(work.attribute("epsilon", 1e-5))
    affine = [each for each in (scale, bias) if each is not None]

    def at_of(value: Value, at: Sequence[Expr]) -> tuple[Expr, ...]:
        return tuple(0 if size == 1 else i for size, i in zip(value.shape, at, strict=True))

    def program(s: Slice, ins: Sequence[Any], outs: Sequence[Any]) -> None:
        X, out, share = ins[0], outs[0], scalar.real(1 / parts.length)
        total = s.fold(_add, scalar.real(0), lambda at, lane: X[tuple(at)])
        mean = s.stat(lambda lane: total[lane] * share)
        squares = s.fold(_add, scalar.real(0), lambda at, lane: _square(X[tuple(at)] - mean[lane]))
        factor = s.stat(lambda lane: scalar.real(1) / tirx.sqrt(squares[lane] * share + scalar.real(epsilon)))

        def store(at: list[Expr], lane: Expr) -> None:
            value = (X[tuple(at)] - mean[lane]) * factor[lane]
            if scale is not None:
                value = value * ins[1][at_of(scale, at)]
            if bias is not None:
                value = value + ins[-1][at_of(bias, at)]
            out[tuple(at)] = value

        s.each(store)
        for each, stat in zip(outs[1:], (mean, factor), strict=False):
            s.put(each, stat.__getitem__)

    results = [(sizes, "float32"), *[(parts.kept or (1,), "float32")] * statistics]
    return work.kernels([x.view(*sizes), *affine], lambda *ins: slices.compute(ins, parts, work.unit, results, program))


def layer_normalization(work: Work) -> list[Value] | None:
    x, axis = work.input(0), work.axis()
    if x.dtype != "float32":
        return None
    length = prod(x.shape[axis:])
    if any(prod(work.input(index).shape) != length for index in (1, 2) if work.has(index)):
        return None
    scale, bias = (work.input(index).view(1, length) if work.has(index) else None for index in (1, 2))
    sizes = (prod(x.shape[:axis]), length)
    return _normalized(work, x, sizes, (False, True), scale, bias, len(work.node.outputs) - 1)


def instance_normalization(work: Work) -> list[Value] | None:
    x = work.input(0)
    if x.dtype != "float32":
        return None
    n, channels = x.shape[:2]
    scale, bias = (work.input(index).view(1, channels, 1) for index in (1, 2))
    return _normalized(work, x, (n, channels, prod(x.shape[2:])), (False, False, True), scale, bias)


def group_normalization(work: Work) -> list[Value] | None:
    x, groups = work.input(0), work.attribute("num_groups")
    if x.dtype != "float32":
        return None
    n, channels = x.shape[:2]
    each = channels // groups if work.opset >= 21 else 1  # scales and biases per group
    scale, bias = (work.input(index).view(1, groups, each, 1) for index in (1, 2))
    sizes = (n, groups, channels // groups, prod(x.shape[2:]))
    return _normalized(work, x, sizes, (False, False, True, True), scale, bias)


def lp_normalization(work: Work) -> list[Value] | None:
    """x divided by the norm of its slice; 0 where that is 0."""
    x, order = work.input(0), work.attribute("p", 2)
    if x.dtype != "float32" or order not in (1, 2):
        return None

    def program(s: Slice, ins: Sequence[Any], outs: Sequence[Any]) -> None:
        (X,), (out,) = ins, outs
        size = _square if order == 2 else tirx.abs
        total = s.fold(_add, scalar.real(0), lambda at, lane: size(X[tuple(at)]))
        norm = s.stat(lambda lane: tirx.sqrt(total[lane]) if order == 2 else total[lane])
        factor = s.stat(
            lambda lane: tirx.Select(norm[lane] == scalar.real(0), scalar.real(0), scalar.real(1) / norm[lane])
        )
        s.each(lambda at, lane: _store(out, at, X[tuple(at)] * factor[lane]))

    return [_mapped(work, [x], x, [work.axis()], program)]


OPERATORS = {
    **dict.fromkeys(REDUCTIONS, reduce),
    "ArgMax": arg_best,
    "ArgMin": arg_best,
    "CumSum": cumulative_sum,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": softmax,
    "LpNormalization": lp_normalization,
    "Softmax": softmax,
    "TopK": top_k,
}
