"""Applies the passes of a recipe in order; after each the graph is verified and measured, and a row of evidence recorded.

Consecutive exact passes are proved together, on the outputs before the first and after the last of them; only when
these differ is the pass searched for that moved them. Every step is kept as a checkpoint, so that the next compile starts
after the last pass that did not change.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc import verify
from nnc.checkpoint import Checkpoints
from nnc.errors import NncError
from nnc.measure import measure
from nnc.rewrite import Pass
from nnc.simulation.analytic import Prediction, predict
from nnc.target import Target

Progress = Callable[[str, int, int], None]


def silent(step: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@dataclass
class Context:
    """What a pass may know besides the graph: the target, the data, the seed and the cost model."""

    target: Target
    seed: int = 0
    #: Calibration and test data (nnc.data.Dataset), where the recipe has them.
    calibration: Any = None
    test: Any = None
    threads: int | None = None
    progress: Progress = silent
    skipped: list[dict[str, str]] = field(default_factory=list)

    def skip(self, node: gs.Node, reason: str) -> None:
        """Record a place that was considered and left alone, once."""
        entry = {"node": node.name, "reason": reason}
        if entry not in self.skipped:
            self.skipped.append(entry)

    def predict(self, graph: gs.Graph) -> Prediction:
        """The cost model: latency, memory and energy of `graph` on the target."""
        return predict(graph, self.target, self.threads)

    def accuracy(self, graph: gs.Graph) -> float | None:
        """Top-1 accuracy on the test data, 0 to 1; None without test data."""
        if self.test is None:
            return None
        from nnc.accuracy import evaluate

        return evaluate(
            graph, self.test, progress=lambda done, total: self.progress("measure accuracy", done, total)
        ).top1


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
    """How the effect was checked: "unchanged", "outputs equal", "measured", or why it could not be."""
    reused: bool = False


@dataclass
class _Step:
    """A pass that ran: the graph before it, and what it did."""

    pass_: Pass
    before: gs.Graph
    changed: int
    seconds: float
    skipped: list[dict[str, str]]


class PassFailed(NncError):
    """A pass broke the graph. Carries the graph before it, for the reproduction that the caller saves."""

    def __init__(self, pass_: Pass, before: gs.Graph, reason: str) -> None:
        super().__init__(f"pass {pass_.name}: {reason}", "this is a bug in the pass")
        self.pass_, self.before = pass_, before


def run(
    graph: gs.Graph, passes: Sequence[Pass], context: Context, checkpoints: Checkpoints | None = None
) -> tuple[gs.Graph, list[Row]]:
    """Apply `passes` to `graph`; returns the graph after the last one and a row for each.

    Raises PassFailed when a pass raises, leaves an invalid graph, or is called exact and moves the outputs.
    """
    rows, keys = [], checkpoints.keys(passes) if checkpoints else []
    start = 0
    if checkpoints and (found := checkpoints.last(keys)):
        start, graph, saved = found
        rows = [Row(**{**row, "reused": True}) for row in saved]
    for index, together in _runs(passes, start):
        states, more = _run_together(graph, together, context, index, len(passes))
        graph = states[-1]
        for state, row in zip(states, more, strict=True):
            rows.append(row)
            if checkpoints:
                checkpoints.save(keys[len(rows) - 1], state, rows)
    return graph, rows


def _runs(passes: Sequence[Pass], start: int) -> list[tuple[int, list[Pass]]]:
    """Consecutive exact passes together, every other pass alone."""
    runs: list[tuple[int, list[Pass]]] = []
    for index in range(start, len(passes)):
        joins = runs and passes[index].effect == "exact" and runs[-1][1][-1].effect == "exact"
        if joins:
            runs[-1][1].append(passes[index])
        else:
            runs.append((index, [passes[index]]))
    return runs


def _run_together(
    graph: gs.Graph, passes: list[Pass], context: Context, index: int, total: int
) -> tuple[list[gs.Graph], list[Row]]:
    """The graph after each of `passes`, which are proved together, and their rows."""
    before, states, steps, rows = graph, [], [], []
    for offset, pass_ in enumerate(passes):
        context.progress(pass_.name, index + offset, total)
        graph, step = _apply(pass_, graph, context)
        states.append(graph)
        steps.append(step)
        rows.append(_row(step, graph, context))
    proof, snr = _prove(before, graph, steps, context)
    moved = [row.changed > 0 and row.effect != "exact" for row in rows]
    accuracy = context.accuracy(graph) if any(moved) else None
    return states, [
        Row(**{**vars(row), "proof": proof if row.changed else "unchanged"}
            | ({"snr_db": snr, "accuracy": accuracy} if changed else {}))
        for row, changed in zip(rows, moved, strict=True)
    ]  # fmt: skip


def _apply(pass_: Pass, graph: gs.Graph, context: Context) -> tuple[gs.Graph, _Step]:
    """Run one pass on a copy; the graph before it stays as it was."""
    after, context.skipped = graph.copy(), []
    started = time.perf_counter()
    try:
        changed = pass_.run(after, context)
        seconds = time.perf_counter() - started
        if changed:
            verify.check_invariants(after)
    except NncError as error:
        raise NncError(f"pass {pass_.name}: {error.message}", error.hint) from error
    except verify.BrokenGraph as error:
        raise PassFailed(pass_, graph, f"the graph after it is not valid: {error}") from error
    except Exception as error:
        raise PassFailed(pass_, graph, f"{type(error).__name__}: {error}") from error
    return (after if changed else graph), _Step(pass_, graph, changed, seconds, context.skipped)


def _row(step: _Step, graph: gs.Graph, context: Context) -> Row:
    figures = measure(graph)
    return Row(
        name=step.pass_.name,
        effect=step.pass_.effect,
        changed=step.changed,
        seconds=step.seconds,
        params=figures.params,
        macs=figures.macs,
        weight_bytes=figures.weight_bytes,
        nodes=figures.nodes,
        latency_ms=context.predict(graph).latency_ms,
        snr_db=None,
        accuracy=None,
        skipped=step.skipped,
        proof="unchanged",
    )


def _prove(before: gs.Graph, after: gs.Graph, steps: list[_Step], context: Context) -> tuple[str, float | None]:
    """Compare the outputs before and after: how it went, and in approximate passes the signal-to-noise ratio in dB."""
    if not any(step.changed for step in steps):
        return "unchanged", None
    inputs = verify.probe_inputs(before, context.seed)
    try:
        reference = verify.outputs(before, inputs)
    except NncError as error:
        return f"not compared: {error.message}", None
    if steps[0].pass_.effect != "exact":
        return "measured", verify.snr_db(reference, verify.outputs(after, inputs))
    if _moved(reference, after, inputs):
        _blame(reference, [*(step.before for step in steps[1:]), after], steps, inputs)
    return "outputs equal", None


def _moved(reference: verify.Arrays, graph: gs.Graph, inputs: verify.Arrays) -> bool:
    try:
        return verify.largest_difference(reference, verify.outputs(graph, inputs)) > verify.TOLERANCE
    except NncError:
        return True


def _blame(reference: verify.Arrays, graphs_after: list[gs.Graph], steps: list[_Step], inputs: verify.Arrays) -> None:
    """Raise PassFailed for the first of several exact passes after which the outputs differ."""
    for step, after in zip(steps, graphs_after, strict=True):
        if step.changed and _moved(reference, after, inputs):
            raise PassFailed(step.pass_, step.before, _what_moved(step.before, after, inputs))


def _what_moved(before: gs.Graph, after: gs.Graph, inputs: verify.Arrays) -> str:
    try:
        tensor = verify.first_moved(before, after, inputs)
    except NncError as error:
        return error.message
    return f"it is called exact, but '{tensor}' moved" if tensor else "it is called exact, but the outputs moved"


def save_reproduction(failure: PassFailed, folder: Path) -> None:
    """Write before.onnx and the one-pass recipe that fails on it."""
    folder.mkdir(parents=True, exist_ok=True)
    graphs.save(failure.before, folder / "before.onnx")
    (folder / "recipe.toml").write_text(failure.pass_.to_toml(), "utf-8")
