"""GhostNet (Han et al., https://arxiv.org/abs/1911.11907)."""

from nnc.networks.blocks import conv_bn, squeeze_excite
from nnc.networks.network import Network, Value, divisible

#: Kernel, expanded channels, output channels, squeeze-and-excitation, stride: table 1 of the paper.
_BLOCKS = (
    (3, 16, 16, False, 1),
    (3, 48, 24, False, 2),
    (3, 72, 24, False, 1),
    (5, 72, 40, True, 2),
    (5, 120, 40, True, 1),
    (3, 240, 80, False, 2),
    (3, 200, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 480, 112, True, 1),
    (3, 672, 112, True, 1),
    (5, 672, 160, True, 2),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
)


def ghostnet(net: Network) -> Value:
    x = conv_bn(net, net.input, "conv_stem", _scaled(net, 16), 3, 2)
    for index, (kernel, expanded, channels, excited, stride) in enumerate(_BLOCKS):
        x = _bottleneck(
            net, x, f"blocks.{index}", _scaled(net, channels), _scaled(net, expanded), kernel, stride, excited
        )
    x = net.global_average_pool(conv_bn(net, x, "conv", _scaled(net, 960)), "global_pool")
    x = net.relu(net.conv(x, "conv_head", divisible(1280 * max(1.0, net.width)), bias=True))
    return net.linear(net.flatten(x, "flatten"), "classifier", net.classes)


def _bottleneck(
    net: Network, x: Value, name: str, channels: int, hidden: int, kernel: int, stride: int, excited: bool
) -> Value:
    y = _ghost(net, x, f"{name}.ghost1", hidden)
    if stride > 1:
        y = net.batch_norm(net.conv(y, f"{name}.conv_dw", hidden, kernel, stride, groups=hidden), f"{name}.bn_dw")
    if excited:
        y = squeeze_excite(net, y, f"{name}.se", divisible(hidden / 4, 4), gate=Network.hard_sigmoid)
    y = _ghost(net, y, f"{name}.ghost2", channels, activate=False)
    if x.shape != y.shape:
        x = net.conv(x, f"{name}.shortcut.0", x.channels, kernel, stride, groups=x.channels)
        x = net.conv(net.batch_norm(x, f"{name}.shortcut.1"), f"{name}.shortcut.2", channels)
        x = net.batch_norm(x, f"{name}.shortcut.3")
    return net.add(y, x, f"{name}.add")


def _ghost(net: Network, x: Value, name: str, channels: int, activate: bool = True) -> Value:
    """Half of the channels by a 1x1 convolution, and the others by a depthwise one from these."""
    half, activation = channels // 2, Network.relu if activate else None
    made = conv_bn(net, x, f"{name}.primary_conv", half, activation=activation)
    ghosts = conv_bn(net, made, f"{name}.cheap_operation", half, 3, activation=activation, groups=half)
    return net.concat([made, ghosts], f"{name}.concat")


def _scaled(net: Network, channels: int) -> int:
    return divisible(channels * net.width, 4)
