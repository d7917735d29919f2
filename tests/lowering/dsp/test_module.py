"""The object that a compile for a DSP leaves: what it asks for, what runs it, and what can't be done."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from nnc import evaluation, lowering, package, recipe, target, testing
from nnc import graph as graphs
from nnc.artifact import Artifact
from nnc.compiling import compilation
from nnc.compiling.compilation import Job
from nnc.errors import NncError
from nnc.lowering.dsp import emulate

QCS605 = target.load("qcs605:dsp")

FLOATS = """
net (float[1, 3, 12, 12] image) => (float[1, 10] scores)
<float[16, 3, 3, 3] W, float[16, 1, 3, 3] D, float[10, 16] G, float[10] b>
{
    c = Conv<pads = [1, 1, 1, 1]>(image, W)
    r = Relu(c)
    d = Conv<group = 16>(r, D)
    p = GlobalAveragePool(d)
    f = Flatten(p)
    g = Gemm<transB = 1>(f, G, b)
    scores = Softmax(g)
}
"""


def silent(step: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a compile of a quantized network."""
    folder = tmp_path_factory.mktemp("compiled")
    onnx.save(testing.model(FLOATS), folder / "model.onnx")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 12, 12, 3), np.uint8), rng.integers(0, 10, 6)
    np.savez(folder / "images.npz", images=images, labels=labels)
    read = recipe.load("quantize", data=[f"calibration={folder / 'images.npz'}"])
    compilation.compile_model(Job(read, folder / "model.onnx", QCS605, folder / "out", {}))
    return folder / "out"


def test_a_compile_runs_and_says_what_computes_it(compiled: Path, qemu: None) -> None:
    artifact = Artifact.open(compiled)
    assert artifact.library_path == compiled / "module.o"
    assert artifact.runtime == "the library for hexagon, emulated: exact int8 sums in 3 of 3 layers"
    assert {kernel["dtype"] for kernel in artifact.report["kernels"] if kernel["template"] == "dsp_conv2d"} == {"uint8"}
    assert any("FastRPC" in remark for remark in artifact.report["remarks"])
    inputs = artifact.random_inputs()
    (found,) = artifact.run(inputs).values()
    from nnc.session import Session

    (expected,) = Session(graphs.load(artifact.model_path)).run(inputs).values()
    assert np.abs(found - expected).max() < 0.02


def test_the_accuracy_in_the_emulator_is_that_of_the_model(compiled: Path, qemu: None) -> None:
    measured = [
        evaluation.evaluate(path, compiled.parent / "images.npz", {}, {}, progress=silent)
        for path in (compiled, compiled / "model.onnx")
    ]
    assert measured[0].count == 6
    assert abs(measured[0].top1 - measured[1].top1) <= 1 / 6


def test_a_package_checks_itself_and_tells_how_to_link(compiled: Path, qemu: None, tmp_path: Path) -> None:
    made = package.package(compiled, tmp_path / "net.tar.gz", silent)
    with tarfile.open(made.path) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / made.folder
    assert {"module.o", "run", "input.npy", "expected.npy", "source/nnc.h", "source/runtime.c"} <= set(made.files)
    assert (made.command, made.place) == ("qemu-hexagon ./run --check", "here, in QEMU")
    done = subprocess.run([emulate.emulator(), "./run", "--check"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (folder / "README.md").read_text("utf-8")
    assert "Hexagon SDK" in text
    assert "FastRPC" in text


def test_the_object_can_be_part_of_a_shared_library(compiled: Path, tmp_path: Path) -> None:
    """As a skeleton of FastRPC is: code does not depend on where it is loaded."""
    linker = [sys.executable, "-m", "ziglang", "ld.lld", "-m", "hexagonelf", "-shared"]
    done = subprocess.run([*linker, compiled / "module.o", "-o", tmp_path / "skel.so"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_floats_are_right_but_one_at_a_time(qemu: None, compare: Callable[..., Any]) -> None:
    built = compare(testing.graph(FLOATS))
    assert {kernel.template for kernel in built.kernels} == {"conv2d", "depthwise", "average_pool", "gemm", "softmax"}


def test_plan_says_that_floats_are_slow(compiled: Path) -> None:
    job = Job(recipe.load("simplify"), compiled.parent / "model.onnx", QCS605, compiled.parent / "none", {})
    remarks = compilation.plan(job)["remarks"]
    assert any("3 layers with 100.0 % of the MACs would compute in floats, one value at a time" in r for r in remarks)


def test_an_open_batch_is_one(tmp_path: Path) -> None:
    text = FLOATS.replace("float[1, 3, 12, 12]", "float[N, 3, 12, 12]").replace("float[1, 10] s", "float[N, 10] s")
    onnx.save(testing.model(text), tmp_path / "model.onnx")
    job = Job(recipe.load("simplify"), tmp_path / "model.onnx", QCS605, tmp_path / "out", {}, lower=False)
    assert compilation.compile_model(job)["model"]["inputs"][0]["shape"] == [1, 3, 12, 12]


def test_no_emulator_is_one_line(monkeypatch: pytest.MonkeyPatch, compiled: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NncError, match="qemu-hexagon is not installed") as caught:
        Artifact.open(compiled).library()
    assert caught.value.hint == "apt install qemu-user"


def test_no_linker_is_one_line_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, draft: Any) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ziglang" else found(name))
    draft.output(draft.q(draft.add("Relu", draft.input(1, 8))))
    graph: gs.Graph = draft.graph()
    with pytest.raises(NncError, match="no compiler that links for hexagon") as caught:
        lowering.build(graph, QCS605, tmp_path)
    assert caught.value.hint == "pip install ziglang"
    assert not list(tmp_path.iterdir())


def test_a_damaged_object_is_one_line(compiled: Path, tmp_path: Path) -> None:
    shutil.copytree(compiled, tmp_path / "out")
    (tmp_path / "out" / "module.o").write_bytes(b"half")
    with pytest.raises(NncError, match=r"module\.o: not the file that the compile wrote"):
        Artifact.open(tmp_path / "out").library()
