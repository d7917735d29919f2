"""SSD, the single-shot detector (Liu et al., https://arxiv.org/abs/1512.02325), on small backbones.

They give [1, boxes, 4 + classes]: offsets and logits of the default boxes, before these are decoded. Class 0 is the
background.
"""

from collections.abc import Sequence

from nnc.networks.blocks import conv_bn
from nnc.networks.mobilenet import v1_features
from nnc.networks.network import Network, Value
from nnc.networks.squeezenet import fire_module

#: Default boxes per pixel of the six maps: two more aspect ratios on those in the middle.
_MOBILENET_BOXES = (3, 6, 6, 6, 6, 6)
_SQUEEZENET_BOXES = (4, 6, 6, 6, 6, 4)

#: Channels of the 1x1 convolutions and of the 3x3 ones of stride 2 that make further maps.
_MOBILENET_EXTRAS = ((256, 512), (128, 256), (128, 256), (64, 128))
_SQUEEZENET_EXTRAS = ((128, 256), (64, 128))

#: Squeeze and expand channels; None is a max pooling. SqueezeNet 1.1 and two modules more.
_SQUEEZENET_FIRES = (
    (16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256), None, (96, 384),
    None, (96, 384),
)  # fmt: skip
_SQUEEZENET_MAPS = (7, 12, 14, 16)


def ssd_mobilenet_v1(net: Network) -> Value:
    """MobileNet-SSD for Caffe (https://github.com/chuanqi305/MobileNet-SSD): heads are 1x1 convolutions."""
    features = v1_features(net)
    maps = _further_maps(net, [features[11], features[13]], _MOBILENET_EXTRAS)
    return _heads(net, maps, _MOBILENET_BOXES, kernel=1)


def squeezenet_ssd(net: Network) -> Value:
    """SqueezeNet-SSD for Caffe (https://github.com/chuanqi305/SqueezeNet-SSD)."""
    x = net.relu(net.conv(net.input, "features.0", net.scaled(64), 3, 2, padding=0, bias=True), "features.1")
    x, maps = net.max_pool(x, "features.2", 3, 2, ceil=True), []
    for index, fire in enumerate(_SQUEEZENET_FIRES, start=3):
        if fire is None:
            x = net.max_pool(x, f"features.{index}", 3, 2, ceil=True)
        else:
            x = fire_module(net, x, f"features.{index}", *fire)
        if index in _SQUEEZENET_MAPS:
            maps.append(x)
    maps[0] = net.batch_norm(maps[0], "features.7.bn")
    return _heads(net, _further_maps(net, maps, _SQUEEZENET_EXTRAS), _SQUEEZENET_BOXES, kernel=3)


def _further_maps(net: Network, maps: Sequence[Value], extras: Sequence[tuple[int, int]]) -> list[Value]:
    maps = list(maps)
    for index, (narrow, wide) in enumerate(extras):
        x = conv_bn(net, maps[-1], f"extras.{index}.0", net.scaled(narrow))
        maps.append(conv_bn(net, x, f"extras.{index}.1", net.scaled(wide), 3, 2))
    return maps


def _heads(net: Network, maps: Sequence[Value], boxes: Sequence[int], kernel: int) -> Value:
    """Of each map the offsets and the logits of its boxes, all together."""
    parts = []
    for kind, figures in (("offsets", 4), ("classes", net.classes)):
        found = []
        for index, (x, count) in enumerate(zip(maps, boxes, strict=True)):
            head = net.conv(x, f"head.{kind}.{index}", count * figures, kernel, bias=True)
            found.append(net.boxes(head, f"{head.name}.boxes", figures))
        parts.append(net.concat(found, f"head.{kind}"))
    return net.concat(parts, "head", axis=2)
