"""Measuring plans: in a process of its own, which a plan that LLVM can't compile may take down with it.

The process builds the kernels of several plans of one workload and hands them to a device, which times them in turns:
every round gives one time of each, so that all see the same machine. What else runs there only ever adds to a time: of
both sides of a ratio, the time that a fifth of the rounds stays below counts, not the median. Plans that are slower
after a few rounds are left out of the next (successive halving; Jamieson and Talwalkar, "Non-stochastic Best Arm
Identification and Hyperparameter Optimization", 2016).
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from nnc.errors import NncError, reason

if TYPE_CHECKING:
    from nnc.lowering.kernels.unit import Unit
    from nnc.lowering.workload import Workload
    from nnc.tuning.devices import Device, Opened
    from nnc.tuning.records import Source

#: Seconds for which a plan may be built, or all of them timed once; after that it counts as one that can't be measured.
PATIENCE = 120.0

#: Rounds of successive halving.
_ROUNDS = (6, 10, 16)

#: Share of the rounds in which nothing else disturbs a kernel.
_UNDISTURBED = 0.2


@dataclass(frozen=True)
class Trial:
    """What was measured of a plan."""

    speed: float | None
    """Times the first plan's; None where the plan can't be built or run."""
    ms: float | None
    reason: str | None = None
    """Why it can't."""


class Unmeasurable(NncError):
    """The plan that others are compared with can't be built or run."""


class Measurer:
    """A process that measures plans on a device; it is started again when it dies."""

    def __init__(self, device: Device, unit: Unit, machine: Mapping[str, Any]) -> None:
        """`machine` is the `tvm` of a target's unit."""
        self.source: Source = device.source
        self._setup = device, unit, dict(machine)
        self._process: Any = None
        self._pipe: Connection | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="nnc-")

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._folder.cleanup()

    def measure(self, workload: Workload, plans: Sequence[Any]) -> list[Trial]:
        """A trial for each plan; the first is what the others are compared with.

        Raises Unmeasurable where the first plan can't be measured, NncError where the device can't be used at all.
        """
        failed: dict[int, Trial] = {}
        while 0 not in failed:
            alive = [index for index in range(len(plans)) if index not in failed]
            answer = self._ask(workload, [plans[index] for index in alive])
            if isinstance(answer, NncError):
                raise answer
            if isinstance(answer, int):
                failed[alive[answer]] = Trial(None, None, "it takes the process down, or too long")
                continue
            trials = failed | dict(zip(alive, answer, strict=True))
            if trials[0].speed is not None:
                return [trials[index] for index in range(len(plans))]
            failed = trials
        message = f"{workload.op}: the default plan can't be measured: {failed[0].reason}"
        raise Unmeasurable(message, "nnc compile shows more")

    def _ask(self, workload: Workload, plans: Sequence[Any]) -> list[Trial] | int | NncError:
        """The trials, or the index of the plan that took the process down."""
        pipe, building = self._running(), 0
        try:
            pipe.send((workload, list(plans)))
            while pipe.poll(PATIENCE):
                answer = pipe.recv()
                if not isinstance(answer, int):
                    return answer
                building = answer
        except (EOFError, ConnectionError):
            pass
        self._stop()
        return building

    def _running(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, there = context.Pipe()
            self._process = context.Process(target=_serve, args=(there, self._folder.name, *self._setup), daemon=True)
            self._process.start()
            there.close()
        return self._pipe

    def _stop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._pipe = None


def _serve(pipe: Connection, folder: str, device: Device, unit: Unit, machine: Any) -> None:
    """Answer every question with numbers, of the plan that is loaded, and then with its trials or an NncError.

    A process that may be killed cleans nothing up: what it writes is in `folder`, which the parent removes.
    """
    tempfile.tempdir = folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    opened: Opened | None = None
    with suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            workload, plans = pipe.recv()
            answer: list[Trial] | NncError
            try:
                opened = opened or device.open(machine)
                answer = _trials(pipe, opened, workload, plans, unit)
            except NncError as error:
                answer = error
            except (EOFError, ConnectionError):
                raise
            except Exception as error:  # TVM has no common base class for what it refuses
                answer = NncError(f"{workload.op}: can't be timed: {reason(error)}", "--resume goes on")
            pipe.send(answer)


def _trials(pipe: Connection, device: Opened, workload: Workload, plans: Sequence[Any], unit: Unit) -> list[Trial]:
    """A trial for each plan, of which those that can't be loaded have none; no trials at all without the first."""
    kernels: list[Any] = []
    reasons: dict[int, str] = {}
    for index, plan in enumerate(plans):
        pipe.send(index)
        try:
            kernels.append(device.load(workload.function(plan, unit)))
        except Exception as error:  # as above; and an emulator's NncError is about one kernel
            kernels.append(None)
            reasons[index] = error.message if isinstance(error, NncError) else reason(error)
        if kernels[0] is None:
            return [Trial(None, None, reasons[0])] * len(plans)
    trials = compared(device, kernels, lambda: pipe.send(0))
    return [replace(trial, reason=reasons.get(index)) for index, trial in enumerate(trials)]


def compared(device: Any, kernels: Sequence[Any], alive: Callable[[], None] = lambda: None) -> list[Trial]:
    """Trials of kernels against the first of them; None stands for one that could not be built.

    Before each round, `alive` is called.
    """
    times: dict[int, list[float]] = {index: [] for index, kernel in enumerate(kernels) if kernel is not None}
    contestants = list(times)
    for rounds in (1,) if device.exact else _ROUNDS:
        alive()
        for row in device.times([kernels[index] for index in contestants], rounds):
            for index, ms in zip(contestants, row, strict=True):
                times[index].append(float(ms))
            alive()
        contestants = _faster_half(times, contestants)
    return [_trial(times[index], times[0]) if index in times else Trial(None, None) for index in range(len(kernels))]


def _faster_half(times: dict[int, list[float]], contestants: Sequence[int]) -> list[int]:
    ranked = sorted(contestants[1:], key=lambda index: _ratio(times[index], times[0]))
    return [0, *ranked[: (len(ranked) + 1) // 2]]


def _trial(own: Sequence[float], first: Sequence[float]) -> Trial:
    return Trial(1 / _ratio(own, first), float(quiet(own)))


def _ratio(own: Sequence[float], first: Sequence[float]) -> float:
    """Of the rounds in which both were timed."""
    return float(quiet(own) / quiet(first[: len(own)]))


def quiet(times: Sequence[Any]) -> Any:
    """What a kernel takes where nothing disturbs it; of times of several kernels, each one's."""
    return np.quantile(times, _UNDISTURBED, axis=0)
