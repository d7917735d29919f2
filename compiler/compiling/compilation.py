"""The flow behind `nnc compile`, `nnc plan` and `nnc bisect`: model and recipe in, a folder of results out."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc import pipeline, report
from nnc.checkpoint import Checkpoints
from nnc.compiling import emulation, entries, output
from nnc.compiling import library as libraries
from nnc.compiling import lock as locks
from nnc.compiling.job import Job, command, open_context
from nnc.compiling.output import OutputFolder
from nnc.context import Context, Progress, Say, silent, unsaid
from nnc.digests import digest, file_digest
from nnc.errors import NncError, system_reason
from nnc.pipeline import Row
from nnc.tuning.records import Records

#: What every compile writes, besides its library.
_WRITTEN = ("model.onnx", *report.FILES, output.LOCK)


def compile_model(job: Job, progress: Progress = silent, say: Say = unsaid) -> dict[str, Any]:
    """Run the recipe, lower the result, and write model.onnx, module.so, report.json, report.html and nnc.lock.

    Returns the report; `say` is told what looks like a mistake. When anything fails, the files of an earlier compile
    stay and no new ones appear; what a pass that failed by itself was given is saved beside the output folder.
    """
    _check(job)
    graph, context, data = _opened(job, progress, say)
    try:
        with output.opened(job.out) as folder:
            context.store = folder
            return _compile(job, graph, context, data, folder)
    except pipeline.PassFailed as failure:
        raise _reproduced(failure, job, graph) from failure


def _opened(
    job: Job, progress: Progress, say: Say, digested: Sequence[str] | None = None
) -> tuple[gs.Graph, Context, dict[str, str]]:
    """The model, what its passes may know, and digests of all data or of those `digested`, by the key of [data]."""
    graph = graphs.load(job.model, job.shapes)
    data = job.recipe.open_data(graph)
    if not job.recipe.prepares and any(each.images is not None and each.images.reads_floats for each in data.values()):
        say("images are given as they are, from 0 to 1: the recipe says neither mean nor std, nor do --mean and --std")
    digests = locks.data_digests(job.recipe, progress, digested)
    return graph, open_context(job, graph, data, digests, progress), digests


def _compile(
    job: Job, graph: gs.Graph, context: Context, data: Mapping[str, str], folder: OutputFolder
) -> dict[str, Any]:
    lock = locks.lock(job, data)
    inputs = locks.inputs_digest(lock)
    checkpoints = Checkpoints(folder.checkpoints, job.model, inputs)
    keys = checkpoints.keys(job.recipe.passes)
    before = entries.figures(graph, context, locks.model_files(job.model))
    before["accuracy"] = folder.once("before", inputs, lambda: context.accuracy(graph))
    compressed, rows = pipeline.run(graph, job.recipe.passes, context, checkpoints)
    files = graphs.save(compressed, folder.staging / "model.onnx", locks.metadata(job, lock))
    after = entries.figures(compressed, context, files)
    state = digest(inputs, *keys)
    after["accuracy"] = _accuracy_after(
        rows, before, lambda: folder.once("after", state, lambda: context.accuracy(compressed))
    )
    library: dict[str, Any] | None = None
    emulated: dict[str, Any] = {}
    if job.lower:
        known = Records.load(job.target, job.threads)
        library, halves = libraries.built(job, compressed, known, context, folder), job.target.unit.halves
        if job.target.unit.kind == "cpu":
            before |= entries.of_storage(graph, libraries.storage_before(job, graph, known, folder), halves)
            after |= entries.of_storage(compressed, libraries.storage_of(compressed, library), halves)
        emulated = entries.emulate(job, graph, compressed, library, known, context, folder, before, after)
    result = entries.assembled(job, context, compressed, rows, before, after)
    result |= entries.library_entries(library) | emulated
    result["weights"] = entries.weights(compressed, before, after, library)
    if library is not None:
        lock |= libraries.lock_entries(job, library)
        result["layers"] = [layer | {"tuned": layer["name"] in library["tuned"]} for layer in result["layers"]]
    lock["results"] = {file.name: file_digest(file) for file in files} | (library["files"] if library else {})
    result["files"] = [*lock["results"], *report.FILES]
    report.write(result, lock, folder.staging)
    (folder.staging / output.LOCK).write_text(json.dumps(lock, indent=2) + "\n", "utf-8")
    folder.publish(result["files"])
    if library is not None:
        folder.remember("library", library["key"], library)
    checkpoints.prune(keys)
    shutil.rmtree(folder.training, ignore_errors=True)  # what its epochs led to is in the checkpoints
    return result


def _reproduced(failure: pipeline.PassFailed, job: Job, imported: gs.Graph) -> NncError:
    """The error of a pass that failed by itself; what it was given is saved beside the output folder, if it can be.

    For a pass that looks back that is the imported model, with the passes in front of it.
    """
    out = job.out if job.out.name not in ("", "..") else job.out.resolve()
    folder = out.with_name(f"{out.name}-failed")
    failed = next(index for index, each in enumerate(job.recipe.passes) if each is failure.pass_)
    first = 0 if failure.pass_.looks_back() else failed
    failing = replace(job.recipe, passes=job.recipe.passes[first : failed + 1])
    before = imported if first < failed else failure.before
    try:
        pipeline.save_reproduction(before, folder, failing.to_toml(paths=True))
    except (OSError, UnicodeError, NncError) as error:
        why = f"{error.filename or folder}: {system_reason(error)}" if isinstance(error, OSError) else str(error)
        return NncError(failure.message, f"{failure.hint}; what reproduces it could not be saved: {why}")
    reproduce = command(
        str(folder / "recipe.toml"), str(folder / "before.onnx"), job.target.spec,
        threads=job.threads, seed=job.seed, lower=job.lower,
    )  # fmt: skip
    return NncError(failure.message, f"{failure.hint}; this reproduces it: {reproduce}")


def plan(job: Job, progress: Progress = silent, say: Say = unsaid) -> dict[str, Any]:
    """What each pass would do, and what it would leave alone and why; writes nothing.

    {"target", "before", "after", "passes"} as in the report, and "remarks" of the target's cost model on the result.
    No file is written, so that "file_bytes" is None; accuracies are those before training.
    """
    job.target.require_threads(job.threads)
    graph, context, _ = _opened(job, progress, say, ["calibration"])
    context.trains = False
    before = entries.figures(graph, context) | {"accuracy": context.accuracy(graph)}
    compressed, rows = pipeline.run(graph, job.recipe.passes, context)
    after = entries.figures(compressed, context)
    after["accuracy"] = _accuracy_after(rows, before, lambda: context.accuracy(compressed))
    return {
        "target": job.target.label,
        "before": before,
        "after": after,
        "passes": [asdict(row) for row in rows],
        "remarks": report.remarks(context.predict(compressed), job.target),
    }


def bisect(job: Job, progress: Progress = silent, say: Say = unsaid) -> list[tuple[str, float]]:
    """The accuracy (top-1, 0 to 1) of the model and after each pass that changed something: [(pass name, accuracy)].

    Raises NncError without test data.
    """
    graph, context, _ = _opened(job, progress, say, ["calibration"])
    if context.test is None:
        raise NncError("bisect needs test data", "give it with --data test=PATH or in the recipe's [data]")
    # check-accuracy would stop the search at the very pass that is looked for
    passes = [pass_ for pass_ in job.recipe.passes if not pass_.only_looks]
    pipeline.check(passes, context)
    states = [("(model)", _accuracy(context, graph))]
    for index, pass_ in enumerate(passes):
        progress(pass_.name, index, len(passes))
        graph, (row,) = pipeline.run(graph, [pass_], context)
        if row.changed:
            states.append((pass_.name, _accuracy(context, graph) if row.accuracy is None else row.accuracy))
    return states


def _check(job: Job) -> None:
    """Refuse what can't end well, before any work starts."""
    if job.lower:
        job.target.require_lowerable()
    job.target.require_threads(job.threads)
    if job.latency == "emulated":
        if not job.lower:
            raise NncError("--latency emulated: there is no library to execute", "leave out --no-lower")
        emulation.check(job.target, job.threads)
    for path in (job.model, job.recipe.path):
        if path.name != path.name.encode(errors="replace").decode():
            raise NncError(f"{path}: its name, which the results tell, is not text in UTF-8", "rename the file")
    written = {(job.out / name).resolve() for name in (*_WRITTEN, *output.files_of(job.out))}
    for what, path in {"model": job.model, **job.recipe.data_paths()}.items():
        if path.resolve() in written:
            raise NncError(f"{path}: the compile would replace its own {what}", "choose another output folder with -o")
    output.refuse_foreign(job.out, _WRITTEN)


def _accuracy(context: Context, graph: gs.Graph) -> float:
    found = context.accuracy(graph)
    assert found is not None
    return found


def _accuracy_after(
    rows: Sequence[Row], before: Mapping[str, Any], measured: Callable[[], float | None]
) -> float | None:
    """The accuracy of the result, which is measured only where no row has it."""
    changed = [row for row in rows if row.changed]
    if not changed:
        unchanged: float | None = before["accuracy"]
        return unchanged
    if changed[-1].accuracy is not None:
        return changed[-1].accuracy
    return measured()
