"""Plans: whatever the search tries computes the same, on vectors of every width, and survives being written down."""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import lowering, target, testing, verify
from nnc.session import Session
from nnc.target import Target
from nnc.tuning import devices, tasks

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="runs what it builds")

NET = """
net (float[1, 3, 17, 17] x) => (float[1, 10] y)
<float[32, 3, 3, 3] A, float[32] a, float[48, 32, 1, 1] B, float[32, 48, 3, 3] C, float[32] c, float[32, 1, 3, 3] D,
 float[32, 16, 3, 3] G, float[32, 10] H>
{
    f = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, A, a)
    r = Relu(f)
    p = Conv(r, B)
    w = Conv<pads = [1, 1, 1, 1]>(p, C, c)
    s = Add(w, r)
    q = Relu(s)
    d = Conv<pads = [1, 1, 1, 1], group = 32>(q, D)
    g = Conv<pads = [1, 1, 1, 1], group = 2>(d, G)
    m = GlobalAveragePool(g)
    v = Flatten(m)
    y = MatMul(v, H)
}
"""


BYTES = """
net (float[1, 3, 17, 17] x) => (float[1, 10] y)
<float s, uint8 z, float t, int8 o, int8[32, 3, 3, 3] A, int8[48, 32, 1, 1] B, int8[32, 48, 3, 3] C,
 int8[32, 1, 3, 3] D, int8[32, 10] H>
{
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    a = DequantizeLinear(A, t, o)
    f = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(xd, a)
    r = Relu(f)
    rq = QuantizeLinear(r, s, z)
    rd = DequantizeLinear(rq, s, z)
    b = DequantizeLinear(B, t, o)
    p = Conv(rd, b)
    pq = QuantizeLinear(p, s, z)
    pd = DequantizeLinear(pq, s, z)
    c = DequantizeLinear(C, t, o)
    w = Conv<pads = [1, 1, 1, 1]>(pd, c)
    wq = QuantizeLinear(w, s, z)
    wd = DequantizeLinear(wq, s, z)
    d = DequantizeLinear(D, t, o)
    e = Conv<pads = [1, 1, 1, 1], group = 32>(wd, d)
    m = GlobalAveragePool(e)
    v = Flatten(m)
    vq = QuantizeLinear(v, s, z)
    vd = DequantizeLinear(vq, s, z)
    h = DequantizeLinear(H, t, o)
    y = MatMul(vd, h)
}
"""


def of_bytes() -> gs.Graph:
    rng = np.random.default_rng(0)
    shapes = {"A": (32, 3, 3, 3), "B": (48, 32, 1, 1), "C": (32, 48, 3, 3), "D": (32, 1, 3, 3), "H": (32, 10)}
    weights = {name: rng.integers(-127, 128, shape).astype(np.int8) for name, shape in shapes.items()}
    steps = {"s": np.float32(0.03), "z": np.uint8(117), "t": np.float32(0.002), "o": np.int8(0)}
    return testing.graph(BYTES, **weights, **steps)


class Chosen:
    """Schedules that draw any layout, and any plan of each workload, and note its template."""

    def __init__(self, unit: Any, seed: int, only: Any = lambda plan: True) -> None:
        self._unit, self._rng, self._only = unit, np.random.default_rng(seed), only
        self.plans: list[Any] = []

    def find(self, workload: Any) -> Mapping[str, Any]:
        from nnc.lowering.kinds import encoded

        plans = [plan for plan in workload.plans(self._unit) if self._only(plan)] or [workload.default(self._unit)]
        self.plans.append(plans[self._rng.integers(len(plans))])
        return json.loads(json.dumps(encoded(self.plans[-1])))

    def times(self, workloads: Any) -> Callable[[Any], float]:
        """Any, so that layouts are drawn, too."""
        return lambda workload: float(self._rng.random())


def narrow(bits: int) -> Target:
    """This machine with vectors of so many bits."""
    chip = target.load("x86")
    level = {128: "x86-64-v2", 256: "x86-64-v3", 512: "x86-64-v4"}[bits]
    if bits > chip.unit.vector_bits:
        pytest.skip(f"no vectors of {bits} bits here")
    tvm = chip.unit.tvm | {"mcpu": level, "mattr": []}
    registers = 32 if bits == 512 else 16
    unit = chip.unit.model_copy(update={"vector_bits": bits, "vector_registers": registers, "tvm": tvm})
    return chip.model_copy(update={"unit": unit})


@pytest.mark.parametrize(("bits", "seed"), [(128, 0), (128, 1), (256, 2), (512, 3), (512, 4)])
def test_every_plan_computes_the_same(tmp_path: Path, bits: int, seed: int) -> None:
    from nnc.lowering.library import Library

    chip, graph = narrow(bits), testing.graph(NET)
    network = tasks.network(graph, chip, 2, lambda *_: None)
    chosen = Chosen(network.unit, seed)
    built = lowering.build(graph, chip, tmp_path, threads=2, schedules=chosen)
    assert len(built.tuned) == len(network.tasks) == 6
    inputs = verify.probe_inputs(graph, 0)
    (found,) = Library(tmp_path / "module.so", 2).run(list(inputs.values()))
    assert verify.largest_difference(Session(graph).run(inputs), {"y": found}) < 1e-4


@pytest.mark.parametrize(("bits", "seed"), [(128, 0), (256, 1), (256, 2), (512, 3)])
def test_every_plan_of_bytes_computes_the_same(tmp_path: Path, bits: int, seed: int) -> None:
    from nnc.lowering.library import Library

    chip, graph = narrow(bits), of_bytes()
    network = tasks.network(graph, chip, 2, lambda *_: None)
    ops = [task.workload.op for task in network.tasks]
    assert ops == ["int8_conv2d", "int8_conv2d", "int8_conv2d", "depthwise", "int8_gemm"]
    assert all(len(task.workload.plans(network.unit)) > 1 for task in network.tasks)
    chosen = Chosen(network.unit, seed)
    built = lowering.build(graph, chip, tmp_path, threads=2, schedules=chosen)
    assert len(built.tuned) == len(network.tasks)
    inputs = verify.probe_inputs(graph, 0)
    (found,) = Library(tmp_path / "module.so", 2).run(list(inputs.values()))
    (tmp_path / "default").mkdir()
    default = lowering.build(graph, chip, tmp_path / "default", threads=2)
    (expected,) = Library(default.files[0], 2).run(list(inputs.values()))
    np.testing.assert_array_equal(found, expected)  # sums of integers are exact
    assert np.abs(Session(graph).run(inputs)["y"] - found).max() < 0.02  # a mean is rounded to the next step


@pytest.mark.parametrize("bits", [256, 512])
def test_every_plan_of_bytes_can_be_timed(bits: int) -> None:
    """The function that is timed reads what the library's kernel reads: the same shapes and types."""
    chip, graph = narrow(bits), of_bytes()
    network = tasks.network(graph, chip, 2, lambda *_: None)
    rng = np.random.default_rng(bits)
    for task in network.tasks:
        plans = task.workload.plans(network.unit)
        for plan in (plans[0], plans[rng.integers(len(plans))], plans[-1]):
            arguments = devices.arrays(task.workload.function(plan, network.unit))
            assert arguments[0][1] == "uint8"
            assert arguments[devices.WEIGHTS][1] in ("int8", "int16")


def test_lanes_of_registers_are_multiplied_where_vectors_have_128_bits(tmp_path: Path) -> None:
    from nnc.lowering.library import Library

    chip, graph = narrow(128), testing.graph(NET)
    network = tasks.network(graph, chip, 1, lambda *_: None)
    chosen = Chosen(network.unit, 0, lambda plan: getattr(plan, "loads", "") == "vectors")
    lowering.build(graph, chip, tmp_path, threads=1, schedules=chosen)
    assert sum(getattr(plan, "loads", "") == "vectors" for plan in chosen.plans) >= 3
    inputs = verify.probe_inputs(graph, 0)
    (found,) = Library(tmp_path / "module.so", 1).run(list(inputs.values()))
    assert verify.largest_difference(Session(graph).run(inputs), {"y": found}) < 1e-4


def test_no_two_plans_of_bytes_differ_in_what_the_kernel_leaves_alone() -> None:
    network = tasks.network(of_bytes(), narrow(256), 2, lambda *_: None)
    for task in (task for task in network.tasks if task.workload.op == "int8_conv2d"):
        plans = [plan for plan in task.workload.plans(network.unit) if hasattr(plan, "ahead")]
        assert len({replace(plan, ahead=0) for plan in plans}) == len(plans) > 1


@pytest.mark.parametrize("instruction", ["vpmaddwd", "vpdpbusd", "smlal", "sdot"])
def test_tiles_of_bytes_fit_the_registers(instruction: Any) -> None:
    from nnc.lowering.kernels import int8_gemm
    from nnc.lowering.kernels.int8_dot import Dot
    from nnc.lowering.kernels.unit import Unit

    unit = Unit(128, 32, 2, 32 << 10, 512 << 10, 6.0, instruction)
    dot = Dot(instruction, 4)
    tiles = {plan.tile for plan in int8_gemm.plans(int8_gemm.Int8Gemm(49, 96, 64, dot), unit)}
    assert tiles
    assert all(dot.fits(tile.rows, tile.vectors, 32) for tile in tiles)


def test_estimates_count_all_images_of_a_batch() -> None:
    """Else Winograd's algorithm, whose tiles do, would look slower than it is."""

    def estimates(batch: int) -> dict[Any, float]:
        text = NET.replace("float[1, 3, 17, 17]", f"float[{batch}, 3, 17, 17]").replace("[1, 10]", f"[{batch}, 10]")
        network = tasks.network(testing.graph(text), narrow(256), 1, lambda *_: None)
        (workload,) = (task.workload for task in network.tasks if "48 -> 32, 3x3" in task.name)
        plans = workload.plans(network.unit)
        return dict(zip(plans, workload.estimates(plans, network.unit), strict=True))

    one, eight = estimates(1), estimates(8)
    direct = [plan for plan in one if hasattr(plan, "split") and not hasattr(plan, "outputs") and plan in eight]
    assert direct
    assert all(eight[plan] == pytest.approx(8 * one[plan]) for plan in direct)


def test_plans_that_are_none_of_a_workload_are_refused() -> None:
    from nnc.lowering.kinds import encoded

    network = tasks.network(testing.graph(NET), narrow(256), 2, lambda *_: None)
    for task in network.tasks:
        default = task.workload.default(network.unit)
        content = json.loads(json.dumps(encoded(default)))
        assert task.workload.decoded(content, network.unit) == default
        for wrong in (
            {},
            {"template": "x"},
            content | {"more": 1},
            content | {"tile": 3},
            content | {"columns": 999},
            content | {"columns": [3]},
        ):
            assert task.workload.decoded(wrong, network.unit) is None


def test_tasks_name_their_layers() -> None:
    network = tasks.network(testing.graph(NET), narrow(256), 2, lambda *_: None)
    assert [task.name for task in network.tasks][:2] == ["conv2d 3 -> 32, 3x3, 9x9", "conv2d 32 -> 48, 1x1, 9x9"]
    assert sum(len(task.layers) for task in network.tasks) == 6


def test_the_first_candidate_is_the_default_and_none_occurs_twice() -> None:
    network = tasks.network(testing.graph(NET), narrow(256), 2, lambda *_: None)
    for task in network.tasks:
        plans = task.workload.plans(network.unit)
        assert plans[0] == task.workload.default(network.unit)
        assert len(set(plans)) == len(plans) > 1
        assert len(task.workload.estimates(plans, network.unit)) == len(plans)
