"""Which hidden tensors of a student are compared with which of its teacher."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from nnc.errors import NncError
from nnc.measure import has_shape

#: Activations whose sign of the input decides whether a neuron is active.
_ACTIVATIONS = ("Clip", "LeakyRelu", "PRelu", "Relu")


@dataclass(frozen=True)
class Pair:
    """A tensor [N, narrow, H, W] of the student and one [N, wide, H, W] of the teacher."""

    student: str
    teacher: str
    narrow: int
    wide: int


def pairs(student: gs.Graph, teacher: gs.Graph, layers: Sequence[str]) -> list[Pair]:
    """The pairs that `layers` name, 'student=teacher' or one name for both; without names, chosen.

    Chosen are, of what an activation reads, the last tensor of each height and width that both networks have: that is
    where stages end. A name may be that of a node, for its first output. Raises NncError for one that isn't there and
    for tensors that differ in height or width.
    """
    own, other = _maps(student), _maps(teacher)
    if not layers:
        last = {_size(tensor): tensor for tensor in _before_activations(student)}
        taught = {_size(tensor): tensor for tensor in _before_activations(teacher)}
        named = {tensor.name: tensor for tensor in _before_activations(teacher)}
        chosen = [(own, named.get(own.name, taught.get(size))) for size, own in last.items()]
        found = [_pair(one, another) for one, another in chosen if another is not None and _size(one) == _size(another)]
        if not found:
            raise NncError("distill: student and teacher have no hidden layers of the same size", "name them: 'layers'")
        return found
    return [_pair(_named(one, own, "model"), _named(another, other, "teacher")) for one, another in _split(layers)]


def check_taught(teacher: gs.Graph, layers: Sequence[str]) -> None:
    """Raises NncError for a name in `layers` that the teacher doesn't have; passes may yet make the student's."""
    known = _maps(teacher)
    for _, name in _split(layers):
        _named(name, known, "teacher")


def _split(layers: Sequence[str]) -> list[tuple[str, str]]:
    """The names of student and teacher."""
    return [(name, equals[0] if equals else name) for name, *equals in (each.split("=", 1) for each in layers)]


def _maps(graph: gs.Graph) -> dict[str, gs.Tensor]:
    """Tensors [N, C, H, W] by their names and by those of the nodes that write them."""
    tensors = [each for node in graph.nodes for each in node.outputs if has_shape(each) and len(each.shape) == 4]
    nodes = {node.name: node.outputs[0] for node in graph.nodes if any(node.outputs[0] is each for each in tensors)}
    return nodes | {tensor.name: tensor for tensor in tensors}


def _before_activations(graph: gs.Graph) -> list[gs.Tensor]:
    read = [node.inputs[0] for node in graph.nodes if node.op in _ACTIVATIONS]
    return [tensor for tensor in read if has_shape(tensor) and len(tensor.shape) == 4]


def _size(tensor: gs.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape[2:])


def _named(name: str, known: dict[str, gs.Tensor], whose: str) -> gs.Tensor:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else "nnc inspect shows the layers"
        raise NncError(f"distill.layers: the {whose} has no layer '{name}' [N, C, height, width]", hint)
    return known[name]


def _pair(student: gs.Tensor, teacher: gs.Tensor) -> Pair:
    if _size(student) != _size(teacher):
        sizes = " and ".join("x".join(map(str, _size(each))) for each in (student, teacher))
        raise NncError(f"distill.layers: '{student.name}' and '{teacher.name}' are {sizes}, not of one size")
    return Pair(student.name, teacher.name, student.shape[1], teacher.shape[1])
