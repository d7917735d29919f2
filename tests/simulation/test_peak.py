"""The predicted peak of activations against what compiled libraries allocate."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nnc import entries, networks, recipe, target
from nnc import graph as graphs
from nnc.context import Context
from nnc.lowering.build import build
from nnc.simulation.analytic import predict


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
    told = entries.of_pairs(graph, {"kernels": [asdict(kernel) for kernel in paired.kernels]})
    assert paired.workspace_bytes == told["peak_activation_bytes"] < alone.workspace_bytes


class Paired:
    """Schedules that know nothing but that pairs are faster."""

    def find(self, workload: Any) -> None:
        return None

    def time(self, workload: Any) -> float:
        return 1.0 if workload.op == "expand_depthwise" else 2.0
