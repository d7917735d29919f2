"""What the plugin wrote down: the blocks of instructions that were executed, how often by whom, and what caches saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self

from nnc.errors import NncError
from nnc.simulation.emulated.isa import Isa

_PAGE = 4096

_LONGEST_READ = 8  # bytes of an instruction that QEMU reads at once


@dataclass
class Traffic:
    """Lines of 64 bytes that a core got from each level below its first data cache: `Traffic` of caches.h."""

    accesses: int = 0
    l2_streamed: int = 0
    """Beside a line that the core missed before, so that a prefetcher sees it coming."""
    l2_alone: int = 0
    l3_streamed: int = 0
    """From level 3, or from the caches of another core."""
    l3_alone: int = 0
    memory_streamed: int = 0
    memory_alone: int = 0
    written_back: int = 0
    """To memory."""

    def add(self, other: Traffic) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def l1_misses(self) -> int:
        return self.l2_streamed + self.l2_alone + self.l2_misses

    @property
    def l2_misses(self) -> int:
        return self.l3_streamed + self.l3_alone + self.memory_streamed + self.memory_alone


@dataclass
class Share:
    """What one worker did of one step."""

    traffic: Traffic = field(default_factory=Traffic)
    counts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """By block, how often it was executed."""


Block = tuple[bytes, ...]
"""The instructions of a block, as they are in memory."""


@dataclass(frozen=True)
class Trace:
    """One run."""

    blocks: list[Block]
    shares: dict[tuple[int, int], Share]
    """By step and worker: 0 is the first core where it works alone, 1 the first core among others, and so on."""

    @classmethod
    def read(cls, path: Path, isa: Isa) -> Self:
        """Raises NncError where the file ends early."""
        addresses: list[int] = []
        blocks: list[Block] = []
        shares: defaultdict[tuple[int, int], Share] = defaultdict(Share)
        try:
            lines = path.read_text("ascii").splitlines()
            if not lines or lines.pop() != "E":
                raise ValueError("no end")
            for line in lines:
                kind, *words = line.split(" ")
                if kind == "B":
                    addresses.append(int(words[0], 16))
                    blocks.append(tuple(map(bytes.fromhex, words[1:])))
                else:
                    share = shares[int(words[0]), int(words[1])]
                    share.traffic.add(Traffic(*(int(words[index]) for index in range(2, 10))))
                    for number, count in (entry.split(":") for entry in words[10:]):
                        share.counts[int(number)] += int(count)
        except (OSError, ValueError, TypeError, IndexError) as error:
            raise NncError(f"the emulation was cut short: {path.name} is damaged", "try again") from error
        return cls(_joined(addresses, blocks, shares.values(), isa), dict(shares))


def _joined(addresses: list[int], blocks: list[Block], shares: Iterable[Share], isa: Isa) -> list[Block]:
    """The blocks, those that QEMU cut in the middle put together again; the second part's counts become zero.

    QEMU ends a block at the end of a page, and after 512 instructions: loops that are unrolled fall into pieces.
    """
    starts = {address: number for number, address in enumerate(addresses)}
    made, listed = [_executed(*each, starts) for each in zip(addresses, blocks, strict=True)], list(shares)
    for number in sorted(range(len(blocks)), key=lambda number: -addresses[number]):  # the last parts first
        after = starts.get(addresses[number] + sum(map(len, made[number])))
        if after is None or isa.is_branch(made[number][-1]):
            continue
        if all(share.counts.get(number, 0) == share.counts.get(after, 0) for share in listed):
            made[number] += made[after]
            for share in listed:
                share.counts.pop(after, None)
    return made


def _executed(address: int, block: Block, starts: Container[int]) -> Block:
    """A block without an instruction that crosses the end of a page: QEMU tells of those of its first bytes that it had
    read, and leaves it to the next block."""
    end = address + sum(map(len, block))
    is_cut = -end % _PAGE < _LONGEST_READ and len(block) > 1 and end not in starts and end - len(block[-1]) in starts
    return block[:-1] if is_cut else block
