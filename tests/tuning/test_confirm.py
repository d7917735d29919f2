"""Plans in their network: what was faster alone and is not there gives its place to the next."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnc import lowering, testing
from nnc import target as targets
from nnc.context import silent
from nnc.errors import NncError
from nnc.lowering.workload import Unknown
from nnc.tuning import confirm, records, tasks
from nnc.tuning.confirm import Step
from nnc.tuning.searches import Searches
from nnc.tuning.tasks import Task

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="plans for this machine")

NET = """
net (float[1, 32, 8, 8] x) => (float[1, 32, 8, 8] y) <float[32, 32, 3, 3] A, float[32, 32, 1, 1] B>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, A)
    y = Conv(a, B)
}
"""
X86 = targets.load("x86")


def steps(**ms: float) -> list[Step]:
    return [Step(frozenset(nodes.split("_")), each) for nodes, each in ms.items()]


def task(*layers: str) -> Task:
    return Task((), None, tuple((name,) for name in layers))  # type: ignore[arg-type]


def test_layers_of_a_task_count_together() -> None:
    default = steps(a=2, b=4, c=3, d=1)
    assert confirm.speeds([task("a", "c")], default, steps(a=1, b=4, c=3, d=1)) == [5 / 4]


def test_what_is_behind_a_task_counts_where_it_is_not_another_one() -> None:
    default, tuned = steps(a=2, b=4, c=3, d=1), steps(a=1, b=4.5, c=3, d=2)
    assert confirm.speeds([task("a")], default, tuned) == [2 / 1.5]
    assert confirm.speeds([task("a"), task("b")], default, tuned) == [2, 4 / 4.5]
    assert confirm.speeds([task("d")], default, tuned) == [1 / 2]


def test_a_pair_is_compared_with_both_of_its_layers() -> None:
    pair = Task((), None, (("a", "b"),))  # type: ignore[arg-type]
    assert confirm.speeds([pair], steps(a=2, r_b=4, c=3), steps(a_r_b=4, c=3)) == [6 / 4]


class Network:
    """Libraries in which layers take what is told of their plans."""

    def __init__(self, speed: Callable[[int, int], float]) -> None:
        """`speed` of a layer's plan, by the places of both."""
        self.speed, self.chosen = speed, list[list[int]]()

    def timed(self, chosen: Any) -> list[list[Step]]:
        plans = [chosen.plans.get(task.workload, 0) for task in self.tasks]
        self.chosen.append(plans)
        names = [task.layers[0][0] for task in self.tasks]
        times = [1 / self.speed(layer, plan) if plan else 1.0 for layer, plan in enumerate(plans)]
        return [
            [Step(frozenset([name]), ms) for name, ms in zip(names, each, strict=True)] for each in (np.ones(2), times)
        ]

    def __call__(self, *_: Any) -> "Network":
        return self

    tasks: Sequence[Task] = ()


def confirmed(
    monkeypatch: pytest.MonkeyPatch, speed: Callable[[int, int], float], alone: Sequence[float], late: bool = False
) -> tuple[Network, Searches, list[float]]:
    """Plans that are so fast `alone`, by their index, in a network where they have a `speed`."""
    graph = testing.graph(NET)
    network, shown = tasks.network(graph, X86, 1, silent), Network(speed)
    shown.tasks = network.tasks
    monkeypatch.setattr(confirm, "_Libraries", shown)
    searches = Searches(network.unit, X86, "measured", [], [])
    for each in network.tasks:
        tuning = searches.of(each.workload)
        tuning.alone_ms = 0.5
        for index, value in enumerate(alone):
            tuning.search.tell(index, value)
    return shown, searches, list(confirm.confirm(graph, X86, network, searches, silent, lambda: late))


def test_a_plan_that_is_slower_in_the_network_gives_its_place_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    real = {1: 0.9, 2: 1.1, 3: 1.3}
    shown, searches, found = confirmed(monkeypatch, lambda layer, plan: real[plan], [1.0, 1.5, 1.4, 1.2])
    assert shown.chosen == [[1, 1], [2, 2], [3, 3]]
    assert found == pytest.approx([0.9, 1.1, 1.3])
    tunings = [searches.of(each.workload) for each in shown.tasks]
    assert all(tuning.best == 3 for tuning in tunings)
    machine = records.machine_of(X86, 1)
    known = records.Records(searches.confirmed(), (), machine)
    assert [known.find(each.workload) for each in shown.tasks] == [each.search.plans[3] for each in tunings]


def test_nothing_is_used_that_the_network_refutes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, searches, _ = confirmed(monkeypatch, lambda layer, plan: 0.9, [1.0, 1.5, 1.01])
    assert shown.chosen == [[1, 1]]
    tunings = [searches.of(each.workload) for each in shown.tasks]
    assert [tuning.best for tuning in tunings] == [0, 0]
    assert [tuning.ms for tuning in tunings] == [1.0, 1.0]
    known = records.Records(searches.confirmed(), (), records.machine_of(X86, 1))
    assert [known.find(each.workload) for each in shown.tasks] == [None, None]


def test_every_layer_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer's second plan is slower than its first one, which returns for the last library."""
    shown, searches, found = confirmed(monkeypatch, lambda layer, plan: (1.2, 0.8)[layer] / plan, [1.0, 1.5, 1.4])
    assert shown.chosen == [[1, 1], [2, 2], [1, 0]]
    assert [searches.of(each.workload).best for each in shown.tasks] == [1, 0]
    assert found[-1] == pytest.approx(2 / (1 + 1 / 1.2))


def test_late_searches_try_one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a second one, which says what is left of it."""
    shown, _, _ = confirmed(monkeypatch, lambda layer, plan: (1.2, 0.8)[layer], [1.0, 1.5, 1.4], late=True)
    assert shown.chosen == [[1, 1], [1, 0]]


def test_default_plans_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, _, found = confirmed(monkeypatch, lambda layer, plan: 2.0, [1.0, 1.01])
    assert shown.chosen == []
    assert found == []


def test_libraries_are_timed_kernel_by_kernel(tmp_path: Path) -> None:
    built = lowering.build(testing.graph(NET), X86, tmp_path, threads=1, schedules=Unknown())
    inputs = [np.ones((1, 32, 8, 8), np.float32)]
    files = [(built.files[0], len(built.kernels))] * 2
    times = confirm._times(files, 1, inputs)
    assert [each.shape for each in times] == [(len(built.kernels),)] * 2
    assert (np.array(times) > 0).all()


def test_a_library_that_takes_its_process_down_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NncError, match="no such file"):
        confirm._times([(tmp_path / "module.so", 1)], 1, [])
    monkeypatch.setattr(confirm, "_serve", _end)
    with pytest.raises(NncError, match="takes its process down"):
        confirm._times([], 1, [])


def _end(*_: Any) -> None:
    """What a crash looks like from outside."""


def test_what_a_network_confirmed_is_known_to_the_next_search(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, searches, _ = confirmed(monkeypatch, lambda layer, plan: 1.1, [1.0, 1.5])
    done, workload = searches.confirmed(), shown.tasks[0].workload
    again = Searches(tasks.network(testing.graph(NET), X86, 1, silent).unit, X86, "measured", done, done).of(workload)
    assert again.search.plans[again.best] == searches.of(workload).search.plans[1]
    assert again.ms == searches.settled(workload) == pytest.approx(1 / 1.1)
    assert again.search.measured == {}  # alone


def test_what_is_known_of_layers_that_were_not_measured_runs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else their default plans, which run beside, would hide it from compiles."""
    graph = testing.graph(NET)
    network, shown = tasks.network(graph, X86, 1, silent), Network(lambda layer, plan: 1.2)
    shown.tasks = network.tasks
    monkeypatch.setattr(confirm, "_Libraries", shown)
    workload, machine = network.tasks[1].workload, records.machine_of(X86, 1)
    plans = Searches(network.unit, X86, "measured", [], []).of(workload).search.plans
    known = [records.Record(workload.key, machine, plans[2], 1.3, 0.5, "network")]
    searches = Searches(network.unit, X86, "measured", [], known)
    list(confirm.confirm(graph, X86, network, searches, silent, lambda: False))
    assert shown.chosen == [[0, 2]]
    own = records.Records(searches.confirmed(), known, machine)
    assert own.find(workload) == plans[2]


def test_what_was_known_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, searches, _ = confirmed(monkeypatch, lambda layer, plan: 1.1, [1.0, 1.5])
    done = searches.confirmed()
    again = Searches(tasks.network(testing.graph(NET), X86, 1, silent).unit, X86, "measured", done, done)
    for each in shown.tasks:
        assert again.of(each.workload).ran
    graph = testing.graph(NET)
    network = tasks.network(graph, X86, 1, silent)
    assert list(confirm.confirm(graph, X86, network, again, silent, lambda: False)) == []
    assert again.confirmed() == []


def test_every_plan_has_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many libraries it was in."""
    _, searches, found = confirmed(monkeypatch, lambda layer, plan: plan / 2, [1.0, 1.5, 1.4, 1.2])
    assert len(found) == 3
    made = [(each.place, records.canonical(each.plan)) for each in searches.confirmed()]
    assert len(made) == len(set(made)) == 2 * 4
    assert searches.confirmed() == []


def test_a_kernel_that_takes_no_time_is_compared() -> None:
    assert confirm.speeds([task("a")], steps(a=0.0), steps(a=0.0)) == [1.0]


def test_layouts_are_chosen_by_times_in_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wider blocks are faster alone, and slower where they run: what ran is what compiles choose."""
    graph = testing.graph(NET)
    network = tasks.network(graph, X86, 1, silent)
    searches = Searches(network.unit, X86, "measured", [], [])
    for each in [*network.tasks, *network.elsewhere]:
        searches.of(each.workload).alone_ms = 1.0 if each.is_default else 0.5
    seen: list[list[Task]] = []

    class Slower:
        def __init__(self, *_: Any) -> None:
            pass

        def timed(self, chosen: Any) -> list[list[Step]]:
            seen.append(network.cheapest(chosen.time))
            layers = [(name, each.is_default) for each in seen[-1] for names in each.layers for name in names]
            return [[Step(frozenset([name]), 2.0 if d or default else 3.0) for name, d in layers] for default in (1, 0)]

    monkeypatch.setattr(confirm, "_Libraries", Slower)
    list(confirm.confirm(graph, X86, network, searches, silent, lambda: False))
    assert not any(each.is_default for each in seen[0])
    known = records.Records(searches.confirmed(), (), records.machine_of(X86, 1))
    times = known.times([each.workload for each in network.tasks])
    assert network.cheapest(times) == network.tasks == network.cheapest(searches.settled)
