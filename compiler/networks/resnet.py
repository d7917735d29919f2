"""ResNet for ImageNet and for CIFAR-10 (He et al., https://arxiv.org/abs/1512.03385)."""

from collections.abc import Callable, Sequence

import numpy as np

from nnc.networks.moments import Moments, mixture
from nnc.networks.network import Network, Value

Shortcut = Callable[[Network, Value, str, int, int], Value]
Block = Callable[[Network, Value, str, int, int, Shortcut], Value]


def resnet(net: Network, block: Block, depths: Sequence[int]) -> Value:
    """The four-stage network for ImageNet: torchvision's, with the stride of a bottleneck at its 3x3 convolution."""
    x = net.relu(net.batch_norm(net.conv(net.input, "conv1", net.scaled(64), 7, 2), "bn1"), "relu")
    x = net.max_pool(x, "maxpool", 3, 2, 1)
    x = _stages(net, x, block, (64, 128, 256, 512), depths, projection)
    x = net.flatten(net.global_average_pool(x, "avgpool"), "flatten")
    return net.linear(x, "fc", net.classes)


def resnet_cifar(net: Network, depth: int) -> Value:
    """The three-stage network for CIFAR-10, 6n + 2 layers deep, with shortcuts of option A (section 4.2)."""
    x = net.relu(net.batch_norm(net.conv(net.input, "conv1", net.scaled(16), 3), "bn1"), "relu")
    x = _stages(net, x, basic_block, (16, 32, 64), [(depth - 2) // 6] * 3, padding)
    x = net.flatten(net.global_average_pool(x, "avgpool"), "flatten")
    return net.linear(x, "linear", net.classes)


def basic_block(net: Network, x: Value, name: str, planes: int, stride: int, shortcut: Shortcut) -> Value:
    y = net.relu(net.batch_norm(net.conv(x, f"{name}.conv1", planes, 3, stride), f"{name}.bn1"))
    y = net.batch_norm(net.conv(y, f"{name}.conv2", planes, 3), f"{name}.bn2")
    return net.relu(net.add(y, shortcut(net, x, name, planes, stride), f"{name}.add"), f"{name}.relu")


def bottleneck(net: Network, x: Value, name: str, planes: int, stride: int, shortcut: Shortcut) -> Value:
    y = net.relu(net.batch_norm(net.conv(x, f"{name}.conv1", planes), f"{name}.bn1"))
    y = net.relu(net.batch_norm(net.conv(y, f"{name}.conv2", planes, 3, stride), f"{name}.bn2"))
    y = net.batch_norm(net.conv(y, f"{name}.conv3", 4 * planes), f"{name}.bn3")
    return net.relu(net.add(y, shortcut(net, x, name, 4 * planes, stride), f"{name}.add"), f"{name}.relu")


def projection(net: Network, x: Value, name: str, channels: int, stride: int) -> Value:
    """Option B: a strided 1x1 convolution where the shape changes."""
    if stride == 1 and x.channels == channels:
        return x
    return net.batch_norm(net.conv(x, f"{name}.downsample.0", channels, 1, stride), f"{name}.downsample.1")


def padding(net: Network, x: Value, name: str, channels: int, stride: int) -> Value:
    """Option A: every second pixel, and zeros for the new channels on both sides; no parameters."""
    if stride == 1 and x.channels == channels:
        return x
    sliced = x.name
    for axis in (2, 3):
        slice_ = f"{name}.shortcut.slice{axis}"
        ends = {"starts": 0, "ends": np.iinfo(np.int64).max, "axes": axis, "steps": stride}
        inputs = [net.constant(f"{slice_}.{end}", np.array([value], np.int64)) for end, value in ends.items()]
        sliced = net.node("Slice", slice_, [sliced, *inputs])
    before = (channels - x.channels) // 2
    pads = np.array([0, before, 0, 0, 0, channels - x.channels - before, 0, 0], np.int64)
    padded = f"{name}.shortcut"
    net.node("Pad", padded, [sliced, net.constant(f"{padded}.pads", pads)], mode="constant")
    size = -(-x.shape[2] // stride)
    moments = mixture([x.moments, Moments(0.0, 0.0)], [x.channels, channels - x.channels])
    return net.declare(padded, (1, channels, size, size), moments)


def _stages(
    net: Network, x: Value, block: Block, planes: Sequence[int], depths: Sequence[int], shortcut: Shortcut
) -> Value:
    for stage, (filters, depth) in enumerate(zip(planes, depths, strict=True), start=1):
        for index in range(depth):
            stride = 2 if stage > 1 and index == 0 else 1
            x = block(net, x, f"layer{stage}.{index}", net.scaled(filters), stride, shortcut)
    return x
