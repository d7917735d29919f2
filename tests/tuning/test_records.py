"""Records: nothing is lost or duplicated, what is damaged or foreign is skipped, and the fastest plan is found."""

import json
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnc import target
from nnc.errors import NncError
from nnc.tuning import records
from nnc.tuning.records import Record, Records

MACHINE = {
    **{"core": "one", "architecture": "x86_64", "mcpu": "x86-64-v4", "threads": 2},
    **{"vector_bits": 512, "vector_registers": 32},
}


def layer(number: int) -> Any:
    return SimpleNamespace(key={"op": "conv2d", "problem": {"layer": number}})


LAYER = layer(1)


def record(number: int = 1, tile: int = 4, speed: float | None = 1.5, **others: Any) -> Record:
    made = Record(layer(number).key, MACHINE, {"template": "conv2d", "tile": tile}, speed, 0.2, "measured")
    return replace(made, **others)


def without(*path_and_name: str) -> bytes:
    """A record's line that lacks a part."""
    content, (*path, name) = json.loads(record().line), path_and_name
    inner = content
    for each in path:
        inner = inner[each]
    del inner[name]
    return json.dumps(content).encode()


def known(*own: Record, shipped: tuple[Record, ...] = (), machine: Any = MACHINE) -> Any:
    """The plan of layer 1."""
    return Records(own, shipped, machine).find(LAYER)


@pytest.fixture
def said() -> list[str]:
    return []


def test_what_is_appended_is_read(tmp_path: Path, said: list[str]) -> None:
    file, made = tmp_path / "new" / "x86.jsonl", [record(1), record(2, speed=None, ms=None)]
    records.append(file, made[:1])
    records.append(file, made[1:])
    assert records.read(file, said.append) == made
    assert said == []
    assert records.read(tmp_path / "absent.jsonl", said.append) == []


def test_a_line_that_a_killed_process_left_half_written_costs_only_itself(tmp_path: Path, said: list[str]) -> None:
    file = tmp_path / "x86.jsonl"
    file.write_bytes(record(1).line + record(2).line[:50])
    records.append(file, [record(3)])
    assert records.read(file, said.append) == [record(1), record(3)]
    assert said == [f"{file}: 1 damaged line skipped"]


@pytest.mark.parametrize(
    "line",
    [
        *(b"\xff\xfe", b"{}", b"[]", b"null", b'"x"', record(speed=-1).line, record(ms="1").line, record(plan=[]).line),
        *(record(speed=math.inf).line, record(plan={}).line, record(source="guessed").line),  # type: ignore[arg-type]
        *(without("workload", "op"), without("workload", "problem"), without("versions"), without("plan", "template")),
    ],
)
def test_damaged_lines_are_skipped(tmp_path: Path, said: list[str], line: bytes) -> None:
    (tmp_path / "x86.jsonl").write_bytes(record(1).line + line.strip() + b"\n" + record(2).line)
    assert records.read(tmp_path / "x86.jsonl", said.append) == [record(1), record(2)]
    assert "1 damaged line skipped" in said[0]


def test_records_of_another_version_are_skipped(tmp_path: Path, said: list[str]) -> None:
    records.append(tmp_path / "x86.jsonl", [record(1, versions={"plans": 0, "tvm": "0.1"}), record(2)])
    assert records.read(tmp_path / "x86.jsonl", said.append) == [record(2)]
    assert "1 record of another version skipped" in said[0]


def test_a_file_that_can_not_be_read_or_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(NncError, match="is a directory"):
        records.read(tmp_path)
    with pytest.raises(NncError, match="is a directory"):
        records.append(tmp_path, [record()])


def _append_many(file: Path, number: int) -> None:
    for tile in range(100):
        records.append(file, [record(number, tile)])


def test_two_processes_write_at_once(tmp_path: Path, said: list[str]) -> None:
    file = tmp_path / "x86.jsonl"
    writers = [multiprocessing.get_context("fork").Process(target=_append_many, args=(file, n)) for n in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = records.read(file, said.append)
    assert said == []
    assert {(r.workload["problem"]["layer"], r.plan["tile"]) for r in found} == {
        (n, tile) for n in (1, 2) for tile in range(100)
    }
    assert len(found) == 200


def test_the_fastest_plan_is_found() -> None:
    assert known(record(tile=4), record(tile=8, speed=1.7), record(tile=9, speed=None)) == record(tile=8).plan
    assert known(record(2)) is None


def test_of_two_trials_of_a_plan_the_later_one_counts() -> None:
    lucky = record(tile=8, speed=2.0)
    assert known(lucky, record(tile=4, speed=1.5), replace(lucky, speed=1.1)) == record(tile=4).plan


def test_a_plan_that_is_no_faster_than_the_default_is_not_used() -> None:
    assert known(record(speed=1.0), record(tile=5, speed=0.9)) is None


def test_the_users_own_records_come_first() -> None:
    assert known(record(tile=4, speed=1.1), shipped=(record(tile=8, speed=1.9),)) == record(tile=4).plan
    assert known(shipped=(record(tile=8),)) == record(tile=8).plan


@pytest.mark.parametrize(
    "other", [{"mcpu": "x86-64-v3", "vector_bits": 256, "vector_registers": 16}, {"threads": 1}, {"mcpu": "cortex-a75"}]
)
def test_another_machine_gets_no_plans(other: dict[str, Any]) -> None:
    assert known(record(), machine=MACHINE | other) is None


def test_another_core_with_the_same_instructions_gets_plans_but_no_times() -> None:
    elsewhere = replace(record(tile=8, speed=1.9), machine=MACHINE | {"core": "another"})
    here = Records((), (elsewhere,), MACHINE)
    assert here.find(LAYER) == elsewhere.plan
    assert here.times([LAYER])(LAYER) == math.inf
    both = Records((elsewhere,), (record(tile=4, speed=1.1),), MACHINE)
    assert both.find(LAYER) == record(tile=4).plan
    assert both.times([LAYER])(LAYER) == record(tile=4).ms


def test_what_ran_on_a_board_comes_before_what_was_emulated() -> None:
    emulated, board = record(tile=4, speed=1.9, source="emulated"), record(tile=8, speed=1.1, source="rpc")
    assert known(emulated, board) == known(board, emulated) == board.plan
    assert known(emulated, shipped=(board,)) == known(board, shipped=(emulated,)) == board.plan
    assert list(records.best([emulated, board, replace(emulated, plan=board.plan)]).values()) == [board]


def test_what_ran_in_a_network_comes_before_what_ran_alone() -> None:
    alone, network = record(tile=4, speed=1.9), record(tile=8, speed=1.1, source="network", ms=0.3)
    assert known(alone, network) == known(network, alone) == network.plan
    assert known(alone, shipped=(network,)) == known(network, shipped=(alone,)) == network.plan
    assert Records([alone], [network], MACHINE).times([LAYER])(LAYER) == network.ms


def test_times_in_networks_of_others_are_not_compared_with_own_ones() -> None:
    """Their machine may be slower; and where not all layers are known, none are."""
    own, others = record(1, source="network", ms=0.9), [record(n, source="network", ms=0.3) for n in (1, 2)]
    both = Records([own], others, MACHINE)
    assert [both.times([LAYER])(layer(number)) for number in (1, 2)] == [0.9, math.inf]
    assert [both.times([LAYER, layer(2)])(layer(number)) for number in (1, 2)] == [0.3, 0.3]
    assert both.times([LAYER, layer(3)])(LAYER) == math.inf
    alone = Records([own, record(3, ms=0.2)], others, MACHINE)
    assert [alone.times([LAYER, layer(3)])(layer(number)) for number in (1, 3)] == [math.inf, 0.2]


def test_a_plan_that_no_network_confirms_is_not_used() -> None:
    alone = record(tile=4, speed=1.9)
    refuted = replace(alone, source="network", speed=1.005)
    assert known(alone, refuted) == known(refuted, alone) is None
    assert known(alone, refuted, record(tile=8, speed=1.02, source="network")) == record(tile=8).plan
    assert known(refuted, replace(refuted, speed=1.1)) == alone.plan


def test_times_of_boards_and_of_emulation_are_not_compared() -> None:
    emulated = [record(number, ms=0.1, source="emulated") for number in (1, 2)]
    both = Records([*emulated, record(1, ms=0.3, source="rpc")], (), MACHINE)
    assert [both.times([LAYER])(layer(number)) for number in (1, 2)] == [0.3, math.inf]
    assert [both.times([layer(2)])(layer(number)) for number in (1, 2)] == [0.1, 0.1]


def test_the_digest_says_which_plans_are_known() -> None:
    def digest(*own: Record) -> str:
        return Records(own, (), MACHINE).digest

    assert digest(record(1), record(2)) == digest(record(2), record(1))
    assert digest(record(1)) == digest(record(1, speed=1.6))
    assert len({digest(), digest(record(1)), digest(record(1, 5)), digest(record(2))}) == 4


def test_where_the_users_own_records_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NNC_TUNING", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert records.own_file(target.load("qcs605")) == tmp_path / "nnc/tuning/qcs605.jsonl"
    monkeypatch.setenv("NNC_TUNING", str(tmp_path / "mine"))
    assert records.folder() == tmp_path / "mine"


def test_shipped_records_are_whole_and_of_this_version(said: list[str]) -> None:
    found = records.shipped(said.append)
    assert said == []
    assert len(records.best(found)) == len(found)
