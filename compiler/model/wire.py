"""ONNX files without copies: read a model as a small skeleton plus memory-mapped weights, and stream it back.

`onnx.load` holds the bytes of a file and the parsed model at the same time, and `onnx.save` as much again: four times a
553 MB network. Here the file is scanned once in the protobuf wire format (https://protobuf.dev/programming-guides/encoding);
everything but the large initializers is parsed, and the weights stay where they are until somebody touches them.
"""

import glob
import math
import mmap
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from nnc.errors import NncError

# Field numbers of onnx.proto.
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_RAW_DATA = 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

#: Initializers up to this many bytes stay in the skeleton: shape inference wants to see shapes, axes and scalars.
INLINE_BYTES = 1024

#: Protobuf refuses messages from 2 GiB on; a model with more weights gets them in a file beside it.
MAX_MESSAGE_BYTES = 2**31 - 1


#: Of each initializer, the first byte and the end of its raw data where that was left in the file.
Spans = list[tuple[int, int] | None]


@dataclass(frozen=True)
class _Map:
    """A file in memory, from address `start` on; `stamp` tells whether it is still the one on disk."""

    pages: mmap.mmap
    data: weakref.ref[np.ndarray]
    start: int
    stamp: tuple[int, ...]


#: The files whose bytes somebody holds.
_maps: dict[Path, _Map] = {}


def map_file(path: Path) -> np.ndarray:
    """The bytes of `path` as a read-only uint8 array that lives on disk until it is touched."""
    data = _maps[path].data() if is_current(path) else None
    if data is None:
        with open(path, "rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data, stamp = np.frombuffer(pages, np.uint8), _stamp(path)
        _maps[path] = _Map(pages, weakref.ref(data), data.ctypes.data, stamp)
        weakref.finalize(data, _forget, path, stamp)
    return data


def _forget(path: Path, stamp: tuple[int, ...]) -> None:
    """Let go of a file, and of its descriptor, when nobody holds its bytes any more."""
    if path in _maps and _maps[path].stamp == stamp:
        del _maps[path]


def is_current(path: Path) -> bool:
    """Whether `path` is mapped and is still the file that it was then."""
    return path in _maps and path.exists() and _maps[path].stamp == _stamp(path)


def _stamp(path: Path) -> tuple[int, ...]:
    stat = os.stat(path)
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def release_pages() -> None:
    """Let the system drop the pages of mapped files that were read; they are read again when somebody needs them."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapped in list(_maps.values()):
            mapped.pages.madvise(mmap.MADV_DONTNEED)


def origin(array: np.ndarray) -> tuple[Path, int] | None:
    """The file and byte offset that a contiguous `array` is a view of, or None when it lives in memory."""
    if not array.flags.c_contiguous:
        return None
    address = array.ctypes.data
    for path, mapped in list(_maps.items()):
        if mapped.start <= address and address + array.nbytes <= mapped.start + len(mapped.pages):
            return path, address - mapped.start
    return None


def read(path: Path) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Read an ONNX file: its model without the large initializers' data, and these as arrays mapped from the file.

    The initializers stay in the model, in order, with dims and dtype. External data is mapped from its own file.
    """
    if path.stat().st_size == 0:
        raise NncError(f"{path}: the file is empty")
    data = map_file(path)
    if data[:40].tobytes().startswith(b"version https://git-lfs"):
        raise NncError(f"{path}: a Git LFS pointer, not the model itself", "git lfs pull fetches the model")
    try:
        skeleton, spans = _skeleton(data.data)
        model = onnx.ModelProto.FromString(skeleton)
    except (_Malformed, ValueError, DecodeError) as error:
        raise NncError(f"{path}: not an ONNX model, or a damaged one", "export or copy the file again") from error
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise NncError(f"{path}: not an ONNX model, or a damaged one", "export or copy the file again")
    return model, _weights(path, model, data, spans)


def _skeleton(data: memoryview) -> tuple[bytes, Spans]:
    """The model's bytes without large raw data, and what was left out."""
    parts, spans = [], Spans()
    for field, start, end, begin in _fields(data, 0, len(data)):
        if field == _MODEL_GRAPH:
            graph = _graph_skeleton(data, start, end, spans)
            parts.append(_record_header(_MODEL_GRAPH, len(graph)) + graph)
        else:
            parts.append(bytes(data[begin:end]))
    return b"".join(parts), spans


def _graph_skeleton(data: memoryview, start: int, end: int, spans: Spans) -> bytes:
    parts = []
    for field, first, last, begin in _fields(data, start, end):
        if field == _GRAPH_INITIALIZER:
            tensor = _tensor_skeleton(data, first, last, spans)
            parts.append(_record_header(_GRAPH_INITIALIZER, len(tensor)) + tensor)
        else:
            parts.append(bytes(data[begin:last]))
    return b"".join(parts)


def _tensor_skeleton(data: memoryview, start: int, end: int, spans: Spans) -> bytes:
    spans.append(None)
    if end - start <= INLINE_BYTES:
        return bytes(data[start:end])
    parts = []
    for field, first, last, begin in _fields(data, start, end):
        if field == _TENSOR_RAW_DATA:
            spans[-1] = (first, last)
        else:
            parts.append(bytes(data[begin:last]))
    return b"".join(parts)


def _weights(path: Path, model: onnx.ModelProto, data: np.ndarray, spans: Spans) -> dict[str, np.ndarray]:
    weights = {}
    for tensor, span in zip(model.graph.initializer, spans, strict=True):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            weights[tensor.name] = _external(path, tensor)
        elif span is not None:
            weights[tensor.name] = view(tensor, data[slice(*span)], path)
        else:
            weights[tensor.name] = parse(tensor, path)
    return weights


def parse(tensor: onnx.TensorProto, path: Path | str = "model") -> np.ndarray:
    """The array that a tensor holds itself."""
    try:
        if min(tensor.dims, default=0) < 0:
            raise ValueError("a negative dimension")
        return onnx.numpy_helper.to_array(tensor)
    except (KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise NncError(
            f"{path}: the data of initializer '{tensor.name}' does not fit its type and shape {list(tensor.dims)}",
            "export the model again",
        ) from error


def view(tensor: onnx.TensorProto, raw: np.ndarray, path: Path | str = "model") -> np.ndarray:
    """`raw` bytes as the array that `tensor` declares; without a copy unless its elements are packed."""
    shape = tuple(tensor.dims)
    if tensor.data_type in _PACKED:
        return parse(onnx.TensorProto(name=tensor.name, dims=shape, data_type=tensor.data_type, raw_data=raw.tobytes()))
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except KeyError as error:
        raise NncError(f"{path}: initializer '{tensor.name}' has an unknown type, {tensor.data_type}") from error
    if min(shape, default=0) < 0 or raw.size != dtype.itemsize * math.prod(shape):
        wanted = f"{dtype} of shape {list(shape)}"
        raise NncError(f"{path}: initializer '{tensor.name}' holds {raw.size} bytes, which do not make a {wanted}")
    return raw.view(dtype).reshape(shape) if raw.ctypes.data % dtype.alignment == 0 else _aligned(raw, dtype, shape)


def _aligned(raw: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A view at an odd address: numpy reads it correctly, only more slowly, so nothing is copied."""
    return np.ndarray(shape, dtype, buffer=raw.data)


_PACKED = {
    value
    for name, value in onnx.TensorProto.DataType.items()
    if name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2", "STRING")
}


def _external(path: Path, tensor: onnx.TensorProto) -> np.ndarray:
    """The array of an initializer whose data lies in a file of its own."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = Path(entries.get("location", ""))
    file = path.parent / location
    if location.is_absolute() or ".." in location.parts:
        raise NncError(f"{path}: initializer '{tensor.name}' lies outside the model's folder, in '{location}'")
    if not file.is_file():
        raise NncError(f"{path}: '{location}', which holds its weights, is missing", f"put it beside {path.name}")
    raw = map_file(file) if file.stat().st_size else np.empty(0, np.uint8)
    try:
        start = int(entries.get("offset", 0))
        end = start + int(entries.get("length", raw.size - start))
    except ValueError as error:
        raise NncError(f"{path}: the place of initializer '{tensor.name}' in '{location}' is no number") from error
    if not 0 <= start <= end <= raw.size:
        raise NncError(f"{file}: ends before the data of initializer '{tensor.name}'", "copy the file again")
    return view(tensor, raw[start:end], path)


def write(path: Path, skeleton: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> list[Path]:
    """Stream a model to `path`; returns the files written (two when the weights exceed protobuf's 2 GiB).

    `skeleton` has no initializer named in `weights`. Files are written beside their place and renamed, so that an
    interrupted write leaves the old ones.
    """
    skeleton = onnx.ModelProto.FromString(skeleton.SerializeToString(deterministic=True))
    tensors = [(_tensor_header(name, values), values) for name, values in weights.items()]
    if skeleton.ByteSize() + sum(values.nbytes for _, values in tensors) > MAX_MESSAGE_BYTES - 2**20:
        return _write_external(path, skeleton, weights)
    graph = skeleton.graph.SerializeToString(deterministic=True)
    skeleton.ClearField("graph")
    records = [len(head) + _bytes_size(_TENSOR_RAW_DATA, values.nbytes) for head, values in tensors]
    total = len(graph) + sum(len(_record_header(_GRAPH_INITIALIZER, size)) + size for size in records)
    with replacing(path) as file:
        file.write(skeleton.SerializeToString(deterministic=True))
        file.write(_record_header(_MODEL_GRAPH, total) + graph)
        for (head, values), size in zip(tensors, records, strict=True):
            file.write(_record_header(_GRAPH_INITIALIZER, size) + head)
            file.write(_record_header(_TENSOR_RAW_DATA, values.nbytes))
            _write_array(file, values)
    return [path]


def _write_external(path: Path, skeleton: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> list[Path]:
    data_path = path.with_name(path.name + ".data")
    with replacing(data_path) as file:
        for name, values in weights.items():
            file.write(b"\0" * (-file.tell() % 4096))  # page-aligned, so that runtimes can map it
            skeleton.graph.initializer.append(external_tensor(name, values, data_path.name, file.tell()))
            _write_array(file, values)
    with replacing(path) as file:
        file.write(skeleton.SerializeToString(deterministic=True))
    return [path, data_path]


def external_tensor(name: str, values: np.ndarray, location: str, offset: int) -> onnx.TensorProto:
    """A TensorProto whose data lies in the file `location`, from `offset` on."""
    tensor = onnx.TensorProto.FromString(_tensor_header(name, values))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", values.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def refuse_folder(path: Path) -> None:
    """Raise NncError where a file can't be written because a folder is there: before anything is computed for it."""
    if path.is_dir():
        raise NncError(f"{path}: a folder, not a file", "give the name of a file in it")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """`with replacing(path) as file:` writes beside `path` and renames at the end; on any error the old file stays.

    A link stays one, and the file that it leads to is replaced. What is no regular file, such as /dev/null, is written
    as it is.
    """
    refuse_folder(path)
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    place = Path(os.path.realpath(path))
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        _remove_parts_of_the_dead(place)
        with open(part, "wb") as file:
            yield file
        os.replace(part, place)
    except OSError as error:
        if error.filename in (None, str(part)):
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def _remove_parts_of_the_dead(place: Path) -> None:
    """Remove what processes that were killed have written beside `place`."""
    for part in place.parent.glob(f".{glob.escape(place.name)}.*.part"):
        process = part.name.split(".")[-2]
        if process.isdecimal() and not _is_alive(int(process)):
            with suppress(OSError):  # gone meanwhile, or another user's
                part.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # which sends no signal
    except PermissionError:  # somebody else's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _tensor_header(name: str, values: np.ndarray) -> bytes:
    data_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    return onnx.TensorProto(dims=values.shape, data_type=data_type, name=name).SerializeToString(deterministic=True)


def _write_array(file: IO[bytes], values: np.ndarray) -> None:
    file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def _bytes_size(field: int, length: int) -> int:
    return len(_record_header(field, length)) + length


def _record_header(field: int, length: int) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Malformed(Exception):
    pass


def _fields(data: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, start and end of the payload, start of the record) of each field of a message.

    The number is 0 for a field that is neither text, bytes nor a message.
    """
    while position < end:
        begin = position
        key, position = _read_varint(data, position, end)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            start, position = position, _read_varint(data, position, end)[1]
        elif kind == _BYTES:
            length, start = _read_varint(data, position, end)
            position = start + length
        elif kind in (_FIXED32, _FIXED64):
            start, position = position, position + (4 if kind == _FIXED32 else 8)
        else:
            raise _Malformed
        if position > end or field == 0:
            raise _Malformed
        yield field if kind == _BYTES else 0, start, position, begin


def _read_varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
    raise _Malformed
