"""Running PTX on a GPU of this machine, through the driver's own interface (libcuda, no toolkit)."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnc.errors import NncError
from nnc.lowering.gpu.network import FILE

Pointer = ctypes.c_uint64  # CUdeviceptr


def driver() -> ctypes.CDLL | None:
    """NVIDIA's driver, if it is here and has a GPU."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    ready = library.cuInit(0) == 0 and library.cuDeviceGetCount(ctypes.byref(count)) == 0
    return library if ready and count.value else None


_ON_DEVICE = 2  # CU_MEMORYTYPE_DEVICE


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = (
        ("sourceX", ctypes.c_size_t),
        ("sourceY", ctypes.c_size_t),
        ("sourceType", ctypes.c_int),
        ("sourceHost", ctypes.c_void_p),
        ("source", Pointer),
        ("sourceArray", ctypes.c_void_p),
        ("sourcePitch", ctypes.c_size_t),
        ("resultX", ctypes.c_size_t),
        ("resultY", ctypes.c_size_t),
        ("resultType", ctypes.c_int),
        ("resultHost", ctypes.c_void_p),
        ("result", Pointer),
        ("resultArray", ctypes.c_void_p),
        ("resultPitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("rows", ctypes.c_size_t),
    )


class CudaLibrary:
    """The kernels of a compile on the first GPU of this machine."""

    def __init__(self, folder: Path) -> None:
        """Raises NncError where there is no GPU, or where its driver refuses the kernels."""
        found = driver()
        if found is None:
            raise NncError("no GPU that runs CUDA is here", "without one, the same kernels run through OpenCL")
        self._cuda = found
        device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._call("cuCtxSetCurrent", self._context)
        self._network = json.loads((folder / FILE).read_text("utf-8"))
        self._module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(self._module), (folder / "kernels.ptx").read_bytes() + b"\0")
        self._kernels: dict[str, ctypes.c_void_p] = {}
        self._memory = self._allocate(folder / "weights.bin")

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for `inputs`, both in the model's order, with the shapes and dtypes it declares."""
        for index, values in enumerate(inputs):
            self._upload(self._memory["input", index], np.ascontiguousarray(values))
        for step in self._network["steps"]:
            self._copy(step) if "copy" in step else self._launch(step)
        outputs = [np.empty(each["shape"], each["dtype"]) for each in self._network["outputs"]]
        for index, values in enumerate(outputs):
            if values.size:
                source = Pointer(self._memory["output", index])
                self._call(
                    "cuMemcpyDtoH_v2", ctypes.c_void_p(values.ctypes.data), source, ctypes.c_size_t(values.nbytes)
                )
        return outputs

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._cuda, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(status, ctypes.byref(text))
            raise NncError(f"CUDA: {function}: {(text.value or b'unknown error').decode()}")

    def _allocate(self, weights: Path) -> dict[tuple[str, int], int]:
        """The addresses of constants, activations, inputs and outputs."""
        network = self._network
        sizes = {("workspace", 0): network["workspace"], ("weights", 0): network["weights"]}
        for kind in ("input", "output"):
            sizes |= {(kind, index): each["bytes"] for index, each in enumerate(network[f"{kind}s"])}
        memory = {}
        for key, size in sizes.items():
            pointer = Pointer()
            self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 4)))
            memory[key] = pointer.value
        self._upload(memory["weights", 0], np.fromfile(weights, np.uint8, network["weights"]))
        return memory

    def _upload(self, pointer: int, values: np.ndarray) -> None:
        if values.size:
            source = ctypes.c_void_p(values.ctypes.data)
            self._call("cuMemcpyHtoD_v2", Pointer(pointer), source, ctypes.c_size_t(values.nbytes))

    def _address(self, argument: Sequence[Any]) -> int:
        kind, index, offset, _ = argument
        return self._memory[kind, index] + int(offset)

    def _launch(self, step: Mapping[str, Any]) -> None:
        name = step["kernel"]
        if name not in self._kernels:
            kernel = ctypes.c_void_p()
            self._call("cuModuleGetFunction", ctypes.byref(kernel), self._module, name.encode())
            self._kernels[name] = kernel
        values = [Pointer(self._address(argument)) for argument in step["arguments"]]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        extents = [ctypes.c_uint(extent) for extent in (*step["grid"], *step["group"], 0)]
        self._call("cuLaunchKernel", self._kernels[name], *extents, None, pointers, None)

    def _copy(self, step: Mapping[str, Any]) -> None:
        rows, size, source_stride, result_stride = step["copy"]
        source, result = map(self._address, step["arguments"])
        copied = _Copy2D(
            sourceType=_ON_DEVICE,
            source=source,
            sourcePitch=source_stride or size,
            resultType=_ON_DEVICE,
            result=result,
            resultPitch=result_stride or size,
            width=size,
            rows=rows,
        )
        self._call("cuMemcpy2DAsync_v2", ctypes.byref(copied), None)
