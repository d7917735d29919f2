"""Tuning records: what a plan of a workload takes on a machine, one line of JSON each.

A file is only ever appended to, whole lines under a lock, so that two processes can write it and a killed one loses
nothing that it had measured. Lines that are damaged, or that another version made, are skipped with a warning.

Plans are compared by how many times faster than the default plan they are, both measured in turns: this says the same
on a busy machine as on an idle one.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import resources
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from nnc.cache import cache_folder
from nnc.digests import digest
from nnc.display import units
from nnc.display.console import say
from nnc.errors import NncError, system_reason
from nnc.target import Target

if TYPE_CHECKING:
    from nnc.lowering.workload import Workload

PLANS = 1
"""The version of what plans mean: raise it where a template computes in another way with a plan that it had before."""

Source = Literal["network", "measured", "rpc", "emulated"]
"""How a plan was timed: in a whole network, alone on this machine, alone on a board, alone in emulation."""

NOISE: Mapping[Source, float] = {"network": 1.01, "measured": 1.02, "rpc": 1.02, "emulated": 1.0}
"""Of many plans that are as fast as the default one, the luckiest seems this much faster."""
_EMULATED, _ALONE, _NETWORK = range(3)

Warn = Callable[[str], None]
Json = Mapping[str, Any]


def machine_of(target: Target, threads: int) -> dict[str, Any]:
    """What a plan depends on beside its workload: a machine without these instructions must not get it.

    On another core with the same instructions it runs, and may be fast: see `alike`.
    """
    unit = target.unit
    return {
        "core": unit.clusters[0].core,
        "architecture": unit.architecture,
        "mcpu": unit.tvm.get("mcpu", "generic"),
        "vector_bits": unit.vector_bits,
        "vector_registers": unit.vector_registers,
        "threads": threads,
    }


def versions() -> dict[str, Any]:
    """What made the records of today."""
    return {"plans": PLANS, "tvm": version("apache-tvm")}


@dataclass(frozen=True)
class Record:
    """One trial."""

    workload: Json
    """As `nnc.lowering.workload.Workload.key` gives it."""
    machine: Json
    plan: Json
    speed: float | None
    """Times the default plan's; None where the plan could not be built or run."""
    ms: float | None
    """Of one call, milliseconds."""
    source: Source
    versions: Json = field(default_factory=versions)

    @cached_property
    def place(self) -> str:
        """What the record is about: records of one place compete."""
        return place(self.workload, self.machine)

    @property
    def is_faster(self) -> bool:
        """Than the default plan, by more than times vary."""
        return self.speed is not None and self.speed > NOISE[self.source]

    @property
    def proof(self) -> int:
        """Of what is known in several ways, that counts which has the most: in a network, alone, in emulation."""
        return {"network": _NETWORK, "emulated": _EMULATED}.get(self.source, _ALONE)

    @property
    def line(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True).encode() + b"\n"


def place(workload: Json, machine: Json) -> str:
    return canonical([workload, machine])


def canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


# -- files


def folder() -> Path:
    """Where the user's own records are: NNC_TUNING, or nnc/tuning in XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get("NNC_TUNING"):
        return Path(given)
    return cache_folder() / "tuning"


def own_file(target: Target) -> Path:
    """The user's own records of a target."""
    return folder() / f"{target.name}.jsonl"


def append(path: Path, records: Iterable[Record]) -> None:
    """Add records to a file, which is made where it is missing; all of them are there afterwards, or the disk is full.

    Raises NncError where the file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(_mended(file) + b"".join(record.line for record in records))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise NncError(f"{path}: {system_reason(error)}", "--records or NNC_TUNING names another place") from error


def _mended(file: Any) -> bytes:
    """What ends the line that a killed process left half-written."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def read(path: Path, warn: Warn = say) -> list[Record]:
    """The records of a file; none where it is missing. Raises NncError where it can't be read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise NncError(f"{path}: {system_reason(error)}", "give the file of nnc records --export") from error
    return parse(content, str(path), warn)


def parse(content: bytes, name: str, warn: Warn = say) -> list[Record]:
    """The records of a file's bytes; `name` begins the warnings."""
    lines = [line for line in content.split(b"\n") if line.strip()]
    found = [record for line in lines if (record := _record(line)) is not None]
    if damaged := len(lines) - len(found):
        warn(f"{name}: {units.plural(damaged, 'damaged line')} skipped")
    current = [record for record in found if record.versions == versions()]
    if others := len(found) - len(current):
        warn(f"{name}: {units.plural(others, 'record')} of another version skipped; nnc tune makes new ones")
    return current


def _record(line: bytes) -> Record | None:
    """The record of a line; None where a part is missing that others rely on."""
    try:
        content = json.loads(line)
        record = Record(**content)
    except (ValueError, TypeError):
        return None
    figures = (each for each in (record.speed, record.ms) if each is not None)
    numbers = all(isinstance(each, int | float) and 0 < each < math.inf for each in figures)
    tables = all(isinstance(each, dict) for each in (record.workload, record.machine, record.plan, record.versions))
    if not numbers or not tables or "versions" not in content or record.source not in get_args(Source):
        return None
    whole = "op" in record.workload and isinstance(record.workload.get("problem"), dict) and "template" in record.plan
    return record if whole else None


def shipped(warn: Warn = say) -> list[Record]:
    """The records that come with nnc."""
    files = sorted(resources.files("nnc.targets").iterdir(), key=lambda each: each.name)
    return [r for file in files if file.name.endswith(".jsonl") for r in parse(file.read_bytes(), file.name, warn)]


# -- what is known


def alike(record: Record, machine: Json) -> bool:
    """Whether a record's plan runs on a machine: it was made on one that differs in its core at most."""
    return {**record.machine, "core": None} == {**machine, "core": None}


class Records:
    """The best plan of every workload on one machine: that of its own core before any others, what ran in a network
    before what ran alone, and this before what was emulated; of equals, those of the user first.

    Times of other cores say nothing about layouts.
    """

    def __init__(self, own: Iterable[Record], others: Iterable[Record], machine: Json) -> None:
        self.machine = machine
        self.best: dict[str, Record] = {}
        self._networks: tuple[dict[str, float], ...] = ({}, {})  # milliseconds, of the user and of others
        self._kernels: dict[bool, dict[str, float]] = {True: {}, False: {}}  # by whether they ran on the machine
        sources = [[record for record in each if alike(record, machine)] for each in (own, others)]
        for is_own_core, proof in product((False, True), sorted({record.proof for each in sources for record in each})):
            for source, networks in reversed(list(zip(sources, self._networks, strict=True))):
                fitting = (each for each in source if (each.machine == machine, each.proof) == (is_own_core, proof))
                found = {place(record.workload, machine): record for record in best(fitting).values()}
                self.best |= found
                if is_own_core:
                    times = networks if proof == _NETWORK else self._kernels[proof > _EMULATED]
                    times |= {key: record.ms for key, record in found.items() if record.ms is not None}

    @classmethod
    def load(cls, target: Target, threads: int | None, warn: Warn = say, file: Path | None = None) -> Records:
        """What nnc ships and what the user's own file, or `file`, holds."""
        machine = machine_of(target, threads or target.unit.threads)
        return cls(read(file or own_file(target), warn), shipped(warn), machine)

    def find(self, workload: Any) -> Json | None:
        """The plan of a workload (nnc.lowering.workload.Workload) where one is faster than the default."""
        found = self.best.get(place(workload.key, self.machine))
        return found.plan if found is not None and found.is_faster else None

    def times(self, workloads: Iterable[Workload]) -> Callable[[Workload], float]:
        """Milliseconds of a workload with its best plan, infinity where none is known, all of them taken in the same
        way: in networks where all of `workloads` ran in some, of the user or else of others; alone where any did; or in
        emulation.
        """
        keys = [place(workload.key, self.machine) for workload in workloads]
        networks = (each for each in self._networks if keys and each.keys() >= set(keys))
        alone = self._kernels[any(key in self._kernels[True] for key in keys)]
        times = next(networks, alone)
        return lambda workload: times.get(place(workload.key, self.machine), math.inf)

    @property
    def digest(self) -> str:
        """Equal where the same plans are known, and the same times."""
        plans = {key: record.plan for key, record in self.best.items()}
        return digest(canonical([plans, self._networks, list(self._kernels.values())]))


def best(records: Iterable[Record]) -> dict[str, Record]:
    """The fastest record of every place, of those that ran in a network before those that ran alone, and of these
    before those that were emulated.

    Of two trials of one plan in one of these ways, the later one counts.
    """
    latest = {(record.place, canonical(record.plan), record.proof): record for record in records}
    found: dict[str, Record] = {}
    for record in latest.values():
        other = found.get(record.place)
        if record.speed is not None and (other is None or _rank(record) > _rank(other)):
            found[record.place] = record
    return found


def _rank(record: Record) -> tuple[int, float]:
    return record.proof, record.speed or 0.0
