"""NVIDIA's run-time compiler and assembler, as PyPI has them: CUDA C to PTX, and what each kernel takes.

Both are optional (`pip install nnc[cuda]`). Without the compiler there is no kernels.ptx, which CUDA's driver needs:
such a compile runs through OpenCL, and there is no package of it. Without the assembler nobody says what kernels take.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nnc.errors import NncError


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of a multiprocessor; None where no assembler says it."""

    registers: int | None
    """Of a thread."""
    shared_bytes: int | None
    """Of a group."""
    spilled_bytes: int | None
    """Of a thread, stored because registers ran out."""


def ptx(source: Path, architecture: str) -> str | None:
    """The PTX of a CUDA C file for a compute capability such as "sm_72"; None where NVRTC is not installed."""
    library = _file("cuda_nvrtc/lib/libnvrtc.so.12")
    if library is None:
        return None
    nvrtc = ctypes.CDLL(str(library))
    program = ctypes.c_void_p()
    text = source.read_bytes()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None), source)
    options = [
        f"--gpu-architecture={architecture.replace('sm_', 'compute_')}",
        "--std=c++17",
        "--device-as-default-execution-space",
    ]
    headers = _file("cuda_runtime/include")
    options += [f"--include-path={headers}"] if headers else []
    words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), words)
    if status:
        raise NncError(
            f"NVRTC can't compile {source.name} for {architecture}: {_complaint(_read(nvrtc, program, 'ProgramLog'))}"
        )
    made = _read(nvrtc, program, "PTX")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return made


def resources(source: Path, architecture: str) -> dict[str, Resources]:
    """What ptxas says of every kernel of a PTX file, by name; nothing where it is not installed."""
    ptxas = _file("cuda_nvcc/bin/ptxas")
    if ptxas is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="nnc-") as folder:
        command = [ptxas, f"-arch={architecture}", "-v", "-o", Path(folder) / "kernels.cubin", source]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise NncError(f"ptxas can't assemble the kernels for {architecture}: {_complaint(done.stderr)}")
    return parsed(done.stderr)


def parsed(report: str) -> dict[str, Resources]:
    """The report of `ptxas -v`: a paragraph for every kernel."""
    found = {}
    for name, text in re.findall(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", report, re.DOTALL):
        registers, shared = (re.search(rf"(\d+) {what}", text) for what in ("registers", r"bytes smem"))
        spilled = re.search(r"(\d+) bytes spill stores", text)
        values = [int(match[1]) if match else 0 for match in (registers, shared, spilled)]
        found[name] = Resources(*values)
    return found


def _file(name: str) -> Path | None:
    """A file of NVIDIA's packages on PyPI, which all install into one folder."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return next((root / name for root in roots if (root / name).exists()), None)


def _read(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, text)
    return text.value.decode(errors="replace")


def _check(status: int, source: Path) -> None:
    if status:
        raise NncError(f"NVRTC can't read {source.name}: status {status}")


def _complaint(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "no reason given")
