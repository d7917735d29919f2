"""Matrix products whose operands are computed at run time, and sums of products in general."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from nnc.lowering import scalar
from nnc.lowering.kernels import matmul, slices
from nnc.lowering.kernels.slices import Slice, Slices
from nnc.lowering.operators import arithmetic, axes, movement
from nnc.lowering.pieces import Value, Work

Expr = Any


def matrix_product(work: Work) -> list[Value] | None:
    """MatMul."""
    a, b = work.inputs()
    if a.dtype != "float32":
        return None
    left = a.view(1, *a.shape) if len(a.shape) == 1 else a
    right = b.view(*b.shape, 1) if len(b.shape) == 1 else b
    return [product(work, left, right).view(*work.shape())]


def product(work: Work, a: Value, b: Value) -> Value:
    """`a @ b` for float32 arrays of at least two axes."""
    rank = max(len(a.shape), len(b.shape))
    a, b = (each.view(*[1] * (rank - len(each.shape)), *each.shape) for each in (a, b))
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    if prod(b.shape[:-2]) == 1:  # one right matrix for all rows
        a, b = a.view(prod(a.shape[:-1]), a.shape[-1]), b.view(*b.shape[-2:])
    elif a.shape[:-2] == b.shape[:-2]:
        a, b = (each.view(prod(batch), *each.shape[-2:]) for each in (a, b))
    if b.shape[-1] == 1:
        return _times_vector(work, a, b).view(*shape)
    plan = matmul.best_plan(prod(np.broadcast_shapes(a.shape[:-2], b.shape[:-2])), a.shape[-2], b.shape[-1], work.unit)
    return work.kernel([a, b], lambda A, B: matmul.compute(A, B, plan)).view(*shape)


def _times_vector(work: Work, a: Value, b: Value) -> Value:
    """Products of matrices and vectors: sums along rows."""
    sizes = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *a.shape[-2:])
    parts = Slices(sizes, (*[False] * (len(sizes) - 1), True))
    views = [a, b.view(*b.shape[:-2], 1, b.shape[-2])]

    def program(s: Slice, ins: Sequence[Any], outs: Sequence[Any]) -> None:
        def factor(place: int, at: Sequence[Expr]) -> Expr:
            return ins[place][tuple(0 if size == 1 else i for size, i in zip(views[place].shape, at, strict=True))]

        total = s.fold(lambda x, y: x + y, scalar.real(0), lambda at, lane: factor(0, at) * factor(1, at))
        s.put(outs[0], lambda lane: total[lane])

    return work.kernel(views, lambda *ins: slices.compute(ins, parts, work.unit, [(sizes[:-1], "float32")], program)[0])


def gemm(work: Work) -> list[Value] | None:
    """alpha A B + beta C, with A and B transposed on demand."""
    a, b = work.input(0), work.input(1)
    if a.dtype != "float32":
        return None
    a = movement.transposed(work, a, [1, 0]) if work.attribute("transA", 0) else a
    b = movement.transposed(work, b, [1, 0]) if work.attribute("transB", 0) else b
    result, alpha = product(work, a, b), float(work.attribute("alpha", 1.0))
    if work.has(2):
        beta = float(work.attribute("beta", 1.0))
        c = work.input(2)

        def combined(x: Expr, y: Expr) -> Expr:
            return x * scalar.real(alpha) + y * scalar.real(beta)

        return [arithmetic.apply(work, combined, [result, c], "float32", work.shape())]
    if alpha == 1.0:
        return [result]
    return [arithmetic.apply(work, lambda x: x * scalar.real(alpha), [result], "float32", work.shape())]


# -- Einsum


def einsum(work: Work) -> list[Value] | None:
    """Two operands at a time: transposes, a batch of matrix products, and a transpose back."""
    operands = work.inputs()
    if operands[0].dtype != "float32":
        return None
    labels, result = _labels(work.attribute("equation").replace(" ", ""), operands)
    sizes = {
        (name, size)
        for each, names in zip(operands, labels, strict=True)
        for name, size in zip(names, each.shape, strict=True)
    }
    if any(len(set(each)) < len(each) for each in labels) or len(dict(sizes)) < len(sizes):
        return None  # a diagonal, or an axis of one element that is broadcast
    value, names = operands[0], labels[0]
    for place in range(1, len(operands)):
        wanted = set(result).union(*labels[place + 1 :])
        value, names = _contracted(work, value, names, operands[place], labels[place], wanted)
    summed = [axis for axis, name in enumerate(names) if name not in result]
    value = axes.summed(work, value, summed)
    names = [name for name in names if name in result]
    return [movement.transposed(work, value, [names.index(name) for name in result])]


def _labels(equation: str, operands: Sequence[Value]) -> tuple[list[list[str]], list[str]]:
    """The label of every axis of the operands and the result; an ellipsis is numbers, counted from its end."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    spread = [len(each.shape) - len(term.replace("...", "")) for term, each in zip(terms, operands, strict=True)]

    def spelled(term: str, count: int) -> list[str]:
        before, dots, after = term.partition("...")
        return [*before, *([str(n) for n in range(count - 1, -1, -1)] if dots else []), *after]

    labels = [spelled(term, count) for term, count in zip(terms, spread, strict=True)]
    most = max(count for term, count in zip(terms, spread, strict=True) if "..." in term) if "..." in left else 0
    if arrow:
        return labels, spelled(right, most)
    letters = left.replace("...", "").replace(",", "")
    once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
    return labels, [*(str(n) for n in range(most - 1, -1, -1)), *once]


def _contracted(
    work: Work, a: Value, a_names: Sequence[str], b: Value, b_names: Sequence[str], wanted: set[str]
) -> tuple[Value, list[str]]:
    """The product of two arrays, summed over the labels that are not wanted any more."""
    for_a, for_b = set(a_names), set(b_names)
    a, a_names = _summed_alone(work, a, a_names, for_b | wanted)
    b, b_names = _summed_alone(work, b, b_names, for_a | wanted)
    sizes = dict(zip(a_names, a.shape, strict=True))
    sizes |= dict(zip(b_names, b.shape, strict=True))
    both = [name for name in a_names if name in b_names]
    batch, summed = [name for name in both if name in wanted], [name for name in both if name not in wanted]
    rows = [name for name in a_names if name not in both]
    columns = [name for name in b_names if name not in both]

    def matrices(value: Value, names: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Value:
        moved = movement.transposed(work, value, [names.index(name) for name in (*batch, *first, *second)])
        return moved.view(*(prod(sizes[name] for name in group) for group in (batch, first, second)))

    result = product(work, matrices(a, a_names, rows, summed), matrices(b, b_names, summed, columns))
    names = [*batch, *rows, *columns]
    return result.view(*(sizes[name] for name in names)), names


def _summed_alone(work: Work, value: Value, names: Sequence[str], kept: set[str]) -> tuple[Value, list[str]]:
    """An array summed over the labels that no one else has."""
    summed = [axis for axis, name in enumerate(names) if name not in kept]
    return axes.summed(work, value, summed), [name for name in names if name in kept]


OPERATORS = {"Einsum": einsum, "Gemm": gemm, "MatMul": matrix_product}
