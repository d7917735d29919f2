"""What tuning is worth: one table.

    python tests/bench/tuning.py [peers shipped time general killed board ranks]

Peers: onnxruntime and OpenVINO against each network compiled with the records that nnc ships, each pair in one
interleaved run. Shipped: each network compiled without records and with those that nnc ships, both libraries in one
process in turns, by the time in which the calling thread is on a core, which other processes do not move much. Time:
each network tuned from what is shipped for so many minutes, against what is shipped. General: loops that nnc has no
template for, by MetaSchedule against nnc's default schedule. Killed: a search that is killed again and again, and goes
on. Board: the first two libraries in emulation, cycle by cycle, and the tuned one executed in QEMU against onnxruntime.
Ranks: random plans of this machine's layers in AVX2, in emulation and measured. Exits with 1 when a figure is not
reached.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import table
from table import THREADS, Row, nnc

from nnc import benchmark, lowering, target, testing, verify
from nnc import graph as graphs
from nnc.artifact import Artifact
from nnc.autotune import device_of
from nnc.context import silent
from nnc.errors import NncError
from nnc.session import Session
from nnc.simulation import emulated
from nnc.target import Target
from nnc.tuning import records, tasks
from nnc.tuning.devices import Emulated

NETWORKS = ("vgg16", "resnet50", "mobilenet_v2", "densenet201")
BOARD, ON_BOARD = "qcs605", ("mobilenet_v2", "resnet18")
MINUTES = 5
ROUNDS = 40
CALLS = 10  # of a library, one after the other
PAUSE = 0.02  # seconds
PEER_ROUNDS = 15
LAYERS, PLANS = 5, 50
TRIALS = 64
KILLED, KILLS, SURVIVED = "mobilenet_v2", 5, 160
VOLUMES = """
net (float[1, 24, 8, 28, 28] x) => (float[1, 24, 8, 28, 28] y)
<float[48, 24, 1, 1, 1] A, float[48, 1, 3, 3, 3] D, float[24, 48, 1, 1, 1] B>
{
    a = Conv(x, A)
    r = Relu(a)
    d = Conv<group = 48, pads = [1, 1, 1, 1, 1, 1]>(r, D)
    s = Relu(d)
    b = Conv(s, B)
    y = Add(b, x)
}
"""
AVX2 = """kind = "cpu"
vector_bits = 256
vector_registers = 16
channel_multiple = 8
int8_dot = false
tvm = { kind = "llvm", mtriple = "x86_64-unknown-linux-gnu", mcpu = "x86-64-v3" }"""


class Workshop(table.Workshop):
    """Networks with and without the records that come with nnc; those of the user stay out of it."""

    @cache  # noqa: B019  # one workshop per run
    def simplified(self, name: str, chip: str) -> Path:
        out = self.folder / f"{name}-{chip}"
        options = ("--target", chip, "-o", out, "--threads", THREADS, "--quiet")
        nnc("compile", "simplify", self.network(name), *options, NNC_TUNING=str(self.folder / "none"))
        return out

    @cache  # noqa: B019
    def untuned(self, name: str, chip: str) -> Path:
        """The library that the figures of the target give."""
        out = self.folder / f"{name}-{chip}-untuned"
        out.mkdir()
        graph = graphs.load(self.simplified(name, chip) / "model.onnx")
        return lowering.build(graph, target.load(chip), out, threads=THREADS).files[0]


def peers(shop: Workshop) -> Iterator[Row]:
    """onnxruntime / tuned and OpenVINO / tuned, in float32, a batch of one."""
    runtimes = {"onnxruntime": (None, 1.25, 1.0), "OpenVINO": (_openvino, 1.0, None)}
    for peer, (runtime, wanted, least) in runtimes.items():
        if runtime is not None and importlib.util.find_spec("openvino") is None:
            yield Row(f"x86: {peer} / tuned", f">= {wanted:g}", 'left out: pip install "nnc[bench]"', None)
            continue
        ratios = []
        for name in NETWORKS:
            artifact = Artifact.open(shop.simplified(name, "x86"))
            timing = benchmark.compare(artifact, PEER_ROUNDS, THREADS, silent, runtime=runtime)
            ratios.append(timing.ratio)
            measured = f"{timing.ratio:.2f} ({timing.peer_ms:.1f} / {timing.nnc_ms:.1f} ms)"
            reached = None if least is None else timing.ratio >= least
            yield Row(f"x86: {peer} / tuned, {name}", "" if least is None else f">= {least:g}", measured, reached)
        mean = statistics.geometric_mean(ratios)
        yield Row(f"x86: {peer} / tuned, geometric mean", f">= {wanted:g}", f"{mean:.2f}", mean >= wanted)


def _openvino(path: Path, threads: int, inputs: Sequence[np.ndarray]) -> benchmark.Timed:
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(path), "CPU", options).create_infer_request()
    for index, values in enumerate(inputs):
        request.set_input_tensor(index, openvino.Tensor(values, shared_memory=True))
    return request.infer


def shipped(shop: Workshop) -> Iterator[Row]:
    """default / tuned, with the records that come with nnc, of layers that have one."""
    for name in NETWORKS:
        artifact = Artifact.open(shop.simplified(name, "x86"))
        ratio = _ratio(artifact, shop.untuned(name, "x86"), artifact.library_path)
        tuned = artifact.lock["tuning"]["layers"]
        yield Row(f"x86: default / tuned, {name}, {tuned} layers", ">= 1.0", f"{ratio:.3f}", ratio >= 0.99)


def tuning_time(shop: Workshop) -> Iterator[Row]:
    """shipped / tuned here, after the minutes that a search of all layers is given."""
    for name in NETWORKS:
        artifact, own = Artifact.open(shop.simplified(name, "x86")), shop.folder / f"{name}-records"
        out, environment = shop.folder / f"{name}-own", {"NNC_TUNING": str(own)}
        started = time.monotonic()
        search = ("--threads", THREADS, "--time", f"{MINUTES}m", "--quiet")
        nnc("tune", shop.simplified(name, "x86"), *search, **environment)
        minutes = (time.monotonic() - started) / 60
        options = ("--target", "x86", "-o", out, "--threads", THREADS, "--quiet")
        nnc("compile", "simplify", shop.network(name), *options, **environment)
        ratio = _ratio(artifact, artifact.library_path, Artifact.open(out).library_path)
        yield Row(f"x86: minutes of tuning, {name}", "<= 20", f"{minutes:.1f}", minutes <= 20)
        yield Row(f"x86: shipped / tuned here, {name}", "<= 1.05", f"{ratio:.3f}", ratio <= 1.05)


def general(shop: Workshop) -> Iterator[Row]:
    """default / tuned of a block of volumes, all of whose layers but two have no template."""
    model, own = shop.folder / "volumes.onnx", shop.folder / "volumes-records"
    onnx.save(testing.model(VOLUMES), model)
    folders = [shop.folder / f"volumes-{kind}" for kind in ("untuned", "tuned")]
    environment, options = {"NNC_TUNING": str(own)}, ("--target", "x86", "--threads", THREADS, "--quiet")
    nnc("compile", "simplify", model, "-o", folders[0], *options, NNC_TUNING=str(shop.folder / "none"))
    found = json.loads(nnc("tune", model, "--trials", TRIALS, "--json", *options, **environment))
    nnc("compile", "simplify", model, "-o", folders[1], *options, **environment)
    untuned, tuned = (Artifact.open(folder) for folder in folders)
    ratio = _ratio(untuned, untuned.library_path, tuned.library_path)
    measured = f"{ratio:.3f} after {found['trials']} trials in {found['seconds']:.0f} s"
    yield Row("x86: default / MetaSchedule, depthwise convolution of volumes", ">= 1.0", measured, ratio >= 1.0)


def _ratio(artifact: Artifact, before: Path, after: Path) -> float:
    """How many times faster one library of a network is than another."""
    from nnc.lowering.library import Library

    libraries = [Library(path, THREADS) for path in (before, after)]
    for library in libraries:
        library.bind(artifact.checked(artifact.random_inputs()))
    return statistics.median(_on_cores(libraries[0]) / _on_cores(libraries[1]) for _ in range(ROUNDS))


def _on_cores(library: object) -> float:
    """Seconds of some inferences in which the calling thread runs; it spins where it waits for others.

    The pause lets the threads of the other library fall asleep, the first inference wakes those of this one.
    """
    time.sleep(PAUSE)
    library.run_bound()  # type: ignore[attr-defined]
    started = time.thread_time()
    for _ in range(CALLS):
        library.run_bound()  # type: ignore[attr-defined]
    return time.thread_time() - started


def killed(shop: Workshop) -> Iterator[Row]:
    """Records that a search lost or made twice whose process is killed while it measures, and that goes on."""
    own = shop.folder / "killed-records"
    file, lost = own / "x86.jsonl", 0
    kept: list[bytes] = []
    search = ("tune", shop.network(KILLED), "--target", "x86", "--threads", THREADS, "--trials", SURVIVED, "--quiet")
    command = [table.NNC, *map(str, search), "--resume"]
    for kill in range(1, KILLS + 1):
        with subprocess.Popen(command, env={**os.environ, "NNC_TUNING": str(own)}) as process:
            while process.poll() is None and len(_lines(file)) < kill * SURVIVED // (KILLS + 1):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        lost += len(set(kept) - set(_lines(file)))
        kept = _lines(file)
    nnc(*search, "--resume", NNC_TUNING=str(own))
    lost += len(set(kept) - set(_lines(file)))
    trials = [(each.place, records.canonical(each.plan), each.source) for each in records.read(file)]
    twice = len(trials) - len(set(trials))
    measured = f"{lost} lost, {twice} made twice of {len(trials)}"
    yield Row(f"x86: killed {KILLS} times and resumed, {KILLED}", "0, 0", measured, lost == twice == 0)


def _lines(file: Path) -> list[bytes]:
    """The whole lines of a file of records."""
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def board(shop: Workshop) -> Iterator[Row]:
    """Cycles of the board's cores, default / tuned."""
    if not shutil.which("qemu-aarch64"):
        yield Row(BOARD, ">= 1.15", "left out: no qemu-aarch64", None)
        return
    chip = target.load(BOARD)
    for name in ON_BOARD:
        artifact = Artifact.open(shop.simplified(name, BOARD))
        paths = (shop.untuned(name, BOARD), artifact.library_path)
        before, after = (sum(step.cycles for step in emulated.network(path, chip, THREADS)) for path in paths)
        ratio = before / after
        measured = f"{ratio:.3f} ({before / 1e6:.1f} / {after / 1e6:.1f} M)"
        yield Row(f"{BOARD}: cycles, default / tuned, {name}", ">= 1.15", measured, ratio >= 1.15)
        graph = graphs.load(artifact.model_path)
        inputs = verify.probe_inputs(graph, 0)
        error = verify.largest_difference(Session(graph).run(inputs), artifact.run(inputs))
        yield Row(f"{BOARD}: the tuned {name} in QEMU", "< 1e-3", f"{error:.1e}", error < 1e-3)


def ranks(shop: Workshop) -> Iterator[Row]:
    """Spearman's correlation of emulated and measured times of random plans, layer by layer."""
    chosen = _avx2(shop.folder)
    try:
        emulated.require(chosen)
    except NncError as error:
        yield Row("x86: ranks", ">= 0.8", f"left out: {error.message}", None)
        return
    graph = graphs.load(shop.simplified("resnet50", "x86") / "model.onnx")
    network = tasks.network(graph, chosen, THREADS, silent)
    wide = [(task, plans) for task in network.tasks if len(plans := task.workload.plans(network.unit)) >= PLANS]
    picked = [wide[len(wide) * place // LAYERS] for place in range(LAYERS)]
    opened = [each.open(chosen.unit.tvm) for each in (device_of(chosen, THREADS), Emulated(chosen, THREADS))]
    found = []
    for task, plans in picked:
        functions = [task.workload.function(plan, network.unit) for plan in random.Random(0).sample(plans, PLANS)]
        times = [np.median(list(each.times([each.load(one) for one in functions], ROUNDS)), axis=0) for each in opened]
        found.append(_spearman(*times))
        slower = times[0][times[1].argmin()] / times[0].min()
        measured = f"{found[-1]:.3f}; emulation's choice takes {slower:.2f} times the best"
        yield Row(f"x86: ranks of {PLANS} plans, {task.name}", "", measured, None)
    yield Row(
        f"x86: ranks of {PLANS} plans, mean of {LAYERS} layers",
        ">= 0.8",
        f"{np.mean(found):.3f}",
        np.mean(found) >= 0.8,
    )


def _avx2(folder: Path) -> Target:
    """This machine without the vectors that QEMU does not execute."""
    file = folder / "avx2.toml"
    text = resources.files("nnc.targets").joinpath("x86.toml").read_text("utf-8")
    file.write_text(text.replace('kind = "cpu"', AVX2, 1), "utf-8")
    return target.load(str(file))


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    places = [values.argsort().argsort() for values in (left, right)]
    return float(np.corrcoef(*places)[0, 1])


SECTIONS = {
    "peers": peers,
    "shipped": shipped,
    "time": tuning_time,
    "general": general,
    "killed": killed,
    "board": board,
    "ranks": ranks,
}


if __name__ == "__main__":
    sys.exit(table.main(__doc__, SECTIONS, Workshop))
