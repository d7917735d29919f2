"""Sums of products of bytes: what each instruction set has for them, exactly, and how it wants the weights.

Every step adds, to each of the int32 lanes of a vector, the products of four neighbouring input channels, or of two,
with as many weights of an output channel. Weights are signed; activations are too on AArch64, and unsigned elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

Expr = Any
Load = Callable[[int, int], Expr]  # offset and count -> a vector of so many activations

DEPTH = 4
"""What the number of channels has to be a multiple of: the most that one step goes through."""

Instruction = Literal["vpdpbusd", "vpmaddwd", "sdot", "smlal", "smull", "vrmpy"]


@dataclass(frozen=True)
class Dot:
    """An instruction on vectors of `lanes` sums.

    vpdpbusd   four products, AVX-512 VNNI and AVX-VNNI
    vpmaddwd   two products of 16 bits, since vpmaddubsw saturates; activations are best widened once, outside of loops
    sdot       four products, AArch64 with dot product
    smlal      two products added in 16 bits, which needs weights above -128; then sadalp
    smull      one product in 16 bits; then sadalp
    vrmpy      four products, Hexagon
    """

    instruction: Instruction
    lanes: int
    parts: int = 1
    """Bytes that a weight is the sum of: two, of vrmpy alone, where it has nine bits."""

    @property
    def dtype(self) -> Literal["int8", "uint8"]:
        """Of the activations."""
        return "uint8" if self.instruction in ("vpdpbusd", "vpmaddwd", "vrmpy") else "int8"

    @property
    def depth(self) -> int:
        """Channels that one step goes through."""
        return 2 if self.widens else DEPTH

    @property
    def width(self) -> int:
        """Bytes of the weights of one step."""
        return self.parts * self.depth * self.lanes

    @property
    def widens(self) -> bool:
        """Whether it multiplies integers of 16 bits."""
        return self.instruction == "vpmaddwd"

    @property
    def in_pairs(self) -> bool:
        """Whether the weights of a step lie `[2][lane][2]` instead of `[lane][depth]`."""
        return self.instruction in ("smlal", "smull")

    def fits(self, rows: int, vectors: int, registers: int) -> bool:
        """Whether so many registers hold the sums of a tile beside weights, an activation and products."""
        if self.in_pairs:
            return vectors * (rows + 2) <= registers - 2
        return vectors * (rows + 1) <= registers - (2 if self.widens else 1)

    def arrange(self, W: np.ndarray) -> np.ndarray:
        """Weights `[..., channels, lanes]` as int8 `[..., step, width]` in the order of the instruction."""
        if self.parts == 2:
            low, one = np.clip(W, -128, 127), replace(self, parts=1)
            return np.concatenate([one.arrange(part.astype(np.int8)) for part in (low, W - low)], axis=-1)
        *front, channels, lanes = W.shape
        count, depth = channels // self.depth, self.depth
        steps = W.reshape(*front, count, depth, lanes)
        if self.in_pairs:
            steps = steps.reshape(*front, count, 2, 2, lanes)
        return np.ascontiguousarray(steps.swapaxes(-1, -2)).reshape(*front, count, depth * lanes)

    def spread(self, load: Load) -> list[Expr]:
        """The activations of one step, in every lane; where it widens, `load` may give integers of 16 bits."""
        if self.in_pairs:
            halves = (tirx.reinterpret("int16", load(first, 2)) for first in (0, 2))
            return [T.bind(tirx.reinterpret("int8x8", T.broadcast(half, 4))) for half in halves]
        loaded = load(0, self.depth)
        word = tirx.reinterpret("int32", loaded.astype("int16x2") if self.widens else loaded)
        return [T.bind(T.broadcast(word, self.lanes))]

    def weights(self, packed: Expr) -> list[Expr]:
        """Int8 weights of one step, `width` of them, as the instruction reads them."""
        if self.parts == 2:
            half = self.width // 2
            return [T.bind(tirx.Shuffle([packed], list(range(at, at + half)))) for at in (0, half)]
        if self.widens:
            return [T.bind(packed.astype(f"int16x{2 * self.lanes}"))]
        if not self.in_pairs:
            return [T.bind(packed)]
        width = 2 * self.lanes
        return [T.bind(tirx.Shuffle([packed], list(range(first, first + width)))) for first in (0, width)]

    def add(self, total: Expr, x: list[Expr], w: list[Expr]) -> Expr:
        """The sums with one step more."""
        if self.widens:
            pairs = tirx.reinterpret(f"int16x{2 * self.lanes}", x[0])
            return fenced(total + _pmaddwd(pairs, w[0], self.lanes), self.lanes)
        if self.instruction == "vrmpy":
            for part in w:
                words = tirx.reinterpret(f"int32x{self.lanes}", part)
                total = _call(f"int32x{self.lanes}", "llvm.hexagon.V6.vrmpybusv.acc.128B", total, x[0], words)
            return total
        if not self.in_pairs:
            name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
            name = name if self.instruction == "vpdpbusd" else "llvm.aarch64.neon.sdot"
            quads = tirx.reinterpret(f"int8x{DEPTH * self.lanes}", x[0])
            return _call(f"int32x{self.lanes}", name, total, quads, w[0])
        products = [_call("int16x8", "llvm.aarch64.neon.smull", a, b) for a, b in zip(x, w, strict=True)]
        if self.instruction == "smlal":
            products = [products[0] + products[1]]
        for each in products:
            total = total + _call("int32x4", "llvm.aarch64.neon.saddlp", each)
        return total


def _pmaddwd(a: Expr, b: Expr, lanes: int) -> Expr:
    name = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[lanes]
    return _call(f"int32x{lanes}", name, a, b)


def fenced(total: Expr, lanes: int) -> Expr:
    """The same sums, whose order LLVM leaves alone: a balanced tree of them needs more registers than there are."""
    kind = f"float32x{lanes}"
    return tirx.reinterpret(f"int32x{lanes}", _call(kind, "llvm.arithmetic.fence", tirx.reinterpret(kind, total)))


def _call(dtype: str, name: str, *arguments: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)
