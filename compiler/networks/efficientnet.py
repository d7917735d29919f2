"""EfficientNet (Tan and Le, https://arxiv.org/abs/1905.11946)."""

from nnc.networks.network import Network, Value

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


def efficientnet_b0(net: Network) -> Value:
    x = _conv_bn_silu(net, net.input, "features.0", net.scaled(32), 3, 2)
    for stage, (expansion, kernel, stride, channels, blocks) in enumerate(_B0_STAGES, start=1):
        for index in range(blocks):
            first = stride if index == 0 else 1
            x = _mbconv(net, x, f"features.{stage}.{index}", net.scaled(channels), expansion, kernel, first)
    x = _conv_bn_silu(net, x, f"features.{len(_B0_STAGES) + 1}", 4 * x.channels)
    x = net.flatten(net.global_average_pool(x, "avgpool"), "flatten")
    return net.linear(x, "classifier.1", net.classes)


def _mbconv(net: Network, x: Value, name: str, channels: int, expansion: int, kernel: int, stride: int) -> Value:
    """The inverted residual of MobileNetV2 with squeeze-and-excitation behind the depthwise convolution."""
    y, hidden, name = x, x.channels * expansion, f"{name}.block"
    layers = iter(range(4))
    if expansion != 1:
        y = _conv_bn_silu(net, y, f"{name}.{next(layers)}", hidden)
    y = _conv_bn_silu(net, y, f"{name}.{next(layers)}", hidden, kernel, stride, groups=hidden)
    y = _squeeze_excite(net, y, f"{name}.{next(layers)}", max(1, x.channels // 4))
    project = f"{name}.{next(layers)}"
    y = net.batch_norm(net.conv(y, f"{project}.0", channels), f"{project}.1")
    return net.add(y, x, f"{name}.add") if x.shape == y.shape else y


def _squeeze_excite(net: Network, x: Value, name: str, squeezed: int) -> Value:
    y = net.global_average_pool(x, f"{name}.avgpool")
    y = net.silu(net.conv(y, f"{name}.fc1", squeezed, bias=True))
    y = net.sigmoid(net.conv(y, f"{name}.fc2", x.channels, bias=True))
    return net.scale(x, y, f"{name}.scale")


def _conv_bn_silu(
    net: Network, x: Value, name: str, filters: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> Value:
    x = net.conv(x, f"{name}.0", filters, kernel, stride, groups=groups)
    return net.silu(net.batch_norm(x, f"{name}.1"), f"{name}.2")
