"""From a program of GPU kernels to files: kernels as source, weights, and what to launch on which memory.

kernels.cl     OpenCL C; of a CUDA unit too, the same kernels for a machine without such a GPU
kernels.cu     CUDA C, and kernels.ptx, what NVRTC makes of it for the unit
weights.bin    the constants, each at a multiple of `Gpu.alignment` bytes
network.json   the steps in order: `network.py` describes it
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs
import tvm

from nnc.lowering.build import Built, Kernel, kernel_names
from nnc.lowering.gpu import network, nvrtc
from nnc.lowering.gpu.device import HALVES, Compiled, compile_function
from nnc.lowering.gpu.machine import machine as known_machine
from nnc.lowering.gpu.threads import on_threads
from nnc.lowering.gpu.unit import gpu_unit
from nnc.lowering.kernels.registers import scratch_of_threads
from nnc.lowering.lower import lower
from nnc.lowering.program import Call, Copy, Program, plan_memory
from nnc.lowering.weights import Weights
from nnc.target import Target

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GpuKernel(Kernel):
    """A step with what its kernel takes of a multiprocessor, as the assembler says it; None where there is none."""

    threads: int = 0
    registers: int | None = None
    shared_bytes: int | None = None
    spilled_bytes: int | None = None


def build(
    graph: gs.Graph,
    target: Target,
    out: Path,
    *,
    threads: int | None = None,
    progress: Progress = lambda step, done, total: None,
) -> Built:
    """Compile the graph for the target's GPU into files of `out`; `threads` is for CPUs.

    Raises NncError where the unit or a node is not supported, or where a tool is missing; then nothing is written.
    """
    machine = known_machine(target)
    unit = gpu_unit(target, machine)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=out) as name:
        folder = Path(name)
        weights = Weights(folder, frozenset(), unit.alignment)
        with scratch_of_threads():
            program = lower(graph, unit, machine, weights.place, progress)
        names, plan = kernel_names(program), plan_memory(program)
        compiled = _compiled(program, names, machine, progress)
        resources = _sources(program, names, compiled, machine, folder, progress)
        launched = {key: compiled[name] for key, name in names.items()}
        described = network.describe(program, plan, weights.file_bytes, launched)
        (folder / network.FILE).write_text(described, "utf-8")
        files = sorted(folder.iterdir())
        for file in files:
            os.replace(file, out / file.name)
    kernels = [_kernel(step, names, compiled, resources) for step in program.steps]
    return Built([out / file.name for file in files], kernels, plan.bytes, weights.bytes, weights.bytes)


def _compiled(
    program: Program, names: Mapping[Hashable, str], machine: tvm.target.Target, progress: Progress
) -> dict[str, Compiled]:
    functions = {names[call.key]: call.function for call in program.calls}
    made = {}
    for done, (name, function) in enumerate(functions.items()):
        progress("compile kernels", done, len(functions))
        made[name] = compile_function(name, on_threads(function), machine)
    progress("compile kernels", len(functions), len(functions))
    return made


def _sources(
    program: Program,
    names: Mapping[Hashable, str],
    compiled: Mapping[str, Compiled],
    machine: tvm.target.Target,
    folder: Path,
    progress: Progress,
) -> dict[str, nvrtc.Resources]:
    """Write the kernels; returns what each takes, where an assembler says it."""
    if machine.kind.name == "opencl":
        (folder / "kernels.cl").write_text(_opencl(compiled), "utf-8")
        return {}
    (folder / "kernels.cu").write_text(_cuda(compiled), "utf-8")
    emulated = tvm.target.Target({"kind": "opencl"}, host=machine.host)
    (folder / "kernels.cl").write_text(_opencl(_compiled(program, names, emulated, progress)), "utf-8")
    progress("assemble the kernels", 0, 1)
    ptx = nvrtc.ptx(folder / "kernels.cu", str(machine.attrs["arch"]))
    if ptx is None:
        return {}
    (folder / "kernels.ptx").write_text(ptx, "utf-8")
    return nvrtc.resources(folder / "kernels.ptx", str(machine.attrs["arch"]))


_DP4A = """\
inline int __dp4a(int a, int b, int total) {
  const int4 products = convert_int4(as_char4(a)) * convert_int4(as_char4(b));
  return total + products.x + products.y + products.z + products.w;
}
"""


def _opencl(compiled: Mapping[str, Compiled]) -> str:
    """All kernels in one source, with what they call of CUDA's functions."""
    bodies = [each.source.strip() + "\n" for each in compiled.values()]
    called = {"__dp4a(": _DP4A, "_half(": HALVES}
    return "\n".join([code for name, code in called.items() if any(name in body for body in bodies)] + bodies)


_PREAMBLE = """\
typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t; typedef long long int64_t; typedef unsigned long long uint64_t;
typedef unsigned char uchar; typedef unsigned short ushort; typedef unsigned int uint;
#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fffffff)
#define CUDART_INF __longlong_as_double(0x7ff0000000000000LL)
#define CUDART_NAN __longlong_as_double(0x7fffffffffffffffLL)
"""


def _cuda(compiled: Mapping[str, Compiled]) -> str:
    """All kernels in one source, with the types that they use instead of the headers that TVM would include."""
    bodies = [each.source[each.source.index('extern "C"') :].strip() + "\n" for each in compiled.values()]
    halves = ["#include <cuda_fp16.h>\n"] if any("half" in body for body in bodies) else []
    return "\n".join([*halves, _PREAMBLE, *bodies])


def _kernel(
    step: Call | Copy,
    names: Mapping[Hashable, str],
    compiled: Mapping[str, Compiled],
    resources: Mapping[str, nvrtc.Resources],
) -> Kernel:
    result = step.results[0]
    if isinstance(step, Copy):
        return GpuKernel("copy", "copy", "Copy", step.nodes, "plain", result.dtype, result.shape)
    name = names[step.key]
    launch = compiled[name].launches[-1]
    x, y, z = launch.group
    taken = resources.get(launch.kernel, nvrtc.Resources(None, None, None))
    described = (name, step.template, step.op, step.nodes, step.layout, result.dtype, result.shape)
    return GpuKernel(*described, x * y * z, taken.registers, taken.shared_bytes, taken.spilled_bytes)
