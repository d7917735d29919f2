"""Tuning a network: the next trials go to the layer whose improvement is expected to save the most time.

A layer counts as often as its workload occurs. What is expected of it is its time now, times what its search expects of
the next candidate; a layer that stops getting faster, or that takes no time, stops taking trials.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from nnc import units
from nnc.console import say
from nnc.target import Target
from nnc.tuning import records, tasks
from nnc.tuning.devices import Device
from nnc.tuning.measure import Measurer, Trial
from nnc.tuning.records import Record
from nnc.tuning.search import Search
from nnc.tuning.tasks import Task

Progress = Callable[[str, int, int], None]

BATCH = 8
"""Plans that are measured at once."""

TRIALS = 32
"""Per workload, unless the budget says otherwise."""

_CORRECTED = 0.02  # logarithm of the ratio of two measurements of one plan that counts as a difference
_SMALLEST_GAIN = 2e-4  # of the network's time: where no layer promises more, the search is over


@dataclass(frozen=True)
class Budget:
    """What a search may take."""

    trials: int | None = None
    seconds: float | None = None


@dataclass
class Tuning:
    """The search for one task's plan."""

    task: Task
    plans: list[Any]
    search: Search
    default_ms: float | None = None

    @property
    def weight(self) -> float:
        """Milliseconds of the task's layers with the best plan so far."""
        return (self.default_ms or 0.0) / self.speed * len(self.task.layers)

    @property
    def default_weight(self) -> float:
        return (self.default_ms or 0.0) * len(self.task.layers)

    @property
    def speed(self) -> float:
        """Times the default."""
        return self.search.best[1]


@dataclass(frozen=True)
class Result:
    """What a search found."""

    tunings: list[Tuning]
    trials: int
    seconds: float
    records: Path
    source: str

    @property
    def speed(self) -> float:
        """Of the layers that can be tuned, all together, over the default."""
        after = sum(tuning.weight for tuning in self.tunings)
        return sum(tuning.default_weight for tuning in self.tunings) / after if after else 1.0

    def to_dict(self) -> dict[str, Any]:
        """What `nnc tune --json` prints."""
        return {
            "speedup": self.speed,
            "trials": self.trials,
            "seconds": self.seconds,
            "source": self.source,
            "records": str(self.records),
            "layers": [_layer(tuning) for tuning in self.tunings],
        }


def _layer(tuning: Tuning) -> dict[str, Any]:
    return {
        "workload": tuning.task.name,
        "layers": list(tuning.task.layers),
        "default_ms": tuning.default_ms,
        "tuned_ms": tuning.default_ms and tuning.default_ms / tuning.speed,
        "speedup": tuning.speed,
        "trials": len(tuning.search.measured),
        "candidates": len(tuning.plans),
        "plan": tuning.search.plans[tuning.search.best[0]],
    }


def tune(
    graph: gs.Graph,
    target: Target,
    device: Device,
    file: Path,
    *,
    threads: int | None = None,
    budget: Budget = Budget(),
    resume: bool = False,
    progress: Progress = lambda step, done, total: None,
    warn: Callable[[str], None] = say,
) -> Result:
    """Search plans for the layers of a graph, and append every trial to `file`.

    With `resume`, what the file has of these workloads counts as done; otherwise it is where the search starts from.
    Raises NncError for a graph that can't be lowered, and for a device that can't be used.
    """
    network = tasks.network(graph, target, threads, progress)
    machine = records.machine_of(target, network.unit.threads)
    known = [record for record in records.read(file, warn) if record.machine == machine]
    others = [record for record in records.shipped(warn) if record.machine == machine]
    tunings = [_tuning(task, network.unit, known if resume else [], [*known, *others]) for task in network.tasks]
    done = sum(len(tuning.search.measured) for tuning in tunings)
    most = budget.trials or (TRIALS * len(tunings) if budget.seconds is None else None)
    clock = _Clock(most, budget.seconds, done, progress)
    with Measurer(device, network.unit, target.unit.tvm) as measurer:
        while not clock.is_over and (tuning := _next(tunings)) is not None:
            clock.show(tunings, tuning)
            batch = min(BATCH, clock.left)
            before = len(tuning.search.measured)
            records.append(file, _measured(tuning, measurer, machine, batch))
            clock.trials += len(tuning.search.measured) - before
    clock.finish()
    return Result(tunings, clock.trials, clock.seconds, file, device.source)


def _tuning(task: Task, unit: Any, done: Sequence[Record], known: Iterable[Record]) -> Tuning:
    """The search of a task: what is done of it, and a start from what is known of it or of the nearest workload."""
    from nnc.lowering.workload import encoded

    plans = task.workload.plans(unit)
    content = [encoded(plan) for plan in plans]
    search = Search(content, task.workload.estimates(plans, unit))
    tuning = Tuning(task, plans, search)
    index = {records.canonical(plan): place for place, plan in enumerate(content)}
    key = task.workload.key
    for record in done:
        name = records.canonical(record.plan)
        if record.workload == key and name in index:
            search.tell(index[name], record.speed)
            tuning.default_ms = record.ms if index[name] == 0 else tuning.default_ms
    search.start(record.plan for record in nearest(key, records.best(known).values()))
    return tuning


def nearest(key: records.Json, known: Iterable[Record], count: int = 2) -> list[Record]:
    """The best records of the workloads that are most like one: of the same operator, with close sizes."""
    alike = [record for record in known if record.workload.get("op") == key["op"]]
    return sorted(alike, key=lambda record: _distance(key, record.workload))[:count]


def _distance(left: Any, right: Any) -> float:
    """How far two workloads are apart: the sum of the logarithms of the ratios of their numbers."""
    if isinstance(left, dict) and isinstance(right, dict):
        return sum(_distance(left.get(name), right.get(name)) for name in {*left, *right})
    if isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) == len(right):
        return sum(map(_distance, left, right))
    if isinstance(left, int | float) and isinstance(right, int | float):
        return abs(math.log((abs(left) + 1) / (abs(right) + 1)))
    return float(left != right)


def _next(tunings: Sequence[Tuning]) -> Tuning | None:
    """The task with the largest expected saving, those that were not timed yet first; None where none promises any."""
    for tuning in tunings:
        if tuning.default_ms is None:
            return tuning
    total = sum(tuning.weight for tuning in tunings)
    best = max(tunings, key=lambda tuning: tuning.weight * tuning.search.gain, default=None)
    return best if best is not None and best.weight * best.search.gain > _SMALLEST_GAIN * total else None


def _measured(tuning: Tuning, measurer: Measurer, machine: records.Json, count: int) -> list[Record]:
    """Measure the next candidates of a task against the default and against the best so far."""
    search = tuning.search
    chosen = [index for index in search.propose(count) if index != 0]
    indices = [0, *([search.best[0]] if search.best[0] else []), *chosen]
    trials = measurer.measure(tuning.task.workload, [tuning.plans[index] for index in indices])
    made = []
    for index, trial in zip(indices, trials, strict=True):
        if _is_news(search.measured.get(index), trial.speed):
            made.append(_record(tuning, machine, search.plans[index], trial, measurer.source))
        search.tell(index, trial.speed)
    tuning.default_ms = tuning.default_ms or trials[0].ms
    return made


def _is_news(before: float | None, speed: float | None) -> bool:
    """Whether a plan was not measured yet, or turns out to be faster or slower than it was: one lucky trial is none."""
    return before is None or speed is None or abs(math.log(speed) - before) > _CORRECTED


def _record(tuning: Tuning, machine: records.Json, plan: records.Json, trial: Trial, source: records.Source) -> Record:
    return Record(tuning.task.workload.key, machine, plan, trial.speed, trial.ms, source)


@dataclass
class _Clock:
    """What a search has taken and may take, and what it shows meanwhile."""

    most: int | None
    most_seconds: float | None
    trials: int
    progress: Progress
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> int:
        return BATCH if self.most is None else self.most - self.trials

    @property
    def is_over(self) -> bool:
        return self.left <= 0 or (self.most_seconds is not None and self.seconds >= self.most_seconds)

    def show(self, tunings: Sequence[Tuning], tuning: Tuning) -> None:
        """Trials, the best so far of the task and of the network; the bar itself tells the predicted end."""
        after = sum(each.weight for each in tunings)
        speed = sum(each.default_weight for each in tunings) / after if after else 1.0
        step = f"{tuning.task.name}: {units.times(tuning.speed)}, network {units.times(speed)}, {self.trials} trials"
        done, total = self._share()
        self.progress(step, done, total)

    def _share(self) -> tuple[int, int]:
        if self.most_seconds is not None and (
            self.most is None or self.seconds / self.most_seconds > self.trials / self.most
        ):
            return min(int(self.seconds), int(self.most_seconds) - 1), int(self.most_seconds)
        assert self.most is not None
        return self.trials, self.most

    def finish(self) -> None:
        total = self.most or int(self.most_seconds or 1)
        self.progress("tune", total, total)
