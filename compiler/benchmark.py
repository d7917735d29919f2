"""Interleaved timing of a compiled library and of onnxruntime on the same model, or of two compiled libraries.

Each side lives in its own process and sleeps while the other one is timed, so that their thread pools, which spin when
they wait, never compete for the cores. Slices of a fraction of a second alternate, so that both see the same machine.
"""

import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from nnc import session
from nnc.artifact import Artifact
from nnc.display import units
from nnc.errors import NncError

#: Seconds that one side is timed for before it is the other's turn; at least one inference.
SLICE = 0.15

#: Seconds for the threads of one side to go to sleep.
_PAUSE = 0.02

Progress = Callable[[str, int, int], None]
Timed = Callable[[], object]

Prepare = Callable[[Path, int, Sequence[np.ndarray]], Timed]
"""What a file, a number of threads and inputs become in the process that is timed; a function of a module."""

#: What a compile is timed against unless it is the folder of another one.
ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Side:
    """What is timed in a process of its own."""

    name: str
    """What people read for it."""
    prepare: Prepare
    path: Path
    inputs: Sequence[np.ndarray]


@dataclass(frozen=True)
class _Process:
    """The process of a side: it answers when it is ready, and then each number with as many times."""

    name: str
    pipe: Connection

    def ask(self, count: int = 0) -> list[float]:
        """Milliseconds of each of `count` inferences; of none, as soon as the side is ready."""
        try:
            if count:
                self.pipe.send(count)
            answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            hint = "the system may have ended it for want of memory; nnc run runs a library alone"
            raise NncError(f"{self.name}: the process that is timed died", hint) from None
        if isinstance(answer, NncError):
            raise answer
        times: list[float] = answer
        return times

    def per_slice(self) -> int:
        """How many inferences fill a slice; warms the side up on the way."""
        started, slowest = time.monotonic(), 0.0
        while time.monotonic() - started < 2 * SLICE:
            slowest = statistics.median(self.ask(1))
        return max(1, round(SLICE * 1e3 / slowest))


@dataclass(frozen=True)
class Timing:
    """Medians in milliseconds per inference; a value per round, in order."""

    nnc: list[float]
    peer: list[float]
    threads: int
    against: str = ONNXRUNTIME
    """Who the peer is: onnxruntime, or the folder of another compile."""
    name: str = "nnc"
    """What people read for nnc's library: its folder, where the peer is another one."""

    @property
    def nnc_ms(self) -> float:
        return statistics.median(self.nnc)

    @property
    def peer_ms(self) -> float:
        return statistics.median(self.peer)

    @property
    def ratio(self) -> float:
        """How many times faster than the peer nnc's library is."""
        return self.peer_ms / self.nnc_ms

    @property
    def ratios(self) -> list[float]:
        """The ratio in every round."""
        return [peer / own for own, peer in zip(self.nnc, self.peer, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """What `nnc bench --json` prints; a folder is named in "against"."""
        peer: dict[str, Any] = {"against_ms": self.peer_ms, "against": self.against}
        return {
            "nnc_ms": self.nnc_ms,
            **({"onnxruntime_ms": self.peer_ms} if self.against == ONNXRUNTIME else peer),
            "ratio": self.ratio,
            "rounds": len(self.nnc),
            "threads": self.threads,
            "round_ratios": self.ratios,
        }


def compare(
    artifact: Artifact,
    rounds: int,
    threads: int | None,
    progress: Progress,
    other: Artifact | None = None,
    runtime: Prepare | None = None,
) -> Timing:
    """Time both sides in alternating slices, `rounds` of each, on inputs of random numbers.

    The other side is onnxruntime on the same model, the library of another compile, or the model in another `runtime`.
    Both use `threads`, without it as many as they were compiled for. Raises NncError for a library that can't be timed
    here, and for another compile that reads other inputs or, without `threads`, was compiled for another number of
    them.
    """
    _require_host(artifact)
    if other is not None:
        _require_host(other)
        _require_alike(artifact, other, threads)
    threads = artifact.threads_here(threads)
    own, peer = _sides(artifact, other, runtime)
    times: tuple[list[float], list[float]] = ([], [])
    with _process(own, threads) as first, _process(peer, threads) as second:
        sides = (first, second)
        for side in sides:
            side.ask()
        counts = [side.per_slice() for side in sides]
        for index in range(rounds):
            progress("time both sides", index, rounds)
            order = (0, 1) if index % 2 == 0 else (1, 0)  # who goes first changes too
            for which in order:
                time.sleep(_PAUSE)
                times[which].append(statistics.median(sides[which].ask(counts[which])))
    names = () if other is None else (str(other.folder), str(artifact.folder))
    return Timing(*times, threads, *names)


def _sides(artifact: Artifact, other: Artifact | None, runtime: Prepare | None) -> tuple[Side, Side]:
    inputs = artifact.random_inputs()
    own = Side(str(artifact.folder), _library, artifact.library_path, artifact.checked(inputs))
    if other is None:
        name = ONNXRUNTIME if runtime is None else runtime.__name__
        return own, Side(name, runtime or _onnxruntime, artifact.checked_model(), own.inputs)
    return own, Side(str(other.folder), _library, other.library_path, other.checked(inputs))


def profile(artifact: Artifact, threads: int | None) -> list[dict[str, Any]]:
    """The kernels of the library in the order of execution, each with the milliseconds of one call ("ms")."""
    _require_host(artifact)
    from nnc.lowering.library import Library

    kernels: list[dict[str, Any]] = artifact.report["kernels"]
    inputs = artifact.checked(artifact.random_inputs())
    times = Library(artifact.library_path, artifact.threads_here(threads)).profile(inputs, len(kernels))
    return [{**kernel, "ms": float(ms)} for kernel, ms in zip(kernels, times, strict=True)]


def _require_host(artifact: Artifact) -> None:
    if artifact.emulated:
        architecture = artifact.target.unit.architecture
        hint = "an emulator says nothing about time; nnc inspect --target predicts it"
        raise NncError(f"{artifact.folder}: compiled for {architecture}, which can't be timed on this machine", hint)
    artifact.check_library()


def _require_alike(artifact: Artifact, other: Artifact, threads: int | None) -> None:
    if set(artifact.inputs) != set(other.inputs):
        own, others = (" and ".join(map(str, each.inputs)) for each in (artifact, other))
        message = f"{other.folder}: reads {others}, but {artifact.folder} reads {own}"
        raise NncError(message, "compile both from the same model, with the same --shape")
    if threads is None and artifact.threads != other.threads:
        message = f"{other.folder}: compiled for {units.plural(other.threads, 'thread')}"
        raise NncError(
            f"{message}, {artifact.folder} for {artifact.threads}", "give the number for both with --threads"
        )


@contextmanager
def _process(side: Side, threads: int) -> Iterator[_Process]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, side, threads), daemon=True)
    process.start()
    there.close()
    try:
        yield _Process(side.name, here)
    finally:
        here.close()
        process.terminate()
        process.join()


def _serve(pipe: Connection, side: Side, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    run: Timed | None = None
    count = 0
    with suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            answer: list[float] | NncError
            try:
                run = run or side.prepare(side.path, threads, side.inputs)
                answer = [_milliseconds(run) for _ in range(count)]
            except NncError as error:
                answer = error
            except Exception as error:  # onnxruntime raises errors of its own
                answer = NncError(f"{side.path}: {side.name} can't run it: {session.cause(error)}")
            pipe.send(answer)
            count = pipe.recv()


def _milliseconds(run: Timed) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def _library(path: Path, threads: int, inputs: Sequence[np.ndarray]) -> Timed:
    from nnc.lowering.library import Library

    library = Library(path, threads)
    library.bind(inputs)
    return library.run_bound


def _onnxruntime(path: Path, threads: int, inputs: Sequence[np.ndarray]) -> Timed:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    binding = session.io_binding()  # neither side copies its inputs and outputs
    for tensor, values in zip(session.get_inputs(), inputs, strict=True):
        binding.bind_cpu_input(tensor.name, values)
    for tensor in session.get_outputs():
        binding.bind_output(tensor.name)
    return lambda: session.run_with_iobinding(binding)
