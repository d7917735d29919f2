"""From a program to module.so: kernels compiled by TVM, weights as they are, and network.c, which calls one by one.

The library is an executable of Relax's virtual machine: its one function `main` calls `network` in the same library.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import tvm
from tvm import relax
from tvm.target import codegen

from nnc import packing
from nnc.lowering import cross, lower
from nnc.lowering.dsp import module as dsp
from nnc.lowering.dsp.unit import dsp_unit
from nnc.lowering.kernels.int8_dot import Instruction
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.kinds import encoded
from nnc.lowering.machine import machine as known_machine
from nnc.lowering.program import Call, Constant, Copy, Plan, Program, Tensor, plan_memory
from nnc.lowering.weights import Weights
from nnc.lowering.workload import Schedules
from nnc.simulation.kernels import Storage
from nnc.target import Target

Progress = Callable[[str, int, int], None]

_UNEQUAL_TASKS = 8

_LEAST_ROOM = 1 << 20  # bytes on the disk, more than a kernel takes


@dataclass(frozen=True)
class Kernel:
    """One step of the compiled network, in the order of execution."""

    name: str
    template: str
    op: str
    nodes: list[str]
    layout: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Built:
    """What was built for a network."""

    files: list[Path]
    kernels: list[Kernel]
    workspace_bytes: int
    """Activations between the kernels; inputs and outputs are the caller's."""
    weight_bytes: int
    """Weights in the order in which the kernels read them, padding included."""
    packed_bytes: int
    """The same as they are in the library, those that are marked (nnc.packing) packed."""
    tuned: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The plans that `schedules` knew, in JSON's types, by the nodes of the layer: one may have several loops."""


def build(
    graph: gs.Graph,
    target: Target,
    out: Path,
    *,
    threads: int | None = None,
    progress: Progress = lambda step, done, total: None,
    schedules: Schedules | None = None,
) -> Built:
    """Compile the graph for the target's unit into `out`/module.so, or for a DSP into `out`/module.o.

    `threads` (default: the target's) is how many cores share each kernel; `schedules` knows plans that are fast. Raises
    NncError where the unit or a node is not supported, or where a tool is missing; then nothing is written.
    """
    machine = known_machine(target)
    threads = threads or target.unit.threads
    unit = unit_of(target, machine, threads)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=out) as name:
        folder = Path(name)
        weights = Weights(folder, packing.marked_layers(graph), unit.alignment)
        program = lower.lower(graph, unit, machine, weights.place, progress, schedules)
        names, plan = kernel_names(program), plan_memory(program)
        objects = _kernels(program, names, machine, folder, progress)
        (folder / "network.h").write_text(
            _header(program, names, plan, weights, threads, _tasks(target, threads)), "utf-8"
        )
        objects += [*_sources(folder, target), weights.source()]
        progress("link the library", 0, 1)
        if target.unit.kind == "dsp":
            library = dsp.link(objects, target, cross.includes(), folder)
        else:
            library = _link(program, objects, target, machine, folder)
        os.replace(library, out / library.name)
    kernels = [_kernel(step, names) for step in program.steps]
    return Built([out / library.name], kernels, plan.bytes, weights.bytes, weights.file_bytes, _tuned(program))


def storage(graph: gs.Graph, target: Target, schedules: Schedules, threads: int | None = None) -> Storage:
    """How the library that `build` makes for a processor keeps images. Nothing is built.

    Raises NncError as `build` does.
    """
    machine = known_machine(target)
    return lower.storage(graph, unit_of(target, machine, threads or target.unit.threads), machine, schedules)


def _tuned(program: Program) -> dict[str, list[dict[str, Any]]]:
    plans: dict[str, list[dict[str, Any]]] = {}
    for choice in program.choices:
        for name in choice.layers if choice.tuned else ():
            plans.setdefault(name, []).append(encoded(choice.plan))
    return plans


def unit_of(target: Target, machine: tvm.target.Target, threads: int) -> Unit:
    """The figures of the first `threads` cores of a target's unit."""
    if target.unit.kind == "dsp":
        return dsp_unit(target, threads)
    unit, memory = target.unit, target.dram.gbps * target.dram.efficiency
    per_cycle = memory / threads / unit.clusters[0].clock_ghz
    return Unit(
        unit.vector_bits,
        unit.vector_registers,
        threads,
        unit.l1d_bytes,
        unit.l2_bytes,
        per_cycle,
        _instruction(target, machine),
        halves=unit.halves and bool(codegen.target_has_features("fullfp16", machine)),
    )


def _instruction(target: Target, machine: tvm.target.Target) -> Instruction:
    """What multiplies bytes: the dot product where both the target and LLVM say that it is there."""

    def has(feature: str) -> bool:
        return target.unit.int8_dot and bool(codegen.target_has_features(feature, machine))

    if target.unit.architecture == "aarch64":
        return "sdot" if has("dotprod") else "smlal"
    return "vpdpbusd" if has("avx512vnni" if target.unit.vector_bits == 512 else "avxvnni") else "vpmaddwd"


def kernel_names(program: Program) -> dict[Hashable, str]:
    """A name for every distinct kernel: its template and a number."""
    names: dict[Hashable, str] = {}
    for call in program.calls:
        if call.key not in names:
            names[call.key] = f"{call.template}_{len(names)}"
    return names


def _kernel(step: Call | Copy, names: dict[Hashable, str]) -> Kernel:
    result = step.results[0]
    if isinstance(step, Copy):
        return Kernel("copy", "copy", "Copy", step.nodes, "plain", result.dtype, result.shape)
    name = names[step.key]
    return Kernel(name, step.template, step.op, step.nodes, step.layout, result.dtype, result.shape)


# -- kernels


def _kernels(
    program: Program, names: dict[Hashable, str], machine: tvm.target.Target, folder: Path, progress: Progress
) -> list[Path]:
    """Compile every distinct kernel into an object file."""
    functions = {names[call.key]: call.function for call in program.calls}
    objects = []
    for done, (name, function) in enumerate(functions.items()):
        progress("compile kernels", done, len(functions))
        built = tvm.tirx.build(tvm.IRModule({name: function.with_attr("global_symbol", name)}), machine)
        _require_room(folder)
        objects.append(folder / f"{name}.o")
        built.write_to_file(str(objects[-1]))
    progress("compile kernels", len(functions), len(functions))
    return objects


def _require_room(folder: Path) -> None:
    """Raise OSError on a disk that is nearly full: LLVM ends the process when it can't write a file."""
    if shutil.disk_usage(folder).free < _LEAST_ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


# -- tables


def _tasks(target: Target, threads: int) -> int:
    """Tasks per thread that a kernel is split into: so many that slow cores can leave some to fast ones."""
    return 1 if target.unit.kind == "dsp" or threads <= target.unit.clusters[0].count else _UNEQUAL_TASKS


def _header(
    program: Program, names: dict[Hashable, str], plan: Plan, weights: Weights, threads: int, tasks: int
) -> str:
    """network.h: the steps of the program, and what it reads and writes, as tables of C."""
    caller = {
        id(tensor.root()[0]): index
        for index, tensor in enumerate([*program.inputs.values(), *program.outputs.values()])
    }

    def place(operand: Tensor | Constant) -> tuple[str, int]:
        if isinstance(operand, Constant):
            return operand.region, operand.offset
        root, offset = operand.root()
        if root.fixed:
            return f"kCaller + {caller[id(root)]}", offset
        return "kWorkspace", plan.offsets[id(root)] + offset

    def tensor(operand: Tensor | Constant) -> str:
        region, offset = place(operand)
        shape = ", ".join(map(str, operand.shape)) or "1"
        rank = len(operand.shape)
        return f"{{{region}, {offset}, {_dl_type(operand.dtype)}, {rank}, (const int64_t[]){{{shape}}}}}"

    declared = [f"extern int __tvm_ffi_{n}(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);" for n in names.values()]
    tables, steps, most = [], [], 2
    for index, step in enumerate(program.steps):
        if isinstance(step, Copy):
            tensors: list[Tensor | Constant] = [step.source, step.result]
            rest = f"{step.rows}, {step.bytes}, {step.source_stride}, {step.result_stride}"
            steps.append(f"  {{0, 2, T{index}, {rest}}},")
        else:
            tensors = [*step.operands, *step.results]
            steps.append(f"  {{__tvm_ffi_{names[step.key]}, {len(tensors)}, T{index}, 0, 0, 0, 0}},")
        most = max(most, len(tensors))
        rows = ", ".join(map(tensor, tensors))
        tables.append(f"static const Tensor T{index}[] = {{{rows}}};")
    return "\n".join(
        [
            *declared,
            *tables,
            f"enum {{ NETWORK_COUNT = {len(steps)}, NETWORK_MAX_TENSORS = {most} }};",
            f"static const uint64_t NETWORK_WORKSPACE = {max(plan.bytes, program.alignment) + program.slack};",
            *weights.table(),
            *_interface(program, threads, tasks),
            "static const Step NETWORK_STEPS[] = {",
            *steps,
            "  {0}};\n",
        ]
    )


def _interface(program: Program, threads: int, tasks: int) -> list[str]:
    """What nnc.h tells of the inputs and outputs."""
    arrays = []
    for name, tensor in (*program.inputs.items(), *program.outputs.items()):
        shape = ", ".join(map(str, tensor.shape)) or "1"
        type_code = np.dtype(tensor.dtype).str  # "<f4"
        arrays.append(f'  {{{_text(name)}, "{type_code}", {len(tensor.shape)}, (const int64_t[]){{{shape}}}}},')
    inputs, outputs = len(program.inputs), len(program.outputs)
    return [
        f"enum {{ NETWORK_INPUTS = {inputs}, NETWORK_OUTPUTS = {outputs} }};",
        f"enum {{ NETWORK_THREADS = {threads}, NETWORK_TASKS = {tasks} }};",
        "static const NncTensor NETWORK_ARRAYS[] = {",
        *arrays,
        "};",
    ]


def _text(text: str) -> str:
    """A string as C writes it: "caf\\303\\251"."""
    plain = (chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


_DL_CODES = {"i": "kDLInt", "u": "kDLUInt", "f": "kDLFloat", "b": "kDLBool"}


def _dl_type(dtype: Any) -> str:
    kind = np.dtype(dtype)
    return f"{{{_DL_CODES[kind.kind]}, {kind.itemsize * 8}, 1}}"


# -- the library


def _sources(folder: Path, target: Target) -> list[Path]:
    """What is linked besides the kernels: network.c, inflate.c for packed weights and, on processors, threads.c."""
    code = ("network.c", "inflate.c") if target.unit.kind == "dsp" else ("network.c", "inflate.c", "threads.c")
    for name in (*code, "nnc.h"):
        (folder / name).write_text(resources.files("nnc.lowering").joinpath(name).read_text("utf-8"), "utf-8")
    return [folder / name for name in code]


def _link(program: Program, objects: Sequence[Path], target: Target, machine: tvm.target.Target, folder: Path) -> Path:
    """Link everything into module.so."""
    # Symbols of one network must never stand for those of another in the same process.
    options = [*cross.includes(), "-std=gnu11", "-g0", "-pthread", "-Wl,-Bsymbolic"]

    def fcompile(file: str, made: list[str], **_: Any) -> None:
        cross.link([*map(Path, made), *objects], Path(file), target, options, folder)

    executable = tvm.compile(_relax_main(program), machine)
    executable.export_library(str(folder / "module.so"), fcompile=fcompile, workspace_dir=str(folder))
    return folder / "module.so"


def _relax_main(program: Program) -> tvm.IRModule:
    """`main(inputs) -> outputs`, which calls `network` on memory of the virtual machine."""
    builder = relax.BlockBuilder()
    inputs = [relax.Var(f"x{i}", _type(tensor)) for i, tensor in enumerate(program.inputs.values())]
    outputs = [_type(tensor) for tensor in program.outputs.values()]
    with builder.function("main", inputs):
        called = relax.op.call_dps_packed("network", relax.Tuple(inputs), outputs if len(outputs) > 1 else outputs[0])
        builder.emit_func_output(builder.emit(called))
    return builder.get()


def _type(tensor: Tensor) -> Any:
    return relax.TensorType(tensor.shape, tensor.dtype)
