"""caches.c against what caches are: the last lines that were used."""

import ctypes
import platform
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from nnc.lowering import cross
from nnc.simulation import emulated

SOURCE = Path(emulated.__file__).with_name("caches.c")


class Traffic(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "accesses",
            "l2_streamed",
            "l2_alone",
            "l3_streamed",
            "l3_alone",
            "memory_streamed",
            "memory_alone",
            "written_back",
        )
    ]

    @property
    def l2(self) -> int:
        return int(self.l2_streamed + self.l2_alone)

    @property
    def l3(self) -> int:
        return int(self.l3_streamed + self.l3_alone)

    @property
    def memory(self) -> int:
        return int(self.memory_streamed + self.memory_alone)


class Caches:
    """A copy of the simulated caches."""

    def __init__(self, library: Path, text: str) -> None:
        self._code = ctypes.CDLL(str(library))
        self._code.CachesOpen.restype = ctypes.c_bool
        self._code.CachesTraffic.restype = ctypes.POINTER(Traffic)
        self.is_open = self._code.CachesOpen(text.encode())
        if self.is_open:
            self._code.CachesClear()

    def access(self, address: int, size: int = 8, core: int = 0, store: bool = False) -> None:
        self._code.CachesAccess(core, ctypes.c_uint64(address), size, store)

    def traffic(self, core: int = 0) -> Traffic:
        found: Traffic = self._code.CachesTraffic(core).contents
        return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("caches") / "caches.so"
    cross.run([*cross.compiler(platform.machine()), "-O2", "-fPIC", "-shared", SOURCE, "-o", library])
    return library


@pytest.fixture
def caches(compiled: Path, tmp_path: Path):
    """Opens caches; each is a library of its own, because they are the library's variables."""

    def make(text: str) -> Caches:
        copy = tmp_path / f"caches{len(list(tmp_path.iterdir()))}.so"
        copy.write_bytes(compiled.read_bytes())
        return Caches(copy, text)

    return make


@pytest.mark.parametrize(("sets", "ways"), [(1, 1), (16, 4), (48, 3), (64, 16)])
def test_misses_are_those_of_the_least_recently_used(caches, sets: int, ways: int) -> None:
    made, rng, misses = caches(f"{sets}x{ways}:64x8:0/0x0"), np.random.default_rng(sets), 0
    lines: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(sets)]
    for line in rng.integers(0, 3 * sets * ways, 4000).tolist():
        found = lines[line % sets]
        misses += line not in found
        found[line] = None
        found.move_to_end(line)
        if len(found) > ways:
            found.popitem(last=False)
        made.access(64 * line + 8 * (line % 8), store=line % 3 == 0)
    seen = made.traffic()
    assert seen.accesses == 4000
    assert seen.l2 + seen.memory == misses


def test_a_stream_is_seen_coming_and_what_is_far_apart_is_not(caches) -> None:
    made = caches("64x4:256x8:0/0x0")
    for address in range(0, 64 * 1000, 8):
        made.access(address)
    assert (made.traffic().memory_streamed, made.traffic().memory_alone) == (999, 1)
    rng = np.random.default_rng(0)
    for line in rng.permutation(5000)[:500].tolist():
        made.access(1 << 30 | line * 64 * 50)
    assert made.traffic().memory_alone == 501


def test_every_level_keeps_what_fits(caches) -> None:
    made = caches("16x4:64x4:0/256x16")  # 4 kB, 16 kB, 256 kB
    for size, place in ((2 << 10, None), (8 << 10, "l2"), (128 << 10, "l3"), (1 << 20, "memory")):
        counts = []
        for _ in range(3):
            for address in range(0, size, 64):
                made.access(address)
            counts.append({name: getattr(made.traffic(), name) for name in ("l2", "l3", "memory")})
        again = {name: counts[2][name] - counts[1][name] for name in counts[0]}
        assert again == {name: (size // 64) * (name == place) for name in again}


def test_what_was_written_goes_back_once(caches) -> None:
    made = caches("16x4:64x4:0/0x0")
    for address in range(0, 1 << 16, 64):
        made.access(address, store=True)
    for address in range(1 << 20, (1 << 20) + (1 << 16), 64):
        made.access(address)
    assert made.traffic().written_back == (1 << 16) // 64


def test_an_access_over_the_end_of_a_line_is_two(caches) -> None:
    made = caches("16x4:64x4:0/0x0")
    made.access(60, 8)
    assert (made.traffic().accesses, made.traffic().memory) == (2, 2)


def test_a_core_that_writes_takes_the_line_from_the_others(caches) -> None:
    made = caches("16x4:64x4:0/16x4:64x4:1/0x0")
    made.access(0, core=0)
    made.access(0, core=1)
    assert (made.traffic(0).memory, made.traffic(1).l3, made.traffic(1).memory) == (1, 1, 0)  # from core 0
    made.access(0, core=0, store=True)
    made.access(0, core=0)
    assert made.traffic(0).memory == 1  # it still had it
    made.access(0, core=1)
    assert (made.traffic(1).l3, made.traffic(1).memory) == (2, 0)
    made.access(0, core=0, store=True)
    made.access(0, core=1, store=True)
    made.access(0, core=0)
    assert made.traffic(0).l3 == 1


def test_cores_that_share_level_2_find_each_others_lines_there(caches) -> None:
    made = caches("16x4:64x4:0/16x4:64x4:0/0x0")
    made.access(0, core=0)
    made.access(0, core=1)
    assert (made.traffic(1).l2, made.traffic(1).memory) == (1, 0)


@pytest.mark.parametrize("text", ["", "0x4:64x4:0/0x0", "16x4:64x4:1/0x0", "16x4:64x4:0", "16x4,64x4,0/0x0"])
def test_texts_that_describe_no_caches_are_refused(caches, text: str) -> None:
    assert not caches(text).is_open
