"""MobileNetV2 with other bottlenecks, and less than half of the computation (Lee, Lee, Ho 2020): the section
restructured.

MobileNetV2 at full size is restructured by what its blocks are worth on photos, and not trained. Its latency is
predicted on the processor and on the GPU of a Jetson Xavier, and measured here. What training makes of less than half
of the computation is seen on a MobileNetV2 of half the width for the 32x32 images of CIFAR-10: as in the paper, the
network is restructured before it is trained, and both are trained from random weights, as long and in the same way.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from cifar import PREPROCESS, Pass, compiled, decoded, random
from shipped import UNTRAINED, Compiled, photos, shipped
from table import DATA, THREADS, Row, Workshop, facts, nnc, samples

from nnc import graph as graphs
from nnc import target
from nnc.simulation.analytic import Prediction, predict

RECIPE = "restructure-mobilenet"
UNITS = ("jetson-xavier:cpu", "jetson-xavier:gpu")

#: Published: less than half of the multiply-accumulates, and no accuracy lost.
MACS = 0.5

#: The narrow network, and how both are trained: some minutes each on two cores.
NETWORK, WIDTH = "mobilenet_v2", 0.5
LEARNING: dict[str, object] = {"epochs": 8, "samples": 10000, "batch": 128, "learning_rate": 0.1}
SMOOTHED = {"label_smoothing": 0.1}  # as in the recipe


def restructured(shop: Workshop) -> Iterator[Row]:
    """MobileNetV2 at full size, and the accuracy of a narrow one."""
    if not DATA.exists():
        yield Row("restructured", "", f"left out: no data folder {DATA}", None)
        return
    for model in samples("imagenet_mobilenet_v2_1.0_224"):
        made = shipped(shop, f"{RECIPE}-full", RECIPE, model, UNITS[0], photos(shop), facts(model), UNTRAINED)
        yield from full_size(shop, model, made)
    yield from narrow(shop)


def full_size(shop: Workshop, model: Path, made: Compiled) -> Iterator[Row]:
    """What is left of the network, and how much faster it is where."""
    name = "mobilenet_v2, not trained"
    share = 1 / made.ratio("macs")
    yield Row(f"{name}: MACs left", f"< {MACS:.0%}", f"{share:.1%}", share < MACS)
    yield Row(f"{name}: parameters left", "", f"{1 / made.ratio('params'):.1%}", None)
    for unit in UNITS:
        before, after = (predict(graphs.load(each), target.load(unit)) for each in (model, made.model))
        times = f"{before.latency_ms:.2f} -> {after.latency_ms:.2f} ms, {before.latency_ms / after.latency_ms:.2f}x"
        yield Row(f"{name}: predicted on {unit}", "", times, None)
        yield Row(f"{name}: what bounds {unit}", "", f"{bounds(before)}; then {bounds(after)}", None)
    folders = [simplified(shop, each, side) for each, side in ((made.model, "after"), (model, "before"))]
    bench = nnc("bench", folders[0], "--against", folders[1], "--threads", THREADS, "--json")
    yield Row(f"{name}: measured here, before / after", "", f"{json.loads(bench)['ratio']:.2f}x", None)


def bounds(predicted: Prediction) -> str:
    """The shares of the time by what bounds the layers: fewer MACs only help those bound by compute."""
    times: dict[str, float] = defaultdict(float)
    for layer in predicted.layers:
        times[layer.bound] += layer.latency_ms
    shares = sorted(((time / sum(times.values()), bound) for bound, time in times.items()), reverse=True)
    return ", ".join(f"{share:.0%} {bound}" for share, bound in shares)


def simplified(shop: Workshop, model: Path, side: str) -> Path:
    """The folder of a library for this machine."""
    out = shop.folder / f"{RECIPE}-{side}"
    nnc("compile", "simplify", model, "--target", "x86", "-o", out, "--quiet")
    return out


def narrow(shop: Workshop) -> Iterator[Row]:
    """The recipe on a network with random weights, against that network, both trained."""
    model = random(shop, NETWORK, WIDTH)
    data = {key: decoded(shop, key) for key in ("train", "test")}
    tuning: Pass = {"name": "fine-tune", **LEARNING, **SMOOTHED}
    as_long = compiled(model, shop.folder / f"{RECIPE}-kept", [tuning], data, PREPROCESS)
    settings = [f"fine-tune.{key}={json.dumps(value)}" for key, value in LEARNING.items()]
    made = shipped(
        shop, f"{RECIPE}-narrow", RECIPE, model, UNITS[0], data, PREPROCESS,
        ["restructure-bottlenecks.round_to=4", *settings, "check-accuracy.max_drop=1.0"],
    )  # fmt: skip
    name = f"{NETWORK}, width {WIDTH}, 32x32, trained here"
    kept, found, share = as_long["after"]["accuracy"], made.report["after"]["accuracy"], 1 / made.ratio("macs")
    yield Row(f"{name}: MACs left", f"< {MACS:.0%}", f"{share:.1%}", share < MACS)
    yield Row(f"{name}: top-1, as it was", "", f"{kept:.1%}", None)
    yield Row(f"{name}: top-1, restructured", f">= {kept:.1%}", f"{found:.1%}", found >= kept)
