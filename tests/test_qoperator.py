"""Operators of integers are imported as QDQ, and compute what onnxruntime makes of the file within a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from nnc import graph as graphs
from nnc import integers, lowering, measure, target, testing, verify
from nnc.cli import app
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError
from nnc.lowering.library import Library
from nnc.session import Session
from nnc.simulation.analytic import predict

I8, U8, I32, F32 = np.int8, np.uint8, np.int32, np.float32
HOST = target.load("x86")


def drawn(*shape: int, dtype: Any = U8) -> np.ndarray:
    """Random integers: seven bits of a byte, so that no kernel saturates, or a bias."""
    rng = np.random.default_rng(sum(shape))
    low, high = {U8: (0, 128), I8: (-64, 64), I32: (-500, 500)}[dtype]
    return rng.integers(low, high, shape).astype(dtype)


def on_grid(scale: float | np.ndarray, zero: Any, dtype: Any = U8) -> tuple[np.ndarray, np.ndarray]:
    """A scale and a zero point."""
    return np.asarray(scale, F32), np.asarray(zero, dtype)


def one(
    op: str, *inputs: np.ndarray | None, fed: Sequence[int] = (0,), domain: str = "com.microsoft", version: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """A model of one operator; inputs at the places `fed` are the model's, the others constants."""
    names = ["" if each is None else f"i{place}" for place, each in enumerate(inputs)]
    made = helper.make_node(op, names, ["y"], "layer", domain=domain, **attributes)
    given = {name: each for name, each in zip(names, inputs, strict=True) if each is not None}
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(given[name].dtype), given[name].shape)
        for name in (f"i{place}" for place in fed)
    ]
    constants = [numpy_helper.from_array(each, name) for name, each in given.items() if int(name[1:]) not in fed]
    imports = [helper.make_opsetid("", version), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([made], "g", infos, [onnx.ValueInfoProto(name="y")], constants)
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def inputs_of(graph: gs.Graph) -> dict[str, np.ndarray]:
    def values(tensor: gs.Tensor) -> np.ndarray:
        if tensor.dtype == F32:
            return np.random.default_rng(1).standard_normal(tensor.shape).astype(F32)
        return drawn(*tensor.shape, dtype=tensor.dtype.type) if tensor.dtype != bool else drawn(*tensor.shape) > 60

    return {tensor.name: values(tensor) for tensor in graph.inputs}


def original(model: onnx.ModelProto | Path, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime makes of the file, without optimizations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return list(ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, dict(inputs)))


def imported(model: onnx.ModelProto) -> gs.Graph:
    """The graph, which computes what the model does: integers within one, floats within rounding."""
    graph = graphs.from_model(model)
    inputs = inputs_of(graph)
    for expected, found in zip(original(model, inputs), Session(graph).run(inputs).values(), strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        if expected.dtype.kind in "iu":
            assert np.abs(found.astype(int) - expected).max() <= 1
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    return graph


def ops(graph: gs.Graph) -> list[str]:
    """What is between DequantizeLinear and QuantizeLinear."""
    return [node.op for node in graph.nodes if node.op not in ("DequantizeLinear", "QuantizeLinear")]


# -- operators that are told what their integers stand for

X = drawn(2, 6, 9, 9)
IN, OUT = on_grid(0.02, 60), on_grid(0.05, 110)
STEPS = np.linspace(0.01, 0.03, 8)
OPERATORS = {
    "Conv-uint8": one("QLinearConv", X, *IN, drawn(8, 6, 3, 3), *on_grid(0.01, 70), *OUT, domain="", pads=[1] * 4),
    "Conv-int8": one(
        "QLinearConv", drawn(2, 6, 9, 9, dtype=I8), *on_grid(0.02, -5, I8), drawn(8, 3, 3, 3, dtype=I8),
        *on_grid(STEPS, np.zeros(8), I8), *on_grid(0.05, 9, I8), drawn(8, dtype=I32), domain="", group=2,
        strides=[2, 1], auto_pad="SAME_UPPER",
    ),
    "Conv-one-zero-point": one(
        "QLinearConv", X, *IN, drawn(8, 6, 3, 3, dtype=I8), *on_grid(STEPS, 0, I8), *OUT, drawn(8, dtype=I32),
        domain="",
    ),
    "Conv-one-scale": one(
        "QLinearConv", X, *IN, drawn(8, 6, 3, 3), *on_grid(0.01, np.full(8, 70)), *OUT, drawn(8, dtype=I32), domain="",
    ),
    "Conv-opset-10": one(
        "QLinearConv", X, *IN, drawn(8, 6, 1, 1, dtype=I8), *on_grid(STEPS, np.zeros(8), I8), *OUT,
        drawn(8, dtype=I32), domain="", version=10,
    ),
    "MatMul-columns": one(
        "QLinearMatMul", drawn(2, 3, 7), *IN, drawn(7, 8, dtype=I8), *on_grid(STEPS, np.zeros(8), I8), *OUT, domain="",
    ),
    "MatMul": one("QLinearMatMul", drawn(3, 7), *IN, drawn(7, 5), *on_grid(0.02, 70), *OUT, fed=(0, 3), domain=""),
    "Gemm": one(
        "QGemm", drawn(3, 7), *IN, drawn(8, 7, dtype=I8), *on_grid(STEPS, np.zeros(8), I8), drawn(8, dtype=I32), *OUT,
        transB=1, alpha=0.5,
    ),
    "Gemm-to-floats": one("QGemm", drawn(3, 7), *IN, drawn(7, 8), *on_grid(0.01, 70), None),
    "Add": one("QLinearAdd", X, *IN, drawn(6, 1, 1), *on_grid(0.01, 70), *OUT),
    "Mul": one("QLinearMul", X, *IN, X, *on_grid(0.01, 70), *OUT, fed=(0, 3)),
    "AveragePool": one("QLinearAveragePool", X, *IN, *OUT, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "GlobalAveragePool": one("QLinearGlobalAveragePool", X, *IN, *OUT, channels_last=0),
    "LeakyRelu": one("QLinearLeakyRelu", X, *IN, *OUT, alpha=0.2),
    "Sigmoid": one("QLinearSigmoid", X, *IN, *on_grid(1 / 256, 0)),
    "Softmax": one("QLinearSoftmax", X, *IN, *on_grid(1 / 256, 0), axis=1, opset=17),
    "Concat": one("QLinearConcat", *OUT, X, *IN, drawn(2, 3, 9, 9), *on_grid(0.01, 70), fed=(2, 5), axis=1),
    "Where": one("QLinearWhere", X[0, 0] > 60, X, *IN, X, *on_grid(0.01, 70), *OUT, fed=(0, 1, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_of_integers_is_one_of_floats_between_pairs(name: str) -> None:
    graph = imported(OPERATORS[name])
    assert ops(graph) == [name.partition("-")[0]]
    (layer,) = (node for node in graph.nodes if node.op in name)
    assert layer.name == "layer"
    assert graph.outputs[0].inputs[0].op == ("QuantizeLinear" if name != "Gemm-to-floats" else "Gemm")


def test_softmax_before_opset_13_is_over_all_axes_from_one_on() -> None:
    model = one("QLinearSoftmax", X, *IN, *on_grid(1 / 256, 0), axis=2, opset=12)
    assert ops(imported(model)) == ["Flatten", "Softmax", "Shape", "Reshape"]


PLANES = on_grid(np.full((2, 1, 5), 0.1), np.zeros((2, 1, 5)))
LEFT = {
    "channels-last": one("QLinearGlobalAveragePool", drawn(2, 9, 9, 6), *IN, *OUT, channels_last=1),
    "no-zero-point": one("QLinearSigmoid", X, *IN, np.float32(1 / 256)),
    "one-bias": one(
        "QGemm", drawn(3, 7), *IN, drawn(7, 8, dtype=I8), *on_grid(STEPS, np.zeros(8), I8), drawn(1, dtype=I32), *OUT
    ),
    "scales-along-no-axis": one("QLinearAdd", X, *IN, X, *on_grid(np.ones(6), np.zeros(6)), *OUT, fed=(0, 3)),
    "scales-of-more-axes": one("QLinearMatMul", drawn(2, 3, 7), *IN, drawn(2, 7, 5), *PLANES, *OUT, domain=""),
}
SHAPES = {
    "channels-last": (2, 1, 1, 6), "no-zero-point": X.shape, "scales-of-more-axes": (2, 3, 5), "one-bias": (3, 8),
    "scales-along-no-axis": X.shape,
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_pairs_cannot_say_stays(name: str) -> None:
    model = LEFT[name]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.UINT8, SHAPES[name]))
    assert [node.op for node in graphs.from_model(model).nodes] == [model.graph.node[0].op_type]


@pytest.mark.parametrize(
    "wrong",
    [
        helper.make_node("QLinearConv", ["x", "s"], ["y"]),
        helper.make_node("QLinearAdd", [], ["y"], domain="com.microsoft"),
        helper.make_node("Mul", ["x"], ["y"]),
        helper.make_node("Concat", [], ["y"]),
    ],
    ids=lambda node: f"{node.op_type}-{len(node.input)}",
)
def test_what_breaks_the_standard_is_told(wrong: onnx.NodeProto) -> None:
    model = one("QLinearSigmoid", X, *IN, *OUT)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, F32), "s"))
    model.graph.node[0].output[0] = "x"
    model.graph.node.append(wrong)
    with pytest.raises(NncError):
        graphs.from_model(model)


def test_scales_that_are_computed() -> None:
    """A bias then has a scale that is computed, too."""
    text = """
    net (uint8[1, 6, 5, 5] x, float s) => (uint8[1, 8, 5, 5] y)
    <int8[8, 6, 1, 1] W, float Ws = {0.01}, int8 Wz = {0}, uint8 z = {60}, float ys = {0.1}, int32[8] B>
    { t = Abs(s) y = QLinearConv(x, t, z, W, Ws, Wz, ys, z, B) }
    """
    model = testing.model(text, W=drawn(8, 6, 1, 1, dtype=I8), B=drawn(8, dtype=I32))
    assert ops(imported(model)) == ["Abs", "Mul", "Conv"]


def test_what_integers_stand_for_is_written_once() -> None:
    text = """
    net (uint8[1, 6, 5, 5] x) => (uint8[1, 6, 5, 5] y)
    <int8[6, 6, 1, 1] W, float s = {0.02}, float Ws = {0.0137}, int8 Wz = {0}, uint8 z = {60}>
    { a = QLinearConv(x, s, z, W, Ws, Wz, s, z) b = QLinearConv(a, s, z, W, Ws, Wz, s, z)
      y = com.microsoft.QLinearAdd(a, s, z, b, s, z, s, z) }
    """
    model = testing.model(text, W=drawn(6, 6, 1, 1, dtype=I8))
    model.opset_import.add(domain="com.microsoft", version=1)
    graph = imported(model)
    counts = Counter(node.inputs[0].name for node in graph.nodes if node.op == "DequantizeLinear")
    assert counts == {"x": 1, "W": 1, "a": 1, "b": 1}
    assert len({id(node.inputs[1]) for node in graph.nodes if node.op == "QuantizeLinear"}) == 1
    assert {"x", "a", "b", "y"} <= graphs.tensor_names(graph)
    assert [node.name for node in graph.nodes if node.op in ("Conv", "Add")] == ["a", "b", "y"]


# -- operators that move integers

MOVES = {
    "MaxPool": "y = MaxPool<kernel_shape = [2, 2], pads = [1, 0, 0, 1]>(q)",
    "Flatten": "y = Flatten(q)",
    "Concat": "r = Relu(x) p = QuantizeLinear(r, s, z) y = Concat<axis = 1>(p, q)",
    "Pad": "y = Pad(q, pads, z)",
    "Resize": "y = Resize<coordinate_transformation_mode = \"asymmetric\">(q, , sizes)",
    "Split": "y, t = Split<axis = 2>(q, halves)",
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_integers_moves_what_they_stand_for(name: str) -> None:
    text = f"""
    net (float[1, 4, 8, 6] x) => (uint8[N] y)
    <float s = {{0.02}}, uint8 z = {{60}}, int64[8] pads = {{0, 0, 1, 2, 0, 0, 0, 1}},
     float[4] sizes = {{1.0, 1.0, 2.0, 2.0}}, int64[2] halves = {{3, 5}}>
    {{ q = QuantizeLinear(x, s, z) {MOVES[name]} }}
    """
    model = testing.model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph = imported(model)
    (move,) = (node for node in graph.nodes if node.op == name)
    assert all(tensor.inputs[0].op == "DequantizeLinear" for tensor in move.inputs[: integers.MOVES[name]])
    assert all(tensor.outputs[0].op == "QuantizeLinear" for tensor in move.outputs)


@pytest.mark.parametrize("move", ["MaxPool<kernel_shape = [2, 2]>(x)", 'Resize<mode = "linear">(q, , sizes)'])
def test_what_is_more_than_a_move_of_known_integers_stays(move: str) -> None:
    text = f"""
    net (uint8[1, 4, 8, 6] x) => (uint8[N] y)
    <float s = {{0.02}}, uint8 z = {{60}}, float[4] sizes = {{1.0, 1.0, 2.0, 2.0}}>
    {{ f = DequantizeLinear(x, s, z) q = QuantizeLinear(f, s, z) y = {move} }}
    """
    model = testing.model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert graphs.from_model(model).outputs[0].inputs[0].op == move.partition("<")[0]


# -- dynamic quantization

DYNAMIC = """
net (float[2, 6, 5, 5] x) => (float[N] y)
<int8[8, 6, 3, 3] V, int8[5, 7] W, float Vs = {0.01}, float[7] Ws, int8 Vz = {3}, int8[7] Wz, float[1, 8, 1, 1] B>
"""
LAYERS = {
    "Conv": """{ q, s, z = DynamicQuantizeLinear(x) i = ConvInteger<pads = [1, 1, 1, 1]>(q, V, z, Vz)
                 f = Cast<to = 1>(i) t = Mul(s, Vs) m = Mul(f, t) y = Add(m, B) }""",
    "MatMul": """{ q, s, z = DynamicQuantizeLinear(x) t = Mul(Ws, s) i = MatMulInteger(q, W, z, Wz)
                   f = Cast<to = 1>(i) y = Mul(t, f) }""",
}


def dynamic(op: str) -> onnx.ModelProto:
    values = {"V": drawn(8, 6, 3, 3, dtype=I8), "W": drawn(5, 7, dtype=I8), "Wz": drawn(7, dtype=I8)}
    model = testing.model(DYNAMIC + LAYERS[op], Ws=np.linspace(0.01, 0.02, 7), **values)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize(("op", "behind"), [("Conv", ["Add"]), ("MatMul", [])])
def test_sums_of_integers_that_are_scaled_are_a_layer_of_floats(op: str, behind: list[str], tmp_path: Path) -> None:
    graph = imported(dynamic(op))
    assert ops(graph) == ["DynamicQuantizeLinear", op, *behind]
    assert measure.measure(graph).macs == (2 * 8 * 25 * 54 if op == "Conv" else 2 * 6 * 5 * 5 * 7)
    (layer,) = (layer for layer in predict(graph, HOST).layers if layer.macs)
    assert (layer.dtype, layer.reason) == (
        ("float32", "the scale of its input is computed") if op == "Conv" else ("float32, int8 weights", None)
    )
    inputs, built = inputs_of(graph), lowering.build(graph, HOST, tmp_path, threads=1)
    (found,) = Library(built.files[0], 1).run([*inputs.values()])
    np.testing.assert_allclose(found, Session(graph).run(inputs)["y"], rtol=1e-4, atol=1e-4)


def test_sums_of_integers_that_others_read_stay() -> None:
    model = dynamic("MatMul")
    model.graph.output.append(helper.make_tensor_value_info("i", TensorProto.INT32, None))
    graph = imported(model)
    assert sorted(ops(graph)) == ["DynamicQuantizeLinear", "MatMul", "MatMulInteger"]
    assert [measure.macs(node) for node in graph.nodes if node.op == "MatMulInteger"] == [2 * 6 * 5 * 5 * 7]


# -- networks as onnxruntime.quantization writes them

NETWORK = """
net (float[1, 3, 16, 16] image) => (float[1, 10] y)
<float[16, 3, 3, 3] V0, float[16] B0, float[16, 1, 3, 3] V1, float[16] B1, float[16, 16, 1, 1] V2, float[16] B2,
 float[10, 32] W, float[10] B, float[10, 10] U>
{
    c0 = Conv<pads = [1, 1, 1, 1]>(image, V0, B0)
    r0 = Relu(c0)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r0)
    c1 = Conv<group = 16, pads = [1, 1, 1, 1]>(p, V1, B1)
    r1 = Relu(c1)
    c2 = Conv(r1, V2, B2)
    a = Add(p, c2)
    k = Concat<axis = 1>(a, p)
    g = GlobalAveragePool(k)
    f = Flatten(g)
    h = Gemm<transB = 1>(f, W, B)
    s = Sigmoid(h)
    y = MatMul(s, U)
}
"""
KINDS = [
    pytest.param(per_channel, signed, id=f"{'int8' if signed else 'uint8'}-{'channels' if per_channel else 'tensors'}")
    for per_channel in (False, True)
    for signed in (False, True)
]


def quantized(model: Path, samples: Sequence[Mapping[str, np.ndarray]], per_channel: bool, signed: bool) -> Path:
    """The model in onnxruntime's QOperator form."""
    from onnxruntime import quantization

    class Samples(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = list(samples)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return self._left.pop() if self._left else None

    made = model.with_name("quantized.onnx")
    activations = quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8
    quantization.quantize_static(
        str(model), str(made), Samples(), quantization.QuantFormat.QOperator, per_channel=per_channel,
        activation_type=activations, weight_type=quantization.QuantType.QInt8, reduce_range=True,
    )  # fmt: skip
    return made


def small(folder: Path, per_channel: bool = True, signed: bool = False, opset: int = 17) -> tuple[Path, Path]:
    """The network, and its quantized form."""
    rng = np.random.default_rng(0)
    path = folder / "model.onnx"
    onnx.save(testing.model(NETWORK, opset=opset), path)
    samples = [{"image": rng.standard_normal((1, 3, 16, 16)).astype(F32)} for _ in range(8)]
    return path, quantized(path, samples, per_channel, signed)


@pytest.mark.parametrize(("per_channel", "signed"), KINDS)
def test_a_network_computes_with_integers(per_channel: bool, signed: bool, tmp_path: Path) -> None:
    floats, path = small(tmp_path, per_channel, signed)
    graph, given = graphs.load(path), onnx.load(path)
    assert {info.name for info in given.graph.input} == {tensor.name for tensor in graph.inputs}
    assert {name for node in given.graph.node for name in node.output} <= graphs.tensor_names(graph)

    whole, layers = measure.measure(graphs.load(floats)), measure.measure(graph)
    assert (layers.macs, layers.params) == (whole.macs, whole.params)
    found = [integers.layer(node) for node in graph.nodes if measure.macs(node)]
    assert len(found) == 5
    assert all(isinstance(each, integers.Layer) for each in found)
    assert all(layer.dtype == "int8" for layer in predict(graph, HOST).layers if layer.macs)

    inputs = inputs_of(graph)
    (expected,), (step, _) = original(path, inputs), _grid(graph.outputs[0])
    assert np.abs(Session(graph).run(inputs)["y"] - expected).max() <= 1.01 * step
    built = lowering.build(graph, HOST, tmp_path, threads=1)
    assert np.abs(Library(built.files[0], 1).run([*inputs.values()])[0] - expected).max() <= 1.01 * step


def _grid(tensor: gs.Tensor) -> tuple[float, int]:
    quantization = integers.of(tensor.inputs[0])
    assert quantization is not None
    return quantization.scale, quantization.zero


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_network_that_is_quantized_dynamically(per_channel: bool, tmp_path: Path) -> None:
    from onnxruntime import quantization

    floats, path = tmp_path / "model.onnx", tmp_path / "quantized.onnx"
    onnx.save(testing.model(NETWORK), floats)
    quantization.quantize_dynamic(str(floats), str(path), per_channel=per_channel, reduce_range=True)
    graph, whole = graphs.load(path), measure.measure(graphs.load(floats))
    assert (measure.measure(graph).macs, measure.measure(graph).params) == (whole.macs, whole.params)
    assert not {"Cast", "ConvInteger", "MatMulInteger"} & {node.op for node in graph.nodes}
    inputs = inputs_of(graph)
    (expected,), found = original(path, inputs), Session(graph).run(inputs)["y"]
    assert np.abs(found - expected).max() <= verify.tolerance(graph) * np.abs(expected).max()


@pytest.mark.parametrize("opset", [11, 12, 13])
def test_networks_of_older_opsets(opset: int, tmp_path: Path) -> None:
    _, path = small(tmp_path, per_channel=False, opset=opset)
    graph = graphs.load(path)
    assert sum(bool(measure.macs(node)) for node in graph.nodes) == 5
    inputs = inputs_of(graph)
    assert (
        np.abs(Session(graph).run(inputs)["y"] - original(path, inputs)[0]).max() <= 1.01 * _grid(graph.outputs[0])[0]
    )


@pytest.mark.parametrize("spec", ["x86", "qcs605:dsp"])
def test_commands(spec: str, tmp_path: Path) -> None:
    _, path = small(tmp_path)
    shown = CliRunner().invoke(app, ["inspect", str(path), "--target", spec])
    assert shown.exit_code == 0, shown.output
    out = tmp_path / "out"
    options = ["--target", spec, "-o", str(out), "--quiet", *(["--no-lower"] if spec != "x86" else [])]
    done = CliRunner().invoke(app, ["compile", "simplify", str(path), *options])
    assert done.exit_code == 0, done.output
    inputs = inputs_of(graphs.load(path))
    before, after = original(path, inputs)[0], original(out / "model.onnx", inputs)[0]
    assert np.abs(after - before).max() <= 1.01 * _grid(graphs.load(path).outputs[0])[0]


@pytest.mark.data
@pytest.mark.parametrize(("per_channel", "signed"), KINDS)
def test_a_pretrained_network_keeps_its_classes(per_channel: bool, signed: bool, data: Path, tmp_path: Path) -> None:
    floats = graphs.load(data / "models/cifar10_resnet20.onnx")
    prepared = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    calibration, test = (
        Dataset.open(data / f"cifar10/{part}.npz", prepared, floats.inputs) for part in ("calibration", "test")
    )
    model = tmp_path / "model.onnx"
    graphs.save(floats, model)
    graph = graphs.load(quantized(model, [*islice(calibration.batches(1), 32)], per_channel, signed))
    assert measure.measure(graph).macs == measure.measure(floats).macs
    session = Session(graph)
    reference = ort.InferenceSession(str(tmp_path / "quantized.onnx"), providers=["CPUExecutionProvider"])
    for inputs in islice(test.batches(1), 64):
        assert session.run(inputs)[graph.outputs[0].name].argmax() == reference.run(None, inputs)[0].argmax()
