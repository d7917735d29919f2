"""Half precision: which nodes may compute in float16, the graph in which they do, and the one that libraries run."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.model.proto import is_standard

#: The largest finite float16.
LARGEST = float(np.finfo(np.float16).max)

#: What calibration data may reach of it: other data reaches more.
_HEADROOM = 4.0

#: The energy that weights may lose when small ones vanish, as a share.
_LOST = 1e-4

#: Sums of many values, powers and exponentials: what fits into float16 before them may not after them.
_SENSITIVE = (
    "CumSum", "Exp", "LRN", "LogSoftmax", "LpNormalization", "Pow", "ReduceL2", "ReduceLogSumExp", "ReduceProd",
    "ReduceSumSquare", "Softmax", "Softplus",
)  # fmt: skip

#: Operators that add up many values of one channel.
_SUMS = ("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum")

#: Attributes that fix the type of what an operator writes.
_TYPE_ATTRIBUTES = {"dtype", "output_dtype", "to"}

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def refusal(node: gs.Node, opset: int, largest: Mapping[str, float]) -> str | None:
    """Why a node must compute in float32, or None.

    `largest` has the largest magnitude of float32 tensors on calibration data by name, as far as it is known.
    """
    if not is_standard(node, node.op) or _holds_graphs(node) or not _slots(node, opset):
        return "there is no float16 for it in the ONNX standard"
    if any(is_standard(each, *_QUANTIZED) for each in _neighbours(node)):
        return "it is quantized"
    if is_standard(node, *_SENSITIVE):
        return f"{node.op} easily leaves the range of float16"
    if node.attrs.get("epsilon", 1.0) and not np.float16(node.attrs.get("epsilon", 1.0)):
        return f"its epsilon of {node.attrs['epsilon']:.1g} is 0 in float16"
    return _weights_refusal(node) or _values_refusal(node, largest)


def _holds_graphs(node: gs.Node) -> bool:
    return any(isinstance(value, gs.Graph) for value in node.attrs.values())


def _neighbours(node: gs.Node) -> list[gs.Node]:
    """The node, what writes its inputs and what reads its outputs."""
    before = [each for tensor in node.inputs for each in tensor.inputs]
    return [node, *before, *(each for tensor in node.outputs for each in tensor.outputs)]


def _weights_refusal(node: gs.Node) -> str | None:
    for tensor in node.inputs:
        if not isinstance(tensor, gs.Constant) or tensor.dtype != np.float32 or not tensor.values.size:
            continue
        values = tensor.values.astype(np.float64)
        if not np.abs(values).max() <= LARGEST:
            return f"'{tensor.name}' has values that float16 can't hold"
        lost = np.square(values - values.astype(np.float16)).sum()
        if lost > _LOST * np.square(values).sum():
            return f"the values of '{tensor.name}' are too small for float16"
    return None


def _values_refusal(node: gs.Node, largest: Mapping[str, float]) -> str | None:
    for tensor in (*node.inputs, *node.outputs):
        reached = largest.get(tensor.name, 0.0) * (_summed(node) if tensor in node.inputs else 1)
        if not reached * _HEADROOM <= LARGEST:
            told = f"a sum over '{tensor.name}'" if _summed(node) > 1 and tensor in node.inputs else f"'{tensor.name}'"
            return f"{told} may reach {reached:.1e} on the calibration data, too near to float16's {LARGEST:.0f}"
    return None


def _summed(node: gs.Node) -> int:
    """How many values an output of the node adds up, where it is one of those that only add up."""
    if not is_standard(node, *_SUMS):
        return 1
    if "kernel_shape" in node.attrs:
        return int(np.prod(node.attrs["kernel_shape"]))
    wide, narrow = (np.prod(tensor.shape or [1]) for tensor in (node.inputs[0], node.outputs[0]))
    return max(1, int(wide // max(1, narrow)))


@cache
def _types(op: str, opset: int) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Of every formal input and output, the name of its type and whether that can be float16."""
    schema = onnx.defs.get_schema(op, opset)
    takes, gives = (
        [(each.type_str, "tensor(float16)" in each.types) for each in side] for side in (schema.inputs, schema.outputs)
    )
    return takes, gives


def _slots(node: gs.Node, opset: int, dtypes: Sequence[object] | None = None) -> tuple[list[int], list[int]] | None:
    """The inputs and outputs of a node that become float16; None where none can.

    `dtypes` are the types of the inputs, where those are float16 already.
    """
    try:
        takes, gives = _types(node.op, opset)
    except onnx.defs.SchemaError:
        return None
    read = [tensor.dtype for tensor in node.inputs] if dtypes is None else dtypes
    inputs = [i for i, dtype in enumerate(read) if dtype == np.float32 and _formal(takes, i)[1]]
    types = {_formal(takes, i)[0] for i in inputs}
    made = [i for i, tensor in enumerate(node.outputs) if tensor.dtype == np.float32]
    outputs = [i for i in made if _formal(gives, i)[0] in types]
    return (inputs, outputs) if inputs else None


def _formal(formals: list[tuple[str, bool]], index: int) -> tuple[str, bool]:
    """The last one stands for all that follow."""
    return formals[min(index, len(formals) - 1)]


def cast(graph: gs.Graph, kept: Collection[int]) -> int:
    """Let every node compute in float16 but those whose ids are in `kept`; returns how many do.

    Inputs and outputs of the graph stay as they are. There is one Cast per tensor and direction.
    """
    return _Casting(graph).run(kept)


class _Casting:
    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.nodes: list[gs.Node] = []
        self.casts: dict[tuple[int, str], gs.Tensor] = {}
        self.ends = {id(tensor) for tensor in graph.outputs}
        self.names = graphs.tensor_names(graph)
        self.node_names = {node.name for node in graph.nodes}
        self.alive = [
            tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs)
        ]  # ids are good while their objects live

    def run(self, kept: Collection[int]) -> int:
        changed = 0
        read = [[tensor.dtype for tensor in node.inputs] for node in self.graph.nodes]
        for node, dtypes in zip(list(self.graph.nodes), read, strict=True):
            slots = None if id(node) in kept else _slots(node, self.graph.opset, dtypes)
            inputs, outputs = slots or ([], [])
            for index, tensor in enumerate(list(node.inputs)):
                if dtypes[index] == np.float32:
                    node.inputs[index] = self._as(tensor, np.float16 if index in inputs else np.float32)
            self.nodes.append(node)
            for index in outputs:
                self._halve(node, index)
            changed += bool(slots)
        self.graph.nodes = self.nodes
        return changed

    def _as(self, tensor: gs.Tensor, dtype: type) -> gs.Tensor:
        """The tensor in the type that a reader wants."""
        if tensor.dtype == dtype:
            return tensor
        key = id(tensor), np.dtype(dtype).name
        if key not in self.casts:
            self.casts[key] = self._cast(tensor, np.dtype(dtype))
        return self.casts[key]

    def _cast(self, tensor: gs.Tensor, dtype: np.dtype) -> gs.Tensor:
        name = graphs.unique(f"{tensor.name}/{dtype.name}", self.names)
        if isinstance(tensor, gs.Constant):
            return gs.Constant(name, tensor.values.astype(dtype))
        result = gs.Variable(name, dtype, tensor.shape)
        self._append(tensor, result)
        return result

    def _append(self, source: gs.Tensor, result: gs.Tensor) -> None:
        name = graphs.unique(f"{result.name}/Cast", self.node_names)
        to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(result.dtype))
        self.nodes.append(gs.Node("Cast", name, {"to": to}, inputs=[source], outputs=[result]))

    def _halve(self, node: gs.Node, index: int) -> None:
        """Let a node that is in `nodes` write float16; an output of the graph is cast back."""
        tensor = node.outputs[index]
        if id(tensor) not in self.ends:
            tensor.dtype = np.dtype(np.float16)
            return
        half = gs.Variable(graphs.unique(f"{tensor.name}/float16", self.names), np.dtype(np.float16), tensor.shape)
        node.outputs[index] = half
        self._append(half, tensor)
        self.casts[id(tensor), "float16"] = half


def executed(graph: gs.Graph, halves: bool) -> gs.Graph:
    """What a library runs on a unit that computes in float16 (`halves`), or does not.

    The graph itself where it can; otherwise a copy in which float32 takes the place of float16: every value is at least
    as exact, the Casts between the two go, and inputs and outputs of the graph keep their types. Networks that are
    quantized in part are copied too: channels of bytes and of float16 stand in blocks of different sizes.
    """
    if not has_halves(graph):
        return graph
    if halves and not any(is_standard(node, *_QUANTIZED) for node in graph.nodes):
        return graph
    copied = graphs.copy(graph)
    _Widening(copied).run()
    return copied


def has_halves(graph: gs.Graph) -> bool:
    """Whether any node reads or writes float16."""
    return any(_is_half(tensor) for node in graph.nodes for tensor in (*node.inputs, *node.outputs))


def _is_half(tensor: gs.Tensor) -> bool:
    return tensor.dtype is not None and np.dtype(tensor.dtype) == np.float16


class _Widening:
    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.nodes: list[gs.Node] = []
        self.wide: dict[int, gs.Tensor] = {}  # by id of a tensor, what is read instead of it
        self.given, self.ends = ({id(tensor) for tensor in side} for side in (graph.inputs, graph.outputs))
        self.names = graphs.tensor_names(graph)
        self.node_names = {node.name for node in graph.nodes}
        self.alive = [
            tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs)
        ]  # ids are good while their objects live

    def run(self) -> None:
        for tensor in self.graph.inputs:
            if _is_half(tensor) and tensor.outputs:
                self.wide[id(tensor)] = self._cast(tensor, self._variable(tensor))
        for node in list(self.graph.nodes):
            can_widen = any(map(_is_half, node.inputs)) and not node.attrs.keys() & _TYPE_ATTRIBUTES
            node.inputs = [self._read(tensor) for tensor in node.inputs]
            if not self._drop(node):
                self.nodes.append(node)
                for index, tensor in enumerate(node.outputs):
                    if _is_half(tensor):
                        self._widen(node, index, can_widen)
        self.graph.nodes = self.nodes

    def _drop(self, node: gs.Node) -> bool:
        """Take out a Cast that does nothing any more; whether it is one."""
        source, result = node.inputs[0], node.outputs[0]
        if not is_standard(node, "Cast") or source.dtype != np.float32 or isinstance(source, gs.Constant):
            return False
        is_end = id(result) in self.ends
        if not (_is_half(result) or result.dtype == np.float32) or (is_end and not self._can_be(source, result)):
            return False
        node.inputs.clear()
        node.outputs.clear()
        self.wide[id(result)] = source
        if is_end:
            self._replace(source, result)
        return True

    def _can_be(self, source: gs.Tensor, end: gs.Tensor) -> bool:
        """Whether the node that writes a tensor can write an output of the graph instead."""
        return end.dtype == np.float32 and bool(source.inputs) and id(source) not in self.ends

    def _replace(self, old: gs.Tensor, new: gs.Tensor) -> None:
        maker = old.inputs[0]
        maker.outputs = [new if each is old else each for each in maker.outputs]
        for reader in list(old.outputs):
            reader.inputs = [new if each is old else each for each in reader.inputs]
        self.wide = {key: new if each is old else each for key, each in self.wide.items()}

    def _widen(self, node: gs.Node, index: int, can_widen: bool) -> None:
        """Let a node that is in `nodes` write float32 instead of float16; what it can't is cast behind."""
        tensor = node.outputs[index]
        result = self._variable(tensor)
        if can_widen:
            node.outputs[index] = result
            if id(tensor) in self.ends:
                self._cast(result, tensor)
        elif tensor.outputs:
            self._cast(tensor, result)
        self.wide[id(tensor)] = result

    def _read(self, tensor: gs.Tensor) -> gs.Tensor:
        if isinstance(tensor, gs.Constant) and _is_half(tensor) and id(tensor) not in self.wide:
            name = graphs.unique(f"{tensor.name}/float32", self.names)
            self.wide[id(tensor)] = gs.Constant(name, tensor.values.astype(np.float32))
        return self.wide.get(id(tensor), tensor)

    def _variable(self, like: gs.Tensor) -> gs.Variable:
        return gs.Variable(graphs.unique(f"{like.name}/float32", self.names), np.dtype(np.float32), like.shape)

    def _cast(self, source: gs.Tensor, result: gs.Tensor) -> gs.Tensor:
        name = graphs.unique(f"{result.name}/Cast", self.node_names)
        to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(result.dtype))
        self.nodes.append(gs.Node("Cast", name, {"to": to}, inputs=[source], outputs=[result]))
        return result
