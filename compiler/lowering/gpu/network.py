"""network.json: what a runner does, in an order that a small reader in C, network_reader.h, can follow.

    {"inputs":  [{"name", "dtype", "shape", "bytes"}, ...],
     "outputs": [the same],
     "weights": bytes of weights.bin, "workspace": bytes of the activations,
     "steps":   [{"kernel": name, "grid": [x, y, z], "group": [x, y, z], "arguments": [...]},
                 {"copy": [rows, bytes, source stride, result stride], "arguments": [source, result]}]}

`grid` counts groups. An argument is [memory, index, offset, bytes]: so many bytes from an offset on of the weights,
of the workspace, or of the input or output with that index. Steps run one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from typing import Any

from nnc.lowering.gpu.device import Compiled
from nnc.lowering.program import Call, Constant, Copy, Plan, Program, Tensor

FILE = "network.json"


def describe(
    program: Program,
    plan: Plan,
    weights: int,
    compiled: Mapping[Hashable, Compiled],
) -> str:
    """The text of network.json, one step a line. `weights` are the bytes of weights.bin."""
    places = _Places(program, plan)
    steps = [each for step in program.steps for each in _steps(step, places, compiled)]
    head = {
        "inputs": [_described(name, tensor) for name, tensor in program.inputs.items()],
        "outputs": [_described(name, tensor) for name, tensor in program.outputs.items()],
        "weights": weights,
        "workspace": plan.bytes,
    }
    lines = [f'"{key}": {json.dumps(value)},' for key, value in head.items()]
    return "\n".join(["{", *lines, '"steps": [', ",\n".join(map(json.dumps, steps)), "]}\n"])


def _described(name: str, tensor: Tensor) -> dict[str, Any]:
    return {"name": name, "dtype": tensor.dtype, "shape": list(tensor.shape), "bytes": tensor.bytes}


class _Places:
    """Where operands lie."""

    def __init__(self, program: Program, plan: Plan) -> None:
        self._plan = plan
        self._callers: dict[int, tuple[str, int]] = {}
        for kind, tensors in (("input", program.inputs), ("output", program.outputs)):
            for index, tensor in enumerate(tensors.values()):
                self._callers.setdefault(id(tensor.root()[0]), (kind, index))

    def __call__(self, operand: Tensor | Constant) -> list[Any]:
        """[memory, index, offset, bytes]."""
        if isinstance(operand, Constant):
            return ["weights", 0, operand.offset, operand.bytes]
        root, offset = operand.root()
        if root.fixed:
            kind, index = self._callers[id(root)]
            return [kind, index, offset, operand.bytes]
        return ["workspace", 0, self._plan.offsets[id(root)] + offset, operand.bytes]


def _steps(step: Call | Copy, places: _Places, compiled: Mapping[Hashable, Compiled]) -> list[dict[str, Any]]:
    if isinstance(step, Copy):
        figures = [step.rows, step.bytes, step.source_stride, step.result_stride]
        return [{"copy": figures, "arguments": [places(step.source), places(step.result)]}]
    operands = [*step.operands, *step.results]
    return [
        {
            "kernel": launch.kernel,
            "grid": list(launch.grid),
            "group": list(launch.group),
            "arguments": [places(operands[index]) for index in launch.arguments],
        }
        for launch in compiled[step.key].launches
    ]
