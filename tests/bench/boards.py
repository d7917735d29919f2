"""Every network compiled for boards that are not here: do the libraries compute what onnxruntime does?

    python tests/bench/boards.py [cpu gpu dsp half]

Code for AArch64 and Hexagon runs in QEMU, kernels of GPUs through OpenCL. Networks: reference networks with seeded
weights, and those of the sample data. With --keep FOLDER, rows that were finished there are not made anew.

For a DSP, networks of floats are quantized by the recipe quantize, calibrated on noise. Its rows say how far outputs
are from onnxruntime without optimizations, how many layers multiply integers, and how much of the code that multiplies,
the basic blocks with vrmpy, is vector code.

half: float16 against float32 on one core, cycles by emulation (nnc.simulation.emulated), and what it does to outputs
and to the classes of images. Exits with 1 when a figure is not reached.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import table
import tvm
from table import DATA, Row, facts, samples

from nnc import graph as graphs
from nnc import lowering, recipe, target, testing, verify
from nnc.artifact import Artifact
from nnc.compiling import compilation
from nnc.data import Dataset, Preprocess
from nnc.lowering.dsp.unit import dsp_unit
from nnc.lowering.emulate import EmulatedLibrary
from nnc.lowering.lower import lower
from nnc.lowering.machine import machine as known_machine
from nnc.lowering.units import gpu_library
from nnc.lowering.weights import Weights
from nnc.passes.cast_fp16 import CastFp16
from nnc.passes.fold_batchnorm import FoldBatchNorm
from nnc.session import Session
from nnc.simulation import emulated

CHIPS = ("jetson-xavier", "qcs605")
REFERENCES = ("resnet18", "mobilenet_v2", "densenet121")
HALVED = ("mobilenet_v2", "resnet18", "squeezenet1_1", "densenet121")
IMAGES = {"cifar10_resnet20": 64, "cifar10_resnet56": 32, "imagenet_mobilenet_v2_1.0_224": 16}
MOST_DIFFERENCE = 1e-3
MOST_HALF_DIFFERENCE = 1e-2


class Workshop(table.Workshop):
    """A folder with the networks, and the rows that are finished."""

    def networks(self) -> list[Path]:
        return [*map(self.network, REFERENCES), *samples()]

    def row(self, what: str, make: Callable[[], Row]) -> Row:
        """The row of that name, made once."""
        kept = self.folder / f"{what}.json".replace(":", "-")
        if not kept.exists():
            row = make()
            kept.write_text(json.dumps([row.wanted, row.measured, row.reached]), "utf-8")
        return Row(what, *json.loads(kept.read_text("utf-8")))


def cpu(shop: Workshop) -> Iterator[Row]:
    yield from _libraries(shop, CHIPS)


def gpu(shop: Workshop) -> Iterator[Row]:
    yield from _libraries(shop, tuple(f"{chip}:gpu" for chip in CHIPS))


def _libraries(shop: Workshop, specs: tuple[str, ...]) -> Iterator[Row]:
    for path in shop.networks():
        for spec in specs:
            yield shop.row(f"{path.stem} on {spec}", lambda path=path, spec=spec: _library(path, spec))


def _library(path: Path, spec: str) -> Row:
    """How far outputs are from onnxruntime's, relative to the largest value."""
    graph, board = graphs.load(path, {}), target.load(spec)
    inputs = verify.probe_inputs(graph, 0)
    expected = Session(graph).run(inputs)
    found, seconds, _ = _run(graph, board, list(inputs.values()))
    worst = max(verify.difference(a, b) for a, b in zip(expected.values(), found, strict=True))
    measured = f"{worst:.1e}, compiled in {seconds:.0f} s"
    if verify.rounds(graph):  # what is nearly half a step may become another integer
        return Row("", "", measured, None)
    return Row("", f"<= {MOST_DIFFERENCE:.0e}", measured, worst <= MOST_DIFFERENCE)


def _run(graph: gs.Graph, board: target.Target, inputs: list[np.ndarray]) -> tuple[list[np.ndarray], float, Any]:
    """The outputs of the library under emulation, the seconds that its compile took, and what was built."""
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        built = lowering.build(graph, board, Path(name))
        seconds = time.perf_counter() - started
        is_gpu = board.unit.kind == "gpu"
        library = gpu_library(Path(name)) if is_gpu else EmulatedLibrary(Path(name) / "module.so", board)
        return library.run(inputs), seconds, built


# -- the DSP


def dsp(shop: Workshop) -> Iterator[Row]:
    for path in shop.networks():
        yield shop.row(f"{path.stem} on qcs605:dsp", lambda path=path: _on_dsp(path, "qcs605:dsp"))


def _on_dsp(path: Path, spec: str) -> Row:
    """A network of bytes on a DSP, in words."""
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        artifact = _compiled_for_dsp(path, spec, Path(name))
        seconds = time.perf_counter() - started
        inputs = artifact.random_inputs()
        expected, found = Session(graphs.load(artifact.model_path)).run(inputs), artifact.run(inputs)
        off = max(verify.difference(each, found[key]) for key, each in expected.items())
        layers = [layer["dtype"] for layer in artifact.report["layers"] if layer["macs"]]
        products, vectors, total = _instructions(artifact)
    share = f"{products} vrmpy, {vectors / max(total, 1):.0%} HVX of {total} instructions around them"
    integers = f"{layers.count('int8')} of {len(layers)} layers in int8"
    return Row("", "", f"{off:.1e}, {integers}, {share}, compiled in {seconds:.0f} s", None)


def _compiled_for_dsp(path: Path, spec: str, folder: Path) -> Artifact:
    """The network, quantized unless it is already."""
    graph = graphs.load(path, {})
    rng = np.random.default_rng(0)
    noise = {x.name: rng.standard_normal((8, *x.shape[1:]), dtype=np.float32) for x in graph.inputs}
    np.savez(folder / "noise.npz", **noise)
    quantized = any(node.op == "QuantizeLinear" for node in graph.nodes)
    data = [] if quantized else [f"calibration={folder / 'noise.npz'}"]
    chosen = recipe.load("simplify" if quantized else "quantize", data=data)
    compilation.compile_model(compilation.Job(chosen, path, target.load(spec), folder / "out", {}))
    return Artifact.open(folder / "out")


def _instructions(artifact: Artifact) -> tuple[int, int, int]:
    """Of the basic blocks that multiply: vrmpy, instructions on vectors, all instructions."""
    board = artifact.target
    machine = known_machine(board)
    unit = dsp_unit(board, board.unit.threads)
    with tempfile.TemporaryDirectory() as folder:
        place = Weights(Path(folder), frozenset(), unit.alignment).place
        program = lower(graphs.load(artifact.model_path), unit, machine, place)
    functions = {call.key: call.function for call in program.calls if call.template in ("dsp_conv2d", "dsp_depthwise")}
    found: list[str] = []
    for function in functions.values():
        module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
        blocks = re.split(r"^\.L\w+:", tvm.tirx.build(module, machine).inspect_source("s"), flags=re.MULTILINE)
        lines = (line for block in blocks if "vrmpy" in block for line in block.splitlines())
        found += [line for line in lines if re.match(r"\s+[^\s.{}]", line)]
    vectors = [line for line in found if re.search(r"\bv\d", line)]
    return sum("vrmpy" in line for line in vectors), len(vectors), len(found)


# -- float16


def half(shop: Workshop) -> Iterator[Row]:
    for name in HALVED:
        for chip in CHIPS:
            yield shop.row(f"{name} fp16, {chip}", lambda name=name, chip=chip: _speed(shop.network(name), chip))
    for path in samples(*IMAGES):
        count = IMAGES[path.stem]
        yield shop.row(f"{path.stem} fp16, {count} images", lambda path=path, count=count: _classes(path, count))


def _speed(path: Path, chip: str) -> Row:
    """Cycles of one core and bytes between kernels, in float32 and in float16."""
    board, cycles, memory = target.load(chip), [], []
    for graph in _both(graphs.load(path, {})):
        with tempfile.TemporaryDirectory() as folder:
            built = lowering.build(graph, board, Path(folder), threads=1)
            steps = emulated.network(built.files[0], board, 1)
        cycles.append(sum(step.milliseconds for step in steps) * board.unit.clusters[0].clock_ghz)
        memory.append(built.workspace_bytes)
    ratio = cycles[0] / cycles[1]
    measured = f"{ratio:.2f}x: {cycles[0]:.0f} -> {cycles[1]:.0f} M cycles; {memory[0] / memory[1]:.2f}x less memory"
    return Row("", "> 1", measured, ratio > 1)


def _classes(path: Path, count: int) -> Row:
    """Outputs and classes of images, in onnxruntime in float32 and then in the library in float16."""
    graph = graphs.load(path, {})
    name, shape = graph.inputs[0].name, list(graph.inputs[0].shape)
    graph = graphs.load(path, {name: [count, *shape[1:]]})
    prepared = facts(path)
    place = DATA / ("cifar10/test.npz" if prepared["dataset"] == "cifar10" else "imagenet_sample")
    given = {key: prepared[key] for key in ("crop", "mean", "std") if prepared.get(key)}
    data = Dataset.open(place, Preprocess(**given), graph.inputs)
    data = data.subset(0, count)
    images = next(iter(data.batches(count)))
    (expected,) = Session(graph).run(images).values()
    (found,), _, _ = _run(_both(graph)[1], target.load("qcs605"), [images[name]])
    off, moved = verify.difference(expected, found), int((expected.argmax(1) != found.argmax(1)).sum())
    top1 = [float((scores.argmax(1) == data.labels).mean()) for scores in (expected, found)]
    measured = f"{off:.1e}, top-1 {top1[0]:.1%} -> {top1[1]:.1%}, {moved} images in another class"
    return Row("", f"<= {MOST_HALF_DIFFERENCE:.0e}, none", measured, off <= MOST_HALF_DIFFERENCE and not moved)


def _both(graph: gs.Graph) -> tuple[gs.Graph, gs.Graph]:
    """A network without BatchNormalization, in float32 and in float16."""
    floats = testing.run(FoldBatchNorm(), graph).graph
    return floats, testing.run(CastFp16(), floats).graph


SECTIONS = {"cpu": cpu, "gpu": gpu, "dsp": dsp, "half": half}

if __name__ == "__main__":
    sys.exit(table.main(__doc__, SECTIONS, Workshop))
