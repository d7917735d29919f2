"""Checkpoints of a compile: the graph after each run of passes, so that unchanged passes are not run again.

A checkpoint is an ONNX skeleton whose weights are references: to the model that was compiled, or to a file named after
its content. Weights that no pass touched are therefore never copied, and those that several checkpoints share are
stored once.
"""

import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError

from nnc import graph as graphs
from nnc import wire
from nnc.rewrite import Pass

_SOURCE = "source"


def digest(*parts: str | bytes) -> str:
    """A hash over several parts, as hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Checkpoints:
    """The checkpoints in `folder` of compiling `source`; `inputs` is everything else that the result depends on."""

    def __init__(self, folder: Path, source: Path, inputs: str) -> None:
        self._folder, self._source, self._inputs = folder, source.absolute(), inputs
        self._used: set[Path] = set()

    def keys(self, passes: Sequence[Pass]) -> list[str]:
        """A key for the state after each pass: it depends on every pass before, its parameters and its source."""
        key, keys = digest(self._inputs), []
        for pass_ in passes:
            key = digest(key, pass_.name, pass_.model_dump_json(), file_digest(Path(inspect.getfile(type(pass_)))))
            keys.append(key)
        return keys

    def last(self, keys: Sequence[str]) -> tuple[int, gs.Graph, list[dict[str, Any]]] | None:
        """The furthest checkpoint that is there: how many passes it covers, the graph, and their rows."""
        for index in range(len(keys) - 1, -1, -1):
            try:
                rows = json.loads((self._folder / f"{keys[index]}.json").read_text("utf-8"))
                return index + 1, self._load(keys[index]), rows
            except (OSError, ValueError, KeyError, DecodeError):
                continue  # not there, or cut off: it is computed again
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

    def prune(self) -> None:
        """Delete what this compile neither wrote nor read."""
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            if path not in self._used:
                path.unlink()

    def _load(self, key: str) -> gs.Graph:
        path = self._folder / f"{key}.onnx"
        skeleton = onnx.ModelProto.FromString(path.read_bytes())
        self._used |= {path, path.with_suffix(".json")}
        weights = {
            tensor.name: self._read(tensor)
            for tensor in skeleton.graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }
        return graphs.join(skeleton, weights)

    def _read(self, tensor: onnx.TensorProto) -> np.ndarray:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = self._source if entries["location"] == _SOURCE else self._folder / entries["location"]
        self._used.add(path)
        start = int(entries["offset"])
        return wire.view(tensor, wire.map_file(path)[start : start + int(entries["length"])])

    def _locate(self, values: np.ndarray) -> tuple[str, int]:
        """Where the bytes of `values` are on disk; they are written there first when they are new."""
        found = wire.origin(values)
        if found and found[0].absolute() == self._source:
            return _SOURCE, found[1]
        if found and found[0].parent == self._folder:
            self._used.add(found[0])
            return found[0].name, found[1]
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        name = f"{digest(data)}.weights"  # type: ignore[arg-type]
        if not (self._folder / name).exists():
            self._write(name, data)
        self._used.add(self._folder / name)
        return name, 0

    def _write(self, name: str, content: bytes | memoryview) -> None:
        with wire.replacing(self._folder / name) as file:
            file.write(content)
        self._used.add(self._folder / name)
