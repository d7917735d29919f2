"""Measuring: noise that only adds does not move a ratio, and a plan that kills the process costs only itself."""

import platform
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnc import target
from nnc.errors import NncError
from nnc.tuning import devices as devices_
from nnc.tuning import measure
from nnc.tuning.measure import Measurer, Unmeasurable, compared


class Noisy:
    """A busy machine: most times are a multiple of the true one."""

    exact = False

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self.calls: list[int] = []

    def times(self, kernels: list[float], rounds: int) -> np.ndarray:
        self.calls.append(len(kernels))
        disturbed = self._rng.random((rounds, len(kernels))) < 0.6
        slower = 1 + disturbed * self._rng.exponential(2.0, disturbed.shape)
        return np.array(kernels) * slower * (1 + 0.005 * self._rng.random(disturbed.shape))


def test_noise_does_not_move_ratios() -> None:
    trials = compared(Noisy(), [1.0, 0.8, 1.1, None, 2.0])
    assert trials[0].speed == 1
    assert trials[1].speed == pytest.approx(1.25, rel=0.05)
    assert trials[3].speed is None
    assert trials[1].ms == pytest.approx(0.8, rel=0.05)


def test_slow_plans_are_left_out_of_later_rounds() -> None:
    device = Noisy()
    compared(device, [1.0, 0.8, 5.0, 5.0, 5.0])
    assert device.calls == [5, 3, 2]


def test_exact_times_are_taken_once() -> None:
    device = Noisy()
    device.exact = True
    device.times = lambda kernels, rounds: np.array([kernels] * rounds)  # type: ignore[method-assign]
    assert [trial.speed for trial in compared(device, [2.0, 1.0, 4.0])] == [1.0, 2.0, 0.5]


_DEVICE = """
import os
import time
from dataclasses import dataclass
from nnc.errors import NncError

@dataclass(frozen=True)
class Device:
    refuses: bool = False
    breaks: bool = False
    source: str = "measured"
    exact: bool = True
    seconds: float = 0.0

    def open(self, machine):
        if self.refuses:
            raise NncError("no board is free")
        return self

    def load(self, function):
        if function == "abort":
            os.abort()
        if function == "raise":
            raise RuntimeError("LLVM refuses")
        if function == "die":
            raise NncError("kernel.so: killed by signal 11")
        return float(function)

    def times(self, kernels, rounds):
        if self.breaks:
            raise ValueError("the clock is broken")
        for _ in range(rounds):
            time.sleep(self.seconds)
            yield kernels

@dataclass(frozen=True)
class Workload:
    op = "conv2d"

    def function(self, plan, unit):
        return plan
"""


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that a new process can import too."""
    (tmp_path / "some_devices.py").write_text(_DEVICE)
    monkeypatch.syspath_prepend(tmp_path)
    import some_devices

    return some_devices


def test_a_plan_that_takes_the_process_down_costs_only_itself(devices: Any) -> None:
    with Measurer(devices.Device(), SimpleNamespace(), {}) as measurer:
        plans = ["2", "abort", "1", "raise", "4", "die", "abort"]
        trials = measurer.measure(devices.Workload(), plans)
        assert [trial.speed for trial in trials] == [1.0, None, 2.0, None, 0.5, None, None]
        assert [trials[plans.index(each)].reason for each in ("raise", "die")] == [
            "LLVM refuses",
            "kernel.so: killed by signal 11",
        ]
        assert measurer.measure(devices.Workload(), ["1", "2"])[1].speed == 0.5


@pytest.mark.parametrize(
    ("plan", "reason"), [("abort", "it takes the process down"), ("raise", "LLVM refuses"), ("die", "killed by signal")]
)
def test_a_default_plan_that_can_not_be_measured_is_told_with_its_reason(
    devices: Any, plan: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        Measurer(devices.Device(), SimpleNamespace(), {}) as measurer,
        pytest.raises(Unmeasurable, match=f"conv2d: the default plan can't be measured: .*{reason}"),
    ):
        measurer.measure(devices.Workload(), [plan, "1"])
    assert "Traceback" not in capfd.readouterr().err


def test_a_device_that_breaks_is_told_in_one_line(devices: Any, capfd: pytest.CaptureFixture[str]) -> None:
    measurer = Measurer(devices.Device(breaks=True), SimpleNamespace(), {})
    with measurer, pytest.raises(NncError, match="conv2d: can't be timed: the clock is broken"):
        measurer.measure(devices.Workload(), ["1", "2"])
    assert "Traceback" not in capfd.readouterr().err


_KERNELS = """
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

class Workload:
    op = "conv2d"

    def function(self, plan, unit):
        def body(ins, outs):
            out = T.buffer_proxy(outs[0])
            with IRBuilder() as builder:
                with T.serial(0, 4) as i:
                    if plan == "abort":
                        T.evaluate(tirx.call_extern("int32", "abort"))
                    out[i] = ins[0][i]
                return builder.get()

        x, w = (te.placeholder((4,), name=name) for name in "xw")
        return te.create_prim_func([x, w, te.extern([(4,)], [x, w], body, name="y", dtype="float32")])
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="runs what it builds")
def test_a_kernel_that_crashes_here_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_kernels.py").write_text(_KERNELS)
    monkeypatch.syspath_prepend(tmp_path)
    import some_kernels

    with Measurer(devices_.Host(1, 0), None, target.load("x86").unit.tvm) as measurer:
        trials = measurer.measure(some_kernels.Workload(), ["plain", "abort", "plain"])
    assert trials[1].speed is None
    assert trials[2].speed is not None


def test_patience_is_for_a_round_not_for_all(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = devices.Device(exact=False, seconds=0.2)
    with Measurer(device, SimpleNamespace(), {}) as measurer:
        measurer.measure(devices.Workload(), ["1", "2"])  # the process has started
        monkeypatch.setattr(measure, "PATIENCE", 1.0)
        assert measurer.measure(devices.Workload(), ["1", "2"])[1].speed == 0.5


def test_a_device_that_can_not_be_used_is_told(devices: Any) -> None:
    measurer = Measurer(devices.Device(refuses=True), SimpleNamespace(), {})
    with measurer, pytest.raises(NncError, match="no board is free"):
        measurer.measure(devices.Workload(), ["1"])


def busy(*_: Any) -> None:
    until = time.thread_time() + 0.01
    while time.thread_time() < until:
        pass


def test_a_kernel_of_one_thread_takes_as_long_as_it_does() -> None:
    nobody = devices_.Neighbours(lambda x: None, lambda y: None, 0.0)
    kernel = devices_.Loaded(busy, [[None]], nobody, threads=2)
    assert kernel.run(3) == pytest.approx(0.01, rel=0.1)


def test_neighbours_take_no_time_of_a_kernel() -> None:
    kernel = devices_.Loaded(busy, [[None]], devices_.Neighbours(busy, busy, 0.02), threads=1)
    assert kernel.run(3) == pytest.approx(0.01, rel=0.2)
    kernel.warm_up()
    assert kernel.count == 1  # a slice is filled by what runs, not by what counts


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for this machine")
def test_neighbours_are_timed_without_a_kernel() -> None:
    import tvm

    machine = tvm.target.Target({"kind": "llvm"})
    small, large = (
        devices_.Neighbours.of(((size,), "float32"), ((size,), "float32"), machine, 1).alone
        for size in (1 << 10, 1 << 20)
    )
    assert 0 < 2 * small < large < 0.1
