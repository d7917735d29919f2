"""Energies: what is compared, what is left out, and the figures of power that a table asks for."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nnc import target as targets
from nnc import validation
from nnc.errors import NncError
from nnc.target import Target
from nnc.validation import energy, listing, power, table
from nnc.validation.samples import samples
from nnc.validation.workloads import Workloads

HEADER = (
    "chip,unit,cores_used,core_type,clock_ghz,framework,dtype,model_id,input_shape,latency_ms,"
    "energy_mj,avg_power_w,idle_power_w,power_scope"
)
SMALL = "cpu,4,Cortex-A72,1.5,ncnn,fp32,squeezenet_1.1,1x3x64x64,3.0"
LARGE = SMALL.replace("squeezenet_1.1", "resnet18")
WALL = "18.0,6.0,4.0,whole board at wall"


def write(folder: Path, *rows: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def pi(folder: Path, *changes: tuple[str, str]) -> Target:
    """A Raspberry Pi 4 with other figures."""
    text = (Path(validation.__file__).parents[2] / "targets/raspberry-pi-4.toml").read_text()
    for before, after in changes:
        text, count = re.subn(before, after, text)
        assert count
    (folder / "my-board.toml").write_text(text)
    return targets.load(str(folder / "my-board.toml"))


def metered(path: Path, board: Target) -> list[energy.Metered]:
    kept, _ = samples(table.read(path), (board,), Workloads())
    return [found for each in kept if isinstance(found := energy.metered(each), energy.Metered)]


def predicted(folder: Path, board: Target, row: str) -> dict[str, Any]:
    (found,) = validation.validate(write(folder, f"my-board,{row},{WALL}"), board.given, None)["rows"]
    return dict(found)


def test_energies_are_compared_by_group_and_altogether(tmp_path: Path) -> None:
    rows = [
        f"rpi4,{SMALL},{WALL}",
        f"rpi4,{LARGE},{WALL}",
        f"rpi4,{LARGE},,,,",
        f"phone,{LARGE.replace('72', '76')},,,,",
    ]
    found = json.loads(json.dumps(validation.validate(write(tmp_path, *rows), None, None)))
    (phone, board) = found["groups"]
    assert phone["energy"] == {"rows": 0, "mape": None, "bias": None}
    errors = [row["predicted_mj"] / row["measured_mj"] - 1 for row in found["rows"] if row["measured_mj"]]
    assert len(errors) == 2
    assert found["overall"]["energy"] == board["energy"]
    assert board["energy"]["rows"] == 2
    assert board["energy"]["bias"] == pytest.approx(sum(errors) / 2)
    assert board["energy"]["mape"] == pytest.approx(sum(map(abs, errors)) / 2)
    assert [(row["measured_mj"], row["predicted_mj"]) for row in found["rows"][2:]] == [(None, None), (None, None)]
    assert found["energy_excluded"] == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (f"rpi4,{SMALL},18.0,6.0,4.0,module rails", "power_scope is 'module rails', not 'whole board'"),
        (f"rpi4,{SMALL},18.0,,,", "power_scope is '', not 'whole board'"),
        (f"phone,{SMALL},{WALL}", "no figures of power for the cpu of 'phone'"),
    ],
)  # fmt: skip
def test_energies_that_mean_something_else_are_left_out_and_told(
    tmp_path: Path, row: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = validation.validate(write(tmp_path, row), None, None)
    assert found["overall"]["rows"] == 1  # of latencies
    assert found["overall"]["energy"]["rows"] == 0
    assert (found["rows"][0]["measured_mj"], found["rows"][0]["predicted_mj"]) == (18.0, None)
    (entry,) = found["energy_excluded"]
    assert (entry["reason"], entry["rows"], entry["lines"]) == (reason, 1, [2])
    listing.show(found)
    out = capsys.readouterr().out
    assert "1 row whose energy is not compared" in out
    assert "energy:" not in out


def test_people_see_energies_where_there_are_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing.show(validation.validate(write(tmp_path, f"rpi4,{SMALL},{WALL}"), None, None))
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[-1] == "energy"
    assert "energy:" in out


def test_twice_the_idle_power_adds_it_over_the_predicted_time(tmp_path: Path) -> None:
    idle = r"idle_watts = \S+"
    once, twice = (predicted(tmp_path, pi(tmp_path, (idle, f"idle_watts = {watts}")), LARGE) for watts in (2.0, 4.0))
    assert once["predicted_ms"] == twice["predicted_ms"]
    assert twice["predicted_mj"] - once["predicted_mj"] == pytest.approx(2.0 * once["predicted_ms"])


def test_a_target_predicts_what_a_compile_for_it_would(tmp_path: Path) -> None:
    """Cores over the time of the target's own code; another engine's takes as much, however long it waits."""
    board = pi(tmp_path, (r"idle_watts = \S+", "idle_watts = 1e-6"), (r"_per_byte = \S+", "_per_byte = 1e-6"))
    found = predicted(tmp_path, board, LARGE)
    assert board.unit.clusters[0].active_watts is not None
    assert found["predicted_mj"] == pytest.approx(
        4 * board.unit.clusters[0].active_watts * found["predicted_ms"], rel=1e-3
    )
    same = LARGE.replace("resnet18", "resnet34")  # which all engines run alike
    rows = [f"my-board,{row},{WALL}" for row in (same, same.replace("ncnn", "TFLite"))]
    own, other = metered(write(tmp_path, *rows), board)
    assert own.above_idle_mj == other.above_idle_mj


def test_a_row_at_another_clock_takes_the_energy_of_that_clock(tmp_path: Path) -> None:
    slow = LARGE.replace(",1.5,", ",0.75,")
    fast_row, slow_row = metered(
        write(tmp_path, *(f"rpi4,{row},{WALL}" for row in (LARGE, slow))), targets.load("raspberry-pi-4")
    )
    assert slow_row.power.active_watts == pytest.approx(fast_row.power.active_watts / 8)
    assert slow_row.power.idle_watts == fast_row.power.idle_watts


def rows_of(board: Target, folder: Path, watts: float, idle: float) -> Path:
    """A table in which the board's cores draw so much."""
    written = []
    for row in (SMALL, LARGE, LARGE.replace("64x64", "96x96"), SMALL.replace("64x64", "96x96")):
        (each,) = metered(write(folder, f"my-board,{row},{WALL}"), board)
        core_watts = board.unit.clusters[0].active_watts
        assert core_watts is not None
        busy = each.above_idle_mj + 4 * (watts - core_watts) * each.busy_seconds * 1e3
        milliseconds = each.busy_seconds * 1e3
        total = busy + idle * milliseconds
        written.append(f"my-board,{row},{total},{total / milliseconds},{idle},whole board")
    return write(folder, *written)


def test_the_figures_that_a_table_was_made_with_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = pi(tmp_path)
    path = rows_of(board, tmp_path, watts=1.25, idle=3.0)
    derived = energy.derive(metered(path, board))
    core_watts = board.unit.clusters[0].active_watts
    assert core_watts is not None
    assert derived.correction * core_watts == pytest.approx(1.25)
    assert derived.idle_watts == pytest.approx(3.0)
    for each in energy.left_out(metered(path, board), "model_id"):
        assert each.predicted_mj(each.busy_seconds * 1e3) == pytest.approx(each.measured_mj)
    power.main([str(path), "--target", board.given])
    assert "a72 1.25" in capsys.readouterr().out


def test_figures_of_no_energy_are_one_line(tmp_path: Path) -> None:
    rows = [f"rpi4,{SMALL},,,,", f"rpi4,{SMALL},18.0,6.0,4.0,module rails"]
    with pytest.raises(NncError, match="no energy to compare: it has no rows"):
        power.main([str(write(tmp_path, rows[0]))])
    with pytest.raises(NncError, match="no energy to compare: power_scope is 'module rails', not 'whole board'"):
        power.main([str(write(tmp_path, rows[1]))])
