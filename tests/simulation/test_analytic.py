"""The roofline against arithmetic done by hand, and against published measurements."""

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph, measure, networks, target
from nnc.hardware import chip, efficiency
from nnc.hardware.efficiency import Efficiency
from nnc.simulation.analytic import Prediction, predict
from nnc.target import Target

# Of both types.
EFFICIENCY = (
    "{ winograd = 1.6, conv = 0.8, pointwise = 0.8, grouped = 0.4, depthwise = 0.25, narrow = 0.0, "
    "occupancy = 0.0, issue = 0.0, element = 0.0, cache = 1.0, dram = 1.0, alone = 1.0, "
    "serial = 0.0, kernel_us = 3.5, regroup = 0.5, sync_us = 3.0, network_us = 11.0 }"
)  # a kernel starts in twice of kernel_us where the host runs at 1 GHz, half of what that is said for

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
tvm = { kind = "llvm", mtriple = "aarch64-linux-gnu" }

[unit.efficiency]
float32 = EFFICIENCY
int8 = EFFICIENCY

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
""".replace("EFFICIENCY", EFFICIENCY)


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


# Of the convolution, in microseconds: reading and writing 2 x 16 384 bytes at 16 per nanosecond.
FROM_CACHE = 2.048


def test_a_layer_bound_by_compute(board: Target) -> None:
    prediction = predict(CONV, board)
    microseconds = 589_824 / (4.0 * 1.6) / 1e3 + FROM_CACHE + 7.0
    (only,) = prediction.layers
    assert only.latency_ms == pytest.approx(microseconds / 1e3)
    assert prediction.latency_ms == pytest.approx((microseconds + 11.0) / 1e3)
    assert prediction.by_layer == {"layer": only.latency_ms}
    assert (only.name, only.op, only.shape, only.macs, only.params) == ("layer", "Conv", (1, 16, 16, 16), 589_824, 2304)
    assert only.bound == "compute"
    assert prediction.peak_activation_bytes == 2 * 16_384
    assert prediction.error is None  # coefficients of one's own say nothing of it


def test_everyone_waits_for_the_slowest_core(board: Target) -> None:
    # Two cores share the work evenly; the little one takes 2 MACs per nanosecond, and 8 bytes from its cache. What the
    # other one wrote comes from the level that they share, at 16 bytes.
    microseconds = 589_824 / 2 / (2.0 * 1.6) / 1e3 + 2 * FROM_CACHE + 7.0 + 3.0
    assert predict(CONV, board, threads=2).layers[0].latency_ms == pytest.approx(microseconds / 1e3)


def test_no_error_is_claimed_in_a_type_that_was_not_measured() -> None:
    gpu = target.load("qcs605:gpu")  # whose profile was fitted in float16
    assert gpu.unit.efficiency["float16"].error
    assert predict(CONV, gpu).error is None


def test_no_error_is_claimed_of_values_that_a_dsp_computes_one_at_a_time() -> None:
    dsp = target.load("qcs605:dsp")
    known = dsp.unit.efficiency["int8"].model_copy(update={"error": 0.25})
    dsp = dsp.model_copy(update={"unit": dsp.unit.model_copy(update={"efficiency": {"int8": known}})})
    assert predict(CONV, dsp).error is None
    x, y = gs.Variable("x", np.float32, (1, 16, 16, 16)), gs.Variable("y", np.float32, (1, 16, 16, 16))
    without_macs = gs.Graph([gs.Node("Relu", "layer", {}, [x], [y])], [x], [y])
    assert predict(without_macs, dsp).error == 0.25


def with_coefficients(board: Target, **changes: float) -> Target:
    """The board with other coefficients for float32."""
    known = board.unit.efficiency
    changed = known | {"float32": known["float32"].model_copy(update=changes)}
    return board.model_copy(update={"unit": board.unit.model_copy(update={"efficiency": changed})})


def test_serial_work_stays_on_one_core(board: Target) -> None:
    microseconds = 589_824 * 0.75 / (2.0 * 1.6) / 1e3 + 2 * FROM_CACHE + 10.0
    slow = with_coefficients(board, serial=0.5)
    assert predict(CONV, slow, threads=2).layers[0].latency_ms == pytest.approx(microseconds / 1e3)


@pytest.mark.parametrize(
    ("coefficient", "value", "factor"),
    [
        ("narrow", 16.0, 2.0),  # as many as there are input channels
        ("packing", 16.0, 2.0),  # as many as there are output channels
        ("occupancy", 1024.0, 2.0),  # of 4 lanes, for 4096 outputs
        ("issue", 1.0, 1.0),  # the board does not say how many instructions it issues: enough
        ("element", 72.0, 1 + 72 * 1.6 * 8192 / 589_824),  # 8192 values are read or written
    ],
)
def test_what_makes_multiplying_slower(board: Target, coefficient: str, value: float, factor: float) -> None:
    microseconds = factor * 589_824 / (4.0 * 1.6) / 1e3 + FROM_CACHE + 7.0
    found = predict(CONV, with_coefficients(board, **{coefficient: value})).layers[0].latency_ms
    assert found == pytest.approx(microseconds / 1e3)


def test_a_slower_host_takes_longer_to_start_kernels() -> None:
    tiny = layer("Gemm", (1, 8), (4, 8), (1, 4), transB=1)
    board = target.load("jetson-nano:gpu")
    cpu = board.units[0]
    clusters = tuple(each.model_copy(update={"clock_ghz": each.clock_ghz / 2}) for each in cpu.clusters)
    slow = board.model_copy(update={"units": (cpu.model_copy(update={"clusters": clusters}), *board.units[1:])})
    found = [predict(tiny, each).layers[0].latency_ms for each in (board, slow)]
    start = board.unit.efficiency["float16"].kernel_us * 2.0 / cpu.clusters[0].clock_ghz
    assert found[1] - found[0] == pytest.approx(start / 1e3)


def test_tensor_cores_help_products_of_matrices_alone() -> None:
    """Eight times the multiplications per cycle leave a depthwise layer and a sum as fast as they were."""
    board = target.load("jetson-xavier:gpu")
    core = board.unit.clusters[0]
    vectors = core.model_copy(
        update={"macs_per_cycle": core.macs_per_cycle | {"float16": 2 * core.macs_per_cycle["float32"]}}
    )

    def milliseconds(built: gs.Graph, cluster: chip.Cluster) -> float:
        unit = board.unit.model_copy(update={"dtypes": ("float16",), "clusters": (cluster,)})
        return predict(built, board.model_copy(update={"unit": unit})).layers[0].latency_ms

    def speedup(built: gs.Graph) -> float:
        return milliseconds(built, vectors) / milliseconds(built, core)

    dense = layer("Conv", (1, 512, 64, 64), (512, 512, 1, 1), (1, 512, 64, 64))
    depthwise = layer("Conv", (1, 512, 64, 64), (512, 1, 3, 3), (1, 512, 64, 64), pads=[1] * 4, group=512)
    assert speedup(dense) > 2
    assert speedup(depthwise) == pytest.approx(1)


def test_gates_that_are_not_fused_are_read_and_written_and_started(board: Target) -> None:
    conv = CONV.nodes[0]
    z = gs.Variable("z", np.float32, (1, 16, 16, 16))
    gated = gs.Graph([conv, gs.Node("HardSwish", "gate", {}, conv.outputs, [z])], CONV.inputs, [z])
    fused, apart = (predict(gated, with_coefficients(board, unfused=share)).latency_ms for share in (0.0, 1.0))
    assert fused == pytest.approx(predict(CONV, board).latency_ms)
    assert apart == pytest.approx(fused + (FROM_CACHE + 7.0) / 1e3)


def test_a_bias_and_a_rectifier_are_always_fused(board: Target) -> None:
    conv, bias = CONV.nodes[0], gs.Constant("b", np.ones((16, 1, 1), np.float32))
    y, z = (gs.Variable(name, np.float32, (1, 16, 16, 16)) for name in ("sum", "z"))
    added, rectified = gs.Node("Add", "add", {}, [conv.outputs[0], bias], [y]), gs.Node("Relu", "relu", {}, [y], [z])
    built = gs.Graph([conv, added, rectified], CONV.inputs, [z])
    fused, apart = (predict(built, with_coefficients(board, unfused=share)).latency_ms for share in (0.0, 1.0))
    assert fused == apart


def test_a_core_that_issues_too_few_instructions_is_slower(board: Target) -> None:
    # A loop wants three per multiplication, and this one has one 128-bit multiplication per cycle: 1.5 are half.
    clusters = tuple(each.model_copy(update={"issue_width": 1}) for each in board.unit.clusters)
    narrow = board.model_copy(update={"unit": board.unit.model_copy(update={"clusters": clusters})})
    slow = with_coefficients(narrow, issue=0.5)
    microseconds = 3**0.5 * 589_824 / (4.0 * 1.6) / 1e3 + FROM_CACHE + 7.0
    assert predict(CONV, slow).layers[0].latency_ms == pytest.approx(microseconds / 1e3)


def test_a_layer_bound_by_memory(board: Target) -> None:
    big = layer("Gemm", (1, 2000), (1000, 2000), (1, 1000), transB=1)  # 8 MB of weights, 2 million MACs
    (only,) = predict(big, board).layers
    assert only.bound == "memory"
    multiplying, fetching = 2e6 / (4 * 0.8) / 1e3, 8e6 / 10e3  # microseconds, which overlap in part
    together = (multiplying**1.5 + fetching**1.5) ** (1 / 1.5)
    assert max(multiplying, fetching) < together < multiplying + fetching
    assert only.latency_ms == pytest.approx((together + 12_000 / 16e3 + 7) / 1e3)


def test_a_layer_bound_by_dispatch(board: Target) -> None:
    tiny = layer("Gemm", (1, 8), (4, 8), (1, 4), transB=1)
    assert predict(tiny, board).layers[0].bound == "dispatch"


def test_a_layer_bound_by_the_cache(board: Target) -> None:
    x, y = (gs.Variable(name, np.float32, (1, 8, 100, 100)) for name in "xy")
    copy = gs.Graph([gs.Node("Transpose", "copy", {}, [x], [y])], [x], [y])
    (only,) = predict(copy, board).layers
    assert only.bound == "cache"
    assert only.latency_ms == pytest.approx(640_000 / 16.0 / 1e6 + 0.007)


def test_what_the_caches_do_not_hold_comes_from_memory(board: Target) -> None:
    x, y = (gs.Variable(name, np.float32, (1, 8, 200, 200)) for name in "xy")
    copy = gs.Graph([gs.Node("Transpose", "copy", {}, [x], [y])], [x], [y])
    # From its own cache, from the one that all share, and from memory: nothing overlaps.
    expected = 2_560_000 / 16.0 / 1e6 * 2 + 2_560_000 / 10.0 / 1e6 + 0.007
    assert predict(copy, board).layers[0].latency_ms == pytest.approx(expected)


@pytest.mark.parametrize(
    ("w", "attrs", "share", "starts"),
    [
        ((16, 16, 3, 3), {"pads": [1, 1, 1, 1]}, 1.6, 1),
        ((16, 16, 5, 5), {"pads": [2, 2, 2, 2]}, 0.8, 1),
        ((16, 16, 3, 3), {"pads": [2, 2, 2, 2], "dilations": [2, 2]}, 0.8, 1),
        ((16, 16, 1, 1), {}, 0.8, 1),
        ((16, 4, 3, 3), {"pads": [1, 1, 1, 1], "group": 4}, 0.4, 1 + 0.5 * 3),  # half of the groups start alone
        ((16, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 16}, 0.25, 1),
    ],
)
def test_classes_of_convolutions(
    board: Target, w: tuple[int, ...], attrs: dict[str, object], share: float, starts: float
) -> None:
    built = layer("Conv", (1, 16, 16, 16), w, (1, 16, 16, 16), **attrs)
    expected = measure.measure(built).macs / (4.0 * share) / 1e6 + FROM_CACHE / 1e3 + 0.007 * starts
    assert predict(built, board).layers[0].latency_ms == pytest.approx(expected)


def test_channels_that_do_not_fill_a_vector_cost_a_whole_one(board: Target) -> None:
    narrow = layer("Conv", (1, 16, 16, 16), (13, 16, 3, 3), (1, 13, 16, 16), pads=[1, 1, 1, 1])
    unwritten = 3 * 16 * 16 * 4 / 16e6  # three channels less to write
    assert predict(narrow, board).latency_ms == pytest.approx(predict(CONV, board).latency_ms - unwritten)


@pytest.mark.parametrize(
    ("op", "x", "w", "y", "attrs"),
    [
        ("MatMul", (16,), (16,), (), {}),
        ("MatMul", (2, 3, 5, 16), (16, 7), (2, 3, 5, 7), {}),
        ("Gemm", (16, 5), (16, 7), (5, 7), {"transA": 1}),
        ("ConvTranspose", (1, 16, 8, 8), (16, 3, 3, 3), (1, 3, 10, 10), {}),
        ("Conv", (1, 16, 8), (8, 16, 3), (1, 8, 6), {}),
        ("ConvInteger", (1, 16, 8, 8), (8, 16, 3, 3), (1, 8, 6, 6), {}),
        ("MatMulInteger", (2, 5, 16), (16, 7), (2, 5, 7), {}),
    ],
)
def test_layers_of_other_shapes(
    board: Target, op: str, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...], attrs: dict[str, object]
) -> None:
    built = layer(op, x, w, y, **attrs)
    (only,) = predict(built, with_coefficients(board, narrow=4.0, occupancy=4.0)).layers
    assert only.macs == measure.measure(built).macs > 0
    assert only.latency_ms > 0.007


def test_a_layer_without_outputs_costs_nothing(board: Target) -> None:
    nothing = layer("Conv", (1, 4, 8, 8), (0, 4, 3, 3), (1, 0, 6, 6))
    assert 0 <= predict(nothing, board).latency_ms < 0.1


def test_energy_is_idle_power_macs_and_memory_traffic(board: Target) -> None:
    prediction = predict(CONV, board)
    idle = 2.0 * prediction.latency_ms
    assert prediction.energy_mj == pytest.approx(idle + 589_824 * 100e-9)  # all of it stays in the cache
    big = predict(layer("Gemm", (1, 2000), (1000, 2000), (1, 1000), transB=1), board)
    assert big.energy_mj == pytest.approx(2.0 * big.latency_ms + 2e6 * 100e-9 + 8e6 * 100e-9)


def energy(board: Path, *changes: tuple[str, str]) -> float | None:
    """Of CONV on a board with other figures, in millijoules; it takes as long."""
    text = BOARD
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    board.write_text(text)
    return predict(CONV, target.load(str(board))).energy_mj


PER_MAC = "picojoule_per_mac = { float32 = 100.0, int8 = 50.0 }"  # of the big core


def test_idle_power_and_the_watts_of_a_core_count_over_time(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    before = energy(path)
    milliseconds = predict(CONV, target.load(str(path))).latency_ms
    twice = energy(path, ("idle_watts = 2.0", "idle_watts = 4.0"))
    both = energy(path, (PER_MAC, f"active_watts = 0.5\n{PER_MAC}"))
    alone = energy(path, (PER_MAC, "active_watts = 0.5"))
    assert None not in (before, twice, both, alone)
    assert twice == pytest.approx(before + 2.0 * milliseconds)
    assert both == pytest.approx(before + 0.5 * milliseconds)
    assert alone == pytest.approx(2.5 * milliseconds)


def test_all_cores_that_take_part_draw_power(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    little = "picojoule_per_mac = { float32 = 50.0, int8 = 25.0 }"
    path.write_text(BOARD.replace(PER_MAC, "active_watts = 0.5").replace(little, "active_watts = 0.25"))
    prediction = predict(CONV, target.load(str(path)), threads=2)
    assert prediction.energy_mj == pytest.approx((2.0 + 0.75) * prediction.latency_ms)


@pytest.mark.parametrize("figure", ["idle_watts = 2.0", "picojoule_per_byte = 100.0", PER_MAC])
def test_no_energy_without_figures_of_power(tmp_path: Path, figure: str) -> None:
    assert energy(tmp_path / "board.toml", (figure, "")) is None
    assert predict(CONV, target.load("x86")).energy_mj is None


def resnet(spec: str, threads: int | None = None) -> Prediction:
    return predict(graph.from_model(networks.build("resnet18")), target.load(spec), threads)


def test_a_power_mode_trades_time_for_energy() -> None:
    fast, slow = resnet("jetson-xavier"), resnet("jetson-xavier@15W")
    idle = target.load("jetson-xavier").idle_watts
    assert idle is not None
    assert slow.latency_ms > 2 * fast.latency_ms
    assert slow.energy_mj is not None
    assert fast.energy_mj is not None
    # Above idle, which is another share of each.
    assert slow.energy_mj - idle * slow.latency_ms < 0.6 * (fast.energy_mj - idle * fast.latency_ms)


@pytest.mark.parametrize(
    "spec", ["x86", "qcs605", "qcs605:gpu", "qcs605:dsp", "jetson-xavier", "jetson-xavier:gpu@10W"]
)
def test_every_unit_predicts_every_network(spec: str) -> None:
    prediction = resnet(spec)
    layers = sum(each.latency_ms for each in prediction.layers)
    coefficients = target.load(spec).unit.efficiency
    reached = coefficients.get("float32", coefficients["int8"])  # a unit without floats computes in what it has
    assert prediction.latency_ms == pytest.approx(layers + reached.network_us / 1e3)
    assert sum(each.macs for each in prediction.layers) == 1_814_073_344
    assert sum(each.params for each in prediction.layers) == 11_689_512
    assert {each.bound for each in prediction.layers} <= {"compute", "cache", "memory", "dispatch"}


# Paddle-Lite 2.8 on a Snapdragon 845, milliseconds on 1, 2 and 4 of its Cortex-A75 cores
# (PaddlePaddle/Paddle-Lite, docs/benchmark/benchmark.md at 0568a31749).
@pytest.mark.parametrize(("threads", "milliseconds"), [(1, 40.31), (2, 22.43), (4, 12.72)])
def test_mobilenet_v2_as_another_engine_runs_it(threads: int, milliseconds: float) -> None:
    phone = target.load("snapdragon-845")
    paddle = Efficiency.model_validate(efficiency.profile("arm/paddle-lite")["float32"])
    unit = phone.unit.model_copy(update={"efficiency": phone.unit.efficiency | {"float32": paddle}})
    there = phone.model_copy(update={"unit": unit})
    predicted = predict(graph.from_model(networks.build("mobilenet_v2")), there, threads).latency_ms
    assert predicted == pytest.approx(milliseconds, rel=0.2)
