"""Low-rank approximation, then pruning, against pruning alone (Park, Han, Jang 2018): the section low_rank.

Both methods compress a network as far as they can at the same accuracy. What is left is a share of the parameters:
found is the smallest of SHARES at which a method, after EPOCHS epochs of fine-tuning, loses at most BOUND against the
network that is fine-tuned as long and not compressed; and then the fewest epochs after which it still does. Both prune
with the same pass and the same options; "then pruning" has factors in front of it and the rest of the share to go.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cifar import PREPROCESS, Pass, compiled, decoded, trained
from table import DATA, THREADS, Refused, Row, Workshop, facts, nnc, samples

SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.8)
EPOCHS = 4
BOUND = 0.01

#: Published by Park, Han, Jang: how many times faster, how many times fewer epochs and weights.
TIME, TUNING, WEIGHTS = 1.65, 1.5, 2.0

#: What the narrow VGG is trained with from random weights, a few minutes on two cores.
FROM_SCRATCH = {"epochs": 3, "samples": 20000, "learning_rate": 0.05, "weight_decay": 5e-4}

#: What layers keep of the energy of their weights when they become low-rank.
ENERGY = 0.8
SPLITS = ("split-conv-spatial", "split-conv-svd", "split-gemm-svd")

BEFORE: list[Pass] = [{"name": name} for name in ("fold-constants", "remove-identity")]
AFTER: list[Pass] = [{"name": name} for name in ("fold-batchnorm", "fuse-activations", "remove-dead-nodes")]
FACTORS: list[Pass] = [{"name": name, "energy": ENERGY, "when": "smaller"} for name in SPLITS]
LEARNING = {"learning_rate": 0.001, "optimizer": "adamw", "batch": 64, "distill": {}}


@dataclass
class Bench:
    """A network, its data, and what is compiled of it into `folder`."""

    model: Path
    folder: Path
    data: Mapping[str, Path]
    prepared: Mapping[str, Any]
    images: int
    """Training images of an epoch."""
    accuracies: dict[Path, float] = field(default_factory=dict)

    def run(self, name: str, passes: Sequence[Pass], **options: Any) -> dict[str, Any]:
        out = self.folder / f"{self.model.parent.name if self.model.stem == 'model' else self.model.stem}-{name}"
        return compiled(self.model, out, [*BEFORE, *passes], self.data, self.prepared, **options) | {"folder": out}

    @cached_property
    def reference(self) -> float:
        """Top-1 of the network that is fine-tuned as long, and not compressed."""
        tuning = {"name": "fine-tune", "epochs": EPOCHS, "samples": self.images, **LEARNING}
        return float(self.run("fine-tuned", [tuning])["after"]["accuracy"])

    @cached_property
    def factored(self) -> float:
        """The share of the parameters that is left where layers are low-rank."""
        report = self.run("factors", FACTORS)
        return float(report["after"]["params"] / report["before"]["params"])

    def pruned(self, low_rank: bool, share: float, epochs: int = EPOCHS, **options: Any) -> dict[str, Any]:
        """The report of a compile to this share of the parameters; raises Refused where that can't be reached."""
        left = min(1.0, share / self.factored) if low_rank else share
        pruning: Pass = {
            **{"name": "prune-gradually", "budget": {"params": left}, "importance": "l2", "refit": False},
            **{"round_to": 4, "epochs": epochs, "samples": self.images, **LEARNING},
        }
        name = f"{'low-rank' if low_rank else 'alone'}-{share:g}-{epochs}"
        return self.run(name, [*(FACTORS if low_rank else ()), pruning, *AFTER], **options)

    def holds(self, low_rank: bool, share: float, epochs: int = EPOCHS) -> bool:
        """Whether the accuracy stays within the bound."""
        try:
            accuracy = self.pruned(low_rank, share, epochs)["after"]["accuracy"]
        except Refused:
            return False
        return bool(accuracy >= self.reference - BOUND)


@dataclass(frozen=True)
class Point:
    """How far a method gets."""

    share: float
    epochs: int
    report: dict[str, Any]

    def __str__(self) -> str:
        before, after = self.report["before"], self.report["after"]
        left = (
            f"{after[key] / before[key]:.0%} of the {name}" for key, name in (("params", "weights"), ("macs", "MACs"))
        )
        return f"{after['accuracy']:.1%}, {', '.join(left)}, {self.epochs} epochs"


def furthest(bench: Bench, low_rank: bool) -> Point | None:
    """The smallest share that holds, and the fewest epochs at it; None where none does."""
    share = first(SHARES, lambda each: bench.holds(low_rank, each))
    if share is None:
        return None
    epochs = first(range(1, EPOCHS + 1), lambda each: bench.holds(low_rank, share, each)) or EPOCHS
    return Point(share, epochs, bench.pruned(low_rank, share, epochs, lower=True))


def first(values: Sequence[Any], holds: Callable[[Any], bool]) -> Any:
    """The first of rising values that holds, all behind it taken to hold, too."""
    index = bisect_left(values, True, key=holds)
    return values[index] if index < len(values) else None


def low_rank(shop: Workshop) -> Iterator[Row]:
    """On resnet56, and on a VGG with BatchNormalization of a quarter of the width that is trained here."""
    if not DATA.exists():
        yield Row("low-rank, then pruned", f">= {TIME}", f"left out: no data folder {DATA}", None)
        return
    vgg = trained(shop, "vgg11_bn", 0.25, FROM_SCRATCH)
    images = {key: decoded(shop, key) for key in ("train", "test")}
    yield from compared("vgg11_bn, width 0.25", Bench(vgg, shop.folder, images, PREPROCESS, 4000))
    lossless = {"train": DATA / "cifar10/calibration.npz", "test": DATA / "cifar10/test.npz"}
    for model in samples("cifar10_resnet56"):
        yield from compared("resnet56", Bench(model, shop.folder, lossless, facts(model), 1000))


def compared(name: str, bench: Bench) -> Iterator[Row]:
    """The two methods, and the three ratios."""
    yield Row(f"{name}: fine-tuned {EPOCHS} epochs of {bench.images} images", "", f"{bench.reference:.1%}", None)
    alone, both = (furthest(bench, low_rank) for low_rank in (False, True))
    for what, point in (("pruned alone", alone), ("low-rank, then pruned", both)):
        yield Row(f"{name}: {what}", "", str(point or f"loses more than {BOUND:.0%} at every share"), None)
    if alone is None or both is None:
        return
    against = ("--against", alone.report["folder"], "--threads", THREADS, "--json")
    time = json.loads(nnc("bench", both.report["folder"], *against))["ratio"]
    weights = alone.report["after"]["weight_bytes"] / both.report["after"]["weight_bytes"]
    for what, least, ratio in (
        ("inference time", TIME, time), ("epochs of fine-tuning", TUNING, alone.epochs / both.epochs),
        ("bytes of weights", WEIGHTS, weights),
    ):  # fmt: skip
        yield Row(f"{name}: {what}, pruned alone / low-rank", f">= {least}", f"{ratio:.2f}", ratio >= least)
