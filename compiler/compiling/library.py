"""The library of a compile: built, or kept from an earlier compile of the same graph."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from nnc import __version__
from nnc.compiling.job import Job
from nnc.compiling.lock import PACKAGES
from nnc.compiling.output import OutputFolder
from nnc.context import Context
from nnc.digests import code_digest, digest, file_digest, graph_digest
from nnc.tuning.records import Records


def built(job: Job, graph: gs.Graph, context: Context, folder: OutputFolder) -> dict[str, Any]:
    """Build the library, or keep that of an earlier compile of the same graph: its files by SHA-256, its kernels."""
    known = Records.load(job.target, job.threads)
    key = digest(library_key(job, graph), known.digest)
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


def tuning_entry(library: Mapping[str, Any]) -> dict[str, Any]:
    """What nnc.lock says of the tuning records that the library depends on."""
    plans = json.dumps(library["tuned"], sort_keys=True)
    return {"layers": len(library["tuned"]), "records": digest(plans) if library["tuned"] else None}


def _holds(path: Path, sha256: str) -> bool:
    return path.is_file() and file_digest(path) == sha256


def library_key(job: Job, graph: gs.Graph) -> str:
    """A digest of all that the library depends on."""
    sources = sorted(Path(__file__).parents[1].joinpath("lowering").rglob("*"))
    code = [code_digest(), *(file_digest(source) for source in sources if source.suffix in (".c", ".h"))]
    packages = [f"zlib {zlib.ZLIB_RUNTIME_VERSION}", *(f"{name} {version(name)}" for name in PACKAGES)]
    return digest(graph_digest(graph), job.target.model_dump_json(), str(job.threads), __version__, *packages, *code)
