"""What the tables of this folder share: their rows, the command line that is measured, and the sample data."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

DATA = Path(os.environ.get("NNC_DATA", Path(__file__).parents[3] / "shared/data"))
THREADS = 2
NNC = str(Path(sys.executable).parent / "nnc")


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    what: str
    wanted: str
    measured: str
    reached: bool | None
    """None: nothing is promised."""


class Refused(SystemExit):
    """What the command complained of; ends the benchmark where nobody expects it."""


@dataclass(frozen=True)
class Usage:
    """What a process took."""

    seconds: float
    peak_bytes: int


def nnc(*arguments: object, **environment: str) -> str:
    """Run the command, with more in its environment, and return what it prints; raises Refused."""
    command = [NNC, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise Refused(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def usage(*arguments: object) -> Usage:
    """Run the command in a fresh process and return what that took; raises Refused."""
    command = [NNC, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as complaints:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=complaints)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            complaints.seek(0)
            raise Refused(f"{' '.join(command)}\n{complaints.read()}")
    return Usage(seconds, used.ru_maxrss * 1024)


class Workshop:
    """A folder for models and what they compile to, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cache  # noqa: B019  # one workshop per run
    def network(self, name: str) -> Path:
        path = self.folder / f"{name}.onnx"
        if not path.exists():
            nnc("network", name, "-o", path)
        return path


def samples(*names: str) -> list[Path]:
    """The pretrained models of the sample data, by name or all; none where it is absent."""
    return [path for path in sorted(DATA.glob("models/*.onnx")) if not names or path.stem in names]


def facts(model: Path) -> dict[str, Any]:
    """How the images of a pretrained model are prepared: "dataset", "mean", "std" and, for some, "crop"."""
    listed: dict[str, dict[str, Any]] = json.loads((DATA / "models/models.json").read_text())
    return listed[model.name]


Shop = TypeVar("Shop", bound=Workshop)


def main(description: str | None, sections: Mapping[str, Callable[[Shop], Iterator[Row]]], shop: type[Shop]) -> int:
    """Print the table of the sections that the command line names, or of all; 1 when a row is not reached."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*sections, []], help="all of them unless named")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep models there; what is there is not made anew")
    given = parser.parse_args()
    names = given.sections or list(sections)
    table = Table("what", "must reach", "measured", "")
    rows = []
    with _folder(given.keep) as folder, Console(stderr=True).status("") as status:
        made = shop(folder)
        for name in names:
            for row in sections[name](made):
                status.update(row.what)
                rows.append(row)
                table.add_row(row.what, row.wanted, row.measured, {True: "yes", False: "NO", None: ""}[row.reached])
            table.add_section()
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    return int(any(row.reached is False for row in rows))


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="nnc-bench-") as folder:
            yield Path(folder)
    else:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
