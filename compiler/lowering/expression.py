"""What a kernel computes on each value before it stores it: a chain of elementwise steps, as data.

An Expression is hashable: kernels with equal problems and equal expressions share their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from nnc.lowering import scalar
from nnc.measure import scales_channels

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
    """Steps over `inputs` values.

    Slots 0 .. inputs - 1 are the inputs, then one slot per step; the last is the result.
    """

    inputs: int
    steps: tuple[Step, ...]

    def emit(self, values: Sequence[Any]) -> Any:
        """Emit the steps and return the result as a TIR expression, given those of the inputs."""
        from tvm.script.ir_builder import tirx as T

        slots = list(values)
        for step in self.steps:
            arguments = [slots[a] if isinstance(a, int) else scalar.real(a) for a in step.arguments]
            slots.append(T.bind(scalar.FUNCTIONS[step.op](*arguments, **dict(step.attributes))))
        return slots[-1]

    @property
    def is_finite(self) -> bool:
        """Whether finite inputs give finite results."""
        return all(step.op in scalar.FINITE for step in self.steps)


# Operators whose inputs are all values and whose attributes are those of the function.
_PLAIN = set(scalar.FUNCTIONS) - {"Affine", "Clip", "Dequantize", "Quantize"}
_SPECIAL = {"BatchNormalization", "Clip", "Conv", "DequantizeLinear", "Dropout", "QuantizeLinear"}


def is_elementwise(node: gs.Node) -> bool:
    """Whether a node computes every element of its one output from the elements at the same place, in float32."""
    if node.op not in _PLAIN | _SPECIAL or node.domain not in (None, "", "ai.onnx") or len(_used(node.outputs)) != 1:
        return False
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        return _is_fake_quantization(node)
    if node.op == "Conv" and not scales_channels(node):
        return False
    if node.op == "BatchNormalization" and not all(isinstance(t, gs.Constant) for t in node.inputs[1:5]):
        return False
    if node.op == "Clip" and not all(_is_scalar(tensor) for tensor in node.inputs[1:] if tensor.name):
        return False
    values = node.inputs[:1] if node.op in _SPECIAL else node.inputs
    # Broadcasting may only stretch operands, never add to the front of the first one.
    return (
        all(tensor.dtype == np.float32 for tensor in [*values, node.outputs[0]]) and node.outputs[0].shape is not None
    )


def _used(tensors: Sequence[gs.Tensor]) -> list[gs.Tensor]:
    return [tensor for tensor in tensors if tensor.name and (tensor.outputs or tensor is tensors[0])]


def _is_scalar(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) and tensor.values.size == 1


def _is_fake_quantization(node: gs.Node) -> bool:
    """Whether integers can stay float32: quantization with one scale, whose readers all dequantize."""
    if not all(_is_scalar(tensor) for tensor in node.inputs[1:]):
        return False
    if node.op == "DequantizeLinear":
        writers = node.inputs[0].inputs
        return bool(writers) and writers[0].op == "QuantizeLinear" and _is_fake_quantization(writers[0])
    readers = node.outputs[0].outputs
    dtype = np.dtype(node.outputs[0].dtype or np.uint8)
    return (
        dtype.itemsize == 1
        and bool(readers)
        and all(
            reader.op == "DequantizeLinear" and all(_is_scalar(tensor) for tensor in reader.inputs[1:])
            for reader in readers
        )
    )


class Builder:
    """Collects the steps of a group of nodes, and the operands that they read beside the group's own value."""

    def __init__(self, value: gs.Tensor | None, bias: gs.Tensor | np.ndarray | None = None) -> None:
        """`value` is the result of the group's root, None where the group has no root; `bias` is added to it first."""
        self._value = value
        self.operands: list[gs.Tensor | np.ndarray] = []
        self._steps: list[tuple[str, list[Any], dict[str, Any]]] = []
        self._results: dict[int, tuple[str, int]] = {}  # id of a tensor -> where it is
        if value is not None:
            self._results[id(value)] = "value", 0
        if value is not None and bias is not None:
            self._steps.append(("Add", [("value", 0), self._argument(bias, len(value.shape))], {}))
            self._results[id(value)] = "step", 0

    def add(self, node: gs.Node) -> None:
        """Append the steps of one elementwise node."""
        rank = len(node.outputs[0].shape)
        for op, arguments, attributes in _steps(node):
            resolved = [self._argument(argument, rank) for argument in arguments]
            self._steps.append((op, resolved, attributes))
        self._results[id(node.outputs[0])] = "step", len(self._steps) - 1

    def expression(self) -> Expression:
        first = 0 if self._value is None else 1
        inputs = first + len(self.operands)
        bases = {"value": 0, "operand": first, "step": inputs}

        def slot(argument: Any) -> Argument:
            return float(argument) if isinstance(argument, float) else bases[argument[0]] + argument[1]

        steps = tuple(
            Step(op, tuple(map(slot, arguments)), tuple(sorted(attributes.items())))
            for op, arguments, attributes in self._steps
        )
        return Expression(inputs, steps)

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
        for index, operand in enumerate(self.operands):
            if operand is argument:
                return "operand", index
        self.operands.append(argument)
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
    if node.op == "Dropout":
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
    bounds = [node.attrs.get("min", -np.inf), node.attrs.get("max", np.inf)]
    for index, tensor in enumerate(node.inputs[1:3]):
        if tensor.name or isinstance(tensor, gs.Constant):
            bounds[index] = tensor.values.reshape(())
    limit = np.finfo(np.float32).max
    return [float(np.clip(bound, -limit, limit)) for bound in bounds]


def _quantization(node: gs.Node) -> tuple[float, float]:
    """Scale and zero point."""
    zero = node.inputs[2].values.reshape(()) if len(node.inputs) > 2 and node.inputs[2].name else 0
    return float(node.inputs[1].values.reshape(())), float(zero)
