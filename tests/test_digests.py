"""Digests are equal where the contents are, and only there."""

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import testing
from nnc.digests import code_digest, digest, file_digest, graph_digest

NET = """
net (float[1, 40] x) => (float[1, 400] z)
<float[40, 400] W, float[400] b> { y = Gemm(x, W, b) z = Softmax<axis = 1>(y) }
"""


def test_digests_of_parts_and_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert file_digest(tmp_path / "file") == "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert digest("a", "bc") != digest("ab", "c")
    assert digest(b"a", "b") == digest("a", memoryview(b"b"))


def test_a_graph_is_the_same_after_a_copy_and_on_disk(tmp_path: Path) -> None:
    graph = testing.graph(NET)
    graphs.save(graph, tmp_path / "net.onnx")
    assert graph_digest(graph) == graph_digest(graphs.copy(graph)) == graph_digest(graphs.load(tmp_path / "net.onnx"))


def _touch(graph: gs.Graph) -> None:
    W = graph.nodes[0].inputs[1]
    W.values = W.values + np.eye(*W.shape, dtype=np.float32)


def _swap(graph: gs.Graph) -> None:
    W = graph.nodes[0].inputs[1]
    W.values = W.values[::-1]


@pytest.mark.parametrize(
    "change",
    [
        _touch,
        _swap,
        lambda graph: graph.nodes[1].attrs.update(axis=0),
        lambda graph: graph.nodes[0].inputs.pop(),
        lambda graph: setattr(graph.nodes[0], "name", "other"),
    ],
)
def test_a_graph_is_another_with_every_change(change: Callable[[gs.Graph], object]) -> None:
    graph = testing.graph(NET)
    before = graph_digest(graph)
    change(graph)
    assert graph_digest(graph) != before


def test_the_code_is_all_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("digests.py", "deep/other.py"):
        (tmp_path / name).write_text("one")
    monkeypatch.setattr("nnc.digests.__file__", str(tmp_path / "digests.py"))
    before = code_digest.__wrapped__()
    (tmp_path / "deep" / "other.py").write_text("two")
    assert code_digest.__wrapped__() != before


def test_the_code_is_also_passes_that_are_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("nnc", "passes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.py").write_text(name)
    spec = ModuleSpec("nnc.passes", None)
    spec.submodule_search_locations = [str(tmp_path / "passes")]
    monkeypatch.setattr("nnc.digests.__file__", str(tmp_path / "nnc" / "digests.py"))
    monkeypatch.setattr("nnc.digests.find_spec", lambda name: spec)
    before = code_digest.__wrapped__()
    (tmp_path / "passes" / "one.py").write_text("another")
    assert code_digest.__wrapped__() != before
