"""The program that runs a network on a board's GPU: run_opencl.c or run_cuda.c, linked for the board's processor."""

from __future__ import annotations

import re
import tempfile
from importlib import resources
from pathlib import Path

from nnc.lowering import cross
from nnc.target import Target

#: By the language of the kernels: the source, and the shared library that the board brings.
RUNNERS = {"opencl": ("run_opencl.c", "OpenCL", "cl"), "cuda": ("run_cuda.c", "cuda", "cu")}


def sources(target: Target) -> dict[str, str]:
    """The files that the runner of a target's GPU is made of, by name."""
    names = (RUNNERS[target.unit.tvm["kind"]][0], "network_reader.h")
    return {name: resources.files("nnc.lowering.gpu").joinpath(name).read_text("utf-8") for name in names}


def program(target: Target) -> bytes:
    """The runner, as `link` makes it."""
    with tempfile.TemporaryDirectory(prefix="nnc-") as name:
        link(target, Path(name) / "run")
        return (Path(name) / "run").read_bytes()


def link(target: Target, out: Path) -> None:
    """Compile the runner of a target's GPU into the program `out`.

    It is linked against a stub with the functions that it calls: the library itself is the board's driver. Raises
    NncError where no compiler for the board's processor is installed.
    """
    source, library, prefix = RUNNERS[target.unit.tvm["kind"]]
    with tempfile.TemporaryDirectory(prefix="nnc-") as name:
        folder = Path(name)
        for file, text in sources(target).items():
            (folder / file).write_text(text, "utf-8")
        compiler = cross.compiler(target.unit.architecture)
        called = re.findall(rf"^extern .*\b({prefix}[A-Z]\w+)\(", (folder / source).read_text("utf-8"), re.MULTILINE)
        stub = "".join(f"void {function}(void) {{}}\n" for function in called)
        (folder / "stub.c").write_text(stub, "utf-8")
        shared = folder / f"lib{library}.so"
        soname = f"-Wl,-soname,lib{library}.so.1"
        cross.run([*compiler, "-shared", "-fPIC", "-fno-builtin", soname, folder / "stub.c", "-o", shared])
        cross.run([*compiler, "-std=gnu11", "-O2", folder / source, f"-L{folder}", f"-l{library}", "-o", out])
