"""The output folder: all files of a compile appear together, or none."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from nnc.compiling import output
from nnc.errors import NncError
from nnc.store import Memory


def write(path: Path, **files: str) -> None:
    """A finished compile of these files."""
    with output.opened(path) as folder:
        stage(folder, **files)


def stage(folder: output.OutputFolder, **files: str) -> None:
    names = [f"{name}.txt" for name in files]
    for name, text in files.items():
        (folder.staging / f"{name}.txt").write_text(text)
    (folder.staging / "report.json").write_text(json.dumps({"files": names, "latency_source": "analytic"}))
    (folder.staging / output.LOCK).write_text("lock")
    folder.publish([*names, "report.json"])


def stopped(path: Path, error: BaseException) -> None:
    """A compile that has a checkpoint and a staged file when it ends early."""
    with output.opened(path) as folder:
        folder.checkpoints.mkdir()
        (folder.staging / "a.txt").write_text("half")
        raise error


def visible(path: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in path.iterdir() if file.suffix == ".txt"}


def test_files_appear_together(tmp_path: Path) -> None:
    with output.opened(tmp_path / "a" / "out") as folder:
        (folder.staging / "a.txt").write_text("1")
        assert visible(folder.path) == {}
        stage(folder, a="1", b="2")
    assert visible(tmp_path / "a" / "out") == {"a.txt": "1", "b.txt": "2"}
    assert (tmp_path / "a" / "out" / output.LOCK).exists()


def test_files_of_an_earlier_compile_go_others_stay(tmp_path: Path) -> None:
    write(tmp_path, old="1", both="1")
    (tmp_path / "mine.txt").write_text("mine")
    write(tmp_path, both="2", new="2")
    assert visible(tmp_path) == {"both.txt": "2", "new.txt": "2", "mine.txt": "mine"}


def test_an_error_leaves_the_earlier_compile(tmp_path: Path) -> None:
    write(tmp_path, a="1")
    with pytest.raises(ZeroDivisionError):
        stopped(tmp_path, ZeroDivisionError())
    assert visible(tmp_path) == {"a.txt": "1"}
    assert (tmp_path / output.LOCK).exists()
    assert not output.OutputFolder(tmp_path).staging.exists()


def test_an_error_removes_only_folders_that_were_new(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        stopped(tmp_path / "a" / "b", ZeroDivisionError())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["sweep/b", "sweep/a/below"])
def test_an_error_leaves_what_others_wrote_meanwhile(tmp_path: Path, other: str) -> None:
    def work() -> None:
        with output.opened(tmp_path / "sweep" / "a"):
            write(tmp_path / other, b="1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert visible(tmp_path / other) == {"b.txt": "1"}
    assert not output.OutputFolder(tmp_path / "sweep" / "a").hidden.exists()
    assert (tmp_path / "sweep" / "a").exists() == (other == "sweep/a/below")


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_error_leaves_epochs_of_training(tmp_path: Path, error: Exception) -> None:
    def train() -> None:
        with output.opened(tmp_path / "out") as folder:
            folder.training.mkdir()
            (folder.training / "run.pt").write_bytes(b"epochs")
            raise error

    with pytest.raises((ZeroDivisionError, NncError)):
        train()
    left = output.OutputFolder(tmp_path / "out")
    assert (left.training / "run.pt").exists()
    assert not left.staging.exists()


@pytest.mark.parametrize(("seconds", "stays"), [(9, False), (20, True)])
def test_an_error_leaves_checkpoints_of_long_work(tmp_path: Path, seconds: float, stays: bool) -> None:
    checkpoint = output.OutputFolder(tmp_path / "out").checkpoints / "key.onnx"

    def work() -> None:
        with output.opened(tmp_path / "out") as folder:
            folder.checkpoints.mkdir()
            checkpoint.touch()
            os.utime(checkpoint, (time.time() + seconds,) * 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert checkpoint.exists() == (tmp_path / "out").exists() == stays
    assert not output.OutputFolder(tmp_path / "out").staging.exists()


def test_an_interrupted_compile_keeps_its_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stopped(tmp_path / "out", KeyboardInterrupt())
    folder = output.OutputFolder(tmp_path / "out")
    assert folder.checkpoints.exists()
    assert not folder.staging.exists()
    assert visible(tmp_path / "out") == {}


def test_what_a_killed_compile_staged_is_gone(tmp_path: Path) -> None:
    staging = output.OutputFolder(tmp_path).staging
    staging.mkdir(parents=True)
    (staging / "a.txt").write_text("half")
    write(tmp_path, b="1")
    assert visible(tmp_path) == {"b.txt": "1"}


def test_two_compiles_into_one_folder(tmp_path: Path) -> None:
    with output.opened(tmp_path), pytest.raises(NncError, match="another nnc is writing it"), output.opened(tmp_path):
        pass


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(NncError, match="out: a file, not a folder"), output.opened(tmp_path / "out"):
        pass
    with pytest.raises(NncError, match="not a directory"), output.opened(tmp_path / "out" / "below"):
        pass
    assert (tmp_path / "out").read_text() == ""


def test_system_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(NncError, match=r"gone\.txt: no such file or directory"), output.opened(tmp_path / "out"):
        (tmp_path / "gone.txt").read_text()
    assert list(tmp_path.iterdir()) == []


class Counted:
    """A measurement that counts how often it is made."""

    def __init__(self, value: Any = 0.5) -> None:
        self.value, self.times = value, 0

    def __call__(self) -> Any:
        self.times += 1
        return self.value


STORES = {"folder": lambda path: output.OutputFolder(path), "memory": lambda path: Memory()}


@pytest.mark.parametrize("kind", STORES)
def test_values_are_measured_once_per_name_and_key(tmp_path: Path, kind: str) -> None:
    with output.opened(tmp_path):
        store, first, second = STORES[kind](tmp_path), Counted(), Counted(0.75)
        assert [store.once("accuracy", key, first) for key in ("a", "a", "b", "b", "a")] == [0.5] * 5
        assert [store.once("error/s", "a", second) for _ in range(2)] == [0.75] * 2
        assert (first.times, second.times) == (2, 1)


@pytest.mark.parametrize("kind", STORES)
def test_what_is_measured_now_equals_what_comes_back(tmp_path: Path, kind: str) -> None:
    with output.opened(tmp_path):
        store, measured = STORES[kind](tmp_path), Counted({"layers": ((1, 0.5), (2, 0.25)), 3: True})
        first = store.once("widths", "key", measured)
        assert first == {"layers": [[1, 0.5], [2, 0.25]], "3": True}
        first["layers"].clear()  # whoever gets a value may edit it
        assert store.once("widths", "key", measured) == {"layers": [[1, 0.5], [2, 0.25]], "3": True}
        assert measured.times == 1


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"3", b"[]", b"\xff\x00", b'{"name": "accuracy", "key": "b", "value": 9}']
)
def test_damaged_values_are_measured_again(tmp_path: Path, damage: bytes) -> None:
    measured = Counted()
    with output.opened(tmp_path) as folder:
        folder.once("accuracy", "a", measured)
        (file,) = (folder.hidden / "measured").iterdir()
        for content in (damage, file.read_bytes()[:-3]):
            file.write_bytes(content)
            assert [folder.once("accuracy", "a", measured) for _ in range(2)] == [0.5, 0.5]
    assert measured.times == 3


def test_values_that_were_not_used_for_long_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_REMEMBERED", 3)
    measured = Counted()
    with output.opened(tmp_path) as folder:
        for key in ("a", "b", "c", "a", "d"):
            folder.once("accuracy", key, measured)
        assert measured.times == 4
        assert [key for key in "abcd" if folder.recalled("accuracy", key) is not None] == ["a", "c", "d"]
        assert len(list((folder.hidden / "measured").iterdir())) == 3


def test_memory_reads_what_a_compile_kept_and_writes_nothing(tmp_path: Path) -> None:
    with output.opened(tmp_path) as folder:
        folder.once("accuracy", "a", Counted(0.25))
    (file,) = (folder.hidden / "measured").iterdir()
    before, measured = file.stat().st_mtime_ns, Counted()
    memory = Memory(folder)
    assert [memory.once("accuracy", key, measured) for key in ("a", "b")] == [0.25, 0.5]
    assert measured.times == 1
    assert [each.stat().st_mtime_ns for each in file.parent.iterdir()] == [before]
    assert Memory(output.OutputFolder(tmp_path / "missing")).once("accuracy", "a", measured) == 0.5


@pytest.mark.parametrize("foreign", [["../precious.txt", "/etc/hostname", 3], ["folder", ".."]])
def test_a_report_that_was_edited_deletes_no_files_elsewhere(tmp_path: Path, foreign: list[object]) -> None:
    (tmp_path / "precious.txt").write_text("")
    out = tmp_path / "out"
    (out / "folder").mkdir(parents=True)
    (out / "report.json").write_text(json.dumps({"files": foreign, "latency_source": "analytic"}))
    write(out, a="1")
    assert (tmp_path / "precious.txt").exists()
    assert (out / "folder").exists()
    assert visible(out) == {"a.txt": "1"}


def test_what_another_program_wrote_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "report.json").write_text('{"files": ["mine.txt"]}')
    with pytest.raises(NncError, match=r"report\.json: there is such a file already, which no compile wrote"):
        write(tmp_path, a="1")
    (tmp_path / "report.json").unlink()
    write(tmp_path, a="1")
    assert visible(tmp_path) == {"a.txt": "1", "mine.txt": "mine"}
    with pytest.raises(NncError, match=r"mine\.txt: there is such a file already"):
        write(tmp_path, a="2", mine="2")
    assert visible(tmp_path) == {"a.txt": "1", "mine.txt": "mine"}
