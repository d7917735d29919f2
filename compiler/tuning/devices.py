"""Where kernels are timed: on this machine, or an AArch64 board in emulation.

A device is described where the search runs and opened where it measures. Opened, it loads a function that TVM builds,
and times several of them in turns.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nnc.target import Target
from nnc.tuning.records import Source

Shape = tuple[int, ...]
Array = tuple[Shape, str]
"""Shape and dtype."""

WEIGHTS = 1
"""The argument that a network reads from memory: the others were just written."""

_SLICE = 1e-3  # seconds of one time
_WARM_UP = 5  # calls
KERNEL = "kernel"


class Opened(Protocol):
    """A device that is ready."""

    exact: bool
    """Whether a kernel takes the same time whenever it runs."""

    def load(self, function: Any) -> Any:
        """Something that `times` takes, of a tirx.PrimFunc."""

    def times(self, kernels: Sequence[Any], rounds: int) -> Iterator[list[float]]:
        """Milliseconds of one call of each kernel, round by round."""


class Device(Protocol):
    """A description that another process can open."""

    @property
    def source(self) -> Source: ...

    def open(self, machine: Any) -> Opened: ...


def compiled(function: Any, machine: Any) -> Any:
    """The module that holds a function under the name 'kernel'."""
    import tvm

    return tvm.tirx.build(tvm.IRModule({KERNEL: function.with_attr("global_symbol", KERNEL)}), machine)


def arrays(function: Any) -> list[Array]:
    """Shapes and dtypes of a function's arguments."""
    return [(tuple(int(size) for size in each.ty.shape), str(each.ty.dtype)) for each in function.params]


@dataclass(frozen=True)
class Host:
    """This machine."""

    threads: int
    cache_bytes: int
    """Of all that keeps weights near between two calls."""
    source: Source = "measured"

    def open(self, machine: Any) -> Opened:
        os.environ["TVM_NUM_THREADS"] = str(self.threads)
        os.environ.setdefault("TVM_BIND_THREADS", "0")  # as nnc.lowering.library, which runs the result
        import tvm

        tvm.get_global_func("runtime.config_threadpool")(1, self.threads)
        return _Here(tvm.target.Target(machine), self.threads, self.cache_bytes)


class _Here:
    """Kernels in this process."""

    exact = False

    def __init__(self, machine: Any, threads: int, cache_bytes: int) -> None:
        self._machine, self._threads, self._cache_bytes = machine, threads, cache_bytes

    def load(self, function: Any) -> Loaded:
        import tvm

        made = compiled(function, self._machine)
        arguments = _arguments(arrays(function), self._cache_bytes, tvm.runtime.tensor)
        return Loaded(made, made[KERNEL], arguments, self._threads)

    def times(self, kernels: Sequence[Loaded], rounds: int) -> Iterator[list[float]]:
        counts = [ceil(_SLICE / max(1e-9, min(kernel.run(1) for _ in range(_WARM_UP)))) for kernel in kernels]
        turns = list(zip(kernels, counts, strict=True))
        for _ in range(rounds):
            yield [kernel.run(count) * 1e3 for kernel, count in turns]


def _arguments(described: Sequence[Array], cache_bytes: int, tensor: Any) -> list[list[Any]]:
    """Arguments for calls in turns: the weights of each are not in the caches any more when it is its turn again."""
    rng = np.random.default_rng(0)
    made = [tensor(random_array(rng, *each)) for each in described]
    shape, dtype = described[WEIGHTS]
    copies = min(32, ceil(cache_bytes / max(1, np.dtype(dtype).itemsize * int(np.prod(shape)))))
    weights = [made[WEIGHTS], *(tensor(made[WEIGHTS].numpy()) for _ in range(copies))]
    return [[*made[:WEIGHTS], each, *made[WEIGHTS + 1 :]] for each in weights]


def random_array(rng: np.random.Generator, shape: Shape, dtype: str) -> np.ndarray:
    kind = np.dtype(dtype)
    return rng.integers(0, 100, shape).astype(kind) if kind.kind in "iu" else rng.random(shape, np.float32).astype(kind)


class Loaded:
    """A kernel and what it is called with."""

    def __init__(self, module: Any, function: Any, arguments: list[list[Any]], threads: int) -> None:
        self._module, self._function, self._arguments, self._threads = module, function, arguments, threads
        self._next = 0

    def run(self, count: int) -> float:
        """Seconds of one of `count` calls, less those in which another process had the cores.

        The calling thread spins where it waits for others, so that its time on a core is how long a call takes; the
        mean of all threads' times is as much where it had to give its core away meanwhile. Threads that find nothing to
        do sleep: that mean alone would take a kernel that one thread computes for half as long as it is.
        """
        calls = [self._arguments[(self._next + i) % len(self._arguments)] for i in range(count)]
        self._next += count
        caller, all_ = time.thread_time(), time.process_time()
        for arguments in calls:
            self._function(*arguments)
        return max(time.thread_time() - caller, (time.process_time() - all_) / self._threads) / count


@dataclass(frozen=True)
class Emulated:
    """An AArch64 board, cycle by cycle (nnc.simulation.emulated): the same in every run, on any machine."""

    target: Target
    threads: int
    source: Source = "emulated"

    def open(self, machine: Any) -> Opened:
        import tvm

        from nnc.simulation import emulated

        emulated.require(self.target)
        return _Simulated(self.target, self.threads, tvm.target.Target(machine))


class _Simulated:
    exact = True

    def __init__(self, target: Target, threads: int, machine: Any) -> None:
        self._target, self._threads, self._machine = target, threads, machine
        self._folder = tempfile.TemporaryDirectory(prefix="nnc-")

    def load(self, function: Any) -> float:
        """Milliseconds: what a kernel takes is known once it has run."""
        from nnc.simulation import emulated

        path = Path(self._folder.name) / "kernel.o"
        compiled(function, self._machine).write_to_file(str(path))
        described = [
            f"{'' if place == WEIGHTS else '+'}{dtype}:{','.join(map(str, shape))}"
            for place, (shape, dtype) in enumerate(arrays(function))
        ]
        return emulated.kernel(path, KERNEL, described, self._target, self._threads).milliseconds

    def times(self, kernels: Sequence[float], rounds: int) -> Iterator[list[float]]:
        yield from [list(kernels)] * rounds
