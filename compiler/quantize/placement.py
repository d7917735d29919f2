"""Which tensors of a network are quantized, and which of them share a scale."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc.integers import LAYERS, MOVES, PRODUCTS
from nnc.measure import has_shape
from nnc.model.proto import is_standard

#: Operators that compute on few values each: integers come in, and integers go out with a scale of their own.
ELEMENTWISE = (
    "Add", "AveragePool", "Clip", "Div", "Gelu", "GlobalAveragePool", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish",
    "Mul", "PRelu", "ReduceMean", "Relu", "Resize", "Sigmoid", "Sub", "Sum", "Swish", "Tanh",
)  # fmt: skip

#: Operators that cut off the values of others.
_BOUNDING = ("Clip", "Relu")


@dataclass(frozen=True)
class Placement:
    """What is quantized."""

    layers: list[gs.Node]
    """Layers that multiply integers."""
    products: list[gs.Node]
    """Layers that multiply floats with weights stored as integers."""
    groups: list[list[gs.Tensor]]
    """Activations and constants that are quantized, those together that share a scale; in order of execution."""
    refused: list[tuple[gs.Node, str]]
    """Layers that stay in floats, and why."""
    integer: frozenset[int]
    """Ids of the nodes that compute with integers."""
    moved: frozenset[int]
    """Ids of tensors that only hold values of others in their group."""

    @property
    def sources(self) -> list[gs.Variable]:
        """The tensors whose ranges decide the scales."""
        members = (tensor for group in self.groups for tensor in group if id(tensor) not in self.moved)
        return [tensor for tensor in members if isinstance(tensor, gs.Variable) and not made_of_integers(tensor)]


def place(
    graph: gs.Graph,
    refusal: Callable[[gs.Node], str | None] = lambda node: None,
    barred: Collection[str] = (),
    weight_only: Callable[[gs.Node], bool] = lambda node: False,
) -> Placement:
    """Decide what is quantized.

    `refusal` gives a reason to leave a layer in floats, or None; tensors whose names are in `barred` are not finite, so
    that layers that read them stay in floats, too. `weight_only` says whether a layer goes on reading floats.

    A tensor is where a layer reads it, or where an element-wise operator in reach of layers does: between a layer and
    the activation behind it none is. What only moves values keeps its scale. Without a layer that reads integers, none
    is anywhere.
    """
    layers: list[gs.Node] = []
    products: list[gs.Node] = []
    refused: list[tuple[gs.Node, str]] = []
    for node in graph.nodes:
        if is_standard(node, *LAYERS):
            alone = weight_only(node)
            own = _unfit_weights(node) if alone else _not_finite(node, barred)
            if reason := unfit(node) or refusal(node) or own or _infinite_weights(node):
                refused.append((node, reason))
            else:
                (products if alone else layers).append(node)
    if not layers:  # what is near the integers that the model came with stays as it is
        return Placement([], products, [], refused, frozenset(), frozenset())
    ends = {id(tensor) for tensor in graph.outputs}
    integer = _integer_nodes(graph, layers, ends)
    wanted = _wanted(graph, integer, barred)
    groups, moved = _groups(graph, wanted)
    return Placement(layers, products, groups, refused, frozenset(integer), moved)


def _not_finite(node: gs.Node, barred: Collection[str]) -> str | None:
    name = next((tensor.name for tensor in operands(node) if tensor.name in barred), None)
    return f"'{name}' is not finite on the calibration data" if name else None


def _infinite_weights(node: gs.Node) -> str | None:
    """That no scale holds all weights of a layer, if so."""
    weights = (tensor for tensor in node.inputs[:2] if isinstance(tensor, gs.Constant))
    name = next((tensor.name for tensor in weights if not _is_finite(tensor)), None)
    return f"'{name}' has values that are not finite" if name is not None else None


def _can_round(tensor: gs.Tensor, barred: Collection[str]) -> bool:
    if tensor.dtype != np.float32 or not has_shape(tensor) or tensor.name in barred:
        return False
    return not isinstance(tensor, gs.Constant) or _is_finite(tensor)


def _is_finite(constant: gs.Constant) -> bool:
    values = constant.values
    return bool(np.isfinite(values.min(initial=0.0)) and np.isfinite(values.max(initial=0.0)))


def unfit(node: gs.Node) -> str | None:
    """Why a layer can't be quantized, or None."""
    x, W = node.inputs[:2]
    if any(made_of_integers(tensor) for tensor in (W, *node.inputs[2:])) and (
        node.op != "MatMul" or made_of_integers(x) or isinstance(x, gs.Constant)
    ):
        return "it is quantized already"
    if not has_shape(x, W, *node.outputs):
        return "its shapes are not known"
    if x.dtype != np.float32 or W.dtype != np.float32:
        return f"it computes in {np.dtype(x.dtype).name}, not float32"
    if isinstance(x, gs.Constant) and isinstance(W, gs.Constant):
        return "it computes a constant, which fold-constants can do"
    if node.op != "MatMul" and not isinstance(W, gs.Constant):
        return "its weights are computed"
    if 0 in W.shape:
        return "it has no weights"
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return "its input is transposed"
    return None


def _unfit_weights(node: gs.Node) -> str | None:
    """Why the weights of a layer can't be quantized alone, or None."""
    if node.op not in PRODUCTS:
        return "only Gemm and MatMul have weight_only"
    if isinstance(node.inputs[1], gs.Constant):
        return None
    return "it is quantized already" if made_of_integers(node.inputs[1]) else "its weights are computed"


def made_of_integers(tensor: gs.Tensor) -> bool:
    """Whether a DequantizeLinear writes the tensor."""
    return bool(tensor.inputs) and is_standard(tensor.inputs[0], "DequantizeLinear")


def moves(node: gs.Node) -> list[gs.Tensor]:
    """The inputs whose values a node only moves; none for a node that does more."""
    if not is_standard(node, *MOVES) or node.outputs[0].dtype != np.float32:
        return []
    if node.op == "Resize" and node.attrs.get("mode", "nearest") != "nearest":
        return []
    if node.op == "Pad" and not _pads_zeros(node):
        return []
    return list(node.inputs)[: MOVES[node.op]]


def _pads_zeros(node: gs.Node) -> bool:
    if node.attrs.get("mode", "constant") != "constant" or len(node.inputs) < 3 or node.inputs[2].is_empty():
        return True
    return isinstance(node.inputs[2], gs.Constant) and not np.any(node.inputs[2].values)


def operands(node: gs.Node) -> list[gs.Tensor]:
    """The float inputs that a node computes with: not its weights, bias, bounds, axes or sizes."""
    if node.op in LAYERS:
        return [tensor for tensor in node.inputs[:2] if not isinstance(tensor, gs.Constant)]
    if node.op in ("Clip", "Resize", "ReduceMean"):
        return [node.inputs[0]]
    return [tensor for tensor in node.inputs if tensor.dtype == np.float32]


def _integer_nodes(graph: gs.Graph, layers: list[gs.Node], ends: set[int]) -> set[int]:
    """Ids of the nodes that compute with integers: layers, and element-wise operators near them."""
    integer = {id(node) for node in layers}
    read_by_layers = {id(tensor) for node in layers for tensor in operands(node)}
    from_integers: set[int] = set()
    for node in graph.nodes:
        inputs = moves(node) or operands(node)
        reached = any(id(tensor) in from_integers or id(tensor) in read_by_layers for tensor in inputs)
        near = any(made_of_integers(tensor) for tensor in inputs) or reached
        if id(node) not in integer and near and not moves(node):
            if not is_standard(node, *ELEMENTWISE) or node.outputs[0].dtype != np.float32:
                continue
            if not is_fused(node, ends):
                integer.add(id(node))
        if id(node) in integer or near:
            from_integers.update(id(tensor) for tensor in node.outputs)
    return integer


def is_fused(node: gs.Node, ends: set[int]) -> bool:
    """Whether a node works on the sums of the node before it, before anything rounds them.

    That is Relu and Clip behind a layer or an element-wise operator that nobody else reads, and the bias behind MatMul.
    """
    x = node.inputs[0] if not isinstance(node.inputs[0], gs.Constant) else node.inputs[-1]
    if not x.inputs or len(x.outputs) != 1 or id(x) in ends:
        return False
    maker = x.inputs[0]
    if node.op == "Add":
        return maker.op == "MatMul" and any(isinstance(tensor, gs.Constant) for tensor in node.inputs)
    bounded = all(isinstance(each, gs.Constant) or each.is_empty() for each in node.inputs[1:])
    return node.op in _BOUNDING and bounded and maker.op in (*LAYERS, *ELEMENTWISE) and maker.op not in _BOUNDING


def _wanted(graph: gs.Graph, integer: set[int], barred: Collection[str]) -> dict[int, gs.Tensor]:
    """The tensors that are quantized by id: what integer nodes read, and through moves what that is made of."""
    wanted: dict[int, gs.Tensor] = {}
    for node in reversed(graph.nodes):
        inputs = operands(node) if id(node) in integer else []
        if any(id(tensor) in wanted for tensor in node.outputs):
            inputs = inputs + moves(node)
        wanted |= {id(tensor): tensor for tensor in inputs if _can_round(tensor, barred)}
    return wanted


def _groups(graph: gs.Graph, wanted: dict[int, gs.Tensor]) -> tuple[list[list[gs.Tensor]], frozenset[int]]:
    """The wanted tensors in groups that moves tie together, and the ids of those that moves write.

    What is moved out of a tensor that can't be rounded has a range of its own, which may not be finite either.
    """
    of: dict[int, list[gs.Tensor]] = {}
    moved: set[int] = set()

    def group(tensor: gs.Tensor) -> list[gs.Tensor]:
        return of.setdefault(id(tensor), [tensor])

    for node in graph.nodes:
        for tensor in node.inputs:
            if id(tensor) in wanted:
                group(tensor)
        results = [tensor for tensor in node.outputs if id(tensor) in wanted]
        sources = moves(node)
        if not results or not sources or any(id(tensor) not in wanted for tensor in sources):
            continue
        moved.update(id(tensor) for tensor in results)
        for tensor in (*sources[1:], *results):
            _join(of, group(sources[0]), group(tensor))
    return list({id(members): members for members in of.values()}.values()), frozenset(moved)


def _join(of: dict[int, list[gs.Tensor]], kept: list[gs.Tensor], other: list[gs.Tensor]) -> None:
    if kept is not other:
        kept += other
        of.update((id(tensor), kept) for tensor in other)
