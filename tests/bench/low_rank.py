"""Low-rank approximation, then pruning, against pruning alone (Park, Han, Jang 2018): the section low_rank.

Pruning is of single weights, as was usual then: their zeros take no space where weights are packed, but as much time,
and as much memory while a network runs, as any number. Layers that are low-rank first take less of all three, and the
zeros go on from there.

Both methods go as far as they can at the same accuracy. Of the weights a share is left: the smallest of SHARES at which
a method, after EPOCHS epochs of fine-tuning, loses at most BOUND against the network as it came. Both prune with the
same pass and options. Where the low-rank network isn't fast enough, rows say how fast it is on one thread, and how fast
it could be at most: with the lowest ranks in all layers, whatever that costs. Epochs are compared at the same number of
weights, the fewest that pruning alone can do with: how many it takes until each method loses no more than BOUND.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cifar import PREPROCESS, Pass, compiled, decoded, from_scratch, vgg
from table import DATA, THREADS, Refused, Row, Workshop, facts, nnc, samples

from nnc import graph as graphs
from nnc import packing
from nnc.display import units

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
EPOCHS, STEPS = 3, 8
BOUND = 0.01

#: Published by Park, Han, Jang: how many times faster, how many times fewer epochs and weights.
TIME, TUNING, WEIGHTS = 1.65, 1.5, 2.0

#: Fully connected layers half as wide as VGG's own behind convolutions of a quarter, trained from random weights: four
#: fifths of the weights are theirs.
WIDTH, UNITS = 0.25, 2048
FROM_SCRATCH = {"epochs": 4, "samples": 15000, "learning_rate": 0.05, "weight_decay": 5e-4}

#: What low-rank layers leave.
LEFT = {"vgg": {"params": 0.25}, "resnet56": {"params": 0.45}}
CALIBRATION = 500

SPLIT: Pass = {"name": "compress", "methods": ["svd", "spatial", "tucker"]}
BEFORE: list[Pass] = [{"name": name} for name in ("fold-constants", "remove-identity")]
AFTER: list[Pass] = [{"name": name} for name in ("fold-batchnorm", "fuse-activations", "pack-weights")]
#: So slowly that a few images don't make a network forget what it learned from many: at the rate of the recipe, for
#: thousands, networks of low rank were worse after two epochs than before, with no weight pruned.
LEARNING: Pass = {"learning_rate": 0.0001, "optimizer": "adamw", "batch": 64, "distill": {}}


def low_rank(shop: Workshop) -> Iterator[Row]:
    """On a VGG that is trained here and on resnet56; on the images of each an epoch takes a minute or less."""
    if not DATA.exists():
        yield Row("low-rank, then pruned", f">= {TIME}", f"left out: no data folder {DATA}", None)
        return
    model = from_scratch(shop, vgg(shop, WIDTH, UNITS), FROM_SCRATCH)
    images = {key: decoded(shop, key) for key in ("train", "test")}
    yield from compared(Bench("vgg", model, shop.folder, images, PREPROCESS, 1000))
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
        return self.run("factors", [*BEFORE, {**SPLIT, "budget": LEFT[self.name]}])

    @property
    def lowest(self) -> dict[str, Any]:
        """The report of a compile with the lowest ranks in all layers: compress tells what is left then."""
        try:
            return self._lowest(0.001)
        except Refused as refused:
            left = re.search(r"([0-9.]+) is left with the smallest options", str(refused))
            if left is None:
                raise
            return self._lowest(1.01 * float(left[1]))

    def _lowest(self, share: float) -> dict[str, Any]:
        passes: list[Pass] = [*BEFORE, {**SPLIT, "budget": {"params": round(share, 4)}}, *AFTER]
        return self.run("lowest", passes, lower=True)

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
            **{"steps": STEPS, "epochs": epochs, "samples": self.samples, **LEARNING},
        }
        name = f"{'low-rank' if low_rank else 'alone'}-{share:g}-{epochs}"
        model = self.factors["folder"] / "model.onnx" if low_rank else None
        return self.run(name, [*BEFORE, pruning, *AFTER], model, lower)

    def holds(self, low_rank: bool, share: float, epochs: int = EPOCHS) -> bool:
        """Whether the accuracy stays within the bound."""
        return bool(self.pruned(low_rank, share, epochs)["after"]["accuracy"] >= self.reference - BOUND)

    def furthest(self, low_rank: bool) -> Point | None:
        """The smallest share that holds; None where none does."""
        share = first(SHARES, lambda each: self.holds(low_rank, each))
        return None if share is None else Point(share, self.pruned(low_rank, share))

    def epochs(self, low_rank: bool, share: float) -> int | None:
        """The fewest after which a share holds."""
        found: int | None = first(range(1, EPOCHS + 1), lambda each: self.holds(low_rank, share, each))
        return found


@dataclass(frozen=True)
class Point:
    """How far a method gets: the share of the weights that is left."""

    share: float
    report: dict[str, Any]

    @property
    def folder(self) -> Path:
        return Path(self.report["folder"])

    @property
    def running(self) -> int:
        """Bytes of the weights while the network runs: all of them, zeros among them."""
        return int(self.report["after"]["weight_bytes"])

    @cached_property
    def packed(self) -> int:
        """Bytes of the weights in the library, entropy-coded."""
        return packing.weight_bytes(graphs.load(self.folder / "model.onnx")) or self.running

    def __str__(self) -> str:
        sizes = f"{units.size(self.running)} running, {units.size(self.packed)} packed"
        return f"{self.report['after']['accuracy']:.1%}, {self.share:.0%} of the weights, {sizes}"


def first(values: Sequence[Any], holds: Callable[[Any], bool]) -> Any:
    """The first of rising values that holds, all behind it taken to hold, too."""
    index = bisect_left(values, True, key=holds)
    return values[index] if index < len(values) else None


def compared(bench: Bench) -> Iterator[Row]:
    """The two methods, and the three ratios."""
    macs = bench.factors["after"]["macs"] / bench.factors["before"]["macs"]
    untrained = f"{bench.factors['after']['accuracy']:.1%} untrained"
    low = f"{bench.factored:.0%} of the weights, {macs:.0%} of the MACs, {untrained}"
    whole = units.size(bench.factors["before"]["weight_bytes"])
    yield Row(f"{bench.name}: as it came", "", f"{bench.reference:.1%}, weights of {whole}", None)
    yield Row(f"{bench.name}: low-rank", "", low, None)
    alone, both = (bench.furthest(low_rank) for low_rank in (False, True))
    for what, point in (("pruned alone", alone), ("low-rank, then pruned", both)):
        yield Row(f"{bench.name}: {what}", "", str(point or f"loses more than {BOUND:.0%} at every share"), None)
    if alone is None or both is None:
        return
    slow, quick = (bench.epochs(low_rank, alone.share) for low_rank in (False, True))
    share = f"{alone.share:.0%} of the weights"
    yield Row(f"{bench.name}: epochs to {share}, alone and low-rank", "", f"{slow} and {quick}", None)
    for low_rank, point in ((False, alone), (True, both)):  # last: a compile without a library takes the library away
        bench.pruned(low_rank, point.share, lower=True)
    for what, least, ratio in (
        ("inference time", TIME, faster(both.folder, alone.folder)),
        (f"epochs of fine-tuning, {share}", TUNING, (slow or EPOCHS) / quick if quick else 0.0),
        ("weights in memory", WEIGHTS, alone.running / both.running),
        ("weights packed", WEIGHTS, alone.packed / both.packed),
    ):
        yield Row(f"{bench.name}: {what}, alone / low-rank", f">= {least}", f"{ratio:.2f}", ratio >= least)
        if what == "inference time" and ratio < least:
            one = faster(both.folder, alone.folder, threads=1)
            yield Row(f"{bench.name}: the same on one thread", "", f"{one:.2f}", None)
            lowest = bench.lowest
            most = [f"{faster(lowest['folder'], alone.folder, threads):.2f}" for threads in (THREADS, 1)]
            measured = f"{most[0]}, on one thread {most[1]}; {lowest['after']['accuracy']:.1%}"
            yield Row(f"{bench.name}: the same with the lowest ranks in all layers", "", measured, None)
    predicted = alone.report["after"]["latency_ms"] / both.report["after"]["latency_ms"]
    yield Row(f"{bench.name}: predicted time, alone / low-rank", "", f"{predicted:.2f}", None)


def faster(one: Path, other: Path, threads: int = THREADS) -> float:
    """How many times faster one library is than the other, run in turns."""
    return float(json.loads(nnc("bench", one, "--against", other, "--threads", threads, "--json"))["ratio"])
