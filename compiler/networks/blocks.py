"""The blocks that MobileNets and their successors share, named like torchvision's."""

from collections.abc import Callable

from nnc.networks.network import Network, Pair, Value

Activation = Callable[[Network, Value, str | None], Value]  # a method of Network, such as Network.relu6


def conv_bn(
    net: Network,
    x: Value,
    name: str,
    filters: int,
    kernel: Pair = 1,
    stride: int = 1,
    activation: Activation | None = Network.relu,
    groups: int = 1,
    dilation: int = 1,
    gain: float = 1.0,
) -> Value:
    """Convolution, BatchNormalization, activation."""
    x = net.conv(x, f"{name}.0", filters, kernel, stride, groups=groups, dilation=dilation)
    x = net.batch_norm(x, f"{name}.1", gain)
    return activation(net, x, f"{name}.2") if activation else x


def inverted_residual(
    net: Network,
    x: Value,
    name: str,
    channels: int,
    hidden: int,
    kernel: int,
    stride: int,
    activation: Activation,
    excite: Callable[[Network, Value, str], Value] | None = None,
    dilation: int = 1,
    gain: float = 1.0,
) -> Value:
    """Expand, depthwise convolution, squeeze-and-excitation, project; a shortcut where the shape stays.

    `gain` is what the block adds to the shortcut, as a share of what blocks give elsewhere.
    """
    y, layers = x, iter(range(4))
    if hidden != x.channels:
        y = conv_bn(net, y, f"{name}.{next(layers)}", hidden, activation=activation)
    y = conv_bn(net, y, f"{name}.{next(layers)}", hidden, kernel, stride, activation, hidden, dilation)
    if excite:
        y = excite(net, y, f"{name}.{next(layers)}")
    kept = stride == 1 and x.channels == channels
    y = conv_bn(net, y, f"{name}.{next(layers)}", channels, activation=None, gain=gain if kept else 1.0)
    return net.add(y, x, f"{name}.add") if kept else y


def squeeze_excite(
    net: Network,
    x: Value,
    name: str,
    squeezed: int,
    activation: Activation = Network.relu,
    gate: Activation = Network.sigmoid,
) -> Value:
    """Scale each channel by what a small network makes of all channels' means (https://arxiv.org/abs/1709.01507)."""
    y = net.global_average_pool(x, f"{name}.avgpool")
    y = net.conv(y, f"{name}.fc1", squeezed, bias=True)
    y = net.conv(activation(net, y, None), f"{name}.fc2", x.channels, bias=True)
    return net.scale(x, gate(net, y, None), f"{name}.scale")


def classifier(net: Network, x: Value, name: str) -> Value:
    """Global average pooling and a fully connected layer."""
    x = net.flatten(net.global_average_pool(x, "avgpool"), "flatten")
    return net.linear(x, name, net.classes)
