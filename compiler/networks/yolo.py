"""YOLO, detectors with anchors (Redmon and Farhadi, https://arxiv.org/abs/1612.08242; Bochkovskiy et al.,
https://arxiv.org/abs/2004.10934), the tiny one, and two on MobileNets from ncnn's benchmark.

They give [1, boxes, 5 + classes]: of every anchor of every map the offsets, the objectness and the classes, before
these are decoded.
"""

from functools import partial

from nnc.networks.blocks import conv_bn
from nnc.networks.mobilenet import separable, v1_features, v2_features
from nnc.networks.network import Network, Value

_leaky = partial(conv_bn, activation=Network.leaky_relu)
_mish = partial(conv_bn, activation=Network.mish)

#: Output channels and residual blocks of the five stages of CSPDarknet53.
_CSP_STAGES = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))


def yolov4(net: Network) -> Value:
    """CSPDarknet53, spatial pyramid pooling and a path aggregation network."""
    x = _mish(net, net.input, "stem", net.scaled(32), 3)
    stages = []
    for index, (channels, blocks) in enumerate(_CSP_STAGES):
        x = _csp_stage(net, x, f"stage{index}", net.scaled(channels), blocks)
        stages.append(x)
    _, _, fine, middle, coarse = stages
    coarse = _chain(net, coarse, "spp.before", (512, 1), (1024, 3), (512, 1))
    pooled = [net.max_pool(coarse, f"spp.pool{kernel}", kernel, 1, kernel // 2) for kernel in (13, 9, 5)]
    coarse = net.concat([*pooled, coarse], "spp.concat")
    coarse = _chain(net, coarse, "spp.after", (512, 1), (1024, 3), (512, 1))
    middle = _merge_up(net, coarse, middle, "up0", 256)
    fine = _merge_up(net, middle, fine, "up1", 128)
    heads = [_head(net, _leaky(net, fine, "fine.conv", net.scaled(256), 3), "fine.head")]
    middle = _merge_down(net, fine, middle, "down0", 256)
    heads.append(_head(net, _leaky(net, middle, "middle.conv", net.scaled(512), 3), "middle.head"))
    coarse = _merge_down(net, middle, coarse, "down1", 512)
    heads.append(_head(net, _leaky(net, coarse, "coarse.conv", net.scaled(1024), 3), "coarse.head"))
    return net.concat(heads, "head")


def _csp_stage(net: Network, x: Value, name: str, channels: int, blocks: int) -> Value:
    """Downsample; residual blocks on a projection to half of the channels, next to another one (the first: all)."""
    half = channels if blocks == 1 else channels // 2
    x = _mish(net, x, f"{name}.down", channels, 3, 2)
    kept, y = _mish(net, x, f"{name}.kept", half), _mish(net, x, f"{name}.split", half)
    for index in range(blocks):
        z = _mish(net, y, f"{name}.{index}.0", channels // 2)
        y = net.add(y, _mish(net, z, f"{name}.{index}.1", half, 3), f"{name}.{index}.add")
    y = _mish(net, y, f"{name}.transition", half)
    return _mish(net, net.concat([y, kept], f"{name}.concat"), f"{name}.merged", channels)


def _merge_up(net: Network, coarse: Value, fine: Value, name: str, channels: int) -> Value:
    x = _leaky(net, coarse, f"{name}.coarse", net.scaled(channels))
    x = net.resize(x, f"{name}.resize", fine.shape[2:])
    x = net.concat([_leaky(net, fine, f"{name}.fine", net.scaled(channels)), x], f"{name}.concat")
    return _five(net, x, name, channels)


def _merge_down(net: Network, fine: Value, coarse: Value, name: str, channels: int) -> Value:
    x = _leaky(net, fine, f"{name}.fine", net.scaled(channels), 3, 2)
    return _five(net, net.concat([x, coarse], f"{name}.concat"), name, channels)


def _five(net: Network, x: Value, name: str, channels: int) -> Value:
    wide = 2 * channels
    return _chain(net, x, f"{name}.five", (channels, 1), (wide, 3), (channels, 1), (wide, 3), (channels, 1))


def _chain(net: Network, x: Value, name: str, *layers: tuple[int, int]) -> Value:
    for index, (channels, kernel) in enumerate(layers):
        x = _leaky(net, x, f"{name}.{index}", net.scaled(channels), kernel)
    return x


def yolov4_tiny(net: Network) -> Value:
    x = _leaky(net, net.input, "0", net.scaled(32), 3, 2)
    x = _leaky(net, x, "1", net.scaled(64), 3, 2)
    for index, channels in enumerate((64, 128, 256), start=2):
        x, route = _tiny_stage(net, x, str(index), net.scaled(channels))
    x = _leaky(net, _leaky(net, x, "5", net.scaled(512), 3), "6", net.scaled(256))
    coarse = _head(net, _leaky(net, x, "7", net.scaled(512), 3), "coarse.head")
    x = net.resize(_leaky(net, x, "8", net.scaled(128)), "resize", route.shape[2:])
    x = _leaky(net, net.concat([x, route], "concat"), "9", net.scaled(256), 3)
    return net.concat([coarse, _head(net, x, "fine.head")], "head")


def _tiny_stage(net: Network, x: Value, name: str, channels: int) -> tuple[Value, Value]:
    """Two convolutions on the second half of the channels; what goes on, and what is kept for the finer head."""
    x = _leaky(net, x, f"{name}.0", channels, 3)
    first = _leaky(net, net.second_half(x, f"{name}.half"), f"{name}.1", channels // 2, 3)
    second = _leaky(net, first, f"{name}.2", channels // 2, 3)
    route = _leaky(net, net.concat([second, first], f"{name}.pair"), f"{name}.3", channels)
    return net.max_pool(net.concat([x, route], f"{name}.concat"), f"{name}.pool", 2, 2, ceil=True), route


def mobilenet_yolo(net: Network) -> Value:
    """MobileNet-YOLO for Caffe (https://github.com/eric612/MobileNet-YOLO): five anchors on two maps."""
    features = v1_features(net)
    coarse = separable(net, features[13], "conv17", net.scaled(1024))
    route = features[11]
    x = net.conv_transpose(coarse, "upsample", route.channels, 4, route.shape[2:])
    fine = separable(net, net.add(x, route, "sum"), "conv20", net.scaled(1024))
    return net.concat([_head(net, coarse, "coarse.head", 5), _head(net, fine, "fine.head", 5)], "head")


def mobilenet_v2_yolov3(net: Network) -> Value:
    """MobileNetV2-YOLOv3 of the same authors; the finer map comes from within a block."""
    coarse = separable(net, v2_features(net)[-1], "conv1", net.scaled(576))
    route = separable(net, net["features.14.conv.0.2"], "conv2", coarse.channels)
    x = net.resize(coarse, "resize", route.shape[2:])
    fine = separable(net, net.add(x, route, "sum"), "conv3", coarse.channels)
    return net.concat([_head(net, coarse, "coarse.head"), _head(net, fine, "fine.head")], "head")


def _head(net: Network, x: Value, name: str, anchors: int = 3) -> Value:
    figures = 5 + net.classes
    return net.boxes(net.conv(x, name, anchors * figures, bias=True), f"{name}.boxes", figures)
