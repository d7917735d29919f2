"""Loop nests without a template: MetaSchedule draws schedules, and what they compute stays the same."""

import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from nnc import lowering, testing, verify
from nnc import target as targets
from nnc.context import silent
from nnc.lowering.kinds import Trace, decoded, encoded, general
from nnc.lowering.library import Library
from nnc.lowering.workload import Workload
from nnc.session import Session
from nnc.tuning import tasks
from nnc.tuning.drawn import GENERATION, Drawn, _meta_schedule
from nnc.tuning.tasks import Network

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="runs what it builds")

X86 = targets.load("x86")

#: A depthwise convolution of volumes, and the shuffle of an image's channels; nnc has no templates for them.
NET = """
net (float[1, 8, 6, 20, 20] x) => (float[1, 6, 4, 8, 81] y) <float[8, 1, 3, 3, 3] A, int64[5] t = {1, 8, 4, 6, 81}>
{
    p = Relu(x)
    a = Conv<group = 8, pads = [1, 0, 0, 1, 0, 0]>(p, A)
    r = Reshape(a, t)
    y = Transpose<perm = [0, 3, 2, 1, 4]>(r)
}
"""


@pytest.fixture(scope="module")
def network() -> Network:
    return tasks.network(testing.graph(NET), X86, 1, silent)


def drawn(network: Network, place: int = 0) -> Drawn:
    general = [task for task in network.tasks if task.workload.op == "general"]
    return Drawn(general[place].workload, network.unit, X86.unit.tvm)


def test_layers_without_a_template_are_tasks(network: Network) -> None:
    names = [task.name for task in network.tasks]
    assert names[0].startswith("Conv 1x8x6x20x20 8x1x3x3x3")
    assert [task.layout for task in network.tasks] == ["plain"] * len(names)
    assert not any(task.is_required for task in network.tasks)


def test_the_default_comes_first_then_generations(network: Network) -> None:
    search = drawn(network)
    first = search.propose(4)
    assert first[0] == 0
    assert search.plans[0]["trace"] is None
    for index in first:
        search.tell(index, 1.0 if index == 0 else 0.5)
    before, rest = search.gain, search.propose(2 * GENERATION)
    assert len(first) - 1 + len(rest) == GENERATION
    assert search.gain == before
    for index in rest:
        search.tell(index, 0.5)
    again = search.propose(2 * GENERATION)
    assert not {*first, *rest} & set(again)
    assert search.gain < before
    assert search.best == (0, 1.0)
    search.tell(again[0], 2.0)
    assert search.best == (again[0], 2.0)
    assert search.gain >= math.log(2) / 2


def test_a_schedule_that_was_not_measured_yet_is_none_that_failed(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, seconds = _meta_schedule().database, list[float]()
    made = database.TuningRecord

    def noted(trace: Any, workload: Any, runs: list[float], *others: Any) -> Any:
        seconds.extend(runs)
        return made(trace, workload, runs, *others)

    monkeypatch.setattr(database, "TuningRecord", noted)
    search = drawn(network)
    handed_out = search.propose(GENERATION // 2)
    assert search.propose(GENERATION // 2) == handed_out  # nobody has told yet what became of them
    for _ in range(3):
        for index in search.propose(2 * GENERATION):
            search.tell(index, 0.5 + index % 2)
    assert len(seconds) == 2 * GENERATION
    assert max(seconds) == 2.0


@pytest.mark.parametrize("learns", [True, False], ids=["xgboost", "chance"])
def test_the_same_answers_give_the_same_schedules(
    network: Network, monkeypatch: pytest.MonkeyPatch, learns: bool
) -> None:
    if learns:
        pytest.importorskip("xgboost", reason='pip install "nnc[tune]"')
    else:
        monkeypatch.setattr("nnc.tuning.drawn._LEARNER", "a package that nobody has")

    def plans() -> list[Mapping[str, Any]]:
        search = drawn(network)
        for _ in range(3):
            for index in search.propose(GENERATION):
                search.tell(index, 1.0 + index % 3)
        return search.plans

    assert plans() == plans()


class Known:
    """A drawn schedule for each loop nest that has no template."""

    def __init__(self, plans: Mapping[Workload, Mapping[str, Any]]) -> None:
        self._plans = plans

    def find(self, workload: Workload) -> Mapping[str, Any] | None:
        found = self._plans.get(workload)
        return None if found is None else json.loads(json.dumps(found))

    def times(self, workloads: Iterable[Workload]) -> Callable[[Workload], float]:
        return lambda workload: math.inf


def test_drawn_schedules_compute_the_same(network: Network, tmp_path: Path) -> None:
    graph, general = testing.graph(NET), [task for task in network.tasks if task.workload.op == "general"]
    inputs = verify.probe_inputs(graph, 0)
    expected = Session(graph).run(inputs)
    searches = [drawn(network, place) for place in range(len(general))]
    for _ in range(5):
        places = [(search.propose(1) or [0])[0] for search in searches]
        plans = {
            task.workload: search.plans[place] for task, search, place in zip(general, searches, places, strict=True)
        }
        for search, place in zip(searches, places, strict=True):
            search.tell(place, 1.0)
        built = lowering.build(graph, X86, tmp_path, threads=1, schedules=Known(plans))
        assert sorted(chain(*built.tuned.values()), key=str) == sorted(plans.values(), key=str)
        (found,) = Library(built.files[0], 1).run(list(inputs.values()))
        assert verify.largest_difference(expected, {"y": found}) < 1e-5


#: A node with loops of its own for each operand, whose axes change places.
SEVERAL = """
net (float[16, 32, 64] x, float[64, 16, 16] z) => (float[32, 16] y) { y = Einsum<equation = "bac,cbd->ad">(x, z) }
"""


def test_all_loops_of_a_node_are_named(tmp_path: Path) -> None:
    graph = testing.graph(SEVERAL)
    loops = [task.workload for task in tasks.network(graph, X86, 1, silent).tasks]
    assert len(loops) > 1
    built = lowering.build(graph, X86, tmp_path, threads=1, schedules=Known(dict.fromkeys(loops, encoded(Trace()))))
    (plans,) = built.tuned.values()
    assert plans == [encoded(Trace())] * len(loops)


def test_a_trace_is_applied_once(network: Network, tmp_path: Path) -> None:
    search = drawn(network)
    plan = search.plans[search.propose(2)[1]]
    general._applied.cache_clear()
    (workload, *_) = (task.workload for task in network.tasks if task.workload.op == "general")
    lowering.build(testing.graph(NET), X86, tmp_path, threads=1, schedules=Known({workload: plan}))
    assert general._applied.cache_info().misses == 1


def test_a_schedule_of_another_function_is_refused(network: Network) -> None:
    first, second = drawn(network, 0), drawn(network, 1)
    plan = first.plans[first.propose(2)[1]]
    general = [task.workload for task in network.tasks if task.workload.op == "general"]
    assert general[0].decoded(plan, network.unit) == decoded(plan)
    for wrong in (plan, {"template": "general", "trace": "[]]"}, {"template": "general", "trace": 3}):
        assert general[1].decoded(wrong, network.unit) is None
    second.start([plan])
    assert second.propose(1) == [0]
    assert len(second.plans) == 1
