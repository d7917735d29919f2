"""Checkpoints: what a state depends on, and where its weights are."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from nnc import graph as graphs
from nnc import passes, testing
from nnc.checkpoint import Checkpoints
from nnc.rewrite import Pass

TEXT = "net (float[1, 400] x) => (float y) <float[400, 40] W, float[40] b> { y = Gemm(x, W, b) }"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graphs.save(testing.graph(TEXT), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def keys(folder: Path, *steps: Pass, inputs: str = "inputs") -> list[str]:
    return Checkpoints(folder, folder / "model.onnx", inputs).keys(steps)


def test_keys_depend_on_all_that_came_before(tmp_path: Path) -> None:
    one, other = passes.FoldBatchNorm(), passes.FoldConstants()
    first = keys(tmp_path, one, other)
    assert keys(tmp_path, one, other) == first
    assert keys(tmp_path, one) == first[:1]
    assert not set(keys(tmp_path, other, one)) & set(first)
    assert not set(keys(tmp_path, one, other, inputs="others")) & set(first)
    changed = keys(tmp_path, one, passes.FoldConstants(growth=0))
    assert (changed[0] == first[0], changed[1] == first[1]) == (True, False)


def test_weights_of_the_model_and_of_its_data_file_stay_where_they_are(tmp_path: Path, model: Path) -> None:
    external = tmp_path / "external.onnx"
    onnx.save(onnx.load(model), external, save_as_external_data=True, location="external.data", size_threshold=0)
    for source in (model, external):
        folder = tmp_path / f"{source.stem}-checkpoints"
        checkpoints = Checkpoints(folder, source, "inputs")
        checkpoints.save("key", graphs.load(source), [])
        assert sorted(path.name for path in folder.iterdir()) == ["key.json", "key.onnx"]
        found = Checkpoints(folder, source, "inputs").last(["other", "key", "later"])
        assert found is not None
        assert graphs.to_model(found[0]) == graphs.to_model(graphs.load(source))


def test_new_weights_are_stored_once(tmp_path: Path, model: Path) -> None:
    graph = graphs.load(model)
    graph.nodes[0].inputs[1].values = np.ones((400, 40), np.float32)
    checkpoints = Checkpoints(tmp_path / "c", model, "inputs")
    checkpoints.save("one", graph, [])
    checkpoints.save("two", graphs.copy(graph), [])
    assert len(list((tmp_path / "c").glob("*.weights"))) == 1
    found = Checkpoints(tmp_path / "c", model, "inputs").last(["one", "two"])
    assert found is not None
    testing.check_outputs(graph, found[0])


def test_new_weights_are_stored_from_any_folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from one beside the model, whose parent is the model's folder."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    graph = graphs.load(model)
    graph.nodes[0].inputs[1].values = np.ones((400, 40), np.float32)
    Checkpoints(tmp_path / "c", model, "inputs").save("one", graph, [])
    found = Checkpoints(tmp_path / "c", model, "inputs").last(["one"])
    assert found is not None
    testing.check_outputs(graph, found[0])


@pytest.mark.parametrize("content", [b"", b"{", b"not a checkpoint"])
def test_damaged_files_count_as_missing(tmp_path: Path, model: Path, content: bytes) -> None:
    graph, folder = graphs.load(model), tmp_path / "c"
    for key in ("one", "two"):
        Checkpoints(folder, model, "inputs").save(key, graph, [])
    (folder / "two.json").write_bytes(content)
    assert Checkpoints(folder, model, "inputs").last(["one", "two"]) is not None
    (folder / "one.onnx").write_bytes(content)
    assert Checkpoints(folder, model, "inputs").last(["one", "two"]) is None
