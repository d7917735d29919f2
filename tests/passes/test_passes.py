"""All graph passes together: on every reference network and every pretrained model, in any order."""

import inspect
import random
from pathlib import Path

import numpy as np
import onnx
import pytest

from nnc import graph as graphs
from nnc import networks, passes, pipeline, target, testing, verify
from nnc.model import wire
from nnc.rewrite import Pass

GRAPH_PASSES = [pass_() for pass_ in passes.GRAPH_PASSES]

# Smaller than published: the structure is what counts here.
SIZES = {
    "alexnet_caffe": 67,
    "vgg16": 32,
    "densenet201": 32,
    "densenet121": 32,
    "resnet56": 16,
    "inception_v3": 96,
    "inception_v4": 96,
    "inception_resnet_v2": 96,
    "squeezenet_ssd": 96,
}


def context() -> pipeline.Context:
    return pipeline.Context(target.load("x86"))


@pytest.mark.parametrize("pass_", passes.PASSES, ids=lambda pass_: pass_.name)
def test_names_and_documentation(pass_: type[Pass]) -> None:
    words = pass_.name.split("-")
    file = Path(inspect.getfile(pass_))
    assert file.stem == "_".join(words)
    assert pass_.__name__ == "".join(word.capitalize() for word in words).replace("Batchnorm", "BatchNorm")
    assert (Path(__file__).parent / f"test_{file.stem}.py").exists()
    text = inspect.getdoc(pass_) or ""
    places = [text.find(part) for part in ("->", pass_.effect.capitalize(), "Declines", "Reference:")]
    assert places == sorted(places)
    assert min(places) > 0
    assert all(field.description for field in pass_.model_fields.values())


@pytest.mark.parametrize("name", networks.NAMES)
def test_reference_networks(name: str) -> None:
    before = graphs.from_model(networks.build(name, input_size=SIZES.get(name, 64), width=0.25, classes=10))
    after, rows = pipeline.run(before, GRAPH_PASSES, context())
    assert {row.proof for row in rows} <= {"outputs equal", "unchanged"}
    assert not any(node.op in ("BatchNormalization", "Identity", "Shape") for node in after.nodes)
    assert len(after.nodes) <= len(before.nodes)
    _, again = pipeline.run(after, GRAPH_PASSES, context())
    assert [row.changed for row in again] == [0] * len(again)


@pytest.mark.parametrize("seed", range(4))
def test_any_order_keeps_the_outputs(seed: int) -> None:
    before = graphs.from_model(networks.build("shufflenet_v2", input_size=32, width=0.25, classes=10))
    shuffled = random.Random(seed).sample(GRAPH_PASSES, len(GRAPH_PASSES))
    after, _ = pipeline.run(before, shuffled, context())
    testing.check_outputs(before, after)


def test_same_bytes_every_time() -> None:
    model = networks.build("mobilenet_v2", input_size=32, width=0.25, classes=10)
    results = [pipeline.run(graphs.from_model(model), GRAPH_PASSES, context())[0] for _ in range(2)]
    one, other = (graphs.to_model(result).SerializeToString(deterministic=True) for result in results)
    assert one == other


def test_weights_that_no_pass_needs_stay_in_the_file(tmp_path: Path) -> None:
    text = """net (float[1, 8, 9, 9] x) => (float y) <float[8, 8, 3, 3] V, float[8, 8, 3, 3] W, float[8, 1, 1] c>
    { a = Conv(x, V) b = Identity(a) d = Relu(b) e = Conv(d, W) y = Mul(e, c) }"""
    graphs.save(testing.graph(text), tmp_path / "m.onnx")
    after, _ = pipeline.run(graphs.load(tmp_path / "m.onnx"), GRAPH_PASSES, context())
    places = {tensor.name: wire.origin(tensor.values) for tensor in graphs.constants(after)}
    assert places["V"] is not None
    assert places["V"][0] == tmp_path / "m.onnx"
    assert "W" not in places


@pytest.mark.parametrize(
    "op", ["Concat", "Identity", "Relu", "Reshape", "Shape", "Transpose", "BatchNormalization", "Conv"]
)
def test_operators_of_other_domains_are_left_alone(op: str) -> None:
    standard = op if op in ("Relu", "Transpose") else "Neg"
    text = f"""<ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]> net (float[2, 3] x) => (float[2, 3] y)
    {{ a = my.ops.{op}(x) b = my.ops.{op}(a) c = {standard}(b) y = my.ops.{op}(c) }}"""
    before = testing.graph(text)
    after, rows = pipeline.run(before, GRAPH_PASSES, context())
    assert after is before
    assert {row.changed for row in rows} == {0}


MODELS = [
    "cifar10_distiller_resnet20", "cifar10_distiller_resnet20_chpruned", "cifar10_mlperf_resnet8", "cifar10_resnet20",
    "cifar10_resnet44", "cifar10_resnet56", "imagenet_mobilenet_v1_0.25_128", "imagenet_mobilenet_v1_0.75_192",
    "imagenet_mobilenet_v2_1.0_224", "imagenet_mobilenet_v2_1.0_224_qdq", "imagenet_squeezenet1.0_deepcompression",
]  # fmt: skip


@pytest.mark.data
@pytest.mark.parametrize("name", MODELS)
def test_pretrained_models(data: Path, tmp_path: Path, name: str) -> None:
    before = graphs.load(data / "models" / f"{name}.onnx")
    after, _ = pipeline.run(before, GRAPH_PASSES, context())
    graphs.save(after, tmp_path / "after.onnx")
    onnx.checker.check_model(str(tmp_path / "after.onnx"), full_check=True)
    inputs = verify.probe_inputs(before, 1)
    reference, result = verify.outputs(before, inputs), verify.outputs(graphs.load(tmp_path / "after.onnx"), inputs)
    assert verify.largest_difference(reference, result) < 1e-4
    assert not any(node.op == "BatchNormalization" for node in after.nodes)


@pytest.mark.data
def test_quantized_model_stays_quantized(data: Path) -> None:
    before = graphs.load(data / "models" / "imagenet_mobilenet_v2_1.0_224_qdq.onnx")
    after, _ = pipeline.run(before, GRAPH_PASSES, context())
    for op in ("QuantizeLinear", "DequantizeLinear", "Conv"):
        assert [node.op for node in after.nodes].count(op) == [node.op for node in before.nodes].count(op)
    weights = [node.inputs[0] for node in after.nodes if node.op == "DequantizeLinear" and not node.inputs[0].inputs]
    assert weights
    assert {np.dtype(tensor.dtype).itemsize for tensor in weights if len(tensor.shape) == 4} == {1}
