"""ShuffleNet: V1 (Zhang et al., https://arxiv.org/abs/1707.01083) and V2 (Ma et al.,
https://arxiv.org/abs/1807.11164)."""

from collections.abc import Sequence

import numpy as np

from nnc.networks.blocks import Activation, classifier
from nnc.networks.network import Network, Value, divisible

#: Output channels of the first stage by the number of groups, doubled by each further one: table 1 of the paper.
_V1_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
_V1_DEPTHS = (4, 8, 4)

#: Output channels of the three stages and of the last convolution, by width: table 5 of the paper.
_V2_CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
_V2_DEPTHS = (4, 8, 4)


def shufflenet_v1(net: Network, groups: int = 3, narrow: bool = False) -> Value:
    """Narrow: units of stride 2 have inside a quarter of the channels that they add, not of all behind them."""
    x = net.relu(net.batch_norm(net.conv(net.input, "conv1.0", 24, 3, 2), "conv1.1"), "conv1.2")
    x = net.max_pool(x, "maxpool", 3, 2, 1)
    # The 1x1 convolutions inside have a quarter of the channels, in groups; a stage adds some to those that it reads.
    step = 4 * groups
    channels = max(divisible(_V1_CHANNELS[groups] * net.width, step), x.channels // step * step + step)
    for stage, depth in enumerate(_V1_DEPTHS, start=2):
        for index in range(depth):
            first = 1 if stage == 2 and index == 0 else groups
            added = channels - x.channels if index == 0 else channels
            inner = (added if narrow else channels) // 4
            x = _v1_unit(net, x, f"stage{stage}.{index}", inner, added, 2 if index == 0 else 1, first, groups)
        channels *= 2
    return classifier(net, x, "fc")


def _v1_unit(
    net: Network, x: Value, name: str, inner: int, channels: int, stride: int, first: int, groups: int
) -> Value:
    """Grouped 1x1, shuffle, depthwise, grouped 1x1; next to an average pooling with stride 2, a sum elsewhere."""
    shortcut = x
    y = net.relu(net.batch_norm(net.conv(x, f"{name}.conv1", inner, groups=first), f"{name}.bn1"))
    y = channel_shuffle(net, y, f"{name}.shuffle", groups)
    y = net.batch_norm(net.conv(y, f"{name}.conv2", inner, 3, stride, groups=inner), f"{name}.bn2")
    if stride > 1:
        shortcut = net.average_pool(x, f"{name}.pool", 3, stride, padding=1)
    y = net.batch_norm(net.conv(y, f"{name}.conv3", channels, groups=groups), f"{name}.bn3")
    y = net.concat([shortcut, y], f"{name}.concat") if stride > 1 else net.add(shortcut, y, f"{name}.add")
    return net.relu(y, f"{name}.relu")


def shufflenet_v2(net: Network) -> Value:
    """The published channels at the published widths; the width multiplier applied to those of 1.0 elsewhere."""
    *stages, last = published_channels(net)
    x = net.conv(v2_features(net, stages)[-1], "conv5.0", last)
    x = net.relu(net.batch_norm(x, "conv5.1"), "conv5.2")
    return net.linear(net.spatial_mean(x, "mean"), "fc", net.classes)


def v2_features(net: Network, channels: Sequence[int], activation: Activation = Network.relu) -> list[Value]:
    """The outputs of the three stages."""
    x, outputs = net.conv(net.input, "conv1.0", 24, 3, 2), []
    x = net.max_pool(activation(net, net.batch_norm(x, "conv1.1"), "conv1.2"), "maxpool", 3, 2, 1)
    for stage, (wide, depth) in enumerate(zip(channels, _V2_DEPTHS, strict=True), start=2):
        for index in range(depth):
            x = _unit(net, x, f"stage{stage}.{index}", wide, 2 if index == 0 else 1, activation)
        outputs.append(x)
    return outputs


def published_channels(net: Network) -> tuple[int, ...]:
    """Of the three stages and the last convolution."""
    return _V2_CHANNELS.get(net.width) or tuple(map(net.scaled, _V2_CHANNELS[1.0]))


def _unit(net: Network, x: Value, name: str, channels: int, stride: int, activation: Activation) -> Value:
    left, right = (x, x) if stride > 1 else _halves(net, x, name)
    if stride > 1:
        left = net.conv(x, f"{name}.branch1.0", x.channels, 3, stride, groups=x.channels)
        left = net.conv(net.batch_norm(left, f"{name}.branch1.1"), f"{name}.branch1.2", channels // 2)
        left = activation(net, net.batch_norm(left, f"{name}.branch1.3"), f"{name}.branch1.4")
    right = net.conv(right, f"{name}.branch2.0", channels // 2)
    right = activation(net, net.batch_norm(right, f"{name}.branch2.1"), f"{name}.branch2.2")
    right = net.conv(right, f"{name}.branch2.3", channels // 2, 3, stride, groups=channels // 2)
    right = net.conv(net.batch_norm(right, f"{name}.branch2.4"), f"{name}.branch2.5", channels // 2)
    right = activation(net, net.batch_norm(right, f"{name}.branch2.6"), f"{name}.branch2.7")
    return channel_shuffle(net, net.concat([left, right], f"{name}.concat"), f"{name}.shuffle", 2)


def channel_shuffle(net: Network, x: Value, name: str, groups: int) -> Value:
    """View as [N, groups, C / groups, H, W], transpose the two, view back; the model computes the shapes."""
    shape = net.node("Shape", f"{name}.shape", [x.name])
    batch, channels, height, width = (
        net.node("Gather", f"{name}.{axis}", [shape, _integer(net, f"{name}.{axis}.index", index)], axis=0)
        for index, axis in enumerate(("batch", "channels", "height", "width"))
    )
    each = net.node("Div", f"{name}.each", [channels, _integer(net, f"{name}.groups", groups)])
    count = _integer(net, f"{name}.count", groups)
    split = _view(net, x.name, f"{name}.split", (batch, count, each, height, width))
    swapped = net.node("Transpose", f"{name}.transpose", [split], perm=[0, 2, 1, 3, 4])
    return net.declare(_view(net, swapped, name, (batch, channels, height, width)), x.shape, x.moments)


def _halves(net: Network, x: Value, name: str) -> tuple[Value, Value]:
    """torch.chunk(x, 2, dim=1), which the exporter writes as Slices whose ends it computes from the shape."""
    name, half = f"{name}.chunk", x.channels // 2
    axis, start, two, one = (
        net.constant(f"{name}.{part}", np.array([value], np.int64))
        for part, value in (("axis", 1), ("start", 0), ("chunks", 2), ("chunks_less_one", 1))
    )
    channels = net.node("Gather", f"{name}.channels", [net.node("Shape", f"{name}.shape", [x.name]), axis], axis=0)
    size = net.node("Div", f"{name}.size", [net.node("Add", f"{name}.rounded", [channels, one]), two])
    halves = []
    for part in (1, 2):
        end = net.node("Mul", f"{name}.end{part}", [size, _integers(net, f"{name}.part{part}", part)])
        sliced = net.node("Slice", f"{name}.slice{part}", [x.name, start, end, axis])
        halves.append(net.declare(sliced, (1, half, *x.shape[2:]), x.moments))
        start = end
    return halves[0], halves[1]


def _view(net: Network, x: str, name: str, sizes: tuple[str, ...]) -> str:
    """Tensor.view with sizes that are scalars of the graph."""
    axes = _integers(net, f"{name}.axes", 0)
    rows = [net.node("Unsqueeze", f"{name}.size{index}", [size, axes]) for index, size in enumerate(sizes)]
    return net.node("Reshape", name, [x, net.node("Concat", f"{name}.sizes", rows, axis=0)], allowzero=0)


def _integer(net: Network, name: str, value: int) -> str:
    return net.constant(name, np.int64(value))


def _integers(net: Network, name: str, *values: int) -> str:
    return net.constant(name, np.array(values, np.int64))
