"""CIFAR-10 for the tables that train: the sample data as nnc reads them, and networks trained on them here."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image
from table import DATA, Workshop, nnc

from nnc.networks.blocks import classifier
from nnc.networks.densenet import dense_blocks
from nnc.networks.network import Network
from nnc.networks.vgg import PLAN_A

#: What networks of nnc's own are trained with.
PREPROCESS = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}

Pass = Mapping[str, object]


def decoded(shop: Workshop, name: str) -> Path:
    """The images of "train" (50,000) or "test" (5,000), whose JPEGs are badly damaged, as an .npz that nnc reads."""
    path = shop.folder / f"cifar10_{name}.npz"
    if not path.exists():
        with np.load(DATA / f"cifar10/{name}_jpeg.npz") as stored:
            blob, offsets, labels = (stored[key] for key in ("jpeg", "offsets", "labels"))
        parts = pairwise(offsets.tolist())
        images = np.stack([np.asarray(Image.open(io.BytesIO(blob[start:end].tobytes()))) for start, end in parts])
        part = path.with_suffix(".part.npz")  # a stump that an interrupted run left would be taken for all images
        np.savez(part, images=images, labels=labels)
        part.rename(path)
    return path


def random(shop: Workshop, network: str, width: float) -> Path:
    """A reference network for 32x32 images and 10 classes, with random weights."""
    path = shop.folder / f"{network}_{width:g}.onnx"
    if not path.exists():
        nnc("network", network, "--input", 32, "--classes", 10, "--width", width, "-o", path)
    return path


def vgg(shop: Workshop, width: float, units: int) -> Path:
    """Convolutions as in VGG-11 with BatchNormalization, this much as wide, and fully connected layers of `units`.

    VGG's own are of 4096 units and hold nine tenths of its weights; random weights.
    """
    path = shop.folder / f"vgg11_bn_{width:g}_{units}.onnx"
    net = Network("vgg11_bn", (32, 32), 10, width, seed=0)
    x = net.input
    for stage, filters in enumerate(PLAN_A, start=1):
        for index, each in enumerate(filters, start=1):
            name = f"conv{stage}_{index}"
            x = net.relu(net.batch_norm(net.conv(x, name, net.scaled(each), 3), f"{name}.bn"), f"{name}.relu")
        x = net.max_pool(x, f"pool{stage}", 2, 2)
    x = net.flatten(x, "flatten")
    for name in ("fc6", "fc7"):
        x = net.relu(net.linear(x, name, units), f"{name}.relu")
    onnx.save(net.finish(net.linear(x, "fc8", net.classes)), path)
    return path


def densenet(shop: Workshop, growth: int, depth: int) -> Path:
    """DenseNet-BC as its authors have it for CIFAR-10: three blocks of `depth` layers each; random weights."""
    path = shop.folder / f"densenet_{growth}_{depth}.onnx"
    net = Network("densenet", (32, 32), 10, seed=0)
    x = dense_blocks(net, net.conv(net.input, "features.conv0", 2 * growth, 3), growth, (depth,) * 3)
    onnx.save(net.finish(classifier(net, x, "classifier")), path)
    return path


def from_scratch(shop: Workshop, random: Path, learning: Mapping[str, object]) -> Path:
    """A network that fine-tune trained from the random weights that it has."""
    out = shop.folder / f"{random.stem}-trained"
    data = {key: decoded(shop, key) for key in ("train", "test")}
    compiled(random, out, [{"name": "fine-tune", **learning}], data, PREPROCESS)
    return out / "model.onnx"


def compiled(
    model: Path, out: Path, passes: Sequence[Pass], data: Mapping[str, Path], prepared: Mapping[str, Any],
    target: str = "x86", lower: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The report of a compile into `out`; what an earlier run did of the same is not done again."""
    recipe = out.with_name(f"{out.name}.toml")
    sections = [
        ("[data]", {key: str(path.resolve()) for key, path in data.items()}),
        ("[data.preprocess]", {key: prepared[key] for key in ("mean", "std")}),
        *(("[[pass]]", pass_) for pass_ in passes),
    ]
    lines = [line for title, entries in sections for line in (title, *(f"{k} = {toml(v)}" for k, v in entries.items()))]
    recipe.write_text("\n".join(lines) + "\n")
    nnc("compile", recipe, model, "--target", target, "-o", out, "--quiet", *(() if lower else ("--no-lower",)))
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def toml(value: object) -> str:
    """JSON, but for tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
