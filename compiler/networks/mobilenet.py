"""MobileNetV2 (Sandler et al., https://arxiv.org/abs/1801.04381)."""

from nnc.networks.network import Network, Value, divisible

#: Expansion, output channels, blocks, stride of the first block: table 2 of the paper.
_V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(net: Network) -> Value:
    x = _conv_bn_relu6(net, net.input, "features.0", net.scaled(32), 3, 2)
    index = 1
    for expansion, channels, blocks, stride in _V2_STAGES:
        for block in range(blocks):
            x = _inverted_residual(
                net, x, f"features.{index}", net.scaled(channels), expansion, stride if block == 0 else 1
            )
            index += 1
    # The paper never makes the last convolution narrower than 1280.
    x = _conv_bn_relu6(net, x, f"features.{index}", divisible(1280 * max(1.0, net.width)))
    x = net.flatten(net.global_average_pool(x, "avgpool"), "flatten")
    return net.linear(x, "classifier.1", net.classes)


def _inverted_residual(net: Network, x: Value, name: str, channels: int, expansion: int, stride: int) -> Value:
    y, index, hidden = x, 0, x.channels * expansion
    if expansion != 1:
        y = _conv_bn_relu6(net, y, f"{name}.conv.0", hidden)
        index = 1
    y = _conv_bn_relu6(net, y, f"{name}.conv.{index}", hidden, 3, stride, groups=hidden)
    y = net.batch_norm(net.conv(y, f"{name}.conv.{index + 1}", channels), f"{name}.conv.{index + 2}")
    return net.add(x, y, f"{name}.add") if x.shape == y.shape else y


def _conv_bn_relu6(
    net: Network, x: Value, name: str, filters: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> Value:
    x = net.conv(x, f"{name}.0", filters, kernel, stride, groups=groups)
    return net.relu6(net.batch_norm(x, f"{name}.1"), f"{name}.2")
