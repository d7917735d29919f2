"""Small detectors of dog-qiuqiu: Yolo-Fastest 1.1 (https://github.com/dog-qiuqiu/Yolo-Fastest), narrow inverted
residuals; Yolo-FastestV2 (https://github.com/dog-qiuqiu/Yolo-FastestV2), a narrow ShuffleNetV2 and a light pyramid; and
FastestDet (https://github.com/dog-qiuqiu/FastestDet), which merges the pyramid in one map.

Before all are decoded, they give: Yolo-Fastest [1, boxes, 5 + classes]; V2 [1, pixels, 15 + classes], of each pixel of
two maps the boxes and the objectness of three anchors, and the classes that these share; FastestDet
[1, pixels, 5 + classes], without anchors.
"""

from functools import partial

from nnc.networks.blocks import conv_bn
from nnc.networks.network import Network, Value
from nnc.networks.shufflenet import v2_features

_BACKBONE = (48, 96, 192)
_CHANNELS = 72
_ANCHORS = 3

#: Of Yolo-Fastest 1.1: channels within a block and behind it, stride, how often.
_BLOCKS = (
    (8, 4, 1, 2), (24, 8, 2, 1), (32, 8, 1, 2), (32, 8, 2, 1), (48, 8, 1, 2), (48, 16, 1, 1), (96, 16, 1, 4),
    (96, 24, 2, 1), (136, 24, 1, 4), (136, 48, 2, 1), (224, 48, 1, 5),
)  # fmt: skip

_leaky = partial(conv_bn, activation=Network.leaky_relu)


def yolo_fastest_1_1(net: Network) -> Value:
    x = route = _leaky(net, net.input, "stem", net.scaled(8), 3, 2)
    for stage, (hidden, channels, stride, times) in enumerate(_BLOCKS):
        route = x if stride == 2 else route  # what the last stage that halves the size starts from
        for index in range(times):
            x = _residual(net, x, f"{stage}.{index}", net.scaled(hidden), net.scaled(channels), stride)
    pooled = [net.max_pool(x, f"spp.pool{kernel}", kernel, 1, kernel // 2) for kernel in (9, 5, 3)]
    x = _leaky(net, net.concat([*pooled, x], "spp.concat"), "neck", net.scaled(96))
    merged = net.concat([net.resize(x, "resize", route.shape[2:]), route], "concat")
    return net.concat([_boxes(net, x, "coarse"), _boxes(net, merged, "fine")], "head")


def _residual(net: Network, x: Value, name: str, hidden: int, channels: int, stride: int) -> Value:
    """Expand, depthwise convolution, project; a shortcut where the shape stays."""
    y = _leaky(net, _leaky(net, x, f"{name}.0", hidden), f"{name}.1", hidden, 3, stride, groups=hidden)
    y = conv_bn(net, y, f"{name}.2", channels, activation=None)
    return net.add(y, x, f"{name}.add") if y.shape == x.shape else y


def _boxes(net: Network, x: Value, name: str) -> Value:
    """Two separable 5x5 convolutions, linear behind each 1x1, and the figures of all anchors."""
    for index in range(2):
        x = _leaky(net, x, f"{name}.{index}.depthwise", x.channels, 5, groups=x.channels)
        x = conv_bn(net, x, f"{name}.{index}.pointwise", x.channels, activation=None)
    figures = 5 + net.classes
    return net.boxes(net.conv(x, f"{name}.conv", _ANCHORS * figures, bias=True), f"{name}.boxes", figures)


def fastestdet(net: Network) -> Value:
    fine, middle, coarse = v2_features(net, channels=tuple(map(net.scaled, _BACKBONE)))
    maps = [net.average_pool(fine, "pool", 3, 2, 1), middle, net.resize(coarse, "resize", middle.shape[2:])]
    x = conv_bn(net, net.concat(maps, "fpn"), "neck", net.scaled(96))
    branches = [_deep(net, x, f"spp.{depth}", depth) for depth in (1, 2, 3)]
    y = conv_bn(net, net.concat(branches, "spp.concat"), "spp.merged", x.channels, activation=None)
    x = conv_bn(net, net.relu(net.add(x, y, "spp.add"), "spp.relu"), "conv", x.channels)
    figures = (("objects", 1), ("boxes", 4), ("classes", net.classes))
    parts = [conv_bn(net, _deep(net, x, name, 1), f"{name}.conv", count, activation=None) for name, count in figures]
    x = net.concat(parts, "concat")
    return net.boxes(x, "head", x.channels)


def _deep(net: Network, x: Value, name: str, depth: int) -> Value:
    """Depthwise 5x5 convolutions one after the other."""
    for index in range(depth):
        x = conv_bn(net, x, f"{name}.{index}", x.channels, 5, groups=x.channels)
    return x


def yolo_fastest_v2(net: Network) -> Value:
    _, fine, coarse = v2_features(net, channels=tuple(map(net.scaled, _BACKBONE)))
    merged = net.concat([net.resize(coarse, "fpn.resize", fine.shape[2:]), fine], "fpn.concat")
    return net.concat([_head(net, coarse, "coarse"), _head(net, merged, "fine")], "head")


def _head(net: Network, x: Value, name: str) -> Value:
    channels = net.scaled(_CHANNELS)
    x = net.relu(net.batch_norm(net.conv(x, f"{name}.conv", channels), f"{name}.bn"), f"{name}.relu")
    places, kinds = (_branch(net, x, f"{name}.{branch}") for branch in ("reg", "cls"))
    parts = [
        net.conv(places, f"{name}.boxes", 4 * _ANCHORS, bias=True),
        net.conv(kinds, f"{name}.objects", _ANCHORS, bias=True),
        net.conv(kinds, f"{name}.classes", net.classes, bias=True),
    ]
    x = net.concat(parts, f"{name}.concat")
    return net.boxes(x, f"{name}.pixels", x.channels)


def _branch(net: Network, x: Value, name: str) -> Value:
    """Two separable 5x5 convolutions, linear behind each 1x1."""
    for index in range(2):
        layer = f"{name}.{index}"
        x = net.batch_norm(net.conv(x, f"{layer}.depthwise", x.channels, 5, groups=x.channels), f"{layer}.bn1")
        x = net.conv(net.relu(x, f"{layer}.relu"), f"{layer}.pointwise", x.channels)
        x = net.batch_norm(x, f"{layer}.bn2")
    return x
