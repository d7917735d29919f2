"""Running networks for Hexagon DSPs on this machine, through QEMU's user emulation."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnc.errors import NncError
from nnc.lowering import cross
from nnc.lowering.dsp import module
from nnc.target import Target


class EmulatedDsp:
    """A compiled network for a DSP."""

    def __init__(self, path: Path, target: Target) -> None:
        """Raises NncError where the emulator or the linker can't be had."""
        if not path.is_file():
            raise NncError(f"{path}: no such file")
        self._emulator, self._path = emulator(), path
        folder = Path(tempfile.mkdtemp(prefix="nnc-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._program = module.program(path.resolve(), target, folder)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for `inputs`, both in the model's order, with the shapes and dtypes it declares."""
        with tempfile.TemporaryDirectory(prefix="nnc-") as name:
            folder = Path(name)
            files = [folder / f"input{index}.npy" for index in range(len(inputs))]
            for file, values in zip(files, inputs, strict=True):
                np.save(file, np.asarray(values, order="C"))
            command: list[str | Path] = [self._emulator, self._program, "-o", folder / "output.npy"]
            cross.run([*command, *files], subject=str(self._path))
            made = sorted(folder.glob("output*.npy"), key=lambda file: int("0" + file.stem.removeprefix("output")))
            return [np.load(file) for file in made]


def emulator() -> str:
    """The command that runs a program of a Hexagon DSP."""
    qemu = shutil.which("qemu-hexagon") or shutil.which("qemu-hexagon-static")
    if qemu is None:
        raise NncError("qemu-hexagon is not installed, which runs networks for DSPs here", "apt install qemu-user")
    return qemu
