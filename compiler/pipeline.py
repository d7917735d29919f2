"""Applies the passes of a recipe in order; after each the graph is verified and measured, and a row recorded.

Consecutive exact passes are proved together, on the outputs before the first and after the last of them; only when
these differ is the pass searched for that moved them. Every step is kept as a checkpoint, so that the next compile
starts after the last pass that did not change.
"""

import errno
import inspect
import math
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from nnc import evidence, verify
from nnc import graph as graphs
from nnc.checkpoint import Checkpoints
from nnc.context import Context, Explanation
from nnc.errors import NncError
from nnc.model import wire
from nnc.rewrite import Pass

#: What the system says of a disk that takes no more.
_FULL = (errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS)


@dataclass(frozen=True)
class Row:
    """What one pass did: an entry of `passes` in report.json."""

    name: str
    effect: str
    changed: int
    seconds: float
    params: int
    macs: int
    weight_bytes: int
    nodes: int
    latency_ms: float
    snr_db: float | None
    accuracy: float | None
    skipped: list[dict[str, str]]
    proof: str
    """How the effect was checked: "unchanged", "outputs equal", "measured", "all noise" (-inf dB), or why it could not
    be."""
    reused: bool = False
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """What was chosen per layer: {"layer", "choice", "macs": [before, after], "params": [before, after]} and, where the
    pass knows them, "latency_ms": [before, after] and "error", predicted and relative."""
    curve: dict[str, Any] | None = None
    """{"metric", "points": [{"budget", "error", "accuracy", "chosen"}]}, see nnc.context.Context."""
    predicted: dict[str, dict[str, float | None]] | None = None
    """By figure: what it was "before" the pass, "predicted" by the pass, and "reached", null where not measured."""
    tolerance: float | None = None
    """Where "outputs equal": the largest difference that counted as rounding, of the largest value of an output."""


@dataclass
class _Step:
    """A pass that ran: the graph before and after it, and what it did."""

    pass_: Pass
    before: gs.Graph
    after: gs.Graph
    changed: int
    seconds: float
    skipped: list[dict[str, str]]
    explanation: Explanation


class PassFailed(NncError):
    """A pass broke the graph. Carries the graph before it, for the reproduction that the caller saves."""

    def __init__(self, pass_: Pass, before: gs.Graph, reason: str) -> None:
        super().__init__(f"pass {pass_.name}: {reason}", "this is a bug in the pass")
        self.pass_, self.before = pass_, before


def run(
    graph: gs.Graph, passes: Sequence[Pass], context: Context, checkpoints: Checkpoints | None = None
) -> tuple[gs.Graph, list[Row]]:
    """Apply `passes` to `graph`; returns the graph after the last one and a row for each.

    Raises PassFailed when a pass raises, leaves an invalid graph, or is called exact and moves the outputs; not where
    memory or the disk ran out, whose MemoryError or OSError it lets through.
    """
    context.imported = context.imported or graph
    keys = checkpoints.keys(passes) if checkpoints else []
    graph, rows = _resumed(graph, passes, context, checkpoints, keys) if checkpoints else (graph, [])
    check(passes[len(rows) :], context)
    for together in _runs(passes[len(rows) :]):
        steps = _apply_together(together, graph, context, len(rows), len(passes))
        for step, row in zip(steps, _rows(steps, context), strict=True):
            rows.append(row)
            if checkpoints:
                checkpoints.save(keys[len(rows) - 1], step.after, rows)
            if step.pass_.quantizes and step.changed:
                context.unquantized = step.before
        graph = steps[-1].after
    return graph, rows


def _resumed(
    graph: gs.Graph, passes: Sequence[Pass], context: Context, checkpoints: Checkpoints, keys: list[str]
) -> tuple[gs.Graph, list[Row]]:
    """The furthest checkpoint and the rows up to it, with the graph in front of a pass that quantized it at hand."""
    found = checkpoints.last(keys)
    if found is None:
        return graph, []
    rows = [Row(**{**row, "reused": True}) for row in found[1]]
    index = max((i for i, row in enumerate(rows) if passes[i].quantizes and row.changed), default=None)
    if index is not None:
        before = checkpoints.last(keys[:index])
        if index and (before is None or len(before[1]) < index):  # it is lost: quantize again
            return _resumed(graph, passes[:index], context, checkpoints, keys[:index])
        context.unquantized = before[0] if before else graph
    return found[0], rows


def check(passes: Sequence[Pass], context: Context) -> None:
    """Raise NncError for what is wrong with a pass, or with the data that it needs, before any of them runs."""
    for pass_ in passes:
        with _naming(pass_):
            pass_.check(context)


@contextmanager
def _naming(pass_: Pass) -> Iterator[None]:
    """Errors of the user say which pass found them."""
    try:
        yield
    except NncError as error:
        raise NncError(f"pass {pass_.name}: {error.message}", error.hint) from error


def _runs(passes: Sequence[Pass]) -> list[list[Pass]]:
    """Consecutive exact passes together, every other pass alone."""
    runs: list[list[Pass]] = []
    for pass_ in passes:
        if runs and pass_.effect == "exact" and runs[-1][-1].effect == "exact":
            runs[-1].append(pass_)
        else:
            runs.append([pass_])
    return runs


def _apply_together(passes: list[Pass], graph: gs.Graph, context: Context, index: int, total: int) -> list[_Step]:
    """Apply passes that are verified together."""
    steps: list[_Step] = []
    copy: _Copy | None = None
    for offset, pass_ in enumerate(passes):
        context.progress(pass_.name, index + offset, total)
        copy = copy or _Copy(graph)
        step = _apply(pass_, copy, context)
        if step.changed:
            graph, copy = step.after, None
        steps.append(step)
    _check_standard(steps, context)
    return steps


class _Copy:
    """A graph, and a copy that passes may edit; one that they left as it is serves the next pass, too."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph, self.copy = graph, graphs.copy(graph)
        self._links = _links(self.copy)

    def is_edited(self) -> bool:
        return self._links != _links(self.copy)


def _apply(pass_: Pass, given: _Copy, context: Context) -> _Step:
    """Run one pass on a copy of the graph, which stays as it was."""
    graph, after = given.graph, given.graph if pass_.only_looks else given.copy
    context.start(pass_)
    started = time.perf_counter()
    try:
        with _naming(pass_):
            changed = pass_.run(after, context)
        if not isinstance(changed, int):
            raise TypeError(f"run must return the number of places changed, not {type(changed).__name__}")
        seconds = time.perf_counter() - started
        if changed:
            verify.check_structure(after)
            verify.check_interface(after, graph)
        elif given.is_edited():
            raise verify.BrokenGraph("the pass changed it and returned 0")
    except NncError:
        raise
    except verify.BrokenGraph as error:
        raise PassFailed(pass_, graph, f"the graph after it is not valid: {error}") from error
    except Exception as error:
        if _ran_out(error):
            raise
        raise PassFailed(pass_, graph, f"{type(error).__name__}: {error}{_line(pass_, error)}") from error
    skipped = list(context.skipped.values())
    return _Step(pass_, graph, after if changed else graph, changed, seconds, skipped, context.explanation)


def _ran_out(error: Exception) -> bool:
    """Whether the machine was too small for the pass: no bug, and a reproduction would only fill it more."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _FULL)


def _links(graph: gs.Graph) -> list[tuple[object, ...]]:
    """What changes when a pass edits the graph: nodes, attributes, tensors and arrays, and how they hang together."""
    nodes: list[tuple[object, ...]] = [
        (
            *(id(node), node.op, node.domain, *((key, _value(each)) for key, each in node.attrs.items())),
            *((id(tensor), id(vars(tensor).get("_values"))) for tensor in (*node.inputs, *node.outputs)),
        )
        for node in graph.nodes
    ]
    return [*nodes, tuple(map(id, graph.inputs)), tuple(map(id, graph.outputs))]


def _value(attribute: object) -> object:
    """What changes when an attribute is edited, in place or not."""
    match attribute:
        case gs.Graph():
            return _links(attribute)
        case list() | tuple():
            return tuple(map(_value, attribute))
        case int() | float() | str() | bytes():
            return attribute
    return id(attribute)


def _line(pass_: Pass, error: Exception) -> str:
    """The last line of the pass's own file that the error passed through, as in " (my_pass.py:12)"."""
    file = inspect.getfile(type(pass_))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}:{lines[-1]})" if lines else ""


def _check_standard(steps: list[_Step], context: Context) -> None:
    """Check the graph after the last step; when it is broken and was not before, blame the step that broke it."""
    changing = [step for step in steps if step.changed]
    if not changing or not _breach(changing[-1].after) or _breach(changing[0].before):
        return
    step, reason = next((step, reason) for step in changing if (reason := _breach(step.after)))
    try:
        verify.outputs(step.before, verify.probe_inputs(step.before, context.seed))
    except NncError as error:  # a pass may bring to light what was wrong all along
        raise NncError(f"pass {step.pass_.name}: {reason}; before it, {error.message}", "check the model") from error
    raise PassFailed(step.pass_, step.before, f"the graph after it is not valid: {reason}")


def _breach(graph: gs.Graph) -> str | None:
    try:
        verify.check_standard(graph)
    except verify.BrokenGraph as error:
        return str(error)
    return None


def _rows(steps: list[_Step], context: Context) -> list[Row]:
    """Prove or measure what the steps did together, and describe each."""
    last = steps[-1]
    proof, snr = _prove(steps, context)
    tolerance = verify.tolerance(last.after) if proof == "outputs equal" else None  # as `_moved`
    moved = last.changed > 0 and last.pass_.effect != "exact"  # such a pass is a run of its own
    accuracy = context.accuracy(last.after) if moved else None
    rows: list[Row] = []
    found: dict[str, Any] = {}
    for step in steps:
        if step.changed or not found:
            found = evidence.figures(step.after, context)
        rows.append(
            Row(
                name=step.pass_.name,
                effect=step.pass_.effect,
                changed=step.changed,
                seconds=step.seconds,
                **found,
                snr_db=snr,
                accuracy=accuracy,
                skipped=step.skipped,
                proof=proof if step.changed else "unchanged",
                decisions=list(step.explanation.decisions.values()),
                curve=step.explanation.curve,
                predicted=_reached(step, found | {"accuracy": accuracy}, context),
                tolerance=tolerance if step.changed else None,
            )
        )
    return rows


def _reached(step: _Step, measured: dict[str, Any], context: Context) -> dict[str, dict[str, float | None]] | None:
    predicted = step.explanation.predicted
    return None if predicted is None else evidence.reached(predicted, step.before, step.after, measured, context)


def _prove(steps: list[_Step], context: Context) -> tuple[str, float | None]:
    """Compare the outputs before and after: how it went, and in approximate passes the signal-to-noise ratio in dB."""
    before, after = steps[0].before, steps[-1].after
    if not any(step.changed for step in steps):
        return "unchanged", None
    wire.release_pages()  # of weights that passes looked at; onnxruntime reads the file by itself
    inputs = verify.probe_inputs(before, context.seed)
    try:
        reference = verify.reference(before, inputs)
    except NncError as error:
        return f"not compared: {error.message}", None
    if not any(verify.has_finite(values) for values in reference.values()):
        return "not compared: no output is finite on random inputs", None
    if steps[0].pass_.effect != "exact":
        try:
            result = verify.outputs(after, inputs)
        except NncError as error:
            raise PassFailed(steps[0].pass_, before, error.message) from error
        static = verify.of_static_shape(before, reference)
        if not static:
            return "not compared: the data decide the shape of every output", None
        snr = verify.snr_db(static, result)
        return "all noise" if snr == -math.inf else "measured", snr
    if _moved(before, reference, after, inputs):
        _blame(reference, steps, inputs)
    return "outputs equal", None


def _moved(before: gs.Graph, reference: verify.Arrays, after: gs.Graph, inputs: verify.Arrays) -> bool:
    try:
        return verify.largest_difference(reference, verify.outputs(after, inputs), before) > verify.tolerance(after)
    except NncError:
        return True


def _blame(reference: verify.Arrays, steps: list[_Step], inputs: verify.Arrays) -> None:
    """Raise PassFailed for the first of several exact passes after which the outputs differ."""
    for step in steps:
        if step.changed and _moved(steps[0].before, reference, step.after, inputs):
            raise PassFailed(step.pass_, step.before, _what_moved(step, inputs))


def _what_moved(step: _Step, inputs: verify.Arrays) -> str:
    try:
        tensor = verify.first_moved(step.before, step.after, inputs)
    except NncError as error:
        return error.message
    return f"it is called exact, but '{tensor}' moved" if tensor else "it is called exact, but the outputs moved"


def save_reproduction(before: gs.Graph, folder: Path, recipe: str) -> None:
    """Write before.onnx, and the text of a recipe that fails on it as recipe.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    graphs.save(before, folder / "before.onnx")
    with wire.replacing(folder / "recipe.toml") as file:
        file.write(recipe.encode())
