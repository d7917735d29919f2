"""What schedules for a GPU depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import tvm

from nnc.lowering.kernels.unit import Unit
from nnc.target import Target

_AS_MANY_AS_THERE_ARE = 1 << 24
"""Threads, for templates that share their work among so many: then each takes one vector."""


@dataclass(frozen=True)
class Gpu(Unit):
    """The figures of a GPU: they choose register tiles, groups of threads, and what is staged in shared memory."""

    alignment: ClassVar[int] = 512
    """What OpenCL's drivers want of a part of a buffer: CL_DEVICE_MEM_BASE_ADDR_ALIGN of NVIDIA's."""

    cores: int = 1
    """Multiprocessors, or shader cores."""
    macs_per_cycle: float = 64.0
    """Of one core, float32."""
    l2_bytes_per_cycle: float = 32.0
    """From the second-level cache into one core."""
    vectors_per_thread: int = 64
    """Registers of one thread, in vectors of four floats."""
    most_threads: int = 256
    """Of a group."""
    shared_bytes: int = 16_384
    """Shared memory that a group may use."""
    stages: bool = False
    """Whether operands are staged in shared memory: the target's file says how much of it a group has."""
    multiplies_bytes: bool = False
    """Whether an instruction multiplies four pairs of int8 and adds them up."""


def gpu_unit(target: Target, machine: tvm.target.Target) -> Gpu:
    """The figures of a target's GPU."""
    unit, cluster = target.unit, target.unit.clusters[0]
    macs = cluster.macs_per_cycle  # kernels compute in float32, of which the file may say nothing
    # Registers of CUDA are of 32 bits, whatever the GPU; elsewhere they are as wide as the vectors.
    per_vector = 4 if machine.kind.name == "cuda" else 1
    return Gpu(
        128,
        unit.vector_registers,
        _AS_MANY_AS_THERE_ARE,
        unit.l1d_bytes,
        unit.l2_bytes,
        target.dram.gbps * target.dram.efficiency / cluster.clock_ghz,
        "smlal",
        cores=unit.cores,
        macs_per_cycle=macs.get("float32") or min(macs.values()),
        l2_bytes_per_cycle=cluster.l2_bytes_per_cycle,
        vectors_per_thread=max(8, unit.vector_registers // per_vector),
        most_threads=int(machine.attrs.get("max_threads_per_block", 256)),
        shared_bytes=int(machine.attrs.get("max_shared_memory_per_block", 16_384)),
        stages="max_shared_memory_per_block" in unit.tvm,
        multiplies_bytes=machine.kind.name == "cuda" and unit.int8_dot,
    )
