"""nnc tune from end to end: the budget is kept, a killed search goes on, compiles use what was found."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from nnc import autotune, testing, verify
from nnc import graph as graphs
from nnc import target as targets
from nnc.artifact import Artifact
from nnc.cli import app
from nnc.errors import NncError
from nnc.session import Session
from nnc.tuning import boards, records

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="measures on this machine"),
    pytest.mark.slow,
]

NET = """
net (float[1, 3, 20, 20] x) => (float[1, 10] y)
<float[32, 3, 3, 3] A, float[48, 32, 1, 1] B, float[48, 1, 3, 3] D, float[48, 10] H>
{
    f = Conv<pads = [1, 1, 1, 1]>(x, A)
    r = Relu(f)
    p = Conv(r, B)
    d = Conv<pads = [1, 1, 1, 1], group = 48>(p, D)
    m = GlobalAveragePool(d)
    v = Flatten(m)
    y = MatMul(v, H)
}
"""
TUNE = ("tune", "net.onnx", "--target", "x86", "--threads", "1", "--quiet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNC_TUNING", str(tmp_path / "records"))
    onnx.save(testing.model(NET), "net.onnx")
    return tmp_path


def nnc(*words: str) -> Any:
    result = CliRunner().invoke(app, list(words), prog_name="nnc")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in words else result.stdout


def lines(here: Path) -> list[bytes]:
    file = here / "records" / "x86.jsonl"
    return file.read_bytes().splitlines() if file.exists() else []


def trials(here: Path) -> set[str]:
    """What was tried; a plan that was measured again, or ran in the network, has a further record."""
    found = records.read(here / "records" / "x86.jsonl", pytest.fail)
    return {each.place + records.canonical(each.plan) for each in found if each.source != "network"}


def test_compiles_use_what_was_found(here: Path) -> None:
    compile_ = ("compile", "simplify", "net.onnx", "--target", "x86", "--threads", "1", "-o", "out", "--json")
    before = nnc(*compile_)
    assert not any(layer["tuned"] for layer in before["layers"])
    assert json.loads((here / "out/nnc.lock").read_text())["tuning"] == {"layers": 0, "records": None}
    tuned = nnc(*TUNE, "--trials", "20", "--json")
    assert tuned["trials"] == 20 == len(trials(here)) >= sum(layer["trials"] for layer in tuned["layers"])
    changed = [layer for layer in tuned["layers"] if layer["tuned"]]
    faster = {name for layer in changed for name in layer["layers"]}
    after = nnc(*compile_)
    assert {layer["name"] for layer in after["layers"] if layer["tuned"]} == faster
    lock = json.loads((here / "out/nnc.lock").read_text())
    assert lock["tuning"]["layers"] == len(faster)
    graph = graphs.load(here / "net.onnx")
    inputs = verify.probe_inputs(graph, 0)
    assert verify.largest_difference(Session(graph).run(inputs), Artifact.open(here / "out").run(inputs)) < 1e-4
    rows = nnc("records", "--target", "x86", "--threads", "1", "--json")
    assert all(row["speedup"] > 1 for row in rows)
    assert all(layer["plan"] in [row["plan"] for row in rows] for layer in changed)


def test_a_killed_search_goes_on_with_nothing_lost_or_done_again(here: Path) -> None:
    command = [sys.executable, "-m", "nnc", *TUNE, "--trials", "24"]
    process = subprocess.Popen(command)
    while len(lines(here)) < 8 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = lines(here)
    assert 8 <= len(trials(here)) < 24
    nnc(*TUNE, "--trials", "24", "--resume")
    assert lines(here)[: len(before)] == before
    assert len(trials(here)) == 24
    assert len(set(lines(here))) == len(lines(here))


def test_records_go_from_one_machine_to_another(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nnc(*TUNE, "--trials", "8")
    own = lines(here)
    with pytest.raises(NncError, match="no records for x86 on 2 threads"):
        autotune.exported(targets.load("x86"), 2, here / "best.jsonl", here / "records/x86.jsonl")
    nnc("records", "--target", "x86", "--threads", "1", "--export", "best.jsonl")
    monkeypatch.setenv("NNC_TUNING", str(here / "other"))
    nnc("records", "--target", "x86", "--import", "best.jsonl")
    nnc("records", "--target", "x86", "--import", "best.jsonl")  # a second time adds nothing
    found = records.read(here / "other" / "x86.jsonl", pytest.fail)
    assert len(found) == len(records.best(found)) >= 1
    assert {record.line.rstrip(b"\n") for record in found} <= set(own)


def answers(port: int) -> bool:
    """Whether something listens."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def has_board(port: int) -> bool:
    from tvm import rpc

    known = rpc.connect_tracker("127.0.0.1", port)
    try:
        return bool(known.summary()["queue_info"].get("board", {}).get("free"))
    finally:
        known.close()


@pytest.fixture
def tracker() -> Iterator[int]:
    """The port of a tracker on this machine, and a server that is registered there as 'board'."""
    for module in ("tornado", "cloudpickle", "psutil"):
        pytest.importorskip(module, reason="TVM's RPC server needs it: pip install nnc[rpc]")
    port, environment = 19000 + os.getpid() % 900, {**os.environ, "TVM_NUM_THREADS": "1"}
    commands = (
        ("tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)),
        ("tvm.exec.rpc_server", "--host", "127.0.0.1", "--tracker", f"127.0.0.1:{port}", "--key", "board"),
    )
    started = []
    for (program, *options), is_there in zip(commands, (answers, has_board), strict=True):
        words = [sys.executable, "-m", program, *options]
        started.append(subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, start_new_session=True))
        until = time.monotonic() + 60
        while not is_there(port):
            assert time.monotonic() < until, f"{program} does not start"
            time.sleep(0.2)
    yield port
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_board_that_nobody_has_is_not_waited_for_for_ever(
    here: Path, tracker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "_WAIT", 1)
    opened = boards.Boards(targets.load("x86"), 1, boards.Tracker("127.0.0.1", tracker, "bord")).open({"kind": "llvm"})
    with pytest.raises(NncError, match="no board 'bord' is free"):
        list(opened.times([], 1))
    opened._folder.cleanup()


def test_boards_behind_a_tracker_measure(here: Path, tracker: int) -> None:
    made = nnc(*TUNE, "--trials", "8", "--rpc", f"127.0.0.1:{tracker}", "--key", "board", "--json")
    assert made["source"] == "rpc"
    found = records.read(here / "records" / "x86.jsonl", pytest.fail)
    assert len(found) >= 8
    assert {record.source for record in found} == {"rpc"}
    assert all(record.ms is not None and record.ms > 0 for record in found)
