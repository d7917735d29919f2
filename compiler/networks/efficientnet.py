"""EfficientNet (Tan and Le, https://arxiv.org/abs/1905.11946), its Lite variants without squeeze-and-excitation
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) and EfficientNetV2
(https://arxiv.org/abs/2104.00298)."""

import math
from functools import partial

from nnc.networks.blocks import classifier, conv_bn, inverted_residual, squeeze_excite
from nnc.networks.network import Network, Value, divisible

Stages = tuple[tuple[int, int, int, int, int], ...]

#: Expansion, kernel, stride of the first block, output channels, blocks: table 1 of the paper.
_B0_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)

#: The same for V2; the first three stages are of fused blocks.
V2_B0: Stages = ((1, 3, 1, 16, 1), (4, 3, 2, 32, 2), (4, 3, 2, 48, 2), (4, 3, 2, 96, 3), (6, 3, 1, 112, 5),
                 (6, 3, 2, 192, 8))  # fmt: skip
V2_S: Stages = ((1, 3, 1, 24, 2), (4, 3, 2, 48, 4), (4, 3, 2, 64, 4), (4, 3, 2, 128, 6), (6, 3, 1, 160, 9),
                (6, 3, 2, 256, 15))  # fmt: skip
_FUSED_STAGES = 3

#: What a block adds to its shortcut where there are more of them than in B0: at 1 many blocks of swish amplify a
#: deviation of their input without end.
_DEEP_GAIN = 0.2


def efficientnet(net: Network, width: float = 1.0, depth: float = 1.0) -> Value:
    """B0 to B7: B0 made wider and deeper by the factors."""

    def scaled(channels: int) -> int:
        return divisible(channels * width * net.width)

    gain = _DEEP_GAIN if depth > 1 else 1.0
    x = conv_bn(net, net.input, "features.0", scaled(32), 3, 2, Network.silu)
    for stage, (expansion, kernel, stride, channels, blocks) in enumerate(_B0_STAGES, start=1):
        for index in range(math.ceil(blocks * depth)):
            name, first = f"features.{stage}.{index}", stride if index == 0 else 1
            x = _mbconv(net, x, name, scaled(channels), expansion, kernel, first, gain)
    x = conv_bn(net, x, "features.8", 4 * x.channels, activation=Network.silu)
    return classifier(net, x, "classifier.1")


def efficientnet_lite(net: Network, width: float, depth: float) -> Value:
    """Relu6 in place of swish, and a first and a last layer that stay as they are in B0."""
    x = conv_bn(net, net.input, "features.0", net.scaled(32), 3, 2, Network.relu6)
    for stage, (expansion, kernel, stride, channels, blocks) in enumerate(_B0_STAGES, start=1):
        repeats = blocks if stage in (1, len(_B0_STAGES)) else math.ceil(blocks * depth)
        for index in range(repeats):
            name, first = f"features.{stage}.{index}.block", stride if index == 0 else 1
            hidden, filters = x.channels * expansion, divisible(channels * width * net.width)
            x = inverted_residual(net, x, name, filters, hidden, kernel, first, Network.relu6)
    x = conv_bn(net, x, "features.8", net.scaled(1280), activation=Network.relu6)
    return classifier(net, x, "classifier.1")


def efficientnet_v2(net: Network, stages: Stages, stem: int) -> Value:
    x = conv_bn(net, net.input, "features.0", net.scaled(stem), 3, 2, Network.silu)
    for stage, (expansion, kernel, stride, channels, blocks) in enumerate(stages, start=1):
        block = _fused_mbconv if stage <= _FUSED_STAGES else partial(_mbconv, gain=_DEEP_GAIN)
        for index in range(blocks):
            name, first = f"features.{stage}.{index}", stride if index == 0 else 1
            x = block(net, x, name, net.scaled(channels), expansion, kernel, first)
    x = conv_bn(net, x, f"features.{len(stages) + 1}", net.scaled(1280), activation=Network.silu)
    return classifier(net, x, "classifier.1")


def _mbconv(
    net: Network,
    x: Value,
    name: str,
    channels: int,
    expansion: int,
    kernel: int,
    stride: int,
    gain: float = 1.0,
) -> Value:
    """The inverted residual of MobileNetV2 with squeeze-and-excitation behind the depthwise convolution."""
    excite = partial(squeeze_excite, squeezed=max(1, x.channels // 4), activation=Network.silu)
    hidden = x.channels * expansion
    return inverted_residual(net, x, f"{name}.block", channels, hidden, kernel, stride, Network.silu, excite, gain=gain)


def _fused_mbconv(net: Network, x: Value, name: str, channels: int, expansion: int, kernel: int, stride: int) -> Value:
    """An inverted residual whose first two convolutions are one."""
    name = f"{name}.block"
    if expansion == 1:
        y = conv_bn(net, x, f"{name}.0", channels, kernel, stride, Network.silu)
    else:
        y = conv_bn(net, x, f"{name}.0", x.channels * expansion, kernel, stride, Network.silu)
        y = conv_bn(net, y, f"{name}.1", channels, activation=None)
    return net.add(y, x, f"{name}.add") if x.shape == y.shape else y
