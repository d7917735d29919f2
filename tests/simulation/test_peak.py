"""The predicted peak of activations against what compiled libraries allocate."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nnc import graph as graphs
from nnc import networks, recipe, target, testing
from nnc.compiling import entries
from nnc.compiling.library import storage_of
from nnc.context import Context
from nnc.lowering.build import build, storage
from nnc.lowering.workload import Unknown
from nnc.passes.cast_fp16 import CastFp16
from nnc.simulation.analytic import predict
from nnc.simulation.kernels import Storage


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("mobilenet_v2", 64), ("squeezenet1_1", 96)])
def test_the_peak_is_what_the_library_allocates(name: str, size: int, tmp_path: Path) -> None:
    """Between kernels; these networks are at their peak far from their input, which belongs to the caller."""
    machine = target.load("x86")
    graph = graphs.from_model(networks.build(name, input_size=size))
    for pass_ in recipe.load("simplify").passes:
        pass_.run(graph, Context(machine))
        graph.cleanup()
        graphs.sort(graph)
    built = build(graph, machine, tmp_path, threads=1)
    assert built.workspace_bytes == predict(graph, machine, 1).peak_activation_bytes


@pytest.mark.slow
def test_what_is_between_a_pair_takes_no_memory(tmp_path: Path) -> None:
    machine = target.load("x86")
    graph = graphs.from_model(networks.build("mobilenet_v2", input_size=64))
    for pass_ in recipe.load("simplify").passes:
        pass_.run(graph, Context(machine))
        graph.cleanup()
        graphs.sort(graph)
    alone, paired = (build(graph, machine, tmp_path, threads=1, schedules=each) for each in (None, Paired()))
    storage = storage_of(graph, {"kernels": [asdict(kernel) for kernel in paired.kernels]})
    told = entries.of_storage(graph, storage, machine.unit.halves)
    assert paired.workspace_bytes == told["peak_activation_bytes"] < alone.workspace_bytes


EXPANDED = """
net (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)
<float[16, 4, 1, 1] U, float[16, 1, 3, 3] V, float[4, 16, 1, 1] W>
{
    e = Conv(x, U)
    d = Conv<group = 16, pads = [1, 1, 1, 1]>(e, V)
    y = Conv(d, W)
}
"""


def test_pairs_take_the_memory_of_the_types_that_the_library_computes_in() -> None:
    floats = testing.graph(EXPANDED)
    half = testing.run(CastFp16(), testing.graph(EXPANDED)).graph
    names = [node.name for node in floats.nodes if node.outputs[0].name in ("e", "d")]
    pair = Storage([names])
    wide, narrow = (entries.of_storage(half, pair, halves)["peak_activation_bytes"] for halves in (False, True))
    assert wide == entries.of_storage(floats, pair, False)["peak_activation_bytes"] == (4 + 16) * 64 * 4
    assert narrow < wide


NARROW = """
net (float[1, 3, 8, 8] x) => (float[1, 3, 1, 1] y) <float[5, 3, 1, 1] U, float[37, 5, 3, 3] V, float[3, 37, 8, 8] W>
{
    a = Conv(x, U)
    b = Conv<pads = [1, 1, 1, 1]>(a, V)
    y = Conv(b, W)
}
"""


def test_blocks_that_are_not_full_take_all_of_their_memory(tmp_path: Path) -> None:
    machine, graph = target.load("x86"), testing.graph(NARROW)
    built = build(graph, machine, tmp_path, threads=1)
    after = storage_of(graph, {"kernels": [asdict(kernel) for kernel in built.kernels]})
    before = storage(graph, machine, Unknown(), threads=1)
    told = [entries.of_storage(graph, each, False)["peak_activation_bytes"] for each in (before, after)]
    assert told == [built.workspace_bytes] * 2
    assert told[0] > (5 + 37) * 64 * 4


class Paired:
    """Schedules that know nothing but that pairs are faster."""

    def find(self, workload: Any) -> None:
        return None

    def times(self, workloads: Any) -> Callable[[Any], float]:
        return lambda workload: 1.0 if workload.op == "expand_depthwise" else 2.0
