"""The networks by name, and what a name may look like: `mobilenet_v1_0.25_128` says width and input size."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from nnc.errors import NncError
from nnc.networks.blazeface import blazeface
from nnc.networks.densenet import densenet
from nnc.networks.efficientnet import V2_B0, V2_S, efficientnet, efficientnet_lite, efficientnet_v2
from nnc.networks.ghostnet import ghostnet
from nnc.networks.inception import googlenet, googlenet_caffe, inception_resnet_v2, inception_v3, inception_v4
from nnc.networks.mnasnet import mnasnet, proxylessnas
from nnc.networks.mobilenet import V3_LARGE, V3_LARGE_FIRST, V3_SMALL, mobilenet_v1, mobilenet_v2, mobilenet_v3
from nnc.networks.nanodet import nanodet_m
from nnc.networks.network import Network, Value
from nnc.networks.regnet import X_DESIGNS, Y_DESIGNS, regnet
from nnc.networks.resnet import basic_block, bottleneck, resnet, resnet_cifar
from nnc.networks.resnet_v2 import resnet_v2
from nnc.networks.segmentation import deeplabv3, fcn, lraspp, mobilenet_backbone, resnet_backbone
from nnc.networks.shufflenet import shufflenet_v1, shufflenet_v2
from nnc.networks.squeezenet import FIRES_1_0, FIRES_1_1, squeezenet
from nnc.networks.ssd import squeezenet_ssd, ssd_mobilenet_v1
from nnc.networks.vgg import PLAN_A, PLAN_B, PLAN_D, PLAN_E, alexnet, alexnet_caffe, vgg
from nnc.networks.yolo import mobilenet_v2_yolov3, mobilenet_yolo, yolov4, yolov4_tiny
from nnc.networks.yolo_fastest import fastestdet, yolo_fastest_1_1, yolo_fastest_v2


@dataclass(frozen=True)
class Architecture:
    """How a network is built, the data it was designed for, and the smallest input that leaves a pixel at its end."""

    layers: Callable[[Network], Value]
    input_size: int = 224
    classes: int = 1000
    smallest: int = 32


_cifar = partial(Architecture, input_size=32, classes=10, smallest=8)
_voc = partial(Architecture, input_size=520, classes=21)  # with the background; crops of torchvision's training

_RESNET18 = partial(resnet_backbone, block=basic_block, depths=(2, 2, 2, 2), dilated=0)
_RESNET50 = partial(resnet_backbone, block=bottleneck, depths=(3, 4, 6, 3))
_RESNET101 = partial(resnet_backbone, block=bottleneck, depths=(3, 4, 23, 3))

#: Widths, depths and input sizes: B0 to B7 as torchvision has them, Lite as published.
_EFFICIENTNETS = {
    "efficientnet_b0": (1.0, 1.0, 224),
    "efficientnet_b1": (1.0, 1.1, 240),
    "efficientnet_b2": (1.1, 1.2, 288),
    "efficientnet_b3": (1.2, 1.4, 300),
    "efficientnet_b4": (1.4, 1.8, 380),
    "efficientnet_b5": (1.6, 2.2, 456),
    "efficientnet_b6": (1.8, 2.6, 528),
    "efficientnet_b7": (2.0, 3.1, 600),
}
_EFFICIENTNETS_LITE = {
    "efficientnet_lite0": (1.0, 1.0, 224),
    "efficientnet_lite1": (1.0, 1.1, 240),
    "efficientnet_lite2": (1.1, 1.2, 260),
    "efficientnet_lite3": (1.2, 1.4, 280),
    "efficientnet_lite4": (1.4, 1.8, 300),
}

ARCHITECTURES = {
    "alexnet": Architecture(alexnet, smallest=63),
    "alexnet_caffe": Architecture(alexnet_caffe, input_size=227, smallest=67),
    "vgg11": Architecture(partial(vgg, stages=PLAN_A)),
    "vgg11_bn": Architecture(partial(vgg, stages=PLAN_A, normalized=True)),
    "vgg13": Architecture(partial(vgg, stages=PLAN_B)),
    "vgg13_bn": Architecture(partial(vgg, stages=PLAN_B, normalized=True)),
    "vgg16": Architecture(partial(vgg, stages=PLAN_D)),
    "vgg16_bn": Architecture(partial(vgg, stages=PLAN_D, normalized=True)),
    "vgg19": Architecture(partial(vgg, stages=PLAN_E)),
    "vgg19_bn": Architecture(partial(vgg, stages=PLAN_E, normalized=True)),
    "resnet18": Architecture(partial(resnet, block=basic_block, depths=(2, 2, 2, 2))),
    "resnet18_caffe": Architecture(partial(resnet, block=basic_block, depths=(2, 2, 2, 2), projects=True)),
    "resnet34": Architecture(partial(resnet, block=basic_block, depths=(3, 4, 6, 3))),
    "resnet50": Architecture(partial(resnet, block=bottleneck, depths=(3, 4, 6, 3))),
    "resnet50_caffe": Architecture(
        partial(resnet, block=partial(bottleneck, strides_first=True), depths=(3, 4, 6, 3))
    ),
    "resnet101": Architecture(partial(resnet, block=bottleneck, depths=(3, 4, 23, 3))),
    "resnet152": Architecture(partial(resnet, block=bottleneck, depths=(3, 8, 36, 3))),
    "resnext50_32x4d": Architecture(
        partial(resnet, block=partial(bottleneck, groups=32, widened=2), depths=(3, 4, 6, 3))
    ),
    "wide_resnet50_2": Architecture(partial(resnet, block=partial(bottleneck, widened=2), depths=(3, 4, 6, 3))),
    "resnet50_v2": Architecture(partial(resnet_v2, depths=(3, 4, 6, 3))),
    "resnet101_v2": Architecture(partial(resnet_v2, depths=(3, 4, 23, 3))),
    "resnet152_v2": Architecture(partial(resnet_v2, depths=(3, 8, 36, 3))),
    "resnet20": _cifar(partial(resnet_cifar, depth=20)),
    "resnet44": _cifar(partial(resnet_cifar, depth=44)),
    "resnet56": _cifar(partial(resnet_cifar, depth=56)),
    "mobilenet_v1": Architecture(mobilenet_v1),
    "mobilenet_v2": Architecture(mobilenet_v2),
    "mobilenet_v2_caffe": Architecture(partial(mobilenet_v2, all_expanded=True)),
    "mobilenet_v3_large": Architecture(partial(mobilenet_v3, blocks=V3_LARGE, last=1280)),
    "mobilenet_v3_large_ncnn": Architecture(
        partial(mobilenet_v3, blocks=V3_LARGE_FIRST, last=1280, squeezed_to=1)
    ),
    "mobilenet_v3_small": Architecture(partial(mobilenet_v3, blocks=V3_SMALL, last=1024)),
    "mobilenet_v3_large_minimalistic": Architecture(
        partial(mobilenet_v3, blocks=V3_LARGE, last=1280, minimalistic=True)
    ),
    "mobilenet_v3_small_minimalistic": Architecture(
        partial(mobilenet_v3, blocks=V3_SMALL, last=1024, minimalistic=True)
    ),
    "mnasnet": Architecture(mnasnet),
    "proxylessnas": Architecture(proxylessnas),
    "proxylessnas_ncnn": Architecture(partial(proxylessnas, first_block=32)),
    "ghostnet": Architecture(ghostnet),
    "densenet121": Architecture(partial(densenet, growth=32, depths=(6, 12, 24, 16))),
    "densenet161": Architecture(partial(densenet, growth=48, depths=(6, 12, 36, 24))),
    "densenet169": Architecture(partial(densenet, growth=32, depths=(6, 12, 32, 32))),
    "densenet201": Architecture(partial(densenet, growth=32, depths=(6, 12, 48, 32))),
    "squeezenet1_0": Architecture(partial(squeezenet, filters=96, kernel=7, fires=FIRES_1_0)),
    "squeezenet1_1": Architecture(partial(squeezenet, filters=64, kernel=3, fires=FIRES_1_1)),
    "squeezenet1_1_caffe": Architecture(
        partial(squeezenet, filters=64, kernel=3, fires=FIRES_1_1, padded=True), input_size=227
    ),
    "googlenet": Architecture(googlenet),
    "googlenet_caffe": Architecture(googlenet_caffe),
    "inception_v3": Architecture(inception_v3, input_size=299, smallest=75),
    "inception_v4": Architecture(inception_v4, input_size=299, smallest=75),
    "inception_resnet_v2": Architecture(inception_resnet_v2, input_size=299, smallest=75),
    "shufflenet_v1": Architecture(shufflenet_v1),
    "shufflenet_v1_caffe": Architecture(partial(shufflenet_v1, narrow=True)),
    "shufflenet_v2": Architecture(shufflenet_v2),
    **{name: Architecture(partial(efficientnet, width=width, depth=depth), size)
       for name, (width, depth, size) in _EFFICIENTNETS.items()},
    **{name: Architecture(partial(efficientnet_lite, width=width, depth=depth), size)
       for name, (width, depth, size) in _EFFICIENTNETS_LITE.items()},
    "efficientnet_v2_b0": Architecture(partial(efficientnet_v2, stages=V2_B0, stem=32)),
    "efficientnet_v2_s": Architecture(partial(efficientnet_v2, stages=V2_S, stem=24), 384),
    **{f"regnet_y_{size}": Architecture(partial(regnet, design=design)) for size, design in Y_DESIGNS.items()},
    **{f"regnet_x_{size}": Architecture(partial(regnet, design=design)) for size, design in X_DESIGNS.items()},
    "ssd_mobilenet_v1": Architecture(ssd_mobilenet_v1, 300, 21),
    "squeezenet_ssd": Architecture(squeezenet_ssd, 300, 21, smallest=65),
    "yolov4": Architecture(yolov4, 416, 80),
    "yolov4_tiny": Architecture(yolov4_tiny, 416, 80),
    "mobilenet_yolo": Architecture(mobilenet_yolo, 416, 20),
    "mobilenet_v2_yolov3": Architecture(mobilenet_v2_yolov3, 352, 20),
    "yolo_fastest_1_1": Architecture(yolo_fastest_1_1, 320, 80),
    "yolo_fastest_v2": Architecture(yolo_fastest_v2, 352, 80),
    "fastestdet": Architecture(fastestdet, 352, 80),
    "nanodet_m": Architecture(nanodet_m, 320, 80),
    "blazeface": Architecture(blazeface, 128, 1),
    "fcn_resnet18": Architecture(partial(fcn, backbone=_RESNET18, resized=False), 320, 21),
    "fcn_resnet50": _voc(partial(fcn, backbone=_RESNET50)),
    "fcn_resnet101": _voc(partial(fcn, backbone=_RESNET101)),
    "deeplabv3_resnet50": _voc(partial(deeplabv3, backbone=_RESNET50)),
    "deeplabv3_resnet101": _voc(partial(deeplabv3, backbone=_RESNET101)),
    "deeplabv3_mobilenet_v3_large": _voc(partial(deeplabv3, backbone=mobilenet_backbone)),
    "lraspp_mobilenet_v3_large": _voc(lraspp),
}  # fmt: skip

#: Other names, as `_spelled` writes them.
_ALIASES = {
    "inceptionv1": "googlenet",
    "mobilenet": "mobilenet_v1",
    "mobilenetssd": "ssd_mobilenet_v1",
    "mobilenetv3": "mobilenet_v3_large",
    "proxylessnasmobile": "proxylessnas",
    "proxylessnasnet": "proxylessnas",
    "regnety400m": "regnet_y_400mf",
    "resnet50v15": "resnet50",
    "resnetv150": "resnet50",
    "resnetv1101": "resnet101",
    "resnetv1152": "resnet152",
    "resnetv250": "resnet50_v2",
    "resnetv2101": "resnet101_v2",
    "resnetv2152": "resnet152_v2",
    "shufflenet": "shufflenet_v1",
    "squeezenetv11": "squeezenet1_1",
    # https://github.com/dusty-nv/jetson-inference names them after their data.
    **{f"fcnresnet18{data}": "fcn_resnet18" for data in ("cityscapes", "deepscene", "mhp", "sun", "voc")},
}

_NAME_WITH_WIDTH = re.compile(r"(.+?)[_-]?x?(\d)[._p](\d+)(?:[_-](\d+))?")


def find(name: str) -> tuple[Architecture, float | None, int | None]:
    """The architecture, and the width and the input size that the name says.

    Spelling is free in underscores, hyphens, dots and case; the width follows as 0.25, 0_25 or 0p25, and the size
    behind it: `mobilenet_v1_0.25_128`. Raises NncError for a name that is none.
    """
    if known := _BY_SPELLING.get(_spelled(name)):
        return ARCHITECTURES[known], None, None
    if (parts := _NAME_WITH_WIDTH.fullmatch(name)) and (known := _BY_SPELLING.get(_spelled(parts[1]))):
        return ARCHITECTURES[known], float(f"{parts[2]}.{parts[3]}"), int(parts[4]) if parts[4] else None
    near = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.5)
    raise NncError(
        f"unknown network '{name}'", f"did you mean '{near[0]}'?" if near else "'nnc network list' shows all"
    )


def _spelled(name: str) -> str:
    return re.sub("[-_. ]", "", name.lower()).removeprefix("tv")  # some say whose network it is, torchvision's


_BY_SPELLING = {_spelled(name): name for name in ARCHITECTURES} | _ALIASES
