"""Every network compiled for boards that are not here: do the libraries compute what onnxruntime does?

Code for AArch64 runs in QEMU, kernels of GPUs through OpenCL. Networks: those of the shared data folder, and reference
networks with seeded weights. `python tests/bench/boards.py [--targets T,T] [--networks N,N]`
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from nnc import graph as graphs
from nnc import lowering, networks, target, verify
from nnc.errors import NncError
from nnc.lowering.emulate import EmulatedLibrary
from nnc.lowering.units import gpu_library
from nnc.session import Session

TARGETS = ("jetson-xavier", "jetson-xavier:gpu", "qcs605", "qcs605:gpu")
REFERENCES = ("resnet18", "mobilenet_v2", "densenet121")
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
