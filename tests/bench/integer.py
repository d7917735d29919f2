"""Networks of integers in the compiled library and in onnxruntime: latency, agreement, and what stays in floats.

    python tests/bench/integer.py [latency floats agreement avx2]

Models come from `nnc compile quantize`, calibrated on noise. Latencies are ratios of medians from interleaved runs
(`nnc bench`) of the same ONNX file, batch 1, two threads. onnxruntime runs with its default kernels, which saturate at
16 bits on processors without VNNI; the library is exact everywhere. The section avx2 runs both sides as on such a
processor, where this one has VNNI and can make cpuid say otherwise (avx2_only.c). Agreement is with onnxruntime without
optimizations. Rows that need the sample data are left out, and said to be, where it is absent (NNC_DATA). Exits with 1
when a figure is not reached.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
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
HAS_VNNI = bool({"avx_vnni", "avx512_vnni"} & set(Path("/proc/cpuinfo").read_text().split()))
AVX2_UNIT = """int8_dot = false
channel_multiple = 8
vector_bits = 256
vector_registers = 16
"""
AVX2_CODE = f"""
[unit.tvm]
kind = "llvm"
mtriple = "x86_64-unknown-linux-gnu"
mcpu = "x86-64-v3"
num-cores = {THREADS}
"""


class Workshop(table.Workshop):
    """Networks, and their libraries in integers."""

    @cache  # noqa: B019  # one workshop per run
    def noise(self) -> Path:
        path = self.folder / "noise.npz"
        np.savez(path, input=np.random.default_rng(0).standard_normal((8, 3, 224, 224), dtype=np.float32))
        return path

    @cache  # noqa: B019
    def avx2(self) -> Path:
        """The target of this machine without VNNI and AVX-512."""
        path = self.folder / "avx2.toml"
        text = files("nnc.targets").joinpath("x86.toml").read_text("utf-8")
        path.write_text(text.replace('kind = "cpu"\n', f'kind = "cpu"\n{AVX2_UNIT}', 1) + AVX2_CODE, "utf-8")
        return path

    @cache  # noqa: B019
    def mask(self) -> Path | str:
        """What makes processes see AVX2 only when it is preloaded, or why that can't be."""
        if not HAS_VNNI:
            return "it has no VNNI: the other sections show it"
        path = self.folder / "avx2_only.so"
        source = Path(__file__).with_name("avx2_only.c")
        try:
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", path, source], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return "no C compiler that builds avx2_only.c"
        code = "import ctypes, sys; sys.exit(not ctypes.CDLL(None).avx2_only())"
        works = subprocess.run([sys.executable, "-c", code], env=_preloaded(path)).returncode == 0
        return path if works else "it can't hide instructions from programs (CPUID faulting)"

    @cache  # noqa: B019
    def quantized(self, name: str, dtype: str, target: str | Path = "x86") -> Path:
        out = self.folder / f"{name}-{dtype}-{Path(target).stem}"
        options = ["--data", f"calibration={self.noise()}", "--set", f"insert-qdq.activation_dtype={dtype}"]
        nnc(
            "compile", "quantize", self.network(name), *options, "--target", target, "--threads", THREADS, "-o", out,
            "--quiet",
        )  # fmt: skip
        return out

    @cache  # noqa: B019
    def floats(self, name: str, target: str | Path = "x86") -> Path:
        out = self.folder / f"{name}-float-{Path(target).stem}"
        nnc("compile", "simplify", self.network(name), "--target", target, "--threads", THREADS, "-o", out, "--quiet")
        return out


def _preloaded(library: Path) -> dict[str, str]:
    """The environment of a process that loads a library before its own."""
    return {**os.environ, "LD_PRELOAD": str(library)}


def latency(shop: Workshop) -> Iterator[Row]:
    """onnxruntime / nnc on int8 and on uint8 activations; weights are int8 for both."""
    yield Row("VNNI", "", "yes" if HAS_VNNI else "no", None)
    yield from _latency(shop, "x86", "latency", {})


def _latency(shop: Workshop, target: str | Path, title: str, environment: Mapping[str, str]) -> Iterator[Row]:
    for dtype, scheme in (("int8", "S8S8"), ("uint8", "U8S8")):
        ratios = []
        for name in TIMED:
            timed = _timed(shop.quantized(name, dtype, target), **environment)
            ratios.append(timed["ratio"])
            measured = f"{timed['ratio']:.2f} ({timed['onnxruntime_ms']:.2f} / {timed['nnc_ms']:.2f} ms)"
            yield Row(f"{title} {scheme}: onnxruntime / nnc, {name}", "", measured, None)
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        promised = dtype == "int8"
        reached = mean >= 1.0 if promised else None
        yield Row(f"{title} {scheme}: geometric mean", ">= 1.0" if promised else "", f"{mean:.2f}", reached)


def avx2(shop: Workshop) -> Iterator[Row]:
    """Latencies, and what saturation costs onnxruntime, on a processor without VNNI."""
    mask = shop.mask()
    if isinstance(mask, str):
        yield Row("AVX2 without VNNI", "", f"left out, {mask}", None)
        return
    target, environment = shop.avx2(), {"LD_PRELOAD": str(mask)}
    yield from _latency(shop, target, "AVX2", environment)
    for name in TIMED:
        own, against = shop.quantized(name, "uint8", target), shop.floats(name, target)
        timed = _timed(own, "--against", against, **environment)
        measured = f"{timed['ratio']:.2f} ({timed['against_ms']:.2f} / {timed['nnc_ms']:.2f} ms)"
        yield Row(f"AVX2: nnc in floats / in integers, {name}", "", measured, None)
    models = samples(QDQ)
    if not models:
        yield Row("AVX2: top-1 on photos", "", f"left out: no data folder {DATA}", None)
        return
    yield from _saturation(shop, models[0], mask)


def _saturation(shop: Workshop, model: Path, mask: Path) -> Iterator[Row]:
    """Top-1 of the default kernels of onnxruntime and of our library, both on AVX2."""
    out = shop.folder / f"{QDQ}-avx2"
    nnc("compile", "simplify", model, "--target", shop.avx2(), "--threads", THREADS, "-o", out, "--quiet")
    artifact, photos = Artifact.open(out), shop.folder / "photos.npy"
    dataset = _photos(model)
    images = [next(iter(batch.values())) for batch in dataset.batches(1)]
    np.save(photos, np.concatenate(images))
    labels = np.asarray(dataset.labels)
    (name,) = (tensor.name for tensor in graphs.load(model).inputs)
    classes = [np.asarray(next(iter(artifact.run({name: image}).values()))).argmax() for image in images]
    done = subprocess.run(
        [sys.executable, "-c", DEFAULT_KERNELS, model, photos], env=_preloaded(mask), capture_output=True, check=True
    )
    default = np.array(json.loads(done.stdout))
    yield Row("AVX2: top-1 of nnc, photos", "", f"{np.mean(classes == labels):.1%} of {len(labels)}", None)
    yield Row("AVX2: top-1 of onnxruntime's default kernels", "", f"{np.mean(default == labels):.1%}", None)
    yield Row("AVX2: same top-1, nnc and these kernels", "", f"{np.mean(default == classes):.1%}", None)


DEFAULT_KERNELS = """
import json, sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(x,) = session.get_inputs()
print(json.dumps([int(session.run(None, {x.name: image[None]})[0].argmax()) for image in np.load(sys.argv[2])]))
"""


def _photos(model: Path) -> Dataset:
    known, graph = facts(model), graphs.load(model)
    preprocess = Preprocess(crop=known["crop"], mean=tuple(known["mean"]), std=tuple(known["std"]))
    return Dataset.open(DATA / "imagenet_sample", preprocess, graph.inputs).subset(0, MOST_IMAGES)


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
    out = shop.folder / QDQ
    nnc("compile", "simplify", model, "--target", "x86", "--threads", THREADS, "-o", out, "--quiet")
    yield _agree(f"photos, {QDQ}", out, _photos(model).batches(1))


def _agree(name: str, folder: Path, batches: Iterator[dict[str, np.ndarray]]) -> Row:
    artifact, session, same = Artifact.open(folder), Session(graphs.load(folder / "model.onnx")), []
    for batch in batches:
        (expected,), (found,) = session.run(batch).values(), artifact.run(batch).values()
        same.append(expected.argmax() == np.asarray(found).argmax())
    share = float(np.mean(same))
    return Row(f"same top-1: {name}", ">= 99 %", f"{share:.1%} of {len(same)}", share >= 0.99)


def _timed(folder: Path, *options: object, **environment: str) -> dict[str, float]:
    printed = nnc("bench", folder, *options, "--threads", THREADS, "--json", **environment)
    timed: dict[str, float] = json.loads(printed)
    return timed


SECTIONS: dict[str, Callable[[Workshop], Iterator[Row]]] = {
    "latency": latency,
    "floats": floats,
    "agreement": agreement,
    "avx2": avx2,
}


if __name__ == "__main__":
    sys.exit(table.main(__doc__, SECTIONS, Workshop))
