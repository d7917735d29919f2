"""fuse-gates: x times a gate that depends on x alone has an operator of its own."""

import math
from typing import Any, ClassVar

import onnx_graphsurgeon as gs

from nnc.pattern import Match, NoMatch, Pattern, number, op, var
from nnc.rewrite import Effect, PatternPass, node

#: Operator -> the opset that has it first, and its attributes.
_OPERATORS: dict[str, tuple[int, dict[str, Any]]] = {
    "Gelu": (20, {}),
    "HardSigmoid": (6, {"alpha": 1 / 6, "beta": 0.5}),
    "HardSwish": (14, {}),
    "Mish": (18, {}),
    "Swish": (24, {}),
}

_X = var("x")
_ONE_PLUS_ERF = op(
    "Add", op("Erf", op("Div", _X, number(math.sqrt(2))) | op("Mul", _X, number(math.sqrt(0.5)))), number(1)
)
_SHIFTED_RELU6 = op("Clip", op("Add", _X, number(3)), number(0), number(6))


class FuseGates(PatternPass):
    """Fuse x times a gate of x into HardSwish, Gelu, Mish or Swish, and the steps of a gate into HardSigmoid.

    Div(Clip(Add(x, 3), 0, 6), 6)  ->  HardSigmoid(x, alpha=1/6, beta=1/2)
    Mul(x, HardSigmoid(x, alpha=1/6, beta=1/2))  ->  HardSwish(x)
    Mul(x, Sigmoid(x))  ->  Swish(x)

    Exact. Declines where the model's opset does not have the operator (HardSwish 14, Mish 18, Gelu 20, Swish 24), and
    where a value between has another reader.

    Reference: Howard et al., Searching for MobileNetV3, https://arxiv.org/abs/1905.02244, section 5.2; Hendrycks and
    Gimpel, https://arxiv.org/abs/1606.08415; Misra, https://arxiv.org/abs/1908.08681.
    """

    name: ClassVar[str] = "fuse-gates"
    effect: ClassVar[Effect] = "exact"
    pattern: ClassVar[Pattern] = (
        op("Mul", _X, op("HardSigmoid", _X, name="gate"), name="HardSwish")
        | op("Div", op("Mul", _X, _SHIFTED_RELU6), number(6), name="HardSwish")
        | op("Mul", op("Mul", _X, _SHIFTED_RELU6), number(1 / 6), name="HardSwish")
        | op("Div", _SHIFTED_RELU6, number(6), name="HardSigmoid")
        | op("Mul", _SHIFTED_RELU6, number(1 / 6), name="HardSigmoid")
        | op("Mul", op("Mul", _X, _ONE_PLUS_ERF), number(0.5), name="Gelu")
        | op("Mul", _X, op("Mul", _ONE_PLUS_ERF, number(0.5)), name="Gelu")
        | op("Mul", op("Mul", _X, number(0.5)), _ONE_PLUS_ERF, name="Gelu")
        | op("Mul", _X, op("Tanh", op("Softplus", _X)), name="Mish")
        | op("Mul", _X, op("Sigmoid", _X), name="Swish")
    )

    def rewrite(self, match: Match) -> gs.Node:
        x = match.tensors["x"]
        (operator,) = match.nodes.keys() & _OPERATORS.keys()
        opset, attrs = _OPERATORS[operator]
        if match.opset < opset:
            raise NoMatch(f"{operator} needs opset {opset}; the model is at {match.opset}")
        if x.shape is None or x.shape != match.root.outputs[0].shape:
            raise NoMatch("a constant makes its shape grow")
        if "gate" in match.nodes and not _is_hardswish(match.nodes["gate"]):
            raise NoMatch("its HardSigmoid is not that of HardSwish")
        return node(operator, x, **attrs)


def _is_hardswish(gate: gs.Node) -> bool:
    alpha, beta = gate.attrs.get("alpha", 0.2), gate.attrs.get("beta", 0.5)
    return math.isclose(alpha, 1 / 6, rel_tol=1e-6) and math.isclose(beta, 0.5, rel_tol=1e-6)
