"""What processors run of a graph in float16: as it is, or float32 with the same ends, and Casts only there."""

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import halving, inspection, lowering, networks, pipeline, report, target, testing, verify
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.prepare import prepared
from nnc.passes.cast_fp16 import CastFp16
from nnc.passes.fold_batchnorm import FoldBatchNorm
from nnc.simulation.analytic import predict

NATIVE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float16[1, 4, 6, 6] x, int32[1, 4, 6, 6] n) => (float16[1, 4, 6, 6] r, float[1, 4, 6, 6] y, float16[1, 4, 6, 6] z)
<float16[4, 4, 1, 1] W, float16[4] b>
{
    c = Conv(x, W, b)
    r = Relu(c)
    m = Cast<to = 10>(n)
    s = Add(r, m)
    y = Cast<to = 1>(s)
    t = Conv(s, W)
    z = Identity(t)
}
"""


def dtypes(graph: gs.Graph) -> set[str]:
    return {np.dtype(tensor.dtype).name for node in graph.nodes for tensor in (*node.inputs, *node.outputs)}


def halved(graph: gs.Graph) -> gs.Graph:
    return testing.run(CastFp16(), graph).graph


def network(name: str) -> gs.Graph:
    return graphs.from_model(networks.build(name, input_size=32, width=0.25, classes=10))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121", "shufflenet_v2"])
def test_the_network_before_it_was_cast(name: str) -> None:
    before = testing.run(FoldBatchNorm(), network(name)).graph
    wide = halving.executed(halved(before), False)
    verify.check_invariants(wide)
    assert [node.op for node in wide.nodes] == [node.op for node in before.nodes]
    assert "float16" not in dtypes(wide)
    inputs = verify.probe_inputs(before, 0)
    assert verify.snr_db(verify.outputs(before, inputs), verify.outputs(wide, inputs)) > 40


def test_ends_keep_their_types() -> None:
    graph = testing.graph(NATIVE)
    wide = halving.executed(graph, False)
    verify.check_invariants(wide)
    assert [np.dtype(each.dtype).name for each in (*wide.inputs, *wide.outputs)] == [
        "float16", "int32", "float16", "float32", "float16",
    ]  # fmt: skip
    assert sorted(node.op for node in wide.nodes) == sorted(
        ["Cast", "Conv", "Relu", "Cast", "Cast", "Cast", "Add", "Conv", "Identity", "Cast"]
    )
    assert wide.outputs[1].inputs[0].op == "Add"
    inputs = verify.probe_inputs(graph, 0)
    expected, found = verify.outputs(graph, inputs), verify.outputs(wide, inputs)
    assert all(verify.difference(expected[name], found[name]) < 2e-3 for name in expected)
    assert "float16" in dtypes(graph)


def test_what_has_no_halves_stays() -> None:
    floats = testing.graph(NATIVE.replace("float16", "float").replace("to = 10", "to = 1"))
    assert halving.executed(floats, False) is floats


def test_attributes_that_fix_a_type_are_kept() -> None:
    graph = testing.graph(
        "net (float16[4, 4] x) => (float16[4, 4] y) { e = EyeLike<dtype = 10>(x) s = Add(e, x) y = Relu(s) }"
    )
    wide = halving.executed(graph, False)
    verify.check_invariants(wide)
    assert {node.op: np.dtype(node.outputs[0].dtype).name for node in wide.nodes} == {
        "EyeLike": "float16", "Add": "float32", "Relu": "float32", "Cast": "float16"
    }  # fmt: skip


def test_an_input_that_is_an_output() -> None:
    graph = testing.graph("net (float[2] x) => (float16[2] h, float[2] y) { h = Cast<to = 10>(x) y = Cast<to = 1>(h) }")
    wide = halving.executed(graph, False)
    verify.check_invariants(wide)
    found = verify.outputs(wide, {"x": np.float32([1, 2])})
    assert (found["h"].dtype, found["y"].tolist()) == (np.float16, [1, 2])


@pytest.mark.parametrize("chip", ["x86", "raspberry-pi-3"])
def test_processors_without_the_arithmetic_are_predicted_in_float32(chip: str) -> None:
    graph = network("resnet18")
    half = pipeline.run(graph, [FoldBatchNorm(), CastFp16()], pipeline.Context(target.load(chip)))[0]
    before, after = (predict(each, target.load(chip)) for each in (graph, half))
    assert {layer.dtype for layer in after.layers} == {"float32"}
    assert after.latency_ms >= 0.99 * before.latency_ms
    assert after.peak_activation_bytes == before.peak_activation_bytes


@pytest.mark.parametrize("chip", ["qcs605", "jetson-orin-nano"])
def test_processors_with_it_compute_in_float16(chip: str) -> None:
    graph, board = network("resnet18"), target.load(chip)
    half = pipeline.run(graph, [FoldBatchNorm(), CastFp16()], pipeline.Context(board))[0]
    assert halving.executed(half, board.unit.halves) is half
    before, after = (predict(each, board) for each in (graph, half))
    assert {layer.dtype for layer in after.layers if layer.macs} == {"float16"}
    assert after.latency_ms < 0.8 * before.latency_ms
    assert after.peak_activation_bytes < 0.65 * before.peak_activation_bytes  # the input stays float32


def test_libraries_take_half_the_memory(tmp_path: Path) -> None:
    """Kernels between the Casts read and write float16, in blocks of eight channels."""
    board, graph = target.load("qcs605"), testing.run(FoldBatchNorm(), network("mobilenet_v2")).graph
    floats, halves = (lowering.build(each, board, tmp_path) for each in (graph, halved(graph)))
    assert halves.workspace_bytes <= 0.51 * floats.workspace_bytes
    assert halves.weight_bytes <= 0.6 * floats.weight_bytes  # biases stay float32
    assert {kernel.dtype for kernel in halves.kernels[:-1]} == {"float16"}
    assert {kernel.layout for kernel in halves.kernels if kernel.template in ("conv2d", "depthwise")} == {"NCHW8c"}


def test_quantized_networks_compute_in_float32_beside_their_integers() -> None:
    graph = testing.graph("""
        net (float16[1, 4] x) => (float16[1, 4] y) <float s = {0.5}, int8 z = {0}>
        {
            h = Relu(x)
            f = Cast<to = 1>(h)
            q = QuantizeLinear(f, s, z)
            d = DequantizeLinear(q, s, z)
            y = Cast<to = 10>(d)
        }
    """)
    assert [node.op for node in halving.executed(graph, True).nodes] == [
        "Cast", "Relu", "QuantizeLinear", "DequantizeLinear", "Cast",
    ]  # fmt: skip
    unit = Unit(128, 32, 1, 32 << 10, 512 << 10, 6.0, halves=True)
    assert not prepared(graph, unit).halves, "bytes are in blocks of four channels, whatever the ends are"
    assert prepared(testing.graph(NATIVE), unit).halves


def test_gpus_are_predicted_as_their_vendors_use_them() -> None:
    """And the report says that nnc's kernels don't."""
    gpu = target.load("qcs605:gpu")
    floats, halves = (predict(each, gpu) for each in (network("resnet18"), halved(network("resnet18"))))
    assert "float16" in {layer.dtype for layer in halves.layers if layer.macs}
    assert [any("multiply in float32" in each for each in report.remarks(said, gpu)) for said in (floats, halves)] == [
        False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("chip", ["x86", "jetson-xavier:gpu"])
def test_libraries_have_the_kernels_of_float32(chip: str, tmp_path: Path) -> None:
    before = testing.graph(NATIVE.replace("float16", "float").replace("to = 10", "to = 1"))
    built = [lowering.build(each, target.load(chip), tmp_path).kernels for each in (before, testing.graph(NATIVE))]
    floats, halves = ([each.template for each in kernels if "Conv" in each.op] for kernels in built)
    assert halves == floats == ["conv2d", "conv2d"]


def test_inspect_tells_the_peak_of_what_the_target_executes(tmp_path: Path) -> None:
    model, board = tmp_path / "model.onnx", target.load("raspberry-pi-4")  # which computes in float32
    graphs.save(testing.graph(NATIVE), model)
    without, told = (inspection.inspect(model, each, {})["totals"]["peak_activation_bytes"] for each in (None, board))
    assert told == predict(graphs.load(model), board).peak_activation_bytes > without
