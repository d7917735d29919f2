"""Building and running for every kind of unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from nnc.lowering.build import Built
from nnc.lowering.build import build as build_cpu
from nnc.lowering.gpu import cuda
from nnc.lowering.gpu.build import build as build_gpu
from nnc.lowering.gpu.opencl import OpenCLLibrary
from nnc.target import Target


def build(graph: gs.Graph, target: Target, out: Path, **options: Any) -> Built:
    """Compile the graph for the target's unit into files of `out`.

    `threads` (default: the target's) is how many cores of a CPU share each kernel, `progress(step, done, total)` is
    called while it takes time. Raises NncError where the unit or a node is not supported, or where a tool is missing;
    then nothing is written.
    """
    return (build_gpu if target.unit.kind == "gpu" else build_cpu)(graph, target, out, **options)


def gpu_library(folder: Path) -> OpenCLLibrary | cuda.CudaLibrary:
    """The kernels of a folder: PTX on a GPU that runs it, anything else through OpenCL."""
    if (folder / "kernels.ptx").exists() and cuda.driver() is not None:
        return cuda.CudaLibrary(folder)
    return OpenCLLibrary(folder)
