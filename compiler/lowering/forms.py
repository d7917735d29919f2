"""Where the tensors of a graph are in memory, and in which forms: plain, or images in blocks of channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

import onnx_graphsurgeon as gs
from tvm import te

from nnc import integers
from nnc.lowering.kernels import relayout
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.program import Operand, Packed, Tensor
from nnc.lowering.shapes import shape_of
from nnc.lowering.templates import templates_of

PLAIN = 1  # the block of NCHW
Shape = tuple[int, ...]


class Forms(ABC):
    """The forms of tensors that are there; others are made of them on demand, once, by kernels that `call` appends."""

    def __init__(self, unit: Unit, block: int, layout: Mapping[str, int]) -> None:
        """`block` is how many channels of an image stand together, but for those images that `layout` names."""
        self.unit, self.block, self._layout = unit, block, layout
        self.templates = templates_of(unit)
        self._forms: dict[int, dict[int, Tensor]] = {}  # id of a graph tensor -> block -> tensor
        self._defined: list[gs.Tensor] = []  # ids are good while their objects live

    @abstractmethod
    def call(
        self,
        template: str,
        key: Hashable,
        nodes: list[str],
        op: str,
        operands: Sequence[Operand | Packed],
        results: Sequence[Tensor],
        compute: Callable[..., te.Tensor],
        layout: str,
    ) -> None:
        """Append a call of the kernel that `compute` builds from placeholders of the operands; equal keys share it.

        A sketch appends none, and packs and writes no weights.
        """

    @abstractmethod
    def elementwise(self, nodes: list[gs.Node]) -> None:
        """Compute a chain of elementwise nodes; alone, DequantizeLinear too."""

    def define(self, tensor: gs.Tensor, made: Tensor, block: int = PLAIN) -> None:
        """`tensor` is there, in blocks of `block` channels or plain."""
        self._forms.setdefault(id(tensor), {})[block] = made
        self._defined.append(tensor)

    def block_of(self, tensor: gs.Tensor) -> int:
        """How many channels of an image stand together where it is in blocks."""
        return self._layout.get(tensor.name, self.block)

    def has_blocks(self, tensor: gs.Tensor) -> bool:
        made = integers.dequantized(tensor)
        return self.block_of(tensor) in self._forms.get(id(tensor), {}) or (
            made is not None and self.has_blocks(made[0])
        )

    def read(self, tensor: gs.Tensor) -> Operand:
        """The plain form of a tensor or a constant."""
        if isinstance(tensor, gs.Constant):
            return tensor.values
        return self.plain(tensor)

    def plain(self, tensor: gs.Tensor) -> Tensor:
        forms = self._forms_of(tensor)
        if PLAIN not in forms:
            forms[PLAIN] = self._to_plain(next(iter(forms.values())), shape_of(tensor), tensor.name)
        return forms[PLAIN]

    def blocked(self, tensor: gs.Tensor, block: int | None = None) -> Tensor:
        """`[n, channels / block, height, width, block]` of an image; `block` is the image's unless it is given."""
        forms, block = self._forms_of(tensor), block or self.block_of(tensor)
        if block not in forms:
            forms[block] = self._to_blocked(self.plain(tensor), shape_of(tensor), tensor.name, block)
        return forms[block]

    def _forms_of(self, tensor: gs.Tensor) -> dict[int, Tensor]:
        """The forms of a tensor that are there, at least one."""
        if id(tensor) not in self._forms:
            self.elementwise([tensor.inputs[0]])
        return self._forms[id(tensor)]

    def _to_plain(self, source: Tensor, shape: Shape, name: str) -> Tensor:
        (n, channels, height, width), block = shape, source.shape[4]
        if height * width == 1 and (n == 1 or channels % block == 0):
            return source.view(shape)
        result = Tensor(shape, source.dtype)
        key = ("to_plain", shape, block, source.dtype)
        compute = partial(self.templates.relayout.to_plain, shape=shape, block=block, unit=self.unit)
        self.call("to_plain", key, [name], "", [source], [result], compute, f"NCHW{block}c")
        return result

    def _to_blocked(self, source: Tensor, shape: Shape, name: str, block: int) -> Tensor:
        blocked = relayout.blocked_shape(shape, block)
        if shape[2] * shape[3] == 1 and shape[1] % block == 0:
            return source.view(blocked)
        result = Tensor(blocked, source.dtype)
        key = ("to_blocked", shape, block, source.dtype)
        compute = partial(self.templates.relayout.to_blocked, shape=shape, block=block)
        self.call("to_blocked", key, [name], "", [source], [result], compute, f"NCHW{block}c")
        return result
