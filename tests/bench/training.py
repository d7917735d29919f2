"""What training wins back: half of the MACs, and weights and activations of 4 bits, on CIFAR-10: one table.

    python tests/bench/training.py [resnet20 resnet56 four_bits] [--keep FOLDER]

Every network stands against itself, trained as long with the same options and neither compressed nor quantized: what
more training adds to a network is no merit of what wins back. Both train on training images whose JPEGs are damaged,
which no network knows by heart, and are tested on 500 test images that are not. The options are one choice for all
rows: among a few for ResNet-20 at half of its MACs, those that won back most on 5000 other, damaged, test images. With
--keep, a table that was interrupted goes on where it was. Rows that need the sample data are left out, and said to be,
where it is absent (NNC_DATA). Exits with 1 when a figure is not reached.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cifar import compiled, decoded
from table import DATA, Row, Workshop, facts, main, samples

from nnc.passes import GRAPH_PASSES

Pass = Mapping[str, object]

#: How networks are trained on both sides. Labels of damaged images would teach them the damage: they learn from the
#: model that came in alone, from its hidden layers too, and slowly, which keeps what they know. Of many images a single
#: epoch is worth more than several of the 4000 that are undamaged and known.
LEARNING: dict[str, object] = {
    "epochs": 1,
    "samples": 24000,
    "batch": 64,
    "learning_rate": 0.003,
    "distill": {"logits": 1.0, "features": 1.0},
}

#: Share of the MACs that is kept, and how far above it a network may end.
HALF, NEAR = 0.5, 1.02


def resnet20(shop: Workshop) -> Iterator[Row]:
    yield from halved(shop, "cifar10_resnet20", 1.0)


def resnet56(shop: Workshop) -> Iterator[Row]:
    yield from halved(shop, "cifar10_resnet56", 0.5)


def halved(shop: Workshop, name: str, points: float) -> Iterator[Row]:
    """A network at half of its MACs, trained with distillation, against the whole network trained likewise."""
    title, wanted = f"{name} at {HALF:.0%} of the MACs", f"drop <= {points} points"
    for model in samples(name):
        compress: Pass = {"name": "compress", "budget": {"macs": HALF}}
        before = whole(shop, model)
        report = run(shop, model, "half", [compress, {"name": "fine-tune", **LEARNING}])
        untrained = next(row["accuracy"] for row in report["passes"] if row["name"] == "compress")
        left = report["after"]["macs"] / report["before"]["macs"]
        after, drop = report["after"]["accuracy"], 100 * (before - report["after"]["accuracy"])
        yield Row(f"{title}: before training", "", f"{untrained:.1%}, {left:.1%} of the MACs", None)
        yield Row(title, wanted, said(before, after), round(drop, 6) <= points and left <= NEAR * HALF)
        return
    yield Row(title, wanted, f"left out: no data folder {DATA}", None)


def four_bits(shop: Workshop) -> Iterator[Row]:
    """ResNet-20 with weights and activations of 4 bits, but for the first and the last layer."""
    title, wanted, points = "cifar10_resnet20, W4A4", "drop <= 2.5 points", 2.5
    for model in samples("cifar10_resnet20"):
        bits = {"weight_bits": 4, "activation_bits": 4}
        before = whole(shop, model)
        untrained = run(shop, model, "rounded", [{"name": "train-quantized", **bits, "epochs": 0}])
        report = run(shop, model, "four-bits", [{"name": "train-quantized", **bits, **LEARNING}])
        after, drop = report["after"]["accuracy"], 100 * (before - report["after"]["accuracy"])
        yield Row(f"{title}: before training", "", f"{untrained['after']['accuracy']:.1%}", None)
        yield Row(title, wanted, said(before, after), round(drop, 6) <= points)
        return
    yield Row(title, wanted, f"left out: no data folder {DATA}", None)


def whole(shop: Workshop, model: Path) -> float:
    """Top-1 of a network that is trained as long as the others, and nothing else."""
    accuracy: float = run(shop, model, "whole", [{"name": "fine-tune", **LEARNING}])["after"]["accuracy"]
    return accuracy


def run(shop: Workshop, model: Path, name: str, passes: list[Pass]) -> dict[str, Any]:
    """The report of a compile with these passes behind the exact ones."""
    cifar = DATA / "cifar10"
    data = {"train": decoded(shop, "train"), "calibration": cifar / "calibration.npz", "test": cifar / "test.npz"}
    exact: list[Pass] = [{"name": each.name} for each in GRAPH_PASSES]
    return compiled(model, shop.folder / f"{model.stem}-{name}", [*exact, *passes], data, facts(model))


def said(before: float, after: float) -> str:
    return f"{before:.1%} -> {after:.1%}, a drop of {100 * (before - after):.1f} points"


SECTIONS: dict[str, Callable[[Workshop], Iterator[Row]]] = {
    "resnet20": resnet20,
    "resnet56": resnet56,
    "four_bits": four_bits,
}

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, Workshop))
