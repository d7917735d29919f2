"""NanoDet-m (https://github.com/RangiLyu/nanodet): ShuffleNetV2 and a light path aggregation network.

It gives [1, boxes, classes + 32]: of every pixel of three maps the logits of its classes, and a distribution over eight
distances for each side of its box (https://arxiv.org/abs/2006.04388).
"""

from nnc.networks.network import Network, Value
from nnc.networks.shufflenet import published_channels, v2_features

_CHANNELS = 96
_DISTANCES = 4 * 8


def nanodet_m(net: Network) -> Value:
    features = v2_features(net, published_channels(net)[:-1], Network.leaky_relu)
    channels = net.scaled(_CHANNELS)
    maps = [net.conv(x, f"fpn.lateral.{index}", channels, bias=True) for index, x in enumerate(features)]
    for index in (1, 0):
        maps[index] = _sum(net, maps[index], maps[index + 1], f"fpn.up.{index}")
    for index in (1, 2):
        maps[index] = _sum(net, maps[index], maps[index - 1], f"fpn.down.{index}")
    return net.concat([_head(net, x, f"head.{index}") for index, x in enumerate(maps)], "head")


def _sum(net: Network, x: Value, other: Value, name: str) -> Value:
    return net.add(x, net.resize(other, f"{name}.resize", x.shape[2:], "linear"), f"{name}.add")


def _head(net: Network, x: Value, name: str) -> Value:
    for index in range(2):
        for part, groups in (("depthwise", x.channels), ("pointwise", 1)):
            layer = f"{name}.{index}.{part}"
            x = net.conv(x, layer, x.channels, 3 if part == "depthwise" else 1, groups=groups)
            x = net.leaky_relu(net.batch_norm(x, f"{layer}.bn"), f"{layer}.act")
    x = net.conv(x, f"{name}.out", net.classes + _DISTANCES, bias=True)
    return net.boxes(x, f"{name}.boxes", net.classes + _DISTANCES)
