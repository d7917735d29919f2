"""The programs for boards: they are linked for AArch64, and what they do is checked on this machine."""

from __future__ import annotations

import subprocess
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from nnc import target, verify
from nnc.lowering.gpu import runner
from nnc.lowering.gpu.build import build
from nnc.session import Session
from nnc.testing import graph

SOURCES = resources.files("nnc.lowering.gpu")


@pytest.mark.parametrize("spec", ["qcs605:gpu", "jetson-xavier:gpu"])
def test_they_are_programs_for_the_board(tmp_path: Path, spec: str) -> None:
    runner.link(target.load(spec), tmp_path / "run")
    content = (tmp_path / "run").read_bytes()
    assert content[:4] == b"\x7fELF"
    assert content[18:20] == (183).to_bytes(2, "little"), "AArch64"
    library = b"libOpenCL.so.1" if spec.startswith("qcs605") else b"libcuda.so.1"
    assert library in content, "the board's own driver is what it loads"


def test_the_program_for_opencl_computes_what_onnxruntime_does(pocl: None, tmp_path: Path) -> None:
    """Two inputs and two outputs, and a concatenation that is copied row by row."""
    drawing = graph(
        """g (float[2,3,9,9] x, float[2,3,9,9] y) => (float[2,6,7,7] a, float[2,6,9,9] b) <float[6,3,3,3] W>
        { a = Conv(x, W) s = Add(x, y) b = Concat<axis=1>(s, x) }"""
    )
    build(drawing, target.load("qcs605:gpu"), tmp_path)
    program = tmp_path / "run_opencl"
    libraries = [path for path in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu") if Path(path).is_dir()]
    found = [file for folder in libraries for file in Path(folder).glob("libOpenCL.so*")]
    with resources.as_file(SOURCES / "run_opencl.c") as source:
        subprocess.run(["cc", "-Wall", "-Werror", "-O1", source, found[0], "-o", program], check=True)
    inputs = verify.probe_inputs(drawing, 0)
    files = [str(tmp_path / name) for name in ("x", "y", "a", "b")]
    for file, values in zip(files, inputs.values(), strict=False):
        values.tofile(file)
    done = subprocess.run([program, tmp_path, "2", *files], check=True, capture_output=True, text=True)
    assert len(done.stdout.split()) == 2, "milliseconds of each inference"
    for file, expected in zip(files[2:], Session(drawing).run(inputs).values(), strict=True):
        values = np.fromfile(file, np.float32).reshape(expected.shape)
        assert verify.difference(expected, values) < 5e-5
    (tmp_path / "x").write_bytes(b"?")
    refused = subprocess.run([program, tmp_path, *files], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.strip() == f"{files[0]}: 1 bytes, but the network reads 1944"
