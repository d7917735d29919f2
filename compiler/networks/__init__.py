"""Reference networks of the literature as ONNX with seeded weights, for people without a model and for benchmarks.

Each is built exactly as torchvision builds it (ResNet-56: as He et al. describe it), so that its parameters and
multiply-accumulates are the published ones, with BatchNormalization unfolded. The weights are random: good for shapes,
speed and numerical checks, useless for accuracy.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import onnx

from nnc.errors import NncError
from nnc.networks.densenet import densenet
from nnc.networks.efficientnet import efficientnet_b0
from nnc.networks.mobilenet import mobilenet_v2
from nnc.networks.network import Network, Value
from nnc.networks.resnet import basic_block, bottleneck, resnet, resnet_cifar
from nnc.networks.shufflenet import shufflenet_v2
from nnc.networks.squeezenet import squeezenet1_1
from nnc.networks.vgg import PLAN_D, vgg

__all__ = ["NAMES", "build"]


@dataclass(frozen=True)
class Architecture:
    """How a network is built, the data it was designed for, and the smallest input that leaves a pixel at its end."""

    layers: Callable[[Network], Value]
    input_size: int = 224
    classes: int = 1000
    smallest: int = 32


_ARCHITECTURES = {
    "vgg16": Architecture(partial(vgg, stages=PLAN_D)),
    "resnet18": Architecture(partial(resnet, block=basic_block, depths=(2, 2, 2, 2))),
    "resnet50": Architecture(partial(resnet, block=bottleneck, depths=(3, 4, 6, 3))),
    "resnet56": Architecture(partial(resnet_cifar, depth=56), input_size=32, classes=10, smallest=8),
    "mobilenet_v2": Architecture(mobilenet_v2),
    "densenet121": Architecture(partial(densenet, growth=32, depths=(6, 12, 24, 16))),
    "densenet201": Architecture(partial(densenet, growth=32, depths=(6, 12, 48, 32))),
    "squeezenet1_1": Architecture(squeezenet1_1),
    "shufflenet_v2": Architecture(shufflenet_v2),
    "efficientnet_b0": Architecture(efficientnet_b0),
}

#: The networks that `build` knows.
NAMES = tuple(_ARCHITECTURES)


def build(
    name: str,
    *,
    input_size: int | None = None,
    classes: int | None = None,
    width: float = 1.0,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> onnx.ModelProto:
    """The network `name` as an ONNX model: `input` float32 [1, 3, input_size, input_size] -> `logits` [1, classes].

    `input_size` is in pixels (224, for CIFAR networks 32); `width` multiplies the channels of every layer. The same
    arguments give the same bytes. Raises NncError for a name or a figure that makes no network.
    """
    architecture = _find(name)
    input_size = architecture.input_size if input_size is None else input_size
    classes = architecture.classes if classes is None else classes
    if input_size < architecture.smallest:
        raise NncError(
            f"{name}: an input of {input_size}x{input_size} is too small", f"{architecture.smallest} is the smallest"
        )
    if classes < 1:
        raise NncError(f"{name}: the number of classes must be at least 1, not {classes}")
    if not (math.isfinite(width) and width > 0):
        raise NncError(f"{name}: the width must be a number above 0, not {width:g}", "1.0 is as published")
    if seed < 0:
        raise NncError(f"{name}: the seed must be at least 0, not {seed}")
    progress("draw weights", 0, 2)
    net = Network(name, input_size, classes, width, seed)
    return net.finish(architecture.layers(net))


def _find(name: str) -> Architecture:
    if name not in _ARCHITECTURES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known networks are {', '.join(NAMES)}"
        raise NncError(f"unknown network '{name}'", hint)
    return _ARCHITECTURES[name]
