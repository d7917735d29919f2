"""Weights entropy-coded: which ones a library holds packed, and the streams that it holds instead.

Numbers are cut into pieces, and a piece into its bytes: one zlib stream (RFC 1950) for all lowest bytes, one for the
next ones, and so on. Trained numbers repeat in no order that a dictionary finds, but some are more frequent than
others, so that Huffman's code alone, Z_HUFFMAN_ONLY, comes near the entropy.
"""

import json
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc import measure
from nnc.digests import array_bytes
from nnc.model import proto

#: The key of metadata_props that names the packed constants; ONNX carries it to whoever lowers the model.
METADATA = "nnc.packed"

#: Arrays of fewer bytes are not worth a table.
LEAST_BYTES = 1024

_PIECE = 2**18  # numbers that one thread decodes at a time
_SAMPLE = 2**13  # bytes that tell whether anything is repeated in order
_LONG_BLOCKS = 9  # of zlib's memory levels: fewer tables of codes
_NOISE = 0.99  # share of its bytes that a stream must get below


@dataclass(frozen=True)
class Piece:
    """`count` numbers from `start` on, as the streams of their bytes, lowest first."""

    start: int
    count: int
    streams: bytes


def pack(values: np.ndarray) -> list[Piece]:
    """The pieces of an array in C order."""
    planes = np.frombuffer(array_bytes(values), np.uint8).reshape(-1, values.itemsize)

    def piece(start: int) -> Piece:
        numbers = planes[start : start + _PIECE]
        return Piece(start, len(numbers), b"".join(_stream(plane.tobytes()) for plane in numbers.T))

    starts = range(0, len(planes), _PIECE)
    if len(starts) == 1:
        return [piece(0)]
    with ThreadPoolExecutor() as threads:  # zlib lets others run meanwhile
        return list(threads.map(piece, starts))


def packed_bytes(values: np.ndarray) -> int:
    """What the pieces of an array take."""
    return sum(len(piece.streams) for piece in pack(values))


def _stream(plane: bytes) -> bytes:
    """The shortest of three: stored, Huffman's code alone, and with repetitions."""
    sample = plane[:_SAMPLE]
    repeats = len(_deflated(sample)) < _NOISE * len(_deflated(sample, zlib.Z_HUFFMAN_ONLY))
    if not repeats and _entropy(np.frombuffer(plane, np.uint8)) > _NOISE:
        return zlib.compress(plane, 0)
    return _deflated(plane, zlib.Z_DEFAULT_STRATEGY if repeats else zlib.Z_HUFFMAN_ONLY)


def _deflated(plane: bytes, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    coder = zlib.compressobj(memLevel=_LONG_BLOCKS, strategy=strategy)
    return coder.compress(plane) + coder.flush()


def _entropy(plane: np.ndarray) -> float:
    """Of its bytes, as a share of 8 bits."""
    shares = np.bincount(plane, minlength=256) / max(len(plane), 1)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum() / 8)


# -- what a graph says


def layers(graph: gs.Graph) -> Iterator[tuple[gs.Node, list[gs.Constant]]]:
    """The layers and the learned constants that they read, themselves or through the DequantizeLinear in front."""
    for node in graph.nodes:
        if node.op != "DequantizeLinear" and (found := list(_learned(node))):
            yield node, found


def _learned(node: gs.Node) -> Iterator[gs.Constant]:
    yield from measure.parameters(node)
    for tensor in node.inputs:
        if tensor.inputs and tensor.inputs[0].op == "DequantizeLinear":
            yield from measure.parameters(tensor.inputs[0])


def mark(graph: gs.Graph, names: Iterable[str]) -> None:
    """Let the constants of these names be packed, and no others."""
    metadata = {key: value for key, value in proto.metadata(graph).items() if key != METADATA}
    marked = sorted(names)
    graph.metadata = {**metadata, METADATA: json.dumps(marked)} if marked else metadata


def marked(graph: gs.Graph) -> frozenset[str]:
    """The names of the constants that are to be packed; none where the metadata is somebody else's."""
    try:
        return frozenset(map(str, json.loads(proto.metadata(graph).get(METADATA, "[]"))))
    except (ValueError, TypeError):
        return frozenset()


def marked_layers(graph: gs.Graph) -> frozenset[str]:
    """The names of the layers that read such constants."""
    names = marked(graph)
    return frozenset(node.name for node, constants in layers(graph) if any(each.name in names for each in constants))


def weight_bytes(graph: gs.Graph) -> int | None:
    """Bytes of all constants that nodes read, those that are marked packed; None where none is."""
    names = marked(graph)
    constants = proto.constants(graph)
    if not any(each.name in names for each in constants):
        return None
    return sum(packed_bytes(t.values) if t.name in names else measure.tensor_bytes(t) for t in constants)
