"""`nnc package`: one file with everything that a board needs to run a compiled network."""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import mmap
import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from nnc import __version__, verify
from nnc import graph as graphs
from nnc.artifact import Artifact
from nnc.context import Progress
from nnc.display import units
from nnc.errors import NncError
from nnc.model import wire
from nnc.session import Session

_SUFFIXES = (".tar.gz", ".tgz")


@dataclass(frozen=True)
class Package:
    """A file that was written."""

    path: Path
    bytes: int
    files: tuple[str, ...]
    """What is in it, below the one folder that it unpacks to."""
    folder: str
    command: str
    """What to try first in that folder."""
    expected_from: str
    """What computed the outputs that the board's are compared with."""
    place: str = "on the board"
    """Where to try it."""

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self) | {"path": str(self.path)}


def package(folder: Path, out: Path | None, progress: Progress) -> Package:
    """Write the compile in `folder` to `out` (default: beside it, named like it and the target), a gzipped tar.

    The same compile gives the same bytes. Raises NncError where the folder holds no library for a processor.
    """
    artifact = Artifact.open(folder)
    _require_library(artifact)
    path = out or _default(artifact)
    _require_writable(path)
    progress("link the runner", 0, 3)
    files = _program(artifact)
    progress("run the network", 1, 3)
    inputs = artifact.random_inputs()
    expected, source = _expected(artifact, inputs)
    arrays = _raw if artifact.is_gpu else _npy
    files |= _numbered("input", list(inputs.values()), arrays) | _numbered("expected", expected, arrays)
    files["README.md"] = _readme(artifact, source).encode()
    progress("pack", 2, 3)
    name = path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
    with wire.replacing(path) as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        _write_tar(packed, name, files, artifact.library_files)
    progress("pack", 3, 3)
    listed = sorted([*files, *(file.name for file in artifact.library_files)])
    place = "here, in QEMU" if artifact.is_dsp else "on the board"
    return Package(path, path.stat().st_size, tuple(listed), name, _first_command(artifact), source, place)


def _first_command(artifact: Artifact) -> str:
    if artifact.is_dsp:
        return "qemu-hexagon ./run --check"
    if not artifact.is_gpu:
        return "./run --check"
    names = [*_names("input", len(artifact.inputs)), *_names("output", len(artifact.outputs))]
    return " ".join(["./run", ".", *(f"{name}.bin" for name in names)])


# -- what can be packed, and where to


def _require_library(artifact: Artifact) -> None:
    path = artifact.library_path
    artifact.check_files()
    if artifact.is_gpu and not artifact.folder.joinpath(f"kernels.{_kernels(artifact)}").exists():
        hint = "pip install nvidia-cuda-nvrtc-cu12, and compile again"
        raise NncError(f"{artifact.folder}: its CUDA kernels were not compiled, there is no kernels.ptx", hint)
    if not artifact.is_gpu and not _holds(path, b"nnc_network\0"):
        raise NncError(f"{path}: of an older nnc, which the runner can't load", "compile again")


def _holds(path: Path, text: bytes) -> bool:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def _kernels(artifact: Artifact) -> str:
    """The suffix of the kernels that the runner of a GPU reads."""
    return {"opencl": "cl", "cuda": "ptx"}[artifact.target.unit.tvm["kind"]]


def _default(artifact: Artifact) -> Path:
    folder, unit = Path(os.path.abspath(artifact.folder)), artifact.target.unit
    target = artifact.target.name + ("" if unit.kind == "cpu" else f"-{unit.name}")
    name = folder.name if folder.name.endswith(target) else f"{folder.name}-{target}"
    return folder.parent / f"{name}.tar.gz"


def _require_writable(path: Path) -> None:
    if not path.name.endswith(_SUFFIXES) or path.name.startswith(_SUFFIXES):
        raise NncError(f"{path}: a package is a gzipped tar file", "choose a name that ends in .tar.gz")
    wire.refuse_folder(path)
    if not path.parent.is_dir():
        raise NncError(f"{path.parent}: no such folder", "make it first, or choose another file with -o")


# -- what is in it


def _program(artifact: Artifact) -> dict[str, bytes]:
    """The runner, its sources and the licenses."""
    if artifact.is_gpu:
        from nnc.lowering.gpu import runner as gpu

        sources, program = gpu.sources(artifact.target), gpu.program(artifact.target)
    elif artifact.is_dsp:
        from nnc.lowering.dsp import module

        with tempfile.TemporaryDirectory(prefix="nnc-") as name:
            made = module.program(artifact.library_path.resolve(), artifact.target, Path(name))
            sources, program = module.sources(), made.read_bytes()
    else:
        from nnc.lowering import runner

        sources, program = runner.sources(), runner.program(artifact.target.unit.architecture)
    files = {f"source/{name}": text.encode() for name, text in sources.items()} | {"run": program}
    return files | {"LICENSE": _license("apache-tvm", "LICENSE"), "NOTICE": _license("apache-tvm-ffi", "NOTICE")}


def _license(package: str, name: str) -> bytes:
    """A file of those that a package's licence asks to hand on with what it generated."""
    for file in importlib.metadata.files(package) or ():
        if file.name == name and ".dist-info" in str(file):
            return Path(str(file.locate())).read_bytes()
    raise NncError(f"{package}: its {name} is missing", f"pip install --force-reinstall {package}")


def _expected(artifact: Artifact, inputs: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], str]:
    """The outputs in order, and what computed them: the library where it can run here, otherwise onnxruntime."""
    try:
        outputs = artifact.run(inputs)
        source = artifact.runtime.replace("the library", "this library")
    except NncError:  # no emulator, or a newer processor than this one
        graph = graphs.load(artifact.checked_model())
        outputs = Session(graph, optimized=not verify.rounds(graph)).run(dict(inputs))
        source = "onnxruntime"
    return [outputs[name] for name in artifact.outputs], source


def _npy(array: np.ndarray) -> tuple[str, bytes]:
    file = io.BytesIO()
    np.save(file, np.asarray(array, order="C"))
    return "npy", file.getvalue()


def _raw(array: np.ndarray) -> tuple[str, bytes]:
    return "bin", array.tobytes()


def _numbered(
    stem: str, arrays: Sequence[np.ndarray], write: Callable[[np.ndarray], tuple[str, bytes]]
) -> dict[str, bytes]:
    """The arrays as input.npy, or input0.npy, input1.npy and so on."""
    files = {}
    for index, array in enumerate(arrays):
        suffix, content = write(array)
        files[f"{stem}{index if len(arrays) > 1 else ''}.{suffix}"] = content
    return files


def _readme(artifact: Artifact, source: str) -> str:
    report = artifact.report
    template = resources.files("nnc").joinpath("package.md").read_text("utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return environment.from_string(template).render(
        artifact=artifact,
        report=report,
        version=__version__,
        source=source,
        inputs=list(map(_described, report["model"]["inputs"])),
        outputs=list(map(_described, report["model"]["outputs"])),
        files=_names("input", len(artifact.inputs)),
        results=_names("output", len(artifact.outputs)),
        latency=units.milliseconds(report["after"]["latency_ms"]),
        types=[f"np.{each['dtype']}" for each in report["model"]["outputs"]],
        needs=_needs(artifact),
        build=_BUILD[artifact.target.unit.tvm["kind"]],
        processor=artifact.target.unit.tvm.get("mcpu"),
    )


#: By what generated the kernels: how the program is compiled from its sources.
_BUILD = {
    "llvm": "-pthread -rdynamic *.c -ldl -lm",
    "opencl": "run_opencl.c -lOpenCL",
    "cuda": "run_cuda.c -lcuda",
}


def _needs(artifact: Artifact) -> str:
    """What the board must have besides the C library."""
    tvm = artifact.target.unit.tvm
    if artifact.is_gpu:
        library = {"opencl": "OpenCL 1.2 (libOpenCL.so.1)", "cuda": "CUDA (libcuda.so.1)"}[tvm["kind"]]
        return f"a driver with {library}"
    features = " ".join([str(tvm.get("mcpu")), *tvm.get("mattr", ())])
    return f"a processor with what the code was compiled for: `{features}`"


def _names(stem: str, count: int) -> list[str]:
    return [f"{stem}{index if count > 1 else ''}" for index in range(count)]


def _described(entry: Mapping[str, Any]) -> str:
    return f"`{entry['name']}`, {entry['dtype']} {entry['shape']}"


# -- the file


def _write_tar(file: Any, folder: str, files: Mapping[str, bytes], library: Sequence[Path]) -> None:
    """Everything in order of its name, with neither times nor owners."""
    large = {path.name: path for path in library}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted([*files, *large]):
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.mode = 0o755 if name == "run" else 0o644
            with open(large[name], "rb") if name in large else io.BytesIO(files[name]) as content:
                entry.size = content.seek(0, os.SEEK_END)
                content.seek(0)
                archive.addfile(entry, content)
