"""module.o: a network for a Hexagon DSP as one relocatable object, and the program that runs it in QEMU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from nnc.errors import NncError
from nnc.lowering import cross, runner
from nnc.target import Target

FILE = "module.o"


def link(objects: Sequence[Path], target: Target, options: Sequence[str], folder: Path) -> Path:
    """Compile what is not yet an object of `objects`, files of `folder`, and put all of them together into module.o.

    Raises NncError where ziglang is not installed.
    """
    compiled = [each if each.suffix == ".o" else _compiled(each, target, options) for each in objects]
    names = [each.name for each in compiled]
    cross.run([*_zig(), "ld.lld", "-m", "hexagonelf", "-r", *names, "-o", FILE], folder=folder)
    return folder / FILE


def _compiled(source: Path, target: Target, options: Sequence[str]) -> Path:
    made = source.with_suffix(".o")
    command = [*compiler(target), "-std=c11", "-O2", "-g0", "-fPIC", *options]
    cross.run([*command, "-c", source.name, "-o", made.name], folder=source.parent)
    return made


def compiler(target: Target) -> list[str]:
    """The command of a C compiler for the target's DSP, with the headers of a C library."""
    return [*_zig(), "cc", "-target", "hexagon-linux-musl", f"-mcpu={target.unit.tvm.get('mcpu', 'hexagonv65')}"]


def _zig() -> list[str]:
    if importlib.util.find_spec("ziglang") is None:
        raise NncError("no compiler that links for hexagon", "pip install ziglang")
    return [sys.executable, "-m", "ziglang"]


def sources() -> dict[str, str]:
    """The files that the program for QEMU is made of, by name: those of a board's, without threads and loading."""
    own = resources.files("nnc.lowering.dsp").joinpath("runtime.c").read_text("utf-8")
    return runner.sources() | {"runtime.c": own}


def program(module: Path, target: Target, folder: Path) -> Path:
    """The program with the network in it, `folder`/run: a static one for Linux, which QEMU emulates."""
    for file, text in sources().items():
        (folder / file).write_text(text, "utf-8")
    code = sorted(folder.glob("*.c"))
    cross.run([*compiler(target), "-static", "-std=gnu11", "-O2", "-g0", *code, module, "-o", folder / "run"])
    return folder / "run"
