"""Parameters, bytes and MACs: against published counts, against onnx's own shapes, and with quantized weights."""

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper

from nnc import graph, measure, networks

# Parameters and GFLOPS (which are multiply-accumulates in units of 10^9) of torchvision's table of models.
PUBLISHED = {
    "densenet121": (7_978_856, 2.83),
    "densenet201": (20_013_928, 4.29),
    "efficientnet_b0": (5_288_548, 0.39),
    "mobilenet_v2": (3_504_872, 0.30),
    "resnet18": (11_689_512, 1.81),
    "resnet50": (25_557_032, 4.09),
    "shufflenet_v2": (2_278_604, 0.14),
    "squeezenet1_1": (1_235_496, 0.35),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    figures = measure.measure(graph.from_model(networks.build(name)))
    assert (figures.params, round(figures.macs / 1e9, 2)) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("node", "inputs", "macs", "params"),
    [
        # 6 x 5 x 5 output values (padded), 4 x 3 x 3 products each
        (
            helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1]),
            [(1, 4, 5, 5), (6, 4, 3, 3), (6,)],
            5400,
            222,
        ),
        (helper.make_node("Conv", ["x", "w"], ["y"], group=4, strides=[2, 2]), [(1, 4, 5, 5), (4, 1, 3, 3)], 144, 36),
        # every one of the 4 x 5 x 5 input values meets 6 x 2 x 2 weights
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]), [(1, 4, 5, 5), (4, 6, 2, 2)], 2400, 96),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), [(2, 7), (3, 7)], 42, 21),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), [(7, 2), (7, 3)], 42, 21),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), [(5, 2, 7), (7, 3)], 210, 21),
        (helper.make_node("Conv", ["x", "w", "b"], ["y"]), [(1, 4, 5), (1, 4, 1), (1,)], 20, 5),
        (helper.make_node("Add", ["x", "w"], ["y"]), [(1, 4), (1, 4)], 0, 4),
        (helper.make_node("Mul", ["x", "w"], ["y"]), [(1, 4), (1,)], 0, 0),  # a factor, not a parameter
    ],
)
def test_one_node(node: onnx.NodeProto, inputs: list[tuple[int, ...]], macs: int, params: int) -> None:
    imported = _one_node(node, *inputs)
    figures = measure.measure(imported)
    assert (figures.macs, figures.params, figures.nodes) == (macs, params, 1)
    assert figures.weight_bytes == 4 * sum(math.prod(shape) for shape in inputs[1:])
    assert measure.params(imported.nodes[0]) == params


def test_running_statistics_are_stored_but_not_learned() -> None:
    node = helper.make_node("BatchNormalization", ["x", "w", "b", "mean", "var"], ["y"])
    figures = measure.measure(_one_node(node, (1, 8, 2, 2), (8,), (8,), (8,), (8,)))
    assert (figures.params, figures.weight_bytes) == (16, 128)


def test_a_shared_weight_counts_once() -> None:
    x = gs.Variable("x", np.float32, (1, 3))
    w = gs.Constant("w", np.ones((3, 3), np.float32))
    y, z = (gs.Variable(name, np.float32, (1, 3)) for name in "yz")
    nodes = [gs.Node("MatMul", inputs=[x, w], outputs=[y]), gs.Node("MatMul", inputs=[y, w], outputs=[z])]
    figures = measure.measure(gs.Graph(nodes, [x], [z]))
    assert (figures.params, figures.weight_bytes, figures.macs) == (9, 36, 18)


@pytest.mark.parametrize(("dtype", "size"), [("INT8", 36), ("UINT8", 36), ("INT4", 18), ("UINT4", 18)])
def test_quantized_weights_belong_to_their_layer(dtype: str, size: int) -> None:
    kind = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, dtype))
    x, y = gs.Variable("x", np.float32, (1, 4, 3, 3)), gs.Variable("y", np.float32, (4, 1, 3, 3))
    out = gs.Variable("out", np.float32, (1, 4, 1, 1))
    weight = gs.Constant("w", np.ones((4, 1, 3, 3), kind))
    scale = gs.Constant("scale", np.ones(4, np.float32))
    dequantize = gs.Node("DequantizeLinear", inputs=[weight, scale], outputs=[y], attrs={"axis": 0})
    conv = gs.Node("Conv", inputs=[x, y], outputs=[out], attrs={"group": 4})
    figures = measure.measure(gs.Graph([dequantize, conv], [x], [out]))
    assert (figures.params, figures.weight_bytes, figures.macs) == (36, size + 16, 36)
    assert (measure.params(conv), measure.params(dequantize)) == (36, 0)


@pytest.mark.parametrize(
    ("op", "shapes", "macs"),
    [
        ("ConvInteger", [(1, 4, 5, 5), (6, 4, 3, 3), (1, 6, 3, 3)], 1944),
        ("MatMulInteger", [(5, 7), (7, 3), (5, 3)], 105),
    ],
)
def test_operators_of_integers(op: str, shapes: list[tuple[int, ...]], macs: int) -> None:
    x, y = gs.Variable("x", np.uint8, shapes[0]), gs.Variable("y", np.int32, shapes[2])
    W = gs.Constant("W", np.ones(shapes[1], np.int8))
    zeros = [gs.Constant(name, np.zeros(shapes[2][1], np.int8)) for name in ("x_zero", "W_zero")]
    node = gs.Node(op, inputs=[x, W, *zeros], outputs=[y])
    figures = measure.measure(gs.Graph([node], [x], [y]))
    assert (figures.macs, figures.params) == (macs, math.prod(shapes[1]))


def test_nothing_is_counted_behind_an_open_shape() -> None:
    x, y = gs.Variable("x", np.float32, None), gs.Variable("y", np.float32, None)
    node = gs.Node("Conv", inputs=[x, gs.Constant("w", np.ones((4, 3, 1, 1), np.float32))], outputs=[y])
    figures = measure.measure(gs.Graph([node], [x], [y]))
    assert (figures.macs, figures.params) == (0, 12)


def test_shapes_and_indices_are_no_parameters() -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    x = gs.Variable("x", np.float32, (2, 3))
    y = gs.Variable("y", np.float32, (3, 2))
    shape = gs.Constant("shape", np.array([3, 2]))
    figures = measure.measure(gs.Graph([gs.Node(node.op_type, inputs=[x, shape], outputs=[y])], [x], [y]))
    assert (figures.params, figures.weight_bytes) == (0, 16)


def test_weights_on_disk_stay_there(tmp_path: Path) -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"])
    model = tmp_path / "m.onnx"
    w = helper.make_tensor("w", TensorProto.FLOAT, (64, 64), np.ones(4096, np.float32).tobytes(), raw=True)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 64)) for name in "xy"]
    onnx.save(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [w])), model)
    lazy = gs.import_onnx(onnx.load(model))
    assert measure.measure(lazy) == measure.Figures(params=4096, weight_bytes=16384, macs=4096, nodes=1)
    assert isinstance(lazy.nodes[0].inputs[1]._values, gs.ir.tensor.LazyValues)


def _one_node(node: onnx.NodeProto, *shapes: tuple[int, ...]) -> gs.Graph:
    """A graph of this node: its first input is the graph's, the others are constants."""
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, np.ones(math.prod(shape), np.float32))
        for name, shape in zip(node.input[1:], shapes[1:], strict=True)
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes[0])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)]
    )
    return gs.import_onnx(onnx.shape_inference.infer_shapes(model))


def test_conv_that_scales_channels() -> None:
    def conv(kernel: int = 1, groups: int = 4, **attrs: object) -> gs.Node:
        x = gs.Variable("x", np.float32, [1, 4, 6, 6])
        y = gs.Variable("y", np.float32, [1, 4, 6, 6])
        W = gs.Constant("W", np.ones((4, 4 // groups, kernel, kernel), np.float32))
        return gs.Node("Conv", attrs={"group": groups, **attrs}, inputs=[x, W], outputs=[y])

    assert measure.scales_channels(conv())
    assert not measure.scales_channels(conv(groups=1))
    assert not measure.scales_channels(conv(3, pads=[1, 1, 1, 1]))
    assert not measure.scales_channels(conv(strides=[2, 2], pads=[3, 3, 3, 3]))
