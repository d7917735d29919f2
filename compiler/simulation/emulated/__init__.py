"""Latency of compiled code, instruction by instruction: level 2, `emulated`, beside the roofline of `analytic`.

The library runs in QEMU under a plugin, which counts how often every block of instructions is executed and simulates
the caches of all cores that share the work (plugin.c, caches.c). LLVM's scheduling model of the core says how many
cycles a block takes (mca.py), and the lines that the caches miss say how long cores wait (latency.py). All that a
schedule decides is in it: registers, unrolling, tiles, layouts, and how work is spread over unequal cores.

`network` times all kernels of a library that nnc built, as they follow each other. `kernel` times one kernel, which is
what a search for schedules asks for again and again:

    from nnc.simulation import emulated

    # `kernel.o` from tvm.tirx.build(...).write_to_file, or a linked library; "+" marks what the layer before computed,
    # which is in the caches when the kernel starts, while weights come from memory.
    arguments = ["+float32:1,8,56,56,4", "float32:16,8,3,3,4,4", "+float32:1,16,56,56,4"]
    step = emulated.kernel(Path("kernel.o"), "conv2d_0", arguments, target, threads=1)
    step.milliseconds, step.cycles, step.ipc, step.l1_misses, step.dram_bytes, step.bound

The same kernel costs the same in every run. A trial takes the time of QEMU, 10 to 20 ns per instruction, and that of
llvm-mca for blocks that no trial had before. `caches=False` leaves the caches out: it takes half as long, and tells
kernels apart by their instructions alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from nnc.lowering import cross
from nnc.simulation.emulated import emulation, latency, mca
from nnc.simulation.emulated.core import chip
from nnc.simulation.emulated.latency import Step
from nnc.target import Target

__all__ = ["Step", "kernel", "network", "require"]

# A network that is so many times larger than the caches finds nothing there of the inference before.
_FORGOTTEN = 4


def require(target: Target, threads: int | None = None) -> None:
    """Raise NncError where the target's code can't be emulated on so many cores, or QEMU or llvm-mca is missing.

    Without `threads`, on as many as the target says.
    """
    emulation.emulator(chip(target, threads or target.unit.threads).isa)
    for name in ("llvm-mca", "llvm-mc"):
        mca.tool(name)


def network(library: Path, target: Target, threads: int | None = None, *, caches: bool = True) -> list[Step]:
    """What every step of a library that nnc built costs in one inference, in the order of the report's `kernels`.

    `threads` cores of the target's unit (default: the target's) share the work. Raises NncError where the target's
    code can't be emulated, where a tool is missing, or where the library does not run.
    """
    cores = chip(target, threads or target.unit.threads)
    warm = int(caches and library.is_file() and library.stat().st_size < _FORGOTTEN * cores.cache_bytes)
    return latency.steps(emulation.run(library, cores, warm=warm, caches=caches), cores)


def kernel(
    library: Path,
    function: str,
    arguments: Sequence[str],
    target: Target,
    threads: int = 1,
    *,
    caches: bool = True,
) -> Step:
    """What one call of the kernel `function` in `library`, a shared library or an object file, costs.

    `arguments` are its arrays in order, each "TYPE:SHAPE" such as "float32:1,8,56,56,4", after a "+" where the array is
    in the caches when the kernel starts, as far as it fits. Raises NncError as `network` does, and where the library
    has no such function or it refuses the arrays.
    """
    cores = chip(target, threads)
    if library.suffix != ".o":
        return _only(latency.steps(emulation.run(library, cores, [function, *arguments], caches=caches), cores))
    with tempfile.TemporaryDirectory(prefix="nnc-") as name:
        linked = Path(name) / "kernel.so"
        cross.link([library], linked, target)
        return _only(latency.steps(emulation.run(linked, cores, [function, *arguments], caches=caches), cores))


def _only(steps: Sequence[Step]) -> Step:
    (step,) = steps
    return step
