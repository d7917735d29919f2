"""The reference networks against the figures that their papers and torchvision publish, and against onnxruntime."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from nnc import networks
from nnc.errors import NncError

# Parameters and multiply-accumulates of one 224x224 image as torchvision lists them (`num_params` and `_ops` of the
# weights). ResNet-56 for CIFAR-10: 0.85 M in table 6 of the paper; the exact figures were counted by hand.
PUBLISHED = {
    "vgg16": (138_357_544, 15.470e9),
    "resnet18": (11_689_512, 1.814e9),
    "resnet50": (25_557_032, 4.089e9),
    "resnet56": (853_018, 0.1255e9),
    "mobilenet_v2": (3_504_872, 0.301e9),
    "densenet121": (7_978_856, 2.834e9),
    "densenet201": (20_013_928, 4.291e9),
    "squeezenet1_1": (1_235_496, 0.349e9),
    "shufflenet_v2": (2_278_604, 0.145e9),
    "efficientnet_b0": (5_288_548, 0.386e9),
}
SMALL = [name for name in networks.NAMES if name != "vgg16"]  # vgg16 takes seconds to draw: narrowed where that will do


def weights(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    infos = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim) for info in infos}


def parameters(model: onnx.ModelProto) -> int:
    return sum(math.prod(shape) for name, shape in weights(model).items() if ".running_" not in name)


def macs(model: onnx.ModelProto) -> int:
    filters, outputs = weights(model), shapes(model)
    return sum(
        math.prod(outputs[node.output[0]]) * math.prod(filters[node.input[1]][1:])
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm")
    )


def session(model: onnx.ModelProto, optimized: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def small(name: str, **changes: object) -> onnx.ModelProto:
    """The network at half width on a small input: every layer of it, in a tenth of the time."""
    size = 32 if name == "resnet56" else 64
    return networks.build(name, **({"input_size": size, "classes": 10, "width": 0.5} | changes))


def test_every_network_is_published() -> None:
    assert set(networks.NAMES) == set(PUBLISHED)


@pytest.mark.parametrize("name", networks.NAMES)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    model = networks.build(name)
    assert parameters(model) == PUBLISHED[name][0]
    assert macs(model) == pytest.approx(PUBLISHED[name][1], rel=4e-3)  # published with three digits


@pytest.mark.parametrize("name", networks.NAMES)
def test_models_are_valid_and_declare_the_shapes_that_they_compute(name: str) -> None:
    model = small(name)
    onnx.checker.check_model(model, full_check=True)
    declared = shapes(model)
    model.graph.output.extend(model.graph.value_info)
    run = session(model, optimized=False)
    outputs = run.run(None, {"input": np.zeros(declared["input"], np.float32)})
    assert declared["logits"] == (1, 10)
    for info, values in zip(run.get_outputs(), outputs, strict=True):
        assert declared[info.name] == values.shape


@pytest.mark.parametrize("name", networks.NAMES)
@pytest.mark.parametrize("change", [{"input_size": 97}, {"width": 1.3}, {"width": 0.05}, {"classes": 1}])
def test_options_make_networks_that_run(name: str, change: dict[str, float]) -> None:
    model = small(name, **change)
    size = shapes(model)["input"][2]
    (logits,) = session(model).run(None, {"input": np.ones((1, 3, size, size), np.float32)})
    assert logits.shape == (1, change.get("classes", 10))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", networks.NAMES)
def test_the_smallest_input_still_runs(name: str) -> None:
    smallest = networks._ARCHITECTURES[name].smallest
    model = small(name, input_size=smallest)
    (logits,) = session(model).run(None, {"input": np.ones((1, 3, smallest, smallest), np.float32)})
    assert np.isfinite(logits).all()
    with pytest.raises(NncError, match="too small"):
        small(name, input_size=smallest - 1)


@pytest.mark.parametrize("name", networks.NAMES)
def test_width_changes_parameters_about_quadratically(name: str) -> None:
    narrow, wide = (parameters(small(name, width=width, classes=1)) for width in (0.5, 1.0))
    assert 2.0 < wide / narrow < 4.5


@pytest.mark.parametrize("name", SMALL)
def test_activations_are_sane_and_tell_images_apart(name: str) -> None:
    """No layer is dead, saturated or growing, and the logits of two images differ by more than rounding."""
    model = networks.build(name, classes=100)
    model.graph.output.extend(model.graph.value_info)
    run = session(model)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, *shapes(model)["input"]), dtype=np.float32)
    outputs = [run.run(None, {"input": image}) for image in images]
    for info, values in zip(run.get_outputs(), outputs[0], strict=True):
        assert 0.03 < math.sqrt(np.mean(values**2)) < 20, info.name
    logits = np.stack([output[0][0] for output in outputs])
    assert np.std(logits, axis=0).mean() > 0.02 * np.std(logits)


@pytest.mark.parametrize("name", SMALL)
def test_networks_are_well_conditioned(name: str) -> None:
    """Rounding stays far below the 1e-4 at which compilers are compared: onnxruntime against itself, fused and not."""
    model = networks.build(name)
    image = np.random.default_rng(0).standard_normal(shapes(model)["input"], dtype=np.float32)
    fused, plain = (session(model, optimized).run(None, {"input": image})[0] for optimized in (True, False))
    assert np.abs(fused - plain).max() < 1e-5 * np.abs(plain).max()


def test_batch_normalization_is_not_trivial() -> None:
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in small("resnet18").graph.initializer}
    for kind, trivial in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        values = tensors[f"layer1.0.bn1.{kind}"]
        assert np.abs(values - trivial).max() > 0.1
        assert np.unique(values).size == values.size
    assert tensors["layer1.0.bn1.running_var"].min() > 0


def test_same_seed_same_bytes_other_seed_other_weights() -> None:
    first, again, other = (small("mobilenet_v2", seed=seed).SerializeToString() for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", networks.NAMES)
def test_names_are_unique_and_nodes_are_named_after_their_output(name: str) -> None:
    model = small(name)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(list(node.output) == [node.name] for node in model.graph.node[:-1])
    assert model.graph.node[-1].output[0] == "logits"
    assert [entry.version for entry in model.opset_import] == [17]


def test_parameter_names_are_those_of_torchvision() -> None:
    expected = {
        "resnet50": "layer2.0.downsample.0.weight",
        "mobilenet_v2": "features.2.conv.1.0.weight",
        "densenet121": "features.denseblock4.denselayer16.norm2.running_var",
        "squeezenet1_1": "features.12.expand3x3.bias",
        "shufflenet_v2": "stage3.7.branch2.5.weight",
        "efficientnet_b0": "features.2.0.block.2.fc2.bias",
    }
    for name, parameter in expected.items():
        assert parameter in weights(small(name))


def test_shapes_are_computed_where_torch_computes_them() -> None:
    operators = [node.op_type for node in small("shufflenet_v2").graph.node]
    assert operators.count("Shape") == 16 + 13  # a shuffle per unit, a split per unit of stride 1
    assert operators.count("Reshape") == 2 * 16
    assert operators.count("Slice") == 2 * 13
    assert "Split" not in operators


def test_channel_shuffle_interleaves_the_groups() -> None:
    from nnc.networks.network import Network
    from nnc.networks.shufflenet import channel_shuffle

    net = Network("shuffle", 2, classes=1)
    model = net.finish(channel_shuffle(net, net.concat([net.input] * 2, "concat"), "shuffled", 2))
    image = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    (shuffled,) = session(model).run(None, {"input": image})
    np.testing.assert_array_equal(shuffled, image[:, [0, 0, 1, 1, 2, 2]])


def test_shortcuts_of_option_a_subsample_and_pad() -> None:
    from nnc.networks.network import Network
    from nnc.networks.resnet import padding

    net = Network("shortcut", 5, classes=1)
    model = net.finish(padding(net, net.input, "layer", 8, 2))
    image = np.random.default_rng(0).standard_normal((1, 3, 5, 5), dtype=np.float32)
    (padded,) = session(model).run(None, {"input": image})
    np.testing.assert_array_equal(padded[:, 2:5], image[:, :, ::2, ::2])
    assert not padded[:, :2].any()
    assert not padded[:, 5:].any()


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"name": "vgg61"}, "unknown network 'vgg61'", "did you mean 'vgg16'?"),
        ({"name": "mobilenetv2"}, "unknown network 'mobilenetv2'", "did you mean 'mobilenet_v2'?"),
        ({"name": "zzz"}, "unknown network 'zzz'", "known networks are vgg16, resnet18"),
        ({"name": "vgg16", "input_size": 8}, "vgg16: an input of 8x8 is too small", "32 is the smallest"),
        ({"name": "resnet56", "input_size": -1}, "resnet56: an input of -1x-1 is too small", "8 is the smallest"),
        ({"name": "resnet18", "classes": 0}, "resnet18: the number of classes must be at least 1, not 0", None),
        ({"name": "resnet18", "width": 0.0}, "resnet18: the width must be a number above 0, not 0", "1.0 is"),
        ({"name": "resnet18", "width": math.nan}, "resnet18: the width must be a number above 0, not nan", "1.0 is"),
        ({"name": "resnet18", "width": math.inf}, "resnet18: the width must be a number above 0, not inf", "1.0 is"),
        ({"name": "resnet18", "width": 1e6}, "resnet18: more than 2 GiB of weights", "smaller width"),
        ({"name": "mobilenet_v2", "classes": 10**9}, "mobilenet_v2: more than 2 GiB of weights", "fewer classes"),
        ({"name": "resnet18", "seed": -1}, "resnet18: the seed must be at least 0, not -1", None),
    ],
)
def test_mistakes_are_reported(arguments: dict, message: str, hint: str | None) -> None:
    with pytest.raises(NncError) as error:
        networks.build(**arguments)
    assert error.value.message == message
    assert hint in error.value.hint if hint else error.value.hint is None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc for the peak memory")
def test_building_vgg16_takes_less_than_twice_its_size() -> None:
    script = (
        "import re; from nnc import networks\n"
        "networks.build('vgg16')\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    peak_kib = int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
    assert peak_kib * 1024 < 2 * 4 * PUBLISHED["vgg16"][0]
