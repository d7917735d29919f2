"""From operators of integers to QDQ, the one form in which the rest of nnc knows quantized networks.

onnxruntime.quantization, and those who export for onnxruntime, also write operators that read and write integers and
are told what these stand for. Each is an operator of floats between DequantizeLinear and QuantizeLinear:

QLinearConv(x, x_scale, x_zero, W, W_scale, W_zero, y_scale, y_zero, B)
  ->  QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(W), DequantizeLinear(B)), y_scale, y_zero)

where the steps of B are x_scale * W_scale. So it is with QLinearMatMul, and QGemm, QLinearAdd and others of the domain
com.microsoft. What moves integers moves what they stand for, and dynamic quantization scales its sums afterwards:

MaxPool(x)  ->  QuantizeLinear(MaxPool(DequantizeLinear(x)))
Mul(Cast(MatMulInteger(x, W, x_zero, W_zero)), Mul(x_scale, W_scale))
  ->  MatMul(DequantizeLinear(x, x_scale, x_zero), DequantizeLinear(W, W_scale, W_zero))

The sums are the same but for the rounding of floats, by which an integer may become its neighbour. Left as they are:
layouts with channels last, results without a zero point, which would tell their type, scales along more than one axis,
and sums of integers that nothing scales.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nnc.integers import MOVES
from nnc.model.proto import STANDARD_DOMAINS, opset, unique

_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class _Form:
    """What an operator is on floats, and where its inputs are."""

    op: str
    operands: tuple[int, ...]
    """Places of integers; their scale and zero point follow."""
    result: int
    """Place of the result's scale; its zero point follows."""
    axes: tuple[int | None, ...] = ()
    """By operand, what scales of several values are along."""
    bias: int | None = None
    before: tuple[int, ...] = ()
    """Places of what is no number and comes ahead of the operands."""


_STANDARD = {
    "QLinearConv": _Form("Conv", (0, 3), 6, (None, 0), bias=8),
    "QLinearMatMul": _Form("MatMul", (0, 3), 6, (-2, -1)),
}
_CONTRIBUTED = _STANDARD | {
    "QLinearAdd": _Form("Add", (0, 3), 6),
    "QLinearAveragePool": _Form("AveragePool", (0,), 3),
    "QLinearGlobalAveragePool": _Form("GlobalAveragePool", (0,), 3),
    "QLinearLeakyRelu": _Form("LeakyRelu", (0,), 3),
    "QLinearMul": _Form("Mul", (0, 3), 6),
    "QLinearSigmoid": _Form("Sigmoid", (0,), 3),
    "QLinearSoftmax": _Form("Softmax", (0,), 3),
    "QLinearWhere": _Form("Where", (1, 4), 7, before=(0,)),
}

# Sums of integers, and what they are on floats.
_SUMS = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}

# What a model has that has integers.
_MARKS = {*_CONTRIBUTED, "DynamicQuantizeLinear", "QGemm", "QLinearConcat", "QuantizeLinear"}


def as_qdq(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> None:
    """Rewrite the operators of integers in a model of opset 13 or newer, in place; its tensors keep their names.

    `weights` are the arrays of its initializers, which it may merely declare.
    """
    if any(node.op_type in _MARKS for node in model.graph.node):
        writer = _Writer(model, weights)
        for node in model.graph.node:
            writer.add(node)
        nodes = writer.nodes()
        del model.graph.node[:]
        model.graph.node.extend(nodes)


class _Writer:
    """The nodes of a model in their new form, one by one in the order of execution."""

    def __init__(self, model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> None:
        self._graph, self._opset = model.graph, opset(model)
        self._constants = dict(weights)
        names = (name for node in model.graph.node for name in (*node.input, *node.output))
        self._tensors = {*weights, *names, *(info.name for info in model.graph.input)}
        self._nodes: list[onnx.NodeProto] = []
        self._makers: dict[str, onnx.NodeProto] = {}
        self._superseded: set[str] = set()
        self._parameters: dict[str, tuple[str, str]] = {}  # by integers: scale and zero point
        self._values: dict[tuple[str, str, str, int | None], str] = {}  # by these: what the integers stand for

    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes, without those that were superseded and that nobody reads any more."""
        read = Counter(name for node in self._nodes for name in node.input)
        read.update(info.name for info in self._graph.output)
        kept = []
        for node in reversed(self._nodes):
            if self._superseded.issuperset(node.output) and not any(read[name] for name in node.output):
                read.subtract(node.input)
            else:
                kept.append(node)
        return kept[::-1]

    def add(self, node: onnx.NodeProto) -> None:
        """Append a node, or what takes its place."""
        form = _form(node)
        if not (node.output and all(node.output)):  # these operators leave none out
            self._nodes.append(node)
        elif form is not None and self._fits(node, form):
            self._write_layer(node, form)
        elif not self._write_scaled(node) and not self._write_move(node):
            self._keep(node)

    def _keep(self, node: onnx.NodeProto) -> None:
        """Append a node as it is, and note what it tells of the integers that it writes."""
        if _is_contributed_pair(node) and self._is_byte(_input(node, 2)):
            node.domain = ""  # which says the same of bytes
        self._nodes.append(node)
        self._makers.update((name, node) for name in node.output)
        if _is(node, "Constant") and (value := _attribute(node, "value", None)) is not None:
            self._constants[node.output[0]] = numpy_helper.to_array(value)
        elif _is(node, "QuantizeLinear"):
            self._parameters[node.output[0]] = _input(node, 1), _input(node, 2)
        elif _is(node, "DynamicQuantizeLinear") and len(node.output) == 3:
            self._parameters[node.output[0]] = node.output[1], node.output[2]

    # -- operators that are told what their integers stand for

    def _fits(self, node: onnx.NodeProto, form: _Form) -> bool:
        if _attribute(node, "channels_last", 0) or (_input(node, form.result) and not _input(node, form.result + 1)):
            return False
        most = 1
        for place, axis in zip_longest(form.operands, form.axes):
            scale = self._constants.get(_input(node, place + 1))
            if scale is not None and (scale.ndim > 1 or (scale.size != 1 and axis is None)):
                return False
            most = most if scale is None else max(most, scale.size)
        bias = None if form.bias is None else self._constants.get(_input(node, form.bias))
        return bias is None or bias.size >= most

    def _write_layer(self, node: onnx.NodeProto, form: _Form) -> None:
        triples = [tuple(_input(node, place + offset) for offset in range(3)) for place in form.operands]
        inputs = [_input(node, place) for place in form.before]
        inputs += [self._value(x, scale, zero, axis) for (x, scale, zero), axis in zip_longest(triples, form.axes)]
        if form.bias is not None and _input(node, form.bias):
            inputs.append(self._bias(node, _input(node, form.bias), [scale for _, scale, _ in triples]))
        scale, zero, result = _input(node, form.result), _input(node, form.result + 1), node.output[0]
        exact = self._unique(f"{result}/unrounded") if scale else result
        if form.op == "Softmax" and _attribute(node, "opset", self._opset) < 13:
            self._write_softmax_of_rows(node, inputs[0], exact)
        else:
            self._append(form.op, inputs, [exact], node)
        if scale:
            self._round(exact, scale, zero, result)

    def _write_softmax_of_rows(self, node: onnx.NodeProto, x: str, result: str) -> None:
        """Softmax as it was before opset 13: over all axes from one on."""
        rows, shape, shares = (self._unique(f"{result}/{name}") for name in ("rows", "shape", "shares"))
        self._append("Flatten", [x], [rows], axis=_attribute(node, "axis", 1))
        self._append("Softmax", [rows], [shares], axis=-1)
        self._append("Shape", [x], [shape])
        self._append("Reshape", [shares, shape], [result])

    def _bias(self, node: onnx.NodeProto, bias: str, scales: Sequence[str]) -> str:
        """The name of what the int32 of a bias stand for; their steps are those of the sums."""
        factors = [self._constants[name] for name in scales if name in self._constants]
        if len(factors) < len(scales):
            steps = self._unique(f"{bias}/scale")
            self._append("Mul", scales, [steps])
        else:
            values = np.float32(_attribute(node, "alpha", 1.0)) * np.multiply(*map(np.squeeze, factors))
            steps = self._constant(f"{bias}/scale", np.asarray(values, factors[0].dtype))
        return self._value(bias, steps, "", -1)

    # -- sums of integers that are scaled afterwards

    def _write_scaled(self, node: onnx.NodeProto) -> bool:
        """Whether a node scales sums of integers by what both operands' are worth; then it is a layer of floats."""
        if not _is(node, "Mul"):
            return False
        for place in (0, 1):
            cast, product = self._maker(_input(node, place), "Cast"), self._maker(_input(node, 1 - place), "Mul")
            integer = self._maker(_input(cast, 0), *_SUMS) if cast is not None else None
            if cast is None or product is None or integer is None or _attribute(cast, "to", 0) != TensorProto.FLOAT:
                continue
            if scales := self._scales(integer, [_input(product, 0), _input(product, 1)]):
                x = self._value(_input(integer, 0), scales[0], _input(integer, 2))
                W = self._value(_input(integer, 1), scales[1], _input(integer, 3), _weight_axis(integer))
                self._append(_SUMS[integer.op_type], [x, W], node.output, integer)
                self._superseded.update([*integer.output, *cast.output, *product.output])
                return True
        return False

    def _scales(self, integer: onnx.NodeProto, factors: Sequence[str]) -> tuple[str, str] | None:
        """Which of two factors is the scale of the data, and which that of the weights."""
        scale, zero = self._parameters.get(_input(integer, 0), ("", ""))
        if scale not in factors or zero != _input(integer, 2):
            return None
        other = factors[1] if factors[0] == scale else factors[0]
        weights = self._constants.get(other)
        # One by channel would be along the width of images.
        most = 1 if integer.op_type == "MatMulInteger" else 0
        return (scale, other) if weights is not None and (weights.size == 1 or weights.ndim <= most) else None

    # -- operators that move integers

    def _write_move(self, node: onnx.NodeProto) -> bool:
        """Whether a node moves integers that stand for something; then it moves that."""
        if not _is(node, *MOVES) or not self._commutes(node):
            return False
        count = MOVES[node.op_type] or len(node.input)
        data, others = node.input[:count], list(node.input[count:])
        found = {self._parameters.get(name, ("", "")) for name in data}
        scale, zero = found.pop() if len(found) == 1 else ("", "")
        if not self._is_number(scale) or not self._is_number(zero):
            return False
        if node.op_type == "Pad":
            others[1:2] = [self._padding(node, scale, zero)]
        exact = [self._unique(f"{name}/unrounded") for name in node.output]
        self._append(node.op_type, [*(self._value(name, scale, zero) for name in data), *others], exact, node)
        for value, result in zip(exact, node.output, strict=True):
            self._round(value, scale, zero, result)
        return True

    def _commutes(self, node: onnx.NodeProto) -> bool:
        """Whether a move of integers is one of what they stand for."""
        match node.op_type:
            case "MaxPool":  # whose indices are no values
                return len(node.output) == 1
            case "Pad":
                return not _input(node, 2) or self._is_number(_input(node, 2))
            case "Resize":  # which rounds pixels between others in its own way
                return bool(_attribute(node, "mode", b"nearest") == b"nearest")
        return True

    def _padding(self, node: onnx.NodeProto, scale: str, zero: str) -> str:
        """The name of the number that is put around what the integers stand for."""
        integer, step = self._constants.get(_input(node, 2), np.zeros(())), self._constants[scale].reshape(())
        offset = integer.reshape(()).astype(np.float64) - self._constants[zero].reshape(())
        return self._constant(f"{node.output[0]}/padding", np.asarray(offset * step, step.dtype))

    # -- pieces

    def _value(self, integers: str, scale: str, zero: str, axis: int | None = None) -> str:
        """The name of what integers stand for, which is written once; scales of several values are along `axis`."""
        is_one = self._is_number(scale) and (not zero or self._is_number(zero))
        axis = None if is_one else axis
        key = integers, scale, zero, axis
        if key not in self._values:
            self._values[key] = self._unique(f"{integers}/dequantized")
            rank = self._constants[integers].ndim if integers in self._constants else 0
            place = axis % rank if axis is not None and rank else axis
            inputs = [integers, *self._alike(scale, zero)]
            self._append("DequantizeLinear", inputs if zero else inputs[:2], [self._values[key]], axis=place)
        return self._values[key]

    def _alike(self, scale: str, zero: str) -> tuple[str, str]:
        """A scale and a zero point of one shape; one of them may be for all channels."""
        steps, offsets = self._constants.get(scale), self._constants.get(zero)
        if steps is None or offsets is None or steps.size == offsets.size:
            return scale, zero
        if offsets.size == 1:
            zero = self._constant(f"{zero}/spread", np.full(steps.shape, offsets.reshape(())))
        elif steps.size == 1:
            scale = self._constant(f"{scale}/spread", np.full(offsets.shape, steps.reshape(())))
        return scale, zero

    def _round(self, value: str, scale: str, zero: str, result: str) -> None:
        self._append("QuantizeLinear", [value, scale, zero], [result])
        self._nodes[-1].name = f"{result}/quantized"  # the operator that wrote it may be called like the result
        self._parameters[result] = scale, zero

    def _append(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        like: onnx.NodeProto | None = None,
        axis: int | None = None,
    ) -> None:
        """A node of the standard, called like `like` and with those of its attributes that it knows."""
        name = (like.name or like.output[0]) if like else ""
        node = helper.make_node(op, inputs, outputs, name, axis=axis)
        known = onnx.defs.get_schema(op, self._opset, "").attributes
        node.attribute.extend(each for each in (like.attribute if like else ()) if each.name in known)
        self._nodes.append(node)
        self._makers.update((name, node) for name in node.output)

    def _constant(self, name: str, values: np.ndarray) -> str:
        name = self._unique(name)
        self._constants[name] = values
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _unique(self, name: str) -> str:
        return unique(name, self._tensors)

    def _maker(self, name: str, *ops: str) -> onnx.NodeProto | None:
        """The node that computes a tensor, if it is one of these operators."""
        node = self._makers.get(name)
        return node if node is not None and _is(node, *ops) else None

    def _is_number(self, name: str) -> bool:
        return name in self._constants and self._constants[name].size == 1

    def _is_byte(self, name: str) -> bool:
        return name in self._constants and self._constants[name].dtype in (np.int8, np.uint8)


def _form(node: onnx.NodeProto) -> _Form | None:
    if node.domain in STANDARD_DOMAINS:
        return _STANDARD.get(node.op_type)
    if node.domain != _MICROSOFT:
        return None
    if node.op_type == "QGemm":
        return _Form("Gemm", (0, 3), 7, (None, 0 if _attribute(node, "transB", 0) else 1), bias=6)
    if node.op_type == "QLinearConcat":
        return _Form("Concat", tuple(range(2, len(node.input), 3)), 0)
    return _CONTRIBUTED.get(node.op_type)


def _is_contributed_pair(node: onnx.NodeProto) -> bool:
    return node.domain == _MICROSOFT and node.op_type in ("DequantizeLinear", "QuantizeLinear")


def _weight_axis(integer: onnx.NodeProto) -> int:
    """The axis of the weights that is the channels of a sum of integers."""
    return 0 if integer.op_type == "ConvInteger" else -1


def _is(node: onnx.NodeProto, *ops: str) -> bool:
    return node.op_type in ops and node.domain in STANDARD_DOMAINS


def _input(node: onnx.NodeProto, place: int) -> str:
    """The name of an input; nothing where it is left out."""
    return node.input[place] if place < len(node.input) else ""


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)
