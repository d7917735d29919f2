"""Gradual pruning, quantization-aware training and distillation of activation boundaries in one recipe (Shin, Oh 2022,
DenseNet-201 on CIFAR-10 on a Jetson Xavier): the section gradual_quantized.

DenseNet-201 itself is compiled untrained: size, MACs and the predicted figures don't depend on the weights. What
training keeps of the accuracy is seen on a narrow DenseNet that is trained here from random weights. The paper's unit
is the GPU; of the processor, which has no dot product of bytes, the figures are told beside it, and nothing is
promised.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cifar import PREPROCESS, decoded, densenet, from_scratch
from shipped import shipped
from table import DATA, Row, Workshop, nnc

RECIPE, UNITS = "gradual-quantized-distilled", ("jetson-xavier:gpu", "jetson-xavier:cpu")

#: What is said of accuracy: the recipe's own bound.
DROP = 0.02

#: Of DenseNet-201 nothing is trained, and little is looked at.
UNTRAINED = (
    *("prune-gradually.epochs=0", 'prune-gradually.importance="l2"', "prune-gradually.refit=false"),
    *("train-quantized.epochs=0", "train-quantized.calibration_samples=16", "check-accuracy.max_drop=1.0"),
)

#: The narrow one: DenseNet-BC for CIFAR-10 with a growth of 8 and 22 layers, trained for a few minutes on two cores.
GROWTH, DEPTH = 8, 3
FROM_SCRATCH = {"epochs": 3, "samples": 8000, "batch": 64, "learning_rate": 0.1}
TRAINED = (
    *("prune-gradually.epochs=4", "prune-gradually.samples=2000", "prune-gradually.batch=64"),
    *("prune-gradually.steps=2", "prune-gradually.round_to=2"),
    *("train-quantized.epochs=2", "train-quantized.samples=2000", "train-quantized.batch=64"),
    "check-accuracy.max_drop=1.0",
)


def gradual_quantized(shop: Workshop) -> Iterator[Row]:
    """DenseNet-201 at full size, and the accuracy of a narrow DenseNet."""
    if not DATA.exists():
        yield Row("gradual, quantized, distilled", "", f"left out: no data folder {DATA}", None)
        return
    model = shop.folder / "densenet201_cifar10.onnx"
    if not model.exists():
        nnc("network", "densenet201", "--classes", 10, "-o", model)
    few = {key: some(shop, key) for key in ("train", "test")}
    for unit in UNITS:
        place = f"densenet201, untrained, on {unit}"
        name = f"{RECIPE}-densenet201-{unit.partition(':')[2]}"
        ratios = shipped(shop, name, RECIPE, model, unit, few, PREPROCESS, UNTRAINED).report["ratios"]
        for key, what in (("size", "file"), ("macs", "MACs"), ("latency", "latency"), ("memory", "activations")):
            wanted, reached = ("> 1", ratios[key] > 1) if unit == UNITS[0] else ("", None)
            yield Row(f"{place}: {what}, before / after", wanted, f"{ratios[key]:.2f}", reached)
    narrow = from_scratch(shop, densenet(shop, GROWTH, DEPTH), FROM_SCRATCH)
    data = {key: decoded(shop, key) for key in ("train", "test")}
    made = shipped(shop, f"{RECIPE}-narrow", RECIPE, narrow, UNITS[0], data, PREPROCESS, TRAINED)
    yield from accuracy(f"densenet, growth {GROWTH}, {6 * DEPTH + 4} layers, trained here", made.report)


def some(shop: Workshop, key: str) -> Path:
    """A few images: of a network that is not trained nobody asks the accuracy."""
    path = shop.folder / f"cifar10_{key}_16.npz"
    with np.load(decoded(shop, key)) as data:
        np.savez(path, images=data["images"][:16], labels=data["labels"][:16])
    return path


def accuracy(name: str, report: dict[str, Any]) -> Iterator[Row]:
    """The accuracy before, after each pass that trains, and what is left of the network."""
    before = report["before"]["accuracy"]
    stages = {row["name"]: row["accuracy"] for row in report["passes"] if row["effect"] == "trained"}
    for what, value in {"as it came": before, **stages}.items():
        yield Row(f"{name}: top-1, {what}", "", f"{value:.1%}", None)
    size, macs = (f"{report['ratios'][key]:.2f}" for key in ("size", "macs"))
    yield Row(f"{name}: size and MACs, before / after", "", f"{size} and {macs}", None)
    drop = before - report["after"]["accuracy"]
    yield Row(f"{name}: drop", f"<= {DROP:.0%}", f"{drop:.1%}", drop <= DROP)
