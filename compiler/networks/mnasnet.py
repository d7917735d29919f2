"""MNASNet-B1 (Tan et al., https://arxiv.org/abs/1807.11626) and ProxylessNAS-Mobile (Cai et al.,
https://arxiv.org/abs/1812.00332): inverted residuals that a search has found."""

from nnc.networks.blocks import classifier, conv_bn, inverted_residual
from nnc.networks.network import Network, Value, divisible

#: Kernel, stride of the first block, expansion, output channels, blocks: figure 7 of the paper.
_MNASNET_STAGES = (
    (3, 2, 3, 24, 3),
    (5, 2, 3, 40, 3),
    (5, 2, 6, 80, 3),
    (3, 1, 6, 96, 2),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)

#: Output channels, stride of the first block, kernel and expansion of each block behind the first: figure 4 of the
#: paper, and the configuration that its authors published.
_PROXYLESS_STAGES = (
    (32, 2, ((5, 3), (3, 3))),
    (40, 2, ((7, 3), (3, 3), (5, 3), (5, 3))),
    (80, 2, ((7, 6), (5, 3), (5, 3), (5, 3))),
    (96, 1, ((5, 6), (5, 3), (5, 3), (5, 3))),
    (192, 2, ((7, 6), (7, 6), (7, 3), (7, 3))),
    (320, 1, ((7, 6),)),
)


def mnasnet(net: Network) -> Value:
    x = net.relu(net.batch_norm(net.conv(net.input, "layers.0", net.scaled(32), 3, 2), "layers.1"), "layers.2")
    x = net.conv(x, "layers.3", x.channels, 3, groups=x.channels)
    x = net.relu(net.batch_norm(x, "layers.4"), "layers.5")
    x = net.batch_norm(net.conv(x, "layers.6", net.scaled(16)), "layers.7")
    for stage, (kernel, stride, expansion, channels, blocks) in enumerate(_MNASNET_STAGES, start=8):
        for index in range(blocks):
            name, first = f"layers.{stage}.{index}.layers", stride if index == 0 else 1
            x = _mnasnet_block(net, x, name, net.scaled(channels), expansion, kernel, first)
    x = net.relu(net.batch_norm(net.conv(x, "layers.14", 1280), "layers.15"), "layers.16")
    return net.linear(net.spatial_mean(x, "mean"), "classifier.1", net.classes)


def _mnasnet_block(net: Network, x: Value, name: str, channels: int, expansion: int, kernel: int, stride: int) -> Value:
    hidden = x.channels * expansion
    y = net.relu(net.batch_norm(net.conv(x, f"{name}.0", hidden), f"{name}.1"), f"{name}.2")
    y = net.conv(y, f"{name}.3", hidden, kernel, stride, groups=hidden)
    y = net.relu(net.batch_norm(y, f"{name}.4"), f"{name}.5")
    y = net.batch_norm(net.conv(y, f"{name}.6", channels), f"{name}.7")
    return net.add(y, x, f"{name}.add") if x.shape == y.shape else y


def proxylessnas(net: Network, first_block: int = 16) -> Value:
    """`first_block` are the output channels of the first block; those inside the second don't depend on them."""
    x = conv_bn(net, net.input, "first_conv", net.scaled(32), 3, 2, Network.relu6)
    x = conv_bn(net, x, "blocks.0.0.0", x.channels, 3, 1, Network.relu6, groups=x.channels)
    x = conv_bn(net, x, "blocks.0.0.1", net.scaled(first_block), activation=None)
    published = net.scaled(16)
    for stage, (channels, stride, blocks) in enumerate(_PROXYLESS_STAGES, start=1):
        for index, (kernel, expansion) in enumerate(blocks):
            name, first = f"blocks.{stage}.{index}", stride if index == 0 else 1
            hidden, published = published * expansion, net.scaled(channels)
            x = inverted_residual(net, x, name, published, hidden, kernel, first, Network.relu6)
    last = divisible(1280 * max(1.0, net.width))  # never narrower, as in MobileNetV2
    return classifier(net, conv_bn(net, x, "feature_mix_layer", last, activation=Network.relu6), "classifier")
