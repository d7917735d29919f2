"""What compiled libraries cost in emulation, against what the target's figures predict, network by network.

    python tests/bench/emulated.py [gold all layers]

`nnc inspect DIR --latency emulated` on the libraries of the recipe simplify for qcs605, on one Cortex-A75 and on all
eight cores. The analytic predictions are those of the coefficients that `python -m nnc.validation.fit --emulated` found
for nnc's own code, profile "arm/nnc"; the ratio to those of the profile that the target names, which was fitted on
measurements of another engine, stands beside it. resnet50 and densenet121 are not among the networks of that fit.
Exits with 1 when a ratio is out of bounds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import table
from table import Row, nnc

NETWORKS = ("mobilenet_v2", "resnet18", "squeezenet1_1", "mobilenet_v1", "resnet50", "densenet121")
BOUND = 1.5
TARGET = "qcs605"


class Workshop(table.Workshop):
    """Libraries, and boards that differ from the target in the profile alone."""

    @cache  # noqa: B019  # one workshop per run
    def own(self) -> Path:
        """The target, predicted by the coefficients of nnc's own code."""
        text = resources.files("nnc.targets").joinpath(f"{TARGET}.toml").read_text("utf-8")
        path = self.folder / f"{TARGET}.toml"
        path.write_text(text.replace('profile = "arm/ncnn"', 'profile = "arm/nnc"'), "utf-8")
        return path

    @cache  # noqa: B019
    def library(self, name: str, threads: int) -> Path:
        out = self.folder / f"{name}-{threads}"
        nnc("compile", "simplify", self.network(name), "--target", TARGET, "--threads", threads, "-o", out, "-q")
        return out

    @cache  # noqa: B019
    def emulated(self, name: str, threads: int, target: str) -> dict[str, Any]:
        folder = self.library(name, threads)
        shown = nnc("inspect", folder, "--latency", "emulated", "--target", target, "--threads", threads, "--json")
        found: dict[str, Any] = json.loads(shown)
        return found


def gold(shop: Workshop) -> Iterator[Row]:
    yield from _ratios(shop, 1)


def all_cores(shop: Workshop) -> Iterator[Row]:
    yield from _ratios(shop, 8)


def _ratios(shop: Workshop, threads: int) -> Iterator[Row]:
    for name in NETWORKS:
        own, shipped = (shop.emulated(name, threads, str(target)) for target in (shop.own(), TARGET))
        ratio = own["latency_ms"] / own["analytic_ms"]
        other = shipped["latency_ms"] / shipped["analytic_ms"]
        measured = f"{own['latency_ms']:.1f} ms / {own['analytic_ms']:.1f} ms = {ratio:.2f}; of arm/ncnn {other:.2f}"
        wanted = f"{1 / BOUND:.2f} to {BOUND:.2f}"
        yield Row(f"{name}, {threads} cores", wanted, measured, 1 / BOUND <= ratio <= BOUND)


def layers(shop: Workshop) -> Iterator[Row]:
    """The layers that differ most from their predictions, and what they consist of."""
    found = shop.emulated("mobilenet_v2", 1, str(shop.own()))
    timed = [layer for layer in found["layers"] if layer["latency_ms"] > 0.01 * found["latency_ms"]]
    far = sorted(timed, key=lambda layer: layer["latency_ms"] / layer["analytic_ms"])
    for layer in (*far[:3], *far[-3:]):
        ratio = layer["latency_ms"] / layer["analytic_ms"]
        yield Row(f"mobilenet_v2, {layer['name']} ({layer['op']})", "", f"{ratio:.2f}: {layer['why']}", None)


SECTIONS = {"gold": gold, "all": all_cores, "layers": layers}

if __name__ == "__main__":
    sys.exit(table.main(__doc__, SECTIONS, Workshop))
