"""What nnc computes itself: per operator, a function that appends the pieces of a node and returns its outputs.

A function returns None for what it leaves to TVM, and raises Refused for what can't be lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nnc.lowering.operators import (
    arithmetic,
    axes,
    convolution,
    integers,
    movement,
    pooling,
    products,
    resize,
    transposed,
)
from nnc.lowering.pieces import Value, Work

Operator = Callable[[Work], Sequence[Value] | None]

OPERATORS: dict[str, Operator] = {
    **arithmetic.OPERATORS,
    **axes.OPERATORS,
    **convolution.OPERATORS,
    **integers.OPERATORS,
    **movement.OPERATORS,
    **pooling.OPERATORS,
    **products.OPERATORS,
    **resize.OPERATORS,
    **transposed.OPERATORS,
}

MOVES = frozenset({
    "Cast", "CastLike", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "OneHot", "Pad", "Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that move values of any type without computing with them."""
