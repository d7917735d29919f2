"""Progress on a terminal and elsewhere, and what becomes of errors."""

import errno
import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from nnc.display import console
from nnc.display.console import _Lines, _Nested
from nnc.errors import NncError

Calls = list[tuple[str, int, int]]


def shown(calls: Calls) -> list[list[tuple[str, float]]]:
    """The bars after each call: what they are called, and how far they are."""
    bars = Progress(console=Console(file=io.StringIO()))
    report, states = _Nested(bars), []
    for call in calls:
        report(*call)
        states.append([(task.description, task.completed) for task in bars.tasks])
    return states


def test_a_step_inside_of_another_has_its_own_bar() -> None:
    assert shown([("fold", 0, 2), ("prune", 1, 2), ("accuracy", 1, 500), ("accuracy", 499, 500)]) == [
        [("fold", 0)],
        [("prune", 1)],
        [("prune", 1), ("accuracy", 1)],
        [("prune", 1), ("accuracy", 499)],
    ]


def test_finished_bars_disappear() -> None:
    calls = [("prune", 1, 3), ("accuracy", 500, 500), ("accuracy", 1, 500), ("quantize", 2, 3), ("done", 3, 3)]
    assert shown(calls) == [
        [("prune", 1)],
        [("prune", 1)],
        [("prune", 1), ("accuracy", 1)],
        [("quantize", 2)],
        [],
    ]


def test_a_bar_that_starts_again_is_a_new_one() -> None:
    assert shown([("accuracy", 300, 500), ("accuracy", 1, 500)])[-1] == [("accuracy", 300), ("accuracy", 1)]
    assert shown([("compile", 0, 0)]) == [[]]


def test_time_is_left_where_a_step_takes_longer_than_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = console._bars(Console(file=io.StringIO()))
    now = 100.0
    monkeypatch.setattr(bars, "get_time", lambda: now)
    report = _Nested(bars)
    for done in range(4):
        report("sensitivities", done, 40)
        now += 90.0
    assert bars.tasks[0].time_remaining == pytest.approx(37 * 90, rel=0.05)


def test_lines_for_steps_and_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    report = _Lines()
    for done in range(8):
        report("accuracy", done, 500)
        now += 2.0
    report("fold", 1, 2)
    lines = ["nnc: accuracy (0/500)", "nnc: accuracy (3/500)", "nnc: accuracy (6/500)", "nnc: fold (1/2)"]
    assert capsys.readouterr().err.splitlines() == lines


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(quiet=True) as report:
        report("fold", 1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (NncError("a.toml: no pass", "write one"), 1, "nnc: error: a.toml: no pass\n\nhint: write one\n"),
        (NncError("two\nlines"), 1, "nnc: error: two lines\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.bin"), 1, "nnc: error: a.bin: no space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 1, "nnc: error: a: permission denied\n"),
        (OSError(errno.EIO, "Input/output error"), 1, "nnc: error: input/output error\n"),
        (MemoryError(), 1, "nnc: error: out of memory\n\nhint: close other programs, or give nnc a smaller model\n"),
        (KeyboardInterrupt(), 130, "nnc: interrupted\n"),
    ],
)
def test_errors(error: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, console.failing():
        raise error
    assert (caught.value.code, capsys.readouterr().err) == (status, text)


def test_an_error_without_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit), console.failing():
        raise AssertionError
    assert "internal error: AssertionError; the traceback is in" in capsys.readouterr().err
