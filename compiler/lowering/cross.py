"""Linking shared libraries for machines that nnc does not run on."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnc.cache import cache_folder
from nnc.errors import NncError
from nnc.target import Target

# The oldest glibc that a library may need: JetPack 4 and 5 have 2.27 and 2.31, Qualcomm's Yocto images 2.22 and later.
_GLIBC = {"aarch64": "2.17", "x86_64": "2.17"}

_HEADERS = ("include", "3rdparty/dlpack/include")  # of the package tvm_ffi


def link(
    objects: Sequence[str | Path],
    out: str | Path,
    target: Target,
    options: Sequence[str] = (),
    folder: Path | None = None,
) -> None:
    """Link object files into the shared library `out`, for the CPU that runs or drives the target's unit.

    Where all of these files are in `folder`, the tools see their names alone: Zig reads no path with a quote in it.
    Raises NncError where no linker for that CPU is installed, or where it refuses the objects.
    """
    out, *objects = (each if folder is None else Path(each).name for each in (out, *objects))
    command = [*compiler(target.unit.architecture), "-shared", "-fPIC", "-O2", "-o", out, *objects, "-lm", *options]
    run(command, folder=folder)


def linker(target: Target) -> Callable[..., None]:
    """`link` in the form of the `fcompile` argument of TVM's `export_library`."""

    def fcompile(out: str, objects: Sequence[str], options: Sequence[str] = ()) -> None:
        link(objects, out, target, options)

    return fcompile


def compiler(architecture: str) -> list[str]:
    """The command of a C compiler and linker for Linux on `architecture` ("aarch64", "x86_64").

    Zig first: it comes with pip, so that the same versions give the same bytes on every machine, and it links against
    an old glibc. A distribution's cross compiler asks for its own glibc (Debian 12's `exp` needs 2.29), which boards
    do not have.
    """
    if importlib.util.find_spec("ziglang") and architecture in _GLIBC:
        triple = f"{architecture}-linux-gnu.{_GLIBC[architecture]}"
        return [sys.executable, "-m", "ziglang", "cc", "-target", triple]
    native = ["cc"] if architecture == platform.machine() else []
    for command in (f"{architecture}-linux-gnu-gcc", *native):
        if shutil.which(command):
            return [command]
    hint = "pip install ziglang" if architecture in _GLIBC else f"install {architecture}-linux-gnu-gcc"
    raise NncError(f"no compiler that links for {architecture}", hint)


def includes() -> list[str]:
    """Where the headers of TVM's foreign-function layer are, as options of a C compiler."""
    package = importlib.util.find_spec("tvm_ffi")
    if package is None or package.origin is None:
        raise NncError("the headers of apache-tvm-ffi are not installed", "pip install apache-tvm-ffi==0.1.14.post1")
    return [f"-I{Path(package.origin).parent / place}" for place in _HEADERS]


def run(
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    subject: str | None = None,
    folder: Path | None = None,
) -> str:
    """Run a tool of the toolchain in `folder` and return its output; what it complains about becomes an NncError.

    The message is about `subject`, or about the command.
    """
    # Zig keeps the start-up code and libraries that it builds, where the home folder may be read-only; but not what it
    # makes of a network, hundreds of megabytes of weights each time.
    with tempfile.TemporaryDirectory(prefix="nnc-") as local:
        zig_cache = {"ZIG_GLOBAL_CACHE_DIR": str(cache_folder() / "zig"), "ZIG_LOCAL_CACHE_DIR": local}
        done = subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env=zig_cache | dict(os.environ) | dict(environment or {}),
            capture_output=True,
            text=True,
            errors="replace",
        )
    if done.returncode:
        raise NncError(f"{subject or ' '.join(map(str, command[:4])) + ' ... failed'}: {_complaint(done)}")
    return done.stdout


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The line of the output that says what is wrong."""
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    line = errors[0] if errors else lines[-1] if lines else f"exit status {done.returncode}"
    return line.removeprefix("error: ")
