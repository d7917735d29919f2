"""Files are written beside their place and renamed: whoever reads them sees the old or the new one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnc.model import wire


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "net.onnx").write_bytes(b"old")
    (tmp_path / "link.onnx").symlink_to("elsewhere/net.onnx")
    with wire.replacing(tmp_path / "link.onnx") as file:
        file.write(b"new")
    assert (tmp_path / "link.onnx").is_symlink()
    assert content(tmp_path / "elsewhere") == {"net.onnx": b"new"}


def test_what_is_no_file_is_written_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    with wire.replacing(tmp_path / "pipe") as file:
        file.write(b"through")
    assert reader.communicate(timeout=30)[0] == b"through"
    assert (tmp_path / "pipe").is_fifo()
    with wire.replacing(Path("/dev/null")) as file:
        file.write(b"nowhere")
    assert Path("/dev/null").is_char_device()


#: Writes its first argument into a file in two halves, between which it waits for a line.
_SLOW = """
import sys
from pathlib import Path
from nnc.model import wire
with wire.replacing(Path("net.onnx")) as file:
    file.write(sys.argv[1].encode() * 5)
    file.flush()
    print("half", flush=True)
    sys.stdin.readline()
    file.write(sys.argv[1].encode() * 5)
"""


def slow(folder: Path, letter: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _SLOW, letter]
    running = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "half\n"
    return running


def test_two_processes_that_write_one_file(tmp_path: Path) -> None:
    both = [slow(tmp_path, letter) for letter in "ab"]
    for each in both:
        each.communicate("go on\n", timeout=30)
        assert each.returncode == 0
    assert content(tmp_path) == {"net.onnx": b"b" * 10}


def test_what_a_killed_process_wrote_goes_with_the_next_write(tmp_path: Path) -> None:
    killed, alive = slow(tmp_path, "a"), slow(tmp_path, "b")
    killed.kill()
    killed.communicate(timeout=30)
    assert len(content(tmp_path)) == 2
    with wire.replacing(tmp_path / "net.onnx") as file:
        file.write(b"c")
    assert sorted(content(tmp_path)) == [f".net.onnx.{alive.pid}.part", "net.onnx"]
    alive.communicate("go on\n", timeout=30)
    assert content(tmp_path) == {"net.onnx": b"b" * 10}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "net.onnx").write_bytes(b"old")

    def write() -> None:
        with wire.replacing(tmp_path / "net.onnx") as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert content(tmp_path) == {"net.onnx": b"old"}
