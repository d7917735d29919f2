"""Low-rank approximation, then pruning, against pruning alone (Park, Han, Jang 2018): the section low_rank.

Pruning is of single weights, as was usual then: their zeros take no memory where weights are packed, but as much time
as any number. Layers that are low-rank first take less of both, and the zeros go on from there.

Both methods go as far as they can at the same accuracy. Of the weights a share is left: the smallest of SHARES at which
a method, after EPOCHS epochs of fine-tuning, loses at most BOUND against the network as it came. Then follow the fewest
epochs that are enough for it. Both prune with the same pass and options.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cifar import PREPROCESS, Pass, compiled, decoded, from_scratch, vgg
from table import DATA, THREADS, Row, Workshop, facts, nnc, samples

from nnc import graph as graphs
from nnc import packing, units

SHARES = (0.03, 0.1, 0.3)
EPOCHS = 3
BOUND = 0.01

#: Published by Park, Han, Jang: how many times faster, how many times fewer epochs and weights.
TIME, TUNING, WEIGHTS = 1.65, 1.5, 2.0

#: VGG's own fully connected layers behind narrow convolutions, trained from random weights in a few minutes.
WIDTH, UNITS = 0.25, 4096
FROM_SCRATCH = {"epochs": 3, "samples": 15000, "learning_rate": 0.05, "weight_decay": 5e-4}

#: Layers become low-rank where that is faster, and keep this share of the energy of what they make of some images.
ENERGY = 0.95
CALIBRATION = 500
SPLITS = ("split-conv-spatial", "split-conv-svd", "split-gemm-svd")

BEFORE: list[Pass] = [{"name": name} for name in ("fold-constants", "remove-identity")]
AFTER: list[Pass] = [{"name": name} for name in ("fold-batchnorm", "fuse-activations", "pack-weights")]
FACTORS: list[Pass] = [{"name": name, "energy": ENERGY} for name in SPLITS]
LEARNING: Pass = {"learning_rate": 0.0002, "optimizer": "adamw", "batch": 64, "distill": {}}


def low_rank(shop: Workshop) -> Iterator[Row]:
    """On a VGG that is trained here and on resnet56; on the images of each an epoch takes a minute or less."""
    if not DATA.exists():
        yield Row("low-rank, then pruned", f">= {TIME}", f"left out: no data folder {DATA}", None)
        return
    model = from_scratch(shop, vgg(shop, WIDTH, UNITS), FROM_SCRATCH)
    images = {key: decoded(shop, key) for key in ("train", "test")}
    yield from compared(Bench("vgg", model, shop.folder, images, PREPROCESS, 700))
    images = {"train": DATA / "cifar10/calibration.npz", "test": DATA / "cifar10/test.npz"}
    for model in samples("cifar10_resnet56"):
        yield from compared(Bench("resnet56", model, shop.folder, images, facts(model), 500))


@dataclass
class Bench:
    """A network, its data, and what is compiled of it into `folder`."""

    name: str
    model: Path
    folder: Path
    images: Mapping[str, Path]
    prepared: Mapping[str, Any]
    samples: int
    """Training images of an epoch."""

    def run(self, name: str, passes: Sequence[Pass], model: Path | None = None, lower: bool = False) -> dict[str, Any]:
        """The report of a compile of the network, or of what it became; it learns from the network."""
        out, data = self.folder / f"{self.name}-{name}", {**self.data, "teacher": self.model}
        return compiled(model or self.model, out, passes, data, self.prepared, lower=lower) | {"folder": out}

    @cached_property
    def data(self) -> dict[str, Path]:
        """With some of the training images to choose ranks on."""
        path = self.folder / f"{self.name}-calibration.npz"
        with np.load(self.images["train"]) as stored:
            np.savez(path, images=stored["images"][:CALIBRATION])
        return {**self.images, "calibration": path}

    @cached_property
    def factors(self) -> dict[str, Any]:
        """The report of a compile that makes layers low-rank, and no more."""
        return self.run("factors", [*BEFORE, *FACTORS])

    @property
    def reference(self) -> float:
        """Top-1 of the network as it came."""
        return float(self.factors["before"]["accuracy"])

    @property
    def factored(self) -> float:
        """The share of the weights that is left where layers are low-rank."""
        return float(self.factors["after"]["params"] / self.factors["before"]["params"])

    def pruned(self, low_rank: bool, share: float, epochs: int = EPOCHS, lower: bool = False) -> dict[str, Any]:
        """The report of a compile that leaves this share of the weights."""
        left = min(1.0, share / self.factored) if low_rank else share
        pruning: Pass = {
            **{"name": "prune-gradually", "granularity": "weights", "sparsity": 1 - left},
            **{"epochs": epochs, "samples": self.samples, **LEARNING},
        }
        name = f"{'low-rank' if low_rank else 'alone'}-{share:g}-{epochs}"
        model = self.factors["folder"] / "model.onnx" if low_rank else None
        return self.run(name, [*BEFORE, pruning, *AFTER], model, lower)

    def holds(self, low_rank: bool, share: float, epochs: int = EPOCHS) -> bool:
        """Whether the accuracy stays within the bound."""
        return bool(self.pruned(low_rank, share, epochs)["after"]["accuracy"] >= self.reference - BOUND)


@dataclass(frozen=True)
class Point:
    """How far a method gets: the share of the weights that is left, after how many epochs."""

    share: float
    epochs: int
    report: dict[str, Any]

    @cached_property
    def packed(self) -> int:
        """Bytes of the weights in the library."""
        graph = graphs.load(self.folder / "model.onnx")
        return packing.weight_bytes(graph) or self.report["after"]["weight_bytes"]

    @property
    def folder(self) -> Path:
        return Path(self.report["folder"])

    def __str__(self) -> str:
        accuracy = self.report["after"]["accuracy"]
        return f"{accuracy:.1%}, {self.share:.0%} of the weights, {units.size(self.packed)}, {self.epochs} epochs"


def furthest(bench: Bench, low_rank: bool) -> Point | None:
    """The smallest share that holds, and the fewest epochs at it; None where none does."""
    share = first(SHARES, lambda each: bench.holds(low_rank, each))
    if share is None:
        return None
    epochs = first(range(1, EPOCHS + 1), lambda each: bench.holds(low_rank, share, each))
    return Point(share, epochs, bench.pruned(low_rank, share, epochs, lower=True))


def first(values: Sequence[Any], holds: Callable[[Any], bool]) -> Any:
    """The first of rising values that holds, all behind it taken to hold, too."""
    index = bisect_left(values, True, key=holds)
    return values[index] if index < len(values) else None


def compared(bench: Bench) -> Iterator[Row]:
    """The two methods, and the three ratios."""
    low = f"{bench.factored:.0%} of the weights, {bench.factors['after']['accuracy']:.1%} untrained"
    whole = units.size(bench.factors["before"]["weight_bytes"])
    yield Row(f"{bench.name}: as it came", "", f"{bench.reference:.1%}, weights of {whole}", None)
    yield Row(f"{bench.name}: low-rank", "", low, None)
    alone, both = (furthest(bench, low_rank) for low_rank in (False, True))
    for what, point in (("pruned alone", alone), ("low-rank, then pruned", both)):
        yield Row(f"{bench.name}: {what}", "", str(point or f"loses more than {BOUND:.0%} at every share"), None)
    if alone is None or both is None:
        return
    for what, least, ratio in (
        ("inference time", TIME, faster(both.folder, alone.folder)),
        ("epochs of fine-tuning", TUNING, alone.epochs / both.epochs),
        ("bytes of weights", WEIGHTS, alone.packed / both.packed),
    ):
        yield Row(f"{bench.name}: {what}, alone / low-rank", f">= {least}", f"{ratio:.2f}", ratio >= least)


def faster(one: Path, other: Path) -> float:
    """How many times faster one library is than the other, run in turns."""
    return float(json.loads(nnc("bench", one, "--against", other, "--threads", THREADS, "--json"))["ratio"])
