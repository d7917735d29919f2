"""Cycles that a processor takes for blocks of instructions, from the scheduling models of LLVM: llvm-mca.

Each block is simulated as the body of a loop, without misses of caches and of branches, and its cycles are those of one
iteration in the long run: what a block costs among others of its kind on a processor that runs ahead. See Laukemann et
al., "Automated Instruction Stream Throughput Prediction for Intel and AMD Microarchitectures", PMBS 2018, and the
manual of llvm-mca.

Results are kept in nnc's cache folder, by code and processor, so that what was seen once costs nothing. Programs that
time many variants of a kernel gain most: what surrounds the inner loops is the same in all.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from nnc.errors import NncError
from nnc.lowering import cross
from nnc.simulation.emulated.isa import BY_ARCHITECTURE, Isa

#: The oldest LLVM whose models of cores and whose options are those that are needed.
OLDEST = 19

HINT = f"apt install llvm-{OLDEST} or a newer one, which has llvm-mca and llvm-mc"

# Instructions to simulate of one block, and the least and the most iterations as powers of two: the start-up of a loop
# must not count.
_WORK, _LEAST, _MOST = 3000, 3, 7

# Blocks that one process of llvm-mca takes.
_BATCH = 256


@dataclass(frozen=True)
class Processor:
    """What llvm-mca is asked about."""

    cpu: str
    """LLVM's name of the core, or of one that stands for it: "cortex-a57", "znver3"."""
    architecture: str = "aarch64"
    """Of instruction sets, one of isa.py."""
    limits: tuple[tuple[str, float], ...] = ()
    """Instructions per cycle at most, by a regular expression of the instruction: what was measured of the core, or of
    the one that LLVM's stands for. Models err: that of the Cortex-A55 starts two 128-bit fmla per cycle, the core one.
    """

    @property
    def isa(self) -> Isa:
        return BY_ARCHITECTURE[self.architecture]


def cycles_of_code(blocks: Sequence[bytes], processor: Processor) -> np.ndarray:
    """Cycles of every block of machine code, float64 [blocks].

    Raises NncError where LLVM's tools are missing, or have no model of the processor.
    """
    file = _file(processor)
    known, keys = _known(file), [_key(block) for block in blocks]
    missing = {key: block for key, block in zip(keys, blocks, strict=True) if key not in known}
    if missing:
        cycles = _simulate(disassembled(list(missing.values()), processor.isa), processor)
        found = dict(zip(missing, cycles, strict=True))
        _keep(file, found)
        known |= found
    return np.array([known[key] for key in keys])


def disassembled(blocks: Sequence[bytes], isa: Isa) -> list[str]:
    """The instructions of blocks of code, one a line; those that LLVM does not know are left out."""
    words = "\n".join(f"0x{byte:02x}" for byte in isa.between.join(blocks))
    options = ["--disassemble", f"-triple={isa.triple}", f"-mattr={','.join(isa.features)}"]
    lines = [line.strip() for line in _run([tool("llvm-mc"), *options], words).splitlines()]
    text = "\n".join(line for line in lines if line and not line.startswith("."))
    return [block.strip() for block in text.split(isa.between_text)]


@cache
def tool(name: str) -> str:
    """The path of "llvm-mca" or "llvm-mc" of the newest LLVM that is installed; NncError where that is too old."""
    for version in range(30, OLDEST - 1, -1):
        path = shutil.which(f"{name}-{version}")
        if path is not None:
            return path
    path = shutil.which(name)
    if path is not None and _major(path) >= OLDEST:
        return path
    found = f", only that of LLVM {_major(path)}" if path is not None else ""
    raise NncError(f"{name} of LLVM {OLDEST} or newer is not installed{found}", HINT)


@cache
def _major(path: str) -> int:
    number = re.search(r"version (\d+)", _version(path))
    return int(number[1]) if number else 0


@cache
def _version(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace").stdout


# --- llvm-mca


def _simulate(blocks: Sequence[str], processor: Processor) -> list[float]:
    """Cycles per iteration of every block; blocks of about the same length share a process."""
    cycles = np.array([_limit(block, processor) for block in blocks])
    iterations = np.array([_iterations(block) for block in blocks], int)
    batches = [batch for count in sorted(set(iterations)) for batch in _batches(np.flatnonzero(iterations == count))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(lambda batch: _batch([blocks[i] for i in batch], processor, int(iterations[batch[0]])), batches)
        for batch, found in zip(batches, done, strict=True):
            cycles[batch] = np.maximum(found, cycles[batch])
    return cycles.tolist()


def _limit(block: str, processor: Processor) -> float:
    """The fewest cycles that the processor's limits allow."""
    return max((len(re.findall(kind, block)) / most for kind, most in processor.limits), default=0.0)


def _iterations(block: str) -> int:
    """The more, the shorter the block: a power of two, so that many blocks have the same."""
    length = block.count("\n") + 1
    return 1 << min(_MOST, max(_LEAST, (_WORK // length).bit_length()))


def _batches(indices: np.ndarray) -> Iterable[np.ndarray]:
    return np.array_split(indices, -(-len(indices) // _BATCH))


def _batch(blocks: Sequence[str], processor: Processor, iterations: int) -> list[float]:
    """Cycles per iteration; of blocks without instructions that LLVM knows, one per line."""
    text = "".join(f"# LLVM-MCA-BEGIN {i}\n{block}\n# LLVM-MCA-END {i}\n" for i, block in enumerate(blocks))
    options = [f"-mtriple={processor.isa.triple}", f"-mcpu={processor.cpu}", f"-iterations={iterations}"]
    features = [f"-mattr={','.join(processor.isa.features)}"]
    views = ["--resource-pressure=0", "--instruction-info=0", "--skip-unsupported-instructions=any"]
    output = _run([tool("llvm-mca"), *options, *features, *views], text)
    regions = re.findall(r"Code Region - (\d+)\s+Iterations: .*?\n.*?Total Cycles: +(\d+)", output, re.DOTALL)
    found = {int(number): int(total) / iterations for number, total in regions}
    return [found.get(i, block.count("\n") + 1.0) for i, block in enumerate(blocks)]


def _run(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, errors="replace")
    if done.returncode:
        complaint = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        name = re.sub(r"-\d+$", "", Path(command[0]).name)
        raise NncError(f"{name}: {complaint.partition('error: ')[2] or complaint}")
    return done.stdout


# --- what is known already


def _file(processor: Processor) -> Path:
    policy = f"{_WORK} {_LEAST} {_MOST}"
    key = hashlib.sha256(repr((processor, _version(tool("llvm-mca")), policy)).encode()).hexdigest()[:16]
    return cross.cache_folder() / "mca" / f"{processor.cpu}-{key}.txt"


def _key(block: bytes) -> str:
    return hashlib.sha256(block).hexdigest()[:32]


def _known(file: Path) -> dict[str, float]:
    """The lines "KEY CYCLES CHECKSUM" of a file; others are damaged, and as if they were not there."""
    if not file.is_file():
        return {}
    known = {}
    for line in file.read_text("ascii", errors="replace").splitlines():
        entry, _, checksum = line.rpartition(" ")
        if entry and checksum == _checksum(entry):
            key, _, cycles = entry.partition(" ")
            known[key] = float(cycles)
    return known


def _keep(file: Path, found: dict[str, float]) -> None:
    """Append in one piece: processes that do so at the same time don't mix their lines."""
    entries = [f"{key} {cycles!r}" for key, cycles in found.items()]
    text = "\n" + "".join(f"{entry} {_checksum(entry)}\n" for entry in entries)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "ab", buffering=0) as written:
        written.write(text.encode())


def _checksum(entry: str) -> str:
    return f"{zlib.crc32(entry.encode()):08x}"
