"""threads.c: every task of a kernel is done once, whoever calls, and however often the library comes and goes."""

import _ctypes
import ctypes
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from nnc import graph as graphs
from nnc import target, testing, verify
from nnc.lowering import build, cross
from nnc.lowering.build import _tasks
from nnc.lowering.library import Library
from nnc.session import Session

_NETWORK = """
#include "nnc.h"
__attribute__((visibility("default"))) int (*__TVMBackendParallelLaunch)(int (*)(int, void*, void*), void*, int);
const NncNetwork nnc_network = {.threads = 2, .tasks = %d};
"""

Task = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int32), ctypes.c_void_p)
Launch = ctypes.CFUNCTYPE(ctypes.c_int, Task, ctypes.c_void_p, ctypes.c_int)

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads are Linux's")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


counted = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")


def threads_now() -> set[str]:
    return {path.name for path in Path("/proc/self/task").iterdir()}


class Pool:
    """threads.c in a library of its own."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.start = library.nnc_start_threads
        self._launch = ctypes.c_void_p.in_dll(library, "__TVMBackendParallelLaunch")

    def run(self, task: Callable[[int, int], int], count: int = 0) -> int:
        """The status of a job; `task` gets its number and how many there are."""
        called = Task(lambda index, group, data: task(index, group[2]))  # a pointer comes first
        return Launch(self._launch.value)(called, None, count)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    def compiled(tasks: int) -> Path:
        folder = tmp_path_factory.mktemp("threads")
        for name in ("threads.c", "nnc.h"):
            (folder / name).write_text(resources.files("nnc.lowering").joinpath(name).read_text("utf-8"), "utf-8")
        (folder / "network.c").write_text(_NETWORK % tasks)
        flags = [*cross.includes(), "-std=gnu11", "-O2", "-pthread", "-fPIC", "-shared", "-Wall", "-Werror"]
        sources = [folder / "threads.c", folder / "network.c"]
        cross.run([*cross.compiler(platform.machine()), *flags, *sources, "-o", folder / "threads.so"])
        return folder / "threads.so"

    return compiled


@pytest.fixture(scope="module", params=[1, 8])
def pool(made: Callable[[int], Path], request: pytest.FixtureRequest) -> Iterator[Pool]:
    library = Pool(ctypes.CDLL(str(made(request.param))))
    assert library.start(2) == min(2, CORES)
    yield library
    library.start(1)


def test_every_task_is_done_once(pool: Pool) -> None:
    for count in (1, 2, 3, 7, 64, 1000, 70_000):
        done: Counter[int] = Counter()
        assert pool.run(lambda index, of: done.update([index]) or 0, count) == 0  # noqa: B023
        assert done == Counter(range(count))


def test_kernels_learn_how_many_tasks_there_are(pool: Pool) -> None:
    seen: set[int] = set()
    for _ in range(300):
        pool.run(lambda index, of: seen.add(of) or 0)
    assert len(seen) == 1
    assert seen.pop() % min(2, CORES) == 0


def test_a_task_that_fails_fails_the_job_and_not_the_next(pool: Pool) -> None:
    assert pool.run(lambda index, of: int(index == 5), 8) == -1
    assert pool.run(lambda index, of: 0, 8) == 0


def test_a_job_in_a_job_and_two_callers_are_done(pool: Pool) -> None:
    done: Counter[int] = Counter()
    assert pool.run(lambda index, of: pool.run(lambda inner, _: done.update([inner]) or 0, 5), 4) == 0
    assert done == Counter({index: 4 for index in range(5)})
    with ThreadPoolExecutor(2) as callers:
        counts = [callers.submit(_counted, pool) for _ in range(2)]
    assert [each.result() for each in counts] == [200 * 16] * 2


def _counted(pool: Pool) -> int:
    done: Counter[int] = Counter()
    for _ in range(200):
        pool.run(lambda index, of: done.update([index]) or 0, 16)
    return done.total()


@counted
def test_a_library_that_is_unloaded_takes_its_threads_along(made: Callable[[int], Path]) -> None:
    before = threads_now()
    library = ctypes.CDLL(str(made(1)))
    pool = Pool(library)
    pool.start(2)
    assert pool.run(lambda index, of: 0) == 0
    own = threads_now() - before
    assert len(own) == min(2, CORES) - 1
    _ctypes.dlclose(library._handle)
    assert not own & threads_now()


@counted
def test_threads_end_with_another_number_of_them(pool: Pool) -> None:
    own: set[str] = set()
    for count in (2, 1, 1000, 2):
        before = threads_now()  # some are of other libraries, and end when they like
        assert pool.start(count) == min(count, CORES)
        assert pool.run(lambda index, of: 0, 16) == 0
        assert not own & threads_now()
        own = threads_now() - before
        assert len(own) == min(count, CORES) - 1


def test_unequal_cores_have_more_tasks_than_threads() -> None:
    qcs605 = target.load("qcs605")
    assert _tasks(qcs605, 2) == 1  # Cortex-A75 alone
    assert _tasks(qcs605, 8) > 1
    assert _tasks(target.load("x86"), 2) == 1


# --- in compiled networks

CONV = """net (float[1, 8, 16, 16] x) => (float[1, 32, 16, 16] y)
<float[32, 8, 3, 3] w> { y = Conv<pads = [1, 1, 1, 1]>(x, w) }"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = graphs.from_model(testing.model(CONV))
    return build(graph, target.load("x86"), tmp_path_factory.mktemp("network"), threads=2).files[0]


def test_callers_at_the_same_time_get_their_own_outputs(network: Path) -> None:
    library, rng = Library(network, 2), np.random.default_rng(0)
    inputs = [rng.standard_normal((1, 8, 16, 16), np.float32) for _ in range(4)]
    expected = [library.run([x])[0] for x in inputs]
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda i: library.run([inputs[i % 4]])[0], range(64)))
    for index, output in enumerate(found):
        np.testing.assert_array_equal(output, expected[index % 4])


_MANY = """
import pathlib, shutil, sys
import numpy as np
from nnc.lowering.library import Library
for index in range(10):
    copy = shutil.copy(sys.argv[1], pathlib.Path(sys.argv[2]) / f"{index}.so")
    Library(pathlib.Path(copy), 2).run([np.ones((1, 8, 16, 16), np.float32)])
"""


def test_a_program_with_many_libraries_ends(network: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _MANY, str(network), str(tmp_path)], timeout=120, check=True)


def test_a_fork_computes_alone(network: Path) -> None:
    library, x = Library(network, 2), np.ones((1, 8, 16, 16), np.float32)
    expected = library.run([x])[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(library.run([x])[0], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_large_copies_are_shared(tmp_path: Path) -> None:
    """Rows of a concatenation; few bytes are copied by whoever comes."""
    text = """net (float[3, 8, 32, 32] x, float[3, 2, 3, 3] z) => (float[3, 16, 32, 32] y, float[3, 4, 3, 3] w)
        { y = Concat<axis = 1>(x, x) w = Concat<axis = 1>(z, z) }"""
    graph = testing.graph(text)
    built = build(graph, target.load("x86"), tmp_path, threads=2)
    assert [kernel.template for kernel in built.kernels] == ["copy"] * 4
    library = Library(built.files[0], 2)
    launch = ctypes.c_void_p.in_dll(ctypes.CDLL(str(built.files[0])), "__TVMBackendParallelLaunch")
    address, counts = launch.value, []

    def counting(task: Callable[..., int], data: int, count: int) -> int:
        counts.append(count)
        return Launch(address)(task, data, count)

    counted_launch = Launch(counting)
    inputs = verify.probe_inputs(graph, 0)
    launch.value = ctypes.cast(counted_launch, ctypes.c_void_p).value
    try:
        results = library.run(list(inputs.values()))
    finally:
        launch.value = address
    for expected, found in zip(Session(graph).run(inputs).values(), results, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert counts == [0, 0]
