"""MobileNets: V1 (Howard et al., https://arxiv.org/abs/1704.04861), V2 (Sandler et al.,
https://arxiv.org/abs/1801.04381) and V3 (Howard et al., https://arxiv.org/abs/1905.02244)."""

from functools import partial

from nnc.networks.blocks import classifier, conv_bn, inverted_residual, squeeze_excite
from nnc.networks.network import Network, Value, divisible

#: Output channels and stride of the depthwise separable layers: table 1 of the paper.
_V1_LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))

#: Expansion, output channels, blocks, stride of the first block: table 2 of the paper.
_V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

#: Kernel, expanded channels, output channels, squeeze-and-excitation, hard-swish, stride: tables 1 and 2 of the paper.
V3_LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
#: As in the first version of the paper: the last stride of 2 is one block later.
V3_LARGE_FIRST = (*V3_LARGE[:-3], (5, 672, 160, True, True, 1), (5, 672, 160, True, True, 2), V3_LARGE[-1])
V3_SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
Blocks = tuple[tuple[int, int, int, bool, bool, int], ...]


def mobilenet_v1(net: Network) -> Value:
    return classifier(net, v1_features(net)[-1], "classifier")


def v1_features(net: Network) -> list[Value]:
    """The outputs of the first convolution and of the thirteen separable layers behind it."""
    outputs = [conv_bn(net, net.input, "features.0", net.scaled(32), 3, 2, Network.relu6)]
    for index, (channels, stride) in enumerate(_V1_LAYERS, start=1):
        outputs.append(separable(net, outputs[-1], f"features.{index}", net.scaled(channels), stride))
    return outputs


def separable(net: Network, x: Value, name: str, channels: int, stride: int = 1) -> Value:
    """A depthwise 3x3 convolution and a 1x1 convolution."""
    x = conv_bn(net, x, f"{name}.0", x.channels, 3, stride, Network.relu6, groups=x.channels)
    return conv_bn(net, x, f"{name}.1", channels, activation=Network.relu6)


def mobilenet_v2(net: Network, all_expanded: bool = False) -> Value:
    return classifier(net, v2_features(net, all_expanded)[-1], "classifier.1")


def v2_features(net: Network, all_expanded: bool = False) -> list[Value]:
    """The outputs of the first convolution, the seventeen blocks and the last convolution.

    `all_expanded`: whether the first block too has a 1x1 convolution in front, to as many channels as it reads.
    """
    outputs = [conv_bn(net, net.input, "features.0", net.scaled(32), 3, 2, Network.relu6)]
    for expansion, channels, blocks, stride in _V2_STAGES:
        for block in range(blocks):
            name, first = f"features.{len(outputs)}", stride if block == 0 else 1
            expands = all_expanded or expansion != 1
            outputs.append(_v2_block(net, outputs[-1], name, net.scaled(channels), expansion, first, expands))
    # The paper never makes the last convolution narrower than 1280.
    last = divisible(1280 * max(1.0, net.width))
    outputs.append(conv_bn(net, outputs[-1], f"features.{len(outputs)}", last, activation=Network.relu6))
    return outputs


def _v2_block(net: Network, x: Value, name: str, channels: int, expansion: int, stride: int, expands: bool) -> Value:
    y, index, hidden = x, 0, x.channels * expansion
    if expands:
        y = conv_bn(net, y, f"{name}.conv.0", hidden, activation=Network.relu6)
        index = 1
    y = conv_bn(net, y, f"{name}.conv.{index}", hidden, 3, stride, Network.relu6, groups=hidden)
    y = net.batch_norm(net.conv(y, f"{name}.conv.{index + 1}", channels), f"{name}.conv.{index + 2}")
    return net.add(x, y, f"{name}.add") if x.shape == y.shape else y


def mobilenet_v3(net: Network, blocks: Blocks, last: int, minimalistic: bool = False, squeezed_to: int = 8) -> Value:
    """Minimalistic is the authors' variant without 5x5 kernels, hard-swish and squeeze-and-excitation.

    Squeezed channels are multiples of `squeezed_to`.
    """
    activation = Network.relu if minimalistic else Network.hard_swish
    x = v3_features(net, blocks, minimalistic, squeezed_to=squeezed_to)[-1]
    x = net.flatten(net.global_average_pool(x, "avgpool"), "flatten")
    # As the last convolution of V2, the widest layer is not made narrower.
    x = activation(net, net.linear(x, "classifier.0", divisible(last * max(1.0, net.width))), "classifier.1")
    return net.linear(x, "classifier.3", net.classes)


def v3_features(
    net: Network, blocks: Blocks, minimalistic: bool = False, dilated: bool = False, squeezed_to: int = 8
) -> list[Value]:
    """The outputs of the first convolution, the blocks and the last convolution.

    Dilated: the last stride of 2 becomes a dilation of 2, as segmentation wants it.
    """
    swish = Network.relu if minimalistic else Network.hard_swish
    outputs, published, dilation = [conv_bn(net, net.input, "features.0", net.scaled(16), 3, 2, swish)], 16, 1
    for index, (kernel, expanded, channels, excited, swished, stride) in enumerate(blocks, start=1):
        x = outputs[-1]
        if dilated and stride == 2 and index == len(blocks) - 2:
            stride, dilation = 1, 2
        hidden = divisible(x.channels * expanded / published)
        excite = partial(
            squeeze_excite,
            squeezed=divisible(hidden // 4, squeezed_to),
            activation=Network.relu,
            gate=Network.hard_sigmoid,
        )
        x = inverted_residual(
            net, x, f"features.{index}.block", net.scaled(channels), hidden,
            3 if minimalistic else kernel, stride, swish if swished else Network.relu,
            excite if excited and not minimalistic else None, dilation,
        )  # fmt: skip
        outputs.append(x)
        published = channels
    outputs.append(conv_bn(net, x, f"features.{len(outputs)}", 6 * x.channels, activation=swish))
    return outputs
