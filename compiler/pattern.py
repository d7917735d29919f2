"""The pattern language: what a rewrite looks for, written as the expression it replaces.

    op("BatchNormalization", op("Conv", ANY, const("W"), const("B", default=0.0), name="conv"), const("scale"), ...)

A pattern is matched backwards from its root, the last node. `match` returns a Match, or None when the graph looks
different there; a rewrite that matched but can't go on raises NoMatch with the reason. `|` joins alternatives.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from nnc.model import proto

COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "And", "Or", "Xor", "Equal"})


class NoMatch(Exception):
    """A place was considered and is left alone; the message says why and ends up in `nnc plan` and the report.

    Without a message nothing is reported: the place only looked like one.
    """


@dataclass
class Match:
    """What a pattern found: `match["W"]` is the array of a constant, `nodes["conv"]` a node, `tensors["x"]` a tensor.

    `interior` holds every node that was matched below the root: they disappear with the rewrite. `opset` is the
    model's: what operators there are.
    """

    root: gs.Node
    opset: int
    nodes: dict[str, gs.Node] = field(default_factory=dict)
    tensors: dict[str, gs.Tensor] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    interior: list[gs.Node] = field(default_factory=list)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def copy(self) -> "Match":
        """A match that alternatives can extend without disturbing each other."""
        return Match(
            self.root, self.opset, dict(self.nodes), dict(self.tensors), dict(self.values), list(self.interior)
        )


class Pattern:
    """Something that a tensor of the graph can match."""

    def matches(self, tensor: gs.Tensor | None, match: Match) -> Iterator[Match]:
        """Every way in which `tensor` (None: an omitted optional input) extends `match`."""
        raise NotImplementedError

    def matches_node(self, node: gs.Node, match: Match) -> Iterator[Match]:
        """Every way in which the pattern, with this node as its root, extends `match`."""
        return iter(())

    def fits(self, node: gs.Node) -> bool:
        """Whether `node` could be the root: its operator, domain and attributes fit; its inputs were not looked at."""
        return False

    def __or__(self, other: "Pattern") -> "Pattern":
        return _Either(self, other)


@dataclass(frozen=True)
class AnyTensor(Pattern):
    """Any tensor that is there, whatever produces it; under one name always the same tensor."""

    name: str | None = None

    def matches(self, tensor: gs.Tensor | None, match: Match) -> Iterator[Match]:
        if tensor is None or match.tensors.get(self.name or "", tensor) is not tensor:
            return
        yield _bound(match, tensors=(self.name, tensor)) if self.name else match


@dataclass(frozen=True)
class Const(Pattern):
    """A constant, bound as an array; with a default also an omitted optional input."""

    name: str
    default: Any = None

    def matches(self, tensor: gs.Tensor | None, match: Match) -> Iterator[Match]:
        if tensor is None and self.default is not None:
            yield _bound(match, values=(self.name, np.asarray(self.default, np.float32)))
        elif isinstance(tensor, gs.Constant):
            yield _bound(_bound(match, values=(self.name, tensor.values)), tensors=(self.name, tensor))


@dataclass(frozen=True)
class Number(Pattern):
    """A constant of one element with this value, within float32's rounding."""

    number: float

    def matches(self, tensor: gs.Tensor | None, match: Match) -> Iterator[Match]:
        if not isinstance(tensor, gs.Constant) or math.prod(tensor.shape) != 1:
            return
        if math.isclose(float(tensor.values.reshape(())), self.number, rel_tol=1e-6):
            yield match


@dataclass(frozen=True)
class Op(Pattern):
    """The first output of a node with this operator and these inputs."""

    types: tuple[str, ...]
    inputs: tuple[Pattern | EllipsisType, ...]
    name: str | None = None
    attrs: tuple[tuple[str, Any], ...] = ()

    def matches(self, tensor: gs.Tensor | None, match: Match) -> Iterator[Match]:
        if tensor is not None and tensor.inputs and tensor.inputs[0].outputs[0] is tensor:
            yield from self.matches_node(tensor.inputs[0], match)

    def matches_node(self, node: gs.Node, match: Match) -> Iterator[Match]:
        if not self.fits(node):
            return
        found = match.copy()
        if node is not match.root:
            found.interior.append(node)
        if self.name:
            found.nodes[self.name] = node
        for tensors in _orders(node, len(self.inputs)):
            yield from _all_inputs(self.inputs, tensors, found)

    def fits(self, node: gs.Node) -> bool:
        return proto.is_standard(node, *self.types) and all(node.attrs.get(key) == value for key, value in self.attrs)


@dataclass(frozen=True)
class _Through(Pattern):
    types: tuple[str, ...]
    inner: Pattern

    def matches(self, tensor: gs.Tensor | None, match: Match) -> Iterator[Match]:
        yield from self.inner.matches(tensor, match)
        for found in Op(self.types, (ANY, ...)).matches(tensor, match):
            yield from self.matches(found.interior[-1].inputs[0], found)


@dataclass(frozen=True)
class _Either(Pattern):
    first: Pattern
    second: Pattern

    def matches(self, tensor: gs.Tensor | None, match: Match) -> Iterator[Match]:
        yield from self.first.matches(tensor, match)
        yield from self.second.matches(tensor, match)

    def matches_node(self, node: gs.Node, match: Match) -> Iterator[Match]:
        yield from self.first.matches_node(node, match)
        yield from self.second.matches_node(node, match)

    def fits(self, node: gs.Node) -> bool:
        return self.first.fits(node) or self.second.fits(node)


ANY = AnyTensor()
"""Any tensor, not bound to a name."""


def var(name: str) -> AnyTensor:
    """Any tensor, bound as `match.tensors[name]`."""
    return AnyTensor(name)


def const(name: str, default: Any = None) -> Const:
    """A constant, bound as the array `match[name]`."""
    return Const(name, default)


def number(value: float) -> Number:
    """A constant of one element that is `value`."""
    return Number(value)


def op(types: str, *inputs: Pattern | EllipsisType, name: str | None = None, **attrs: Any) -> Op:
    """The output of a node of one of the operators in `types` ("Add|Sub"), with these inputs and attributes.

    A last `...`, and leaving the inputs out, stands for any inputs; commutative operators are tried in both orders.
    """
    return Op(tuple(types.split("|")), inputs or (...,), name, tuple(attrs.items()))


def through(types: str, inner: Pattern) -> Pattern:
    """`inner`, directly or with any number of nodes of the operators in `types` behind it, along their first inputs."""
    return _Through(tuple(types.split("|")), inner)


def match(
    pattern: Pattern, node: gs.Node, opset: int, accept: Callable[[Match], None] = lambda _: None
) -> Match | None:
    """The first way in which `pattern` fits with `node` as its root, in a model of this opset.

    `accept` may refuse a way by raising NoMatch; when all are refused the last reason is raised.
    """
    refused: NoMatch | None = None
    for found in pattern.matches_node(node, Match(node, opset)):
        try:
            accept(found)
        except NoMatch as reason:
            refused = reason
            continue
        return found
    if refused:
        raise refused
    return None


def _bound(match: Match, **binding: tuple[str, Any]) -> Match:
    found = match.copy()
    for kind, (name, value) in binding.items():
        getattr(found, kind)[name] = value
    return found


def _orders(node: gs.Node, wanted: int) -> Iterator[list[gs.Tensor | None]]:
    """The inputs as the patterns see them: omitted ones are None; both orders of a commutative operator."""
    tensors = [None if tensor.is_empty() else tensor for tensor in node.inputs]
    yield tensors
    if node.op in COMMUTATIVE and wanted == 2 and len(tensors) == 2:
        yield tensors[::-1]


def _all_inputs(
    patterns: tuple[Pattern | EllipsisType, ...], tensors: list[gs.Tensor | None], match: Match
) -> Iterator[Match]:
    """Every way in which all inputs fit; patterns that are left over must fit omitted inputs, and the reverse."""
    if not patterns:
        if all(tensor is None for tensor in tensors):
            yield match
        return
    first, *others = patterns
    if isinstance(first, EllipsisType):
        yield match
        return
    for found in first.matches(tensors[0] if tensors else None, match):
        yield from _all_inputs(tuple(others), tensors[1:], found)
