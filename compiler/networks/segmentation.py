"""Segmentation as torchvision has it: FCN (Long et al., https://arxiv.org/abs/1411.4038), DeepLabV3 (Chen et al.,
https://arxiv.org/abs/1706.05587) and LR-ASPP (Howard et al., https://arxiv.org/abs/1905.02244).

They give the logits of every pixel, [1, classes, height, width], without the auxiliary classifiers, which serve
training only.
"""

from collections.abc import Callable, Sequence

from nnc.networks.mobilenet import V3_LARGE, v3_features
from nnc.networks.network import Network, Value
from nnc.networks.resnet import Block, features

#: A backbone gives what the head reads.
Backbone = Callable[[Network], Value]

_DILATIONS = (12, 24, 36)


def resnet_backbone(net: Network, block: Block, depths: Sequence[int], dilated: int = 2) -> Value:
    return features(net, block, depths, dilated)[-1]


def mobilenet_backbone(net: Network) -> Value:
    return v3_features(net, V3_LARGE, dilated=True)[-1]


def fcn(net: Network, backbone: Backbone, resized: bool = True) -> Value:
    """Not resized, the logits are those of the backbone's pixels."""
    x = backbone(net)
    x = _conv(net, x, "classifier.0", x.channels // 4, 3)
    x = net.conv(x, "classifier.4", net.classes, bias=True)
    return net.resize(x, "out", net.input.shape[2:], "linear") if resized else x


def deeplabv3(net: Network, backbone: Backbone) -> Value:
    x = _pyramid(net, backbone(net), "classifier.0", net.scaled(256))
    x = _conv(net, x, "classifier.1", x.channels, 3)
    x = net.conv(x, "classifier.4", net.classes, bias=True)
    return net.resize(x, "out", net.input.shape[2:], "linear")


def _pyramid(net: Network, x: Value, name: str, channels: int) -> Value:
    """Atrous spatial pyramid pooling: convolutions of several dilations and the mean of the image, side by side."""
    parts = [_conv(net, x, f"{name}.convs.0", channels)]
    for index, dilation in enumerate(_DILATIONS, start=1):
        parts.append(_conv(net, x, f"{name}.convs.{index}", channels, 3, dilation))
    pooled = _conv(net, net.global_average_pool(x, f"{name}.convs.4.pool"), f"{name}.convs.4", channels)
    parts.append(net.resize(pooled, f"{name}.convs.4.resize", x.shape[2:], "linear"))
    return _conv(net, net.concat(parts, f"{name}.concat"), f"{name}.project", channels)


def lraspp(net: Network) -> Value:
    """On MobileNetV3: 16 pixels of the image are one of the deep features, 8 one of the shallow features."""
    outputs = v3_features(net, V3_LARGE, dilated=True)
    shallow, deep = outputs[4], outputs[-1]
    x = _conv(net, deep, "classifier.cbr", net.scaled(128))
    scale = net.conv(net.global_average_pool(deep, "classifier.scale.0"), "classifier.scale.1", x.channels)
    x = net.scale(x, net.sigmoid(scale), "classifier.scaled")
    x = net.resize(x, "classifier.resize", shallow.shape[2:], "linear")
    low = net.conv(shallow, "classifier.low_classifier", net.classes, bias=True)
    high = net.conv(x, "classifier.high_classifier", net.classes, bias=True)
    return net.resize(net.add(low, high, "classifier.add"), "out", net.input.shape[2:], "linear")


def _conv(net: Network, x: Value, name: str, filters: int, kernel: int = 1, dilation: int = 1) -> Value:
    x = net.conv(x, f"{name}.conv", filters, kernel, dilation=dilation)
    return net.relu(net.batch_norm(x, f"{name}.bn"), f"{name}.relu")
