"""What quantization costs networks, and what calibration takes: one table.

    python tests/bench/quantization.py [accuracy library int4 mixed weight_only half packed memory]

Accuracies are those of onnxruntime with every optimization off, the exact arithmetic; beside it stands the same model
in onnxruntime's default kernels, which saturate at 16 bits on processors without VNNI. The peers, with the same images
on the model with BatchNormalization folded, are onnxruntime.quantization.quantize_static with min-max and weights per
channel, and NNCF's post-training quantization as it is by default. Rows that need the sample data or a peer are left
out, and said to be, where these are absent (NNC_DATA, `pip install nnc[bench]`). Exits with 1 when a figure is not
reached.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from compression import Pass, compiled, fresh, halves, recipe, report_of
from table import DATA, THREADS, Row, Workshop, facts, main, nnc, samples, usage

from nnc import graph as graphs
from nnc import packing, quantize, testing
from nnc.accuracy import evaluate
from nnc.data import Dataset, Preprocess
from nnc.lowering.library import Library
from nnc.report import FLOATS
from nnc.session import Session

CIFAR = ("cifar10_resnet20", "cifar10_resnet56")
IMAGENET = ("imagenet_mobilenet_v2_1.0_224", "imagenet_squeezenet1.0_deepcompression")
SAMPLES = 512
MOST_DROP = 0.005
MOST_DROP_INT4 = {"cifar10_resnet56": 0.01, "cifar10_resnet20": 0.02, "imagenet_mobilenet_v2_1.0_224": 0.1}
MOST_DROP_MIXED = 0.01
MOST_ERROR = 1e-2
MOST_BYTES = 1.5e9
MOST_OF_ENTROPY = 1.03
FOLD = {"name": "fold-batchnorm"}


def accuracy(shop: Workshop) -> Iterator[Row]:
    """Top-1 of 8-bit networks, calibrated on images that the test does not hold."""
    pairs = with_data(shop, *CIFAR, *IMAGENET)
    if not pairs:
        yield Row("W8A8", "drop <= 0.5 points", f"left out: no data folder {DATA}", None)
    for model, data in pairs:
        for method in quantize.METHODS:
            yield drop(shop, model, data, method)
        yield peer(shop, model, data, "onnxruntime.quantization", by_onnxruntime)
        yield peer(shop, model, data, "NNCF", by_nncf)


def with_data(shop: Workshop, *names: str) -> list[tuple[Path, dict[str, Path]]]:
    """Pretrained models, each with images to calibrate on and others to test; none where the sample data is absent."""
    models = samples(*names)
    images = halves(shop.folder) if models else {}
    cifar = {part: DATA / f"cifar10/{part}.npz" for part in images}
    return [(model, cifar if facts(model)["dataset"] == "cifar10" else images) for model in models]


def drop(shop: Workshop, model: Path, data: Mapping[str, Path], method: str) -> Row:
    insert: dict[str, object] = {"name": "insert-qdq", "method": method, "samples": SAMPLES}
    out = fresh(shop.folder)
    report, seconds = compiled(shop, model, [dict(FOLD), insert], data, facts(model))
    before, after = report["before"]["accuracy"], report["after"]["accuracy"]
    default = in_default_kernels(graphs.load(out / "model.onnx"), data["test"], facts(model))
    measured = f"{before:.1%} -> {after:.1%}, {seconds:.0f} s; in onnxruntime's default kernels {default:.1%}"
    # The rest is float rounding of shares.
    return Row(f"{model.stem} W8A8: {method}", "drop <= 0.5 points", measured, before - after <= MOST_DROP + 1e-9)


Quantizer = Callable[[Path, Dataset, Path], None]  # reads a model and images, and writes the quantized model


def peer(shop: Workshop, model: Path, data: Mapping[str, Path], name: str, quantizer: Quantizer) -> Row:
    """The same of another quantizer, on the model with BatchNormalization folded."""
    what, graph, made = f"{model.stem} W8A8: {name}", graphs.load(model), fresh(shop.folder).with_suffix(".onnx")
    images = opened(data["calibration"], graph, facts(model)).subset(0, SAMPLES)
    try:
        started = time.perf_counter()
        quantizer(folded(shop, model), images, made)
        seconds = time.perf_counter() - started
    except ModuleNotFoundError as error:
        return Row(what, "", f"left out: no module {error.name}", None)
    quantized, test = graphs.load(made), opened(data["test"], graph, facts(model))
    exact, default = evaluate(quantized, test).top1, in_default_kernels(quantized, data["test"], facts(model))
    return Row(what, "", f"{exact:.1%}, {seconds:.0f} s; in onnxruntime's default kernels {default:.1%}", None)


def folded(shop: Workshop, model: Path) -> Path:
    """The model with a batch of one, and as onnxruntime's own preparation leaves it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    fixed, path = (shop.folder / f"{model.stem}-{part}.onnx" for part in ("fixed", "folded"))
    if not path.exists():
        graphs.save(graphs.load(model), fixed)
        quant_pre_process(str(fixed), str(path), skip_symbolic_shape=True)
    return path


def by_onnxruntime(model: Path, images: Dataset, made: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, dataset: Dataset) -> None:
            self._batches = dataset.batches(1)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    quantize_static(
        str(model), str(made), Reader(images), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def by_nncf(model: Path, images: Dataset, made: Path) -> None:
    os.environ.setdefault("NNCF_CI", "1")  # or it reports its use
    import nncf

    dataset = nncf.Dataset(list(images.batches(1)))
    with redirect_stdout(sys.stderr):  # its progress bars
        onnx.save(nncf.quantize(onnx.load(model), dataset, subset_size=len(images)), made)


def opened(path: Path, graph: gs.Graph, prepared: Mapping[str, Any]) -> Dataset:
    given = {key: prepared[key] for key in ("crop", "mean", "std") if prepared.get(key)}
    return Dataset.open(path, Preprocess(**given), graph.inputs)


def in_default_kernels(graph: gs.Graph, test: Path, prepared: Mapping[str, Any]) -> float:
    """Top-1 in onnxruntime as users start it."""
    return evaluate(Session(graph, optimized=True, integer_kernels=True).run, opened(test, graph, prepared)).top1


def library(shop: Workshop) -> Iterator[Row]:
    """Top-1 of 8-bit networks in the compiled library, which says in which arithmetic it computes."""
    pairs = with_data(shop, *CIFAR, *IMAGENET)
    if not pairs:
        yield Row("W8A8 in the library", "drop <= 0.5 points", f"left out: no data folder {DATA}", None)
    for model, data in pairs:
        out, prepared = fresh(shop.folder), facts(model)
        passes: list[Pass] = [dict(FOLD), {"name": "insert-qdq", "samples": SAMPLES}]
        nnc("compile", recipe(out, passes, data, prepared), model, "--target", "x86", "--threads", THREADS, "-o", out)
        report, found = report_of(out), json.loads(nnc("eval", out, "--data", data["test"], "--json"))
        default = in_default_kernels(graphs.load(out / "model.onnx"), data["test"], prepared)
        before, exact, after = report["before"]["accuracy"], report["after"]["accuracy"], found["top1"]
        measured = (
            f"{before:.1%} -> {after:.1%} in {found['runtime']}; in {report['after']['accuracy_runtime']} {exact:.1%}; "
            f"in onnxruntime's default kernels {default:.1%}"
        )
        reached = before - after <= MOST_DROP + 1e-9
        yield Row(f"{model.stem} W8A8 in the library", "drop <= 0.5 points", measured, reached)


def memory(shop: Workshop) -> Iterator[Row]:
    """The peak of a whole compile of resnet50 that calibrates on 512 images of 224x224."""
    model, images = shop.network("resnet50"), shop.folder / "noise.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (SAMPLES, 224, 224, 3), np.uint8)
    np.savez(images, images=pixels)
    for method in quantize.METHODS:
        insert: dict[str, object] = {"name": "insert-qdq", "method": method, "samples": SAMPLES}
        out = fresh(shop.folder)
        path = recipe(out, [dict(FOLD), insert], {"calibration": images}, {})
        used = usage("compile", path, model, "--target", "x86", "-o", out, "--no-lower")
        measured = f"{used.peak_bytes / 1e9:.2f} GB, {used.seconds:.0f} s"
        yield Row(f"calibration memory: resnet50, {method}", "< 1.5 GB", measured, used.peak_bytes < MOST_BYTES)


def int4(shop: Workshop) -> Iterator[Row]:
    """Top-1 with weights of 4 bits and activations of 8, rounded adaptively."""
    for model, data in with_data(shop, *MOST_DROP_INT4):
        found = []
        for passes in ([], [{"name": "round-adaptively"}, {"name": "correct-bias"}]):
            insert: dict[str, object] = {"name": "insert-qdq", "weight_bits": 4, "samples": SAMPLES}
            report, seconds = compiled(shop, model, [dict(FOLD), insert, *passes], data, facts(model))
            found.append(report["after"]["accuracy"])
        before, most = report["before"]["accuracy"], MOST_DROP_INT4[model.stem]
        measured = f"{before:.1%} -> {found[1]:.1%}, {seconds:.0f} s; rounded to the nearest {found[0]:.1%}"
        reached = before - found[1] <= most + 1e-9
        yield Row(f"{model.stem} W4A8", f"drop <= {most * 100:.0f} points", measured, reached)


def mixed(shop: Workshop) -> Iterator[Row]:
    """Top-1 where quantization alone loses much, and the layers that stay in floats to keep a budget.

    The budget is one of calibration images, and top-1 that of others.
    """
    kinds: dict[str, Pass] = {"W8A8, a scale per tensor": {"per_channel": False}, "W4A8": {"weight_bits": 4}}
    for model, data in with_data(shop, IMAGENET[0]):
        for kind, options in kinds.items():
            reports = []
            for budget in ({}, {"budget": {"drop": MOST_DROP_MIXED}}):
                insert: Pass = {"name": "insert-qdq", "samples": SAMPLES, **options, **budget}
                report, seconds = compiled(shop, model, [dict(FOLD), insert], data, facts(model))
                reports.append(report)
            without, within = (report["after"]["accuracy"] for report in reports)
            choices = [each["choice"] for each in reports[1]["passes"][-1]["decisions"]]
            floats = f"{choices.count(FLOATS)} of {len(choices)} layers in floats, {seconds:.0f} s"
            before = reports[1]["before"]["accuracy"]
            measured = f"{before:.1%} -> {within:.1%}, {floats}; without a budget {without:.1%}"
            yield Row(f"{model.stem} {kind}, budget of {MOST_DROP_MIXED:.1%}", "", measured, None)


CLASSIFIER = """net (float[1, 25088] x) => (float[1, 1000] y)
<float[4096, 25088] A, float[4096] a, float[4096, 4096] B, float[4096] b, float[1000, 4096] C, float[1000] c>
{
    p = Gemm<transB = 1>(x, A, a) q = Relu(p)
    r = Gemm<transB = 1>(q, B, b) s = Relu(r)
    y = Gemm<transB = 1>(s, C, c)
}"""


def weight_only(shop: Workshop) -> Iterator[Row]:
    """Integer weights in the fully connected layers of vgg16: bytes, latency and error against floats."""
    layers = shop.folder / "classifier.onnx"
    layers.write_bytes(testing.model(CLASSIFIER).SerializeToString())
    for model in (shop.network("vgg16"), layers):
        floats = fresh(shop.folder)
        nnc("compile", "fold", model, "--target", "x86", "--threads", THREADS, "-o", floats)
        for bits in (8, 4):
            out = fresh(shop.folder)
            passes: list[Pass] = [{"name": "insert-qdq", "weight_only": True, "weight_bits": bits}]
            nnc("compile", recipe(out, passes, {}, {}), model, "--target", "x86", "--threads", THREADS, "-o", out)
            timed = json.loads(nnc("bench", out, "--against", floats, "--threads", THREADS, "--json"))
            sizes = [(folder / "module.so").stat().st_size / 1e6 for folder in (floats, out)]
            error = 10 ** (-report_of(out)["passes"][-1]["snr_db"] / 20)
            measured = f"{timed['ratio']:.2f}, {sizes[0]:.0f} -> {sizes[1]:.0f} MB, output error {error:.1%}"
            what = f"{model.stem}, weights of {bits} bits: nnc in floats / nnc"
            yield Row(what, ">= 1.0", measured, timed["ratio"] >= 1.0)


def half(shop: Workshop) -> Iterator[Row]:
    """Outputs and top-1 of networks in float16."""
    for model, data in with_data(shop, *CIFAR, *IMAGENET):
        out = fresh(shop.folder)
        report, _ = compiled(shop, model, [dict(FOLD), {"name": "cast-fp16"}], data, facts(model))
        before, after = graphs.load(model), graphs.load(out / "model.onnx")
        expected, found = (outputs(each, opened(data["test"], before, facts(model))) for each in (before, after))
        error = float(np.sqrt(np.square(expected - found).sum() / np.square(expected).sum()))
        moved = int((expected.argmax(1) != found.argmax(1)).sum())
        top1 = [report[side]["accuracy"] for side in ("before", "after")]
        measured = f"{error:.1e}, {top1[0]:.1%} -> {top1[1]:.1%}, {moved} of {len(expected)} images differ"
        yield Row(f"{model.stem} fp16", "< 1e-2, top-1 the same", measured, error < MOST_ERROR and top1[0] == top1[1])


def packed(shop: Workshop) -> Iterator[Row]:
    """Bytes of the weights, and how long libraries take to load, with weights entropy-coded and without."""
    insert: Pass = {"name": "insert-qdq", "samples": 64}
    four_bits: Pass = insert | {"weight_bits": 4}
    half: Pass = {"name": "cast-fp16"}
    kinds: dict[str, list[Pass]] = {"float32": [], "fp16": [half], "int8": [insert], "4 bits in int8": [four_bits]}
    for model, data in with_data(shop, CIFAR[1], IMAGENET[0]):
        for kind, passes in kinds.items():
            out, libraries = fresh(shop.folder), []
            for last in ({"name": "remove-dead-nodes"}, {"name": "pack-weights"}):
                path = recipe(out, [dict(FOLD), *passes, last], {"calibration": data["calibration"]}, facts(model))
                nnc("compile", path, model, "--target", "x86", "-o", out)
                libraries.append(((out / "module.so").stat().st_size / 1e6, loading(out / "module.so")))
            yield packing_row(f"{model.stem}, {kind}", out, libraries)


def packing_row(what: str, out: Path, libraries: list[tuple[float, float]]) -> Row:
    graph = graphs.load(out / "model.onnx")
    found, names = report_of(out)["weights"], packing.marked(graph)
    marked = [each.values for each in graphs.constants(graph) if each.name in names]
    bound = found["stored_bytes"] - sum(each.nbytes - entropy_bytes(each) for each in marked)
    raw, stored, coded = (found[f"{key}_bytes"] / 1e6 for key in ("raw", "stored", "packed"))
    sizes, loads = (" -> ".join(f"{each[i]:.2f}" for each in libraries) for i in (0, 1))
    text = f"{raw:.2f} MB as read, {stored:.2f} stored, {coded:.2f} packed ({stored / coded:.2f}x)"
    measured = f"{text}, entropy {bound / 1e6:.2f}; module.so {sizes} MB, loaded in {loads} ms"
    reached = found["packed_bytes"] <= MOST_OF_ENTROPY * bound
    return Row(f"packed: {what}", f"<= {MOST_OF_ENTROPY:g} of the entropy", measured, reached)


def entropy_bytes(values: np.ndarray) -> float:
    """What codes of the single bytes take at least, those of each place with their own."""
    planes = np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, values.itemsize)
    counts = [np.unique(plane, return_counts=True)[1] for plane in planes.T]
    return sum(float(count @ np.log2(count.sum() / count)) for count in counts) / 8


def loading(library: Path) -> float:
    """The fewest milliseconds to load a library; each time under another name, because a second time it is there."""
    times = []
    for _ in range(7):
        copy = library.with_name(f"{time.monotonic_ns()}.so")
        copy.write_bytes(library.read_bytes())
        started = time.perf_counter()
        Library(copy, THREADS)
        times.append(time.perf_counter() - started)
        copy.unlink()
    return min(times) * 1e3


def outputs(graph: gs.Graph, data: Dataset) -> np.ndarray:
    """The scores [images, classes] of a network."""
    session = Session(graph, optimized=True)
    return np.concatenate([next(iter(session.run(inputs).values())) for inputs in data.batches(1)])


SECTIONS = {
    "accuracy": accuracy, "library": library, "int4": int4, "mixed": mixed, "weight_only": weight_only, "half": half,
    "packed": packed, "memory": memory,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, Workshop))
