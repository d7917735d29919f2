"""Cycles of blocks, against what their instructions must take on well-known cores."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnc.errors import NncError
from nnc.lowering import cross
from nnc.simulation.emulated import mca
from nnc.simulation.emulated.isa import AARCH64, X86_64
from nnc.simulation.emulated.mca import Processor, cycles_of_code

A53, A55, A75, N1 = (Processor(cpu) for cpu in ("cortex-a53", "cortex-a55", "cortex-a75", "neoverse-n1"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tools: None) -> Path:
    monkeypatch.setattr(cross, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


ADD = struct.pack("<I", 0x8B030041)  # add x1, x2, x3


def fmla(register: int) -> bytes:
    return struct.pack("<I", 0x4E3FCFC0 | register)  # fmla vN.4s, v30.4s, v31.4s


def products(count: int, chained: bool = False) -> bytes:
    """Multiply-accumulates of four floats each: of `count` sums, or all of one."""
    return b"".join(fmla(0 if chained else i) for i in range(count))


def vfmadd(register: int) -> bytes:
    """vfmadd231ps %ymm14, %ymm15, %ymmN."""
    return bytes((0xC4, 0x42 if register > 7 else 0xC2, 0x05, 0xB8, 0xC6 | (register & 7) << 3))


@pytest.mark.parametrize(("processor", "each"), [(A53, 1.0), (A75, 1.0), (N1, 0.5)])
def test_vector_pipes_limit_independent_products(processor: Processor, each: float) -> None:
    (cycles,) = cycles_of_code([products(24)], processor)
    assert cycles == pytest.approx(24 * each, rel=0.05)


def test_what_was_measured_of_a_core_limits_its_model() -> None:
    limited = replace(A55, limits=((r"fmla\s+v\d+\.4s", 0.5),))
    block = products(16) + ADD
    assert cycles_of_code([block, ADD], limited)[0] == pytest.approx(32)
    assert cycles_of_code([block], A55)[0] < 32


def test_a_chain_of_products_takes_their_latency() -> None:
    free, chained = cycles_of_code([products(16), products(16, chained=True)], N1)
    assert chained >= 3 * free


def test_code_is_read_block_by_block() -> None:
    assert mca.disassembled([products(2) + ADD, fmla(3)], AARCH64) == [
        "fmla\tv0.4s, v30.4s, v31.4s\nfmla\tv1.4s, v30.4s, v31.4s\nadd\tx1, x2, x3",
        "fmla\tv3.4s, v30.4s, v31.4s",
    ]


def test_x86_is_asked_the_same_way() -> None:
    zen3 = Processor("znver3", "x86_64")
    block = b"".join(map(vfmadd, range(10)))
    (text,) = mca.disassembled([vfmadd(9)], X86_64)
    assert text.startswith("vfmadd231ps\t%ymm14, %ymm15, %ymm9")
    assert cycles_of_code([block], zen3) == pytest.approx([5.0], rel=0.1)


def test_unrolled_blocks_of_thousands_of_instructions() -> None:
    small, large = cycles_of_code([b"".join(map(fmla, range(16))) * n for n in (1, 200)], A75)
    assert large == pytest.approx(200 * small, rel=0.05)


def test_instructions_that_llvm_does_not_know_take_a_cycle_or_nothing() -> None:
    unknown = struct.pack("<I", 0x00000001)
    cycles = cycles_of_code([unknown, fmla(0) * 8 + unknown], A75)
    assert np.all(np.isfinite(cycles))
    assert cycles[1] > 8


def test_nothing_is_simulated_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [fmla(i) * 4 for i in range(5)]
    first = cycles_of_code(blocks, A75)
    monkeypatch.setattr(mca, "_simulate", lambda *_: pytest.fail("it was known"))
    assert np.array_equal(cycles_of_code([*blocks, blocks[0]], A75), [*first, first[0]])


@pytest.mark.parametrize("damage", [b"", b"nonsense\xff\n", None])
def test_a_damaged_cache_is_made_again(own_cache: Path, damage: bytes | None) -> None:
    blocks = [fmla(i) * 4 for i in range(5)]
    first = cycles_of_code(blocks, A75)
    (file,) = (own_cache / "mca").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage is None else content[:70].replace(b"1", b"2") + damage)
    assert np.array_equal(cycles_of_code(blocks, A75), first)
    assert np.array_equal(cycles_of_code(blocks, A75), first)


def test_a_core_without_a_model_is_one_line() -> None:
    with pytest.raises(NncError, match="llvm-mca: unable to find instruction-level scheduling information") as caught:
        cycles_of_code([fmla(0)], Processor("carmel"))
    assert "\n" not in caught.value.message


def test_without_llvm_a_hint_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mca.shutil, "which", lambda name: None)
    with pytest.raises(NncError, match="llvm-mca of LLVM 19 or newer is not installed") as caught:
        mca.tool.__wrapped__("llvm-mca")
    assert caught.value.hint.startswith("apt install llvm-19")


def test_an_old_llvm_does_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mca.shutil, "which", lambda name: "/usr/bin/llvm-mca" if name == "llvm-mca" else None)
    monkeypatch.setattr(mca, "_major", lambda path: 14)
    with pytest.raises(NncError, match="not installed, only that of LLVM 14"):
        mca.tool.__wrapped__("llvm-mca")
