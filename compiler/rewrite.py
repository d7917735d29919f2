"""What a pass is, and the driver that applies the declarative ones.

The driver, not the author of a pass, owns single-reader checks, unique names, splicing, clean-up and topological order.
"""

import itertools
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from pydantic import BaseModel, ConfigDict

from nnc import graph as graphs
from nnc.pattern import Match, NoMatch, Op, match

Effect = Literal["exact", "approximate", "trained"]


class Context(Protocol):
    """What the pipeline gives a pass: see nnc.pipeline.Context."""

    def skip(self, node: gs.Node, reason: str) -> None:
        """Record a place that was considered and left alone."""


class Pass(BaseModel):
    """A graph transformation. Its fields are its recipe parameters: bounds and descriptions make the JSON Schema.

    The class variables `name` (in a recipe) and `effect` (what the pipeline proves or measures after it) are the rest
    of its interface; the docstring's first line is what `nnc passes` shows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: ClassVar[str]
    effect: ClassVar[Effect]

    def run(self, graph: gs.Graph, context: Context) -> int:
        """Change `graph` in place and return the number of places changed."""
        raise NotImplementedError

    def to_toml(self) -> str:
        """The pass as an entry of a recipe, every parameter spelled out."""
        parameters = self.model_dump(mode="json", exclude_none=True)
        lines = [f"{key} = {_toml(value)}" for key, value in {"name": self.name, **parameters}.items()]
        return "[[pass]]\n" + "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A JSON value in TOML: only tables are spelled differently."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


class PatternPass(Pass):
    """A pass that replaces every match of a pattern by what `rewrite` returns."""

    pattern: ClassVar[Op]

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def rewrite(self, match: Match) -> gs.Node | gs.Tensor:
        """The node (made with `node`) or the existing tensor that replaces the root's output.

        Raises NoMatch with a reason when the place must be left alone.
        """
        raise NotImplementedError

    def run(self, graph: gs.Graph, context: Context) -> int:
        return apply(self, graph, context)


def selected(name: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> bool:
    """Whether the globs of a pass select the node called `name`."""
    return any(fnmatchcase(name, glob) for glob in include) and not any(fnmatchcase(name, glob) for glob in exclude)


def node(
    op: str, *inputs: "gs.Tensor | gs.Node | np.ndarray | float | None", domain: str | None = None, **attrs: Any
) -> gs.Node:
    """A new node for `rewrite` to return. Arrays become constants, nodes are chained, None omits an optional input.

    Names are not given here: the driver names the node and its new tensors after the tensor that it replaces.
    """
    return gs.Node(op, attrs=attrs, inputs=[_tensor(value, op, i) for i, value in enumerate(inputs)], domain=domain)


def _tensor(value: "gs.Tensor | gs.Node | np.ndarray | float | None", op: str, index: int) -> gs.Tensor:
    if value is None:
        return gs.Variable.empty()
    if isinstance(value, gs.Node):
        if not value.outputs:
            value.outputs.append(_fresh())
        return value.outputs[0]
    if isinstance(value, gs.Tensor):
        return value
    return _FreshConstant(f"%{next(_serial)}", np.asarray(value))


class _FreshConstant(gs.Constant):
    """A constant that the driver has yet to name."""


def _fresh() -> gs.Variable:
    return gs.Variable(f"%{next(_serial)}")


_serial = itertools.count()
"""Numbers of tensors that the driver has yet to name: graphsurgeon compares tensors by name, so each needs its own."""


def apply(pass_: PatternPass, graph: gs.Graph, context: Context) -> int:
    """Rewrite every match in topological order, until nothing changes; returns the number of rewrites."""
    driver = Driver(graph)
    changed = 0
    while count := sum(_sweep(pass_, driver, context)):
        changed += count
        driver.tidy()
    return changed


def _sweep(pass_: PatternPass, driver: "Driver", context: Context) -> Iterator[int]:
    for root in list(driver.graph.nodes):
        if not pass_.pattern.fits(root) or not driver.holds(root):
            continue
        if not selected(root.name, pass_.include, pass_.exclude):
            context.skip(root, "excluded by the recipe")
            continue
        try:
            found = match(pass_.pattern, root, driver.accept)
            if found is not None:
                driver.replace(root, pass_.rewrite(found))
                yield 1
        except NoMatch as reason:
            context.skip(root, str(reason))


class Driver:
    """Edits a graph so that it stays valid: the one place that splices, names and cleans up."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self._ends = {id(tensor) for tensor in graph.outputs}
        self._tensor_names = set(graph.tensors()) | {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
        self._node_names = {node.name for node in graph.nodes}

    def holds(self, node: gs.Node) -> bool:
        """Whether `node` is still read by somebody; a rewrite earlier in the sweep may have orphaned it."""
        return any(tensor.outputs or id(tensor) in self._ends for tensor in node.outputs)

    def accept(self, found: Match) -> None:
        """Refuse a match whose interior values somebody else needs."""
        for inner in found.interior:
            for tensor in inner.outputs:
                if id(tensor) in self._ends:
                    raise NoMatch(f"'{tensor.name}' is an output of the graph")
                if len(tensor.outputs) > 1:
                    raise NoMatch(f"'{tensor.name}' has a second reader")
        for tensor in found.root.outputs[1:]:
            if tensor.outputs or id(tensor) in self._ends:
                raise NoMatch(f"'{tensor.name}', its further output, is read")

    def replace(self, root: gs.Node, new: gs.Node | gs.Tensor) -> None:
        """Let `new` produce what `root` did: the output tensor keeps its name, so readers and graph outputs stay."""
        if isinstance(new, gs.Tensor):
            self._redirect(root.outputs[0], new)
            return
        output = root.outputs[0]
        created = _chain(new)
        self._insert_before(root, created)
        root.outputs.clear()
        new.outputs = [output]
        for made in created:
            self._name(made, output.name, root.name)
        self._detach(root)

    def _insert_before(self, root: gs.Node, created: list[gs.Node]) -> None:
        position = next(index for index, other in enumerate(self.graph.nodes) if other is root)
        self.graph.nodes[position:position] = created

    def _redirect(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Every reader of `old` reads `new` instead."""
        if id(old) in self._ends:
            self._take_over(old, new)
            return
        for reader in list(old.outputs):
            replace_input(reader, old, new)
        self._detach(old.inputs[0])

    def _take_over(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """`old` is a graph output and keeps its name: the producer of `new` writes it directly."""
        if not new.inputs or id(new) in self._ends:
            raise NoMatch("joins two ends of the graph")
        self._detach(old.inputs[0])
        producer = new.inputs[0]
        for reader in list(new.outputs):
            replace_input(reader, new, old)
        producer.outputs[next(i for i, tensor in enumerate(producer.outputs) if tensor is new)] = old

    def _detach(self, dead: gs.Node) -> None:
        """Take a replaced node out, and with it the producers that only it read."""
        position = next((index for index, other in enumerate(self.graph.nodes) if other is dead), None)
        if position is not None:
            del self.graph.nodes[position]
        producers = [tensor.inputs[0] for tensor in dead.inputs if tensor.inputs]
        dead.inputs.clear()
        dead.outputs.clear()
        for producer in producers:
            if producer.outputs and not self.holds(producer):
                self._detach(producer)

    def _name(self, made: gs.Node, output: str, root: str) -> None:
        made.name = graphs.unique(root if made.outputs[0].name == output else f"{root}/{made.op}", self._node_names)
        for tensor in made.outputs:
            if tensor.name.startswith("%"):
                tensor.name = graphs.unique(f"{output}/{made.op}", self._tensor_names)
        for index, tensor in enumerate(made.inputs):
            if isinstance(tensor, _FreshConstant):
                tensor.name = graphs.unique(f"{made.outputs[0].name}.{_role(made, index)}", self._tensor_names)
                tensor.__class__ = gs.Constant

    def tidy(self) -> None:
        """Order the nodes and fill in the shapes of new tensors."""
        self.graph.toposort()
        graphs.infer_shapes(self.graph)


def replace_input(reader: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let `reader` read `new` wherever it read `old`."""
    for index, tensor in enumerate(reader.inputs):
        if tensor is old:
            reader.inputs[index] = new


def _chain(new: gs.Node) -> list[gs.Node]:
    """`new` and the fresh nodes below it, producers first."""
    below = {
        id(made): made
        for tensor in new.inputs
        if tensor.name.startswith("%") and tensor.inputs
        for made in _chain(tensor.inputs[0])
    }
    return [*below.values(), new]


def _role(made: gs.Node, index: int) -> str:
    """The standard's name of an input, such as W of Conv."""
    try:
        inputs = onnx.defs.get_schema(made.op, domain=made.domain or "").inputs
        return inputs[min(index, len(inputs) - 1)].name
    except onnx.defs.SchemaError:
        return str(index)
