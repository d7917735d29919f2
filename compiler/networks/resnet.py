"""ResNet for ImageNet and for CIFAR-10 (He et al., https://arxiv.org/abs/1512.03385)."""

from collections.abc import Callable, Sequence

import numpy as np

from nnc.networks.blocks import classifier
from nnc.networks.moments import Moments, mixture
from nnc.networks.network import Network, Value, divisible

Shortcut = Callable[[Network, Value, str, int, int], Value]
Block = Callable[[Network, Value, str, int, int, Shortcut, int], Value]


def resnet(net: Network, block: Block, depths: Sequence[int], projects: bool = False) -> Value:
    """The four-stage network for ImageNet; the blocks are torchvision's.

    `projects`: whether the first stage has a projection too, which changes no shape.
    """
    shortcut = projection_of_stages if projects else projection
    return classifier(net, features(net, block, depths, shortcut=shortcut)[-1], "fc")


def features(
    net: Network, block: Block, depths: Sequence[int], dilated: int = 0, shortcut: Shortcut | None = None
) -> list[Value]:
    """The outputs of the four stages; in the last `dilated` of them a stride of 2 becomes twice the dilation."""
    x = net.relu(net.batch_norm(net.conv(net.input, "conv1", net.scaled(64), 7, 2), "bn1"), "relu")
    x = net.max_pool(x, "maxpool", 3, 2, 1)
    return _stages(net, x, block, (64, 128, 256, 512), depths, shortcut or projection, dilated)


def resnet_cifar(net: Network, depth: int) -> Value:
    """The three-stage network for CIFAR-10, 6n + 2 layers deep, with shortcuts of option A (section 4.2)."""
    x = net.relu(net.batch_norm(net.conv(net.input, "conv1", net.scaled(16), 3), "bn1"), "relu")
    x = _stages(net, x, basic_block, (16, 32, 64), [(depth - 2) // 6] * 3, padding)[-1]
    return classifier(net, x, "linear")


def basic_block(
    net: Network, x: Value, name: str, planes: int, stride: int, shortcut: Shortcut, dilation: int = 1
) -> Value:
    y = net.conv(x, f"{name}.conv1", planes, 3, stride, dilation=dilation)
    y = net.relu(net.batch_norm(y, f"{name}.bn1"))
    y = net.batch_norm(net.conv(y, f"{name}.conv2", planes, 3, dilation=dilation), f"{name}.bn2")
    return net.relu(net.add(y, shortcut(net, x, name, planes, stride), f"{name}.add"), f"{name}.relu")


def bottleneck(
    net: Network,
    x: Value,
    name: str,
    planes: int,
    stride: int,
    shortcut: Shortcut,
    dilation: int = 1,
    groups: int = 1,
    widened: float = 1.0,
    strides_first: bool = False,
) -> Value:
    """`widened` multiplies the inner channels; with groups it is ResNeXt (https://arxiv.org/abs/1611.05431).

    The stride is at the 3x3 convolution, or as in the paper at the first.
    """
    inner = divisible(planes * widened, groups)
    first, second = (stride, 1) if strides_first else (1, stride)
    y = net.relu(net.batch_norm(net.conv(x, f"{name}.conv1", inner, 1, first), f"{name}.bn1"))
    y = net.conv(y, f"{name}.conv2", inner, 3, second, groups=groups, dilation=dilation)
    y = net.relu(net.batch_norm(y, f"{name}.bn2"))
    y = net.batch_norm(net.conv(y, f"{name}.conv3", 4 * planes), f"{name}.bn3")
    return net.relu(net.add(y, shortcut(net, x, name, 4 * planes, stride), f"{name}.add"), f"{name}.relu")


def projection(net: Network, x: Value, name: str, channels: int, stride: int) -> Value:
    """Option B: a strided 1x1 convolution where the shape changes."""
    if stride == 1 and x.channels == channels:
        return x
    return _downsample(net, x, name, channels, stride)


def projection_of_stages(net: Network, x: Value, name: str, channels: int, stride: int) -> Value:
    """A 1x1 convolution in the first block of every stage."""
    return _downsample(net, x, name, channels, stride) if name.endswith(".0") else x


def _downsample(net: Network, x: Value, name: str, channels: int, stride: int) -> Value:
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
    height, width = (-(-size // stride) for size in x.shape[2:])
    moments = mixture([x.moments, Moments(0.0, 0.0)], [x.channels, channels - x.channels])
    return net.declare(padded, (1, channels, height, width), moments)


def _stages(
    net: Network,
    x: Value,
    block: Block,
    planes: Sequence[int],
    depths: Sequence[int],
    shortcut: Shortcut,
    dilated: int = 0,
) -> list[Value]:
    outputs, dilation = [], 1
    for stage, (filters, depth) in enumerate(zip(planes, depths, strict=True), start=1):
        stride, before = (2 if stage > 1 else 1), dilation
        if stage > len(planes) - dilated:
            stride, dilation = 1, 2 * dilation
        for index in range(depth):
            first = index == 0
            name, step, spread = f"layer{stage}.{index}", stride if first else 1, before if first else dilation
            x = block(net, x, name, net.scaled(filters), step, shortcut, spread)
        outputs.append(x)
    return outputs
