"""What the README promises of a compile, measured here through the command line: one table.

    python tests/bench/end_to_end.py [latency compile-time graph-passes targets exactness accuracy wrong-inputs]

Latencies are ratios of medians from interleaved runs (`nnc bench`). Rows that need the sample data or an emulator are
left out, and said to be, where these are absent (NNC_DATA, `nnc doctor`). Exits with 1 when a figure is not reached.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import table
from table import DATA, THREADS, Row, facts, nnc, samples, usage

from nnc import graph as graphs
from nnc import verify
from nnc.artifact import Artifact
from nnc.session import Session

RECIPE = "simplify"
TIMED = ("vgg16", "resnet50", "mobilenet_v2", "densenet201")
OTHERS = ("resnet18", "resnet56", "densenet121", "squeezenet1_1", "shufflenet_v2", "efficientnet_b0")
REFERENCES = (*TIMED, *OTHERS)
SECONDS = {"mobilenet_v2": 60, "resnet50": 120, "densenet201": 240}
BOARDS = ("qcs605", "jetson-xavier")


class Workshop(table.Workshop):
    """Models, and what the recipe makes of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seconds: dict[tuple[Path, str], float] = {}

    @cache  # noqa: B019  # one workshop per run
    def compiled(self, model: Path, target: str) -> Path:
        out = self.folder / f"{model.stem}-{target}"
        started = time.perf_counter()
        nnc("compile", RECIPE, model, "--target", target, "-o", out, "--threads", THREADS, "--quiet")
        self.seconds[model, target] = time.perf_counter() - started
        return out


def latency(shop: Workshop) -> Iterator[Row]:
    """onnxruntime / nnc in one interleaved run, batch 1, two threads, with the records that nnc ships; of 224x224."""
    ratios = {}
    for name in REFERENCES:
        timed = json.loads(nnc("bench", shop.compiled(shop.network(name), "x86"), "--threads", THREADS, "--json"))
        ratios[name] = timed["ratio"]
        measured = f"{timed['ratio']:.2f} ({timed['onnxruntime_ms']:.1f} / {timed['nnc_ms']:.1f} ms)"
        promised = name in TIMED
        reached = timed["ratio"] >= 0.8 if promised else None
        yield Row(f"latency: onnxruntime / nnc, {name}", ">= 0.8" if promised else "", measured, reached)
    four, all_ = (math.exp(sum(math.log(ratios[name]) for name in names) / len(names)) for names in (TIMED, ratios))
    yield Row(f"latency: geometric mean of {', '.join(TIMED)}", ">= 1.0", f"{four:.2f}", four >= 1.0)
    yield Row("latency: geometric mean of all", "", f"{all_:.2f}", None)


def compile_time(shop: Workshop) -> Iterator[Row]:
    """From the ONNX file to the library, in a process of its own."""
    for name, most in SECONDS.items():
        shop.compiled(shop.network(name), "x86")
        seconds = shop.seconds[shop.network(name), "x86"]
        yield Row(f"compile time: {name}", f"< {most} s", f"{seconds:.1f} s", seconds < most)


def graph_passes(shop: Workshop) -> Iterator[Row]:
    """All graph passes, with their checks and the report, on the largest network; graph_passes.py has the peers."""
    model = shop.network("vgg16")
    out, size = shop.folder / "passes", model.stat().st_size
    used = usage("compile", RECIPE, model, "--target", "x86", "-o", out, "--no-lower", "--quiet")
    peak = used.peak_bytes / size
    name = f"graph passes: vgg16 ({size / 1e6:.0f} MB)"
    yield Row(f"{name}, seconds", "< 10 s", f"{used.seconds:.1f} s", used.seconds < 10)
    yield Row(f"{name}, peak memory", "< 2.5x the file", f"{peak:.2f}x", peak < 2.5)


def targets(shop: Workshop) -> Iterator[Row]:
    """Boards, emulated: the largest difference from onnxruntime, relative to the largest output."""
    if not shutil.which("qemu-aarch64"):
        yield Row("targets", "within 1e-3", "left out: no qemu-aarch64", None)
        return
    models = [shop.network("mobilenet_v2"), shop.network("resnet18"), *samples("cifar10_resnet56")]
    for model in models:
        for board in BOARDS:
            error = _error(model, shop.compiled(model, board))
            yield Row(f"{board} in QEMU: {model.stem}", "< 1e-3", f"{error:.1e}", error < 1e-3)


def exactness(shop: Workshop) -> Iterator[Row]:
    """The library of this machine against onnxruntime with its optimizations off, on the model as it came."""
    models = [*samples(), *(shop.network(name) for name in REFERENCES)]
    for model in models:
        error, graph = _error(model, shop.compiled(model, "x86")), graphs.load(model)
        if not verify.rounds(graph):
            yield Row(f"error: {model.stem}", "< 1e-4", f"{error:.1e}", error < 1e-4)
            continue
        # The last bit of a float is a whole step then, for onnxruntime itself too.
        inputs = verify.probe_inputs(graph, 0)
        own = verify.largest_difference(Session(graph).run(inputs), Session(graph, optimized=True).run(inputs))
        yield Row(f"error: {model.stem}", "", f"{error:.1e} (onnxruntime optimized: {own:.1e})", None)


def accuracy(shop: Workshop) -> Iterator[Row]:
    """Top-1 on the sample data: the model in onnxruntime, and its library."""
    for model in samples():
        options = _preprocessing(model)
        before = json.loads(nnc("eval", model, *options, "--json"))
        after = json.loads(nnc("eval", shop.compiled(model, "x86"), *options, "--json"))
        measured = f"{before['top1']:.2%} -> {after['top1']:.2%} of {before['count']}"
        yield Row(f"accuracy: {model.stem}", "unchanged", measured, before["top1"] == after["top1"])


def wrong_inputs(shop: Workshop) -> Iterator[Row]:
    """The table of broken recipes, models, data files and targets."""
    tests = Path(__file__).parents[1] / "test_wrong_inputs.py"
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", tests], capture_output=True, text=True)
    summary = done.stdout.strip().splitlines()[-1]
    passed = next(
        (
            int(word)
            for word, kind in zip(summary.split(), summary.split()[1:], strict=False)
            if kind.startswith("passed")
        ),
        0,
    )
    yield Row("wrong inputs told in one line", ">= 40", str(passed), done.returncode == 0 and passed >= 40)


def _preprocessing(model: Path) -> list[object]:
    known = facts(model)
    data = DATA / ("cifar10/test.npz" if known["dataset"] == "cifar10" else "imagenet_sample")
    options: list[object] = ["--data", data]
    for key in ("mean", "std"):
        options += [f"--{key}", ",".join(map(str, known[key]))]
    return [*options, *(["--crop", known["crop"]] if known.get("crop") else [])]


def _error(model: Path, folder: Path) -> float:
    graph = graphs.load(model)
    inputs = verify.probe_inputs(graph, 0)
    found = Artifact.open(folder).run(inputs)
    return verify.largest_difference(Session(graph).run(inputs), {name: np.asarray(x) for name, x in found.items()})


SECTIONS: dict[str, Callable[[Workshop], Iterator[Row]]] = {
    "latency": latency,
    "compile-time": compile_time,
    "graph-passes": graph_passes,
    "targets": targets,
    "exactness": exactness,
    "accuracy": accuracy,
    "wrong-inputs": wrong_inputs,
}


if __name__ == "__main__":
    sys.exit(table.main(__doc__, SECTIONS, Workshop))
