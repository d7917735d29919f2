"""Sums of products of bytes: what each instruction set has for them, exactly, and how it wants the weights.

Every step adds, to each of the int32 lanes of a vector, the products of four neighbouring input channels with four
weights of an output channel. Activations are unsigned on x86 and signed on AArch64, weights are signed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

Expr = Any
Load = Callable[[int, int], Expr]  # offset and count -> a vector of so many bytes

DEPTH = 4
"""Channels that one step goes through."""

Instruction = Literal["vpdpbusd", "vpmaddwd", "sdot", "smlal", "smull"]


@dataclass(frozen=True)
class Dot:
    """An instruction on vectors of `lanes` sums.

    vpdpbusd   four products, AVX-512 VNNI and AVX-VNNI
    vpmaddwd   two products of 16 bits: bytes are widened, since vpmaddubsw saturates
    sdot       four products, AArch64 with dot product
    smlal      two products added in 16 bits, which needs weights above -128; then sadalp
    smull      one product in 16 bits; then sadalp
    """

    instruction: Instruction
    lanes: int

    @property
    def dtype(self) -> Literal["int8", "uint8"]:
        """Of the activations."""
        return "uint8" if self.instruction in ("vpdpbusd", "vpmaddwd") else "int8"

    @property
    def in_pairs(self) -> bool:
        """Whether weights lie `[2][lane][2]` instead of `[lane][4]`."""
        return self.instruction in ("vpmaddwd", "smlal", "smull")

    def arrange(self, W: np.ndarray) -> np.ndarray:
        """Weights int8 `[..., depth, lanes]` as `[..., depth / 4, 4 * lanes]` in the order of the instruction."""
        *front, depth, lanes = W.shape
        steps = W.reshape(*front, depth // DEPTH, DEPTH, lanes)
        if self.in_pairs:
            steps = steps.reshape(*front, depth // DEPTH, 2, 2, lanes)
        return np.ascontiguousarray(steps.swapaxes(-1, -2)).reshape(*front, depth // DEPTH, DEPTH * lanes)

    def spread(self, load: Load) -> list[Expr]:
        """Four activations in every lane."""
        if self.in_pairs and self.dtype == "int8":
            halves = (tirx.reinterpret("int16", load(first, 2)) for first in (0, 2))
            return [T.bind(tirx.reinterpret("int8x8", T.broadcast(half, 4))) for half in halves]
        word = tirx.reinterpret("int32", load(0, 4))
        if self.instruction != "vpmaddwd":
            return [T.bind(T.broadcast(word, self.lanes))]
        quads = tirx.reinterpret(f"uint8x{2 * self.lanes}", T.broadcast(word, self.lanes // 2))
        pairs = T.bind(tirx.reinterpret(f"int32x{self.lanes}", quads.astype(f"int16x{2 * self.lanes}")))
        return [T.bind(tirx.Shuffle([pairs], [lane // 2 * 2 + odd for lane in range(self.lanes)])) for odd in (0, 1)]

    def weights(self, packed: Expr) -> list[Expr]:
        """Int8 weights of one step, `4 * lanes` of them, as the instruction reads them."""
        if not self.in_pairs:
            return [T.bind(packed)]
        width = 2 * self.lanes
        halves = [tirx.Shuffle([packed], list(range(first, first + width))) for first in (0, width)]
        wide = f"int16x{width}" if self.instruction == "vpmaddwd" else f"int8x{width}"
        return [T.bind(half.astype(wide)) for half in halves]

    def add(self, total: Expr, x: list[Expr], w: list[Expr]) -> Expr:
        """The sums with one step more."""
        if not self.in_pairs:
            name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
            name = name if self.instruction == "vpdpbusd" else "llvm.aarch64.neon.sdot"
            quads = tirx.reinterpret(f"int8x{DEPTH * self.lanes}", x[0])
            return _call(f"int32x{self.lanes}", name, total, quads, w[0])
        if self.instruction == "vpmaddwd":
            for a, b in zip(x, w, strict=True):
                total = total + _pmaddwd(tirx.reinterpret(f"int16x{2 * self.lanes}", a), b, self.lanes)
            return total
        products = [_call("int16x8", "llvm.aarch64.neon.smull", a, b) for a, b in zip(x, w, strict=True)]
        if self.instruction == "smlal":
            products = [products[0] + products[1]]
        for each in products:
            total = total + _call("int32x4", "llvm.aarch64.neon.saddlp", each)
        return total


def _pmaddwd(a: Expr, b: Expr, lanes: int) -> Expr:
    name = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[lanes]
    return _call(f"int32x{lanes}", name, a, b)


def _call(dtype: str, name: str, *arguments: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)
