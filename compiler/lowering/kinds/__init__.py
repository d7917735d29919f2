"""The kinds of problems that schedules are chosen for, one class each, and their plans in JSON's types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nnc.lowering.kernels import conv2d, depthwise, expand, int8_conv2d, winograd
from nnc.lowering.kernels.convolution import Conv2d
from nnc.lowering.kernels.depthwise import Depthwise
from nnc.lowering.kernels.gemm import Gemm, GemmPlan
from nnc.lowering.kernels.int8_conv2d import Int8Conv2d
from nnc.lowering.kernels.int8_gemm import Int8Gemm
from nnc.lowering.kernels.registers import RegisterTile
from nnc.lowering.kinds.expansion import Expansion, Expansions
from nnc.lowering.kinds.floats import Convolutions, Depthwises, Products
from nnc.lowering.kinds.general import General, Generals, Trace
from nnc.lowering.kinds.integers import Int8Convolutions, Int8Products
from nnc.lowering.kinds.kind import Kind, Plan

KINDS: dict[type, Kind] = {
    Conv2d: Convolutions(),
    Depthwise: Depthwises(),
    Gemm: Products(),
    Int8Conv2d: Int8Convolutions(),
    Int8Gemm: Int8Products(),
    Expansion: Expansions(),
    General: Generals(),
}


def encoded(plan: Plan) -> dict[str, Any]:
    """A plan in JSON's types."""
    return {"template": _NAMES[type(plan)], **asdict(plan)}


def decoded(content: Mapping[str, Any]) -> Plan | None:
    try:
        fields = dict(content)
        template = _TEMPLATES[fields.pop("template")]
        if "tile" in fields:
            fields["tile"] = RegisterTile(**fields["tile"])
        if "expand" in fields:
            fields["expand"] = decoded({"template": "conv2d", **fields["expand"]})
        plan = template(**fields)
        hash(plan)  # a list, say, is no value of a field
        return plan
    except (KeyError, TypeError):
        return None


_TEMPLATES: dict[str, Any] = {
    "conv2d": conv2d.Plan,
    "winograd": winograd.Plan,
    "depthwise": depthwise.Plan,
    "gemm": GemmPlan,
    "int8_conv2d": int8_conv2d.Int8Plan,
    "expand_depthwise": expand.ExpandPlan,
    "general": Trace,
}
_NAMES = {template: name for name, template in _TEMPLATES.items()}
