"""Import and export: what a model means survives, and what nnc can't take is refused in one line."""

import gc
import random
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.parser import parse_model

from nnc import graph, passes, pipeline, target, testing, verify
from nnc.errors import NncError
from nnc.model import wire
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


def _with_initializers_of_one_name() -> onnx.ModelProto:
    model = chain()
    model.graph.initializer.append(model.graph.initializer[0])
    return model


def _with_short_weight() -> onnx.ModelProto:
    model = chain()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-8]
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
        (chain().SerializeToString().replace(b"Relu", b"Re\xffu"), "is not text"),
        (_with_initializers_of_one_name().SerializeToString(), "two initializers are called 'W'"),
        (_with_short_weight().SerializeToString(), "'W' holds 1720 bytes, which do not make a float32"),
    ],
)
def test_bad_file_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(NncError, match=message) as caught:
        graph.load(path)
    assert "\n" not in caught.value.message


MODELS = {
    "conv": """net (float[N, 3, 8, 8] x) => (float[N, 5] y)
        <float[6, 3, 3, 3] W, float[6] s, float[6] b, float[6] m, float[6] v, float[6, 5] F, float[5] c>
        { a = Conv<pads = [1, 1, 1, 1]>(x, W) n = BatchNormalization(a, s, b, m, v) r = Relu(n)
          p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, F, c) }""",
    "shapes": """net (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] y)
        <int64 two = {2}, int64 i1 = {1}, int64[1] v0 = {0}, int64[1] m1 = {-1}, int64[4] all = {1, 8, 4, 4}>
        { s = Shape(x) n = Gather(s, i1) h = Div(n, two) u = Unsqueeze(h, v0) c = Concat<axis = 0>(u, m1)
          a = Reshape(x, c) z = Clip(a) y = Reshape(z, all) }""",
    "constants": """net (float[1, 4] x) => (float[1, 4] y) <float[4, 4] W>
        { k = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() a = MatMul(x, W) y = Add(a, k) }""",
}


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_refused_or_compiled_but_never_crash(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    whole = [testing.model(text).SerializeToString() for text in MODELS.values()]
    path, context = tmp_path / "damaged.onnx", pipeline.Context(target.load("x86"))
    outcomes = []
    for _ in range(300):
        path.write_bytes(_damaged(rng, rng.choice(whole)))
        try:
            after, _ = pipeline.run(graph.load(path), [pass_() for pass_ in passes.GRAPH_PASSES], context)
            graph.save(after, tmp_path / "after.onnx")
            outcomes.append("compiled")
        except pipeline.PassFailed:
            raise
        except NncError as error:
            outcomes.append("two lines" if "\n" in error.message else "refused")
    assert set(outcomes) == {"compiled", "refused"}


def _damaged(rng: random.Random, content: bytes) -> bytes:
    """Cut off, with a piece missing, with a piece too many, or with a few bytes changed."""
    data, place = bytearray(content), rng.randrange(len(content))
    match rng.randrange(6):
        case 0:
            del data[place:]
        case 1:
            del data[place : place + rng.randrange(1, 20)]
        case 2:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
        case _:
            for _ in range(rng.choice([1, 1, 2, 4])):
                data[rng.randrange(len(data))] = rng.choice([0, 0x7F, 0xFF, rng.randrange(256)])
    return bytes(data)


def _model(
    nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], *weights: Any, **options: Any
) -> onnx.ModelProto:
    """A model of nodes on `x`, float [1, 4]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    opsets = [helper.make_opsetid("", options.pop("opset", 17)), helper.make_opsetid("my.ops", 1)]
    net = helper.make_graph(nodes, "net", [x], outputs, list(weights))
    return helper.make_model(net, opset_imports=opsets, ir_version=options.pop("ir", 8))


def _float(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


node = helper.make_node
Y = _float("y", [1, 4])
ONES = onnx.numpy_helper.from_array(np.ones(4, np.float32), "ones")
LARGE = onnx.numpy_helper.from_array(np.ones((400, 4), np.float32), "large")

ODDITIES = {
    "no node": (_model([], [_float("x", [1, 4])]), []),
    "an input is an output": (_model([node("Relu", ["x"], ["y"])], [Y, _float("x", [1, 4])]), ["Relu"]),
    "an output twice": (_model([node("Relu", ["x"], ["y"])], [Y, Y]), ["Relu"]),
    "a constant is an output": (
        _model([node("Add", ["x", "ones"], ["y"])], [Y, _float("ones", [4])], ONES),
        ["Add", "Identity"],
    ),
    "a large constant is an output": (
        _model([node("Relu", ["x"], ["y"])], [Y, _float("large", [400, 4])], LARGE),
        ["Relu", "Identity"],
    ),
    "two nodes of one name": (
        _model([node("Relu", ["x"], ["a"], "n"), node("Neg", ["a"], ["y"], "n")], [Y]),
        ["Relu", "Neg"],
    ),
    "nothing reads a weight": (_model([node("Relu", ["x"], ["y"])], [Y], LARGE), ["Relu"]),
    "optional inputs and outputs left out": (
        _model([node("Clip", ["x", "", "one"], ["a"]), node("Dropout", ["a"], ["y", ""])], [Y],
               onnx.numpy_helper.from_array(np.float32(1), "one")), ["Clip", "Dropout"],
    ),
    "sequences inside": (
        _model([node("SequenceConstruct", ["x", "x"], ["s"]), node("SequenceAt", ["s", "zero"], ["y"])], [Y],
               onnx.numpy_helper.from_array(np.int64(0), "zero")), ["SequenceConstruct", "SequenceAt"],
    ),
    "an optional inside": (
        _model([node("Optional", ["x"], ["o"]), node("OptionalGetElement", ["o"], ["y"])], [Y]),
        ["Optional", "OptionalGetElement"],
    ),
    "an operator nobody knows": (
        _model([node("Mystery", ["x"], ["a"]), node("Relu", ["a"], ["y"])], [Y]),
        ["Mystery", "Relu"],
    ),
    "an operator nobody knows, in an old opset": (
        _model([node("Mystery", ["x"], ["a"]), node("Relu", ["a"], ["y"])], [Y], opset=11),
        ["Mystery", "Relu"],
    ),
    "an attribute that is no text": (
        _model([node("Plugin", ["x"], ["y"], domain="my.ops", blob=b"\xff\xfe")], [Y]),
        ["Plugin"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODDITIES)
def test_odd_models_survive(tmp_path: Path, name: str) -> None:
    model, ops = ODDITIES[name]
    loaded = graph.load(saved(model, tmp_path))
    assert [each.op for each in loaded.nodes] == ops
    graph.save(loaded, tmp_path / "again.onnx")
    again = graph.load(tmp_path / "again.onnx")
    assert graph.to_model(again) == graph.to_model(loaded)
    after, _ = pipeline.run(again, [pass_() for pass_ in passes.GRAPH_PASSES], pipeline.Context(target.load("x86")))
    assert [tensor.name for tensor in after.outputs] == [info.name for info in model.graph.output]


def test_empty_list_keeps_its_type(tmp_path: Path) -> None:
    plugin = node("Plugin", ["x"], ["y"], domain="my.ops")
    plugin.attribute.append(helper.make_attribute("sizes", [], attr_type=onnx.AttributeProto.INTS))
    loaded = graph.load(saved(_model([plugin], [Y]), tmp_path))
    assert graph.to_model(loaded).graph.node[0].attribute[0] == plugin.attribute[0]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("value", onnx.numpy_helper.from_array(np.arange(3, dtype=np.int8)), np.arange(3, dtype=np.int8)),
        ("value_float", 0.5, np.float32(0.5)),
        ("value_floats", [0.5, 2], np.array([0.5, 2], np.float32)),
        ("value_int", 3, np.int64(3)),
        ("value_ints", [3, 4], np.array([3, 4])),
        ("value_string", "text", np.array("text", object)),
        ("value_strings", ["a", "ü"], np.array(["a", "ü"], object)),
    ],
)
def test_every_kind_of_constant(tmp_path: Path, kind: str, value: Any, expected: np.ndarray) -> None:
    constant = node("Constant", [], ["k"], **{kind: value})
    k = helper.make_tensor_value_info("k", helper.np_dtype_to_tensor_dtype(expected.dtype), expected.shape)
    model = _model([constant, node("Relu", ["x"], ["y"])], [Y, k])
    loaded = graph.load(saved(model, tmp_path))
    graph.save(loaded, tmp_path / "again.onnx")
    for each in (loaded, graph.load(tmp_path / "again.onnx")):
        result = Session(each).run({"x": np.ones((1, 4), np.float32)})["k"]
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    "dtype",
    [
        np.float16,
        np.float64,
        np.int8,
        np.uint8,
        ml_dtypes.bfloat16,
        ml_dtypes.int4,
        ml_dtypes.uint4,
        ml_dtypes.float8_e4m3fn,
    ],
)
def test_every_dtype_keeps_its_bytes(tmp_path: Path, dtype: Any) -> None:
    values = np.random.default_rng(0).integers(-2 if np.dtype(dtype).kind != "u" else 0, 3, (41, 41))
    values = np.abs(values).astype(dtype) if np.dtype(dtype).name == "uint4" else values.astype(dtype)
    weight = onnx.numpy_helper.from_array(values, "W")
    w = helper.make_tensor_value_info("w", weight.data_type, [41, 41])
    model = _model([node("Relu", ["x"], ["y"]), node("Identity", ["W"], ["w"])], [Y, w], weight, opset=21, ir=10)
    graph.save(graph.load(saved(model, tmp_path)), tmp_path / "again.onnx")
    (constant,) = graph.constants(graph.load(tmp_path / "again.onnx"))
    assert constant.values.dtype == dtype
    np.testing.assert_array_equal(constant.values.astype(np.float32), values.astype(np.float32))


@pytest.mark.parametrize("opset", range(9, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_runs_after_all_passes(opset: int) -> None:
    before = graph.from_model(testing.model(MODELS["conv"], opset=opset))
    after, rows = pipeline.run(before, [pass_() for pass_ in passes.GRAPH_PASSES], pipeline.Context(target.load("x86")))
    assert "outputs equal" in {row.proof for row in rows}
    assert [each.op for each in after.nodes] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]


def test_weights_that_are_declared_as_inputs(tmp_path: Path) -> None:
    model = chain()
    model.ir_version, model.opset_import[0].version = 3, 8 + 1
    model.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [16, 3, 3, 3]))
    assert [tensor.name for tensor in graph.load(saved(model, tmp_path)).inputs] == ["x"]


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17)]
    twice = helper.make_function("my.ops", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], opsets)
    model = _model([node("Twice", ["x"], ["t"], domain="my.ops"), node("Twice", ["t"], ["y"], domain="my.ops")], [Y])
    model.functions.append(twice)
    loaded = graph.load(saved(model, tmp_path))
    assert [each.op for each in loaded.nodes] == ["Add", "Add"]
    np.testing.assert_array_equal(Session(loaded).run({"x": np.ones((1, 4), np.float32)})["y"], np.full((1, 4), 4))


def test_metadata_of_the_model_is_kept(tmp_path: Path) -> None:
    model = chain()
    helper.set_model_props(model, {"names": "cat,dog", "nnc.version": "0"})
    loaded = graph.copy(graph.load(saved(model, tmp_path)))
    graph.save(loaded, tmp_path / "again.onnx", {"nnc.version": "1"})
    props = onnx.load(tmp_path / "again.onnx").metadata_props
    assert {entry.key: entry.value for entry in props} == {"names": "cat,dog", "nnc.version": "1"}


def test_open_dimensions_of_an_output_keep_their_names(tmp_path: Path) -> None:
    nodes = [node("NonZero", ["x"], ["i"]), node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]
    loaded = graph.load(saved(_model(nodes, [_float("y", [2, "found"])]), tmp_path))
    graph.save(loaded, tmp_path / "again.onnx")
    onnx.checker.check_model(str(tmp_path / "again.onnx"), full_check=True)
    assert onnx.load(tmp_path / "again.onnx").graph.output[0].type.tensor_type.shape.dim[1].dim_param == "found"


def test_weights_are_released_after_the_check(tmp_path: Path) -> None:
    path = saved(chain(W=np.ones((16, 3, 3, 3), np.float32)), tmp_path)
    loaded = graph.load(path)
    wire.release_pages()
    weight = next(tensor for tensor in graph.constants(loaded) if tensor.name == "W")
    assert (weight.values == 1).all(), "pages come back when they are read"


def test_files_are_let_go_with_the_graph(tmp_path: Path) -> None:
    path = saved(chain(W=np.ones((16, 3, 3, 3), np.float32)), tmp_path)
    loaded = graph.load(path)
    assert wire.is_current(path)
    del loaded
    gc.collect()  # nodes and tensors refer to each other
    assert not wire.is_current(path)


def test_file_that_was_replaced_is_not_read_as_the_old_one(tmp_path: Path) -> None:
    path = saved(chain(W=np.ones((16, 3, 3, 3), np.float32)), tmp_path)
    loaded = graph.load(path)
    x = {"x": np.ones((1, 3, 8, 8), np.float32)}
    before = Session(loaded).run(x)["y"]
    with wire.replacing(path) as file:
        file.write(chain(W=np.zeros((16, 3, 3, 3), np.float32)).SerializeToString())
    np.testing.assert_array_equal(Session(loaded).run(x)["y"], before)


def test_copy_shares_weights_and_nothing_else() -> None:
    original = graph.from_model(chain())
    copied = graph.copy(original)
    assert graph.to_model(copied) == graph.to_model(original)
    copied.nodes[0].attrs["pads"][0] = 9
    copied.nodes[0].outputs[0].shape[0] = 9
    copied.nodes[0].inputs[1] = gs.Constant("other", np.zeros((16, 3, 3, 3), np.float32))
    assert original.nodes[0].attrs["pads"] == [1, 1, 1, 1]
    assert original.nodes[0].outputs[0].shape == [1, 16, 8, 8]
    assert original.nodes[0].inputs[1].name == "W"


def test_sort_keeps_the_order_where_it_can() -> None:
    text = "net (float[4] x) => (float y) { a = Relu(x) b = Neg(x) c = Abs(a) d = Exp(b) y = Add(c, d) }"
    loaded = testing.graph(text)
    assert [each.op for each in loaded.nodes] == ["Relu", "Neg", "Abs", "Exp", "Add"]
    loaded.nodes.reverse()
    graph.sort(loaded)
    verify.check_invariants(loaded)
    assert [each.op for each in loaded.nodes] == ["Relu", "Abs", "Neg", "Exp", "Add"]


def test_deep_graphs_are_sorted_without_recursion() -> None:
    chain_ = " ".join(f"v{index + 1} = Neg(v{index})" for index in range(3000))
    loaded = testing.graph(f"net (float[4] x) => (float y) {{ v0 = Relu(x) {chain_} y = Abs(v3000) }}")
    loaded.nodes.reverse()
    graph.sort(loaded)
    assert [loaded.nodes[0].op, loaded.nodes[-1].op] == ["Relu", "Abs"]


def test_shapes_are_inferred_again_after_a_change() -> None:
    loaded = graph.from_model(chain())
    loaded.nodes[0].attrs["pads"] = [0, 0, 0, 0]
    graph.infer_shapes(loaded)
    assert [each.outputs[0].shape for each in loaded.nodes] == [[1, 16, 6, 6], [1, 16, 6, 6]]


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(NncError, match="no such file"):
        graph.load(tmp_path / "none.onnx")
    with pytest.raises(NncError, match="a folder"):
        graph.load(tmp_path)


@pytest.mark.parametrize("shapes", [{"z": (1,)}, {"x": (1, 4, 8, 8)}, {"x": (1, 3)}])
def test_wrong_shape_option(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(NncError, match="--shape"):
        graph.load(saved(chain(), tmp_path), shapes)


@pytest.mark.parametrize(
    ("size", "window", "stride", "pads", "left"),
    [
        (14, 1, 2, 0, 7),  # the window that ceil_mode adds starts behind the image
        (13, 3, 2, 0, 6),
        (14, 3, 2, 0, 7),  # and here inside of it
        (6, 2, 3, 1, 3),
    ],
)
def test_pools_have_the_size_that_onnxruntime_gives_them(
    size: int, window: int, stride: int, pads: int, left: int
) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> net (float[1, 2, {size}, {size}] x) => (float[N, C, H, W] y) {{
        y = MaxPool<ceil_mode = 1, kernel_shape = [{window}, {window}], pads = [{pads}, {pads}, {pads}, {pads}],
                    strides = [{stride}, {stride}]>(x)
    }}"""
    net = graph.from_model(parse_model(text))
    (found,) = verify.outputs(net, verify.probe_inputs(net, 0)).values()
    assert list(found.shape) == net.outputs[0].shape == [1, 2, left, left]
