"""Latency, memory and energy of a network from the figures of a target: a roofline per fused kernel."""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc import halving, measure
from nnc.hardware.chip import Dtype
from nnc.simulation import roofline
from nnc.simulation.kernels import Kernel, kernels, peak_bytes
from nnc.simulation.machine import WIDTHS, host_ghz, machine
from nnc.simulation.power import power
from nnc.simulation.roofline import CAUSES, Cost
from nnc.simulation.work import Work, work
from nnc.target import Target


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
    """Of the arithmetic, of weights that are kept in another, and where a DSP computes one value at a time: "float32",
    "float32, int8 weights", "float32, scalar"."""
    reason: str | None = None
    """Why it computes in floats next to integers."""
    float_ms: float | None = None
    """Of an int8 layer: what it would take in the unit's fastest float type."""


@dataclass(frozen=True)
class Prediction:
    """What one inference costs."""

    latency_ms: float
    peak_activation_bytes: int
    energy_mj: float | None
    """Millijoules of the whole chip, idle power included; None where the target gives no figures of power."""
    layers: list[Layer]
    error: float | None = None
    """The mean relative error to expect of the latency, as `Efficiency.error` says; None where nobody knows."""

    @property
    def by_layer(self) -> dict[str, float]:
        """Milliseconds of every layer, by its name."""
        return {layer.name: layer.latency_ms for layer in self.layers}


def predict(graph: gs.Graph, target: Target, threads: int | None = None) -> Prediction:
    """Costs of one inference of `graph`, whose tensors have static shapes, on `threads` cores of the target's unit."""
    if target.unit.kind != "gpu":  # their vendors' engines compute in float16
        graph = halving.executed(graph, target.unit.halves)
    threads = threads or target.unit.threads
    executed = kernels(graph, target.unit.kind == "dsp")
    todo = work(executed)
    dtypes = np.array([_arithmetic(kernel, target) for kernel in executed])
    costs = {dtype: _cost(todo, target, threads, dtype) for dtype in target.unit.dtypes}
    cost = Cost(**{name: _pick(costs, dtypes, name) for name in (*CAUSES, "dram_bytes")})
    main: Dtype = max(target.unit.dtypes, key=lambda dtype: todo.macs[dtypes == dtype].sum())
    fitted = target.unit.efficiency[main]
    seconds = cost.seconds.sum() + fitted.network_us * 1e-6
    floats = [dtype for dtype in target.unit.dtypes if dtype != "int8"]
    cast = [_cost(todo.cast(WIDTHS[dtype]), target, threads, dtype).seconds for dtype in floats]
    in_floats = np.min(cast, axis=0) if cast else None
    return Prediction(
        latency_ms=float(seconds * 1e3),
        peak_activation_bytes=peak_bytes(graph, executed),
        energy_mj=_energy_mj(target, threads, float(seconds), todo, dtypes, cost),
        layers=[_layer(kernel, target, cost, index, in_floats) for index, kernel in enumerate(executed)],
        error=None if any(kernel.macs and _is_scalar(kernel, target) for kernel in executed) else fitted.error,
    )


def _cost(todo: Work, target: Target, threads: int, dtype: Dtype) -> Cost:
    cores = machine(target.unit, target.dram, threads, dtype, host_ghz(target.unit, target.units))
    resident = roofline.resident_share(todo.weight_bytes.sum(), cores)
    return roofline.cost(todo, cores, target.unit.efficiency[dtype], resident)


def _arithmetic(kernel: Kernel, target: Target) -> Dtype:
    """The type that the unit computes the kernel in: the kernel's, or the first of the unit's."""
    return next((dtype for dtype in target.unit.dtypes if dtype == kernel.dtype), target.unit.dtypes[0])


def _is_scalar(kernel: Kernel, target: Target) -> bool:
    """Whether the vectors of a DSP don't compute in the kernel's type."""
    return target.unit.kind == "dsp" and kernel.dtype.startswith("float") and kernel.dtype not in target.unit.dtypes


def _pick(costs: dict[Dtype, Cost], dtypes: np.ndarray, name: str) -> np.ndarray:
    """Of every kernel, the figure in its own type."""
    return np.select([dtypes == dtype for dtype in costs], [getattr(cost, name) for cost in costs.values()], 0.0)


def _energy_mj(
    target: Target, threads: int, seconds: float, todo: Work, dtypes: np.ndarray, cost: Cost
) -> float | None:
    """Idle power over time, and what the cores and the memory take above it."""
    drawn = power(target.unit, target.dram, target.idle_watts, threads)
    if drawn is None:
        return None
    macs = {dtype: float(todo.macs[dtypes == dtype].sum()) for dtype in target.unit.dtypes}
    above_idle = drawn.above_idle_mj(seconds, macs, float(cost.dram_bytes.sum()))
    return drawn.idle_watts * seconds * 1e3 + above_idle


def _layer(kernel: Kernel, target: Target, cost: Cost, index: int, in_floats: np.ndarray | None) -> Layer:
    output = kernel.outputs[0]
    integers = kernel.dtype == "int8" and kernel.macs and in_floats is not None
    return Layer(
        name=kernel.anchor.name or kernel.anchor.outputs[0].name,
        op="+".join(node.op for node in kernel.nodes),
        shape=tuple(output.shape or ()),
        macs=kernel.macs,
        params=sum(measure.params(node) for node in kernel.nodes),
        latency_ms=float(cost.seconds[index] * 1e3),
        bound=max(CAUSES, key=lambda cause: getattr(cost, cause)[index]),
        dtype=kernel.spelled_dtype + (", scalar" if _is_scalar(kernel, target) else ""),
        reason=kernel.reason,
        float_ms=float(in_floats[index] * 1e3) if integers and in_floats is not None else None,
    )
