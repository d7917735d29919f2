"""Boards behind a TVM RPC tracker: kernels are linked here, sent to a board that is free, and timed there.

On each board runs `python -m tvm.exec.rpc_server --tracker=HOST:PORT --key=KEY`; with several of them, the kernels of
one batch are timed on one, so that their times compare, and the next batch on whichever is free first.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnc.errors import NncError
from nnc.target import Target
from nnc.tuning.devices import KERNEL, Opened, arrays, compiled, random_array
from nnc.tuning.records import Source

_WAIT = 60  # seconds for a board to be free
_ASK = 0.5  # seconds between questions whether one is
_SLICE_MS = 20  # of one time on a board


@dataclass(frozen=True)
class Tracker:
    """Where boards are registered, and what those that are wanted are called."""

    host: str
    port: int
    key: str

    @property
    def place(self) -> str:
        return f"--rpc {self.host}:{self.port}"


@dataclass(frozen=True)
class Boards:
    """The boards of a tracker."""

    target: Target
    threads: int
    tracker: Tracker
    source: Source = "rpc"

    def open(self, machine: Any) -> Opened:
        import tvm
        from tvm import rpc

        from nnc.lowering import cross

        cross.compiler(self.target.unit.architecture)  # what is missing is told before anything is built
        try:
            tracker = rpc.connect_tracker(self.tracker.host, self.tracker.port)
        except Exception as error:  # TVM raises RuntimeError, OSError and others of its own
            hint = "start it: python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 9190"
            raise NncError(f"{self.tracker.place}: no tracker answers", hint) from error
        return _Remote(self, tracker, tvm.target.Target(machine))


class _Remote:
    exact = False

    def __init__(self, boards: Boards, tracker: Any, machine: Any) -> None:
        self._boards, self._tracker, self._machine = boards, tracker, machine
        self._folder = tempfile.TemporaryDirectory(prefix="nnc-")
        self._count = 0

    def load(self, function: Any) -> tuple[Path, list[Any]]:
        """The linked kernel, and shapes and types of what it is called with."""
        from nnc.lowering import cross

        self._count += 1
        path = Path(self._folder.name) / f"kernel{self._count}.so"
        made = compiled(function, self._machine)
        made.export_library(str(path), fcompile=cross.linker(self._boards.target))
        return path, arrays(function)

    def times(self, kernels: Sequence[tuple[Path, list[Any]]], rounds: int) -> Iterator[list[float]]:
        """All of the kernels in turns on one board."""
        session = self._board()
        try:
            session.get_function("runtime.config_threadpool")(1, self._boards.threads)
            timers = [self._timer(session, path, described) for path, described in kernels]
            for _ in range(rounds):
                yield [timer() for timer in timers]
        except Exception as error:  # TVM raises RuntimeError, OSError and others of its own
            tracker = self._boards.tracker
            raise NncError(f"{tracker.place}: a board '{tracker.key}' was lost", "--resume goes on") from error

    def _board(self) -> Any:
        """A board, as soon as one is free; TVM's own request waits for ever."""
        key, until, free = self._boards.tracker.key, time.monotonic() + _WAIT, 0
        try:
            while not free and time.monotonic() < until:
                free = self._tracker.summary()["queue_info"].get(key, {}).get("free", 0)
                time.sleep(0 if free else _ASK)
            if free:
                return self._tracker.request(key, session_timeout=600, max_retry=1)
        except Exception as error:  # as above
            raise NncError(f"{self._boards.tracker.place}: the tracker was lost", "--resume goes on") from error
        hint = f"on the board: python -m tvm.exec.rpc_server --tracker=HOST:PORT --key={key}"
        raise NncError(f"{self._boards.tracker.place}: no board '{key}' is free", hint)

    def _timer(self, session: Any, path: Path, described: list[Any]) -> Any:
        import tvm

        session.upload(str(path))
        rng, device = np.random.default_rng(0), session.cpu()
        arguments = [tvm.runtime.tensor(random_array(rng, *each), device) for each in described]
        module = session.load_module(path.name)
        evaluator = module.time_evaluator(KERNEL, device, number=1, repeat=1, min_repeat_ms=_SLICE_MS)
        return lambda: evaluator(*arguments).mean * 1e3
