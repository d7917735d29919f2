"""Which schedules of a loop nest without a template to measure next: TVM's MetaSchedule, asked as `search.Search` is.

MetaSchedule draws schedules by its rules and evolves those that turned out to be fast, as a cost model expects: boosted
trees where xgboost is installed (`pip install "nnc[tune]"`), and chance otherwise (Zheng et al., "Ansor: Generating
High-Performance Tensor Programs for Deep Learning", 2020; Shao et al., "Tensor Program Optimization with Probabilistic
Programs", 2022).
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from nnc.tuning.search import SLOWEST

if TYPE_CHECKING:
    from nnc.lowering.kernels.unit import Unit
    from nnc.lowering.workload import Workload

GENERATION = 8  # schedules that are drawn at once
_MOST = 4096  # schedules in all
_FIRST_GAIN = 0.3  # what the first generation is expected to improve, as a logarithm
_DECAY = 0.6  # of that, for every generation that improved nothing
_LEARNER = "xgboost"
_SLOW = 1e10  # "seconds" of a schedule that can't be built


class Drawn:
    """The schedules of one workload that were drawn so far, the default first, and what was measured of them."""

    def __init__(self, workload: Workload, unit: Unit, machine: Mapping[str, Any]) -> None:
        """`machine` is the `tvm` of a target's unit."""
        self._workload, self._unit = workload, unit
        self._machine = {**machine, "num-cores": unit.threads}
        self.measured: dict[int, float] = {}  # index of a plan -> logarithm of its speed over the default
        self.plans: list[Mapping[str, Any]] = []
        self._places: dict[str | None, int] = {}  # of a trace in `plans`
        self._expected = _FIRST_GAIN
        self._ended = False
        self._generations: Iterator[list[str]] | None = None
        self._generation: list[int] = []  # the last one
        self._waiting = [self._add(None)]  # candidates in their order, and those that were measured meanwhile

    def _add(self, trace: str | None) -> int:
        """The index of a trace's plan."""
        from nnc.lowering.kinds import Trace, encoded

        if trace not in self._places:
            self._places[trace] = len(self.plans)
            self.plans.append(encoded(Trace(trace)))
        return self._places[trace]

    def start(self, plans: Iterable[Mapping[str, Any]]) -> None:
        """Measure these first, where they are schedules of this workload."""
        fitting = [plan for plan in plans if self._workload.decoded(plan, self._unit) is not None]
        self._waiting += [place for plan in fitting if (place := self._add(plan["trace"]))]

    def place(self, plan: Mapping[str, Any]) -> int | None:
        """The index of a plan that was measured in an earlier search; None where it is none of this workload."""
        return self._add(plan["trace"]) if self._workload.decoded(plan, self._unit) is not None else None

    def tell(self, index: int, speed: float | None) -> None:
        """Record how many times faster than the default a plan is; None: it can't be built."""
        before = self.best[1]
        self.measured[index] = SLOWEST if speed is None else max(math.log(speed), SLOWEST)
        if self.best[1] > before:
            self._expected = max(self._expected, math.log(self.best[1] / before) / 2)

    @property
    def best(self) -> tuple[int, float]:
        """The fastest plan so far, and its speed over the default."""
        index = max(self.measured, key=lambda each: self.measured[each], default=0)
        return (index, math.exp(self.measured[index])) if self.measured.get(index, -1.0) > 0 else (0, 1.0)

    @property
    def gain(self) -> float:
        """The improvement to expect of the next candidate, as a logarithm of a ratio."""
        return 0.0 if self._ended else self._expected

    def propose(self, count: int) -> list[int]:
        """Up to `count` candidates that were not measured; none when nothing else can be drawn.

        Another generation is drawn only where all of the last one were measured: it learns from them.
        """
        while len(self._unmeasured(self._waiting)) < count and not self._unmeasured(self._generation) and self._draw():
            pass
        self._waiting = self._unmeasured(self._waiting)
        return self._waiting[:count]

    def _unmeasured(self, indices: Iterable[int]) -> list[int]:
        return [index for index in dict.fromkeys(indices) if index not in self.measured]

    def _draw(self) -> bool:
        """Wait for another generation; whether there is one."""
        if self._generations is None:
            self._generations = self._evolved()
        else:
            self._expected *= _DECAY
        self._generation = [self._add(trace) for trace in next(self._generations, [])]
        self._waiting += self._generation
        self._ended = not self._generation
        return not self._ended

    def _evolved(self) -> Iterator[list[str]]:
        """Generations of traces; each takes into account what was measured of all those before."""
        import tvm

        ms = _meta_schedule()
        module, target = self._workload.problem.module, tvm.target.Target(self._machine)
        context = ms.TuneContext(
            module,
            target=target,
            space_generator=ms.space_generator.PostOrderApply(sch_rules="llvm", postprocs="llvm", mutator_probs="llvm"),
            search_strategy=ms.search_strategy.EvolutionarySearch(
                population_size=64, init_min_unmeasured=4 * GENERATION, genetic_num_iters=2
            ),
            task_name=self._workload.problem.operator,
            rand_state=1,
            num_threads=1,
        )
        database, model = ms.database.MemoryDatabase(), _cost_model(ms)
        context.pre_tuning(_MOST, GENERATION, context.generate_design_space(), database, model)
        stored = database.commit_workload(module)
        while True:
            with _seeded(len(self.plans)):
                candidates = context.generate_measure_candidates() or []
            traces = [json.dumps(_plain(each.sch.trace.as_json())) for each in candidates]
            yield traces
            seconds = [self._seconds(trace) for trace in traces]
            results = [ms.runner.RunnerResult([each], None) for each in seconds]
            context.notify_runner_results(candidates, results)
            model.update(context, candidates, results)
            for each, second in zip(candidates, seconds, strict=True):
                record = ms.database.TuningRecord(each.sch.trace, stored, [second], target, each.args_info)
                database.commit_tuning_record(record)

    def _seconds(self, trace: str) -> float:
        """What a trace took, in times of the default plan."""
        speed = self.measured[self._places[trace]]
        return _SLOW if speed <= SLOWEST else math.exp(-speed)


def _meta_schedule() -> Any:
    """TVM's search engine, without the intrinsics of GPUs, which take half a minute to import."""
    import tvm.s_tir

    name = f"{tvm.s_tir.__name__}.tensor_intrin"
    sys.modules.setdefault(name, ModuleType(name))
    from tvm.s_tir import meta_schedule

    return meta_schedule


def _cost_model(ms: Any) -> Any:
    if importlib.util.find_spec(_LEARNER) is None:
        return ms.cost_model.RandomModel(seed=1)
    return ms.cost_model.XGBModel(num_warmup_samples=2 * GENERATION)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """What TVM's model of costs says before it has learned anything comes from NumPy's own numbers."""
    before = np.random.get_state()
    np.random.seed(seed)
    yield
    np.random.set_state(before)


def _plain(value: Any) -> Any:
    """TVM's arrays and numbers in JSON's types."""
    if value is None or isinstance(value, str | int | float):
        return value
    if hasattr(value, "items"):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if hasattr(value, "__len__") else value.value
