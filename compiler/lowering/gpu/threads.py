"""Loops of a function as threads of a GPU: what is parallel on a CPU becomes one kernel, a thread per step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.loops import TASKS_LOOP
from nnc.lowering.kernels.registers import when

Expr = Any

GROUP = 64
"""Threads of a group where nothing else decides: two warps of one kind of GPU, a wave of another."""


def on_threads(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The same function with every loop over tasks as a kernel; without any, the whole of it as a single thread."""
    function = without_offsets(function)
    found = []
    # CUDA has no vectors of the one, OpenCL none of the other.
    is_scalar = any(str(each.ty.dtype) in ("float16", "bool") for each in function.params)

    def visit(loop: Any) -> Any:
        if loop.kind == tirx.ForKind.THREAD_BINDING:
            found.append(loop)
        if loop.kind == tirx.ForKind.VECTORIZED and (is_scalar or not _is_vector(loop)):
            return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.UNROLLED, loop.body)
        if loop.kind != tirx.ForKind.PARALLEL and TASKS_LOOP not in loop.annotations:
            return loop
        found.append(loop)
        return bound(loop.loop_var, int(loop.extent), loop.body)

    callbacks = [(tirx.For, visit), (tvm.ir.Call, _on_device)]
    body = tvm_ffi.structural_map(function.body, callbacks)
    if not found:
        body = bound(tirx.Var("single", "int32"), 1, body)
    return tirx.PrimFunc(function.params, body, function.ret_type, attrs=function.attrs)


def _is_vector(loop: Any) -> bool:
    """Whether both languages have vectors for a loop.

    Where TVM has none for something in it, it would take the lanes apart, and lose what is bound to a name.
    """
    if int(loop.extent) not in (2, 4):
        return False
    found: list[Any] = []

    def visit(call: Any) -> None:
        vectorizable = hasattr(call.op, "get_attr") and call.op.get_attr("TVectorizable")
        if not vectorizable and getattr(call.op, "name", "") != "tirx.reinterpret":
            found.append(call)

    tvm_ffi.structural_walk(loop.body, (tvm.ir.Call, visit))
    return not found


def _on_device(call: tvm.ir.Call) -> Any:
    """What LLVM's functions are on a GPU; hints for a CPU's caches are nothing."""
    name = getattr(call.op, "name", "")
    if name == "tirx.call_llvm_pure_intrin":  # nnc rounds with it, and nothing else
        return tirx.nearbyint(call.args[1])
    return tirx.const(0, "int32") if name == "tirx.prefetch" else call


def bound(step: tirx.Var, steps: int, body: Any) -> Any:
    """A kernel of `steps` threads; `body` reads from `step` which one it is."""
    size = min(steps, GROUP)
    groups = -(-steps // size)
    block, thread = tirx.Var("block", "int32"), tirx.Var("thread", "int32")
    index = block * size + thread
    if groups * size > steps:
        body = tirx.IfThenElse(step < steps, body, None)
    body = tirx.SeqStmt([tirx.Bind(step, index), body])
    return _thread_loop(block, groups, "blockIdx.x", _thread_loop(thread, size, "threadIdx.x", body))


def _thread_loop(variable: tirx.Var, extent: int, tag: str, body: Any) -> Any:
    thread = tirx.IterVar(None, tirx.Var(tag, "int32"), tirx.IterVar.ThreadIndex, tag)
    return tirx.For(variable, 0, extent, tirx.ForKind.THREAD_BINDING, body, thread)


def without_offsets(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The same function on arrays that begin where their pointers say: TE leaves room for an offset."""
    plain = {each: tirx.decl_buffer(each.ty.shape, each.ty.dtype, each.name) for each in function.params}
    return function.specialize(plain)


@contextmanager
def elements(count: int) -> Iterator[Expr]:
    """Emit a thread for each of `count` elements."""
    size = min(count, GROUP)
    groups = ceil(count / size)
    with (
        T.thread_binding(0, groups, thread="blockIdx.x") as block,
        T.thread_binding(0, size, thread="threadIdx.x") as x,
    ):
        index = T.bind(block * size + x)
        with when(index < count if count % size else None):
            yield index
