"""The searches of a network's workloads: what was measured of each, and what it may take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nnc.target import Target
from nnc.tuning import records
from nnc.tuning.drawn import Drawn
from nnc.tuning.measure import Measurer, Unmeasurable
from nnc.tuning.records import Record
from nnc.tuning.search import SLOWEST, Search

if TYPE_CHECKING:
    from nnc.lowering.kernels.unit import Unit
    from nnc.lowering.workload import Workload

_CORRECTED = 0.02  # logarithm of the ratio of two measurements of one plan that counts as a difference


@dataclass
class Ran:
    """The plans of a workload that ran in networks, by index."""

    expected_ms: float
    """Of the default plan, where it ran in none."""
    times: dict[int, list[float]] = field(default_factory=dict)
    """Milliseconds."""

    def ms(self, index: int) -> float:
        return statistics.median(self.times[index])

    @property
    def default_ms(self) -> float:
        return self.ms(0) if 0 in self.times else self.expected_ms

    @property
    def best(self) -> tuple[int, float]:
        """The fastest plan and its speed over the default, which it is itself where the other is faster by chance."""
        index = min(self.times, key=self.ms)
        speed = self.default_ms / self.ms(index)
        return (index, speed) if speed > records.NOISE["network"] else (0, min(speed, 1.0))


@dataclass
class Tuning:
    """The search for one workload's plan."""

    workload: Workload
    search: Search | Drawn
    noise: float
    """How many times faster than the default a plan that is as fast may seem."""
    alone_ms: float | None = None
    """Of the default plan where nothing else runs."""
    ran: Ran | None = None
    known: int = 0
    """The index of the plan that is known to be the best one, from elsewhere or from before."""

    @property
    def default_ms(self) -> float | None:
        return self.ran.default_ms if self.ran else self.alone_ms

    @property
    def ms(self) -> float | None:
        """Of the best plan so far: in networks, where any ran in one."""
        return None if self.default_ms is None else self.default_ms / self._best[1]

    @property
    def best(self) -> int:
        """The index of the plan that compiles use from now on."""
        return self._best[0]

    @property
    def _best(self) -> tuple[int, float]:
        """The plan's index and its speed over the default."""
        return self.ran.best if self.ran else self.best_alone

    @property
    def best_alone(self) -> tuple[int, float]:
        index, speed = self.search.best
        return (index, speed) if speed > self.noise else (0, 1.0)

    @property
    def promising(self) -> int:
        """The index of a plan that ran in no network, and is faster alone than the best one; else that of the best.

        Of a workload that was not measured, what is known: the search may not have come to it.
        """
        ran = self.ran.times if self.ran else {}
        if not self.search.measured and self.known not in ran:
            return self.known
        alone = {index: speed for index, speed in self.search.measured.items() if index not in ran}
        index = max(alone, key=lambda each: alone[each], default=0)
        speed = math.exp(alone.get(index, SLOWEST))
        return index if speed > max(self._best[1], self.noise if index else 0.0) else self.best


class Searches:
    """A search for every workload that is asked for."""

    def __init__(
        self, unit: Unit, target: Target, source: records.Source, done: Iterable[Record], known: Iterable[Record]
    ) -> None:
        """What is `done` counts, alone as trials; the best of what is `known` is where searches start from."""
        self._noise = records.NOISE[source]
        self._unit, self._target = unit, target
        self._machine = records.machine_of(target, unit.threads)
        self._done: dict[str, list[Record]] = {}
        for record in done:
            self._done.setdefault(records.canonical(record.workload), []).append(record)
        self._known = list(records.best(known).values())
        self._made: dict[Workload, Tuning] = {}
        self._refused: set[Workload] = set()
        self._told: set[bytes] = set()  # lines of what ran in networks

    def of(self, workload: Workload) -> Tuning:
        if workload not in self._made:
            self._made[workload] = self._start(workload)
        return self._made[workload]

    def _start(self, workload: Workload) -> Tuning:
        """The search of a workload: what is done of it, and a start from what is known of it or of the nearest one."""
        from nnc.lowering.kinds import decoded

        tuning, key = Tuning(workload, self._search(workload), self._noise), workload.key
        for record in self._done.get(records.canonical(key), []):
            place = tuning.search.place(record.plan)
            if place is None:
                continue
            if record.source != "network":
                tuning.search.tell(place, record.speed)
                tuning.alone_ms = record.ms if place == 0 else tuning.alone_ms
            elif record.speed and record.ms:
                tuning.ran = tuning.ran or Ran(record.speed * record.ms)
                tuning.ran.times[place] = [record.ms]
                self._told.add(record.line)
        near = [record for record in nearest(key, self._known) if decoded(record.plan) is not None]
        tuning.search.start(record.plan for record in near)
        for record in near:
            if records.canonical(record.workload) == records.canonical(key) and record.is_faster:
                tuning.known = tuning.search.place(record.plan) or 0
        return tuning

    def _search(self, workload: Workload) -> Search | Drawn:
        """Among the plans of a template, or the schedules that MetaSchedule draws where there is none."""
        from nnc.lowering.kinds import encoded

        if workload.op == "general":
            return Drawn(workload, self._unit, self._target.unit.tvm)
        plans = workload.plans(self._unit)
        return Search([encoded(plan) for plan in plans], workload.estimates(plans, self._unit))

    @property
    def trials(self) -> int:
        return sum(len(tuning.search.measured) for tuning in self._made.values())

    def is_new(self, workload: Workload) -> bool:
        """Whether nothing was measured of a workload yet."""
        return not self.is_refused(workload) and self.of(workload).alone_ms is None

    def is_refused(self, workload: Workload) -> bool:
        """Whether its default plan can't be measured."""
        return workload in self._refused

    def time(self, workload: Workload) -> float:
        """Milliseconds of a workload with the plan that is the best one alone; infinity where none was measured."""
        found = self._made.get(workload)
        return math.inf if found is None or found.alone_ms is None else found.alone_ms / found.best_alone[1]

    def settled(self, workload: Workload) -> float:
        """The same in networks; infinity where none of its plans ran in one."""
        found = self._made.get(workload)
        return math.inf if found is None or found.ran is None or found.ms is None else found.ms

    def expected(self, workload: Workload, time: Callable[[Workload], float]) -> float:
        """Its `time`, as above; where there is none, of a convolution between two layouts the mean of both."""
        known = time(workload)
        if known < math.inf or workload in self._refused or workload.op not in ("conv2d", "expand_depthwise"):
            return known
        ins, outs = workload.problem.in_block, workload.block
        if ins in (1, outs):
            return known
        return sum(time(workload.in_blocks(block, block)) for block in (ins, outs)) / 2

    def measure(self, workload: Workload, measurer: Measurer, count: int, required: bool) -> list[Record]:
        """Measure the next candidates of a workload against the default and against the best so far.

        Where the default plan can't be measured, raises NncError if that is `required`; otherwise there are no records,
        and the workload is not asked for again.
        """
        from nnc.lowering.kinds import decoded

        tuning, search = self.of(workload), self.of(workload).search
        chosen = [index for index in search.propose(count) if index != 0]
        indices = [0, *([search.best[0]] if search.best[0] else []), *chosen]
        try:
            trials = measurer.measure(workload, [decoded(search.plans[index]) for index in indices])
        except Unmeasurable:
            if required:
                raise
            self._refused.add(workload)
            return []
        made = []
        tuning.alone_ms = tuning.alone_ms or trials[0].ms
        for index, trial in zip(indices, trials, strict=True):
            if _is_news(search.measured.get(index), trial.speed):
                # What batches took is compared through the default plan, which all of them timed.
                ms = tuning.alone_ms / trial.speed if tuning.alone_ms and trial.speed else None
                made.append(Record(workload.key, self._machine, search.plans[index], trial.speed, ms, measurer.source))
            search.tell(index, trial.speed)
        return made

    def confirm(self, workload: Workload, index: int, ms: float, expected_ms: float) -> None:
        """A plan took so long in a network, where the default one is expected to take that long."""
        tuning = self.of(workload)
        tuning.ran = tuning.ran or Ran(expected_ms)
        tuning.ran.times.setdefault(index, []).append(ms)

    def confirmed(self) -> list[Record]:
        """The records of all plans that ran in networks, but those that were told before and are the same."""
        made = [
            Record(each.workload.key, self._machine, each.search.plans[index], ran.default_ms / ms, ms, "network")
            for each in self._made.values()
            if (ran := each.ran) is not None
            for index in ran.times
            for ms in [ran.ms(index)]
        ]
        new = [record for record in made if record.line not in self._told]
        self._told.update(record.line for record in new)
        return new


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


def _is_news(before: float | None, speed: float | None) -> bool:
    """Whether a plan was not measured yet, or turns out to be faster or slower than it was: one lucky trial is none."""
    return before is None or speed is None or abs(math.log(speed) - before) > _CORRECTED
