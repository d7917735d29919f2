"""BlazeFace (Bazarevsky et al., https://arxiv.org/abs/1907.05047), the face detector for front cameras.

It gives [1, boxes, 16 + classes]: of each of 896 anchors a box, six keypoints and the score.
"""

import numpy as np

from nnc.networks.moments import Moments, mixture
from nnc.networks.network import Network, Value, divisible

#: Output channels and stride of the blocks; the finer map that heads read comes before the last stride.
_BLOCKS = ((24, 1), (28, 1), (32, 2), (36, 1), (42, 1), (48, 2), (56, 1), (64, 1), (72, 1), (80, 1), (88, 1), (96, 2),
           *[(96, 1)] * 4)  # fmt: skip
_FINE = 10
_OFFSETS = 16


def blazeface(net: Network) -> Value:
    x = net.relu(net.conv(net.input, "stem", _scaled(net, 24), 5, 2, bias=True))
    outputs = []
    for index, (channels, stride) in enumerate(_BLOCKS):
        x = _block(net, x, f"backbone.{index}", _scaled(net, channels), stride)
        outputs.append(x)
    parts = []
    for kind, figures in (("regressor", _OFFSETS), ("classifier", net.classes)):
        found = []
        for x, anchors in ((outputs[_FINE], 2), (outputs[-1], 6)):
            head = net.conv(x, f"{kind}.{anchors}", anchors * figures, bias=True)
            found.append(net.boxes(head, f"{head.name}.boxes", figures))
        parts.append(net.concat(found, kind))
    return net.concat(parts, "head", axis=2)


def _block(net: Network, x: Value, name: str, channels: int, stride: int) -> Value:
    """A depthwise and a 1x1 convolution; the shortcut is pooled, and has zeros for the channels that are new."""
    y = net.conv(x, f"{name}.convs.0", x.channels, 3, stride, groups=x.channels, bias=True)
    y = net.conv(y, f"{name}.convs.1", channels, bias=True)
    if stride > 1:
        x = net.max_pool(x, f"{name}.pool", 2, 2, ceil=True)
    if channels > x.channels:
        x = _padded(net, x, f"{name}.pad", channels)
    return net.relu(net.add(y, x, f"{name}.add"), f"{name}.relu")


def _padded(net: Network, x: Value, name: str, channels: int) -> Value:
    pads = net.constant(f"{name}.pads", np.array([0, 0, 0, 0, 0, channels - x.channels, 0, 0], np.int64))
    padded = net.node("Pad", name, [x.name, pads], mode="constant")
    moments = mixture([x.moments, Moments(0.0, 0.0)], [x.channels, channels - x.channels])
    return net.declare(padded, (1, channels, *x.shape[2:]), moments)


def _scaled(net: Network, channels: int) -> int:
    return divisible(channels * net.width, 2)
