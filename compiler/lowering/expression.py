"""What a kernel computes on each value before it stores it: a chain of elementwise steps, as data.

An Expression is hashable: kernels with equal problems and equal expressions share their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from nnc import integers
from nnc.attributes import bounds
from nnc.integers import Quantization
from nnc.lowering import scalar
from nnc.measure import scales_channels
from nnc.model.proto import is_standard

Slot = int  # an input or an earlier step
Argument = Slot | float  # a float is a constant


@dataclass(frozen=True)
class Step:
    """One operator of `scalar.FUNCTIONS`."""

    op: str
    arguments: tuple[Argument, ...]
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Expression:
    """Steps in float32 over `inputs` values of any type.

    Slots 0 .. inputs - 1 are the inputs, then one slot per step; the last is the result, as `dtype`.
    """

    inputs: int
    steps: tuple[Step, ...]
    dtype: str = "float32"

    def emit(self, values: Sequence[Any]) -> Any:
        """Emit the steps and return the result as a TIR expression, given those of the inputs."""
        from tvm.script.ir_builder import tirx as T

        slots = [_as_float(value) for value in values]
        for step in self.steps:
            arguments = [slots[a] if isinstance(a, int) else scalar.real(a) for a in step.arguments]
            slots.append(T.bind(scalar.FUNCTIONS[step.op](*arguments, **dict(step.attributes))))
        if self.dtype.startswith("float"):
            return slots[-1].astype(self.dtype)
        return slots[-1].astype("int32").astype(self.dtype)

    @property
    def is_finite(self) -> bool:
        """Whether finite inputs give finite results: integers always are."""
        return not self.dtype.startswith("float") or all(step.op in scalar.FINITE for step in self.steps)


def _as_float(value: Any) -> Any:
    dtype = str(value.ty.dtype if hasattr(value, "ty") else value.dtype)  # of an expression, of an element in TE
    if dtype.startswith("float"):
        return value.astype("float32")
    return (value if dtype == "int32" else value.astype("int32")).astype("float32")


#: What kernels read and write as floats.
FLOATS = (np.float32, np.float16)

# Operators whose inputs are all values and whose attributes are those of the function.
_PLAIN = set(scalar.FUNCTIONS) - {"Affine", "Clip", "Dequantize", "Quantize", "Requantize"}
_SPECIAL = {"BatchNormalization", "Cast", "Clip", "Conv", "DequantizeLinear", "Dropout", "QuantizeLinear"}


def is_elementwise(node: gs.Node) -> bool:
    """Whether a node computes every element of its one output from the elements at the same place, in float32.

    What it reads and writes may be float16. QuantizeLinear is the last of a chain, or DequantizeLinear follows it.
    """
    if not is_standard(node, *_PLAIN, *_SPECIAL) or len(_used(node.outputs)) != 1:
        return False
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        return _is_rounding(node)
    if node.op == "Conv" and not scales_channels(node):
        return False
    if node.op == "BatchNormalization" and not all(isinstance(t, gs.Constant) for t in node.inputs[1:5]):
        return False
    if node.op == "Clip" and not all(_is_scalar(tensor) for tensor in node.inputs[1:] if tensor.name):
        return False
    values = node.inputs[:1] if node.op in _SPECIAL else node.inputs
    # What comes after the first input of a special operator are parameters, which `_steps` reads.
    return all(tensor.dtype in FLOATS for tensor in [*values, node.outputs[0]]) and node.outputs[0].shape is not None


def _used(tensors: Sequence[gs.Tensor]) -> list[gs.Tensor]:
    return [tensor for tensor in tensors if tensor.name and (tensor.outputs or tensor is tensors[0])]


def _float(tensor: gs.Tensor) -> str:
    """In which floats a value is stored."""
    return "float16" if tensor.dtype == np.float16 else "float32"


def _is_scalar(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) and tensor.values.size == 1


def _is_rounding(node: gs.Node) -> bool:
    """Whether a node is QuantizeLinear to bytes with one scale, or DequantizeLinear of what such a node writes."""
    if integers.of(node) is None:
        return False
    if node.op == "QuantizeLinear":
        return node.inputs[0].dtype == np.float32 and node.outputs[0].shape is not None
    writers = node.inputs[0].inputs
    return bool(writers) and writers[0].op == "QuantizeLinear" and _is_rounding(writers[0])


@dataclass(frozen=True)
class Rounding:
    """Relu and Clip before QuantizeLinear, which only make the limits of its integers narrower."""

    quantization: Quantization
    low: float
    high: float


def rounding(nodes: Sequence[gs.Node]) -> Rounding | None:
    """The rounding that the nodes after a layer are; None where they are more than that."""
    quantization = integers.of(nodes[-1]) if nodes and nodes[-1].op == "QuantizeLinear" else None
    if quantization is None or any(node.op not in ("Relu", "Clip") for node in nodes[:-1]):
        return None
    low, high = quantization.limits
    for node in nodes[:-1]:
        first, last = (
            np.clip(np.rint(bound / quantization.scale) + quantization.zero, low, high) for bound in bounds(node)
        )
        low, high = int(first), int(max(first, last))
    return Rounding(quantization, low, high)


class Builder:
    """Collects the steps of a group of nodes, and the operands that they read beside the group's own value."""

    def __init__(
        self,
        value: gs.Tensor | None,
        bias: gs.Tensor | np.ndarray | None = None,
        scale: np.ndarray | float | None = None,
    ) -> None:
        """`value` is the result of the group's root, None where the group has no root.

        `scale` is what integers of the root are worth; then `bias` is added.
        """
        self.operands: list[gs.Tensor | np.ndarray] = []
        self._integers = scale is not None
        self._dtype = "float32" if value is None else _float(value)
        self._has_value = value is not None
        self._steps: list[tuple[str, list[Any], dict[str, Any]]] = []
        self._results: dict[int, tuple[str, int]] = {}  # id of a tensor -> where it is
        if value is None:
            return
        self._results[id(value)] = "value", 0
        if scale is not None:
            self._append("Mul", [value, scale], value)
        if bias is not None:
            self._append("Add", [value, bias], value)

    @property
    def is_integer(self) -> bool:
        """Whether the steps so far end in integers."""
        return not self._dtype.startswith("float")

    def add(self, node: gs.Node) -> None:
        """Append the steps of one elementwise node."""
        for op, arguments, attributes in _steps(node):
            self._append(op, arguments, node.outputs[0], **attributes)
        quantization = integers.of(node) if node.op == "QuantizeLinear" else None
        self._dtype = quantization.dtype if quantization else _float(node.outputs[0])

    def requantize(self, value: gs.Tensor, rounding: Rounding) -> None:
        """Append the steps from the value of the root, in units of the result's scale, to integers."""
        limits = {"low": float(rounding.low), "high": float(rounding.high)}
        self._append("Requantize", [value, float(rounding.quantization.zero)], value, **limits)
        self._dtype = rounding.quantization.dtype

    def _append(self, op: str, arguments: Sequence[Any], result: gs.Tensor, **attributes: Any) -> None:
        rank = len(result.shape)
        resolved = [self._argument(argument, rank) for argument in arguments]
        self._steps.append((op, resolved, attributes))
        self._results[id(result)] = "step", len(self._steps) - 1

    def expression(self) -> Expression:
        first = 1 if self._has_value else 0
        inputs = first + len(self.operands)
        bases = {"value": 0, "operand": first, "step": inputs}

        def slot(argument: Any) -> Argument:
            return float(argument) if isinstance(argument, float) else bases[argument[0]] + argument[1]

        def step(op: str, arguments: Sequence[Any], attributes: dict[str, Any]) -> Step:
            if op == "Quantize" and self._integers:
                attributes = attributes | {"exact": False}
            return Step(op, tuple(map(slot, arguments)), tuple(sorted(attributes.items())))

        return Expression(inputs, tuple(step(*each) for each in self._steps), self._dtype)

    def _argument(self, argument: Any, rank: int) -> Any:
        """A float, or (kind, index)."""
        if isinstance(argument, gs.Constant):
            argument = argument.values
        if isinstance(argument, np.ndarray):
            if argument.size == 1:
                return float(argument.reshape(()))
            argument = argument.reshape((1,) * (rank - argument.ndim) + argument.shape)
        if isinstance(argument, float | int | np.number):
            return float(argument)
        if id(argument) in self._results:
            return self._results[id(argument)]
        made = None if isinstance(argument, np.ndarray) else integers.dequantized(argument)
        if made is None:
            return self._operand(argument)
        source, quantization = made
        self._integers = True
        resolved = [self._operand(source), quantization.scale, float(quantization.zero)]
        self._steps.append(("Dequantize", resolved, {}))
        self._results[id(argument)] = "step", len(self._steps) - 1
        return self._results[id(argument)]

    def _operand(self, tensor: gs.Tensor | np.ndarray) -> tuple[str, int]:
        for index, operand in enumerate(self.operands):
            if operand is tensor:
                return "operand", index
        self.operands.append(tensor)
        return "operand", len(self.operands) - 1


def _steps(node: gs.Node) -> list[tuple[str, list[Any], dict[str, Any]]]:
    """The steps of a node: operator, arguments (tensors, arrays and floats) and attributes."""
    x = node.inputs[0]
    if node.op == "BatchNormalization":
        return [("Affine", [x, *_affine(node)], {})]
    if node.op == "Conv":
        constants = [tensor.values for tensor in node.inputs[1:] if not tensor.is_empty()]
        scale, *shift = (values.reshape(1, -1, *[1] * (len(x.shape) - 2)) for values in constants)
        return [("Affine", [x, scale, shift[0]], {})] if shift else [("Mul", [x, scale], {})]
    if node.op == "Clip":
        return [("Clip", [x, *_bounds(node)], {})]
    if node.op in ("Cast", "Dropout"):
        return [("Identity", [x], {})]
    if node.op == "QuantizeLinear":
        limits = np.iinfo(node.outputs[0].dtype or np.uint8)
        scale, zero = _quantization(node)
        return [("Quantize", [x, scale, zero], {"low": float(limits.min), "high": float(limits.max)})]
    if node.op == "DequantizeLinear":
        return [("Dequantize", [x, *_quantization(node)], {})]
    return [(node.op, list(node.inputs), _attributes(node))]


def _attributes(node: gs.Node) -> dict[str, Any]:
    return {key: value for key, value in node.attrs.items() if key not in ("axis", "consumed_inputs")}


def _affine(node: gs.Node) -> tuple[np.ndarray, np.ndarray]:
    """BatchNormalization as scale and shift, `[1, channels, 1, ...]`, computed in float64."""
    gamma, beta, mean, var = (tensor.values.astype(np.float64) for tensor in node.inputs[1:5])
    scale = gamma / np.sqrt(var + node.attrs.get("epsilon", 1e-5))
    shape = (1, -1) + (1,) * (len(node.inputs[0].shape) - 2)
    return scale.astype(np.float32).reshape(shape), (beta - mean * scale).astype(np.float32).reshape(shape)


def _bounds(node: gs.Node) -> list[float]:
    limit = np.finfo(np.float32).max
    return [float(np.clip(bound, -limit, limit)) for bound in bounds(node)]


def _quantization(node: gs.Node) -> tuple[float, float]:
    """Scale and zero point."""
    zero = node.inputs[2].values.reshape(()) if len(node.inputs) > 2 and node.inputs[2].name else 0
    return float(node.inputs[1].values.reshape(())), float(zero)
