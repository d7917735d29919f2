"""The programs for boards: they are linked for AArch64, and what they do is checked on this machine."""

from __future__ import annotations

import ctypes
import subprocess
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from nnc import target, verify
from nnc.lowering.gpu import cuda, runner
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
    """Two inputs and three outputs, and rows that are copied, between buffers and within one."""
    drawing = graph(
        """g (float[2,3,9,9] x, float[2,3,9,9] y) => (float[2,6,7,7] a, float[2,6,9,9] b, float[2,3,9,9] c)
        <float[6,3,3,3] W, int64[2] sizes = {4, 5}>
        {
            a = Conv(x, W) s = Add(x, y) b = Concat<axis=1>(s, x)
            left, right = Split<axis=3>(s, sizes) turned = Concat<axis=3>(right, left) c = Neg(turned)
        }"""
    )
    build(drawing, target.load("qcs605:gpu"), tmp_path)
    program = tmp_path / "run_opencl"
    libraries = [path for path in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu") if Path(path).is_dir()]
    found = [file for folder in libraries for file in Path(folder).glob("libOpenCL.so*")]
    with resources.as_file(SOURCES / "run_opencl.c") as source:
        subprocess.run(["cc", "-Wall", "-Werror", "-O1", source, found[0], "-o", program], check=True)
    inputs = verify.probe_inputs(drawing, 0)
    files = [str(tmp_path / name) for name in ("x", "y", "a", "b", "c")]
    for file, values in zip(files, inputs.values(), strict=False):
        values.tofile(file)
    done = subprocess.run([program, tmp_path, "2", *files], check=True, capture_output=True, text=True)
    assert len(done.stdout.split()) == 2, "milliseconds of each inference"
    for file, expected in zip(files[2:], Session(drawing).run(inputs).values(), strict=True):
        values = np.fromfile(file, np.float32).reshape(expected.shape)
        assert verify.difference(expected, values) < 5e-5
    counted = "files are named, but the network has 2 inputs and 3 outputs"
    for words, message in (
        (files[:-1], f"4 {counted}"),
        ([*files, "z"], f"6 {counted}"),
        (["3", *files[:3]], f"3 {counted}"),
        (["0", *files], "REPEATS must be a number from 1 to 1000000000, not '0'"),
        (["99999999999999999999", *files], "REPEATS must be a number from 1 to 1000000000, not '99999999999999999999'"),
    ):
        wrong = subprocess.run([program, tmp_path, *words], capture_output=True, text=True)
        assert (wrong.returncode, wrong.stderr.strip()) == (1, message)
    (tmp_path / "x").write_bytes(b"?")
    refused = subprocess.run([program, tmp_path, *files], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.strip() == f"{files[0]}: 1 bytes, but the network reads 1944"


# What libcuda does where there is no GPU: memory is the host's, and there are no kernels.
DRIVER = r"""
#include <stdlib.h>
#include <string.h>
typedef unsigned long long CUdeviceptr;
typedef struct {
  size_t srcXInBytes, srcY; int srcMemoryType; const void* srcHost; CUdeviceptr srcDevice; void* srcArray;
  size_t srcPitch;
  size_t dstXInBytes, dstY; int dstMemoryType; void* dstHost; CUdeviceptr dstDevice; void* dstArray;
  size_t dstPitch;
  size_t WidthInBytes, Height;
} CUDA_MEMCPY2D;
int copies;
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int number) { return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { return 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuModuleLoadData(void** module, const void* text) { return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) { return 500; }
int cuLaunchKernel() { return 500; }
int cuGetErrorString(int status, const char** text) { return *text = "not found", 0; }
int cuMemAlloc_v2(CUdeviceptr* memory, size_t bytes) { return *memory = (CUdeviceptr)malloc(bytes), 0; }
int cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) { return memcpy((void*)to, from, bytes), 0; }
int cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) { return memcpy(to, (void*)from, bytes), 0; }
int cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* copy, void* stream) {
  if (copy->srcMemoryType != 2 || copy->dstMemoryType != 2) return 1;
  if (copy->srcPitch < copy->WidthInBytes || copy->dstPitch < copy->WidthInBytes) return 1;
  for (size_t row = 0; row < copy->Height; ++row)
    memcpy((char*)copy->dstDevice + (copy->dstY + row) * copy->dstPitch + copy->dstXInBytes,
           (char*)copy->srcDevice + (copy->srcY + row) * copy->srcPitch + copy->srcXInBytes, copy->WidthInBytes);
  ++copies;
  return 0;
}
"""


def test_cuda_copies_rows_at_once(tmp_path: Path) -> None:
    """By the program for boards, and from Python: a driver whose memory is the host's stands for a GPU's."""
    drawing = graph(
        """g (float[2,3,7] x) => (float[2,3,3] a, float[2,3,4] b, float[2,3,7] c) <int64[2] sizes = {3, 4}>
        { a, b = Split<axis=2>(x, sizes) c = Concat<axis=2>(b, a) }"""
    )
    build(drawing, target.load("jetson-xavier:gpu"), tmp_path)
    (tmp_path / "kernels.ptx").touch()
    (tmp_path / "driver.c").write_text(DRIVER)
    made = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-O1", tmp_path / "driver.c", "-o", made], check=True)
    inputs = verify.probe_inputs(drawing, 0)
    expected = list(Session(drawing).run(inputs).values())

    files = [str(tmp_path / name) for name in ("x", "a", "b", "c")]
    inputs["x"].tofile(files[0])
    with resources.as_file(SOURCES / "run_cuda.c") as source:
        flags = ["-Wall", "-Werror", "-O1", f"-Wl,-rpath,{tmp_path}", "-o", tmp_path / "run_cuda"]
        subprocess.run(["cc", source, made, *flags], check=True)
    subprocess.run([tmp_path / "run_cuda", tmp_path, *files], check=True)
    for file, array in zip(files[1:], expected, strict=True):
        np.testing.assert_array_equal(np.fromfile(file, np.float32).reshape(array.shape), array)

    driver = ctypes.CDLL(str(made))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cuda, "driver", lambda: driver)
        found = cuda.CudaLibrary(tmp_path).run([inputs["x"]])
    for array, values in zip(expected, found, strict=True):
        np.testing.assert_array_equal(values, array)
    assert ctypes.c_int.in_dll(driver, "copies").value == 4
