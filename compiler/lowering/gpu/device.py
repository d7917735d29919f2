"""From functions to the source of kernels: TVM's lowering, cut off where it would write the host's side itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import transform as s_tir
from tvm.tirx import transform as tir


@dataclass(frozen=True)
class Launch:
    """One kernel, as it is started: grid and group are (x, y, z)."""

    kernel: str
    arguments: tuple[int, ...]
    """Which parameters of the function it reads and writes, in the kernel's own order."""
    grid: tuple[int, int, int]
    group: tuple[int, int, int]


@dataclass(frozen=True)
class Compiled:
    """One function: the declarations and definitions of its kernels, and their launches in order."""

    source: str
    launches: tuple[Launch, ...]


def _passes() -> list[Any]:
    """TVM's own pipeline for GPUs as far as it concerns what nnc emits."""
    return [
        s_tir.CanonicalizeLoop(),
        s_tir.LowerInitBlock(),
        s_tir.PlanAndUpdateBufferAllocationLocation(),
        s_tir.ConvertBlocksToOpaque(),
        s_tir.LiftThreadBinding(),
        s_tir.CompactBufferAllocation(),
        s_tir.UnifyThreadBinding(),
        s_tir.LowerMatchBuffer(),
        s_tir.StmtSimplify(),
        s_tir.LowerOpaqueBlock(),
        tir.FlattenBuffer(),
        tir.NarrowDataType(32),
        tir.VectorizeLoop(True),
        tir.StorageRewrite(),
        tir.UnrollLoop(),
        s_tir.RenormalizeSplitPattern(),
        tir.StmtSimplify(),
        tir.RemoveNoOp(),
        s_tir.RewriteUnsafeSelect(),
        tir.CommonSubexprElim(),
        tir.VerifyMemory(),
        tir.AnnotateEntryFunc(),
        s_tir.ThreadSync("shared"),
        s_tir.MergeSharedMemoryAllocations(),
        tir.SplitHostDevice(),
    ]


_DEVICE_PASSES = (tir.LowerWarpMemory, tir.StmtSimplify, tir.LowerIntrin)


def compile_function(name: str, function: tirx.PrimFunc, machine: tvm.target.Target) -> Compiled:
    """The kernels of a function whose loops are bound to threads, named after `name`."""
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    unrolled = {"tirx.UnrollLoop": {"explicit_unroll": False}}
    with tvm.transform.PassContext(config=unrolled):
        module = tvm.transform.Sequential([tir.BindTarget(machine), *_passes()])(module)
    host = module[name]
    kernels = {var.name_hint: each for var, each in module.functions.items() if var.name_hint != name}
    device = tvm.IRModule(kernels)
    for device_pass in _DEVICE_PASSES:
        device = device_pass()(device)
    if machine.kind.name == "opencl":
        exact = {name: _exact_constants(_widened(each)) for name, each in device.functions.items()}
        device = tvm.IRModule(exact)
    source = tvm.get_global_func(f"target.build.{machine.kind.name}")(device, machine).inspect_source()
    if machine.kind.name == "opencl":
        source = _EXTENSION.sub("", source).replace("__global half*", "__global ushort*")
    return Compiled(source, tuple(_launches(host, kernels)))


HALVES = """\
inline float load_half(__global const ushort* from, int place) { return vload_half(place, (__global const half*)from); }
inline void store_half(float value, __global ushort* to, int place) { vstore_half(value, place, (__global half*)to); }
"""
"""What `_widened` calls."""

# What TVM writes in front of kernels with float16.
_EXTENSION = re.compile(r"^#ifdef cl_khr_fp16$.*?^#endif$\n*", re.DOTALL | re.MULTILINE)


def _widened(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The same with float16 in memory alone: every device of OpenCL loads and stores it, few compute in it."""

    def load(each: tvm.ir.TensorLoad) -> Any:
        if str(each.ty.dtype) != "float16":
            return each
        return tirx.call_pure_extern("float32", "load_half", each.source.data, *each.indices)

    def store(each: tirx.BufferStore) -> Any:
        if str(each.buffer.dtype) != "float16":
            return each
        stored = tirx.call_extern("int32", "store_half", each.value, each.buffer.data, *each.indices)
        return tirx.Evaluate(stored)

    def cast(each: tirx.Cast) -> Any:
        if str(each.ty.dtype) == "float16":
            return each.value.astype("float32")
        return each.value if str(each.ty.dtype) == str(each.value.ty.dtype) else each

    def constant(each: tirx.FloatImm) -> Any:
        return tirx.const(each.value, "float32") if str(each.ty.dtype) == "float16" else each

    callbacks = [(tvm.ir.TensorLoad, load), (tirx.BufferStore, store), (tirx.Cast, cast), (tirx.FloatImm, constant)]
    body = tvm_ffi.structural_map(function.body, callbacks)
    return tirx.PrimFunc(function.params, body, function.ret_type, attrs=function.attrs)


def _exact_constants(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """TVM writes seven digits of a float in OpenCL C; where these are not enough, its bits."""

    def visit(constant: tirx.FloatImm) -> Any:
        value = np.float32(constant.value)
        if str(constant.ty.dtype) != "float32" or not np.isfinite(value) or np.float32(f"{value:.6e}") == value:
            return constant
        return tirx.call_pure_extern("float32", "as_float", tirx.const(int(value.view(np.int32)), "int32"))

    body = tvm_ffi.structural_map(function.body, (tirx.FloatImm, visit))
    return tirx.PrimFunc(function.params, body, function.ret_type, attrs=function.attrs)


def _launches(host: tirx.PrimFunc, kernels: Mapping[str, tirx.PrimFunc]) -> list[Launch]:
    calls: list[Any] = []
    flat: list[tirx.DeclBuffer] = []

    def visit(call: Any) -> None:
        if getattr(call.op, "name", "") == "tirx.call_ffi_kernel":
            calls.append(call)

    tvm_ffi.structural_walk(host.body, [(tvm.ir.Call, visit), (tirx.DeclBuffer, flat.append)])
    return [_launch(call, host, flat, kernels) for call in calls]


def _launch(
    call: Any, host: tirx.PrimFunc, flat: Sequence[tirx.DeclBuffer], kernels: Mapping[str, tirx.PrimFunc]
) -> Launch:
    """A call of the host's side: the kernel's name, its arguments, and the extents of its threads."""
    name, *rest = call.args
    count = len(kernels[str(name.value)].params)
    arguments = [_place(argument.args[0], host, flat) for argument in rest[:count]]
    tags = [str(tag) for tag in call.attrs.launch_params]
    extents = {tag: int(extent) for tag, extent in zip(tags, rest[count:], strict=True)}
    grid, group = ([extents.get(f"{kind}.{axis}", 1) for axis in "xyz"] for kind in ("blockIdx", "threadIdx"))
    return Launch(str(name.value), tuple(arguments), _three(grid), _three(group))


def _place(array: Any, host: tirx.PrimFunc, flat: Sequence[tirx.DeclBuffer]) -> int:
    """Which parameter an array is, which the host's side has flattened. Two may have the same name."""
    source = next((each.data.args[0] for each in flat if each.buffer.same_as(array)), array)
    return next(place for place, each in enumerate(host.params) if source.same_as(each))


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = values
    return x, y, z
