"""DenseNet-BC (Huang et al., https://arxiv.org/abs/1608.06993)."""

from nnc.networks.blocks import classifier
from nnc.networks.network import Network, Value

_BOTTLENECK = 4  # a 1x1 convolution narrows each layer's input to this many times the growth rate


def densenet(net: Network, growth: int, depths: tuple[int, ...]) -> Value:
    growth = net.scaled(growth)
    x = net.conv(net.input, "features.conv0", 2 * growth, 7, 2)
    x = net.max_pool(net.relu(net.batch_norm(x, "features.norm0"), "features.relu0"), "features.pool0", 3, 2, 1)
    return classifier(net, dense_blocks(net, x, growth, depths), "classifier")


def dense_blocks(net: Network, x: Value, growth: int, depths: tuple[int, ...]) -> Value:
    """What lies between the stem and the classifier."""
    for block, depth in enumerate(depths, start=1):
        x = _dense_block(net, x, f"features.denseblock{block}", growth, depth)
        if block < len(depths):
            x = _transition(net, x, f"features.transition{block}")
    return net.relu(net.batch_norm(x, "features.norm5"), "relu")


def _dense_block(net: Network, x: Value, name: str, growth: int, depth: int) -> Value:
    features = [x]
    for index in range(1, depth + 1):
        features.append(_dense_layer(net, features, f"{name}.denselayer{index}", growth))
    return net.concat(features, f"{name}.concat")


def _dense_layer(net: Network, features: list[Value], name: str, growth: int) -> Value:
    x = net.concat(features, f"{name}.concat")
    x = net.relu(net.batch_norm(x, f"{name}.norm1"), f"{name}.relu1")
    x = net.conv(x, f"{name}.conv1", _BOTTLENECK * growth)
    x = net.relu(net.batch_norm(x, f"{name}.norm2"), f"{name}.relu2")
    return net.conv(x, f"{name}.conv2", growth, 3)


def _transition(net: Network, x: Value, name: str) -> Value:
    y = net.relu(net.batch_norm(x, f"{name}.norm"), f"{name}.relu")
    return net.average_pool(net.conv(y, f"{name}.conv", x.channels // 2), f"{name}.pool", 2, 2)
