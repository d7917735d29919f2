"""Running AArch64 libraries on this machine, through QEMU's user emulation."""

import hashlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from nnc.cache import cache_folder
from nnc.errors import NncError
from nnc.hardware import host
from nnc.lowering import cross
from nnc.target import Target

# The parts of the AArch64 wheels that a library needs to run; libtvm_compiler.so, 240 MB, is not one of them.
_RUNTIME = {"apache-tvm": "tvm/lib/libtvm_runtime.so", "apache-tvm-ffi": "tvm_ffi/lib/libtvm_ffi.so"}

_SYSROOT_HINT = "apt install qemu-user libstdc++6-arm64-cross, or set QEMU_LD_PREFIX to the root of an AArch64 system"


class EmulatedLibrary:
    """A compiled AArch64 library; on an AArch64 machine it runs without emulation."""

    def __init__(self, path: Path, target: Target, threads: int | None = None) -> None:
        """`threads`: as many as the target says, without it. Threads of an emulated program share the processors of
        this machine: there are never more.

        Raises NncError where the emulator, the C library or the TVM runtime for AArch64 can't be had.
        """
        if target.unit.architecture != "aarch64":
            raise NncError(f"{target.label}: only AArch64 libraries are emulated, not {target.unit.architecture}")
        if not path.is_file():
            raise NncError(f"{path}: no such file")
        self._command = [*emulator(), runner()]
        self._path = path
        self._threads = min(threads or target.unit.threads, host.processors())

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for `inputs`, both in the model's order, with the shapes and dtypes it declares."""
        with tempfile.TemporaryDirectory(prefix="nnc-") as name:
            folder = Path(name)
            files = [folder / f"input{index}.npy" for index in range(len(inputs))]
            for file, values in zip(files, inputs, strict=True):
                np.save(file, np.asarray(values, order="C"))
            threads = {"TVM_NUM_THREADS": str(self._threads)}
            cross.run([*self._command, self._path.resolve(), folder, "1", *files], threads, subject=str(self._path))
            outputs = sorted(folder.glob("[0-9]*.npy"), key=lambda file: int(file.stem))
            return [np.load(file) for file in outputs]


def emulator() -> list[str | Path]:
    """The command that an AArch64 program is appended to; empty on an AArch64 machine.

    The C++ library of the TVM runtime is the distribution's (`libstdc++6-arm64-cross` on Debian and Ubuntu): Zig
    brings only what is needed to link against glibc, not glibc itself.
    """
    if platform.machine() == "aarch64":
        return []
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if qemu is None:
        raise NncError("qemu-aarch64 is not installed, which runs the library here", _SYSROOT_HINT)
    root, _ = next(host.aarch64_roots(), (None, None))
    if root is None:
        raise NncError("no AArch64 C++ library is installed, which qemu-aarch64 needs", _SYSROOT_HINT)
    # No model of QEMU's is one of the targets' cores; "max" has every instruction that they have.
    return [qemu, "-cpu", "max", "-L", root]


def runner() -> Path:
    """runner.c compiled for AArch64, with the TVM runtime beside it; made once and kept in the cache folder."""
    source = resources.files("nnc.lowering").joinpath("runner.c").read_text("utf-8")
    versions = {package: importlib.metadata.version(package) for package in _RUNTIME}
    key = hashlib.sha256(repr((source, sorted(versions.items()))).encode()).hexdigest()[:16]
    folder = cache_folder() / f"aarch64-{key}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="aarch64-", dir=folder.parent) as name:
            made = Path(name) / "made"
            made.mkdir()
            _fetch_runtime(versions, made)
            _compile_runner(source, made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another process was faster
                    raise
    return folder / "runner"


def _fetch_runtime(versions: dict[str, str], folder: Path) -> None:
    """Put the shared libraries of the AArch64 wheels into `folder`; pip checks the wheels' hashes."""
    wanted = [f"{package}=={version}" for package, version in versions.items()]
    # The libraries are the same for every Python; 3.11 is one that the wheels are built for.
    options = [
        "--platform",
        "manylinux_2_28_aarch64",
        "--python-version",
        "3.11",
        "--only-binary",
        ":all:",
        "--no-deps",
    ]
    with tempfile.TemporaryDirectory(prefix="nnc-") as wheels:
        try:
            cross.run([sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", wheels, *wanted])
        except NncError as error:
            hint = "this needs pip and the network, once"
            raise NncError(f"the AArch64 runtime of TVM can't be downloaded: {error.message}", hint) from None
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for member in set(_RUNTIME.values()) & set(archive.namelist()):
                    (folder / Path(member).name).write_bytes(archive.read(member))


def _compile_runner(source: str, folder: Path) -> None:
    libraries = [f"-L{folder}", "-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", "-Wl,-rpath,$ORIGIN"]
    file = folder / "runner.c"
    file.write_text(source, "utf-8")
    flags = ["-std=c11", "-O2", "-Wl,--allow-shlib-undefined"]
    cross.run([*cross.compiler("aarch64"), *flags, *cross.includes(), file, "-o", folder / "runner", *libraries])
