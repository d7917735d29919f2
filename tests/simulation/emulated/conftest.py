"""What the tests of the emulation need: its tools, and kernels in C that are called as TVM's are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nnc import target
from nnc.errors import NncError
from nnc.lowering import cross
from nnc.simulation import emulated

QCS605 = target.load("qcs605")


@pytest.fixture(scope="session")
def tools() -> None:
    """Skips where QEMU with plugins or llvm-mca is missing."""
    try:
        emulated.require(QCS605)
    except NncError as error:
        pytest.skip(error.message)


# What TVM hands to a kernel, as far as these need it: 16 bytes per argument, of which the second 8 point to an array,
# whose first 8 bytes point to its numbers.
_KERNEL = """
#include <stddef.h>
#include <stdint.h>
typedef struct { int64_t type; float** array; } Argument;
int (*__TVMBackendParallelLaunch)(int (*)(int, void*, void*), void*, int);
int __tvm_ffi_kernel(void* self, const Argument* arguments, int32_t count, void* result) { %s return 0; }
"""


@pytest.fixture
def kernel(tmp_path: Path, tools: None) -> Callable[..., Path]:
    """A library with one kernel, from the C code of its body and what stands before it."""

    def make(body: str, before: str = "", flags: tuple[str, ...] = ("-O2",), architecture: str = "aarch64") -> Path:
        source, library = tmp_path / "kernel.c", tmp_path / "kernel.so"
        head, _, last = _KERNEL.rpartition("int __tvm_ffi_kernel")
        source.write_text(f"{head}{before}\nint __tvm_ffi_kernel{last % body}")
        flags = (*flags, "-shared", "-fPIC", "-fno-builtin")
        cross.run([*cross.compiler(architecture), *flags, source, "-o", library])
        return library

    return make
