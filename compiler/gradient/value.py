"""Writing nodes as arithmetic on values: the language of the rules."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from nnc import graph as graphs


class Writer:
    """Appends nodes to a graph. The names of new nodes and tensors begin with `prefix`."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.prefix = "gradient"
        self._nodes = {node.name for node in graph.nodes}
        self._tensors = graphs.tensor_names(graph)

    def variable(self, name: str, dtype: np.dtype | None = None, shape: Sequence[int] | None = None) -> gs.Variable:
        """A new tensor, whose name is `name` where that is free."""
        return gs.Variable(graphs.unique(name, self._tensors), dtype, None if shape is None else list(shape))

    def constant(self, values: np.ndarray) -> "Value":
        return Value(self, gs.Constant(graphs.unique(f"{self.prefix}/constant", self._tensors), values))

    def node(self, op: str, operands: Sequence["Operand"], attrs: dict[str, Any], outputs: int) -> list["Value"]:
        """The outputs of a new node, whose first `outputs` outputs are made."""
        read = [each if isinstance(each, Value) else self.constant(each) for each in operands]
        written = [self.variable(f"{self.prefix}/{op}") for _ in range(outputs)]
        name = graphs.unique(f"{self.prefix}/{op}", self._nodes)
        node = gs.Node(op, name, attrs, [each.tensor for each in read], written)
        graphs.infer_node(node, self.graph.opset)
        self.graph.nodes.append(node)
        return [Value(self, tensor) for tensor in written]


class Value:
    """A tensor of a graph that a Writer writes. Operators work as in numpy, and append nodes.

    Comparisons give 1 and 0 in the dtype of the value: onnxruntime multiplies several times as fast as it selects.
    """

    def __init__(self, writer: Writer, tensor: gs.Tensor) -> None:
        self.writer, self.tensor = writer, tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.tensor.dtype)

    def __add__(self, other: "Number") -> "Value":
        return apply("Add", self, self._number(other))

    def __sub__(self, other: "Number") -> "Value":
        return apply("Sub", self, self._number(other))

    def __mul__(self, other: "Number") -> "Value":
        return apply("Mul", self, self._number(other))

    def __truediv__(self, other: "Number") -> "Value":
        return apply("Div", self, self._number(other))

    def __radd__(self, other: float) -> "Value":
        return self + other

    def __rsub__(self, other: float) -> "Value":
        return apply("Sub", self._number(other), self)

    def __rmul__(self, other: float) -> "Value":
        return self * other

    def __rtruediv__(self, other: float) -> "Value":
        return apply("Div", self._number(other), self)

    def __neg__(self) -> "Value":
        return apply("Neg", self)

    def __gt__(self, other: "Number") -> "Value":
        return apply("Greater", self, self._number(other)).cast(self.dtype)

    def __lt__(self, other: "Number") -> "Value":
        return apply("Less", self, self._number(other)).cast(self.dtype)

    def equals(self, other: "Value") -> "Value":
        """1 where the values are equal, 0 elsewhere."""
        return apply("Equal", self, other).cast(self.dtype)

    def cast(self, dtype: np.dtype) -> "Value":
        if self.dtype == dtype:
            return self
        return apply("Cast", self, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reshape(self, shape: Sequence[int]) -> "Value":
        return self if self.shape == tuple(shape) else apply("Reshape", self, np.array(shape, np.int64))

    def transpose(self, axes: Sequence[int]) -> "Value":
        return apply("Transpose", self, perm=list(axes))

    def broadcast(self, shape: Sequence[int]) -> "Value":
        return self if self.shape == tuple(shape) else apply("Expand", self, np.array(shape, np.int64))

    def sum(self, axes: Sequence[int]) -> "Value":
        """The sum over axes, which stay with one element."""
        if math.prod(self.shape[axis] for axis in axes) == 1:
            return self
        return apply("ReduceSum", self, np.array(axes, np.int64), keepdims=1)

    def mean(self, axes: Sequence[int]) -> "Value":
        return self.sum(axes) / float(math.prod(self.shape[axis] for axis in axes))

    def sum_to(self, shape: Sequence[int]) -> "Value":
        """The sum over the axes along which `shape` is broadcast to this shape."""
        more = len(self.shape) - len(shape)
        aligned = (1,) * more + tuple(shape)
        return self.sum([axis for axis, size in enumerate(aligned) if size == 1]).reshape(shape)

    def _number(self, other: "Number") -> "Value":
        return other if isinstance(other, Value) else self.writer.constant(np.array(other, self.dtype))


Number: TypeAlias = Value | float
Operand: TypeAlias = Value | np.ndarray


def apply(op: str, *operands: Operand, **attrs: Any) -> Value:
    """The first output of a new node; arrays become constants."""
    return _writer(operands).node(op, operands, attrs, 1)[0]


def apply_all(op: str, *operands: Operand, outputs: int, **attrs: Any) -> list[Value]:
    """The first `outputs` outputs of a new node."""
    return _writer(operands).node(op, operands, attrs, outputs)


def _writer(operands: Sequence[Operand]) -> Writer:
    return next(each.writer for each in operands if isinstance(each, Value))


def zeros(like: Value, shape: Sequence[int]) -> Value:
    """Zeros in the dtype of `like`, which no constant stores."""
    return apply("Expand", like.writer.constant(np.zeros((), like.dtype)), np.array(shape, np.int64))


def scatter_add(op: str, shape: Sequence[int], places: Value, g: Value, **attrs: Any) -> Value:
    """Zeros of a shape to which ScatterElements or ScatterND adds g; onnxruntime can't add in float16."""
    wide = g.cast(np.dtype(np.float32)) if g.dtype == np.float16 else g
    return apply(op, zeros(wide, shape), places, wide, reduction="add", **attrs).cast(g.dtype)


def exp(x: Value) -> Value:
    return apply("Exp", x)


def sqrt(x: Value) -> Value:
    return apply("Sqrt", x)


def sigmoid(x: Value) -> Value:
    return apply("Sigmoid", x)


def tanh(x: Value) -> Value:
    return apply("Tanh", x)
