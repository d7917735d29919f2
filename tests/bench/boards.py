"""Every network compiled for boards that are not here: do the libraries compute what onnxruntime does?

Code for AArch64 and Hexagon runs in QEMU, kernels of GPUs through OpenCL. Networks: those of the shared data folder,
and reference networks with seeded weights. `python tests/bench/boards.py [--targets T,T] [--networks N,N]`

For a DSP, networks of floats are quantized by the recipe quantize, calibrated on noise. Its line says how far outputs
are from onnxruntime without optimizations, how many layers multiply integers, and how much of the code that multiplies,
the basic blocks with vrmpy, is vector code.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import tvm

from nnc import compilation, lowering, networks, recipe, target, verify
from nnc import graph as graphs
from nnc.artifact import Artifact
from nnc.errors import NncError
from nnc.lowering.dsp.unit import dsp_unit
from nnc.lowering.emulate import EmulatedLibrary
from nnc.lowering.lower import lower
from nnc.lowering.machine import machine as known_machine
from nnc.lowering.units import gpu_library
from nnc.session import Session

TARGETS = ("jetson-xavier", "jetson-xavier:gpu", "qcs605", "qcs605:gpu", "qcs605:dsp")
REFERENCES = ("resnet18", "mobilenet_v2", "densenet121", "squeezenet1_1")
DATA = Path(os.environ.get("NNC_DATA", Path(__file__).parents[3] / "shared" / "data"))


def models(folder: Path, wanted: list[str]) -> Iterator[Path]:
    """The files of the networks, or of those whose names are wanted."""
    for name in REFERENCES:
        if not wanted or name in wanted:
            path = folder / f"{name}.onnx"
            onnx.save(networks.build(name), path)
            yield path
    yield from (path for path in sorted(DATA.glob("models/*.onnx")) if not wanted or path.stem in wanted)


def difference(path: Path, spec: str) -> tuple[float, float]:
    """Seconds to compile, and the largest difference of an output from onnxruntime's, relative to its largest value."""
    graph, machine = graphs.load(path, {}), target.load(spec)
    inputs = verify.probe_inputs(graph, 0)
    expected = Session(graph).run(inputs)
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        lowering.build(graph, machine, Path(name))
        seconds = time.perf_counter() - started
        gpu = machine.unit.kind == "gpu"
        library = gpu_library(Path(name)) if gpu else EmulatedLibrary(Path(name) / "module.so", machine)
        found = library.run(list(inputs.values()))
    pairs = zip(expected.values(), found, strict=True)
    return seconds, max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) for a, b in pairs)


def on_dsp(path: Path, spec: str) -> str:
    """A network of bytes on a DSP, in words."""
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        artifact = _compiled_for_dsp(path, spec, Path(name))
        seconds = time.perf_counter() - started
        inputs = artifact.random_inputs()
        expected, found = Session(graphs.load(artifact.model_path)).run(inputs), artifact.run(inputs)
        off = max(np.abs(found[key] - each).max() / np.abs(each).max() for key, each in expected.items())
        layers = [layer["dtype"] for layer in artifact.report["layers"] if layer["macs"]]
        products, vectors, total = _instructions(artifact)
    share = f"{products} vrmpy, {vectors / max(total, 1):.0%} HVX among the {total} instructions around them"
    integers = f"{layers.count('int8')} of {len(layers)} layers in int8"
    return f"compiled in {seconds:6.1f} s   difference {off:.1e}   {integers}   {share}"


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
    program = lower(graphs.load(artifact.model_path), dsp_unit(board, board.unit.threads), machine)
    functions = {call.key: call.function for call in program.calls if call.template in ("dsp_conv2d", "dsp_depthwise")}
    found: list[str] = []
    for function in functions.values():
        module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
        blocks = re.split(r"^\.L\w+:", tvm.tirx.build(module, machine).inspect_source("s"), flags=re.MULTILINE)
        lines = (line for block in blocks if "vrmpy" in block for line in block.splitlines())
        found += [line for line in lines if re.match(r"\s+[^\s.{}]", line)]
    vectors = [line for line in found if re.search(r"\bv\d", line)]
    return sum("vrmpy" in line for line in vectors), len(vectors), len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--networks", default="")
    given = parser.parse_args()
    wanted, worst = [name for name in given.networks.split(",") if name], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for path in models(Path(folder), wanted):
            for spec in given.targets.split(","):
                try:
                    if target.load(spec).unit.kind == "dsp":
                        print(f"{path.stem:42} {spec:18} {on_dsp(path, spec)}", flush=True)
                        continue
                    seconds, found = difference(path, spec)
                except NncError as error:
                    print(f"{path.stem:42} {spec:18} {error.message}")
                    continue
                is_float = not path.stem.endswith("_qdq")
                worst = max(worst, found) if is_float else worst
                print(f"{path.stem:42} {spec:18} compiled in {seconds:6.1f} s   difference {found:.1e}", flush=True)
    print(f"\nlargest difference of a network in float32: {worst:.1e}")


if __name__ == "__main__":
    main()
