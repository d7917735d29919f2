"""How products are shared among threads: within the unit's limits, and full where it can be."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import target
from nnc.lowering.gpu import product
from nnc.lowering.gpu.machine import machine
from nnc.lowering.gpu.tile import LANES, Shape, Tile, best_tile
from nnc.lowering.gpu.unit import Gpu, gpu_unit

UNITS = {}
for spec in ("qcs605:gpu", "jetson-xavier:gpu"):
    chosen = target.load(spec)
    UNITS[spec] = gpu_unit(chosen, machine(chosen))


def shared_bytes(tile: Tile, shape: Shape) -> int:
    staged = tile.depth * shape.lanes * (tile.group_rows + LANES * tile.group_vectors) * 4
    partial = (tile.slices - 1) * tile.size // tile.slices * tile.rows * tile.vectors * 16
    return max(staged, partial)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(UNITS)),
    st.integers(1, 50_000),
    st.integers(1, 512),
    st.integers(1, 600),
    st.sampled_from([1, 3, 9]),
    st.sampled_from([1, 4]),
)
def test_a_tile_keeps_to_the_limits_of_the_unit(
    spec: str, rows: int, vectors: int, blocks: int, taps: int, lanes: int
) -> None:
    unit, shape = UNITS[spec], Shape(rows, vectors, (blocks, taps, 1), lanes)
    tile = best_tile(shape, unit)
    assert 1 <= tile.size <= unit.most_threads
    assert shared_bytes(tile, shape) <= unit.shared_bytes
    assert tile.rows * tile.vectors <= unit.vectors_per_thread // 4, "sums leave registers for the operands"
    assert tile.slices <= blocks
    assert tile.depth == 0 or unit.stages


def test_operands_are_staged_only_where_the_target_says_how_much_memory_a_group_shares() -> None:
    shape = Shape(3136, 16, (16, 3, 3), 4)
    assert best_tile(shape, UNITS["jetson-xavier:gpu"]).depth > 0
    assert best_tile(shape, UNITS["qcs605:gpu"]).depth == 0


@pytest.mark.parametrize("spec", sorted(UNITS))
def test_every_load_is_used_many_times_in_a_large_product(spec: str) -> None:
    tile = best_tile(Shape(12544, 64, (64, 3, 3), 4), UNITS[spec])
    assert tile.rows * tile.vectors * LANES >= 16, "multiply-adds per step of a thread"


@pytest.mark.parametrize("spec", sorted(UNITS))
def test_few_outputs_of_a_long_depth_are_shared(spec: str) -> None:
    tile = best_tile(Shape(1, 250, (320,), 4), UNITS[spec])
    assert tile.slices >= 4, "one row of a fully connected layer has 250 vectors, and many threads want work"


def test_a_group_of_threads_is_as_large_as_the_target_allows_at_most() -> None:
    unit = Gpu(128, 96, 1, 0, 0, 1.0, most_threads=64, shared_bytes=2048, stages=True)
    shape = Shape(3136, 16, (16, 3, 3), 4)
    tile = best_tile(shape, unit)
    assert tile.size <= 64
    assert shared_bytes(tile, shape) <= 2048


def test_packed_weights_are_the_matrix_in_groups_of_columns() -> None:
    W = np.arange(5 * 11, dtype=np.float32).reshape(5, 11)
    tile = Tile(2, 1, (8, 2))
    packed = product.pack(W, tile)
    assert packed.shape == (ceil(11 / 8), 5, 2, 4)
    columns = packed.transpose(1, 0, 2, 3).reshape(5, 16)
    assert (columns[:, :11] == W).all()
    assert not columns[:, 11:].any()
