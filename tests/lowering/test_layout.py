"""Layouts: the cheapest assignment is found, whatever it is the numbers stay, and nothing is converted on the way."""

import itertools
import math
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnc import target as targets
from nnc import testing, verify
from nnc.errors import NncError
from nnc.lowering import build, emulate, pbqp
from nnc.lowering.build import unit_of
from nnc.lowering.layout import Layouts
from nnc.lowering.library import Library
from nnc.lowering.lower import layouts
from nnc.lowering.machine import machine
from nnc.lowering.workload import Workload
from nnc.passes.cast_fp16 import CastFp16
from nnc.session import Session

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="runs what it builds")

X86 = targets.load("x86")


def cost(chosen: Mapping[int, int], costs: Mapping[int, np.ndarray], edges: Mapping[Any, np.ndarray]) -> float:
    own = sum(float(cost[chosen[node]]) for node, cost in costs.items())
    return own + sum(float(matrix[chosen[one], chosen[other]]) for (one, other), matrix in edges.items())


def least(costs: Mapping[int, np.ndarray], edges: Mapping[Any, np.ndarray]) -> float:
    ways = itertools.product(*(range(len(each)) for each in costs.values()))
    return min(cost(dict(zip(costs, way, strict=True)), costs, edges) for way in ways)


@pytest.mark.parametrize("seed", range(20))
def test_trees_and_series_of_branches_are_solved_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = {node: rng.random(int(rng.integers(1, 4))) for node in range(7)}
    pairs = [(int(rng.integers(0, node)), node) for node in range(1, 7)]
    pairs = [*pairs, (0, 0)] if seed % 2 else [(0, 1), (1, 2), (2, 3), (3, 0), (3, 4), (4, 5), (5, 6), (6, 3)]
    edges = {pair: rng.random((len(costs[pair[0]]), len(costs[pair[1]]))) for pair in pairs}
    for matrix in edges.values():
        matrix[rng.random(matrix.shape) < 0.2] = math.inf
    expected = least(costs, edges)
    assert cost(pbqp.solve(costs, edges), costs, edges) == pytest.approx(expected) or expected == math.inf


@pytest.mark.parametrize("seed", range(10))
def test_where_all_are_connected_the_choice_is_close(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = {node: rng.random(3) for node in range(6)}
    edges = {pair: rng.random((3, 3)) for pair in itertools.combinations(range(6), 2)}
    assert cost(pbqp.solve(costs, edges), costs, edges) <= 1.25 * least(costs, edges)


NET = """
net (float[1, 3, 12, 12] x) => (float[1, 40, 6, 6] y)
<float[40, 3, 3, 3] A, float[40, 40, 1, 1] B, float[40, 1, 3, 3] D, float[64, 40, 1, 1] E, float[40, 64, 3, 3] F,
 float[8, 40, 1, 1] S, float[40, 8, 1, 1] T>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, A)
    r = Relu(a)
    b = Conv(r, B)
    s = Add(b, r)
    d = Conv<pads = [1, 1, 1, 1], group = 40>(s, D)
    g = GlobalAveragePool(d)
    h = Conv(g, S)
    i = Relu(h)
    j = Conv(i, T)
    k = Sigmoid(j)
    m = Mul(d, k)
    e = Conv(m, E)
    f = Conv<pads = [1, 1, 1, 1]>(e, F)
    y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(f)
}
"""

EXPANDED = """
net (float[2, 16, 11, 9] x) => (float[2, 24, 6, 5] y, float[2, 40, 11, 9] u)
<float[40, 16, 1, 1] A, float[40] a, float[40, 1, 3, 3] D, float[40] d, float[24, 40, 1, 1] B, float[48, 24, 1, 1] C,
 float[48, 1, 5, 5] E, float[24, 48, 1, 1] F, float[40, 16, 1, 1] T, float[40, 1, 3, 3] U>
{
    p = Conv(x, A, a)
    q = Relu(p)
    r = Conv<pads = [1, 1, 1, 1], strides = [2, 2], group = 40>(q, D, d)
    s = Relu(r)
    t = Conv(s, B)
    c = Conv(t, C)
    e = Conv<pads = [2, 2, 2, 2], group = 48>(c, E)
    f = Conv(e, F)
    y = Add(f, t)
    v = Conv(x, T)
    w = Conv<pads = [1, 1, 1, 1], group = 40>(v, U)
    u = Add(w, v)
}
"""

PARTS = """
net (float[1, 16, 8, 8] x) => (float[1, 64, 8, 8] y)
<float[32, 16, 1, 1] A, float[24, 16, 1, 1] B, float[64, 56, 1, 1] C, float[64, 32, 1, 1] D>
{
    a = Conv(x, A)
    b = Conv(x, B)
    ab = Concat<axis = 1>(a, b)
    c = Conv(ab, C)
    p, q = Split<axis = 1>(c)
    s = Add(p, q)
    y = Conv(s, D)
}
"""


class Times:
    """Random times, the same for the same workload, and pairs are less; and no plans."""

    def __init__(self, seed: int) -> None:
        self._rng, self._known = np.random.default_rng(seed), dict[str, float]()

    def find(self, workload: Workload) -> None:
        return None

    def times(self, workloads: Iterable[Workload]) -> Callable[[Workload], float]:
        return self.time

    def time(self, workload: Workload) -> float:
        time = self._known.setdefault(str(workload.key), 1 + float(self._rng.random()))
        return time / 2 if workload.op == "expand_depthwise" else time


def found(text: str) -> Layouts:
    known = machine(X86)
    return layouts(testing.graph(text), unit_of(X86, known, 1), known)


def class_of(made: Layouts, image: str) -> str:
    return next(name for name, images in made.members.items() if image in images)


def test_images_that_meet_are_in_equal_blocks() -> None:
    made = found(NET)
    assert class_of(made, "r") == class_of(made, "s") == class_of(made, "d") == class_of(made, "m")
    assert len({class_of(made, image) for image in ("r", "i", "e", "y")}) == 4
    assert made.allowed[class_of(made, "d")] == made.blocks
    assert class_of(made, "k") == class_of(made, "m")  # a gate is read in the blocks of what it multiplies


def test_parts_stay_whole_blocks() -> None:
    made = found(PARTS)
    lanes = made.blocks[0]
    for image in ("a", "b", "p", "q"):
        assert all(32 % block == 0 for block in made.allowed[class_of(made, image)] if block != lanes)


@pytest.mark.parametrize("text", [NET, PARTS, EXPANDED], ids=["gates", "parts", "expanded"])
@pytest.mark.parametrize("seed", range(3))
def test_every_layout_computes_the_same(tmp_path: Path, text: str, seed: int) -> None:
    graph, times = testing.graph(text), Times(seed)
    layout = found(text)
    blocks = layout.images(layout.cheapest(times.time))
    plain = build(graph, X86, tmp_path, threads=1)
    built = build(graph, X86, tmp_path, threads=1, schedules=times)
    assert bool(blocks) == ({each.layout for each in built.kernels} != {each.layout for each in plain.kernels})
    assert sum("to_" in k.template for k in built.kernels) <= sum("to_" in k.template for k in plain.kernels)
    inputs = verify.probe_inputs(graph, seed)
    results = Library(built.files[0], 1).run(list(inputs.values()))
    pairs = [kernel for kernel in built.kernels if kernel.template == "expand_depthwise"]
    assert len(pairs) == {NET: 1, PARTS: 0, EXPANDED: 2}[text]  # not where another reads what is between
    names = [tensor.name for tensor in graph.outputs]
    assert verify.largest_difference(Session(graph).run(inputs), dict(zip(names, results, strict=True))) < 1e-4


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("text", [NET, EXPANDED], ids=["gates", "expanded"])
def test_every_layout_computes_the_same_on_a_board(tmp_path: Path, text: str, dtype: str) -> None:
    try:
        emulate.emulator()
    except NncError as error:
        pytest.skip(error.message)
    board, graph = targets.load("qcs605"), testing.graph(text)
    made = testing.run(CastFp16(), graph).graph if dtype == "float16" else graph
    built = build(made, board, tmp_path, threads=2, schedules=Times(3))
    assert {kernel.template for kernel in built.kernels} >= {"expand_depthwise", "conv2d"}
    assert dtype in {kernel.dtype for kernel in built.kernels if kernel.template == "expand_depthwise"}
    inputs = verify.probe_inputs(graph, 0)
    found = emulate.EmulatedLibrary(built.files[0], board).run(list(inputs.values()))
    names = [tensor.name for tensor in graph.outputs]
    error = verify.largest_difference(Session(graph).run(inputs), dict(zip(names, found, strict=True)))
    assert error < (1e-4 if dtype == "float32" else 1e-2)


def test_nothing_changes_where_no_times_are_known() -> None:
    made = found(NET)
    assert made.images(made.cheapest(lambda workload: math.inf)) == {}


def test_only_layouts_of_which_all_times_are_known_are_chosen() -> None:
    made = found(NET)
    default = {layer.workload for layer in made.layers}
    assert made.images(made.cheapest(lambda workload: 1.0 if workload in default else math.inf)) == {}
    other = made.uniform(made.blocks[1])
    wide = {layer.variant(other) for layer in made.layers}
    times = {**dict.fromkeys(default, 1.0), **dict.fromkeys(wide, 0.5)}
    assert made.cheapest(lambda workload: times.get(workload, math.inf)) == other | {"x": made.blocks[0]}


def test_a_layer_that_nobody_timed_hides_no_times_of_others() -> None:
    made = found(NET)
    wide, unknown = made.uniform(made.blocks[1]), made.layers[1].workload.problem
    times = {
        **{layer.workload: 1.0 for layer in made.layers if layer.workload.problem != unknown},
        **{layer.variant(wide): 0.5 for layer in made.layers if layer.workload.problem != unknown},
    }
    chosen = made.cheapest(lambda workload: times.get(workload, math.inf))
    assert chosen[class_of(made, "f")] == made.blocks[1]


def test_kernels_of_integers_keep_the_blocks_that_they_have() -> None:
    values = ", ".join(["1", "-1"] * 128)
    made = found(f"""
        net (float[1, 16, 8, 8] x) => (float[1, 32, 8, 8] y)
        <int8[16, 16, 1, 1] W = {{{values}}}, float[32, 16, 1, 1] A, float s = {{0.02}}, int8 z = {{0}}>
        {{
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            w = DequantizeLinear(W, s, z)
            a = Conv(d, w)
            y = Conv(a, A)
        }}
    """)
    assert made.allowed[class_of(made, "a")] == made.blocks[:1]
    assert made.allowed[class_of(made, "y")] == made.blocks
