"""The folder that a compile writes: nothing in it changes until everything is ready."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnc.digests import digest
from nnc.errors import NncError, system_reason
from nnc.model import wire
from nnc.report import FILES
from nnc.store import Value, as_json

#: The file that is written last: a folder without it holds no finished compile.
LOCK = "nnc.lock"

#: A file that says which files are of the compile.
_REPORT = "report.json"

#: Seconds of work that nobody wants to do again.
_LONG = 10.0

#: Values that a folder remembers at most.
_REMEMBERED = 500


@dataclass(frozen=True)
class OutputFolder:
    """`path`, and below `path`/.nnc what is being written and what the next compile can use again."""

    path: Path

    @property
    def hidden(self) -> Path:
        return self.path / ".nnc"

    @property
    def staging(self) -> Path:
        """Where files are written before `publish` moves them."""
        return self.hidden / "new"

    @property
    def checkpoints(self) -> Path:
        return self.hidden / "passes"

    @property
    def training(self) -> Path:
        """Where epochs are kept until a compile is complete."""
        return self.hidden / "training"

    def publish(self, files: Iterable[str]) -> None:
        """Move the staged files into place, LOCK last; `files` are all of the compile, those of earlier ones go.

        Raises NncError, and changes nothing, where one of them would replace a file that is no compile's.
        """
        kept = set(files)
        staged = [path.name for path in self.staging.iterdir() if path.name in kept]
        refuse_foreign(self.path, (*staged, LOCK))
        stale = files_of(self.path) - kept
        (self.path / LOCK).unlink(missing_ok=True)  # from here until the end there is no finished compile
        for path in (self.path / name for name in stale):
            if path.is_file():
                path.unlink()
        for name in sorted(staged, key=lambda name: (name != _REPORT, name)):  # the report says whose the others are
            os.replace(self.staging / name, self.path / name)
        os.replace(self.staging / LOCK, self.path / LOCK)

    def recalled(self, name: str, key: str) -> Any:
        """What `remember` kept under this name and key, or None."""
        with suppress(OSError, ValueError, KeyError, TypeError):  # not there, or damaged
            saved = json.loads(self._measured(name, key).read_text("utf-8"))
            return saved["value"] if (saved["name"], saved["key"]) == (name, key) else None
        return None

    def remember(self, name: str, key: str, value: Any) -> None:
        """Keep a JSON value for later compiles; what none of them used for the longest time is forgotten."""
        file = self._measured(name, key)
        file.parent.mkdir(exist_ok=True)
        with wire.replacing(file) as written:
            written.write(json.dumps({"name": name, "key": key, "value": value}).encode())
        newest_first = sorted(file.parent.glob("*.json"), key=lambda path: -path.stat().st_mtime_ns)
        for path in newest_first[_REMEMBERED:]:
            path.unlink()

    def once(self, name: str, key: str, compute: Callable[[], Value]) -> Value:
        """The value of `compute`, or what it was in an earlier compile under this name and key; None is not kept."""
        value = self.recalled(name, key)
        if value is not None:
            os.utime(self._measured(name, key))  # it was used
            return value
        value = as_json(compute())
        if value is not None:
            self.remember(name, key, value)
        return value

    def _measured(self, name: str, key: str) -> Path:
        return self.hidden / "measured" / f"{digest(name, key)}.json"


@contextmanager
def opened(path: Path) -> Iterator[OutputFolder]:
    """The folder for one compile at a time.

    On an error, folders that were made here disappear again, unless they hold what somebody else wrote meanwhile,
    epochs of training, or checkpoints that took longer than `_LONG` to get to, which are worth more than a clean place.
    Folders that were there keep what they held; an interrupted compile leaves its checkpoints too.
    """
    if path.exists() and not path.is_dir():
        raise NncError(f"{path}: a file, not a folder", "choose another output folder with -o")
    folder, made, started = OutputFolder(path), list[Path](), time.time()
    try:
        _make(path, made)
        folder.hidden.mkdir(exist_ok=True)
        with _alone(folder.hidden / "running", path), _staged(folder.staging):
            yield folder
    except OSError as error:
        _clear(folder, made, started)
        ours = error.filename is None or Path(error.filename).is_relative_to(folder.hidden)
        raise NncError(f"{path if ours else error.filename}: {system_reason(error)}") from error
    except Exception:
        _clear(folder, made, started)
        raise


def files_of(path: Path) -> set[str]:
    """The files of the compile that `path` holds, LOCK among them; none where it holds no compile."""
    own = set[str]()
    for file, mark, key in ((_REPORT, "latency_source", "files"), (LOCK, "nnc", "results")):  # one may be damaged
        table = _table(path / file)
        if mark in table:  # else it is somebody else's
            listed = table.get(key)
            names = listed if isinstance(listed, list | dict) else ()
            own |= {*FILES, LOCK, *(name for name in names if isinstance(name, str) and Path(name).name == name)}
    return own


def _table(path: Path) -> dict[str, Any]:
    """A file of JSON; nothing where it is none."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text("utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def refuse_foreign(path: Path, names: Iterable[str]) -> None:
    """Raise NncError where one of the files is there already, and is none of a compile's."""
    own = files_of(path)
    for name in names:
        if os.path.lexists(path / name) and name not in own:
            raise NncError(
                f"{path / name}: there is such a file already, which no compile wrote",
                "choose another output folder with -o, or move the file",
            )


def _make(path: Path, made: list[Path]) -> None:
    """Make a folder, and those around it; `made` grows by what was not there and nobody else made, innermost last."""
    if not os.path.lexists(path.parent):
        _make(path.parent, made)
    try:
        path.mkdir()
        made.append(path)
    except FileExistsError:
        if not path.is_dir():
            raise


def _clear(folder: OutputFolder, made: list[Path], started: float) -> None:
    """Remove the hidden folder of a new output folder, and the folders `made` as far as nothing else is in them."""
    saved = [path.stat().st_mtime - started for path in folder.checkpoints.glob("*.onnx")]
    is_worth_it = any(folder.training.glob("*.pt")) or max(saved, default=0.0) > _LONG
    if folder.path in made and not is_worth_it:
        shutil.rmtree(folder.hidden, ignore_errors=True)
    with suppress(OSError):  # not empty
        for path in reversed(made):
            path.rmdir()


@contextmanager
def _alone(path: Path, folder: Path) -> Iterator[None]:
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NncError(f"{folder}: another nnc is writing it", "choose another output folder with -o") from None
        yield


@contextmanager
def _staged(path: Path) -> Iterator[None]:
    shutil.rmtree(path, ignore_errors=True)  # of a compile that was killed
    path.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)
