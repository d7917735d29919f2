"""GoogLeNet (Szegedy et al., https://arxiv.org/abs/1409.4842), Inception v3 (https://arxiv.org/abs/1512.00567), and
Inception v4 with its residual sister (https://arxiv.org/abs/1602.07261).

Without the auxiliary classifiers, which serve training only.
"""

from collections.abc import Callable

from nnc.networks.blocks import classifier
from nnc.networks.network import Network, Pair, Value

#: Channels of 1x1, of 3x3 and what reduces its input, of 5x5 and what reduces its input, of the pooling's projection:
#: table 1 of the paper. torchvision's 5x5 is a 3x3, as in the first release for TensorFlow.
_GOOGLENET_MODULES = (
    ("inception3a", 64, 96, 128, 16, 32, 32),
    ("inception3b", 128, 128, 192, 32, 96, 64),
    ("maxpool3",),
    ("inception4a", 192, 96, 208, 16, 48, 64),
    ("inception4b", 160, 112, 224, 24, 64, 64),
    ("inception4c", 128, 128, 256, 24, 64, 64),
    ("inception4d", 112, 144, 288, 32, 64, 64),
    ("inception4e", 256, 160, 320, 32, 128, 128),
    ("maxpool4",),
    ("inception5a", 256, 160, 320, 32, 128, 128),
    ("inception5b", 384, 192, 384, 48, 128, 128),
)

#: Chains of convolutions next to each other, each of (filters, kernel).
Branches = tuple[tuple[tuple[int, Pair], ...], ...]


def googlenet(net: Network) -> Value:
    """torchvision's, with BatchNormalization."""
    x = net.max_pool(_conv(net, net.input, "conv1", 64, 7, 2), "maxpool1", 3, 2, ceil=True)
    x = _conv(net, _conv(net, x, "conv2", 64), "conv3", 192, 3)
    x = net.max_pool(x, "maxpool2", 3, 2, ceil=True)
    return classifier(net, _modules(net, x, _conv, large=3, last_pool=2), "fc")


def googlenet_caffe(net: Network) -> Value:
    """The paper's, as Caffe trained it: normalized over neighbouring channels, with convolutions of 5x5."""
    x = net.max_pool(_plain_conv(net, net.input, "conv1", 64, 7, 2), "pool1", 3, 2, ceil=True)
    x = _plain_conv(net, net.local_response_norm(x, "norm1"), "conv2_reduce", 64)
    x = net.local_response_norm(_plain_conv(net, x, "conv2", 192, 3), "norm2")
    x = net.max_pool(x, "pool2", 3, 2, ceil=True)
    return classifier(net, _modules(net, x, _plain_conv, large=5, last_pool=3), "loss3")


def _modules(net: Network, x: Value, conv: Callable[..., Value], large: int, last_pool: int) -> Value:
    """The nine modules; `large` is the kernel of the third branch."""
    for name, *channels in _GOOGLENET_MODULES:
        if channels:
            x = _module(net, x, name, conv, large, *channels)
        else:
            x = net.max_pool(x, name, last_pool if name == "maxpool4" else 3, 2, ceil=True)
    return x


def _module(net: Network, x: Value, name: str, conv: Callable[..., Value], large: int, one: int, *others: int) -> Value:
    reduce3, three, reduce5, five, pooled = others
    branch2 = conv(net, conv(net, x, f"{name}.branch2.0", reduce3), f"{name}.branch2.1", three, 3)
    branch3 = conv(net, conv(net, x, f"{name}.branch3.0", reduce5), f"{name}.branch3.1", five, large)
    branch4 = conv(net, net.max_pool(x, f"{name}.branch4.0", 3, 1, 1), f"{name}.branch4.1", pooled)
    return net.concat([conv(net, x, f"{name}.branch1", one), branch2, branch3, branch4], f"{name}.concat")


def inception_v3(net: Network) -> Value:
    x = _conv(net, net.input, "Conv2d_1a_3x3", 32, 3, 2, padding=0)
    x = _conv(net, _conv(net, x, "Conv2d_2a_3x3", 32, 3, padding=0), "Conv2d_2b_3x3", 64, 3)
    x = _conv(net, net.max_pool(x, "maxpool1", 3, 2), "Conv2d_3b_1x1", 80)
    x = net.max_pool(_conv(net, x, "Conv2d_4a_3x3", 192, 3, padding=0), "maxpool2", 3, 2)
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _mixed_5(net, x, name, pooled)
    x = _reduce_6(net, x, "Mixed_6a")
    for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _mixed_6(net, x, name, inner)
    x = _reduce_7(net, x, "Mixed_7a")
    for name in ("Mixed_7b", "Mixed_7c"):
        x = _mixed_7(net, x, name)
    return classifier(net, x, "fc")


def _mixed_5(net: Network, x: Value, name: str, pooled: int) -> Value:
    branches = [
        _conv(net, x, f"{name}.branch1x1", 64),
        _chain(net, x, f"{name}.branch5x5_", (48, 1), (64, 5)),
        _chain(net, x, f"{name}.branch3x3dbl_", (64, 1), (96, 3), (96, 3)),
        _pooled(net, x, name, pooled),
    ]
    return net.concat(branches, f"{name}.concat")


def _reduce_6(net: Network, x: Value, name: str) -> Value:
    double = _chain(net, x, f"{name}.branch3x3dbl_", (64, 1), (96, 3))
    branches = [
        _conv(net, x, f"{name}.branch3x3", 384, 3, 2, padding=0),
        _conv(net, double, f"{name}.branch3x3dbl_3", 96, 3, 2, padding=0),
        net.max_pool(x, f"{name}.branch_pool", 3, 2),
    ]
    return net.concat(branches, f"{name}.concat")


def _mixed_6(net: Network, x: Value, name: str, inner: int) -> Value:
    row, column = (1, 7), (7, 1)
    double = ((inner, 1), (inner, column), (inner, row), (inner, column), (192, row))
    branches = [
        _conv(net, x, f"{name}.branch1x1", 192),
        _chain(net, x, f"{name}.branch7x7_", (inner, 1), (inner, row), (192, column)),
        _chain(net, x, f"{name}.branch7x7dbl_", *double),
        _pooled(net, x, name, 192),
    ]
    return net.concat(branches, f"{name}.concat")


def _reduce_7(net: Network, x: Value, name: str) -> Value:
    seven = _chain(net, x, f"{name}.branch7x7x3_", (192, 1), (192, (1, 7)), (192, (7, 1)))
    branches = [
        _conv(net, _conv(net, x, f"{name}.branch3x3_1", 192), f"{name}.branch3x3_2", 320, 3, 2, padding=0),
        _conv(net, seven, f"{name}.branch7x7x3_4", 192, 3, 2, padding=0),
        net.max_pool(x, f"{name}.branch_pool", 3, 2),
    ]
    return net.concat(branches, f"{name}.concat")


def _mixed_7(net: Network, x: Value, name: str) -> Value:
    three = _conv(net, x, f"{name}.branch3x3_1", 384)
    double = _chain(net, x, f"{name}.branch3x3dbl_", (448, 1), (384, 3))
    branches = [
        _conv(net, x, f"{name}.branch1x1", 320),
        _conv(net, three, f"{name}.branch3x3_2a", 384, (1, 3)),
        _conv(net, three, f"{name}.branch3x3_2b", 384, (3, 1)),
        _conv(net, double, f"{name}.branch3x3dbl_3a", 384, (1, 3)),
        _conv(net, double, f"{name}.branch3x3dbl_3b", 384, (3, 1)),
        _pooled(net, x, name, 192),
    ]
    return net.concat(branches, f"{name}.concat")


def _chain(net: Network, x: Value, name: str, *layers: tuple[int, Pair]) -> Value:
    for index, (filters, kernel) in enumerate(layers, start=1):
        x = _conv(net, x, f"{name}{index}", filters, kernel)
    return x


def _pooled(net: Network, x: Value, name: str, filters: int) -> Value:
    return _conv(net, net.average_pool(x, f"{name}.avg_pool", 3, 1, padding=1), f"{name}.branch_pool", filters)


def _conv(
    net: Network, x: Value, name: str, filters: int, kernel: Pair = 1, stride: int = 1, padding: int | None = None
) -> Value:
    x = net.conv(x, f"{name}.conv", net.scaled(filters), kernel, stride, padding)
    return net.relu(net.batch_norm(x, f"{name}.bn"), f"{name}.relu")


def _plain_conv(net: Network, x: Value, name: str, filters: int, kernel: int = 1, stride: int = 1) -> Value:
    return net.relu(net.conv(x, name, net.scaled(filters), kernel, stride, bias=True), f"{name}.relu")


_ROW, _COLUMN = (1, 7), (7, 1)
_BLOCKS_A = (((96, 1),), ((64, 1), (96, 3)), ((64, 1), (96, 3), (96, 3)))
_BLOCKS_B = (
    ((384, 1),),
    ((192, 1), (224, _ROW), (256, _COLUMN)),
    ((192, 1), (192, _COLUMN), (224, _ROW), (224, _COLUMN), (256, _ROW)),
)
_REDUCE_A = (((384, 3),), ((192, 1), (224, 3), (256, 3)))
_REDUCE_B = (((192, 1), (192, 3)), ((256, 1), (256, _ROW), (320, _COLUMN), (320, 3)))


def inception_v4(net: Network) -> Value:
    """As in TF-slim."""
    x = _stem_v4(net)
    for index in range(4):
        x = _branches(net, x, f"a{index}", _BLOCKS_A, pooled=96)
    x = _reduced(net, x, "reduce_a", _REDUCE_A)
    for index in range(7):
        x = _branches(net, x, f"b{index}", _BLOCKS_B, pooled=128)
    x = _reduced(net, x, "reduce_b", _REDUCE_B)
    for index in range(3):
        x = _block_c(net, x, f"c{index}")
    return classifier(net, x, "last_linear")


def _stem_v4(net: Network) -> Value:
    x = _conv(net, net.input, "conv1", 32, 3, 2, padding=0)
    x = _conv(net, _conv(net, x, "conv2", 32, 3, padding=0), "conv3", 64, 3)
    x = net.concat([net.max_pool(x, "stem3.pool", 3, 2), _conv(net, x, "stem3", 96, 3, 2, padding=0)], "stem3.concat")
    short = _conv(net, x, "stem4.short1", 64)
    long = _chain(net, x, "stem4.long", (64, 1), (64, _ROW), (64, _COLUMN))
    ends = [_conv(net, y, f"stem4.{index}", 96, 3, padding=0) for index, y in enumerate((short, long))]
    x = net.concat(ends, "stem4.concat")
    return net.concat(
        [_conv(net, x, "stem5", 192, 3, 2, padding=0), net.max_pool(x, "stem5.pool", 3, 2)], "stem5.concat"
    )


def _branches(net: Network, x: Value, name: str, branches: Branches, pooled: int) -> Value:
    made = [_chain(net, x, f"{name}.{index}.", *branch) for index, branch in enumerate(branches)]
    return net.concat([*made, _pooled(net, x, name, pooled)], f"{name}.concat")


def _reduced(net: Network, x: Value, name: str, branches: Branches) -> Value:
    """Branches whose last convolution halves the size, next to a pooling."""
    made = []
    for index, (*first, (filters, kernel)) in enumerate(branches):
        y = _chain(net, x, f"{name}.{index}.", *first)
        made.append(_conv(net, y, f"{name}.{index}.last", filters, kernel, 2, padding=0))
    return net.concat([*made, net.max_pool(x, f"{name}.pool", 3, 2)], f"{name}.concat")


def _block_c(net: Network, x: Value, name: str) -> Value:
    short = _conv(net, x, f"{name}.short", 384)
    long = _chain(net, x, f"{name}.long", (384, 1), (448, (3, 1)), (512, (1, 3)))
    split = [
        _conv(net, y, f"{name}.{index}", 256, kernel)
        for index, (y, kernel) in enumerate(((short, (1, 3)), (short, (3, 1)), (long, (1, 3)), (long, (3, 1))))
    ]
    return net.concat([_conv(net, x, f"{name}.one", 256), *split, _pooled(net, x, name, 256)], f"{name}.concat")


_RESIDUALS_A = (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3)))
_RESIDUALS_B = (((192, 1),), ((128, 1), (160, _ROW), (192, _COLUMN)))
_RESIDUALS_C = (((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1))))
_FIRST = (((96, 1),), ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3)))
_RESIDUAL_REDUCE_A = (((384, 3),), ((256, 1), (256, 3), (384, 3)))
_RESIDUAL_REDUCE_B = (((256, 1), (384, 3)), ((256, 1), (288, 3)), ((256, 1), (288, 3), (320, 3)))


def inception_resnet_v2(net: Network) -> Value:
    """As in TF-slim; what scales the residuals is taken to be part of the convolutions in front of it."""
    x = _conv(net, net.input, "conv1", 32, 3, 2, padding=0)
    x = _conv(net, _conv(net, x, "conv2", 32, 3, padding=0), "conv3", 64, 3)
    x = _conv(net, net.max_pool(x, "pool1", 3, 2), "conv4", 80)
    x = net.max_pool(_conv(net, x, "conv5", 192, 3, padding=0), "pool2", 3, 2)
    x = _branches(net, x, "first", _FIRST, pooled=64)
    x = _residuals(net, x, "a", _RESIDUALS_A, 10)
    x = _reduced(net, x, "reduce_a", _RESIDUAL_REDUCE_A)
    x = _residuals(net, x, "b", _RESIDUALS_B, 20)
    x = _reduced(net, x, "reduce_b", _RESIDUAL_REDUCE_B)
    x = _residuals(net, x, "c", _RESIDUALS_C, 10, last_is_linear=True)
    return classifier(net, _conv(net, x, "conv6", 1536), "last_linear")


def _residuals(
    net: Network, x: Value, stage: str, branches: Branches, times: int, last_is_linear: bool = False
) -> Value:
    for index in range(times):
        name = f"{stage}{index}"
        made = [_chain(net, x, f"{name}.{branch}.", *layers) for branch, layers in enumerate(branches)]
        y = net.conv(net.concat(made, f"{name}.concat"), f"{name}.up", x.channels, bias=True)
        x = net.add(x, y, f"{name}.add")
        x = x if last_is_linear and index == times - 1 else net.relu(x, f"{name}.relu")
    return x
