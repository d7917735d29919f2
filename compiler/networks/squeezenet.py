"""SqueezeNet 1.1 (Iandola et al., https://arxiv.org/abs/1602.07360, and the authors' later release)."""

from nnc.networks.network import Network, Value

#: Squeeze and expand channels of the fire modules; None is a max pooling.
_FIRES_1_1 = ((16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256))


def squeezenet1_1(net: Network) -> Value:
    x = net.conv(net.input, "features.0", net.scaled(64), 3, 2, padding=0, bias=True)
    x = net.max_pool(net.relu(x, "features.1"), "features.2", 3, 2, ceil=True)
    for index, fire in enumerate(_FIRES_1_1, start=3):
        if fire is None:
            x = net.max_pool(x, f"features.{index}", 3, 2, ceil=True)
        else:
            x = _fire(net, x, f"features.{index}", net.scaled(fire[0]), net.scaled(fire[1]))
    x = net.relu(net.conv(x, "classifier.1", net.classes, bias=True), "classifier.2")
    return net.flatten(net.global_average_pool(x, "classifier.3"), "flatten")


def _fire(net: Network, x: Value, name: str, squeeze: int, expand: int) -> Value:
    x = net.relu(net.conv(x, f"{name}.squeeze", squeeze, bias=True))
    branches = [
        net.relu(net.conv(x, f"{name}.expand{kernel}x{kernel}", expand, kernel, bias=True)) for kernel in (1, 3)
    ]
    return net.concat(branches, f"{name}.concat")
