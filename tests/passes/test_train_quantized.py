"""train-quantized: what is trained is what onnxruntime and the compiled library compute, in the integers it may use."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import lowering, pipeline, quantize, target, testing, verify
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError
from nnc.lowering.library import Library
from nnc.passes.fold_batchnorm import FoldBatchNorm
from nnc.passes.insert_qdq import InsertQdq
from nnc.passes.train_quantized import TrainQuantized
from nnc.quantize import Config, LayerConfig, Scheme
from nnc.quantize.quantizing_pass import LayerOptions
from nnc.session import Session

torch = pytest.importorskip("torch")

from nnc.training.fake_quantization import FakeQuantization, quantized  # noqa: E402
from nnc.training.module import GraphModule  # noqa: E402

NET = """
net (float[1, 3, 8, 8] x) => (float[1, 4] y)
<
    float[8, 3, 3, 3] W1, float[8] s, float[8] b, float[8] m, float[8] v, float[8, 8, 3, 3] W2, float[8] B2,
    float[8, 8, 3, 3] W3, float[8] B3, float[8, 4] W4, float[4] B4
>
{
    c1 = Conv<pads = [1, 1, 1, 1]>(x, W1)
    n1 = BatchNormalization(c1, s, b, m, v)
    r1 = Relu(n1)
    c2 = Conv<pads = [1, 1, 1, 1]>(r1, W2, B2)
    r2 = Relu(c2)
    c3 = Conv<pads = [1, 1, 1, 1]>(r2, W3, B3)
    a = Add(c3, r1)
    r3 = Relu(a)
    p = GlobalAveragePool(r3)
    f = Flatten(p)
    y = Gemm<alpha = 0.5>(f, W4, B4)
}
"""


def network(seed: int = 0) -> gs.Graph:
    rng = np.random.default_rng(seed)
    shapes = {"W1": (8, 3, 3, 3), "W2": (8, 8, 3, 3), "W3": (8, 8, 3, 3), "W4": (8, 4)}
    weights = {name: 0.25 * rng.standard_normal(shape) for name, shape in shapes.items()}
    return testing.graph(NET, s=np.ones(8), b=np.zeros(8), m=np.zeros(8), v=np.ones(8), **weights)


@pytest.fixture
def images(tmp_path: Path) -> Dataset:
    """Four colours."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 4
    colours = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 40]])[labels]
    images = (colours[:, None, None] + rng.integers(-40, 40, (96, 8, 8, 3))).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    return Dataset.open(tmp_path / "images.npz", Preprocess(mean=(0.5,), std=(0.25,)), network().inputs)


def context(images: Dataset, chip: str = "x86", graph: gs.Graph | None = None) -> pipeline.Context:
    graph = graph or network()
    return pipeline.Context(target.load(chip), train=images, test=images, calibration=images, imported=graph)


def options(**given: Any) -> TrainQuantized:
    return TrainQuantized(**({"epochs": 8, "batch": 16, "learning_rate": 0.005, "optimizer": "adamw"} | given))


def outputs(graph: gs.Graph, images: Dataset) -> np.ndarray:
    """Of onnxruntime without its optimizations, for every sample."""
    session = Session(graph, optimized=False)
    return np.concatenate([next(iter(session.run(each).values())) for each in images.batches(1)])


def through_torch(graph: gs.Graph, images: Dataset) -> np.ndarray:
    """Of the module that training works with."""
    module = FakeQuantization(graph, {}).module().eval()
    inputs = {name: torch.from_numpy(values) for name, values in next(images.batches(len(images))).items()}
    with torch.no_grad():
        return next(iter(module(inputs).values())).numpy()


def integers(graph: gs.Graph, images: Dataset) -> dict[str, np.ndarray]:
    """The values of every QuantizeLinear's output by what it reads, before a Clip."""
    nodes = [node for node in graph.nodes if node.op == "QuantizeLinear"]
    names = {node.outputs[0].name: node.inputs[0].name for node in nodes}
    session = Session(graph, outputs=list(names), optimized=False)
    found: dict[str, list[np.ndarray]] = {}
    for each in images.batches(1):
        written = session.run(each)
        for name, read in names.items():
            found.setdefault(read.removesuffix("/clipped"), []).append(written[name])
    return {name: np.stack(values) for name, values in found.items()}


@pytest.mark.parametrize("chip", ["x86", "jetson-xavier:gpu"])
@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 4), (2, 3)])
def test_what_is_trained_is_what_onnxruntime_computes(
    images: Dataset, chip: str, weights: int, activations: int
) -> None:
    """To the bit in integers: the outputs, which are sums of them, differ by rounding of floats at most."""
    pass_ = options(weight_bits=weights, activation_bits=activations, epochs=2)
    result = testing.run(pass_, network(), context(images, chip))
    expected, found = outputs(result.graph, images), through_torch(result.graph, images)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_what_is_trained_is_what_is_stored(images: Dataset) -> None:
    """The module at the end of training and the graph that it is written into, which is read anew."""
    graph = network()
    FoldBatchNorm().run(graph, context(images))
    InsertQdq(weight_bits=4, activation_bits=4).run(graph, context(images))
    quantization = FakeQuantization(graph, {})
    module = quantization.module()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng), alpha=0.3 if "scale" in name else 1.0)
    inputs = {name: torch.from_numpy(values) for name, values in next(images.batches(len(images))).items()}
    with torch.no_grad():
        expected = module.eval()(inputs)["y"].numpy()
    assert quantization.write_back(module) == 4
    verify.check_invariants(graph)
    np.testing.assert_allclose(outputs(graph, images), expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("chip", ["x86", "jetson-xavier:gpu"])
def test_few_bits_are_few_integers(images: Dataset, chip: str) -> None:
    graph = testing.run(options(weight_bits=3, activation_bits=4, epochs=2), network(), context(images, chip)).graph
    stored = quantize.layers(graph)
    assert {name: len(np.unique(layer.integers)) <= 7 for name, layer in stored.items()} == {
        "n1": False, "c2": True, "c3": True, "y": False
    }  # fmt: skip
    found = integers(graph, images)
    assert {name: len(np.unique(values)) <= 16 for name, values in found.items()} == {
        "x": False, "r1": True, "r2": True, "c3": False, "r3": False, "p": False, "f": False
    }  # fmt: skip
    assert len(np.unique(found["r2"])) > 8, "what is not negative has all of them for itself"
    assert [node.op for node in graph.nodes].count("Clip") == 2, "in place of Relu"


def test_the_library_computes_the_same_integers(images: Dataset, tmp_path: Path) -> None:
    graph = testing.run(options(weight_bits=4, activation_bits=4, epochs=2), network(), context(images)).graph
    built = lowering.build(graph, target.load("x86"), tmp_path, threads=2)
    layers = [kernel for kernel in built.kernels if "Conv" in kernel.op or "Gemm" in kernel.op]
    assert {kernel.template for kernel in layers} <= {"int8_conv2d", "int8_gemm"}
    library, expected = Library(built.files[0], 2), outputs(graph, images)
    found = np.concatenate([library.run([*each.values()])[0] for each in images.batches(1)])
    np.testing.assert_allclose(found, expected, atol=1e-2 * np.abs(expected).max())
    assert np.mean(np.abs(found - expected) > 1e-5 * np.abs(expected).max()) < 0.1, "a tie rarely goes the other way"


def test_zero_epochs_are_insert_qdq(images: Dataset) -> None:
    folded = testing.run(FoldBatchNorm(), network()).graph
    same = {"weight_bits": 4, "activation_bits": 4, "method": "mse", "weight_method": "mse"}
    end = LayerOptions(weight_bits=8, activation_bits=8)
    expected = testing.run(InsertQdq(**same, layers={"n1": end, "y": end}), folded, context(images)).graph
    found = testing.run(options(epochs=0, weight_bits=4, activation_bits=4), network(), context(images)).graph
    assert graphs.to_model(found) == graphs.to_model(expected)


def test_training_wins_back_what_few_bits_lose(images: Dataset) -> None:
    from nnc.passes.fine_tune import FineTune

    floats = testing.run(FineTune(epochs=10, batch=16, learning_rate=0.05), network(), context(images)).graph
    given = context(images, graph=floats)
    before, after = (
        testing.run(options(weight_bits=2, activation_bits=2, epochs=epochs, distill={"logits": 1.0}), floats, given)
        for epochs in (0, 8)
    )
    expected = outputs(floats, images)
    errors = [float(np.square(outputs(each.graph, images) - expected).mean()) for each in (before, after)]
    assert errors[1] < 0.5 * errors[0]


def test_it_goes_on_from_integers(images: Dataset) -> None:
    """Layers that are quantized already keep their bits; all of it is trained."""
    folded = testing.run(FoldBatchNorm(), network()).graph
    start = testing.run(InsertQdq(weight_bits=4, activation_bits=4), folded, context(images)).graph
    result = testing.run(options(epochs=4, weight_bits=8), start, context(images))
    before, after = quantize.layers(start), quantize.layers(result.graph)
    assert [layer.scheme.bits for layer in after.values()] == [4] * 4
    assert all(not np.array_equal(before[name].scale, after[name].scale) for name in before)
    assert result.skipped == {}
    assert [node.op for node in result.graph.nodes] == [node.op for node in start.nodes]
    expected, found = outputs(result.graph, images), through_torch(result.graph, images)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    written = integers(result.graph, images)
    assert max(len(np.unique(written[name])) for name in ("r1", "r2")) <= 16


def test_layers_can_stay_in_floats_or_have_other_bits(images: Dataset) -> None:
    layers = {"c2": {"weight_bits": 5}}
    pass_ = options(weight_bits=4, epochs=1, exclude=("y",), layers=layers, ends_bits=2)
    result = testing.run(pass_, network(), context(images))
    found = quantize.layers(result.graph)
    assert {name: layer.scheme.bits for name, layer in found.items()} == {"n1": 4, "c2": 5, "c3": 4}
    assert result.skipped == {"y": "excluded by the recipe"}
    verify.check_invariants(result.graph)


@pytest.mark.parametrize(
    ("options_", "bits"),
    [({"per_channel": False}, [8, 4, 4, 8]), ({"activation_bits": 4}, [8, 4, 4, 8]), ({"weight_bits": 5}, [5] * 4)],
)
def test_options_of_all_layers_leave_the_ends_their_bits(images: Dataset, options_: Any, bits: list[int]) -> None:
    pass_ = options(weight_bits=4, epochs=0, layers={"*": options_})
    found = quantize.layers(testing.run(pass_, network(), context(images)).graph)
    assert [layer.scheme.bits for layer in found.values()] == bits
    assert {layer.scale.size for layer in found.values()} == ({1} if "per_channel" in options_ else {8, 4})


def test_what_is_not_known_is_refused(images: Dataset) -> None:
    """An operator of a domain of the user's own, whose output has no shape."""
    text = """
    <ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]>
    net (float[1, 3, 8, 8] x) => (float[1, 4] y) <float[4, 3, 1, 1] W, float[4] B>
    { s = my.domain.Strange(x)
      c = Conv(s, W, B)
      y = my.domain.Strange(c) }
    """
    graph = testing.graph(text)
    with pytest.raises(NncError, match="no operator Strange can be trained"):
        testing.run(options(), graph, context(images, graph=graph))


def test_statistics_that_are_not_folded_stay(images: Dataset) -> None:
    graph = network()
    InsertQdq().run(graph, context(images))
    quantization, before = FakeQuantization(graph, {}), dict(testing.weights(graph))
    module = quantization.module().train()
    inputs = {name: torch.from_numpy(values) for name, values in next(images.batches(len(images))).items()}
    module(inputs)["y"].square().sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.sub_(0.01 * parameter.grad.sign())
    quantization.write_back(module)
    after = testing.weights(graph)
    assert {name: np.array_equal(before[name], after[name]) for name in "smvb"} == {
        "s": False, "m": True, "v": True, "b": False
    }  # fmt: skip
    np.testing.assert_allclose(outputs(graph, images), through_torch(graph, images), atol=1e-4)


def test_equal_biases_part(images: Dataset) -> None:
    """Two layers with the same bias and, at first, the same steps share what is stored."""
    text = """
    net (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) <float[4, 3, 1, 1] V, float[4, 3, 1, 1] W, float[4] B>
    { a = Conv(x, V, B)
      b = Conv(x, W, B)
      s = Add(a, b)
      y = Conv(s, U, B) }
    """.replace("float[4] B>", "float[4] B, float[4, 4, 1, 1] U>")
    W = np.random.default_rng(0).standard_normal((4, 3, 1, 1))
    graph = testing.graph(text, V=W, W=W[::-1].copy(), B=np.ones(4))
    InsertQdq(per_channel=False).run(graph, context(images, graph=graph))
    makers = [layer.node.inputs[2].inputs[0] for layer in quantize.layers(graph).values()]
    assert makers[0] is makers[1]
    quantization = FakeQuantization(graph, {})
    module = quantization.module()
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.add_(0.02 * (index + 1))
    quantization.write_back(module)
    verify.check_invariants(graph)
    np.testing.assert_allclose(outputs(graph, images), through_torch(graph, images), atol=1e-3)


def test_a_plan_places_and_does_not_train(images: Dataset) -> None:
    given = context(images)
    given.trains = False
    result = testing.run(options(weight_bits=4), network(), given)
    assert set(result.skipped.values()) == {"only nnc compile trains"}
    assert set(quantize.layers(result.graph)) == {"n1", "c2", "c3", "y"}


def test_training_data_tell_ranges_where_there_are_no_others(images: Dataset) -> None:
    given = context(images)
    expected = testing.run(options(epochs=0), network(), given).graph
    given.calibration = None
    assert graphs.to_model(testing.run(options(epochs=0), network(), given).graph) == graphs.to_model(expected)


def test_nothing_to_quantize(images: Dataset) -> None:
    result = testing.run(options(exclude=("*",)), network(), context(images))
    assert set(result.skipped.values()) == {"excluded by the recipe"}
    assert quantize.layers(result.graph) == {}


def test_the_same_twice(images: Dataset) -> None:
    pass_ = options(weight_bits=4, activation_bits=4, epochs=2)
    one, other = (testing.run(pass_, network(), context(images)).graph for _ in range(2))
    assert graphs.to_model(one) == graphs.to_model(other)


def test_the_gradient_of_a_step_is_that_of_the_paper() -> None:
    """Equation 3: v - x / s inside, the ends outside; and 1 for x inside, 0 outside."""
    x = torch.tensor([-9.0, -0.9, 0.2, 1.3, 9.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    (quantized(x, step, None, (-4, 3)) * step).sum().backward()
    v = x.detach() / 0.5
    inside = (v > -4) & (v < 3)
    expected = torch.where(inside, v.round() - v, v.clamp(-4, 3))
    assert step.grad is not None
    assert float(step.grad) == pytest.approx(float(expected.sum()), abs=1e-5)
    np.testing.assert_array_equal(x.grad, inside.float())  # type: ignore[arg-type]


@pytest.mark.data
def test_a_network_that_others_quantized(data: Path) -> None:
    """What was not trained is what it was: outputs to the bit, and every integer."""
    graph = graphs.load(data / "models/imagenet_mobilenet_v2_1.0_224_qdq.onnx")
    quantization, before = FakeQuantization(graph, {}), dict(testing.weights(graph))
    module = quantization.module().eval()
    inputs = {name: torch.from_numpy(values) for name, values in verify.probe_inputs(graph, 0).items()}
    with torch.no_grad():
        found, expected = (next(iter(each(inputs).values())) for each in (module, GraphModule(graph).eval()))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert quantization.write_back(module) == 53
    after = testing.weights(graph)
    assert all(np.array_equal(values, after[name]) for name, values in before.items() if name in after)


def test_layers_may_add_what_is_computed(tmp_path: Path) -> None:
    graph = testing.graph(
        """net (float[1, 6] x, float[1, 6] c) => (float[1, 6] y)
        <float[6, 6] V, float[6] A, float[6, 6] W, float[6, 6] U>
        { a = Gemm(x, V, A) r = Relu(a) b = Gemm(r, W, x) y = Gemm(b, U, c) }"""
    )
    values = np.random.default_rng(0).standard_normal((2, 16, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=values[0], c=values[1], labels=np.arange(16) % 6)
    data = Dataset.open(tmp_path / "data.npz", Preprocess(), graph.inputs)
    result = testing.run(options(epochs=1), graph, context(data, graph=graph))
    np.testing.assert_allclose(outputs(result.graph, data), through_torch(result.graph, data), atol=1e-4)


def test_batches_that_are_not_in_front() -> None:
    """As attention has them: every sample is rounded by itself."""
    graph = testing.graph(
        """net (float[1, 5, 8] x) => (float[1, 5, 6] y)
        <float[8, 8] V, float[8] A, float[8, 6] W, int64[2] flat = {5, 8}, int64[3] long = {5, 1, 6}> {
            t = Transpose<perm = [1, 0, 2]>(x)
            f = Reshape(t, flat)
            a = Gemm(f, V, A)
            r = Relu(a)
            b = MatMul(r, W)
            l = Reshape(b, long)
            y = Transpose<perm = [1, 0, 2]>(l)
        }"""
    )
    placement = quantize.place(graph)
    ranges = {tensor.name: (-4.0, 4.0) for tensor in placement.sources}
    scheme, weights = Scheme("uint8", False), LayerConfig(Scheme("int8", True, True))
    quantize.insert(graph, placement, ranges, Config(lambda tensors: scheme, lambda node: weights))
    x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    expected = np.concatenate([Session(graph).run({"x": each[None]})["y"] for each in x])
    found = FakeQuantization(graph, {}).module()({"x": torch.from_numpy(x)})["y"]
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)
    found.sum().backward()
