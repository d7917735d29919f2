"""The flow behind `nnc compile`, `nnc plan` and `nnc bisect`: model and recipe in, a folder of results out."""

import hashlib
import json
import platform
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_graphsurgeon as gs

from nnc import __version__, accuracy, emulation, output, packing, pipeline, report, wire
from nnc import graph as graphs
from nnc.checkpoint import Checkpoints
from nnc.context import Context, Progress, silent
from nnc.digests import code_digest, digest, file_digest, graph_digest
from nnc.errors import NncError
from nnc.measure import measure, numpy_dtype
from nnc.output import Memory, OutputFolder
from nnc.pipeline import Row
from nnc.recipe import Recipe
from nnc.target import Target
from nnc.tuning.records import Records

#: Packages whose version can change what a compile leaves behind.
_PACKAGES = ("onnx", "onnx-graphsurgeon", "onnxruntime", "numpy", "apache-tvm", "apache-tvm-ffi", "ziglang")


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
    latency: Literal["analytic", "emulated"] = "analytic"
    """Where the latencies of the report are from."""


def compile_model(job: Job, progress: Progress = silent) -> dict[str, Any]:
    """Run the recipe, lower the result, and write model.onnx, module.so, report.json, report.html and nnc.lock.

    Returns the report. When anything fails, the files of an earlier compile stay and no new ones appear; what a pass
    that failed by itself was given is saved beside the output folder.
    """
    _check(job)
    graph = graphs.load(job.model, job.shapes)
    context = open_context(job, graph, progress)
    try:
        with output.opened(job.out) as folder:
            context.store = folder
            return _compile(job, graph, context, folder)
    except pipeline.PassFailed as failure:
        raise _reproduced(failure, job) from failure


def _compile(job: Job, graph: gs.Graph, context: Context, folder: OutputFolder) -> dict[str, Any]:
    lock = _lock(job)
    inputs = _inputs_digest(lock)
    checkpoints = Checkpoints(folder.checkpoints, job.model, inputs)
    keys = checkpoints.keys(job.recipe.passes)
    before = _figures(graph, context, model_files(job.model))
    before["accuracy"] = folder.once("before", inputs, lambda: context.accuracy(graph))
    compressed, rows = pipeline.run(graph, job.recipe.passes, context, checkpoints)
    files = graphs.save(compressed, folder.staging / "model.onnx", _metadata(job, lock))
    after = _figures(compressed, context, files)
    after["accuracy"] = _accuracy_after(rows, before, context, compressed, folder, digest(inputs, *keys))
    library = _library(job, compressed, context, folder) if job.lower else None
    layers = _emulated(job, graph, compressed, library, context, folder, before, after) if library else None
    result = _report(job, context, compressed, rows, before, after) | _library_entries(library) | (layers or {})
    result["weights"] = _weights(compressed, before, after, library)
    if library is not None:
        lock["tuning"] = _tuning(library)
        result["layers"] = [layer | {"tuned": layer["name"] in library["tuned"]} for layer in result["layers"]]
    lock["results"] = {file.name: file_digest(file) for file in files} | (library["files"] if library else {})
    result["files"] = [*lock["results"], *report.FILES]
    report.write(result, lock, folder.staging)
    (folder.staging / output.LOCK).write_text(json.dumps(lock, indent=2) + "\n", "utf-8")
    folder.publish(result["files"])
    if library is not None:
        folder.remember("library", library["key"], library)
    checkpoints.prune(keys)
    return result


def _reproduced(failure: pipeline.PassFailed, job: Job) -> NncError:
    """The error of a pass that failed by itself; what it was given is saved beside the output folder."""
    out = job.out if job.out.name not in ("", "..") else job.out.resolve()
    folder = out.with_name(f"{out.name}-failed")
    pipeline.save_reproduction(failure, folder)
    alone = replace(job.recipe, passes=(failure.pass_,))
    (folder / "recipe.toml").write_text(alone.to_toml(paths=True), "utf-8")
    reproduce = f"nnc compile {folder / 'recipe.toml'} {folder / 'before.onnx'} --target {job.target.spec}"
    return NncError(failure.message, f"{failure.hint}; this reproduces it: {reproduce}")


def plan(job: Job, progress: Progress = silent) -> dict[str, Any]:
    """What each pass would do, and what it would leave alone and why; writes nothing.

    {"target", "before", "after", "passes"} as in the report, and "remarks" of the target's cost model on the result.
    """
    job.target.require_threads(job.threads)
    graph = graphs.load(job.model, job.shapes)
    context = open_context(job, graph, progress)
    context.trains = False
    before = _figures(graph, context) | {"accuracy": context.accuracy(graph)}
    compressed, rows = pipeline.run(graph, job.recipe.passes, context)
    return {
        "target": job.target.spec,
        "before": before,
        "after": _figures(compressed, context),
        "passes": [asdict(row) for row in rows],
        "remarks": report.remarks(context.predict(compressed), job.target),
    }


def bisect(job: Job, progress: Progress = silent) -> list[tuple[str, float]]:
    """The accuracy (top-1, 0 to 1) of the model and after each pass that changed something: [(pass name, accuracy)].

    Raises NncError without test data.
    """
    graph = graphs.load(job.model, job.shapes)
    context = open_context(job, graph, progress)
    if context.test is None:
        raise NncError("bisect needs test data", "give it with --data test=PATH or in the recipe's [data]")
    states = [("(model)", _accuracy(context, graph))]
    for index, pass_ in enumerate(job.recipe.passes):
        if pass_.only_looks:
            continue  # check-accuracy would stop the search at the very pass that is looked for
        progress(pass_.name, index, len(job.recipe.passes))
        graph, (row,) = pipeline.run(graph, [pass_], context)
        if row.changed:
            states.append((pass_.name, _accuracy(context, graph) if row.accuracy is None else row.accuracy))
    return states


def open_context(job: Job, graph: gs.Graph, progress: Progress) -> Context:
    """The context of a job, its data opened for the inputs of `graph`.

    It re-uses what a compile into the job's folder measured, and writes nothing.
    """
    data = job.recipe.open_data(graph)
    return Context(
        target=job.target,
        seed=job.seed,
        calibration=data.get("calibration"),
        test=data.get("test"),
        train=data.get("train"),
        teacher=job.recipe.data.teacher,
        data_key=_data_key(job.recipe),
        store=Memory(OutputFolder(job.out)),
        threads=job.threads,
        progress=progress,
    )


def _check(job: Job) -> None:
    """Refuse what can't end well, before any work starts."""
    if job.lower:
        job.target.require_lowerable()
    job.target.require_threads(job.threads)
    if job.latency == "emulated":
        if not job.lower:
            raise NncError("--latency emulated: there is no library to execute", "leave out --no-lower")
        emulation.check(job.target)
    if job.model.resolve() == (job.out / "model.onnx").resolve():
        raise NncError(f"{job.model}: the compile would replace its own model", "choose another output folder with -o")


def _accuracy(context: Context, graph: gs.Graph) -> float:
    found = context.accuracy(graph)
    assert found is not None
    return found


def _accuracy_after(
    rows: Sequence[Row], before: Mapping[str, Any], context: Context, graph: gs.Graph, folder: OutputFolder, state: str
) -> float | None:
    """The accuracy of the result; it is measured only where no row has it and no earlier compile of `state` knew it."""
    changed = [row for row in rows if row.changed]
    if not changed:
        unchanged: float | None = before["accuracy"]
        return unchanged
    if changed[-1].accuracy is not None:
        return changed[-1].accuracy
    return folder.once("after", state, lambda: context.accuracy(graph))


def _library(job: Job, graph: gs.Graph, context: Context, folder: OutputFolder) -> dict[str, Any]:
    """Build the library, or keep that of an earlier compile of the same graph: its files by SHA-256, its kernels."""
    known = Records.load(job.target, job.threads)
    key = digest(_library_key(job, graph), known.digest)
    kept: dict[str, Any] | None = folder.recalled("library", key)
    if kept is not None and all(_holds(folder.path / name, sha256) for name, sha256 in kept["files"].items()):
        return kept
    from nnc import lowering  # imports tvm, which takes seconds

    schedules = {"schedules": known} if job.target.unit.kind == "cpu" else {}
    built = lowering.build(
        graph, job.target, folder.staging, threads=job.threads, progress=context.progress, **schedules
    )
    return {
        "key": key,
        "files": {file.name: file_digest(file) for file in built.files},
        "library_bytes": sum(file.stat().st_size for file in built.files),
        "workspace_bytes": built.workspace_bytes,
        "weight_bytes": built.weight_bytes,
        "packed_bytes": built.packed_bytes,
        "kernels": [asdict(kernel) for kernel in built.kernels],
        "tuned": built.tuned,
    }


def _tuning(library: Mapping[str, Any]) -> dict[str, Any]:
    """What nnc.lock says of the tuning records that the library depends on."""
    plans = json.dumps(library["tuned"], sort_keys=True)
    return {"layers": len(library["tuned"]), "records": digest(plans) if library["tuned"] else None}


def _emulated(
    job: Job,
    graph: gs.Graph,
    compressed: gs.Graph,
    library: Mapping[str, Any],
    context: Context,
    folder: OutputFolder,
    before: dict[str, Any],
    after: dict[str, Any],
) -> dict[str, Any] | None:
    """The report's entries where latencies are those of the emulated library, which go into `before` and `after` too.

    The model before the first pass is compiled for that as well. "analytic_ms" keeps what the target's figures say.
    """
    if job.latency != "emulated":
        return None
    made = folder.staging / "module.so"
    path, key = made if made.exists() else folder.path / "module.so", _library_key(job, graph)
    timed = folder.once(
        "emulated", library["key"], lambda: emulation.timed(path, library["kernels"], compressed, context)
    )
    first = folder.once("emulated", key, lambda: emulation.timed_anew(graph, context))
    for figures, found in ((before, first), (after, timed)):
        figures["analytic_ms"], figures["latency_ms"] = figures["latency_ms"], found["latency_ms"]
    return {"layers": timed["layers"], "latency_source": "emulated", "latency_error": None}


def _library_entries(library: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the report says of the library; nothing where none was built."""
    return {key: library[key] for key in ("library_bytes", "workspace_bytes", "kernels")} if library else {}


def _weights(
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


def _holds(path: Path, sha256: str) -> bool:
    return path.is_file() and file_digest(path) == sha256


def _library_key(job: Job, graph: gs.Graph) -> str:
    """A digest of all that the library depends on."""
    sources = sorted(Path(__file__).with_name("lowering").rglob("*"))
    code = [code_digest(), *(file_digest(source) for source in sources if source.suffix in (".c", ".h"))]
    packages = [f"zlib {zlib.ZLIB_RUNTIME_VERSION}", *(f"{name} {version(name)}" for name in _PACKAGES)]
    return digest(graph_digest(graph), job.target.model_dump_json(), str(job.threads), __version__, *packages, *code)


def _report(
    job: Job, context: Context, graph: gs.Graph, rows: list[Row], before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    predicted = context.predict(graph)
    return {
        "model": {
            "name": job.model.name,
            "inputs": [_tensor(tensor) for tensor in graph.inputs],
            "outputs": [_tensor(tensor) for tensor in graph.outputs],
        },
        "target": {"name": job.target.name, "unit": job.target.unit.name, "mode": job.target.mode},
        "recipe": {"name": job.recipe.path.name, "description": job.recipe.description},
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


def _tensor(tensor: gs.Variable) -> dict[str, Any]:
    """An input or output; null for the shape and dtype that an operator nobody knows leaves open."""
    shape = None if tensor.shape is None else list(tensor.shape)
    return {"name": tensor.name, "shape": shape, "dtype": tensor.dtype and numpy_dtype(tensor.dtype).name}


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before is not None and after else None


def _figures(graph: gs.Graph, context: Context, files: Iterable[Path] = ()) -> dict[str, Any]:
    """An entry `before` or `after` of the report, without the accuracy."""
    static, cost = measure(graph), context.predict(graph)
    return {
        "params": static.params,
        "weight_bytes": static.weight_bytes,
        "macs": static.macs,
        "nodes": static.nodes,
        "file_bytes": sum(file.stat().st_size for file in files),
        "latency_ms": cost.latency_ms,
        "peak_activation_bytes": cost.peak_activation_bytes,
        "energy_mj": cost.energy_mj,
        "accuracy_runtime": accuracy.runtime(graph),
    }


def _lock(job: Job) -> dict[str, Any]:
    """What determines the results, whose digests are added when they are there."""
    recipe = job.recipe
    return {
        "nnc": __version__,
        "python": platform.python_version(),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "packages": {name: version(name) for name in _PACKAGES},
        "model": {
            "name": job.model.name,
            "sha256": {file.name: file_digest(file) for file in model_files(job.model)},
        },
        "data": {
            "sha256": {key: _data_digest(path) for key, path in recipe.data_paths().items()},
            "preprocess": recipe.data.preprocess.model_dump(mode="json"),
        },
        "target": job.target.model_dump(mode="json", by_alias=True),
        "shapes": {name: list(shape) for name, shape in job.shapes.items()},
        "threads": job.threads,
        "seed": job.seed,
        "recipe": {
            "name": recipe.path.name,
            "sha256": {file.name: file_digest(file) for file in (recipe.path, *recipe.used)},
            "resolved": recipe.to_toml(),
        },
    }


def _inputs_digest(lock: Mapping[str, Any]) -> str:
    """A digest of all that a pass can see besides the graph and its own parameters."""
    return digest(json.dumps({key: value for key, value in lock.items() if key != "recipe"}, sort_keys=True))


def model_files(path: Path) -> list[Path]:
    """The files that a model consists of: its own, and those of external data."""
    tensors = wire.read(path)[0].graph.initializer
    external = (tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL)
    names = {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
    return [path, *(path.parent / name for name in sorted(names))]


def _data_key(recipe: Recipe) -> str:
    """A digest of the calibration data and of how they are prepared; empty without them."""
    path = recipe.data_paths().get("calibration")
    return digest(_data_digest(path), recipe.data.preprocess.model_dump_json()) if path else ""


def _data_digest(path: Path) -> str:
    """SHA-256 of a data file; of a folder, over the names and contents of its files."""
    if path.is_file():
        return file_digest(path)
    state = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        state.update(f"{file.relative_to(path)} {file_digest(file)}\n".encode())
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
