"""Digests: short names of files, graphs and code, equal where the contents are."""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from nnc.model import proto


def digest(*parts: str | bytes | memoryview) -> str:
    """A hash over several parts, as hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def graph_digest(graph: gs.Graph) -> str:
    """A digest of a graph with its weights, as hexadecimal digits; every weight is read once."""
    skeleton, weights = proto.split(graph)
    state = hashlib.sha256(skeleton.SerializeToString(deterministic=True))
    for name, values in weights.items():
        state.update(f"{name} {values.dtype} {values.shape}\n".encode())
        state.update(array_bytes(values))
    return state.hexdigest()


@cache
def code_digest() -> str:
    """A digest of the sources of nnc and its passes: what it measures may change with each of them."""
    passes = find_spec("nnc.passes")  # in an editable install they are elsewhere
    folders = [str(Path(__file__).parent), *((passes and passes.submodule_search_locations) or ())]
    sources = {source for folder in folders for source in Path(folder).rglob("*.py")}
    return digest(*(source.read_bytes() for source in sorted(sources)))


def array_bytes(values: np.ndarray) -> memoryview:
    """The bytes of an array in C order, copied only where they lie in another."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
