"""From what was executed to time: cycles of the blocks, waiting for caches and memory, and sharing among cores.

The model is that of Execution, Cache and Memory (Stengel et al., "Quantifying performance bottlenecks of stencil
computations using the Execution-Cache-Memory model", ICS 2015): what a core computes overlaps with moving lines into
its first cache, its loads and stores do not, because both use that cache. A line takes as long as the level that it
comes from allows, whose figure in the target is what a core gets from there in the long run. Prefetchers see streams
coming, so that their lines cost bandwidth alone. A line that comes out of the blue costs its latency as well, shared by
all such misses that fit into the window of instructions of a core that runs ahead (Karkhanis and Smith, "A First-Order
Superscalar Processor Model", ISCA 2004); there a hit of level 2 is no miss worth waiting for. A core that runs in order
waits for each.

Mispredicted branches and translations of addresses are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnc.simulation.emulated import mca
from nnc.simulation.emulated.core import LINE, Chip, Core
from nnc.simulation.emulated.trace import Share, Trace, Traffic

# [I] Load-to-use times that AnandTech's charts show of phones with these cores (11441, 12420, 12614), rounded.
_L2_CYCLES, _L3_SECONDS, _MEMORY_SECONDS = 10, 20e-9, 130e-9

# [I] Misses of a core that the memory serves at the same time, at most.
_OUTSTANDING = 8

# Bits that QEMU moves in one access, at most.
_ACCESS_BITS = 64

# Bits of a line pass between cores when a kernel is spread: the job, its parts one by one, and what is left of them.
_HANDOVERS = 3

# Of the instructions of a step, those in the most frequent blocks that are simulated; the others take a cycle each.
_HOT = 0.998


@dataclass(frozen=True)
class Step:
    """What one kernel of a network costs."""

    milliseconds: float
    cycles: float
    """Of the core that takes the longest, waiting included."""
    instructions: int
    """Of all cores."""
    ipc: float
    """Instructions per cycle of that core while it does not wait."""
    accesses: int
    """Of words of at most 64 bits, by all cores."""
    l1_misses: int
    """Lines of 64 bytes, all cores."""
    l2_misses: int
    dram_bytes: int
    """Read and written."""
    bound: str
    """What takes the longest: "compute", "cache", "memory" or "dispatch"."""


@dataclass(frozen=True)
class _Spent:
    """What one worker did of a step, in cycles of its core."""

    compute: float
    cache: float
    """Loads, stores, and moving lines into the first cache."""
    memory: float
    waiting: float
    """For lines that no prefetcher saw coming."""
    instructions: int

    @property
    def cycles(self) -> float:
        return max(self.compute, self.cache + self.memory) + self.waiting

    @property
    def bound(self) -> str:
        if self.compute >= self.cache + self.memory and self.compute >= self.waiting:
            return "compute"
        return "cache" if self.cache >= self.memory + self.waiting else "memory"


def steps(trace: Trace, chip: Chip) -> list[Step]:
    """What every step of the traced run costs on the chip, in order. A step that was never seen costs nothing."""
    sizes = np.array([len(block) for block in trace.blocks])
    cycles = _block_cycles(trace, chip, sizes)
    made = []
    for number in range(1 + max((step for step, _ in trace.shares), default=-1)):
        shares = {worker: share for (step, worker), share in trace.shares.items() if step == number}
        made.append(_step(shares, chip, cycles, sizes))
    return made


def _block_cycles(trace: Trace, chip: Chip, sizes: np.ndarray) -> dict[mca.Processor, np.ndarray]:
    """Cycles of all blocks by processor; of those that hardly count, one per instruction."""
    hot: dict[mca.Processor, set[int]] = {}
    for (_, worker), share in trace.shares.items():
        hot.setdefault(_core(chip, worker).processor, set()).update(_hottest(share, sizes))
    found = {}
    for processor, chosen in hot.items():
        indices = sorted(chosen)
        found[processor] = sizes.astype(float)
        found[processor][indices] = mca.cycles_of_code([b"".join(trace.blocks[i]) for i in indices], processor)
    return found


def _hottest(share: Share, sizes: np.ndarray) -> list[int]:
    """The blocks with _HOT of the instructions, the most frequent first."""
    instructions = sorted(((count * int(sizes[i]), i) for i, count in share.counts.items()), reverse=True)
    wanted = _HOT * sum(amount for amount, _ in instructions)
    chosen: list[int] = []
    for amount, index in instructions:
        if wanted <= 0:
            break
        chosen.append(index)
        wanted -= amount
    return chosen


def _step(shares: dict[int, Share], chip: Chip, cycles: dict[mca.Processor, np.ndarray], sizes: np.ndarray) -> Step:
    spent = {worker: _spent(share, _core(chip, worker), cycles, sizes) for worker, share in shares.items()}
    seconds = {worker: each.cycles / _core(chip, worker).hertz for worker, each in spent.items()}
    traffic = Traffic()
    for share in shares.values():
        traffic.add(share.traffic)
    lines = traffic.memory_streamed + traffic.memory_alone + traffic.written_back
    alone, together = seconds.get(0, 0.0), {worker: each for worker, each in seconds.items() if worker}
    longest = max(together.values(), default=0.0)
    shared = max(traffic.l2_misses * chip.l3_line_seconds, lines * chip.memory_line_seconds)
    dispatch = (_HANDOVERS + len(together)) * 2 * _L3_SECONDS if len(together) > 1 else 0.0
    slowest = max(spent, key=lambda worker: seconds[worker], default=0)
    bound = spent[slowest].bound if spent else "compute"
    if shared > alone + longest:
        bound = "memory" if lines * chip.memory_line_seconds == shared else "cache"
    if dispatch > max(alone + longest, shared):
        bound = "dispatch"
    return Step(
        milliseconds=1e3 * (max(alone + longest, shared) + dispatch),
        cycles=spent[slowest].cycles if spent else 0.0,
        instructions=sum(each.instructions for each in spent.values()),
        ipc=spent[slowest].instructions / max(spent[slowest].compute, 1.0) if spent else 0.0,
        accesses=traffic.accesses,
        l1_misses=traffic.l1_misses,
        l2_misses=traffic.l2_misses,
        dram_bytes=lines * LINE,
        bound=bound,
    )


def _spent(share: Share, core: Core, cycles: dict[mca.Processor, np.ndarray], sizes: np.ndarray) -> _Spent:
    indices, counts = np.array(list(share.counts), int), np.array(list(share.counts.values()), float)
    seen, instructions = share.traffic, float(counts @ sizes[indices])
    near, far = seen.l2_streamed + seen.l2_alone, seen.l3_streamed + seen.l3_alone
    moved = near * core.l2_line_cycles + far * core.l3_line_cycles
    lines = seen.memory_streamed + seen.memory_alone + seen.written_back
    return _Spent(
        compute=float(counts @ cycles[core.processor][indices]),
        cache=seen.accesses * _ACCESS_BITS / core.processor.isa.load_bits + moved,
        memory=lines * core.memory_line_cycles,
        waiting=_waiting(seen, core, instructions),
        instructions=int(instructions),
    )


def _waiting(seen: Traffic, core: Core, instructions: float) -> float:
    """Cycles for lines that come out of the blue."""
    far = seen.l3_alone * _L3_SECONDS + seen.memory_alone * _MEMORY_SECONDS
    together = 1 + core.window * (seen.l3_alone + seen.memory_alone) / max(instructions, 1.0)
    near = 0 if core.window else seen.l2_alone * _L2_CYCLES
    return far * core.hertz / min(together, _OUTSTANDING) + near


def _core(chip: Chip, worker: int) -> Core:
    return chip.cores[max(worker - 1, 0)]
