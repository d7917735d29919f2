"""Plans in their network: one that is faster alone is not always faster there.

Between the layers of a network other weights pass through the caches, and what another core wrote has to come over. So
what the searches found is compiled into one library, and the default plans into another; both run in turns, and every
layer is compared with itself. A plan that turns out to be no faster gives its place to the next best one, which the
next library tries. The first library has the layouts that seem to be the fastest; those behind it choose among what
ran.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from nnc import verify
from nnc.errors import NncError
from nnc.target import Target
from nnc.tuning.measure import quiet
from nnc.tuning.records import Json
from nnc.tuning.searches import Searches
from nnc.tuning.tasks import Network, Task

if TYPE_CHECKING:
    from nnc.lowering.build import Built
    from nnc.lowering.workload import Schedules, Workload

Progress = Callable[[str, int, int], None]
Plans = Mapping["Workload", int]
"""The index of a plan of every workload."""

File = tuple[Path, int]
"""A library, and how many kernels it has."""

_LIBRARIES = 4  # of tuned plans; the last one tries nothing new
_PROCESSES = 3  # for two libraries, of which others slow some down
_TURNS, _LEAST_TURNS = 12, 3  # of each library in a process
_SECONDS = 20.0  # after which large networks have the least turns
_RUNS = 3  # in a turn
_LEAST_MS = 1e-6
_PAUSE = 0.02  # seconds before a turn, in which the threads of the other library fall asleep


@dataclass(frozen=True)
class Step:
    """A kernel of a network, and the nodes that it computes."""

    nodes: frozenset[str]
    ms: float


def confirm(
    graph: gs.Graph,
    target: Target,
    network: Network,
    searches: Searches,
    progress: Progress,
    is_over: Callable[[], bool],
) -> Iterator[float]:
    """Time plans in the graph on this machine until there is none left to try, or it `is_over`.

    Yields how many times faster than with its default plans the network is with those of each library.
    Raises NncError where a library can't be built or run.
    """
    before: Plans = {}
    with tempfile.TemporaryDirectory(prefix="nnc-") as folder:
        libraries = _Libraries(graph, target, network.unit.threads, Path(folder))
        for count in range(_LIBRARIES):
            is_last = count == _LIBRARIES - 1 or (count > 0 and is_over())
            time = _time(searches, is_first=count == 0, is_last=is_last)
            tasks = network.cheapest(time)
            tunings = [searches.of(task.workload) for task in tasks]
            plans = {each.workload: each.best if is_last else each.promising for each in tunings}
            changed = [task for task in tasks if plans[task.workload] or not task.is_default]
            all_ran = all(each.ran and plans[each.workload] in each.ran.times for each in tunings)
            if not changed or plans == before or (count == 0 and all_ran):
                return
            progress("confirm in the network", count, _LIBRARIES)
            default, tuned = libraries.timed(_Chosen(searches, plans, time))
            _tell_default(network, searches, default)
            _tell(searches, changed, plans, default, tuned)
            yield _total(default) / _total(tuned)
            if is_last:
                return
            before = plans


def _time(searches: Searches, is_first: bool, is_last: bool) -> Callable[[Workload], float]:
    """What layouts are chosen by: times alone at first, and then those in the network."""
    if is_first:
        return searches.time
    return searches.settled if is_last else lambda workload: searches.expected(workload, searches.settled)


def _tell_default(network: Network, searches: Searches, default: Sequence[Step]) -> None:
    """What the default plans of all layers take, so that what is known of the network is known of all of it."""
    for task in network.tasks:
        ms = _taken(default, _nodes(task)) / len(task.layers)
        searches.confirm(task.workload, 0, ms, ms)


def _tell(
    searches: Searches, tasks: Sequence[Task], plans: Plans, default: Sequence[Step], tuned: Sequence[Step]
) -> None:
    """What the plans of tasks take."""
    for task, speed in zip(tasks, speeds(tasks, default, tuned), strict=True):
        bases = [searches.of(base) for base in task.bases]
        ms = sum(base.default_ms or 0.0 for base in bases)
        alone, alone_ms = sum(base.alone_ms or 0.0 for base in bases), searches.of(task.workload).alone_ms
        expected = ms * alone_ms / alone if alone and alone_ms else ms / speed
        searches.confirm(task.workload, plans[task.workload], ms / speed, expected)


def speeds(tasks: Sequence[Task], default: Sequence[Step], tuned: Sequence[Step]) -> list[float]:
    """How many times faster the layers of tasks are than by default.

    What the kernel behind takes longer than by default counts, too, where it is the same as by default: it reads what
    the task made.
    """
    own = [[index for index, step in enumerate(tuned) if step.nodes & _nodes(task)] for task in tasks]
    changed = {len(tuned), *(index for each in own for index in each)}
    found = []
    for task, indices in zip(tasks, own, strict=True):
        behind = [tuned[index + 1] for index in indices if index + 1 not in changed]
        taken = sum(tuned[index].ms for index in indices)
        waited = sum(step.ms - _taken(default, step.nodes) for step in behind)
        found.append(_taken(default, _nodes(task)) / max(taken + waited, _LEAST_MS))
    return found


def _nodes(task: Task) -> frozenset[str]:
    return frozenset(name for names in task.layers for name in names)


def _taken(steps: Sequence[Step], nodes: frozenset[str]) -> float:
    """Milliseconds of the kernels that compute some of these nodes; never 0: speeds are divided by it."""
    return max(sum(step.ms for step in steps if step.nodes & nodes), _LEAST_MS)


def _total(steps: Sequence[Step]) -> float:
    return sum(step.ms for step in steps)


@dataclass(frozen=True)
class _Chosen:
    """What a compile gets to know."""

    searches: Searches
    plans: Plans
    time: Callable[[Workload], float]

    def find(self, workload: Workload) -> Json | None:
        index = self.plans.get(workload, 0)
        return self.searches.of(workload).search.plans[index] if index else None

    def times(self, workloads: Iterable[Workload]) -> Callable[[Workload], float]:
        return self.time


class _Libraries:
    """A graph, compiled into a folder again and again."""

    def __init__(self, graph: gs.Graph, target: Target, threads: int, folder: Path) -> None:
        self._graph, self._target, self._threads, self._folder = graph, target, threads, folder
        self._inputs = list(verify.probe_inputs(graph, 0).values())
        self._default: Built | None = None

    def timed(self, chosen: _Chosen) -> list[list[Step]]:
        """The kernels of the library of default plans, and of that of the chosen ones."""
        self._default = self._default or self._built("default", None)
        both = [self._default, self._built("tuned", chosen)]
        files = [(each.files[0], len(each.kernels)) for each in both]
        times = [_times(files, self._threads, self._inputs) for _ in range(_PROCESSES)]
        return [
            [
                Step(frozenset(kernel.nodes), float(ms))
                for kernel, ms in zip(built.kernels, np.min(found, axis=0), strict=True)
            ]
            for built, found in zip(both, zip(*times, strict=True), strict=True)
        ]

    def _built(self, name: str, schedules: Schedules | None) -> Built:
        from nnc.lowering import build

        out = self._folder / name
        out.mkdir(exist_ok=True)
        return build(self._graph, self._target, out, threads=self._threads, schedules=schedules)


def _times(files: Sequence[File], threads: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Milliseconds of every kernel of libraries: in a process of its own, which takes them out of memory as it ends."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(there, files, threads, inputs), daemon=True)
    process.start()
    there.close()
    try:
        answer = here.recv()
    except EOFError as error:
        raise NncError("the tuned network takes its process down", "nnc tune MODEL --resume tries it again") from error
    finally:
        process.kill()
        process.join()
    if isinstance(answer, NncError):
        raise answer
    return answer


def _serve(pipe: Connection, files: Sequence[File], threads: int, inputs: Sequence[np.ndarray]) -> None:
    from nnc.lowering.library import Library

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    try:
        libraries = [(Library(path, threads), steps) for path, steps in files]
    except NncError as error:
        pipe.send(error)
        return
    _pin()
    turns: list[list[np.ndarray]] = [[] for _ in libraries]
    started = time.monotonic()
    for turn in range(_TURNS):
        if turn >= _LEAST_TURNS and time.monotonic() - started > _SECONDS:
            break
        for (library, steps), times in zip(libraries, turns, strict=True):
            time.sleep(_PAUSE)
            times.append(library.profile(inputs, steps, _RUNS))
    with suppress(ConnectionError):  # the parent is gone
        pipe.send([quiet(times) for times in turns])


def _pin() -> None:
    """Keep the threads that wait for this one off its core, onto which they would be woken now and then."""
    first, *others = sorted(os.sched_getaffinity(0))
    for name in os.listdir("/proc/self/task") if others else ():
        os.sched_setaffinity(int(name), {first} if int(name) == os.getpid() else others)
