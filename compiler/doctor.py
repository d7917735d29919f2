"""What nnc can do on this machine: the packages and programs it uses, found without importing any of them."""

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from nnc.cache import cache_folder
from nnc.hardware import host


@dataclass(frozen=True)
class Check:
    """One package or program."""

    name: str
    found: bool
    """There, and in a version that works."""
    version: str | None
    needed_for: str
    hint: str | None
    """How to get it; None where it is found."""


# name, what for, the only version that works (None: any)
_PACKAGES = (
    ("onnxruntime", "checking that a pass leaves the outputs alone, accuracy", None),
    # TVM does not pin its foreign-function layer, and with 0.1.15 Schedule.tensorize crashes the process.
    ("apache-tvm", "compiling a library", "0.27.0.post1"),
    ("apache-tvm-ffi", "compiling a library", "0.1.14.post1"),
    ("ziglang", "linking for AArch64 and Hexagon", None),
    ("torch", "passes that train (optional)", None),
    ("xgboost-cpu", "learning which schedules of loops without a template are fast (optional)", None),
    ("pyopencl", "running the kernels of GPUs here (optional)", None),
    ("nvidia-cuda-nvrtc-cu12", "compiling CUDA kernels (optional)", None),
    ("nvidia-cuda-runtime-cu12", "float16 in CUDA kernels (optional)", None),
    ("nvidia-cuda-nvcc-cu12", "registers and spills of CUDA kernels (optional)", None),
    ("cloudpickle", "tuning on boards (optional)", None),
    ("psutil", "tuning on boards (optional)", None),
    ("tornado", "tuning on boards (optional)", None),
)

# name; commands, the first that is there counts; what for; how to get it
_PROGRAMS = (
    ("cc", ("cc", "gcc", "clang"), "linking for this machine without ziglang", "apt install gcc"),
    (
        "qemu-aarch64",
        ("qemu-aarch64", "qemu-aarch64-static"),
        "running AArch64 libraries here",
        "apt install qemu-user",
    ),
    ("qemu-x86_64", ("qemu-x86_64",), "latencies of x86 code by emulation (optional)", "apt install qemu-user"),
    (
        "qemu-hexagon",
        ("qemu-hexagon", "qemu-hexagon-static"),
        "running networks for Hexagon DSPs here",
        "apt install qemu-user",
    ),
    (
        "aarch64-linux-gnu-gcc",
        ("aarch64-linux-gnu-gcc",),
        "linking for AArch64 without ziglang",
        "apt install gcc-aarch64-linux-gnu",
    ),
)


def checks() -> list[Check]:
    """Everything nnc uses, packages first, each with what is lost without it. Takes well under a second."""
    with ThreadPoolExecutor() as pool:
        programs = list(pool.map(lambda row: _program(*row), _PROGRAMS))
    packages = [_package(*row) for row in _PACKAGES]
    llvm = [_llvm("llvm-mca"), _llvm("llvm-mc")]
    return [*packages, *programs, *llvm, _plugins(), _sysroot(), _runtime(), _pocl(), _cuda()]


def _package(name: str, needed_for: str, pin: str | None) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    found = version is not None and pin in (None, version)
    return Check(
        name, found, version, needed_for, None if found else f"pip install {name}" + (f"=={pin}" if pin else "")
    )


def _program(name: str, commands: tuple[str, ...], needed_for: str, hint: str) -> Check:
    path = next(filter(None, map(shutil.which, commands)), None)
    return Check(name, path is not None, path and _version(path), needed_for, None if path else hint)


def _llvm(name: str) -> Check:
    """llvm-mca with the scheduling models that are needed, or llvm-mc beside it: of LLVM 19 or newer."""
    commands = (*(f"{name}-{version}" for version in range(30, 18, -1)), name)
    check = _program(name, commands, "latencies by emulation (optional)", "apt install llvm-19")
    if check.version is None or int(check.version.partition(".")[0]) >= 19:
        return check
    return replace(check, found=False, hint="apt install llvm-19")


def _plugins() -> Check:
    """Whether QEMU was built with plugins."""
    qemu = shutil.which("qemu-aarch64")
    found = qemu is not None and "-plugin" in _output(qemu, "--help")
    hint = "apt install qemu-user of QEMU 4.2 to 8.2"
    return Check("QEMU plugins", found, None, "latencies by emulation (optional)", None if found else hint)


def _version(path: str) -> str | None:
    """The first number with a dot that the program prints about itself."""
    number = re.search(r"\d+\.\d[\w.]*", _output(path, "--version"))
    return number[0] if number else None


def _output(path: str, option: str) -> str:
    try:
        done = subprocess.run([path, option], capture_output=True, text=True, errors="replace", timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _sysroot() -> Check:
    libraries = (library for _, library in host.aarch64_roots())
    return _from_files(
        "AArch64 C++ library", libraries, "running AArch64 libraries here", "apt install libstdc++6-arm64-cross"
    )


def _runtime() -> Check:
    """The TVM runtime for AArch64: the first library that runs in an emulator has pip download it into the cache."""
    cached = cache_folder().glob("aarch64-*/libtvm_runtime.so")
    found = next(cached, None) is not None or importlib.util.find_spec("pip") is not None
    needed_for = "running AArch64 libraries here; pip downloads it once, for the first"
    return Check("AArch64 TVM runtime", found, None, needed_for, None if found else "python -m ensurepip")


def _pocl() -> Check:
    drivers = Path("/etc/OpenCL/vendors").glob("pocl*.icd")
    return _from_files("PoCL", drivers, "running the kernels of GPUs here (optional)", "apt install pocl-opencl-icd")


def _cuda() -> Check:
    driver = Path("/proc/driver/nvidia/version")
    found = [driver] if driver.exists() else []
    return _from_files("CUDA driver", found, "training, and running CUDA kernels (optional)", "install NVIDIA's driver")


def _from_files(name: str, files: Iterable[Path], needed_for: str, hint: str) -> Check:
    file = max(files, default=None)
    number = re.search(r"\d+(\.\d+)+", file.name) if file else None
    return Check(name, file is not None, number and number[0], needed_for, None if file else hint)
