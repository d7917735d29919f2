"""What report.json says of a compile, entry by entry; nnc.report writes it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from nnc import accuracy, halving, packing, report
from nnc.compiling import emulation
from nnc.compiling.job import Job
from nnc.compiling.library import library_key
from nnc.compiling.output import OutputFolder
from nnc.context import Context
from nnc.measure import measure, numpy_dtype
from nnc.pipeline import Row
from nnc.simulation import kernels
from nnc.simulation.kernels import Storage
from nnc.tuning.records import Records


def assembled(
    job: Job, context: Context, graph: gs.Graph, rows: list[Row], before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    predicted = context.predict(graph)
    return {
        "model": {
            "name": job.model.name,
            "inputs": [_tensor(tensor) for tensor in graph.inputs],
            "outputs": [_tensor(tensor) for tensor in graph.outputs],
        },
        "target": {
            "name": job.target.name,
            "unit": job.target.unit.name,
            "mode": job.target.mode,
            "spec": job.target.spec,
        },
        "recipe": {"name": job.recipe.called, "description": job.recipe.description},
        "threads": job.threads or job.target.unit.threads,
        "before": before,
        "after": after,
        "ratios": {
            "size": _ratio(before["file_bytes"], after["file_bytes"]),
            "macs": _ratio(before["macs"], after["macs"]),
            "latency": _ratio(before["latency_ms"], after["latency_ms"]),
            "memory": _ratio(before["peak_activation_bytes"], after["peak_activation_bytes"]),
        },
        "passes": [asdict(row) for row in rows],
        "layers": [asdict(layer) for layer in predicted.layers],
        "latency_source": "analytic",
        "latency_error": predicted.error,
        "accuracy_samples": len(context.test) if context.test is not None else 0,
        "remarks": report.remarks(predicted, job.target),
    }


def figures(graph: gs.Graph, context: Context, files: Iterable[Path] | None = None) -> dict[str, Any]:
    """An entry `before` or `after` of the report, without the accuracy; `files` hold the graph where it was written."""
    static, cost = measure(graph), context.predict(graph)
    return {
        "params": static.params,
        "weight_bytes": static.weight_bytes,
        "macs": static.macs,
        "nodes": static.nodes,
        "file_bytes": None if files is None else sum(file.stat().st_size for file in files),
        "latency_ms": cost.latency_ms,
        "peak_activation_bytes": cost.peak_activation_bytes,
        "energy_mj": cost.energy_mj,
        "accuracy_runtime": accuracy.runtime(graph),
    }


def of_storage(graph: gs.Graph, storage: Storage, halves: bool) -> dict[str, Any]:
    """What differs of `before` or `after` where it is known how a library keeps images.

    `halves` is whether it may compute in float16, as `halving.executed` takes it.
    """
    executed = halving.executed(graph, halves)
    return {"peak_activation_bytes": kernels.peak_bytes(executed, kernels.kernels(executed), storage)}


def library_entries(library: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the report says of the library; nothing where none was built."""
    return {key: library[key] for key in ("library_bytes", "workspace_bytes", "kernels")} if library else {}


def weights(
    graph: gs.Graph, before: Mapping[str, Any], after: Mapping[str, Any], library: Mapping[str, Any] | None
) -> dict[str, int | None]:
    """Bytes of the weights: of the model that was read, in the types that the passes left, and packed, likewise of the
    library, which has them in an order of its own; null where nothing is packed, or no library was built."""
    packed = packing.weight_bytes(graph)
    return {
        "raw_bytes": before["weight_bytes"],
        "stored_bytes": after["weight_bytes"],
        "packed_bytes": packed,
        "library_stored_bytes": library["weight_bytes"] if library else None,
        "library_packed_bytes": library["packed_bytes"] if library and packed is not None else None,
    }


def emulate(
    job: Job,
    graph: gs.Graph,
    compressed: gs.Graph,
    library: Mapping[str, Any],
    known: Records,
    context: Context,
    folder: OutputFolder,
    before: dict[str, Any],
    after: dict[str, Any],
) -> dict[str, Any]:
    """The report's entries where latencies are those of the emulated library, which go into `before` and `after` too.

    The model before the first pass is compiled for that as well, with the same tuning records. "analytic_ms" keeps what
    the target's figures say.
    """
    if job.latency != "emulated":
        return {}
    made = folder.staging / "module.so"
    path, key = made if made.exists() else folder.path / "module.so", library_key(job, graph, known)
    timed = folder.once(
        "emulated", library["key"], lambda: emulation.timed(path, library["kernels"], compressed, context)
    )
    first = folder.once("emulated", key, lambda: emulation.timed_anew(graph, known, context))
    for figures, found in ((before, first), (after, timed)):
        figures["analytic_ms"], figures["latency_ms"] = figures["latency_ms"], found["latency_ms"]
    return {"layers": timed["layers"], "latency_source": "emulated", "latency_error": None}


def _tensor(tensor: gs.Variable) -> dict[str, Any]:
    """An input or output; null for the shape and dtype that an operator nobody knows leaves open."""
    shape = None if tensor.shape is None else list(tensor.shape)
    return {"name": tensor.name, "shape": shape, "dtype": tensor.dtype and numpy_dtype(tensor.dtype).name}


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before is not None and after else None
