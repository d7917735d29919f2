"""Static figures of a graph: parameters, bytes of weights, multiply-accumulates.

Only shapes and dtypes are read, so that weights which are still on disk stay there.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import onnx_graphsurgeon as gs

# Inputs that set an operator up instead of being learned: running statistics, scales and zero points, bounds.
_SETTINGS = {
    "BatchNormalization": {3, 4},
    "Clip": {1, 2},
    "ConvInteger": {2, 3},
    "DequantizeLinear": {1, 2},
    "MatMulInteger": {2, 3},
    "Pad": {1, 2, 3},
    "QuantizeLinear": {1, 2},
    "Resize": {1, 2, 3},
    "Upsample": {1},
}

# Types of which several values share a byte, with their bits.
_PACKED = {"float4_e2m1fn": 4, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2}

_INTEGERS = frozenset({int, np.int32, np.int64})

#: Products of matrices, of floats and of integers.
PRODUCTS = ("Gemm", "MatMul", "MatMulInteger")

# Layers that multiply, and those that own their constants, however small: a convolution into one channel has one bias.
_MULTIPLYING = ("Conv", "ConvInteger", "ConvTranspose", *PRODUCTS)
_LAYERS = {"BatchNormalization", "DequantizeLinear", "PRelu", *_MULTIPLYING}


@dataclass(frozen=True)
class Figures:
    """Static figures of a whole graph."""

    params: int
    """Learned values, each counted once; as published, BatchNormalization's running statistics are none of them."""
    weight_bytes: int
    """Bytes of all constants that nodes read, scales and statistics included; int4 is packed, two values in a byte."""
    macs: int
    nodes: int


def measure(graph: gs.Graph) -> Figures:
    """Figures of the graph, whose tensors have static shapes."""
    constants = {
        id(tensor): tensor for node in graph.nodes for tensor in node.inputs if isinstance(tensor, gs.Constant)
    }
    learned = {id(tensor): tensor for node in graph.nodes for tensor in parameters(node)}
    return Figures(
        params=sum(math.prod(tensor.shape) for tensor in learned.values()),
        weight_bytes=sum(tensor_bytes(tensor) for tensor in constants.values()),
        macs=sum(macs(node) for node in graph.nodes),
        nodes=len(graph.nodes),
    )


def macs(node: gs.Node) -> int:
    """Multiply-accumulates of a convolution or a product of matrices, padding included; 0 for other operators.

    Also 0 behind an operator that nobody knows, which leaves the shapes open.
    """
    if node.op not in _MULTIPLYING or not has_shape(*node.inputs[:2], *node.outputs):
        return 0
    read, weight, written = node.inputs[0].shape, node.inputs[1].shape, node.outputs[0].shape
    match node.op:
        case "Conv" | "ConvInteger":  # every output value is a sum over W[k] = (C / group, kernel...)
            return math.prod(written) * math.prod(weight[1:])
        case "ConvTranspose":  # every input value is spread over W[c] = (K / group, kernel...)
            return math.prod(read) * math.prod(weight[1:])
        case "Gemm":
            return math.prod(written) * read[0 if node.attrs.get("transA") else 1]
    return math.prod(written) * read[-1]


def params(node: gs.Node) -> int:
    """Learned values that the node reads, itself or through the DequantizeLinear nodes in front of it."""
    if node.op == "DequantizeLinear":
        return 0
    producers = [tensor.inputs[0] for tensor in node.inputs if tensor.inputs]
    readers = [node, *(producer for producer in producers if producer.op == "DequantizeLinear")]
    return sum(math.prod(tensor.shape) for reader in readers for tensor in parameters(reader))


def parameters(node: gs.Node) -> Iterator[gs.Constant]:
    """The learned constants among the node's inputs."""
    for index, tensor in enumerate(node.inputs):
        if not isinstance(tensor, gs.Constant) or index in _SETTINGS.get(node.op, ()):
            continue
        if node.op in _LAYERS or (_holds_weights(tensor) and math.prod(tensor.shape) > 1):
            yield tensor


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether learned values of this shape mix others, as kernels and matrices do.

    Biases, slopes and scales are a value per channel, however many axes of size 1 are around it.
    """
    return sum(size > 1 for size in shape) > 1


def scales_channels(node: gs.Node) -> bool:
    """Whether a node is a Conv that multiplies every channel by a number: what BatchNormalization becomes."""
    constant = all(isinstance(tensor, gs.Constant) or tensor.is_empty() for tensor in node.inputs[1:])
    if node.op != "Conv" or not constant or not has_shape(*node.inputs[:2], *node.outputs):
        return False
    (channels, depth, *kernel), group = node.inputs[1].shape, node.attrs.get("group", 1)
    moves = math.prod(kernel) != 1 or list(node.inputs[0].shape) != list(node.outputs[0].shape)
    pads = any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return depth == 1 and group == channels and not moves and not pads


def has_shape(*tensors: gs.Tensor) -> bool:
    """Whether the shape of every tensor is known in numbers."""
    return all(tensor.shape is not None and _INTEGERS.issuperset(map(type, tensor.shape)) for tensor in tensors)


def tensor_bytes(tensor: gs.Tensor) -> int:
    """Bytes of a tensor with a static shape; four-bit values are packed."""
    return math.ceil(math.prod(tensor.shape) * dtype_bits(tensor.dtype) / 8)


@cache
def dtype_bits(dtype: object) -> int:
    """Bits of one value of a numpy dtype or of an element type of ONNX."""
    kind = numpy_dtype(dtype)
    return _PACKED.get(kind.name, kind.itemsize * 8)


def numpy_dtype(dtype: object) -> np.dtype:
    """The numpy dtype of a tensor whose type graphsurgeon gives as numpy's or as a number of ONNX."""
    return onnx.helper.tensor_dtype_to_np_dtype(dtype) if isinstance(dtype, int) else np.dtype(dtype)  # type: ignore[call-overload]


@cache
def dtype_name(dtype: object) -> str:
    """numpy's name of a dtype or of an element type of ONNX; numpy takes microseconds to spell it."""
    return numpy_dtype(dtype).name


def _holds_weights(tensor: gs.Constant) -> bool:
    # Wide integers are shapes, axes and indices; a single number outside a layer is a factor such as 1/6.
    kind = numpy_dtype(tensor.dtype)
    return kind.kind in "fV" or (kind.itemsize == 1 and kind.kind in "iu")
