"""An ONNX graph as a torch module whose parameters are the graph's initializers, and back.

onnx2torch makes modules of ONNX files, too, but names parameters anew and has no way back into the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import nn

from nnc import graph as graphs
from nnc import measure
from nnc.errors import NncError
from nnc.model.proto import is_standard
from nnc.pattern import NoMatch
from nnc.training import elementwise, movement, windows
from nnc.training.site import BatchInside, Compute, Mode, Operator, Site, Tensor

OPERATORS: dict[str, Operator] = windows.OPERATORS | movement.OPERATORS | elementwise.OPERATORS


class GraphModule(nn.Module):
    """A graph that torch computes and trains: for any batch size, whatever the graph's own is.

    Learned float32 initializers are parameters under their own names, as in
    `dict(module.named_parameters())["conv1.weight"]`; the statistics of BatchNormalization and every other constant are
    buffers. Nodes that depend on constants and shapes alone are settings of those that read them.
    """

    def __init__(
        self,
        graph: gs.Graph,
        rules: Mapping[str, Operator] | None = None,
        learned: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """`rules` replace operators of the table; `learned` are further constants that are trained, by name, with what
        they start from. Raises NncError for a node that no operator fits, and for weights of another type than float32.
        """
        super().__init__()
        self.graph, self.mode, learned = graph, Mode(), dict(learned or {})
        self.inputs = [tensor.name for tensor in graph.inputs]
        self.outputs = [tensor.name for tensor in graph.outputs]
        table = OPERATORS | dict(rules or {})
        computed = _computed(graph)
        self._own = _own_statistics(graph)
        self._nodes = [(node, self._names(node), _compute(Site(node, graph, self.mode), table)) for node in computed]
        self._last = {name: node for node, names, _ in self._nodes for name in names}
        self._add_constants(learned)
        self._inside: BatchInside | None = None

    def _names(self, node: gs.Node) -> list[str]:
        """What the values are called that a node reads."""
        return [self._own.get((node.name, index), tensor.name) for index, tensor in enumerate(node.inputs)]

    def _add_constants(self, learned: Mapping[str, np.ndarray]) -> None:
        nodes = [node for node, _, _ in self._nodes]
        trained = {tensor.name for node in nodes for tensor in measure.parameters(node) if _is_learned(node)}
        for node, names, _ in self._nodes:
            for tensor, name in zip(node.inputs, names, strict=True):
                if not isinstance(tensor, gs.Constant) or name in self._parameters or name in self._buffers:
                    continue
                # torch's own register_parameter refuses the dots in the names that torch itself writes into ONNX.
                if name in learned or (name in trained and _floats(node, tensor)):
                    self._parameters[name] = nn.Parameter(torch.from_numpy(np.array(learned.get(name, tensor.values))))
                elif tensor.values.dtype.kind in "fiub":
                    self._buffers[name] = torch.from_numpy(np.array(tensor.values))

    def constant(self, name: str) -> Tensor:
        """A parameter or buffer by its name in the graph, which may hold dots."""
        found = self._parameters.get(name, self._buffers.get(name))
        assert found is not None, f"'{name}' is a constant of the graph"
        return found

    def train(self, mode: bool = True) -> GraphModule:
        """As torch's: BatchNormalization takes the statistics of the batch while training."""
        self.mode.normalizes = mode
        return super().train(mode)

    def forward(self, inputs: Mapping[str, Tensor], wanted: Iterable[str] = ()) -> dict[str, Tensor]:
        """The outputs of the graph and the tensors `wanted`, by name, from its inputs [batch, ...] by name.

        Where the graph makes views of a batch that is not in front, as attention does that puts the sequence there, it
        computes a batch of its own size at a time: torch does so for all of them at once. Raises NncError where it
        can't.
        """
        wanted = tuple(wanted)
        if self._inside is None:
            try:
                return self._run(inputs, wanted)
            except BatchInside as inside:
                self._inside = inside
        parts = self._parts(inputs, self._inside.node)
        found = torch.vmap(lambda part: self._run(part, wanted))(parts)
        return {name: each.flatten(0, 1) for name, each in found.items()}

    def _parts(self, inputs: Mapping[str, Tensor], view: gs.Node) -> dict[str, Tensor]:
        """Inputs [batches, batch, ...] of the batch size of the graph."""
        size = int(self.graph.inputs[0].shape[0])
        place, hint = f"'{view.name}': {view.op} of a batch that is not in front", "export the model with a batch of 1"
        normalizing = next((node.name for node, _, _ in self._nodes if node.op == "BatchNormalization"), None)
        if self.mode.normalizes and normalizing is not None:
            hint = "put fold-batchnorm before it"
            raise NncError(f"{place} can't be trained together with BatchNormalization '{normalizing}'", hint)
        if any(len(x) % size for x in inputs.values()):
            raise NncError(f"{place} can't be trained in batches that are no multiples of {size}", hint)
        return {name: x.reshape(-1, size, *x.shape[1:]) for name, x in inputs.items()}

    def _run(self, inputs: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
        values: dict[str, Any] = {**self._buffers, **self._parameters, **inputs}
        kept = {*self.outputs, *wanted}
        found = {name: values[name] for name in kept if name in inputs}
        for node, names, compute in self._nodes:
            results = compute(*(values.get(name) for name in names))
            for tensor, result in zip(
                node.outputs, results if isinstance(results, tuple) else (results,), strict=False
            ):
                values[tensor.name] = result
                if tensor.name in kept:
                    found[tensor.name] = result
            for name in names:  # autograd holds what it needs
                if self._last[name] is node and name not in self._parameters:
                    values.pop(name, None)
        return found

    def write_back(self) -> int:
        """Give the graph the trained values; returns how many constants changed.

        They keep their names, but for statistics that BatchNormalization shared with somebody: these become its own.
        """
        changed = self._write_statistics()
        for tensor in _constants(self.graph):
            trained = self._parameters.get(tensor.name, self._buffers.get(tensor.name))
            if trained is None or tuple(trained.shape) != tuple(tensor.shape) or tensor.dtype != np.float32:
                continue
            values = trained.detach().cpu().numpy()
            if not np.array_equal(values, tensor.values):
                tensor.values = np.array(values, np.float32)
                changed += 1
        return changed

    def _write_statistics(self) -> int:
        """Give BatchNormalization constants of its own where what it shared came to differ; returns how many."""
        changed = 0
        for node, _, _ in self._nodes:
            for index, tensor in enumerate(node.inputs):
                name = self._own.get((node.name, index))
                if name is None:
                    continue
                found = self.constant(name).cpu().numpy()
                if not np.array_equal(found, tensor.values):
                    node.inputs[index] = gs.Constant(name, np.array(found))
                    changed += 1
        return changed


def _own_statistics(graph: gs.Graph) -> dict[tuple[str, int], str]:
    """Names for means and variances of BatchNormalization that somebody else reads too, by node and input.

    Where batches are normalized, each follows its own; equal ones may have been merged.
    """
    taken = graphs.tensor_names(graph)
    reads = Counter(id(tensor) for node in graph.nodes for tensor in node.inputs)
    return {
        (node.name, index): graphs.unique(f"{tensor.name}.{node.name}", taken)
        for node in graph.nodes
        if node.op == "BatchNormalization"
        for index, tensor in enumerate(node.inputs)
        if index in (3, 4) and isinstance(tensor, gs.Constant) and reads[id(tensor)] > 1
    }


def _constants(graph: gs.Graph) -> list[gs.Constant]:
    found = {id(each): each for node in graph.nodes for each in node.inputs if isinstance(each, gs.Constant)}
    return list(found.values())


def _is_learned(node: gs.Node) -> bool:
    return node.op not in ("DequantizeLinear", "QuantizeLinear")


def _floats(node: gs.Node, tensor: gs.Constant) -> bool:
    """Whether a constant holds float32; another type of floats is refused."""
    if tensor.dtype in (np.float16, np.float64):
        kind = np.dtype(tensor.dtype).name
        raise NncError(
            f"'{node.name}': computes in {kind}, and training is in float32", "put cast-fp16 behind the training pass"
        )
    return bool(tensor.dtype == np.float32)


def _computed(graph: gs.Graph) -> list[gs.Node]:
    """The nodes that compute with what is not known beforehand: no sizes and indices made of shapes and constants."""
    known: set[int] = set()
    computed = []
    for node in graph.nodes:
        is_known = node.op == "Shape" or all(
            isinstance(each, gs.Constant) or each.is_empty() or id(each) in known for each in node.inputs
        )
        whole = all(each.dtype is not None and measure.numpy_dtype(each.dtype).kind in "iub" for each in node.outputs)
        if is_known and whole and node.op not in ("DequantizeLinear", "QuantizeLinear"):
            known.update(map(id, node.outputs))
        else:
            computed.append(node)
    return computed


def _compute(site: Site, table: Mapping[str, Operator]) -> Compute:
    operator = table.get(site.node.op) if is_standard(site.node, site.node.op) else None
    if operator is None:
        raise NncError(f"'{site.node.name}': no operator {site.node.op} can be trained", "train before it is put in")
    if not measure.has_shape(*(each for each in (*site.node.inputs, *site.node.outputs) if not each.is_empty())):
        raise NncError(f"'{site.node.name}': the shapes around {site.node.op} are not known")
    try:
        return operator(site)
    except NoMatch as reason:
        raise site.refused(str(reason)) from reason
