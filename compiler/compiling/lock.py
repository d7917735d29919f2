"""nnc.lock: everything that determines the results of a compile, and digests of it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from nnc import __version__
from nnc.context import Progress
from nnc.data import listed
from nnc.digests import digest, file_digest
from nnc.errors import NncError
from nnc.model import wire
from nnc.recipe import Recipe
from nnc.training.training_pass import TrainingPass

if TYPE_CHECKING:
    from nnc.compiling.job import Job

#: Packages whose version can change what a compile leaves behind; null in a lock where there is none of that name.
PACKAGES = (
    *("onnx", "onnx-graphsurgeon", "onnxruntime", "numpy", "scipy", "tensorly", "pillow"),
    *("apache-tvm", "apache-tvm-ffi", "ziglang"),
)

#: Packages that make PTX of CUDA kernels and say what these take; each may be missing.
CUDA_PACKAGES = ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12", "nvidia-cuda-nvcc-cu12")


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def lock(job: Job, data: Mapping[str, str]) -> dict[str, Any]:
    """What determines the results, whose digests are added when they are there; `data` are the `data_digests`."""
    recipe = job.recipe
    trains = any(isinstance(pass_, TrainingPass) and pass_.epochs for pass_ in recipe.passes)
    return {
        "nnc": __version__,
        "python": platform.python_version(),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "packages": {name: installed(name) for name in (*PACKAGES, *(("torch",) if trains else ()))},
        "model": {
            "name": job.model.name,
            "sha256": _digests(model_files(job.model), job.model.parent),
        },
        "data": {
            "sha256": dict(data),
            "preprocess": recipe.data.preprocess.model_dump(mode="json"),
        },
        "target": job.target.model_dump(mode="json", by_alias=True),
        "shapes": {name: list(shape) for name, shape in job.shapes.items()},
        "threads": job.threads,
        **({"training": _training()} if trains else {}),
        "seed": job.seed,
        "recipe": {
            "name": recipe.called,
            "set": list(recipe.overrides),
            "preprocess": dict(recipe.preprocess),
            "sha256": _digests((recipe.path, *recipe.used), recipe.path.parent),
            "resolved": recipe.to_toml(),
        },
    }


def _training() -> dict[str, Any]:
    """What trained weights depend on besides the packages: what computes them, and on how many threads."""
    import torch

    from nnc.training import steps

    device = steps.device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads()}


def inputs_digest(lock: Mapping[str, Any]) -> str:
    """A digest of all that a pass can see besides the graph and its own parameters."""
    return digest(json.dumps({key: value for key, value in lock.items() if key != "recipe"}, sort_keys=True))


def model_files(path: Path) -> list[Path]:
    """The files that a model consists of: its own, and those of external data."""
    tensors = wire.read(path)[0].graph.initializer
    external = (tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL)
    names = {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
    return [path, *(path.parent / name for name in sorted(names))]


def _digests(files: Iterable[Path], folder: Path) -> dict[str, str]:
    """SHA-256 of files by their paths from a folder."""
    return {os.path.relpath(file, folder): file_digest(file) for file in files}


def _teacher_digest(path: Path) -> str:
    """SHA-256 of a model; where it keeps weights in other files, a hash over those of all."""
    try:
        files = model_files(path)
    except NncError as error:
        raise NncError(f"teacher: {error.message}", error.hint) from error
    return file_digest(path) if len(files) == 1 else digest(json.dumps(_digests(files, path.parent)))


def data_digests(recipe: Recipe, progress: Progress, only: Sequence[str] | None = None) -> dict[str, str]:
    """SHA-256 of the data by the key of [data], or of those keys `only`."""
    paths = {key: path for key, path in recipe.data_paths().items() if only is None or key in only}
    return {
        key: _teacher_digest(path)
        if key == "teacher"
        else _data_digest(path, partial(progress, f"hash the {key} data"))
        for key, path in paths.items()
    }


def data_key(recipe: Recipe, digests: Mapping[str, str]) -> str:
    """A digest of the calibration data and of how they are prepared; empty without them."""
    found = digests.get("calibration")
    return digest(found, recipe.data.preprocess.model_dump_json()) if found else ""


def _data_digest(path: Path, progress: Callable[[int, int], None]) -> str:
    """SHA-256 of a data file; of a folder, over the names, labels and contents of its images."""
    if path.is_file():
        progress(0, 1)
        found = file_digest(path)
        progress(1, 1)
        return found
    state = hashlib.sha256()
    files, labels = listed(path)
    for index, file in enumerate(files):
        progress(index, len(files))
        label = "" if labels is None else labels[index]
        state.update(os.fsencode(f"{os.path.relpath(file, path)} {label} {file_digest(file)}\n"))
    progress(len(files), len(files))
    return state.hexdigest()


def metadata(job: Job, lock: Mapping[str, Any]) -> dict[str, str]:
    """metadata_props of model.onnx."""
    return {
        "nnc.version": __version__,
        "nnc.recipe": job.recipe.to_toml(),
        "nnc.passes": ",".join(pass_.name for pass_ in job.recipe.passes),
        "nnc.packages": json.dumps(lock["packages"]),
        "nnc.target": job.target.label,
    }
