"""Packed arrays: every bit comes back, near the entropy, in the same bytes every time."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import graph as graphs
from nnc import packing, testing

NET = """
net (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] y) <float[8, 8, 3, 3] V, float[8, 8, 3, 3] W>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, V)
    b = Relu(a)
    y = Conv<pads = [1, 1, 1, 1]>(b, W)
}
"""


def entropy_bytes(values: np.ndarray) -> float:
    """What codes of the single bytes take at least, those of each place with their own."""
    planes = np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, values.itemsize)
    counts = [np.unique(plane, return_counts=True)[1] for plane in planes.T]
    return sum(float(count @ np.log2(count.sum() / count)) for count in counts) / 8


def unpacked(pieces: list[packing.Piece], like: np.ndarray) -> np.ndarray:
    """The array that the pieces hold, as zlib reads it."""
    planes = np.zeros((like.size, like.itemsize), np.uint8)
    for piece in pieces:
        streams = piece.streams
        for byte in range(like.itemsize):
            decoder = zlib.decompressobj()
            planes[piece.start : piece.start + piece.count, byte] = np.frombuffer(decoder.decompress(streams), np.uint8)
            streams = decoder.unused_data
        assert streams == b""
    return planes.reshape(-1).view(like.dtype).reshape(like.shape)


@settings(deadline=None)
@given(
    st.sampled_from(["int8", "uint8", "bool", "float16", "int32", "float32", "int64", "float64"]),
    st.lists(st.integers(0, 30), min_size=0, max_size=4),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_every_bit_comes_back(dtype: str, shape: list[int], seed: int, transposed: bool) -> None:
    values = np.random.default_rng(seed).normal(0, 30, shape).astype(dtype)
    values = values.T if transposed else values
    assert unpacked(packing.pack(values), values).tobytes() == values.tobytes()


@pytest.mark.parametrize("special", [np.nan, -np.inf, -0.0, 1e-45])
def test_bits_of_special_floats_come_back(special: float) -> None:
    values = np.full(5000, special, np.float32)
    values.view(np.uint32)[::7] ^= 1
    assert unpacked(packing.pack(values), values).tobytes() == values.tobytes()


def test_large_arrays_are_cut_into_pieces() -> None:
    values = np.random.default_rng(0).normal(0, 4, 600_001).astype(np.int8)
    pieces = packing.pack(values)
    assert len(pieces) == 3
    assert [(a.start + a.count) for a in pieces] == [*(b.start for b in pieces[1:]), values.size]
    assert np.array_equal(unpacked(pieces, values), values)


@pytest.mark.parametrize(("spread", "dtype"), [(2, np.int8), (30, np.int8), (1, np.float16), (1, np.float32)])
def test_trained_numbers_come_near_their_entropy(spread: float, dtype: type) -> None:
    values = np.random.default_rng(0).normal(0, spread, 400_000).astype(dtype)
    bound, packed = entropy_bytes(values), packing.packed_bytes(values)
    assert bound <= packed < 1.03 * bound


def test_noise_is_stored() -> None:
    values = np.random.default_rng(0).integers(0, 256, 500_000, np.uint8)
    assert values.nbytes < packing.packed_bytes(values) < 1.0005 * values.nbytes


def test_what_repeats_is_less_than_its_entropy() -> None:
    rng = np.random.default_rng(0)
    rows = np.tile(rng.standard_normal(500).astype(np.float32), 100)
    assert packing.packed_bytes(rows) < 0.1 * entropy_bytes(rows)
    sparse = (rng.standard_normal(100_000) * (rng.random(100_000) < 0.02) * 20).astype(np.int8)
    assert packing.packed_bytes(sparse) < 0.06 * sparse.nbytes  # one bit for each would be 0.125


def test_same_bytes_every_time() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    assert packing.pack(values) == packing.pack(values.copy())


# -- what a graph says


def test_marks_travel_with_the_model(tmp_path: Path) -> None:
    graph = testing.graph(NET)
    assert packing.marked(graph) == frozenset()
    packing.mark(graph, ["W"])
    graphs.save(graphs.copy(graph), tmp_path / "m.onnx", {"another": "entry"})
    read = graphs.load(tmp_path / "m.onnx")
    assert packing.marked(read) == {"W"}
    assert packing.marked_layers(read) == {"y"}
    packing.mark(read, [])
    assert read.metadata == {"another": "entry"}


@pytest.mark.parametrize("text", ["", "{", "3", "null", '{"W": 1}', '["Z"]'])
def test_marks_of_somebody_else_mean_nothing(text: str) -> None:
    graph = testing.graph(NET)
    graph.metadata = {packing.METADATA: text}
    assert packing.weight_bytes(graph) is None or packing.marked(graph) == {"W"}
    assert packing.marked_layers(graph) <= {"y"}


def test_bytes_of_a_graph_count_packed_and_others() -> None:
    graph = testing.graph(NET, W=np.zeros((8, 8, 3, 3), np.float32))
    assert packing.weight_bytes(graph) is None
    packing.mark(graph, ["W"])
    found = packing.weight_bytes(graph)
    assert found == 4 * 576 + packing.packed_bytes(np.zeros(576, np.float32))
    assert found < 4 * 576 + 100
