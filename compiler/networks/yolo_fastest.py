"""Yolo-FastestV2 (https://github.com/dog-qiuqiu/Yolo-FastestV2): a narrow ShuffleNetV2 and a light pyramid.

It gives [1, pixels, 15 + classes]: of each pixel of two maps the boxes and the objectness of three anchors, and the
classes that these share, before all are decoded.
"""

from nnc.networks.network import Network, Value
from nnc.networks.shufflenet import v2_features

_BACKBONE = (48, 96, 192)
_CHANNELS = 72
_ANCHORS = 3


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
