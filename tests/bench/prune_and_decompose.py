"""Pruning and matrix decomposition of VGG-16, ResNet-50 and MobileNetV2 for a QCS605 (Moon, Lee, Kim 2020): the section
prune_and_decompose.

What becomes of size, latency and memory is seen on the networks at full size, which nobody can train here: MobileNetV2
for ImageNet, calibrated on one half of the sample, and VGG-16 and ResNet-50 with random weights, on which depends what
is chosen for them. What training keeps of the accuracy is seen on ResNet-56 for CIFAR-10, and on a narrow VGG that is
trained here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cifar import PREPROCESS, decoded, from_scratch, vgg
from low_rank import FROM_SCRATCH, UNITS, WIDTH
from shipped import UNTRAINED, Compiled, photos, shipped
from table import DATA, Row, Workshop, facts, samples

RECIPE, TARGET = "prune-and-decompose", "qcs605"

#: Published: 1.3 to 11.2 times smaller, 1.2 to 2.21 times faster, 1.2 to 3.8 times less memory, a loss below 2 %.
SIZE, LATENCY, MEMORY, DROP = (1.3, 11.2), (1.2, 2.21), (1.2, 3.8), 0.02

#: The latency to keep. Networks of few and narrow layers, which have less to spare, are asked for less of the published
#: range.
BUDGETS = {"vgg16": 0.46, "resnet50": 0.46, "mobilenet_v2": 0.6, "resnet56": 0.75, "vgg11_bn": 0.6}

#: Calibration images of networks with random weights.
FEW = 8

#: How narrow networks are compressed and trained; their widths may be any even number.
LEARNING = ("compress.round_to=2", "fine-tune.epochs=3", "fine-tune.samples=4000", "fine-tune.batch=64")

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "crop": 224}


def prune_and_decompose(shop: Workshop) -> Iterator[Row]:
    """The three networks at full size, and the accuracy of two that are trained."""
    if not DATA.exists():
        yield Row("pruned and decomposed", "", f"left out: no data folder {DATA}", None)
        return
    for model in samples("imagenet_mobilenet_v2_1.0_224"):
        made = compiled(shop, "mobilenet_v2", model, photos(shop), facts(model), UNTRAINED)
        yield from smaller("mobilenet_v2, not trained", made)
        lost = f"{made.report['before']['accuracy']:.1%} -> {made.report['after']['accuracy']:.1%}"
        yield Row("mobilenet_v2, not trained: top-1", "", lost, None)
    yield from narrow(shop)
    few = some(shop)
    for name in ("resnet50", "vgg16"):
        data = {key: few for key in ("calibration", "train", "test")}
        made = compiled(shop, name, shop.network(name), data, IMAGENET, UNTRAINED)
        yield from smaller(f"{name}, random weights", made)


def narrow(shop: Workshop) -> Iterator[Row]:
    """Networks for CIFAR-10: the accuracy, and what it is the accuracy of."""
    few = DATA / "cifar10/calibration.npz"
    for model in samples("cifar10_resnet56"):
        data = {"calibration": few, "train": few, "test": DATA / "cifar10/test.npz"}
        yield accuracy("resnet56, CIFAR-10", compiled(shop, "resnet56", model, data, facts(model), LEARNING))
    model = from_scratch(shop, vgg(shop, WIDTH, UNITS), FROM_SCRATCH)
    train = decoded(shop, "train")
    data = {"calibration": train, "train": train, "test": decoded(shop, "test")}
    made = compiled(shop, "vgg11_bn", model, data, PREPROCESS, LEARNING)
    yield accuracy(f"vgg11_bn, width {WIDTH}, trained here", made)


def compiled(
    shop: Workshop, name: str, model: Path, data: dict[str, Path], prepared: dict[str, Any], settings: tuple[str, ...]
) -> Compiled:
    """The compile with the recipe, within the network's budget."""
    budget = f"compress.budget.latency={BUDGETS[name]}"
    limit = "check-accuracy.max_drop=1.0"  # the table says what was lost
    return shipped(shop, f"{RECIPE}-{name}", RECIPE, model, TARGET, data, prepared, (budget, *settings, limit))


def some(shop: Workshop) -> Path:
    """A few images of ImageNet, without labels that a network with random weights could know."""
    path = shop.folder / f"imagenet_{FEW}.npz"
    if not path.exists():
        from PIL import Image

        files = sorted((DATA / "imagenet_sample/images").iterdir())[:FEW]
        images = [np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files]
        np.savez(path, images=np.stack(images), labels=np.zeros(FEW, np.int64))
    return path


def smaller(name: str, made: Compiled) -> Iterator[Row]:
    """What is left, against the published ranges."""
    for what, keys, (least, most) in (
        ("bytes of weights", ("weight_bytes",), SIZE), ("predicted latency", ("latency_ms",), LATENCY),
        ("weights and peak activations", ("weight_bytes", "peak_activation_bytes"), MEMORY),
    ):  # fmt: skip
        ratio = made.ratio(*keys)
        yield Row(f"{name}: {what}, before / after", f"{least} to {most}, or more", f"{ratio:.2f}", ratio >= least)
    activations, macs = made.ratio("peak_activation_bytes"), made.ratio("macs")
    yield Row(f"{name}: peak activations; MACs, before / after", "", f"{activations:.2f}; {macs:.2f}", None)


def accuracy(name: str, made: Compiled) -> Row:
    """The accuracy before and after, and what it is the accuracy of."""
    before, after = (made.report[side]["accuracy"] for side in ("before", "after"))
    left = f"{made.ratio('weight_bytes'):.2f}x smaller, {made.ratio('latency_ms'):.2f}x faster"
    return Row(f"{name}: top-1", f"drop < {DROP:.0%}", f"{before:.1%} -> {after:.1%}, {left}", made.drop < DROP)
