"""The library of a compile: built, or kept from an earlier compile of the same graph."""

import json
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from nnc import __version__
from nnc.compiling.job import Job
from nnc.compiling.lock import CUDA_PACKAGES, PACKAGES, installed
from nnc.compiling.output import OutputFolder
from nnc.context import Context
from nnc.digests import code_digest, digest, file_digest, graph_digest
from nnc.errors import NncError
from nnc.simulation.kernels import Storage
from nnc.tuning.records import Records

#: The template of a kernel that computes two layers.
_PAIR = "expand_depthwise"

#: The layout of images in blocks of channels.
_BLOCKS = re.compile(r"NCHW(\d+)c")


def built(job: Job, graph: gs.Graph, known: Records, context: Context, folder: OutputFolder) -> dict[str, Any]:
    """Build the library, or keep that of an earlier compile of the same graph: its files by SHA-256, its kernels."""
    key = library_key(job, graph, known)
    kept: dict[str, Any] | None = folder.recalled("library", key)
    if kept is not None and all(_holds(folder.path / name, sha256) for name, sha256 in kept["files"].items()):
        return kept
    from nnc import lowering  # imports tvm, which takes seconds

    schedules = {"schedules": known} if job.target.unit.kind == "cpu" else {}
    made = lowering.build(
        graph, job.target, folder.staging, threads=job.threads, progress=context.progress, **schedules
    )
    return {
        "key": key,
        "files": {file.name: file_digest(file) for file in made.files},
        "library_bytes": sum(file.stat().st_size for file in made.files),
        "workspace_bytes": made.workspace_bytes,
        "weight_bytes": made.weight_bytes,
        "packed_bytes": made.packed_bytes,
        "kernels": [asdict(kernel) for kernel in made.kernels],
        "tuned": made.tuned,
    }


def storage_of(graph: gs.Graph, library: Mapping[str, Any]) -> Storage:
    """How the library of a graph keeps images."""
    blocks: dict[str, int] = {}
    for kernel in library["kernels"]:
        if found := _BLOCKS.fullmatch(kernel["layout"]):
            blocks |= dict.fromkeys(kernel["nodes"], int(found[1]))
    images = {each.name: blocks[node.name] for node in graph.nodes if node.name in blocks for each in node.outputs}
    return Storage([kernel["nodes"] for kernel in library["kernels"] if kernel["template"] == _PAIR], images)


def storage_before(job: Job, graph: gs.Graph, known: Records, folder: OutputFolder) -> Storage:
    """How a library of `graph`, the model before the first pass, would keep images; nothing where none can be built."""

    def compute() -> dict[str, Any]:
        from nnc import lowering

        with suppress(NncError):
            return asdict(lowering.storage(graph, job.target, known, job.threads))
        return {}

    return Storage(**folder.once("storage", library_key(job, graph, known), compute))


def lock_entries(job: Job, library: Mapping[str, Any]) -> dict[str, Any]:
    """What nnc.lock says of the tuning records and, for CUDA, of the packages that the library depends on."""
    plans = json.dumps(library["tuned"], sort_keys=True)
    tuning = {"layers": len(library["tuned"]), "records": digest(plans) if library["tuned"] else None}
    cuda = _cuda_packages(job)
    return {"tuning": tuning, **({"cuda": cuda} if cuda else {})}


def _cuda_packages(job: Job) -> dict[str, str | None]:
    """The versions of what makes PTX of CUDA kernels, None where it is not installed; nothing for other units."""
    return {name: installed(name) for name in CUDA_PACKAGES} if job.target.unit.tvm["kind"] == "cuda" else {}


def _holds(path: Path, sha256: str) -> bool:
    return path.is_file() and file_digest(path) == sha256


def library_key(job: Job, graph: gs.Graph, known: Records) -> str:
    """A digest of all that the library depends on."""
    sources = sorted(Path(__file__).parents[1].joinpath("lowering").rglob("*"))
    code = [code_digest(), *(file_digest(source) for source in sources if source.suffix in (".c", ".h"))]
    packages = [f"zlib {zlib.ZLIB_RUNTIME_VERSION}", *(f"{name} {installed(name)}" for name in PACKAGES)]
    packages += [f"{name} {found}" for name, found in _cuda_packages(job).items()]
    inputs = (graph_digest(graph), job.target.model_dump_json(), str(job.threads), known.digest)
    return digest(*inputs, __version__, *packages, *code)
