"""The constants of a program in its library: as kernels read them, or packed (nnc.packing)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from nnc import packing
from nnc.digests import array_bytes
from nnc.errors import NncError
from nnc.lowering.program import Constant

#: What code can reach from where it is, with room for the code.
_MOST_BYTES = 2**31 - 2**26

_FILE = "weights.bin"

_SOURCE = f""".section .rodata
.balign 4096
.globl nnc_weights
.hidden nnc_weights
nnc_weights:
.incbin "{_FILE}"
.byte 0
.section .note.GNU-stack, "", %progbits
"""


class Weights:
    """Constants, written into `folder`/weights.bin one by one so that they are never all in memory; equal ones once.

    Those that layers named in `packed` read are packed where that makes them smaller; `alignment` is what kernels want.
    """

    def __init__(self, folder: Path, packed: frozenset[str], alignment: int) -> None:
        self.bytes = 0
        """Of the constants that were placed, padding not included."""
        self.file_bytes = 0
        """What they take in the file."""
        self._folder, self._packed, self._alignment = folder, packed, alignment
        self._unpacked_bytes = 0
        self._pieces: list[str] = []
        self._places: dict[tuple[int, bytes], tuple[str, int]] = {}  # size and digest -> region and offset
        (folder / _FILE).touch()

    def place(self, values: np.ndarray, nodes: Iterable[str]) -> Constant:
        """Write a constant that a step of these nodes reads, unless one with the same bytes is there."""
        key = values.nbytes, hashlib.sha256(array_bytes(values)).digest()
        if key not in self._places:
            pieces = self._smaller(values) if not self._packed.isdisjoint(nodes) else []
            place = ("kUnpacked", self._add_packed(values, pieces)) if pieces else ("kWeights", self._add(values))
            self._places[key] = place
            self.bytes += values.nbytes
        return Constant(values.shape, str(values.dtype), *self._places[key])

    def table(self) -> list[str]:
        """The packed constants as lines of network.h."""
        return [
            f"enum {{ NETWORK_PIECE_COUNT = {len(self._pieces)}, NETWORK_ALIGNMENT = {self._alignment} }};",
            f"static const uint64_t NETWORK_UNPACKED = {self._aligned(self._unpacked_bytes)};",
            "static const Piece NETWORK_PIECES[] = {",
            *self._pieces,
            "  {0}};",
        ]

    def source(self) -> Path:
        """A file to assemble in its folder, with what was written as `nnc_weights`; NncError where that is too much."""
        if self.file_bytes > _MOST_BYTES:
            hint = "--no-lower writes model.onnx, which runs in onnxruntime"
            raise NncError(f"the weights take {self.file_bytes / 1e9:.1f} GB, and a library holds 2 GB", hint)
        source = self._folder / "weights.S"
        source.write_text(_SOURCE, "utf-8")
        return source

    def _smaller(self, values: np.ndarray) -> list[packing.Piece]:
        """The pieces of an array; none where they are not smaller than it is."""
        if values.nbytes < packing.LEAST_BYTES:
            return []
        pieces = packing.pack(values)
        return pieces if sum(len(piece.streams) for piece in pieces) < values.nbytes else []

    def _add(self, values: np.ndarray) -> int:
        self._write(b"\0" * (self._aligned(self.file_bytes) - self.file_bytes))
        return self._write(array_bytes(values))

    def _add_packed(self, values: np.ndarray, pieces: Sequence[packing.Piece]) -> int:
        offset, width = self._aligned(self._unpacked_bytes), values.itemsize
        for piece in pieces:
            source, target = self._write(piece.streams), offset + piece.start * width
            self._pieces.append(f"  {{{source}, {len(piece.streams)}, {target}, {piece.count}, {width}}},")
        self._unpacked_bytes = offset + values.nbytes
        return offset

    def _aligned(self, size: int) -> int:
        return -(-size // self._alignment) * self._alignment

    def _write(self, content: bytes | memoryview) -> int:
        """Append to the file; returns the offset there."""
        offset = self.file_bytes
        self.file_bytes += len(content)
        with open(self._folder / _FILE, "ab") as file:
            file.write(content)
        return offset
