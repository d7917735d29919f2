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

# Parameters and multiply-accumulates of one image as torchvision lists them (`num_params` and `_ops` of the weights).
TORCHVISION = {
    "alexnet": (61_100_840, 0.714e9),
    "vgg11": (132_863_336, 7.609e9),
    "vgg11_bn": (132_868_840, 7.609e9),
    "vgg13": (133_047_848, 11.308e9),
    "vgg13_bn": (133_053_736, 11.308e9),
    "vgg16": (138_357_544, 15.470e9),
    "vgg16_bn": (138_365_992, 15.470e9),
    "vgg19": (143_667_240, 19.632e9),
    "vgg19_bn": (143_678_248, 19.632e9),
    "resnet18": (11_689_512, 1.814e9),
    "resnet34": (21_797_672, 3.664e9),
    "resnet50": (25_557_032, 4.089e9),
    "resnet101": (44_549_160, 7.801e9),
    "resnet152": (60_192_808, 11.514e9),
    "resnext50_32x4d": (25_028_904, 4.230e9),
    "wide_resnet50_2": (68_883_240, 11.398e9),
    "mobilenet_v2": (3_504_872, 0.301e9),
    "mobilenet_v3_large": (5_483_032, 0.217e9),
    "mobilenet_v3_small": (2_542_856, 0.057e9),
    "mnasnet": (4_383_312, 0.314e9),
    "mnasnet0_5": (2_218_512, 0.104e9),
    "mnasnet0_75": (3_170_208, 0.215e9),
    "mnasnet1_3": (6_282_256, 0.526e9),
    "densenet121": (7_978_856, 2.834e9),
    "densenet161": (28_681_000, 7.728e9),
    "densenet169": (14_149_480, 3.360e9),
    "densenet201": (20_013_928, 4.291e9),
    "squeezenet1_0": (1_248_424, 0.819e9),
    "squeezenet1_1": (1_235_496, 0.349e9),
    "googlenet": (6_624_904, 1.498e9),
    "inception_v3": (27_161_264 - 3_326_696, 5.713e9),  # without the auxiliary classifier's parameters
    "shufflenet_v2_x0_5": (1_366_792, 0.040e9),
    "shufflenet_v2": (2_278_604, 0.145e9),
    "shufflenet_v2_x1_5": (3_503_624, 0.296e9),
    "shufflenet_v2_x2_0": (7_393_996, 0.583e9),
    "efficientnet_b0": (5_288_548, 0.386e9),
    "efficientnet_b1": (7_794_184, 0.687e9),
    "efficientnet_b2": (9_109_994, 1.088e9),
    "efficientnet_b3": (12_233_232, 1.827e9),
    "efficientnet_b4": (19_341_616, 4.394e9),
    "efficientnet_b5": (30_389_784, 10.266e9),
    "efficientnet_b6": (43_040_704, 19.068e9),
    "efficientnet_b7": (66_347_960, 37.746e9),
    "efficientnet_v2_s": (21_458_488, 8.366e9),
    "regnet_y_400mf": (4_344_144, 0.402e9),
    "regnet_y_800mf": (6_432_512, 0.834e9),
    "regnet_y_1_6gf": (11_202_430, 1.612e9),
    "regnet_y_3_2gf": (19_436_338, 3.176e9),
    "regnet_x_400mf": (5_495_976, 0.414e9),
    "regnet_x_800mf": (7_259_656, 0.800e9),
    "regnet_x_1_6gf": (9_190_136, 1.603e9),
    "regnet_x_3_2gf": (15_296_552, 3.177e9),
}

# Of Caffe's model zoo, as the layers in https://github.com/Tencent/ncnn/tree/master/benchmark/models add up.
CAFFE = {
    "alexnet_caffe": (60_965_224, 0.724e9),
    "googlenet_caffe": (6_998_552, 1.583e9),
    "resnet50_caffe": (25_557_032, 3.858e9),
}
TORCHVISION |= CAFFE

# Of the auxiliary classifier of segmentation networks, which is left out.
AUXILIARY = (1024 * 256 * 9 + 2 * 256 + 256 * 21 + 21, 65 * 65 * (1024 * 256 * 9 + 256 * 21))
TORCHVISION |= {
    "fcn_resnet50": (35_322_218 - AUXILIARY[0], 152.717e9 - AUXILIARY[1]),
    "fcn_resnet101": (54_314_346 - AUXILIARY[0], 232.738e9 - AUXILIARY[1]),
    "deeplabv3_resnet50": (42_004_074 - AUXILIARY[0], 178.722e9 - AUXILIARY[1]),
    "deeplabv3_resnet101": (60_996_202 - AUXILIARY[0], 258.743e9 - AUXILIARY[1]),
    "deeplabv3_mobilenet_v3_large": (11_029_328 - 3851, 10.452e9 - 65 * 65 * 3810),
    "lraspp_mobilenet_v3_large": (3_221_538, 2.086e9),
}

# Parameters with BatchNormalization folded, and multiply-accumulates, of the files in ncnn's benchmark.
NCNN = {
    "resnet18_caffe": (11_688_872, 1_826_918_400),
    "mobilenet_v2_caffe": (3_488_872, 313_619_328),
    "mobilenet_v3_large_ncnn": (5_133_694, 245_564_768),
    "proxylessnas_ncnn": (4_064_560, 336_483_904),
    "squeezenet1_1_caffe": (1_235_496, 418_467_520),
    "shufflenet_v1_caffe": (1_802_866, 127_061_304),
    "ssd_mobilenet_v1": (5_783_417, 1_148_479_168),
    "squeezenet_ssd": (5_525_088 + 256, 1_175_969_984),  # one BatchNormalization has no convolution in front of it
    "yolov4_tiny": (6_053_502, 3_453_938_176),
    "mobilenet_yolo": (5_058_938, 2_613_578_240 - 16_384 * 26**2),  # without the transposed convolution
    "mobilenet_v2_yolov3": (3_720_822 - 576, 1_182_739_584 - 576 * 21**2),  # it resizes with weights of 1
    "nanodet_m": (941_818, 342_223_200),
    "yolo_fastest_1_1": (326_166, 125_437_600),
    "yolo_fastest_v2": (245_782, 106_382_232),
    "fastestdet": (240_301, 121_491_744),
}

# Weights as Keras counts them, with running means and variances.
KERAS = {"resnet50_v2": 25_613_800, "resnet101_v2": 44_675_560, "resnet152_v2": 60_380_648}

# The same in millions, as papers and their authors' releases give them; None where they count something else.
AUTHORS = {
    # He et al., table 6; the multiply-accumulates were counted by hand.
    "resnet20": (0.27, 40.6),
    "resnet44": (0.66, 97.2),
    "resnet56": (0.853018, 125.5),
    # Cadene's pretrained-models.pytorch has them from TF-slim; the multiply-accumulates are timm's.
    "inception_v4": (42.679816, 12_280),
    "inception_resnet_v2": (55.843464, 13_180),
    # Howard et al., tables 6 and 7, and nets/mobilenet_v1.md of TF-slim.
    "mobilenet_v1": (4.24, 569),
    "mobilenet_v1_1.0_192": (4.24, 418),
    "mobilenet_v1_1.0_160": (4.24, 290),
    "mobilenet_v1_1.0_128": (4.24, 186),
    "mobilenet_v1_0.75": (2.59, 325),
    "mobilenet_v1_0.5": (1.34, 149),
    "mobilenet_v1_0.25": (0.47, 41),
    # nets/mobilenet/README.md of TF-slim, which leaves BatchNormalization out of the parameters.
    "mobilenet_v2_1.4": (6.06, 582),
    "mobilenet_v2_1.3": (5.34, 509),
    "mobilenet_v2_1.0_96": (3.47, 56),
    "mobilenet_v2_0.75": (2.61, 209),
    "mobilenet_v2_0.5_160": (1.95, 50),
    "mobilenet_v2_0.35": (1.66, 59),
    # The same; its figures of small networks are partly those of the paper's first draft.
    "mobilenet_v3_large_0.75": (4.0, 155),
    "mobilenet_v3_small_0.75": (None, 44),
    "mobilenet_v3_large_minimalistic": (3.9, 209),
    "mobilenet_v3_small_minimalistic": (2.0, None),
    # Cai et al., the authors' release; Han et al., table 7; Zhang et al., table 5, and pytorchcv's parameters.
    "proxylessnas": (4.1, 320),
    "ghostnet": (5.2, 141),
    "shufflenet_v1": (1.866, 137),
    # The README of EfficientNet-Lite, whose multiply-adds hold BatchNormalization's; see the test of them below.
    "efficientnet_lite0": (4.652008, None),
    "efficientnet_lite1": (5.4, None),
    "efficientnet_lite2": (6.1, None),
    "efficientnet_lite3": (8.2, None),
    "efficientnet_lite4": (13.0, None),
    # Keras' table of applications; Tan and Le, table 2 of the paper on V2.
    "efficientnet_v2_b0": (7.2, 720),
    # The README of Darknet, half of its operations; BlazeFace for PyTorch; ResNet-18 of torchvision and its FCN head.
    "yolov4": (64.363101, 30_050),
    "blazeface": (0.10139, None),
    "fcn_resnet18": (11.769301, 1.842515 * 1000 * (320 / 224) ** 2),
}

# One of each way to build a network, for what takes time.
FAMILIES = (
    "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "resnet20", "mobilenet_v1", "mobilenet_v2",
    "mobilenet_v3_small", "mobilenet_v3_small_minimalistic", "mnasnet", "proxylessnas", "ghostnet",
    "resnet50_v2", "densenet121", "squeezenet1_0", "googlenet", "inception_v3", "shufflenet_v1", "shufflenet_v2",
    "efficientnet_b0", "efficientnet_lite0", "efficientnet_v2_b0", "regnet_y_400mf", "regnet_x_400mf",
)  # fmt: skip
DENSE = (
    "ssd_mobilenet_v1", "squeezenet_ssd", "yolov4_tiny", "mobilenet_yolo", "mobilenet_v2_yolov3", "nanodet_m",
    "yolo_fastest_1_1", "yolo_fastest_v2", "fastestdet", "blazeface",
    "fcn_resnet18", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large",
)  # fmt: skip
HEAVY = ("alexnet", "vgg11_bn", "resnext50_32x4d")  # narrowed where that will do: they take seconds to draw


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
    size = networks.ARCHITECTURES[name].smallest
    return networks.build(
        name, **({"input_size": max(size, 32 if size < 32 else 64), "classes": 10, "width": 0.5} | changes)
    )


def test_every_network_is_published() -> None:
    assert set(networks.NAMES) <= set(TORCHVISION) | set(AUTHORS) | set(NCNN) | set(KERAS)


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_and_macs_are_those_of_torchvision(name: str) -> None:
    model = networks.build(name, seed=None)
    assert parameters(model) == TORCHVISION[name][0]
    assert macs(model) == pytest.approx(TORCHVISION[name][1], abs=0.51e6)  # listed in units of a million


@pytest.mark.parametrize("name", NCNN)
def test_parameters_and_macs_are_those_of_ncnn(name: str) -> None:
    model = networks.build(name, seed=None)
    folded = sum(shape[0] for tensor, shape in weights(model).items() if tensor.endswith(".running_mean"))
    assert parameters(model) - folded == NCNN[name][0]
    assert macs(model) == NCNN[name][1]


@pytest.mark.parametrize("name", KERAS)
def test_weights_are_those_of_keras(name: str) -> None:
    assert sum(map(math.prod, weights(networks.build(name, seed=None)).values())) == KERAS[name]


@pytest.mark.parametrize("name", AUTHORS)
def test_parameters_and_macs_are_those_of_the_authors(name: str) -> None:
    model = networks.build(name, seed=None)
    for counted, published in zip((parameters(model), macs(model)), AUTHORS[name], strict=True):
        assert published is None or counted == pytest.approx(1e6 * published, rel=0.015, abs=0.05e6)


def test_lite_is_efficientnet_without_squeeze_and_excitation() -> None:
    full, lite = (networks.build(name, seed=None) for name in ("efficientnet_b0", "efficientnet_lite0"))
    excitation = [node for node in full.graph.node if ".fc" in node.name and node.op_type == "Conv"]
    assert len(excitation) == 2 * 16
    assert macs(lite) == macs(full) - sum(math.prod(weights(full)[node.input[1]]) for node in excitation)


def test_model_without_a_seed_has_the_shapes_of_one_with_seed() -> None:
    drawn, zero = small("mobilenet_v2"), small("mobilenet_v2", seed=None)
    assert weights(drawn) == weights(zero)
    assert shapes(drawn) == shapes(zero)
    assert list(drawn.graph.node) == list(zero.graph.node)
    assert not any(onnx.numpy_helper.to_array(tensor).any() for tensor in zero.graph.initializer)


@pytest.mark.parametrize(("name", "shape"), [
    ("ssd_mobilenet_v1", (1, 1917, 25)), ("squeezenet_ssd", (1, 8030, 25)), ("yolov4", (1, 10647, 85)),
    ("yolov4_tiny", (1, 2535, 85)), ("mobilenet_yolo", (1, 5 * 845, 25)), ("mobilenet_v2_yolov3", (1, 1815, 25)),
    ("yolo_fastest_1_1", (1, 1500, 85)), ("fastestdet", (1, 484, 85)),
    ("nanodet_m", (1, 2100, 112)), ("blazeface", (1, 896, 17)), ("fcn_resnet18", (1, 21, 10, 10)),
    ("fcn_resnet50", (1, 21, 520, 520)), ("lraspp_mobilenet_v3_large", (1, 21, 520, 520)),
])  # fmt: skip
def test_boxes_and_pixels_are_as_many_as_published(name: str, shape: tuple[int, ...]) -> None:
    assert shapes(networks.build(name, seed=None))["logits"] == shape


@pytest.mark.parametrize(("spelling", "name", "options"), [
    ("mobilenet_v1_0.25", "mobilenet_v1", {"width": 0.25}),
    ("mobilenet_v1_0.25_128", "mobilenet_v1", {"width": 0.25, "input_size": 128}),
    ("mobilenet_v1_0p5_160", "mobilenet_v1", {"width": 0.5, "input_size": 160}),
    ("MobileNet-v2", "mobilenet_v2", {}),
    ("mobilenetv2_1.4", "mobilenet_v2", {"width": 1.4}),
    ("shufflenet_v2_x0_5", "shufflenet_v2", {"width": 0.5}),
    ("ghostnet_1.0", "ghostnet", {}),
    ("mnasnet1_0", "mnasnet", {}),
    ("squeezenet_1.1", "squeezenet1_1", {}),
    ("resnet50_v1.5", "resnet50", {}),
    ("regnety_400m", "regnet_y_400mf", {}),
    ("efficientnetv2_b0", "efficientnet_v2_b0", {}),
    ("tv_fcn_resnet50", "fcn_resnet50", {}),
    ("fcn-resnet18-voc", "fcn_resnet18", {}),
])  # fmt: skip
def test_names_are_found_as_others_spell_them(spelling: str, name: str, options: dict) -> None:
    found, expected = networks.build(spelling, seed=None), networks.build(name, seed=None, **options)
    assert (weights(found), shapes(found)) == (weights(expected), shapes(expected))


@pytest.mark.parametrize("name", [*FAMILIES, *DENSE, "yolov4"])
def test_models_are_valid_and_declare_the_shapes_that_they_compute(name: str) -> None:
    model = small(name)
    onnx.checker.check_model(model, full_check=True)
    declared = shapes(model)
    model.graph.output.extend(model.graph.value_info)
    run = session(model, optimized=False)
    outputs = run.run(None, {"input": np.zeros(declared["input"], np.float32)})
    assert declared["logits"] == (1, 10) or name not in FAMILIES
    for info, values in zip(run.get_outputs(), outputs, strict=True):
        assert declared[info.name] == values.shape


@pytest.mark.parametrize("name", FAMILIES + DENSE)
@pytest.mark.parametrize("change", [{"input_size": 97}, {"width": 1.3}, {"width": 0.05}, {"classes": 1}])
def test_options_make_networks_that_run(name: str, change: dict[str, float]) -> None:
    model = small(name, **change)
    size = shapes(model)["input"][2]
    (logits,) = session(model).run(None, {"input": np.ones((1, 3, size, size), np.float32)})
    assert logits.shape == (1, change.get("classes", 10)) or name in DENSE
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", FAMILIES + DENSE)
def test_the_smallest_input_still_runs(name: str) -> None:
    smallest = networks.ARCHITECTURES[name].smallest
    model = small(name, input_size=smallest)
    (logits,) = session(model).run(None, {"input": np.ones((1, 3, smallest, smallest), np.float32)})
    assert np.isfinite(logits).all()
    with pytest.raises(NncError, match="too small"):
        small(name, input_size=smallest - 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_width_changes_parameters_about_quadratically(name: str) -> None:
    narrow, wide = (parameters(small(name, width=width, classes=1)) for width in (0.5, 1.0))
    assert 2.0 < wide / narrow < 4.5


@pytest.mark.parametrize("name", FAMILIES)
def test_activations_are_sane_and_tell_images_apart(name: str) -> None:
    """No layer is dead, saturated or growing, and the logits of two images differ by more than rounding."""
    model = networks.build(name, classes=100, width=0.25 if name in HEAVY else 1.0)
    model.graph.output.extend(model.graph.value_info)
    run = session(model)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, *shapes(model)["input"]), dtype=np.float32)
    outputs = [run.run(None, {"input": image}) for image in images]
    for info, values in zip(run.get_outputs(), outputs[0], strict=True):
        assert 0.03 < math.sqrt(np.mean(values**2)) < 20, info.name
    logits = np.stack([output[0][0] for output in outputs])
    assert np.std(logits, axis=0).mean() > 0.02 * np.std(logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_are_well_conditioned(name: str) -> None:
    """Rounding stays far below the 1e-4 at which compilers are compared: onnxruntime against itself, fused and not."""
    model = networks.build(name, width=0.25 if name in HEAVY else 1.0)
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


@pytest.mark.parametrize("name", FAMILIES + DENSE)
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


@pytest.mark.parametrize("size", [128, (128, 128)])
def test_a_size_may_be_said_twice(size: int | tuple[int, int]) -> None:
    model = networks.build("mobilenet_v1_0.25_128", input_size=size, seed=None)
    assert [each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 128, 128]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"name": "vg16"}, "unknown network 'vg16'", "did you mean 'vgg16'?"),
        ({"name": "mobilnet_v2"}, "unknown network 'mobilnet_v2'", "did you mean 'mobilenet_v2'?"),
        ({"name": "mobilnet_v2_0.5"}, "unknown network 'mobilnet_v2_0.5'", "did you mean 'mobilenet_v2'?"),
        ({"name": "zzz"}, "unknown network 'zzz'", "'nnc network list' shows all"),
        (
            {"name": "mobilenet_v2_0.5", "width": 1.4},
            "mobilenet_v2_0.5: the name says width 0.5, and 1.4 is asked for",
            "say it once",
        ),
        (
            {"name": "mobilenet_v1_0.25_128", "input_size": (128, 160)},
            "mobilenet_v1_0.25_128: the name says input size 128x128, and 128x160 is asked for",
            "say it once",
        ),
        ({"name": "mobilenet_v1_0.0"}, "mobilenet_v1_0.0: the width must be a number above 0, not 0", "1.0 is"),
        ({"name": "vgg16", "input_size": (224, 8)}, "vgg16: an input of 224x8 is too small", "32 is the smallest"),
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
    assert peak_kib * 1024 < 2 * 4 * TORCHVISION["vgg16"][0]
