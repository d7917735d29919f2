"""The x86 machine that nnc runs on, read from /proc and /sys: the figures that targets/x86.toml leaves open."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnc.display import units
from nnc.errors import NncError

if TYPE_CHECKING:
    from nnc.hardware.chip import Unit

# What each level of the instruction set brings: vector bits, vector registers, MACs per cycle. Two 256-bit FMA pipes
# are Intel's since Haswell and AMD's since Zen 2; two 512-bit ones are Intel's servers. Without FMA, one multiplication
# and one addition of four floats in a cycle.
_LEVELS = {
    "x86-64-v4": (512, 32, 32.0),
    "x86-64-v3": (256, 16, 16.0),
    "x86-64-v2": (128, 16, 4.0),
}

# Where distributions put the AArch64 libraries: Debian, Ubuntu and Arch; Fedora.
_AARCH64_ROOTS = ("/usr/aarch64-linux-gnu", "/usr/aarch64-redhat-linux/sys-root/fc")


def figures(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> dict[str, Any]:
    """The figures of a `[[unit]]` of kind cpu, for the machine described under `proc` and `sys`.

    Where they say nothing (another operating system, a foreign processor), a four-year-old desktop with AVX2 is
    assumed: its code runs on nearly every x86.
    """
    flags = _flags(proc) or _ASSUMED_FLAGS
    level = _level(flags)
    vector_bits, registers, macs = _LEVELS[level]
    cores = _cores(sys)
    dot = ("avx512_vnni" if level == "x86-64-v4" else "avx_vnni") in flags
    # Without VNNI, vpmaddwd does twice the MACs of a float FMA, but each needs an addition behind it. Measured with 256
    # bits on a Sapphire Rapids: the convolutions of ResNet-50 take 0.71 of their time in floats, those of MobileNet-v2
    # 0.85, depthwise ones 1.5 times as long; with the efficiencies of x86.toml, 1.8 predicts 0.8, 0.76 and 1.7.
    int8_macs = macs * 4 if dot else macs * 1.8
    return {
        "tvm": {
            "kind": "llvm",
            "mtriple": "x86_64-unknown-linux-gnu",
            "mcpu": level,
            "mattr": _features(flags, level),
            "num-cores": cores,
        },
        "int8_dot": dot,
        "channel_multiple": vector_bits // 32,
        "vector_bits": vector_bits,
        "vector_registers": registers,
        "threads": cores,
        "l3_bytes": _cache(sys, 3) or 0,
        "cluster": [
            {
                "name": "host",
                "core": _model_name(proc) or "x86-64",
                "count": cores,
                "clock_ghz": _clock_ghz(proc, sys) or 3.0,
                "macs_per_cycle": {"float32": macs, "int8": int8_macs},
                "l1d_bytes": _cache(sys, 1) or 32 * 1024,
                "l2_bytes": _cache(sys, 2) or 512 * 1024,
                # Inferred: of 64 bytes at peak into a 512-bit core, and of 32 into an AVX2 core.
                "l2_bytes_per_cycle": 48.0 if vector_bits == 512 else 24.0,
            }
        ],
    }


def require(unit: Unit, place: str, hint: str) -> None:
    """Raise NncError, beginning with `place`, for code of a unit that would take a process here down: of another
    architecture, or of a newer x86 than this one.
    """
    architecture, here = platform.machine(), figures()["tvm"]
    if unit.architecture != architecture:
        raise NncError(f"{place}: code for {unit.architecture}, this machine is {architecture}", hint)
    levels, wanted = list(_LEVELS)[::-1], str(unit.tvm.get("mcpu"))
    if wanted not in levels:
        return
    missing = [feature for feature in unit.tvm.get("mattr", ()) if feature not in here["mattr"]]
    if missing or levels.index(wanted) > levels.index(here["mcpu"]):
        raise NncError(f"{place}: code for {' '.join([wanted, *missing])}, this machine is {here['mcpu']}", hint)


# What the levels add to each other (x86-64 psABI, 3.1.1), by the kernel's names: "abm" brings lzcnt.
_V3_FLAGS = frozenset({"avx", "avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"})
_V4_FLAGS = _V3_FLAGS | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

_ASSUMED_FLAGS = _V3_FLAGS | {"sse4_2", "popcnt"}


def _flags(proc: Path) -> frozenset[str]:
    found = re.search(r"^flags\s*:(.*)$", _text(proc / "cpuinfo"), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _level(flags: frozenset[str]) -> str:
    """The newest x86-64 level that every flag is there for.

    LLVM's name of the host ("emeraldrapids") promises features that a virtual machine may have masked; a level plus the
    flags that were really seen never does, and its code is as fast.
    """
    if flags >= _V4_FLAGS:
        return "x86-64-v4"
    return "x86-64-v3" if flags >= _V3_FLAGS else "x86-64-v2"


def _features(flags: frozenset[str], level: str) -> list[str]:
    features = []
    if "avx512_vnni" in flags and level == "x86-64-v4":
        features.append("+avx512vnni")
    if "avx_vnni" in flags:
        features.append("+avxvnni")
    return features


def aarch64_roots() -> Iterator[tuple[Path, Path]]:
    """Folders that hold an AArch64 system on this machine, each with its C++ library."""
    for root in (os.environ.get("QEMU_LD_PREFIX"), *_AARCH64_ROOTS):
        library = next(Path(root).glob("**/libstdc++.so.6"), None) if root else None
        if root and library:
            yield Path(root), library.resolve()


def processors() -> int:
    """How many threads can run here at the same time: more only wait for each other, and those that spin for long."""
    return len(_allowed())


def require_processors(threads: int | None) -> None:
    """Raise NncError for more threads than there are processors."""
    if threads is not None and threads > processors():
        found = units.plural(processors(), "processor")
        raise NncError(f"--threads {threads}: this machine has {found}", f"give 1 to {processors()}")


def _allowed() -> set[int]:
    """The processors that this process may use, by number."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _cores(sys: Path) -> int:
    """Physical cores that this process may use: a second thread on a core adds nothing to a full FMA pipe."""
    cpus = sys / "devices/system/cpu"
    cores = {_text(cpus / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in _allowed()}
    return max(1, min(len(cores), _quota(sys)))


def _quota(sys: Path) -> int:
    """Processors that the control group grants (containers), rounded up."""
    quota, _, period = _text(sys / "fs/cgroup/cpu.max").partition(" ")
    return math.ceil(int(quota) / int(period)) if quota.isdigit() and period.isdigit() else 1 << 16


def _cache(sys: Path, level: int) -> int | None:
    """Bytes of the data cache of this level."""
    for index in sorted((sys / "devices/system/cpu/cpu0/cache").glob("index*")):
        size = re.fullmatch(r"(\d+)K", _text(index / "size"))
        if size and _text(index / "level") == str(level) and _text(index / "type") != "Instruction":
            return int(size[1]) * 1024
    return None


def _clock_ghz(proc: Path, sys: Path) -> float | None:
    kilohertz = _text(sys / "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if kilohertz.isdigit():
        return int(kilohertz) / 1e6
    megahertz = re.search(r"^cpu MHz\s*:\s*([\d.]+)", _text(proc / "cpuinfo"), re.MULTILINE)
    return round(float(megahertz[1]) / 1e3, 3) if megahertz else None


def _model_name(proc: Path) -> str | None:
    found = re.search(r"^model name\s*:\s*(.+)$", _text(proc / "cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
