"""OpenCL on this machine, for tests of GPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import target, verify
from nnc.errors import NncError
from nnc.lowering.build import Built
from nnc.lowering.gpu import opencl
from nnc.lowering.gpu.build import build
from nnc.session import Session

Compare = Callable[..., Built]


@pytest.fixture(scope="session")
def pocl() -> None:
    """Skips tests where kernels can't run."""
    try:
        opencl._open()
    except NncError as error:
        pytest.skip(f"{error.message} ({error.hint})")


@pytest.fixture
def compare(pocl: None, tmp_path: Path) -> Compare:
    """Build a graph for a GPU, run it through OpenCL, and assert that the outputs are onnxruntime's."""

    def check(graph: gs.Graph, spec: str, tolerance: float = 5e-5) -> Built:
        built = build(graph, target.load(spec), tmp_path)
        inputs = verify.probe_inputs(graph, 0)
        expected = Session(graph).run(inputs)
        found = opencl.OpenCLLibrary(tmp_path, optimize=False).run(list(inputs.values()))
        assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in expected.values()]
        pairs = zip(expected.items(), found, strict=True)
        errors = {name: verify.difference(array, result) for (name, array), result in pairs}
        assert {name: error for name, error in errors.items() if not error <= tolerance} == {}
        assert all(np.isfinite(array).all() for array in found if array.dtype.kind == "f")
        return built

    return check
