"""Which workload is measured next, with a device that answers what it is told."""

import platform
from pathlib import Path
from typing import Any, Self

import pytest

from nnc import target as targets
from nnc import testing
from nnc.context import silent
from nnc.tuning import records, tasks
from nnc.tuning import tune as tunes
from nnc.tuning.measure import Trial, Unmeasurable
from nnc.tuning.records import Record
from nnc.tuning.searches import Searches
from nnc.tuning.tune import BATCH, _Clock, _next

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="plans for this machine")

NET = """
net (float[1, 32, 8, 8] x) => (float[1, 32, 8, 8] y) <float[32, 32, 3, 3] A, float[32, 32, 1, 1] B>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, A)
    y = Conv(a, B)
}
"""
X86 = targets.load("x86")


class Told:
    """Measures nothing: default plans take `default_ms`, others are `speed` times as fast."""

    source = "measured"

    def __init__(self) -> None:
        self.default_ms, self.speed = 1.0, 1.0
        self.refused: set[Any] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def measure(self, workload: Any, plans: list[Any]) -> list[Trial]:
        if workload in self.refused:
            raise Unmeasurable("the default plan can't be measured", "none")
        first = Trial(1.0, self.default_ms)
        return [first, *(Trial(self.speed, self.default_ms / self.speed) for _ in plans[1:])]


@pytest.fixture
def network() -> tasks.Network:
    return tasks.network(testing.graph(NET), X86, 1, silent)


@pytest.fixture
def searches(network: tasks.Network) -> Searches:
    return Searches(network.unit, X86, "measured", [], [])


def test_what_begins_to_fail_is_not_asked_for_again(network: tasks.Network, searches: Searches) -> None:
    device = Told()
    for task in [*network.tasks, *network.elsewhere]:
        device.speed = 1.0 if task.is_default else 2.0
        searches.measure(task.workload, device, 4, task.is_default)
    clock, asked = _Clock(10_000, None, 0, silent), list[Any]()
    device.refused = {task.workload for task in network.elsewhere}
    while (found := _next(network, searches, clock)) is not None:
        task, count = found
        asked.append(task.workload)
        searches.measure(task.workload, device, count, task.is_default)
        assert len(asked) < 1000
    again = [each for each in asked if each in device.refused]
    assert len(again) == len(set(again)) > 0


def test_the_last_trial_begins_no_workload(network: tasks.Network, searches: Searches) -> None:
    """Of one that was begun with it, the default alone would be known, and would stand for what others found."""
    first, second = network.tasks
    searches.measure(first.workload, Told(), BATCH, True)
    assert _next(network, searches, _Clock(BATCH + 2, None, BATCH, silent)) == (second, BATCH)
    found = _next(network, searches, _Clock(BATCH + 1, None, BATCH, silent))
    assert found is not None
    assert found[0].workload == first.workload


@pytest.mark.parametrize(("source", "is_default"), [("measured", True), ("rpc", True), ("emulated", False)])
def test_a_plan_that_may_be_faster_by_chance_is_not_used(
    network: tasks.Network, source: records.Source, is_default: bool
) -> None:
    """As little means something only where a kernel always takes the same time."""
    device, workload = Told(), network.tasks[0].workload
    device.speed, device.source = 1.01, source
    tuning = (searches := Searches(network.unit, X86, source, [], [])).of(workload)
    found = searches.measure(workload, device, 4, True)  # type: ignore[arg-type]
    assert (tuning.best == 0) is is_default
    known = records.Records(found, (), found[0].machine)
    assert (known.find(workload) is None) is is_default


def test_damaged_plans_are_no_start(network: tasks.Network) -> None:
    workload = network.tasks[0].workload
    machine = records.machine_of(X86, network.unit.threads)
    plans = [{"template": "conv2d", "tile": [4], "split": "rows"}, {"template": "conv3d", "tile": {"rows": 1}}]
    for number, plan in enumerate(plans):
        near = workload.key | {"problem": workload.key["problem"] | {"batch": 2 + number}}
        known = Record(near, machine, plan, 2.0, 0.1, "measured")
        assert Searches(network.unit, X86, "measured", [], [known]).of(workload).search.propose(1) == [0]


def test_what_was_measured_in_another_way_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Told()
    monkeypatch.setattr(tunes, "Measurer", lambda *_: device)

    def tuned(source: str) -> tunes.Result:
        device.source = source
        file, budget = tmp_path / "x86.jsonl", tunes.Budget(trials=6)
        return tunes.tune(testing.graph(NET), X86, device, file, threads=1, budget=budget, resume=True)  # type: ignore[arg-type]

    tuned("emulated")
    found = records.read(tmp_path / "x86.jsonl")
    assert tuned("measured").source == "measured"
    again = records.read(tmp_path / "x86.jsonl")
    assert [each.source for each in again] == ["emulated"] * len(found) + ["measured"] * (len(again) - len(found))
    assert len(again) - len(found) == 6
    tuned("measured")
    assert len(records.read(tmp_path / "x86.jsonl")) == len(again)


def test_times_of_batches_compare_through_the_default_plan(network: tasks.Network, searches: Searches) -> None:
    device, workload = Told(), network.tasks[0].workload
    quiet = searches.measure(workload, device, 2, True)
    device.default_ms, device.speed = 1.5, 1.25  # the machine has become busy
    busy = searches.measure(workload, device, 2, True)
    assert {record.ms for record in quiet} == {1.0}
    assert {record.ms for record in busy} == {1.0 / 1.25}
    assert searches.time(workload) == min(record.ms for record in [*quiet, *busy] if record.ms)
