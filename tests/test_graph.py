"""Import and export: what a model means survives, and what nnc can't take is refused in one line."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.parser import parse_model

from nnc import graph, wire
from nnc.errors import NncError
from nnc.session import Session

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 8, 8] x) => (float[N, 16, 8, 8] y)
<float[16, 3, 3, 3] W, float[16] B>
{
    c = Conv<pads = [1, 1, 1, 1]>(x, W, B)
    y = Relu(c)
}
"""


def chain(**changes: np.ndarray) -> onnx.ModelProto:
    model = parse_model(CHAIN)
    rng = np.random.default_rng(0)
    weights = {"W": rng.standard_normal((16, 3, 3, 3), np.float32), "B": rng.standard_normal(16, np.float32)} | changes
    del model.graph.initializer[:]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def outputs(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)


def test_saved_model_computes_what_the_loaded_one_did(tmp_path: Path) -> None:
    source, target = saved(chain(), tmp_path), tmp_path / "again.onnx"
    graph.save(graph.load(source), target)
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(outputs(source, {"x": x})[0], outputs(target, {"x": x})[0])


def test_unknown_batch_becomes_one_and_shape_option_overrides_it(tmp_path: Path) -> None:
    path = saved(chain(), tmp_path)
    assert graph.load(path).outputs[0].shape == [1, 16, 8, 8]
    assert graph.load(path, {"x": (5, 3, 8, 8)}).outputs[0].shape == [5, 16, 8, 8]


def test_session_runs_weights_in_place(tmp_path: Path) -> None:
    path = saved(chain(), tmp_path)
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8), np.float32)
    result = Session(graph.load(path), outputs=["c"]).run({"x": x})
    np.testing.assert_allclose(result["y"], outputs(path, {"x": x})[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.maximum(result["c"], 0), result["y"])


def test_external_data_is_read_from_beside_the_model(tmp_path: Path) -> None:
    model = chain()
    expected = onnx.numpy_helper.to_array(model.graph.initializer[0])
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    constants = {tensor.name: tensor.values for tensor in graph.constants(graph.load(tmp_path / "m.onnx"))}
    np.testing.assert_array_equal(constants["W"], expected)


def test_large_model_is_split_into_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 2**20)  # leaves no room: as if the weights passed 2 GiB
    source = graph.from_model(chain(W=np.ones((16, 3, 3, 3), np.float32)))
    files = graph.save(source, tmp_path / "big.onnx")
    assert [file.name for file in files] == ["big.onnx", "big.onnx.data"]
    x = np.ones((1, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(outputs(files[0], {"x": x})[0], Session(source).run({"x": x})["y"])


def test_weights_stay_in_the_file_until_touched(tmp_path: Path) -> None:
    path = saved(chain(W=np.ones((16, 3, 3, 3), np.float32)), tmp_path)
    weight = next(tensor for tensor in graph.constants(graph.load(path)) if tensor.name == "W")
    found = wire.origin(weight.values)
    assert found is not None
    assert found[0] == path
    assert path.read_bytes()[found[1] : found[1] + 4] == np.float32(1).tobytes()


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_older_opsets_are_converted(tmp_path: Path, opset: int) -> None:
    model = chain()
    model.opset_import[0].version = opset
    assert graph.load(saved(model, tmp_path)).opset == 17


def test_constant_nodes_become_constants(tmp_path: Path) -> None:
    model = chain()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value_floats=[2.0]))
    model.graph.node.append(helper.make_node("Mul", ["y", "k"], ["z"]))
    model.graph.output[0].name = "z"
    assert [node.op for node in graph.load(saved(model, tmp_path)).nodes] == ["Conv", "Relu", "Mul"]


def test_unknown_domain_is_kept(tmp_path: Path) -> None:
    model = chain()
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    model.graph.node.append(helper.make_node("Mystery", ["c"], ["m"], domain="my.ops"))
    assert [node.op for node in graph.load(saved(model, tmp_path)).nodes] == ["Conv", "Relu", "Mystery"]


def _with_subgraph() -> onnx.ModelProto:
    model = chain()
    branch = helper.make_graph([], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model.graph.node.append(helper.make_node("If", ["y"], ["z"], then_branch=branch, else_branch=branch))
    return model


def _with_opset(version: int) -> onnx.ModelProto:
    model = chain()
    model.opset_import[0].version = version
    return model


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"not a model at all", "not an ONNX model"),
        (b"\x00" * 100, "not an ONNX model"),
        (chain().SerializeToString()[:-40], "not an ONNX model, or a damaged one"),
        (chain(W=np.full((16, 3, 3, 3), np.nan, np.float32)).SerializeToString(), "'W' holds NaN"),
        (chain(W=np.ones((16, 3, 9), np.float32)).SerializeToString(), "Conv"),
        (_with_subgraph().SerializeToString(), "holds a subgraph"),
        (_with_opset(8).SerializeToString(), "opset 8"),
        (_with_opset(999).SerializeToString(), "opset 999"),
    ],
)
def test_bad_file_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(NncError, match=message) as caught:
        graph.load(path)
    assert "\n" not in caught.value.message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(NncError, match="no such file"):
        graph.load(tmp_path / "none.onnx")
    with pytest.raises(NncError, match="a folder"):
        graph.load(tmp_path)


@pytest.mark.parametrize("shapes", [{"z": (1,)}, {"x": (1, 4, 8, 8)}, {"x": (1, 3)}])
def test_wrong_shape_option(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(NncError, match="--shape"):
        graph.load(saved(chain(), tmp_path), shapes)
