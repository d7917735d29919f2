"""The roofline against arithmetic done by hand, and against published measurements."""

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph, measure, networks, target
from nnc.simulation.analytic import Prediction, predict
from nnc.target import Target

# One core of 4 MACs per nanosecond and one of 2, 10 GB/s, round figures.
BOARD = """
description = "two unequal cores"
idle_watts = 2.0

[dram]
gbps = 20.0
efficiency = 0.5
picojoule_per_byte = 100.0

[[unit]]
name = "cpu"
kind = "cpu"
dtypes = ["float32", "int8"]
int8_dot = false
channel_multiple = 4
vector_bits = 128
vector_registers = 32
threads = 1
dispatch_us = 7.0
fork_join_us = 3.0
network_us = 11.0
tvm = { kind = "llvm", mtriple = "aarch64-linux-gnu" }
efficiency.float32 = { conv = 0.8, pointwise = 0.5, depthwise = 0.25, gemm = 1.0 }
efficiency.int8 = { conv = 0.8, pointwise = 0.5, depthwise = 0.25, gemm = 1.0 }

[unit.quantization]
weights = { dtype = "int8", granularity = "per-channel", symmetric = true }
activations = { dtype = "int8", granularity = "per-tensor", symmetric = true }

[[unit.cluster]]
name = "big"
core = "big"
count = 1
clock_ghz = 1.0
macs_per_cycle = { float32 = 4.0, int8 = 8.0 }
l1d_bytes = 32_768
l2_bytes = 1_000_000
l2_bytes_per_cycle = 16.0
picojoule_per_mac = { float32 = 100.0, int8 = 50.0 }

[[unit.cluster]]
name = "little"
core = "little"
count = 1
clock_ghz = 0.5
macs_per_cycle = { float32 = 4.0, int8 = 8.0 }
l1d_bytes = 32_768
l2_bytes = 500_000
l2_bytes_per_cycle = 16.0
picojoule_per_mac = { float32 = 50.0, int8 = 25.0 }
"""


@pytest.fixture
def board(tmp_path: Path) -> Target:
    path = tmp_path / "board.toml"
    path.write_text(BOARD)
    return target.load(str(path))


def layer(op: str, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...], **attrs: object) -> gs.Graph:
    """One layer with a weight, float32."""
    read, written = gs.Variable("x", np.float32, x), gs.Variable("y", np.float32, y)
    weight = gs.Constant("w", np.ones(w, np.float32))
    return gs.Graph([gs.Node(op, "layer", attrs, [read, weight], [written])], [read], [written])


CONV = layer("Conv", (1, 16, 16, 16), (16, 16, 3, 3), (1, 16, 16, 16), pads=[1, 1, 1, 1])  # 589 824 MACs


def test_a_layer_bound_by_compute(board: Target) -> None:
    prediction = predict(CONV, board)
    microseconds = 589_824 / (4.0 * 0.8) / 1e3 + 7.0
    (only,) = prediction.layers
    assert only.latency_ms == pytest.approx(microseconds / 1e3)
    assert prediction.latency_ms == pytest.approx((microseconds + 11.0) / 1e3)
    assert (only.name, only.op, only.shape, only.macs, only.params) == ("layer", "Conv", (1, 16, 16, 16), 589_824, 2304)
    assert only.bound == "compute"
    assert prediction.peak_activation_bytes == 2 * 16_384


def test_everyone_waits_for_the_slowest_core(board: Target) -> None:
    # Two cores share the work evenly; the little one takes 2 MACs per nanosecond.
    microseconds = 589_824 / 2 / (2.0 * 0.8) / 1e3 + 7.0 + 3.0
    assert predict(CONV, board, threads=2).layers[0].latency_ms == pytest.approx(microseconds / 1e3)


def test_serial_work_stays_on_one_core(board: Target) -> None:
    slow = board.model_copy(update={"unit": board.unit.model_copy(update={"serial_share": 0.5})})
    microseconds = 589_824 * 0.75 / (2.0 * 0.8) / 1e3 + 10.0
    assert predict(CONV, slow, threads=2).layers[0].latency_ms == pytest.approx(microseconds / 1e3)


def test_a_layer_bound_by_memory(board: Target) -> None:
    big = layer("Gemm", (1, 2000), (1000, 2000), (1, 1000), transB=1)  # 8 MB of weights, 2 million MACs
    (only,) = predict(big, board).layers
    assert only.bound == "memory"
    assert only.latency_ms == pytest.approx(8e6 / 10e9 * 1e3 + 0.007)


def test_a_layer_bound_by_dispatch(board: Target) -> None:
    tiny = layer("Gemm", (1, 8), (4, 8), (1, 4), transB=1)
    assert predict(tiny, board).layers[0].bound == "dispatch"


def test_a_layer_bound_by_the_cache(board: Target) -> None:
    x, y = (gs.Variable(name, np.float32, (1, 8, 100, 100)) for name in "xy")
    copy = gs.Graph([gs.Node("Transpose", "copy", {}, [x], [y])], [x], [y])
    (only,) = predict(copy, board).layers
    assert only.bound == "cache"
    assert only.latency_ms == pytest.approx(640_000 / 16.0 / 1e6 + 0.007)


@pytest.mark.parametrize(
    ("w", "attrs", "share"),
    [
        ((16, 16, 3, 3), {"pads": [1, 1, 1, 1]}, 0.8),
        ((16, 16, 1, 1), {}, 0.5),
        ((16, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 16}, 0.25),
    ],
)
def test_classes_of_convolutions(board: Target, w: tuple[int, ...], attrs: dict[str, object], share: float) -> None:
    built = layer("Conv", (1, 16, 16, 16), w, (1, 16, 16, 16), **attrs)
    expected = measure.measure(built).macs / (4.0 * share) / 1e6 + 0.007
    assert predict(built, board).layers[0].latency_ms == pytest.approx(expected)


def test_channels_that_do_not_fill_a_vector_cost_a_whole_one(board: Target) -> None:
    narrow = layer("Conv", (1, 16, 16, 16), (13, 16, 3, 3), (1, 13, 16, 16), pads=[1, 1, 1, 1])
    assert predict(narrow, board).latency_ms == pytest.approx(predict(CONV, board).latency_ms)


def test_energy_is_idle_power_macs_and_memory_traffic(board: Target) -> None:
    prediction = predict(CONV, board)
    idle = 2.0 * prediction.latency_ms
    assert prediction.energy_mj == pytest.approx(idle + 589_824 * 100e-9)  # all of it stays in the cache
    big = predict(layer("Gemm", (1, 2000), (1000, 2000), (1, 1000), transB=1), board)
    assert big.energy_mj == pytest.approx(2.0 * big.latency_ms + 2e6 * 100e-9 + 8e6 * 100e-9)


def test_no_energy_without_figures_of_power() -> None:
    assert predict(CONV, target.load("x86")).energy_mj is None


def resnet(spec: str, threads: int | None = None) -> Prediction:
    return predict(graph.from_model(networks.build("resnet18")), target.load(spec), threads)


def test_a_power_mode_trades_time_for_energy() -> None:
    fast, slow = resnet("jetson-xavier"), resnet("jetson-xavier@15W")
    assert slow.latency_ms > 2 * fast.latency_ms
    assert slow.energy_mj is not None
    assert fast.energy_mj is not None
    # Above idle, which is another share of each.
    assert slow.energy_mj - 6.5 * slow.latency_ms < 0.6 * (fast.energy_mj - 6.5 * fast.latency_ms)


@pytest.mark.parametrize(
    "spec", ["x86", "qcs605", "qcs605:gpu", "qcs605:dsp", "jetson-xavier", "jetson-xavier:gpu@10W"]
)
def test_every_unit_predicts_every_network(spec: str) -> None:
    prediction = resnet(spec)
    layers = sum(each.latency_ms for each in prediction.layers)
    assert prediction.latency_ms == pytest.approx(layers + target.load(spec).unit.network_us / 1e3)
    assert sum(each.macs for each in prediction.layers) == 1_814_073_344
    assert sum(each.params for each in prediction.layers) == 11_689_512
    assert {each.bound for each in prediction.layers} <= {"compute", "cache", "memory", "dispatch"}


# Paddle-Lite 2.8 on a Snapdragon 845, milliseconds on 1, 2 and 4 of its Cortex-A75 cores
# (PaddlePaddle/Paddle-Lite, docs/benchmark/benchmark.md at 0568a31749).
@pytest.mark.parametrize(("threads", "milliseconds"), [(1, 40.31), (2, 22.43), (4, 12.72)])
def test_mobilenet_v2_on_the_same_cores_in_another_chip(threads: int, milliseconds: float) -> None:
    qcs605 = target.load("qcs605")
    gold = qcs605.unit.clusters[0].model_copy(update={"count": 4, "clock_ghz": 2.8})
    unit = qcs605.unit.model_copy(update={"clusters": (gold,), "l3_bytes": 2 << 20})
    memory = qcs605.dram.model_copy(update={"gbps": 29.9})
    snapdragon = qcs605.model_copy(update={"unit": unit, "dram": memory})
    predicted = predict(graph.from_model(networks.build("mobilenet_v2")), snapdragon, threads).latency_ms
    assert predicted == pytest.approx(milliseconds, rel=0.2)
