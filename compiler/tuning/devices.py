"""Where kernels are timed: on this machine, or an AArch64 board in emulation.

A device is described where the search runs and opened where it measures. Opened, it loads a function that TVM builds,
and times several of them in turns.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nnc.target import Target
from nnc.tuning.measure import quiet
from nnc.tuning.records import Source

Shape = tuple[int, ...]
Array = tuple[Shape, str]
"""Shape and dtype."""

WEIGHTS = 1
"""The argument that a network reads from memory: the others were just written."""

_SLICE = 1e-3  # seconds of one time
_WARM_UP = 5  # calls
_ALONE = 25  # times of neighbours
_LEAST = 1e-7  # seconds of a kernel
KERNEL = "kernel"


class Opened(Protocol):
    """A device that is ready."""

    exact: bool
    """Whether a kernel takes the same time whenever it runs."""

    def load(self, function: Any) -> Any:
        """Something that `times` takes, of a tirx.PrimFunc. Where a kernel can fail in this process, it has run."""

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
        self._neighbours: dict[tuple[Array, Array], Neighbours] = {}

    def load(self, function: Any) -> Loaded:
        import tvm

        made, described = compiled(function, self._machine), arrays(function)
        arguments = _arguments(described, self._cache_bytes, tvm.runtime.tensor)
        images = described[0], described[-1]
        if images not in self._neighbours:
            self._neighbours[images] = Neighbours.of(*images, self._machine, self._threads)
        kernel = Loaded(made[KERNEL], arguments, self._neighbours[images], self._threads)
        kernel.warm_up()
        return kernel

    def times(self, kernels: Sequence[Loaded], rounds: int) -> Iterator[list[float]]:
        for _ in range(rounds):
            yield [kernel.run(kernel.count) * 1e3 for kernel in kernels]


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


@dataclass(frozen=True)
class Neighbours:
    """The kernels before and behind: each thread writes an equal part of what is read, and reads one of the result.

    A kernel whose threads divide the work in another way waits for what lies in the caches of other cores, and whoever
    writes its image anew waits until they have given it back. That can cost more than what is gained otherwise, and
    nobody sees it where a kernel runs alone: so the time of a kernel is what all three take longer than these two.
    """

    before: Callable[[Any], None]
    """Writes what a kernel reads first."""
    behind: Callable[[Any], None]
    """Reads what it makes."""
    alone: float
    """Seconds that both take where there is no kernel between them."""

    @classmethod
    def of(cls, first: Array, last: Array, machine: Any, threads: int) -> Neighbours:
        import tvm

        from nnc.lowering.kernels import touch

        write, read = (compiled(each, machine) for each in (touch.write(*first, threads), touch.read(*last, threads)))
        one = tvm.runtime.tensor(np.ones(1, np.float32))
        sums = tvm.runtime.tensor(np.zeros(touch.sums_shape(threads), np.float32))
        both = cls(lambda x: write[KERNEL](one, x), lambda y: read[KERNEL](y, sums), 0.0)
        images = [tvm.runtime.tensor(np.zeros(*each)) for each in (first, last)]
        nothing = Loaded(lambda *_: None, [images], both, threads)
        nothing.warm_up()
        return replace(both, alone=float(quiet([nothing.run(nothing.count) for _ in range(_ALONE)])))


class Loaded:
    """A kernel, what it is called with, and what runs before and behind it."""

    def __init__(
        self, function: Callable[..., None], arguments: list[list[Any]], neighbours: Neighbours, threads: int
    ) -> None:
        self._function, self._arguments, self._neighbours, self._threads = function, arguments, neighbours, threads
        self._next = 0
        self.count = 1
        """Calls that fill a slice of time."""

    def warm_up(self) -> None:
        """Run it some times, to see whether it does and how many calls fill a slice."""
        self.count = ceil(_SLICE / max(1e-9, min(self._with_neighbours(1) for _ in range(_WARM_UP))))

    def run(self, count: int) -> float:
        """Seconds of one of `count` calls, less those of its neighbours."""
        return max(self._with_neighbours(count) - self._neighbours.alone, _LEAST)

    def _with_neighbours(self, count: int) -> float:
        """The same with them, less the time in which another process had the cores.

        The calling thread spins where it waits for others, so that its time on a core is how long a call takes; the
        mean of all threads' times is as much where it had to give its core away meanwhile. Threads that find nothing to
        do sleep: that mean alone would take a kernel that one thread computes for half as long as it is.
        """
        total = 0.0
        for _ in range(count):
            arguments = self._arguments[self._next % len(self._arguments)]
            self._next += 1
            caller, all_ = time.thread_time(), time.process_time()
            self._neighbours.before(arguments[0])
            self._function(*arguments)
            self._neighbours.behind(arguments[-1])
            total += max(time.thread_time() - caller, (time.process_time() - all_) / self._threads)
        return total / count


@dataclass(frozen=True)
class Emulated:
    """An AArch64 board, cycle by cycle (nnc.simulation.emulated): the same in every run, on any machine."""

    target: Target
    threads: int
    source: Source = "emulated"

    def open(self, machine: Any) -> Opened:
        import tvm

        from nnc.simulation import emulated

        emulated.require(self.target, self.threads)
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
