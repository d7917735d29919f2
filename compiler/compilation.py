"""The flow behind `nnc compile`, `nnc plan` and `nnc bisect`: model and recipe in, a folder of results out."""

import hashlib
import json
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from nnc import __version__, pipeline, wire
from nnc import graph as graphs
from nnc.checkpoint import Checkpoints, digest, file_digest
from nnc.errors import NncError
from nnc.measure import measure
from nnc.pipeline import Context, Row
from nnc.recipe import Recipe
from nnc.target import Target

#: Packages whose version can change what a compile leaves behind.
_PACKAGES = ("onnx", "onnx-graphsurgeon", "onnxruntime", "numpy", "apache-tvm", "apache-tvm-ffi")
_CHECKPOINTS = ".nnc"


@dataclass(frozen=True)
class Job:
    """What a compile is asked for."""

    recipe: Recipe
    model: Path
    target: Target
    out: Path
    shapes: Mapping[str, Sequence[int]]
    threads: int | None = None
    lower: bool = True
    seed: int = 0


def compile_model(job: Job, progress: pipeline.Progress = pipeline.silent) -> dict[str, Any]:
    """Run the recipe, lower the result, and write model.onnx, module.so, report.json, report.html and nnc.lock.

    Returns the report. When anything fails, the files of an earlier compile stay and no new ones appear; what a pass
    that failed by itself was given is saved beside the output folder.
    """
    if job.lower:
        job.target.require_lowerable()
    graph = graphs.load(job.model, job.shapes)
    context = open_context(job, graph, progress)
    lock = _lock(job)
    checkpoints = Checkpoints(job.out / _CHECKPOINTS, job.model, _inputs_digest(lock))
    before = _figures(graph, context, job.model.stat().st_size)
    with _removed_on_error(job.out):
        after_passes, rows = _run(graph, job, context, checkpoints)
        report = _write_results(job, context, after_passes, rows, before, lock)
        checkpoints.prune()
    return report


def plan(job: Job, progress: pipeline.Progress = pipeline.silent) -> list[Row]:
    """What each pass would do, and what it would leave alone and why; writes nothing."""
    graph = graphs.load(job.model, job.shapes)
    return pipeline.run(graph, job.recipe.passes, open_context(job, graph, progress))[1]


def bisect(job: Job, progress: pipeline.Progress = pipeline.silent) -> list[tuple[str, float]]:
    """The accuracy (top-1, 0 to 1) of the model and after each pass that changed something: [(pass name, accuracy)].

    Raises NncError without test data.
    """
    graph = graphs.load(job.model, job.shapes)
    context = open_context(job, graph, progress)
    if context.test is None:
        raise NncError("bisect needs test data", "give it with --data test=PATH or in the recipe's [data]")
    states = [("(model)", _accuracy(context, graph))]
    for pass_ in job.recipe.passes:
        if pass_.name == "check-accuracy":
            continue  # it would stop the search at the very pass that is looked for
        graph, rows = pipeline.run(graph, [pass_], context)
        if rows[0].changed:
            states.append((pass_.name, _accuracy(context, graph)))
    return states


def _accuracy(context: Context, graph: gs.Graph) -> float:
    accuracy = context.accuracy(graph)
    assert accuracy is not None
    return accuracy


def open_context(job: Job, graph: gs.Graph, progress: pipeline.Progress) -> Context:
    """The context of a job, its data opened for the inputs of `graph`."""
    data = job.recipe.open_data(graph)
    return Context(
        target=job.target,
        seed=job.seed,
        calibration=data.get("calibration"),
        test=data.get("test"),
        threads=job.threads,
        progress=progress,
    )


def _run(graph: gs.Graph, job: Job, context: Context, checkpoints: Checkpoints) -> tuple[gs.Graph, list[Row]]:
    try:
        return pipeline.run(graph, job.recipe.passes, context, checkpoints)
    except pipeline.PassFailed as failure:
        folder = job.out.with_name(f"{job.out.name}-failed")
        pipeline.save_reproduction(failure, folder)
        reproduce = f"nnc compile {folder / 'recipe.toml'} {folder / 'before.onnx'} --target {job.target.spec}"
        raise NncError(failure.message, f"{failure.hint}; this reproduces it: {reproduce}") from failure


def _write_results(
    job: Job, context: Context, graph: gs.Graph, rows: list[Row], before: dict[str, Any], lock: dict[str, Any]
) -> dict[str, Any]:
    from nnc import report as reports

    job.out.mkdir(parents=True, exist_ok=True)
    model = job.out / "model.onnx"
    graphs.save(graph, model, _metadata(job, lock))
    built = _lower(job, graph, context) if job.lower else None
    after = _figures(graph, context, sum(file.stat().st_size for file in job.out.glob("model.onnx*")))
    report = _report(job, context, graph, rows, before, after)
    if built is not None:
        report["kernels"] = [asdict(kernel) for kernel in built.kernels]
        report["files"] = [model.name, *(file.name for file in built.files)]
    reports.write(report, job.out)
    with wire.replacing(job.out / "nnc.lock") as file:
        file.write(json.dumps(lock, indent=2).encode())
    return report


def _lower(job: Job, graph: gs.Graph, context: Context) -> Any:
    """Build the library in the output folder."""
    from nnc import lowering  # imports tvm, which takes seconds

    return lowering.build(graph, job.target, job.out, threads=job.threads, progress=context.progress)


def _report(
    job: Job, context: Context, graph: gs.Graph, rows: list[Row], before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    return {
        "model": {
            "name": job.model.name,
            "inputs": {tensor.name: list(tensor.shape) for tensor in graph.inputs},
            "outputs": {tensor.name: list(tensor.shape) for tensor in graph.outputs},
        },
        "target": {"name": job.target.name, "unit": job.target.unit.name, "mode": job.target.mode},
        "recipe": {"name": job.recipe.path.name, "description": job.recipe.description},
        "before": before,
        "after": after,
        "ratios": {
            "size": _ratio(before["file_bytes"], after["file_bytes"]),
            "macs": _ratio(before["macs"], after["macs"]),
            "latency": _ratio(before["latency_ms"], after["latency_ms"]),
            "memory": _ratio(before["peak_activation_bytes"], after["peak_activation_bytes"]),
        },
        "passes": [asdict(row) for row in rows],
        "layers": [asdict(layer) for layer in context.predict(graph).layers],
        "latency_source": "analytic",
        "versions": {"nnc": __version__},
    }


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before is not None and after else None


def _figures(graph: gs.Graph, context: Context, file_bytes: int) -> dict[str, Any]:
    """An entry `before` or `after` of the report."""
    static, cost = measure(graph), context.predict(graph)
    return {
        "params": static.params,
        "weight_bytes": static.weight_bytes,
        "macs": static.macs,
        "nodes": static.nodes,
        "file_bytes": file_bytes,
        "latency_ms": cost.latency_ms,
        "peak_activation_bytes": cost.peak_activation_bytes,
        "energy_mj": cost.energy_mj,
        "accuracy": context.accuracy(graph),
    }


def _lock(job: Job) -> dict[str, Any]:
    """What determines the result: the same lock gives the same bytes."""
    return {
        "nnc": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "model": {"name": job.model.name, "sha256": file_digest(job.model)},
        "data": {
            key: {"path": str(path), "sha256": _data_digest(path)} for key, path in job.recipe.data_paths().items()
        },
        "target": {"spec": job.target.spec, "digest": digest(job.target.model_dump_json())},
        "shapes": {name: list(shape) for name, shape in job.shapes.items()},
        "threads": job.threads,
        "seed": job.seed,
        "recipe": job.recipe.to_toml(),
    }


def _inputs_digest(lock: Mapping[str, Any]) -> str:
    return digest(json.dumps({key: value for key, value in lock.items() if key != "recipe"}, sort_keys=True))


def _data_digest(path: Path) -> str:
    """The content of a data file; of a folder, the names, sizes and times of its files."""
    if path.is_file():
        return file_digest(path)
    state = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        stat = file.stat()
        state.update(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return state.hexdigest()


def _metadata(job: Job, lock: Mapping[str, Any]) -> dict[str, str]:
    """metadata_props of model.onnx."""
    return {
        "nnc.version": __version__,
        "nnc.recipe": job.recipe.to_toml(),
        "nnc.passes": ",".join(pass_.name for pass_ in job.recipe.passes),
        "nnc.packages": json.dumps(lock["packages"]),
        "nnc.target": job.target.spec,
    }


@contextmanager
def _removed_on_error(out: Path) -> Iterator[None]:
    """Remove the output folder when it is new and the compile fails; an interrupted one keeps its checkpoints."""
    new = not out.exists()
    try:
        yield
    except Exception:
        if new:
            shutil.rmtree(out, ignore_errors=True)
        raise
