"""Tuning a network: the next trials go to the layer whose improvement is expected to save the most time.

Every layer is timed in the unit's own blocks of channels first, then in wider ones, and pairs of layers as one kernel;
from then on, those ways count in which the network takes the least time as far as is known (`nnc.lowering.layout`). A
layer counts as often as its workload occurs. What is expected of it is its time now, times what its search expects of
the next candidate; a layer that stops getting faster, or that takes no time, stops taking trials.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from nnc.display import units
from nnc.display.console import say
from nnc.target import Target
from nnc.tuning import records, tasks
from nnc.tuning.confirm import confirm
from nnc.tuning.devices import Device, Host
from nnc.tuning.measure import Measurer
from nnc.tuning.searches import Searches, Tuning
from nnc.tuning.tasks import Network, Task

Progress = Callable[[str, int, int], None]

BATCH = 8
"""Plans that are measured at once."""

TRIALS = 32
"""Per workload, unless the budget says otherwise."""

_SEARCHED = 0.8  # share of the time after which what was found runs in the network
_GLANCE = 4  # plans that are measured of a layer in a layout that may turn out to be slower
_GLANCES = 0.5  # share of the budget from which on no new layouts are looked at
_SMALLEST_GAIN = 2e-4  # of the network's time: where no layer promises more, the search is over


@dataclass(frozen=True)
class Budget:
    """What a search may take."""

    trials: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Tuned:
    """What was found for a task: its plans, and those of its layers alone in the unit's own blocks."""

    task: Task
    tuning: Tuning
    bases: list[Tuning]

    @property
    def ms(self) -> float:
        """Of all of its layers."""
        return (self.tuning.ms or 0.0) * len(self.task.layers)

    @property
    def default_ms(self) -> float:
        """Of all of its layers with default plans in default blocks."""
        return sum(base.default_ms or 0.0 for base in self.bases) * len(self.task.layers)

    @property
    def speed(self) -> float:
        return self.default_ms / self.ms if self.ms else 1.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "workload": self.task.name,
            "layers": [name for names in self.task.layers for name in names],
            "layout": self.task.layout,
            "default_ms": self.default_ms / len(self.task.layers) if self.bases[0].default_ms else None,
            "tuned_ms": self.tuning.ms,
            "speedup": self.speed,
            "trials": len(self.tuning.search.measured),
            "candidates": len(self.tuning.search.plans),
            "tuned": self.tuning.best != 0,
            "plan": self.tuning.search.plans[self.tuning.best],
        }


@dataclass(frozen=True)
class Result:
    """What a search found."""

    tuned: list[Tuned]
    trials: int
    seconds: float
    records: Path
    source: str
    network_speed: float | None
    """Of the whole network over the default plans, where it ran with these ones."""

    @property
    def speed(self) -> float:
        """Of the layers that can be tuned, all together, over the default."""
        return _speed(self.tuned)

    def to_dict(self) -> dict[str, Any]:
        """What `nnc tune --json` prints."""
        return {
            "speedup": self.speed,
            "network_speedup": self.network_speed,
            "trials": self.trials,
            "seconds": self.seconds,
            "source": self.source,
            "records": str(self.records),
            "layers": [each.to_dict() for each in self.tuned],
        }


def _speed(tuned: Sequence[Tuned]) -> float:
    after = sum(each.ms for each in tuned)
    return sum(each.default_ms for each in tuned) / after if after else 1.0


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
    """Search plans for the layers of a graph, confirm them in it where it runs here, and append all trials to `file`.

    With `resume`, what the file has of these workloads counts as done, where it was measured in the same way; otherwise
    it is where the search starts from.
    Raises NncError for a graph that can't be lowered, and for a device that can't be used.
    """
    network = tasks.network(graph, target, threads, progress)
    machine = records.machine_of(target, network.unit.threads)
    known = [record for record in records.read(file, warn) if record.machine == machine]
    others = [record for record in records.shipped(warn) if records.alike(record, machine)]
    done = [record for record in known if record.source == "network" or (resume and record.source == device.source)]
    searches = Searches(network.unit, target, device.source, done, [*known, *others])
    for task in [*network.tasks, *network.elsewhere]:
        searches.of(task.workload)
    most = budget.trials or (TRIALS * len(network.tasks) if budget.seconds is None else None)
    runs_here = isinstance(device, Host)
    clock = _Clock(most, budget.seconds, searches.trials, progress, _SEARCHED if runs_here else 1.0)
    with Measurer(device, network.unit, target.unit.tvm) as measurer:
        while not clock.is_over and (found := _next(network, searches, clock)) is not None:
            task, count = found
            clock.show(_tuned(network, searches), task)
            before = searches.trials
            records.append(file, searches.measure(task.workload, measurer, min(count, clock.left), task.is_required))
            clock.trials += searches.trials - before
    speed = None
    try:
        for each in confirm(graph, target, network, searches, progress, clock.is_late) if runs_here else ():
            speed = each
    finally:  # once, by all that was seen of each plan
        records.append(file, searches.confirmed())
    clock.finish()
    return Result(_tuned(network, searches), clock.trials, clock.seconds, file, device.source, speed)


def _tuned(network: Network, searches: Searches) -> list[Tuned]:
    """The tasks in the fastest layouts that were measured: in networks, where they were."""
    ran = any(searches.settled(task.workload) < math.inf for task in network.tasks)
    return [_of(task, searches) for task in network.cheapest(searches.settled if ran else searches.time)]


def _of(task: Task, searches: Searches) -> Tuned:
    return Tuned(task, searches.of(task.workload), [searches.of(base) for base in task.bases])


def _next(network: Network, searches: Searches, clock: _Clock) -> tuple[Task, int] | None:
    """The task to measure plans of, and how many; None where nothing promises to be faster.

    First come tasks that were not timed yet, then layouts by the time of their layers, then the largest saving. None is
    begun with the last trial: that of the default plan alone says nothing of any other.
    """

    def is_new(task: Task) -> bool:
        return clock.left > 1 and searches.is_new(task.workload)

    for task in filter(is_new, network.tasks):
        return task, BATCH
    glances = list(filter(is_new, network.elsewhere))
    if glances and clock.share < _GLANCES:
        return max(glances, key=lambda task: _of(task, searches).default_ms), _GLANCE
    expected = network.cheapest(lambda workload: searches.expected(workload, searches.time))
    for task in filter(is_new, expected):
        return task, _GLANCE
    tuned = [_of(task, searches) for task in expected if not searches.is_refused(task.workload)]
    best = max(tuned, key=lambda each: each.ms * each.tuning.search.gain, default=None)
    total = sum(each.ms for each in tuned)
    if best is None or best.ms * best.tuning.search.gain <= _SMALLEST_GAIN * total:
        return None
    return best.task, BATCH


@dataclass
class _Clock:
    """What a search has taken and may take, and what it shows meanwhile."""

    most: int | None
    most_seconds: float | None
    trials: int
    progress: Progress
    searching: float = 1.0
    """Share of the time that the search for plans may take."""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> int:
        return BATCH if self.most is None else self.most - self.trials

    @property
    def is_over(self) -> bool:
        return self.left <= 0 or self._is_past(self.searching)

    def is_late(self) -> bool:
        """Whether all of the time is spent."""
        return self._is_past(1.0)

    def _is_past(self, share: float) -> bool:
        return self.most_seconds is not None and self.seconds >= share * self.most_seconds

    @property
    def share(self) -> float:
        """Of the budget that is spent, trials or time, whichever is nearer to its end."""
        done, total = self._done()
        return done / total

    def show(self, tuned: Sequence[Tuned], task: Task) -> None:
        """Trials, the task, and what the network has gained; the bar itself tells the predicted end."""
        step = f"{task.name}, {task.layout}: network {units.times(_speed(tuned))}, {self.trials} trials"
        self.progress(step, *self._done())

    def _done(self) -> tuple[int, int]:
        if self.most_seconds is not None and (
            self.most is None or self.seconds / self.most_seconds > self.trials / self.most
        ):
            whole = max(1, math.ceil(self.most_seconds))
            return min(int(self.seconds), whole - 1), whole
        assert self.most is not None
        return self.trials, self.most

    def finish(self) -> None:
        total = self.most or int(self.most_seconds or 1)
        self.progress("tune", total, total)
