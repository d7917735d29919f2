"""Measuring: noise that only adds does not move a ratio, and a plan that kills the process costs only itself."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnc.errors import NncError
from nnc.tuning import devices as devices_
from nnc.tuning import measure
from nnc.tuning.measure import Measurer, compared


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
        return float(function)

    def times(self, kernels, rounds):
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
        speeds = [t.speed for t in measurer.measure(devices.Workload(), ["2", "abort", "1", "raise", "4", "abort"])]
        assert speeds == [1.0, None, 2.0, None, 0.5, None]
        assert measurer.measure(devices.Workload(), ["1", "2"])[1].speed == 0.5
        with pytest.raises(NncError, match="the default plan can't be measured"):
            measurer.measure(devices.Workload(), ["abort", "1"])


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


def test_a_kernel_of_one_thread_takes_as_long_as_it_does() -> None:
    def busy() -> None:
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass

    nobody = devices_.Neighbours(lambda x: None, lambda y: None)
    kernel = devices_.Loaded(lambda x: busy(), [[None]], nobody, threads=2)
    assert kernel.run(3) == pytest.approx(0.01, rel=0.1)
