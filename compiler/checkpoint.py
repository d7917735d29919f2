"""Checkpoints of a compile: the graph after each run of passes, so that unchanged passes are not run again.

A checkpoint is an ONNX skeleton whose weights are references: to the files of the model that was compiled, or to a file
named after its content. Weights that no pass touched are therefore never copied, and those that several checkpoints
share are stored once.
"""

import inspect
import json
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError

from nnc import graph as graphs
from nnc.digests import array_bytes, code_digest, digest, file_digest
from nnc.errors import NncError
from nnc.model import wire
from nnc.rewrite import Pass

_SOURCE = "source"


class Checkpoints:
    """The checkpoints in `folder` of compiling `source`; `inputs` is everything else that the result depends on."""

    def __init__(self, folder: Path, source: Path, inputs: str) -> None:
        self._folder, self._source, self._inputs = folder, source.absolute(), inputs
        self._whole: set[Path] = set()  # weights that this process wrote or checked
        self._stored: dict[int, tuple[weakref.ref[np.ndarray], str]] = {}  # id of an array -> the array, its file

    def keys(self, passes: Sequence[Pass]) -> list[str]:
        """A key for the state after each pass: it depends on every pass before, its parameters and its source."""
        key, keys = digest(self._inputs, code_digest()), []
        for pass_ in passes:
            key = digest(key, pass_.name, pass_.model_dump_json(), file_digest(Path(inspect.getfile(type(pass_)))))
            keys.append(key)
        return keys

    def last(self, keys: Sequence[str]) -> tuple[gs.Graph, list[dict[str, Any]]] | None:
        """The furthest checkpoint that is there: the graph, and the rows of the passes up to it."""
        for key in reversed(keys):
            try:
                return self._load(key), json.loads((self._folder / f"{key}.json").read_text("utf-8"))
            except (OSError, ValueError, KeyError, DecodeError, NncError):
                continue  # not there, or damaged: it is computed again
        return None

    def save(self, key: str, graph: gs.Graph, rows: Iterable[Any]) -> None:
        """Keep the graph and the rows of all passes up to it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        skeleton, weights = graphs.split(graph)
        for name, values in weights.items():
            location, offset = self._locate(values)
            skeleton.graph.initializer.append(wire.external_tensor(name, values, location, offset))
        self._write(f"{key}.onnx", skeleton.SerializeToString(deterministic=True))
        self._write(f"{key}.json", json.dumps([asdict(row) for row in rows]).encode())

    def prune(self, keys: Iterable[str]) -> None:
        """Delete what the checkpoints of `keys` do not need; those that were not read stay for other parameters."""
        needed = {file for key in keys for file in self._files(self._folder / f"{key}.onnx")}
        for path in self._folder.glob("*"):
            if path not in needed:
                path.unlink()

    def _files(self, path: Path) -> list[Path]:
        """The files of a checkpoint: none where it is not there, or damaged."""
        try:
            skeleton = onnx.ModelProto.FromString(path.read_bytes())
        except (OSError, DecodeError):
            return []
        external = (entry for tensor in skeleton.graph.initializer for entry in tensor.external_data)
        names = {entry.value for entry in external if entry.key == "location" and "/" not in entry.value}
        return [path, path.with_suffix(".json"), *(self._folder / name for name in names)]

    def _load(self, key: str) -> gs.Graph:
        path = self._folder / f"{key}.onnx"
        skeleton = onnx.ModelProto.FromString(path.read_bytes())
        if not skeleton.opset_import:
            raise ValueError(f"{path} is cut off")
        weights = {
            tensor.name: self._read(tensor)
            for tensor in skeleton.graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }
        return graphs.join(skeleton, weights)

    def _read(self, tensor: onnx.TensorProto) -> np.ndarray:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        folder, _, name = entries["location"].rpartition("/")
        path = (self._source.parent if folder == _SOURCE else self._folder) / name
        start, length = int(entries["offset"]), int(entries["length"])
        values = wire.view(tensor, wire.map_file(path)[start : start + length])
        if folder != _SOURCE and name != _weights_name(values):
            raise ValueError(f"{path} is damaged")
        self._whole.add(path)
        return values

    def _locate(self, values: np.ndarray) -> tuple[str, int]:
        """Where the bytes of `values` are on disk; they are written there first when they are new."""
        origin = wire.origin(values)
        if origin and origin[0].absolute().parent == self._source.parent:
            return f"{_SOURCE}/{origin[0].name}", origin[1]
        known, name = self._stored.get(id(values), (None, ""))
        if known is None or known() is not values:
            name = _weights_name(values)
            self._stored[id(values)] = weakref.ref(values), name
            if self._folder / name not in self._whole:
                self._write(name, array_bytes(values))
        return name, 0

    def _write(self, name: str, content: bytes | memoryview) -> None:
        with wire.replacing(self._folder / name) as file:
            file.write(content)
        self._whole.add(self._folder / name)


def _weights_name(values: np.ndarray) -> str:
    """The file of an array, named after its content."""
    return f"{digest(array_bytes(values))}.weights"
