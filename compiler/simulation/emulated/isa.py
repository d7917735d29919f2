"""What the emulation must know of an instruction set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nnc.hardware.chip import Dtype


@dataclass(frozen=True)
class Isa:
    """An instruction set that QEMU executes and llvm-mca knows."""

    architecture: str
    """As targets call it."""
    triple: str
    features: tuple[str, ...]
    """Beyond what LLVM's models of cores have: whatever the code uses is to be read, and whether the core has it was
    decided when the code was generated."""
    between: bytes
    """An instruction that no compiler writes."""
    between_text: str
    """How LLVM writes it."""
    products: dict[Dtype, tuple[str, int]]
    """Instructions that multiply and add vectors, as a regular expression, and the products of one."""
    vector_bits: int
    """Of the widest vectors that QEMU 7.2 executes."""
    load_bits: int
    """What a core moves between its first cache and registers in a cycle."""
    is_branch: Callable[[bytes], bool]
    """Whether an instruction may leave the block that it ends."""


def _branches_on_arm(instruction: bytes) -> bool:
    """Branches, exceptions and system instructions: bits 28-26 are 101 (Arm Architecture Reference Manual, C4.1)."""
    return instruction[-1] >> 2 & 7 == 5


# Jumps and calls by the number that encodes them (Intel 64 and IA-32 Manual, volume 2, appendix A).
_PREFIXES = {0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3, *range(0x40, 0x50)}
_JUMPS = {*range(0x70, 0x80), *range(0xE0, 0xE4), 0xE8, 0xE9, 0xEB, 0xC2, 0xC3}
_JUMPS_AFTER_0F = {0x05, *range(0x80, 0x90)}


def _branches_on_x86(instruction: bytes) -> bool:
    start = next((at for at, byte in enumerate(instruction) if byte not in _PREFIXES), 0)
    opcode, operand = instruction[start], instruction[start + 1 : start + 2]
    if opcode == 0x0F:
        return operand[0] in _JUMPS_AFTER_0F
    if opcode == 0xFF:
        return operand[0] >> 3 & 7 in (2, 3, 4, 5)  # FF /0, /1 and /6 compute
    return opcode in _JUMPS


AARCH64 = Isa(
    architecture="aarch64",
    triple="aarch64-linux-gnu",
    features=("+v8.6a", "+fullfp16", "+dotprod", "+fp16fml", "+i8mm", "+bf16"),
    between=0xD5032FFF.to_bytes(4, "little"),
    between_text="hint\t#127",
    products={
        "float32": (r"fml[as]\s+v\d+\.4s", 4),
        "float16": (r"fml[as]\s+v\d+\.8h", 8),
        "int8": (r"[su]dot\s+v\d+\.4s", 16),
    },
    vector_bits=128,
    load_bits=128,
    is_branch=_branches_on_arm,
)

X86_64 = Isa(
    architecture="x86_64",
    triple="x86_64-linux-gnu",
    features=("+avx2", "+fma", "+f16c", "+bmi2", "+avxvnni"),
    between=bytes.fromhex("0f1f840011223344"),  # nopl
    between_text="nopl\t1144201745(%rax,%rax)",
    products={
        "float32": (r"vfn?m(?:add|sub)\d+ps\s.*ymm", 8),
        "int8": (r"vpdpbusds?\s.*ymm", 32),
    },
    vector_bits=256,
    load_bits=512,
    is_branch=_branches_on_x86,
)

BY_ARCHITECTURE = {each.architecture: each for each in (AARCH64, X86_64)}
