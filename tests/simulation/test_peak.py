"""The predicted peak of activations against what compiled libraries allocate."""

from pathlib import Path

import pytest

from nnc import graph as graphs
from nnc import networks, recipe, target
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
    assert (
        build(graph, machine, tmp_path, threads=1).workspace_bytes == predict(graph, machine, 1).peak_activation_bytes
    )
