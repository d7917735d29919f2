"""Compiles with the recipes that nnc ships, for the tables of the published systems."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression import halves
from table import Workshop, nnc

#: The recipe without its training, for figures that don't depend on weights.
UNTRAINED = ("fine-tune.epochs=0", "check-accuracy.max_drop=1.0")


@dataclass(frozen=True)
class Compiled:
    """What a compile left behind."""

    folder: Path
    report: dict[str, Any]

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    def ratio(self, *keys: str) -> float:
        """Before / after, of a figure or the sum of several."""
        before, after = (sum(self.report[side][key] for key in keys) for side in ("before", "after"))
        return float(before / after)

    @property
    def drop(self) -> float:
        """Top-1 that was lost."""
        return float(self.report["before"]["accuracy"] - self.report["after"]["accuracy"])


def shipped(
    shop: Workshop, name: str, recipe: str, model: Path, target: str, data: Mapping[str, Path],
    prepared: Mapping[str, Any], settings: Sequence[str] = (),
) -> Compiled:  # fmt: skip
    """The compile of a model with a recipe and settings into the folder `name`; a second one does what is missing."""
    out = shop.folder / name
    text = out.with_name(f"{name}.toml")
    keys = [f"{key} = {json.dumps(prepared[key])}" for key in ("crop", "mean", "std") if prepared.get(key)]
    text.write_text("\n".join([nnc("recipes", recipe), "[data.preprocess]", *keys, ""]))
    given = [part for key, path in data.items() for part in ("--data", f"{key}={path}")]
    given += [part for each in settings for part in ("--set", each)]
    nnc("compile", text, model, "--target", target, "-o", out, "--quiet", "--no-lower", *given)
    return Compiled(out, json.loads((out / "report.json").read_text()))


def photos(shop: Workshop) -> dict[str, Path]:
    """The two halves of the sample of ImageNet: one to calibrate and to train on, the other to test."""
    kept = {key: shop.folder / key for key in ("calibration", "test")}
    found = kept if all(path.exists() for path in kept.values()) else halves(shop.folder)
    return {**found, "train": found["calibration"]}
