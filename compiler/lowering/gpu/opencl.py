"""Running the kernels of a GPU here through OpenCL: on a GPU, or on this machine's processor with PoCL."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from nnc.errors import NncError, reason
from nnc.lowering.gpu.network import FILE

_HINT = "pip install pyopencl; apt install pocl-opencl-icd"


_Rows = tuple[Any, int, int]  # a buffer, where rows start in it, and how far they are apart, in bytes


class OpenCLLibrary:
    """The kernels of a compile, ready to run on the first OpenCL device of this machine."""

    def __init__(self, folder: Path, *, optimize: bool = True) -> None:
        """Raises NncError where there is no OpenCL device, where it can't compile the kernels, or has no room.

        Without `optimize` PoCL compiles several times faster, and the kernels run about ten times slower.
        """
        self._cl, self._context = _open()
        self._network = json.loads((folder / FILE).read_text("utf-8"))
        with self._told():
            self._queue = self._cl.CommandQueue(self._context)
            self._kernels = self._compile(folder / "kernels.cl", optimize)
            self._memory = self._allocate(folder / "weights.bin")
            sizes = (prod(step["copy"][:2]) for step in self._network["steps"] if "copy" in step)
            self._staging = self._room(max(sizes, default=0))

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for `inputs`, both in the model's order, with the shapes and dtypes it declares.

        Raises NncError where the device can't run them.
        """
        outputs = [np.empty(each["shape"], each["dtype"]) for each in self._network["outputs"]]
        with self._told():
            for index, values in enumerate(inputs):
                if values.size:
                    self._cl.enqueue_copy(self._queue, self._memory["input", index], np.ascontiguousarray(values))
            for step in self._network["steps"]:
                self._copy(step) if "copy" in step else self._launch(step)
            for index, values in enumerate(outputs):
                if values.size:
                    self._cl.enqueue_copy(self._queue, values, self._memory["output", index])
            self._queue.finish()
        return outputs

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What OpenCL refuses, as an NncError."""
        try:
            yield
        except self._cl.Error as error:
            raise NncError(f"OpenCL: {reason(error)}") from error

    def _compile(self, path: Path, optimize: bool) -> dict[str, Any]:
        source = path.read_text("utf-8")
        program = self._cl.Program(self._context, source)
        try:
            with warnings.catch_warnings(action="ignore"):  # compilers report on what they do
                program.build([] if optimize else ["-cl-opt-disable"], cache_dir=False)
        except self._cl.RuntimeError as error:
            raise NncError(f"{path}: this machine's OpenCL can't compile it: {reason(error)}") from error
        return {kernel.function_name: kernel for kernel in program.all_kernels()}

    def _allocate(self, weights: Path) -> dict[tuple[str, int], Any]:
        """The buffers: constants, activations, and one for each input and output."""
        network, room = self._network, self._room
        memory = {("workspace", 0): room(network["workspace"]), ("weights", 0): room(network["weights"])}
        for kind in ("input", "output"):
            memory |= {(kind, index): room(each["bytes"]) for index, each in enumerate(network[f"{kind}s"])}
        if network["weights"]:
            constants = np.fromfile(weights, np.uint8, network["weights"])
            self._cl.enqueue_copy(self._queue, memory["weights", 0], constants)
        return memory

    def _room(self, size: int) -> Any:
        return self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, max(size, 4))

    def _argument(self, argument: Sequence[Any]) -> Any:
        kind, index, offset, size = argument
        whole = self._memory[kind, index]
        return whole if offset == 0 else whole.get_sub_region(offset, size)

    def _launch(self, step: Mapping[str, Any]) -> None:
        kernel = self._kernels[step["kernel"]]
        extents = [groups * threads for groups, threads in zip(step["grid"], step["group"], strict=True)]
        kernel(self._queue, extents, step["group"], *map(self._argument, step["arguments"]))

    def _copy(self, step: Mapping[str, Any]) -> None:
        rows, size, source_stride, result_stride = step["copy"]
        (*source, start, _), (*result, place, _) = step["arguments"]
        read, written = self._memory[tuple(source)], self._memory[tuple(result)]
        if rows == 1:
            where = {"byte_count": size, "src_offset": start, "dst_offset": place}
            self._cl.enqueue_copy(self._queue, written, read, **where)
        elif source != result:
            self._copy_rows((read, start, source_stride), (written, place, result_stride), (size, rows, 1))
        else:  # within one buffer, OpenCL copies no rows to others that are further apart
            self._copy_rows((read, start, source_stride), (self._staging, 0, size), (size, rows, 1))
            self._copy_rows((self._staging, 0, size), (written, place, result_stride), (size, rows, 1))

    def _copy_rows(self, source: _Rows, result: _Rows, region: tuple[int, int, int]) -> None:
        (read, start, source_stride), (written, place, result_stride) = source, result
        self._cl.enqueue_copy(
            self._queue,
            written,
            read,
            src_origin=(start, 0, 0),
            dst_origin=(place, 0, 0),
            region=region,
            src_pitches=(source_stride, 0),
            dst_pitches=(result_stride, 0),
        )


def _open() -> tuple[Any, Any]:
    try:
        import pyopencl as cl
    except ImportError:
        raise NncError("running the kernels of a GPU here needs pyopencl, which is not installed", _HINT) from None
    try:
        devices = [device for platform in cl.get_platforms() for device in platform.get_devices()]
    except cl.Error as error:
        raise NncError(f"no OpenCL device is installed: {error}", _HINT) from None
    if not devices:
        raise NncError("no OpenCL device is installed", _HINT)
    return cl, cl.Context(devices[:1])
