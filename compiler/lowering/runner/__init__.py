"""The program that runs a library on a board with nothing but the C library: run.c, npy.c and runtime.c."""

from __future__ import annotations

import tempfile
from importlib import resources
from pathlib import Path

from nnc.lowering import cross

_LINK = ("-std=gnu11", "-O2", "-g0", "-pthread", "-rdynamic")


def sources() -> dict[str, str]:
    """The files that the program is made of, by name."""
    files = [file for file in resources.files("nnc.lowering.runner").iterdir() if file.name.endswith((".c", ".h"))]
    files.append(resources.files("nnc.lowering").joinpath("nnc.h"))
    return {file.name: file.read_text("utf-8") for file in sorted(files, key=lambda file: file.name)}


def program(architecture: str) -> bytes:
    """The program, linked for `architecture` ("aarch64", "x86_64").

    Raises NncError where no compiler for it is installed.
    """
    with tempfile.TemporaryDirectory(prefix="nnc-") as name:
        folder = Path(name)
        for file, text in sources().items():
            (folder / file).write_text(text, "utf-8")
        code = sorted(folder.glob("*.c"))
        cross.run([*cross.compiler(architecture), *_LINK, *code, "-ldl", "-lm", "-o", folder / "run"])
        return (folder / "run").read_bytes()
