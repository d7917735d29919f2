"""SqueezeNet 1.0 (Iandola et al., https://arxiv.org/abs/1602.07360) and 1.1 (the authors' later release)."""

from nnc.networks.network import Network, Value

#: Squeeze and expand channels of the fire modules; None is a max pooling.
Fires = tuple[tuple[int, int] | None, ...]
FIRES_1_0: Fires = ((16, 64), (16, 64), (32, 128), None, (32, 128), (48, 192), (48, 192), (64, 256), None, (64, 256))
FIRES_1_1: Fires = ((16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256))


def squeezenet(net: Network, filters: int, kernel: int, fires: Fires, padded: bool = False) -> Value:
    """`filters` and `kernel` are those of the first convolution; the last one is padded in the authors' release."""
    x = net.conv(net.input, "features.0", net.scaled(filters), kernel, 2, padding=0, bias=True)
    x = net.max_pool(net.relu(x, "features.1"), "features.2", 3, 2, ceil=True)
    for index, fire in enumerate(fires, start=3):
        if fire is None:
            x = net.max_pool(x, f"features.{index}", 3, 2, ceil=True)
        else:
            x = fire_module(net, x, f"features.{index}", *fire)
    x = net.conv(x, "classifier.1", net.classes, padding=int(padded), bias=True)
    x = net.relu(x, "classifier.2")
    return net.flatten(net.global_average_pool(x, "classifier.3"), "flatten")


def fire_module(net: Network, x: Value, name: str, squeeze: int, expand: int) -> Value:
    x = net.relu(net.conv(x, f"{name}.squeeze", net.scaled(squeeze), bias=True))
    branches = [
        net.relu(net.conv(x, f"{name}.expand{kernel}x{kernel}", net.scaled(expand), kernel, bias=True))
        for kernel in (1, 3)
    ]
    return net.concat(branches, f"{name}.concat")
