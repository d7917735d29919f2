"""Arrays of an .npz, read row by row, and samples that are ready for the model."""

import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import onnx_graphsurgeon as gs

from nnc.errors import NncError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

#: Where the header of a member says how long its name and its extra field are, which follow, and the data then.
_LENGTHS = 26

BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError, RuntimeError)


class Member:
    """One array of an .npz, read row by row: the file may be larger than memory."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._file_name = path, f"{name}.npy"
        self._place = f"{path}: '{name}'"
        try:
            with zipfile.ZipFile(path) as archive, archive.open(self._file_name) as file:
                read_header = _HEADERS[np.lib.format.read_magic(file)]
                self.shape, fortran, self.dtype = read_header(file)
                self._start = file.tell()
                info = archive.getinfo(self._file_name)
                self._bytes, self._stored_at = info.file_size, _stored_at(path, info)
        except BROKEN as error:
            raise NncError(f"{self._place} is not a readable array", "write the file with numpy.savez") from error
        if self.dtype.kind not in "biuf":
            kind = "pickled objects" if self.dtype.hasobject else str(self.dtype)
            raise NncError(f"{self._place} holds {kind}, not numbers", "objects are never loaded: they can run code")
        if not self.shape:
            raise NncError(f"{self._place} is a single number, not an array of samples")
        if fortran and len(self.shape) > 1:
            raise NncError(f"{self._place} is stored in Fortran order", "save numpy.ascontiguousarray(...) of it")

    def rows(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """The rows at `indices`. Ascending ones of a compressed array cost one pass through it, others one each."""
        indices = list(indices)
        size = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        with self._opened(whole=indices == list(range(self.shape[0]))) as (file, origin):
            for index in indices:
                data = self._read(file, origin, self._start + index * size, size)
                yield np.frombuffer(data, self.dtype).reshape(self.shape[1:])

    def values(self) -> np.ndarray:
        with self._opened(whole=True) as (file, origin):
            size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
            return np.frombuffer(self._read(file, origin, self._start, size), self.dtype).reshape(self.shape)

    @contextmanager
    def _opened(self, whole: bool) -> Iterator[tuple[IO[bytes], int]]:
        """What the array is read from, and where it begins there.

        Where it isn't compressed and not read as a whole, that is the file itself, in which every place is as near.
        Python's reader of archives checks the sum of what it reads from the begin to the end, and goes back to the
        begin for what lies behind it.
        """
        if self._stored_at is not None and not whole:
            with open(self._path, "rb") as file:
                yield file, self._stored_at
        else:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._file_name) as member:
                yield member, 0

    def _read(self, file: IO[bytes], origin: int, start: int, count: int) -> bytes:
        if start + count > self._bytes:
            raise NncError(f"{self._place} is damaged: it ends early")
        try:
            file.seek(origin + start)
            data = file.read(count)
        except BROKEN as error:
            raise NncError(f"{self._place} is damaged: {error}") from error
        if len(data) != count:
            raise NncError(f"{self._place} is damaged: it ends early")
        return data


def _stored_at(path: Path, info: zipfile.ZipInfo) -> int | None:
    """Where the bytes of a member begin in the archive; None where they are compressed or encrypted."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return None
    with open(path, "rb") as file:
        file.seek(info.header_offset + _LENGTHS)
        return info.header_offset + _LENGTHS + 4 + sum(struct.unpack("<HH", file.read(4)))


def _require_batch(path: Path, inputs: Sequence[gs.Variable]) -> None:
    """Refuse inputs of which samples can't be parts: all must begin with the same batch."""
    sizes = {tensor.name: tensor.shape[0] if tensor.shape else "a single number" for tensor in inputs}
    if len(set(sizes.values())) > 1 or "a single number" in sizes.values():
        found = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
        hint = "samples are along the first dimension of all inputs; --shape fixes open ones"
        raise NncError(f"{path}: the inputs of the model have no batch in common: {found}", hint)


class Tensors:
    """Arrays that are ready for the model, one per graph input."""

    def __init__(self, path: Path, arrays: Mapping[str, Member], inputs: Sequence[gs.Variable]) -> None:
        _require_batch(path, inputs)
        for tensor in inputs:
            shape = arrays[tensor.name].shape
            if shape[1:] != tuple(tensor.shape[1:]):
                wanted = ["N", *tensor.shape[1:]]
                raise NncError(
                    f"{path}: '{tensor.name}' is {brackets(shape)}, but the model's input is {brackets(wanted)}"
                )
        lengths = {name: array.shape[0] for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
            raise NncError(f"{path}: the inputs have different numbers of samples: {found}")
        self._path = path
        self._arrays = arrays
        self._dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in inputs}

    def __len__(self) -> int:
        return next(iter(self._arrays.values())).shape[0]

    def samples(self, indices: Iterable[int]) -> Iterator[dict[str, np.ndarray]]:
        indices = list(indices)
        for index, *rows in zip(indices, *(array.rows(indices) for array in self._arrays.values()), strict=True):
            sample = dict(zip(self._arrays, rows, strict=True))
            for name, row in sample.items():
                if row.dtype.kind == "f" and np.isnan(row).any():
                    hint = "leave the sample out, or prepare it anew"
                    raise NncError(f"{self._path}: '{name}' of sample {index} holds NaN", hint)
            yield {name: row.astype(self._dtypes[name], copy=False) for name, row in sample.items()}


def brackets(shape: Sequence[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"
