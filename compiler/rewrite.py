"""What a pass is, and the driver that applies the declarative ones.

The driver, not the author of a pass, owns single-reader checks, unique names, splicing, clean-up and topological order.
"""

from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from pydantic import BaseModel, ConfigDict, Field

from nnc import graph as graphs
from nnc.context import Context
from nnc.errors import NncError
from nnc.pattern import Match, NoMatch, Pattern, match

Effect = Literal["exact", "approximate", "trained"]


class Pass(BaseModel):
    """A graph transformation. Its fields are its recipe parameters: bounds and descriptions make the JSON Schema.

    The class variables `name` (in a recipe) and `effect` (what the pipeline proves or measures after it) are the rest
    of its interface; the docstring's first line is what `nnc passes` shows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: ClassVar[str]
    effect: ClassVar[Effect]
    only_looks: ClassVar[bool] = False
    """Whether the pass is a check, which leaves every graph as it is."""
    quantizes: ClassVar[bool] = False
    """Whether the pass turns floats into integers; later passes find the graph before in `Context.unquantized`."""
    package: ClassVar[str | None] = None
    """A package that the pass needs and nnc doesn't bring along."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Keys of the recipe's [data] that the pass can't do without; `data_needed` where its parameters decide."""

    def data_needed(self) -> tuple[str, ...]:
        """Keys of the recipe's [data] that the pass can't do without, with the parameters that it has."""
        return self.needs

    def looks_back(self) -> bool:
        """Whether the pass reads earlier states of the graph: `Context.imported` or `Context.unquantized`."""
        return False

    def check(self, context: Context) -> None:
        """Raise NncError for what is wrong whatever the passes before make of `context.imported`, such as data.

        It is called before any of them runs.
        """
        for key in self.data_needed():
            if getattr(context, key) is None:
                raise NncError(f"needs {key} data", f"give it with --data {key}=PATH or in the recipe's [data]")

    def run(self, graph: gs.Graph, context: Context) -> int:
        """Change `graph` in place and return the number of places changed."""
        raise NotImplementedError


class PatternPass(Pass):
    """A pass that replaces every match of a pattern by what `rewrite` returns."""

    pattern: ClassVar[Pattern]

    include: tuple[str, ...] = Field(("*",), description="rewrite only at nodes whose name fits one of these globs")
    exclude: tuple[str, ...] = Field((), description="leave nodes alone whose name fits one of these globs")

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


class Draft(gs.Node):
    """A node that is not in a graph yet: its inputs do not know of it, so that it can be dropped without a trace."""

    def __init__(self, op: str, attrs: dict[str, Any], inputs: list["Value"], domain: str | None) -> None:
        super().__init__(op, attrs=attrs, domain=domain)
        self.drafted = inputs


Value: TypeAlias = gs.Tensor | Draft | np.ndarray | np.generic | float | None


def node(op: str, *inputs: Value, domain: str | None = None, **attrs: Any) -> Draft:
    """A new node for `rewrite` to return. Arrays become constants, nodes are chained, None omits an optional input.

    A Python float becomes a float32. Names are not given here: the driver names the node and its new tensors after the
    tensor that it replaces.
    """
    return Draft(op, attrs, list(inputs), domain)


def apply(pass_: PatternPass, graph: gs.Graph, context: Context) -> int:
    """Rewrite every match in topological order, until nothing changes; returns the number of rewrites."""
    driver = Driver(graph)
    changed = 0
    for _ in range(_MOST_SWEEPS):
        count, skipped = _sweep(pass_, driver)
        if not count:
            for left, reason in skipped:
                context.skip(left, reason)
            return changed
        changed += count
        driver.tidy()
    raise RuntimeError(f"after {_MOST_SWEEPS} sweeps it still finds matches: it rewrites its own results")


_MOST_SWEEPS = 1000


def _sweep(pass_: PatternPass, driver: "Driver") -> tuple[int, list[tuple[gs.Node, str]]]:
    """The number of rewrites, and what was left alone with the reasons."""
    count, skipped = 0, []
    for root in list(driver.graph.nodes):
        if not pass_.pattern.fits(root) or not driver.holds(root):
            continue
        if not selected(root.name, pass_.include, pass_.exclude):
            skipped.append((root, "excluded by the recipe"))
            continue
        try:
            found = match(pass_.pattern, root, driver.graph.opset, driver.accept)
            if found is not None:
                driver.replace(root, pass_.rewrite(found))
                count += 1
        except NoMatch as reason:
            if reason.args:
                skipped.append((root, str(reason)))
    return count, skipped


class Driver:
    """Edits a graph so that it stays valid: the one place that splices, names and cleans up.

    Until `tidy` is called the graph's list of nodes holds dead nodes and lacks new ones.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self._ends = {id(tensor) for tensor in graph.outputs}
        self._created: dict[int, list[gs.Node]] = {}  # id of a node -> the nodes that took its place

    @cached_property
    def _tensor_names(self) -> set[str]:
        return graphs.tensor_names(self.graph)

    @cached_property
    def _node_names(self) -> set[str]:
        return {node.name for node in self.graph.nodes}

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether the tensor is an output of the graph, which keeps its name."""
        return id(tensor) in self._ends

    def holds(self, node: gs.Node) -> bool:
        """Whether `node` is still read by somebody; a rewrite earlier in the sweep may have orphaned it."""
        return any(tensor.outputs or self.is_output(tensor) for tensor in node.outputs)

    def accept(self, found: Match) -> None:
        """Refuse a match whose interior values somebody else needs."""
        for inner in found.interior:
            for tensor in inner.outputs:
                if self.is_output(tensor):
                    raise NoMatch(f"'{tensor.name}' is an output of the graph")
                if len(tensor.outputs) > 1:
                    raise NoMatch(f"'{tensor.name}' has a second reader")
        for tensor in found.root.outputs[1:]:
            if tensor.outputs or self.is_output(tensor):
                raise NoMatch(f"'{tensor.name}', its further output, is read")

    def replace(self, root: gs.Node, new: gs.Node | gs.Tensor) -> None:
        """Let `new` produce what `root` did: the output tensor keeps its name, so readers and graph outputs stay."""
        output = root.outputs[0]
        if isinstance(new, Draft):
            root.outputs.clear()
            self._node_names.discard(root.name)  # the new node is called like the one that it replaces
            self._created[id(root)] = []
            self._create(new, output, root, {})
        elif isinstance(new, gs.Tensor):
            self.redirect(output, new)
        else:
            raise TypeError(
                f"rewrite must return a tensor, or a node made with nnc.rewrite.node, not {type(new).__name__}"
            )
        self.detach(root)

    def redirect(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Every reader of `old` reads `new` instead; when `old` is an output of the graph, `new` takes its name."""
        if self.is_output(old):
            self._take_over(old, new)
            return
        for reader in list(old.outputs):
            replace_input(reader, old, new)

    def _take_over(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """The producer of `new` writes the output `old` instead."""
        if not new.inputs or self.is_output(new):
            raise NoMatch(f"'{old.name}' is an output of the graph, and '{new.name}' can't take its name")
        producer = new.inputs[0]
        position = next(index for index, tensor in enumerate(producer.outputs) if tensor is new)
        old.inputs[0].outputs = [gs.Variable.empty() if tensor is old else tensor for tensor in old.inputs[0].outputs]
        for reader in list(new.outputs):
            replace_input(reader, new, old)
        producer.outputs[position] = old

    def detach(self, dead: gs.Node) -> None:
        """Take out a node that nobody reads, and with it the producers that only it read."""
        stack = [dead]
        while stack:
            node = stack.pop()
            producers = [tensor.inputs[0] for tensor in node.inputs if tensor.inputs]
            node.inputs.clear()
            node.outputs.clear()
            stack.extend(made for made in producers if made.outputs and not self.holds(made))

    def _create(self, draft: Draft, output: gs.Tensor, root: gs.Node, created: dict[int, gs.Tensor]) -> None:
        """Make the node that computes `output` in place of `root`, and before it the nodes that it reads."""
        name = graphs.unique(root.name if not created else f"{root.name}/{draft.op}", self._node_names)
        made = gs.Node(draft.op, name, draft.attrs, outputs=[output], domain=draft.domain)
        created[id(draft)] = output
        replaced = next(iter(created.values())).name
        for index, value in enumerate(draft.drafted):
            if isinstance(value, Draft) and id(value) not in created:
                below = gs.Variable(graphs.unique(f"{replaced}/{value.op}", self._tensor_names))
                self._create(value, below, root, created)
            made.inputs.append(self._tensor(value, f"{output.name}.{_role(made, index)}", created))
        self._created[id(root)].append(made)

    def _tensor(self, value: Value, name: str, created: dict[int, gs.Tensor]) -> gs.Tensor:
        if value is None:
            return gs.Variable.empty()
        if isinstance(value, gs.Tensor):
            return value
        if isinstance(value, Draft):
            return created[id(value)]
        values = np.float32(value) if isinstance(value, float) else value
        return self.constant(name, np.asarray(values))

    def constant(self, name: str, values: np.ndarray) -> gs.Constant:
        """A new constant, whose name is `name` where that is free."""
        return gs.Constant(graphs.unique(name, self._tensor_names), values)

    def append(self, node: gs.Node, op: str, operand: np.ndarray) -> None:
        """Let `op` of what `node` gives and an operand produce its output; the node keeps its name."""
        output = node.outputs[0]
        name = graphs.unique(f"{output.name}/{node.op}", self._tensor_names)
        node.outputs[0] = inner = gs.Variable(name, output.dtype, list(output.shape))
        made = gs.Node(op, graphs.unique(f"{node.name}/{op}", self._node_names), inputs=[inner], outputs=[output])
        made.inputs.append(self.constant(f"{output.name}.{_role(made, 1)}", operand))
        place = next(place for place, each in enumerate(self.graph.nodes) if each is node)
        self.graph.nodes.insert(place + 1, made)

    def tidy(self) -> None:
        """Put new nodes in their places, drop dead ones, and fill in the shapes of new tensors."""
        nodes: list[gs.Node] = []
        for node in self.graph.nodes:
            nodes.extend(self._created.pop(id(node), ()) if not node.outputs else (node,))
        self.graph.nodes = [node for node in nodes if node.outputs]
        graphs.sort(self.graph)
        for node in self.graph.nodes:
            if any(tensor.dtype is None or tensor.shape is None for tensor in node.outputs if tensor.name):
                graphs.infer_node(node, self.graph.opset)


def replace_input(reader: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let `reader` read `new` wherever it read `old`."""
    for index, tensor in enumerate(reader.inputs):
        if tensor is old:
            reader.inputs[index] = new


def _role(made: gs.Node, index: int) -> str:
    """The standard's name of an input, such as W of Conv."""
    try:
        inputs = onnx.defs.get_schema(made.op, domain=made.domain or "").inputs
        return inputs[min(index, len(inputs) - 1)].name
    except onnx.defs.SchemaError:
        return str(index)
