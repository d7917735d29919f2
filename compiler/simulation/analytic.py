"""Latency, memory and energy of a network from the figures of a target: a roofline per fused kernel.

A kernel takes as long as the slowest of three things that overlap (multiplying, moving data from the caches, moving
data from memory), plus what it costs to start it (Williams, Waterman, Patterson: Roofline, CACM 2009).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from nnc import measure
from nnc.simulation.kernels import Kernel, elements, kernels, peak_bytes, tensor_bytes
from nnc.target import Cluster, Dtype, Target

# Operators that only move data.
# fmt: off
_COPIES = {
    "Cast", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}
# fmt: on

_WIDTHS: dict[Dtype, int] = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class Layer:
    """One kernel of the network."""

    name: str
    op: str
    """ONNX operators that it computes, joined by "+"."""
    shape: tuple[int, ...]
    """Of its first output."""
    macs: int
    params: int
    latency_ms: float
    bound: str
    """What takes the longest: "compute", "cache", "memory" or "dispatch"."""
    dtype: str
    """Of the arithmetic, and of weights that are kept in another: "float32, int8 weights"."""
    reason: str | None = None
    """Why it computes in floats next to integers."""
    float_ms: float | None = None
    """Of an int8 layer: what it would take in the unit's fastest float type."""
    """Of the multiplications."""


@dataclass(frozen=True)
class Prediction:
    """What one inference costs."""

    latency_ms: float
    peak_activation_bytes: int
    energy_mj: float | None
    """Millijoules of the whole chip, idle power included; None where the target gives no figures of power."""
    layers: list[Layer]


@dataclass(frozen=True)
class _Cost:
    """Seconds of a kernel by cause, and what it draws energy for."""

    compute: float
    cache: float
    memory: float
    dispatch: float
    dram_bytes: int

    @property
    def seconds(self) -> float:
        return max(self.compute, self.cache, self.memory) + self.dispatch

    @property
    def bound(self) -> str:
        return max(("compute", "cache", "memory", "dispatch"), key=lambda cause: getattr(self, cause))


def predict(graph: gs.Graph, target: Target, threads: int | None = None) -> Prediction:
    """Costs of one inference of `graph`, whose tensors have static shapes, on `threads` cores of the target's unit."""
    executed = kernels(graph)
    peak = peak_bytes(graph, executed)
    machine = _Machine(target, threads or target.unit.threads)
    weights = sum({id(tensor): tensor_bytes(tensor) for kernel in executed for tensor in kernel.weights}.values())
    resident = weights + peak <= machine.cache_bytes
    costs = [machine.cost(kernel, resident) for kernel in executed]
    seconds = sum(cost.seconds for cost in costs) + target.unit.network_us * 1e-6
    return Prediction(
        latency_ms=seconds * 1e3,
        peak_activation_bytes=peak,
        energy_mj=machine.energy_mj(seconds, executed, costs),
        layers=[
            _layer(kernel, cost, machine.in_floats(kernel, resident))
            for kernel, cost in zip(executed, costs, strict=True)
        ],
    )


class _Machine:
    """The cores of a target that take part."""

    def __init__(self, target: Target, threads: int) -> None:
        self.target = target
        self.unit = target.unit
        self.cores = _fastest(target.unit.clusters, threads)
        self.threads = len(self.cores)
        # Work is split evenly, so that everyone waits for the slowest core.
        self.slowest = self.cores[-1]
        self.cache_bytes = self.unit.l3_bytes + sum(core.l2_bytes // core.l2_shared_by for core in self.cores)
        alone = [core.dram_gbps or math.inf for core in self.cores]
        self.dram_bytes_per_second = min(target.dram.gbps * target.dram.efficiency, sum(alone)) * 1e9

    def cost(self, kernel: Kernel, resident: bool, dtype: Dtype | None = None) -> _Cost:
        """`resident`: the whole network stays in the caches from one inference to the next.

        `dtype` is what bytes and the arithmetic would be instead.
        """
        width = 1 if dtype is None else _WIDTHS[dtype]
        weights = width * _bytes(kernel.weights)
        streamed = width * (_bytes(kernel.activations) + _bytes(kernel.outputs))
        # What one kernel leaves behind is there for the next if both fit; weights have to come from memory again.
        dram = (0 if streamed <= self.cache_bytes else streamed) + (0 if resident else weights)
        forked = self.unit.fork_join_us if self.threads > 1 else 0.0
        return _Cost(
            compute=self._compute_seconds(kernel, dtype or self._arithmetic(kernel)),
            cache=self._cache_seconds(streamed, weights),
            memory=dram / self.dram_bytes_per_second,
            dispatch=(self.unit.dispatch_us + forked) * 1e-6,
            dram_bytes=dram,
        )

    def in_floats(self, kernel: Kernel, resident: bool) -> float | None:
        """Seconds of a layer of int8 multiplications in the fastest float type of the unit."""
        floats = [dtype for dtype in self.unit.dtypes if dtype != "int8"]
        if kernel.dtype != "int8" or not kernel.macs or not floats:
            return None
        return min(self.cost(kernel, resident, dtype).seconds for dtype in floats)

    def energy_mj(self, seconds: float, executed: list[Kernel], costs: list[_Cost]) -> float | None:
        """Idle power over time, energy per MAC and per byte of memory traffic."""
        idle, per_byte = self.target.idle_watts, self.target.dram.picojoule_per_byte
        per_mac = [core.picojoule_per_mac for core in self.cores if core.picojoule_per_mac]
        if idle is None or per_byte is None or len(per_mac) < self.threads:
            return None
        computed = 0.0
        for kernel in executed:
            dtype = self._arithmetic(kernel)
            computed += kernel.macs * sum(energy[dtype] for energy in per_mac) / self.threads
        moved = sum(cost.dram_bytes for cost in costs) * per_byte
        return idle * seconds * 1e3 + (computed + moved) * 1e-9

    def _arithmetic(self, kernel: Kernel) -> Dtype:
        """The type that the unit computes the kernel in: the kernel's, or the first of the unit's."""
        return next((dtype for dtype in self.unit.dtypes if dtype == kernel.dtype), self.unit.dtypes[0])

    def _compute_seconds(self, kernel: Kernel, dtype: Dtype) -> float:
        shares = self.unit.efficiency[dtype]
        peak = self.slowest.macs_per_cycle[dtype] * self.slowest.clock_ghz * 1e9
        alone = 0.0
        for node in kernel.nodes:
            macs = _padded_macs(node, self.unit.channel_multiple)
            # Outside the layers every value takes one operation, at the pace of a depthwise convolution: load-bound.
            share = getattr(shares, _op_class(node)) if macs else shares.depthwise
            alone += (macs or _operations(node)) / (peak * share)
        return alone * (self.unit.serial_share + (1 - self.unit.serial_share) / self.threads)

    def _cache_seconds(self, streamed: int, weights: int) -> float:
        # Cores share out the activations, but each of them reads all the weights.
        into_one = streamed / self.threads + weights
        level2 = into_one / (self.slowest.l2_bytes_per_cycle * self.slowest.clock_ghz * 1e9)
        beyond = into_one > self.slowest.l2_bytes / self.slowest.l2_shared_by
        level3 = (streamed + weights) / (self.unit.l3_gbps * 1e9) if self.unit.l3_gbps and beyond else 0.0
        return max(level2, level3)


def _fastest(clusters: tuple[Cluster, ...], threads: int) -> list[Cluster]:
    """The cluster of each of the first `threads` cores; clusters are listed fastest first."""
    return [cluster for cluster in clusters for _ in range(cluster.count)][:threads]


def _op_class(node: gs.Node) -> str:
    if node.op in ("Gemm", "MatMul"):
        return "gemm"
    channels, kernel = node.inputs[1].shape[1], node.inputs[1].shape[2:]
    if channels == 1 and node.attrs.get("group", 1) > 1:
        return "depthwise"
    return "pointwise" if math.prod(kernel) == 1 else "conv"


def _padded_macs(node: gs.Node, multiple: int) -> float:
    """MACs with the output channels rounded up to whole vectors."""
    macs = measure.macs(node)
    if not macs or node.op == "MatMul":
        return macs
    channels = node.outputs[0].shape[1]
    return macs * math.ceil(channels / multiple) * multiple / channels


def _operations(node: gs.Node) -> int:
    """Operations of a node without MACs: values read per output value, and no fewer than there are inputs."""
    if node.op in _COPIES:
        return 0
    window = math.prod(node.attrs.get("kernel_shape", [1]))
    return max(elements(node.outputs[0]) * window, max((elements(tensor) for tensor in node.inputs), default=0))


def _layer(kernel: Kernel, cost: _Cost, in_floats: float | None) -> Layer:
    output = kernel.outputs[0]
    return Layer(
        name=kernel.anchor.name or kernel.anchor.outputs[0].name,
        op="+".join(node.op for node in kernel.nodes),
        shape=tuple(output.shape or ()),
        macs=kernel.macs,
        params=sum(measure.params(node) for node in kernel.nodes),
        latency_ms=cost.seconds * 1e3,
        bound=cost.bound,
        dtype=kernel.spelled_dtype,
        reason=kernel.reason,
        float_ms=None if in_floats is None else in_floats * 1e3,
    )


def _bytes(tensors: Iterable[gs.Tensor]) -> int:
    return sum(map(tensor_bytes, tensors))
