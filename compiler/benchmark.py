"""Interleaved timing of a compiled library and of onnxruntime, which runs the same model.

Each side lives in its own process and sleeps while the other one is timed, so that their thread pools, which spin when
they wait, never compete for the cores. Slices of a fraction of a second alternate, so that both see the same machine.
"""

import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from nnc.artifact import Artifact
from nnc.errors import NncError

#: Seconds that one side is timed for before it is the other's turn; at least one inference.
SLICE = 0.15

#: Seconds for the threads of one side to go to sleep.
_PAUSE = 0.02

Progress = Callable[[str, int, int], None]
Timed = Callable[[], object]
Side = tuple[Callable[..., Timed], tuple[object, ...]]  # what prepares it in its process, and the arguments


@dataclass(frozen=True)
class Timing:
    """Medians in milliseconds per inference; a value per round, in order."""

    nnc: list[float]
    onnxruntime: list[float]
    threads: int

    @property
    def nnc_ms(self) -> float:
        return statistics.median(self.nnc)

    @property
    def onnxruntime_ms(self) -> float:
        return statistics.median(self.onnxruntime)

    @property
    def ratio(self) -> float:
        """How many times faster nnc's library is."""
        return self.onnxruntime_ms / self.nnc_ms

    @property
    def ratios(self) -> list[float]:
        """The ratio in every round."""
        return [peer / own for own, peer in zip(self.nnc, self.onnxruntime, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "nnc_ms": self.nnc_ms,
            "onnxruntime_ms": self.onnxruntime_ms,
            "ratio": self.ratio,
            "rounds": len(self.nnc),
            "threads": self.threads,
            "round_ratios": self.ratios,
        }


def compare(artifact: Artifact, rounds: int, threads: int, progress: Progress) -> Timing:
    """Time both sides in alternating slices, `rounds` of each, on inputs of random numbers."""
    _require_host(artifact)
    inputs = artifact.checked(artifact.random_inputs())
    sides = ((_library, (artifact.library_path, threads)), (_onnxruntime, (artifact.model_path, threads)))
    times: tuple[list[float], list[float]] = ([], [])
    with _process(sides[0], inputs) as own, _process(sides[1], inputs) as peer:
        for side in (own, peer):
            _answer(side)  # it is ready
        counts = [_per_slice(side) for side in (own, peer)]
        for index in range(rounds):
            progress("time both sides", index, rounds)
            order = (0, 1) if index % 2 == 0 else (1, 0)  # who goes first changes too
            for which in order:
                time.sleep(_PAUSE)
                times[which].append(statistics.median(_ask((own, peer)[which], counts[which])))
    return Timing(*times, threads)


def profile(artifact: Artifact, threads: int) -> list[dict[str, Any]]:
    """The kernels of the library in the order of execution, each with the milliseconds of one call ("ms")."""
    _require_host(artifact)
    from nnc.lowering.library import Library

    kernels: list[dict[str, Any]] = artifact.report["kernels"]
    inputs = artifact.checked(artifact.random_inputs())
    times = Library(artifact.library_path, threads).profile(inputs, len(kernels))
    return [{**kernel, "ms": float(ms)} for kernel, ms in zip(kernels, times, strict=True)]


def _require_host(artifact: Artifact) -> None:
    if artifact.emulated:
        architecture = artifact.target.unit.architecture
        hint = "an emulator says nothing about time; nnc inspect --target predicts it"
        raise NncError(f"{artifact.folder}: compiled for {architecture}, which can't be timed on this machine", hint)
    artifact.check_library()


def _per_slice(side: Connection) -> int:
    """How many inferences fill a slice; warms the side up on the way."""
    started, slowest = time.monotonic(), 0.0
    while time.monotonic() - started < 2 * SLICE:
        slowest = statistics.median(_ask(side, 1))
    return max(1, round(SLICE * 1e3 / slowest))


def _ask(side: Connection, count: int) -> list[float]:
    """Milliseconds of each of `count` inferences."""
    side.send(count)
    return _answer(side)


def _answer(side: Connection) -> list[float]:
    try:
        answer = side.recv()
    except (EOFError, ConnectionError):
        raise NncError("the process that is timed died", "run the library with nnc run to see why") from None
    if isinstance(answer, NncError):
        raise answer
    times: list[float] = answer
    return times


@contextmanager
def _process(
    side: tuple[Callable[..., Timed], tuple[object, ...]], inputs: Sequence[np.ndarray]
) -> Iterator[Connection]:
    """A process that answers each number it is sent with as many times."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, *side, inputs), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.terminate()
        process.join()


def _serve(
    pipe: Connection, prepare: Callable[..., Timed], arguments: tuple[object, ...], inputs: Sequence[np.ndarray]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    try:
        run = prepare(*arguments, inputs)
    except NncError as error:
        pipe.send(error)
        return
    pipe.send([])
    while True:
        try:
            count = pipe.recv()
        except EOFError:
            return
        times = []
        for _ in range(count):
            started = time.perf_counter()
            run()
            times.append((time.perf_counter() - started) * 1e3)
        pipe.send(times)


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
