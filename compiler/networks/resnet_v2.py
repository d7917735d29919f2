"""ResNet with activations in front of the convolutions (He et al., https://arxiv.org/abs/1603.05027), as TF-slim and
Keras have it: a stage halves the size in its last block, not in its first."""

from collections.abc import Sequence

from nnc.networks.blocks import classifier
from nnc.networks.network import Network, Value

_PLANES = (64, 128, 256, 512)


def resnet_v2(net: Network, depths: Sequence[int]) -> Value:
    x = net.conv(net.input, "conv1_conv", net.scaled(64), 7, 2, bias=True)
    x = net.max_pool(x, "pool1_pool", 3, 2, 1)
    for stage, (planes, depth) in enumerate(zip(_PLANES, depths, strict=True), start=2):
        for index in range(1, depth + 1):
            stride = 2 if index == depth and planes != _PLANES[-1] else 1
            x = _block(net, x, f"conv{stage}_block{index}", net.scaled(planes), stride, projected=index == 1)
    x = net.relu(net.batch_norm(x, "post_bn"), "post_relu")
    return classifier(net, x, "predictions")


def _block(net: Network, x: Value, name: str, planes: int, stride: int, projected: bool) -> Value:
    active = net.relu(net.batch_norm(x, f"{name}_preact_bn"), f"{name}_preact_relu")
    if projected:
        x = net.conv(active, f"{name}_0_conv", 4 * planes, 1, stride, bias=True)
    elif stride > 1:
        x = net.max_pool(x, f"{name}_pool", 1, stride)
    y = net.relu(net.batch_norm(net.conv(active, f"{name}_1_conv", planes), f"{name}_1_bn"), f"{name}_1_relu")
    y = net.conv(y, f"{name}_2_conv", planes, 3, stride)
    y = net.conv(net.relu(net.batch_norm(y, f"{name}_2_bn"), f"{name}_2_relu"), f"{name}_3_conv", 4 * planes, bias=True)
    return net.add(x, y, f"{name}_out")
