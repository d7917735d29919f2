"""`nnc package`: one file with everything that a board needs to run a compiled network."""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from nnc import __version__, units, verify, wire
from nnc import graph as graphs
from nnc.artifact import Artifact
from nnc.context import Progress
from nnc.errors import NncError
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
    expected_from: str
    """What computed the outputs that `./run --check` compares with."""

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
    files |= _arrays("input", list(inputs.values())) | _arrays("expected", expected)
    files["README.md"] = _readme(artifact, source).encode()
    progress("pack", 2, 3)
    name = path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
    with wire.replacing(path) as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        _write_tar(packed, name, files, artifact.library_path)
    progress("pack", 3, 3)
    return Package(path, path.stat().st_size, (*sorted(files), artifact.library_path.name), name, source)


# -- what can be packed, and where to


def _require_library(artifact: Artifact) -> None:
    path = artifact.library_path
    if artifact.is_gpu:
        hint = f"the kernels and their list are files of {artifact.folder}: copy them, they need no runtime of nnc's"
        raise NncError(f"{artifact.folder}: compiled for {artifact.target.spec}; only CPUs can be packaged", hint)
    artifact.check_files()
    if b"nnc_network\0" not in path.read_bytes():
        raise NncError(f"{path}: of an older nnc, which the runner can't load", "compile again")


def _default(artifact: Artifact) -> Path:
    folder, target = Path(os.path.abspath(artifact.folder)), artifact.target.name
    name = folder.name if folder.name.endswith(target) else f"{folder.name}-{target}"
    return folder.parent / f"{name}.tar.gz"


def _require_writable(path: Path) -> None:
    if not path.name.endswith(_SUFFIXES) or path.name.startswith(_SUFFIXES):
        raise NncError(f"{path}: a package is a gzipped tar file", "choose a name that ends in .tar.gz")
    if path.is_dir():
        raise NncError(f"{path}: a folder, not a file", "choose another file with -o")
    if not path.parent.is_dir():
        raise NncError(f"{path.parent}: no such folder", "make it first, or choose another file with -o")


# -- what is in it


def _program(artifact: Artifact) -> dict[str, bytes]:
    """The runner, its sources and the licenses."""
    from nnc.lowering import runner

    files = {f"source/{name}": text.encode() for name, text in runner.sources().items()}
    files["run"] = runner.program(artifact.target.unit.architecture)
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
        graph = graphs.load(artifact.model_path)
        outputs = Session(graph, optimized=not verify.rounds(graph)).run(dict(inputs))
        source = "onnxruntime"
    return [outputs[name] for name in artifact.outputs], source


def _arrays(stem: str, arrays: Sequence[np.ndarray]) -> dict[str, bytes]:
    """The arrays as input.npy, or input0.npy, input1.npy and so on."""
    files = {}
    for index, array in enumerate(arrays):
        file = io.BytesIO()
        np.save(file, np.asarray(array, order="C"))
        files[f"{stem}{index if len(arrays) > 1 else ''}.npy"] = file.getvalue()
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
        files=[f"input{i if len(artifact.inputs) > 1 else ''}.npy" for i in range(len(artifact.inputs))],
        latency=units.milliseconds(report["after"]["latency_ms"]),
        features=" ".join([str(artifact.target.unit.tvm.get("mcpu")), *artifact.target.unit.tvm.get("mattr", ())]),
    )


def _described(entry: Mapping[str, Any]) -> str:
    return f"`{entry['name']}`, {entry['dtype']} {entry['shape']}"


# -- the file


def _write_tar(file: Any, folder: str, files: Mapping[str, bytes], library: Path) -> None:
    """Everything in order of its name, with neither times nor owners."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted([*files, library.name]):
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.mode = 0o755 if name == "run" else 0o644
            with open(library, "rb") if name == library.name else io.BytesIO(files[name]) as content:
                entry.size = content.seek(0, os.SEEK_END)
                content.seek(0)
                archive.addfile(entry, content)
