"""The folder that a compile leaves behind, opened again: what is in it, and running its library."""

import json
import platform
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from nnc.compiling.output import LOCK
from nnc.context import Progress, silent
from nnc.data import Preprocess
from nnc.digests import file_digest
from nnc.display import units
from nnc.errors import NncError
from nnc.hardware import host
from nnc.model import wire
from nnc.target import Target
from nnc.verify import probe


@dataclass(frozen=True)
class Tensor:
    """An input of the model."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"'{self.name}' {self.dtype} [{', '.join(map(str, self.shape))}]"


class Running(Protocol):
    """nnc.lowering.library.Library, or one of those that run elsewhere."""

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class Artifact:
    """A finished compile."""

    folder: Path
    report: Mapping[str, Any]
    lock: Mapping[str, Any]
    target: Target
    preprocess: Preprocess
    """What the recipe says of images."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    threads: int
    """How many the library was compiled for."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the folder; NncError where it does not hold a finished compile."""
        if folder.suffix == ".onnx" and not folder.is_dir():
            hint = f"compile it first: nnc compile RECIPE {folder} --target TARGET -o DIR"
            raise NncError(f"{folder}: a model, not the folder of a compile", hint)
        if not folder.is_dir():
            raise NncError(f"{folder}: no such folder" if not folder.exists() else f"{folder}: a file, not a folder")
        if not (folder / LOCK).exists():
            raise NncError(f"{folder}: holds no finished compile", "give the folder that nnc compile wrote")
        try:
            lock, report = _read(folder / LOCK), _read(folder / "report.json")
            target = Target.model_validate_json(json.dumps(lock["target"]))
            preprocess = Preprocess.model_validate(lock["data"]["preprocess"])
            missing = [name for name in (*report["files"], *lock["results"]) if not (folder / name).is_file()]
            inputs = tuple(map(_tensor, report["model"]["inputs"]))
            outputs = tuple(entry["name"] for entry in report["model"]["outputs"])
            artifact = cls(folder, report, lock, target, preprocess, inputs, outputs, int(report["threads"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NncError(f"{folder}: report.json or {LOCK} is damaged", "compile again") from error
        if missing:
            raise NncError(f"{folder}: {missing[0]} is missing", "compile again")
        return artifact

    @property
    def model_path(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def has_library(self) -> bool:
        """Whether the compile built one."""
        return "library_bytes" in self.report

    @property
    def library_path(self) -> Path:
        """The library; NncError where there is none."""
        if not self.has_library:
            hint = "compile without --no-lower; onnxruntime runs its model.onnx"
            raise NncError(f"{self.folder}: was compiled with --no-lower, there is no library in it", hint)
        return self.folder / {"cpu": "module.so", "gpu": "network.json", "dsp": "module.o"}[self.target.unit.kind]

    @property
    def library_files(self) -> list[Path]:
        """What the library consists of."""
        parts = ["network.json", "weights.bin", "kernels.cl", "kernels.cu", "kernels.ptx"]
        parts = parts if self.is_gpu else [self.library_path.name]
        return [self.folder / name for name in parts if name in self.lock["results"]]

    @property
    def is_gpu(self) -> bool:
        """Whether the library is kernels of a GPU, and a list of what to launch."""
        return self.target.unit.kind == "gpu"

    @property
    def is_dsp(self) -> bool:
        """Whether the library is an object for a DSP."""
        return self.target.unit.kind == "dsp"

    @property
    def emulated(self) -> bool:
        """Whether this machine has another instruction set than the target."""
        return self.is_gpu or self.target.unit.architecture != platform.machine()

    @property
    def runtime(self) -> str:
        """Where the library runs, and in which arithmetic where some of it is in integers, in words."""
        if self.is_gpu:
            return f"the kernels for {self.target.name}:{self.target.unit.name}, on this machine"
        architecture = self.target.unit.architecture
        where = f"the library for {architecture}" + (", emulated" if self.emulated else "")
        layers = [layer.get("dtype") for layer in self.report["layers"] if layer["macs"]]
        integers = layers.count("int8")
        sums = "exact int8 sums" if self.is_dsp else "exact int8"  # what a DSP makes of them is in fixed point
        return f"{where}: {sums} in {integers} of {units.plural(len(layers), 'layer')}" if integers else where

    def library(self, threads: int | None = None) -> Running:
        """The library, ready to run: on this machine, or another one's in an emulator; on `threads_here(threads)`."""
        count = self.threads_here(threads)
        self.check_library()
        if self.is_gpu:
            from nnc.lowering.units import gpu_library

            return gpu_library(self.folder)
        if self.is_dsp:
            from nnc.lowering.dsp.emulate import EmulatedDsp

            return EmulatedDsp(self.library_path, self.target)
        if self.emulated:
            from nnc.lowering.emulate import EmulatedLibrary

            return EmulatedLibrary(self.library_path, self.target, count)
        from nnc.lowering.library import Library

        return Library(self.library_path, count)

    def threads_here(self, threads: int | None) -> int:
        """How many threads the library runs on here: without `threads`, as many as it was compiled for, at most one
        for each processor.

        Raises NncError where there are not so many processors, and where the library isn't one of a processor.
        """
        if threads is None:
            return min(self.threads, host.processors())
        if self.target.unit.kind != "cpu":
            raise NncError(
                f"--threads {threads}: the library of a {self.target.unit.kind} runs as it was compiled",
                "leave out --threads",
            )
        host.require_processors(threads)
        return threads

    def check_files(self) -> None:
        """Refuse a library that is not what the compile wrote, such as half of a file."""
        self._check(self.library_path, *self.library_files)

    def checked_model(self) -> Path:
        """The path of model.onnx; NncError where it or the weights beside it are not what the compile wrote."""
        names = [name for name in self.lock["results"] if name.startswith(self.model_path.name)]
        self._check(self.model_path, *(self.folder / name for name in names))
        return self.model_path

    def _check(self, *paths: Path) -> None:
        for path in dict.fromkeys(paths):
            if file_digest(path) != self.lock["results"].get(path.name):
                raise NncError(f"{path}: not the file that the compile wrote", "compile again")

    def check_library(self) -> None:
        """Refuse a library that would take the process down: half of a file, or code for a newer x86 than this one."""
        self.check_files()
        if not self.emulated:
            host.require(self.target.unit, str(self.folder), "compile it here")

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        threads: int | None = None,
        place: str = "the inputs",
        progress: Progress = silent,
    ) -> dict[str, np.ndarray]:
        """The outputs by name for arrays by input name; NncError where these do not fit the model."""
        arrays, library = self.checked(inputs, place), self.library(threads)
        progress("run the network", 0, 1)
        outputs = library.run(arrays)
        progress("run the network", 1, 1)
        return self.named(outputs)

    def checked(self, inputs: Mapping[str, np.ndarray], place: str = "the inputs") -> list[np.ndarray]:
        """The arrays in the model's order; NncError, beginning with `place`, where one is missing or does not fit."""
        wanted = {tensor.name: tensor for tensor in self.inputs}
        listed = " and ".join(map(str, wanted.values()))
        for name in wanted.keys() - inputs.keys():
            found = ", ".join(map(repr, inputs)) or "nothing"
            raise NncError(f"{place}: '{name}' is missing; found {found}", f"the model reads {listed}")
        for name in inputs.keys() - wanted.keys():
            raise NncError(f"{place}: the model has no input '{name}'", f"it reads {listed}")
        for name, tensor in wanted.items():
            array = inputs[name]
            found = str(Tensor(name, array.shape, array.dtype))
            if array.shape != tensor.shape:
                raise NncError(f"{place}: {found}, but the model reads {tensor}")
            if array.dtype != tensor.dtype:
                raise NncError(f"{place}: {found}, but the model reads {tensor}", f"save it .astype('{tensor.dtype}')")
        return [inputs[name] for name in wanted]

    def named(self, outputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of the library by the names of the outputs."""
        return dict(zip(self.outputs, outputs, strict=True))

    def random_inputs(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Inputs that fit the model, as `verify.probe_inputs` makes them for a graph."""
        rng = np.random.default_rng(seed)
        return {tensor.name: probe(rng, tensor.dtype, tensor.shape) for tensor in self.inputs}


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    return Tensor(entry["name"], tuple(entry["shape"]), np.dtype(entry["dtype"]))


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name."""
    if not path.is_file():
        raise NncError(f"{path}: no such file" if not path.exists() else f"{path}: a folder, not an .npz file")
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            arrays = {} if isinstance(archive, np.ndarray) else {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise NncError(f"{path}: not an .npz file of numbers", "write it with numpy.savez(file, NAME=array)") from error
    if isinstance(archive, np.ndarray):
        raise NncError(f"{path}: a single array without a name", "write it with numpy.savez(file, NAME=array)")
    return arrays


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz; the file is there only when it is complete."""
    with wire.replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
