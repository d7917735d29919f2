"""Tables on stdout that fit the terminal; in a pipe they are as wide as they need to be."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

#: Columns where there is no terminal.
UNLIMITED = 100_000

#: Terminals from this width on show every column.
WIDE = 100


class _Output(Console):
    """Stdout, without the spaces that fill up the last column where it is no terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        for line in captured.get().splitlines():
            print(line.rstrip())

    def on_broken_pipe(self) -> None:
        raise  # rich calls this while it handles the BrokenPipeError; `failing` does the rest


def console() -> Console:
    width = None if sys.stdout.isatty() else UNLIMITED
    return _Output(markup=False, highlight=False, emoji=False, width=width, soft_wrap=False)


def width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED


def table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    """An empty table; columns in `numbers` are aligned right and never cut."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    numeric = set(numbers)
    for name in columns:
        if name in numeric:
            made.add_column(name, justify="right", no_wrap=True)
        else:
            made.add_column(name, overflow="ellipsis", min_width=min(len(name), 4))
    return made


def add(to: Table, *cells: object, style: str | None = None) -> None:
    """A row; what a file holds may not control the terminal."""
    to.add_row(*(re.sub(r"[\x00-\x1f\x7f]", "?", str(cell)) for cell in cells), style=style)


def ending(name: str, room: int) -> str:
    """The end of a long name, which tells layers apart."""
    return name if len(name) <= room else f"…{name[1 - room :]}"


def definition(entries: Iterable[tuple[str, object]]) -> Table:
    """Names and what they stand for, without a heading."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, content in entries:
        add(made, name, content)
    return made
