"""What a command shows while it works and when it fails: progress and errors on stderr, results on stdout."""

import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from nnc.errors import NncError, system_reason

#: Seconds between two plain lines about the same step.
_PATIENCE = 5.0


class Report(Protocol):
    """nnc.context.Progress: called with a step, what is done of it, and how much there is."""

    def __call__(self, step: str, done: int, total: int) -> None: ...


@contextmanager
def progress(quiet: bool = False) -> Iterator[Report]:
    """Progress on stderr: bars on a terminal, lines elsewhere, nothing when `quiet`."""
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    if quiet:
        yield lambda step, done, total: None
    elif console.is_terminal:
        with _bars(console) as bars:
            yield _Nested(bars)
    else:
        yield _Lines()


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        transient=True,
        speed_estimate_period=600,  # seconds: a step may take longer than the 30 that rich looks back
    )


class _Nested:
    """A bar for what is under way, and below it one for the part of it that reports by itself."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._open: list[tuple[TaskID, int, int]] = []  # each with its total and how far it is

    def __call__(self, step: str, done: int, total: int) -> None:
        depth = self._depth(done, total)
        for task, _, _ in self._open[depth + 1 :]:
            self._bars.remove_task(task)
        task = self._open[depth][0] if depth < len(self._open) else self._bars.add_task(step, total=total)
        self._bars.update(task, description=step, completed=done)
        self._open[depth:] = [(task, total, done)]
        if done >= total:
            self._bars.remove_task(task)
            del self._open[depth:]

    def _depth(self, done: int, total: int) -> int:
        """The innermost bar that can be at `done` of `total` next, or a new one."""
        for depth in range(len(self._open) - 1, -1, -1):
            _, known, before = self._open[depth]
            if known == total and before <= done:
                return depth
        return len(self._open)


class _Lines:
    """A line for every step, and every few seconds one that says how far it is."""

    def __init__(self) -> None:
        self._step, self._at = "", 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if step != self._step or now - self._at > _PATIENCE:
            print(f"nnc: {step} ({done}/{total})", file=sys.stderr, flush=True)
            self._step, self._at = step, now


def say(line: str, quiet: bool = False) -> None:
    """One line on stderr."""
    if not quiet:
        print(f"nnc: {line}", file=sys.stderr, flush=True)


@contextmanager
def failing() -> Iterator[None]:
    """Turn what a command raises into a message on stderr and an exit status.

    1: an error of the user's, in one line with a hint, or a bug, whose traceback is kept in a file; 130: Ctrl-C.
    """
    try:
        yield
        sys.stdout.flush()
    except NncError as error:
        _exit(error.message, error.hint)
    except KeyboardInterrupt:
        print("nnc: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read our output has gone. Python flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        _exit(f"{error.filename}: {system_reason(error)}" if error.filename else system_reason(error), None)
    except MemoryError:
        _exit("out of memory", "close other programs, or give nnc a smaller model")
    except Exception as error:
        if hasattr(error, "exit_code") or os.environ.get("NNC_TRACEBACK"):  # usage errors and exits are typer's
            raise
        _exit(f"internal error: {_summary(error)}; the traceback is in {_saved(error)}", "please report it as a bug")


def _exit(message: str, hint: str | None) -> None:
    line = re.sub(r"[\x00-\x1f\x7f]+", " ", message)
    print(f"nnc: error: {line}" + (f"\n\nhint: {hint}" if hint else ""), file=sys.stderr)
    raise SystemExit(1)


def _summary(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _saved(error: Exception) -> Path:
    text = f"{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}"
    with tempfile.NamedTemporaryFile("wb", prefix="nnc-error-", suffix=".txt", delete=False) as file:
        file.write(text.encode(errors="backslashreplace"))  # names of files need not be text
    return Path(file.name)
