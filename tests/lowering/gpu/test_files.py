"""What a compile for a GPU leaves behind, and what is said where a tool is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from nnc import target, verify
from nnc.artifact import Artifact
from nnc.cli import app
from nnc.errors import NncError
from nnc.lowering.gpu import nvrtc, opencl
from nnc.lowering.gpu.build import GpuKernel, build
from nnc.lowering.gpu.unit import Gpu
from nnc.session import Session
from nnc.testing import graph, model

TEXT = """g (float[1,3,9,9] x) => (float[1,4] y) <float[8,3,3,3] W, float[8] b, float[4,8] V>
    { c = Conv(x, W, b) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, V) }"""


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["qcs605:gpu", "jetson-xavier:gpu"])
def test_a_compiled_folder_runs(pocl: None, tmp_path: Path, spec: str) -> None:
    onnx.save(model(TEXT), tmp_path / "model.onnx")
    command = ["compile", "simplify", str(tmp_path / "model.onnx"), "--target", spec, "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--quiet"], catch_exceptions=False)
    assert done.exit_code == 0
    artifact = Artifact.open(tmp_path / "out")
    assert artifact.has_library
    assert {"kernels.cl", "network.json", "weights.bin"} <= set(artifact.report["files"])
    inputs = artifact.random_inputs()
    (expected,) = Session(graph(TEXT)).run(inputs).values()
    assert verify.difference(expected, artifact.run(inputs)["y"]) < 5e-5
    (tmp_path / "out" / "weights.bin").write_bytes(b"?")
    with pytest.raises(NncError, match=r"weights\.bin: not the file that the compile wrote"):
        artifact.run(inputs)


def test_network_json_says_what_lies_where(tmp_path: Path) -> None:
    built = build(graph(TEXT), target.load("qcs605:gpu"), tmp_path)
    network = json.loads((tmp_path / "network.json").read_text())
    assert network["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 3, 9, 9], "bytes": 972}]
    assert network["workspace"] == built.workspace_bytes
    assert network["weights"] == (tmp_path / "weights.bin").stat().st_size
    sizes = {"workspace": network["workspace"], "weights": network["weights"], "input": 972, "output": 16}
    for step in network["steps"]:
        assert np.prod(step["group"]) <= 256
        for memory, index, offset, size in step["arguments"]:
            assert index == 0
            assert offset % Gpu.alignment == 0, "OpenCL's drivers want it of a part of a buffer"
            assert offset + size <= sizes[memory]


def test_what_the_device_refuses_is_one_line(pocl: None, tmp_path: Path) -> None:
    build(graph(TEXT), target.load("qcs605:gpu"), tmp_path)
    network = json.loads((tmp_path / "network.json").read_text())
    (tmp_path / "network.json").write_text(json.dumps(network | {"workspace": 2**60}))
    with pytest.raises(NncError, match=r"^OpenCL: .*(?i:size|alloc)"):
        opencl.OpenCLLibrary(tmp_path, optimize=False)
    (step, *_) = network["steps"]
    step["group"] = [2**20, 1, 1]
    (tmp_path / "network.json").write_text(json.dumps(network))
    with pytest.raises(NncError, match=r"^OpenCL: "):
        opencl.OpenCLLibrary(tmp_path, optimize=False).run([np.zeros((1, 3, 9, 9), np.float32)])


def test_equal_weights_are_written_once(tmp_path: Path) -> None:
    text = """g (float[1,4,9,9] x) => (float[1,4,7,7] y, float[1,4,7,7] z) <float[4,4,3,3] V, float[4,4,3,3] W>
        { y = Conv(x, V) a = Relu(x) z = Conv(a, W) }"""
    W = np.ones((4, 4, 3, 3), np.float32)
    built = build(graph(text, V=W, W=W), target.load("qcs605:gpu"), tmp_path)
    assert built.weight_bytes == W.nbytes == (tmp_path / "weights.bin").stat().st_size


def test_the_assembler_says_what_kernels_take(tmp_path: Path) -> None:
    built = build(graph(TEXT), target.load("jetson-xavier:gpu"), tmp_path)
    if not (tmp_path / "kernels.ptx").exists():
        pytest.skip("pip install nnc[cuda]: no NVRTC")
    assert ".target sm_72" in (tmp_path / "kernels.ptx").read_text()
    for kernel in built.kernels:
        assert isinstance(kernel, GpuKernel)
        if kernel.registers is None:
            pytest.skip("pip install nnc[cuda]: no ptxas")
        assert kernel.spilled_bytes == 0
        assert kernel.threads * kernel.registers <= 65536, "registers of a multiprocessor"


def test_the_report_of_the_assembler() -> None:
    text = """ptxas info    : Compiling entry function 'conv2d_0_kernel' for 'sm_72'
ptxas info    : Function properties for conv2d_0_kernel
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 110 registers, used 1 barriers, 9216 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'gemm_1_kernel' for 'sm_72'
ptxas info    : Function properties for gemm_1_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, 380 bytes cmem[0]
"""
    assert nvrtc.parsed(text) == {
        "conv2d_0_kernel": nvrtc.Resources(110, 9216, 12),
        "gemm_1_kernel": nvrtc.Resources(24, 0, 0),
    }


def test_without_nvrtc_there_is_only_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_file", lambda name: None)
    built = build(graph(TEXT), target.load("jetson-xavier:gpu"), tmp_path)
    names = ["kernels.cl", "kernels.cu", "network.json", "weights.bin"]
    assert [file.name for file in built.files] == names


def test_without_pyopencl_the_way_to_get_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(graph(TEXT), target.load("qcs605:gpu"), tmp_path)
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(NncError, match="needs pyopencl") as caught:
        opencl.OpenCLLibrary(tmp_path)
    assert caught.value.hint == "pip install pyopencl; apt install pocl-opencl-icd"


WRONG = [
    ("arch", "sm72", "board: unit 'gpu': tvm: 'arch' must be a compute capability"),
    ("max_threads_per_block", 0, "board: unit 'gpu': tvm: 'max_threads_per_block' must be a number from 1 on"),
    ("max_shared_memory_per_block", "48k", "board: unit 'gpu': tvm: 'max_shared_memory_per_block' must be a number"),
    ("archh", "sm_72", "board: unit 'gpu': tvm: "),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_wrong_figures_of_a_gpu(tmp_path: Path, key: str, value: object, message: str) -> None:
    given = target.load("jetson-xavier:gpu")
    unit = given.unit.model_copy(update={"tvm": given.unit.tvm | {key: value}})
    wrong = given.model_copy(update={"name": "board", "unit": unit})
    with pytest.raises(NncError) as caught:
        build(graph(TEXT), wrong, tmp_path)
    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == []
