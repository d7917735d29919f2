"""Networks of integers in the compiled library and in onnxruntime: latency, agreement, and what stays in floats.

    python tests/bench/integer.py [latency floats agreement]

Models come from `nnc compile quantize`, calibrated on noise. Latencies are ratios of medians from interleaved runs
(`nnc bench`) of the same ONNX file, batch 1, two threads. onnxruntime runs with its default kernels, which saturate at
16 bits on processors without VNNI; the library is exact everywhere. Agreement is with onnxruntime without
optimizations. Rows that need the sample data are left out, and said to be, where it is absent (NNC_DATA). Exits with 1
when a figure is not reached.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import table
from table import DATA, THREADS, Row, facts, nnc, samples

from nnc import graph as graphs
from nnc.artifact import Artifact
from nnc.data import Dataset, Preprocess
from nnc.session import Session

TIMED = ("resnet50", "mobilenet_v2", "vgg16")
QDQ = "imagenet_mobilenet_v2_1.0_224_qdq"
MOST_IMAGES = 500


class Workshop(table.Workshop):
    """Networks, and their libraries in integers."""

    @cache  # noqa: B019  # one workshop per run
    def noise(self) -> Path:
        path = self.folder / "noise.npz"
        np.savez(path, input=np.random.default_rng(0).standard_normal((8, 3, 224, 224), dtype=np.float32))
        return path

    @cache  # noqa: B019
    def quantized(self, name: str, dtype: str) -> Path:
        out = self.folder / f"{name}-{dtype}"
        options = ["--data", f"calibration={self.noise()}", "--set", f"insert-qdq.activation_dtype={dtype}"]
        nnc(
            "compile", "quantize", self.network(name), *options, "--target", "x86", "--threads", THREADS, "-o", out,
            "--quiet",
        )  # fmt: skip
        return out

    @cache  # noqa: B019
    def floats(self, name: str) -> Path:
        out = self.folder / f"{name}-float"
        nnc("compile", "simplify", self.network(name), "--target", "x86", "--threads", THREADS, "-o", out, "--quiet")
        return out


def latency(shop: Workshop) -> Iterator[Row]:
    """onnxruntime / nnc on int8 and on uint8 activations; weights are int8 for both."""
    for dtype, scheme in (("int8", "S8S8"), ("uint8", "U8S8")):
        ratios = []
        for name in TIMED:
            timed = _timed(shop.quantized(name, dtype))
            ratios.append(timed["ratio"])
            measured = f"{timed['ratio']:.2f} ({timed['onnxruntime_ms']:.2f} / {timed['nnc_ms']:.2f} ms)"
            yield Row(f"latency {scheme}: onnxruntime / nnc, {name}", "", measured, None)
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        promised = dtype == "int8"
        reached = mean >= 1.0 if promised else None
        yield Row(f"latency {scheme}: geometric mean", ">= 1.0" if promised else "", f"{mean:.2f}", reached)


def floats(shop: Workshop) -> Iterator[Row]:
    """The library in floats / the library in integers, and the layers that stay in floats."""
    for name in TIMED:
        own = shop.quantized(name, "uint8")
        timed = _timed(own, "--against", shop.floats(name))
        measured = f"{timed['ratio']:.2f} ({timed['against_ms']:.2f} / {timed['nnc_ms']:.2f} ms)"
        yield Row(f"latency: nnc in floats / in integers, {name}", "", measured, None)
        layers = [layer for layer in json.loads((own / "report.json").read_text())["layers"] if layer["macs"]]
        integers = sum(layer["dtype"] == "int8" for layer in layers)
        measured = f"{integers} of {len(layers)} layers"
        yield Row(f"in integers: {name}", "all layers", measured, integers == len(layers))


def agreement(shop: Workshop) -> Iterator[Row]:
    """The top classes of our library and of onnxruntime without optimizations, on photos and on noise."""
    noise = np.random.default_rng(1).standard_normal((20, 1, 3, 224, 224), dtype=np.float32)
    for name in TIMED:
        yield _agree(f"noise, {name}", shop.quantized(name, "int8"), ({"input": each} for each in noise))
    models = samples(QDQ)
    if not models:
        yield Row("same top-1: photos", ">= 99 %", f"left out: no data folder {DATA}", None)
        return
    (model,) = models
    out, known, graph = shop.folder / QDQ, facts(model), graphs.load(model)
    nnc("compile", "simplify", model, "--target", "x86", "--threads", THREADS, "-o", out, "--quiet")
    preprocess = Preprocess(crop=known["crop"], mean=tuple(known["mean"]), std=tuple(known["std"]))
    photos = Dataset.open(DATA / "imagenet_sample", preprocess, graph.inputs).subset(0, MOST_IMAGES)
    yield _agree(f"photos, {QDQ}", out, photos.batches(1))


def _agree(name: str, folder: Path, batches: Iterator[dict[str, np.ndarray]]) -> Row:
    artifact, session, same = Artifact.open(folder), Session(graphs.load(folder / "model.onnx")), []
    for batch in batches:
        (expected,), (found,) = session.run(batch).values(), artifact.run(batch).values()
        same.append(expected.argmax() == np.asarray(found).argmax())
    share = float(np.mean(same))
    return Row(f"same top-1: {name}", ">= 99 %", f"{share:.1%} of {len(same)}", share >= 0.99)


def _timed(folder: Path, *options: object) -> dict[str, float]:
    timed: dict[str, float] = json.loads(nnc("bench", folder, *options, "--threads", THREADS, "--json"))
    return timed


SECTIONS: dict[str, Callable[[Workshop], Iterator[Row]]] = {
    "latency": latency,
    "floats": floats,
    "agreement": agreement,
}


if __name__ == "__main__":
    sys.exit(table.main(__doc__, SECTIONS, Workshop))
