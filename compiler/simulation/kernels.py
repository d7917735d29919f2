"""What a compiled network executes and holds in memory: fused kernels, and the tensors alive between them."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_graphsurgeon as gs

from nnc import integers, measure

# Operators that a kernel's epilogue takes over: one output value per input value, or only another shape.
# fmt: off
_EPILOGUE = {
    "Abs", "Add", "BatchNormalization", "Cast", "Ceil", "Clip", "Div", "Dropout", "Elu", "Erf", "Exp", "Flatten",
    "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg",
    "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Reshape", "Round", "Selu", "Sigmoid", "Softplus",
    "Softsign", "Sqrt", "Squeeze", "Sub", "Swish", "Tanh", "Unsqueeze",
}
# fmt: on
_BYTES = {"int8", "uint8"}


@dataclass
class Kernel:
    """A node and the elementwise nodes that are computed while its output is still in registers."""

    nodes: list[gs.Node]
    activations: list[gs.Tensor]
    """Variables it reads from memory, each once."""
    weights: list[gs.Constant]
    outputs: list[gs.Tensor] = field(default_factory=list)
    wide: bool = False
    """Whether weights may be the sums of two bytes."""

    @property
    def anchor(self) -> gs.Node:
        return self.nodes[0]

    @property
    def macs(self) -> int:
        return sum(measure.macs(node) for node in self.nodes)

    @property
    def dtype(self) -> str:
        """Type of the arithmetic: "int8" where integers are multiplied or moved, otherwise the anchor's output's."""
        if isinstance(integers.layer(self.anchor, self.wide), integers.Layer):
            return "int8"
        moves = integers.is_move(self.anchor) and dtype_name(source(self.anchor.inputs[0])) in _BYTES
        return "int8" if moves else dtype_name(self.anchor.outputs[0])

    @property
    def spelled_dtype(self) -> str:
        """`dtype`, and that of the weights where a product of floats keeps them as integers."""
        return f"{self.dtype}, int8 weights" if integers.weights_of(self.anchor) else self.dtype

    @property
    def reason(self) -> str | None:
        """Why a layer next to integers does not multiply them."""
        found = integers.layer(self.anchor, self.wide)
        return found if isinstance(found, str) else None


@dataclass(frozen=True)
class Storage:
    """How the images between kernels are kept in memory."""

    pairs: Sequence[Collection[str]] = ()
    """Layers that one kernel computes, by the names of their nodes, two each: what is between them is in no memory."""
    blocks: Mapping[str, int] = field(default_factory=dict)
    """Channels per block, by the name of the image."""


def kernels(graph: gs.Graph, wide: bool = False, fused: bool = True) -> list[Kernel]:
    """The graph's nodes as fused kernels, in the graph's (topological) order.

    An elementwise node joins the last kernel that feeds it if nothing else reads that kernel's output. A
    DequantizeLinear belongs to its readers: they load the integers. Nodes of constants alone are computed at
    compile time. `wide`: whether the unit multiplies weights that are the sums of two bytes; `fused`: False for an
    engine that runs every node by itself.
    """
    readers = _readers(graph)
    made: list[Kernel] = []
    producer: dict[int, int] = {}  # id of a tensor in memory -> index of its kernel
    for node in graph.nodes:
        inputs = _distinct(source(tensor) for tensor in node.inputs if not tensor.is_empty())
        variables = [tensor for tensor in inputs if isinstance(tensor, gs.Variable)]
        if node.op == "DequantizeLinear" or not variables:
            continue
        weights = [tensor for tensor in inputs if isinstance(tensor, gs.Constant)]
        last = max((producer.get(id(tensor), -1) for tensor in variables), default=-1)
        follows = node.op in _EPILOGUE or measure.scales_channels(node)
        if fused and last >= 0 and follows and _takes(made[last], node, readers):
            _join(made[last], node, variables, weights)
        else:
            last = len(made)
            made.append(Kernel([node], variables, weights, list(node.outputs), wide))
        producer |= {id(tensor): last for tensor in node.outputs}
    return made


def _joined(executed: list[Kernel], pairs: Iterable[Collection[str]]) -> list[Kernel]:
    """The kernels, those as one whose nodes, by name, are of one pair: what is between them is in no memory."""
    pair_of = {name: index for index, names in enumerate(pairs) for name in names}
    made: list[Kernel] = []
    for kernel in executed:
        pair, before = pair_of.get(kernel.anchor.name), made[-1] if made else None
        if before is None or pair is None or pair != pair_of.get(before.anchor.name):
            made.append(kernel)
            continue
        read = [each for each in kernel.activations if not any(each is own for own in before.outputs)]
        made[-1] = replace(
            before,
            nodes=[*before.nodes, *kernel.nodes],
            activations=[*before.activations, *read],
            weights=[*before.weights, *kernel.weights],
            outputs=kernel.outputs,
        )
    return made


def peak_bytes(graph: gs.Graph, executed: list[Kernel], storage: Storage = Storage()) -> int:
    """The most bytes of activations that are alive while one kernel runs, inputs and outputs of the graph included.

    `executed` are its kernels, one per layer. The last block of an image may be partly empty.
    """
    executed = _joined(executed, storage.pairs)
    ends = {id(tensor): len(executed) for tensor in graph.outputs}
    for index, kernel in enumerate(executed):
        ends |= {id(tensor): max(index, ends.get(id(tensor), 0)) for tensor in kernel.activations}
    alive = {id(tensor): tensor_bytes(tensor) for tensor in graph.inputs}
    peak = sum(alive.values())
    for index, kernel in enumerate(executed):
        alive |= {id(tensor): _stored_bytes(tensor, storage.blocks.get(tensor.name, 1)) for tensor in kernel.outputs}
        peak = max(peak, sum(alive.values()))
        alive = {key: size for key, size in alive.items() if ends.get(key, -1) > index}
    return peak


def source(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor in memory that `tensor` is computed from while it is loaded: what DequantizeLinear reads."""
    producers = tensor.inputs
    if len(producers) == 1 and producers[0].op == "DequantizeLinear":
        return producers[0].inputs[0]
    return tensor


def tensor_bytes(tensor: gs.Tensor) -> int:
    """Bytes of the tensor; 0 where an operator nobody knows left its shape or type open."""
    return measure.tensor_bytes(tensor) if tensor.dtype is not None and measure.has_shape(tensor) else 0


def _stored_bytes(image: gs.Tensor, block: int) -> int:
    size = tensor_bytes(image)
    channels = image.shape[1] if size and block > 1 else 1
    return size // channels * math.ceil(channels / block) * block


def elements(tensor: gs.Tensor) -> int:
    """Values in the tensor; 0 where its shape is open."""
    return math.prod(tensor.shape) if tensor_bytes(tensor) else 0


def dtype_name(tensor: gs.Tensor) -> str:
    """numpy's name of the type; float32 where it is open."""
    return "float32" if tensor.dtype is None else measure.dtype_name(tensor.dtype)


def _readers(graph: gs.Graph) -> dict[int, int]:
    """By tensor in memory, how many nodes read it; the caller of the network counts as one."""
    counts = {id(tensor): 1 for tensor in graph.outputs}
    for node in graph.nodes:
        if node.op != "DequantizeLinear":
            for tensor in _distinct(map(source, node.inputs)):
                counts[id(tensor)] = counts.get(id(tensor), 0) + 1
    return counts


def _takes(kernel: Kernel, node: gs.Node, readers: dict[int, int]) -> bool:
    """Whether the node is the only reader of the kernel's output, and does not broadcast it."""
    output = kernel.outputs[0]
    alone = len(kernel.outputs) == 1 and readers.get(id(output)) == 1
    return alone and elements(output) == elements(node.outputs[0])


def _join(kernel: Kernel, node: gs.Node, variables: list[gs.Tensor], weights: list[gs.Constant]) -> None:
    others = [tensor for tensor in variables if tensor is not kernel.outputs[0]]
    kernel.nodes.append(node)
    kernel.activations = _distinct([*kernel.activations, *others])
    kernel.weights = _distinct([*kernel.weights, *weights])
    kernel.outputs = list(node.outputs)


def _distinct(tensors: Iterable[gs.Tensor]) -> list[gs.Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())
