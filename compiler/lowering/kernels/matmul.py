"""Products of matrices that are both computed at run time, batch by batch, float32.

The same register tile as in `gemm.py`, over rows of the right matrix as they lie in memory. Tiles at the right and the
lower edge end with the matrix: they may compute again what the tile before has computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from nnc.lowering.kernels.gemm import even_share
from nnc.lowering.kernels.loops import TASKS, shared, unravel
from nnc.lowering.kernels.registers import Expr, RegisterTile, accumulate, lane, max_rows
from nnc.lowering.kernels.unit import Unit, lanes_of


@dataclass(frozen=True)
class Plan:
    """The register tile, and how many tiles of rows one task computes."""

    tile: RegisterTile
    row_tiles: int

    @property
    def columns(self) -> int:
        return self.tile.vectors * self.tile.lanes


def best_plan(batch: int, rows: int, columns: int, unit: Unit) -> Plan:
    """Two vectors per row where there are as many columns, and as many rows as the registers hold."""
    lanes = min(lanes_of(unit), columns)
    vectors = 2 if columns >= 2 * lanes else 1
    tile_rows = even_share(rows, max_rows(vectors, lanes, unit))
    tiles, panels = ceil(rows / tile_rows), ceil(columns / (vectors * lanes))
    wanted = ceil(TASKS * unit.threads / (batch * panels))
    return Plan(RegisterTile(tile_rows, vectors, lanes), ceil(tiles / min(wanted, tiles)))


def compute(A: te.Tensor, B: te.Tensor, plan: Plan) -> te.Tensor:
    """`A @ B` for A `[..., rows, depth]` and B `[..., depth, columns]`; axes before are equal, or 1 and broadcast.

    There are at least two columns: a product with one is a sum along rows.
    """
    batch = tuple(max(int(a), int(b)) for a, b in zip(A.shape[:-2], B.shape[:-2], strict=True))
    rows, columns = int(A.shape[-2]), int(B.shape[-1])

    def body(ins: list[Any], outs: list[Any]) -> Any:
        return _body(T.buffer_proxy(ins[0]), T.buffer_proxy(ins[1]), T.buffer_proxy(outs[0]), batch, plan)

    return te.extern([(*batch, rows, columns)], [A, B], body, name="matmul", dtype="float32")


def _body(A: Any, B: Any, out: Any, batch: Sequence[int], plan: Plan) -> Any:
    rows, depth, columns = int(A.shape[-2]), int(A.shape[-1]), int(B.shape[-1])
    tile, index = plan.tile, lane(plan.tile.lanes)
    tiles, panels = ceil(rows / tile.rows), ceil(columns / plan.columns)
    blocks = ceil(tiles / plan.row_tiles)
    with IRBuilder() as builder:
        with shared(prod(batch) * panels * blocks, prod(batch) * rows * columns * depth // 16) as task:
            *place, panel, block = unravel(task, (*batch, panels, blocks))
            first = T.bind(tirx.min(panel * plan.columns, columns - plan.columns))
            with T.serial(block * plan.row_tiles, tirx.min((block + 1) * plan.row_tiles, tiles)) as step:
                row = T.bind(tirx.min(step * tile.rows, rows - tile.rows))
                at, right = _place(A, place), _place(B, place)
                sums = accumulate(
                    tile,
                    (depth, 1),
                    left=lambda r, k, _: A[(*at, row + r, k)],
                    right=lambda c, k, _: B[(*right, k, first + c * tile.lanes + index)],
                )
                for r, values in enumerate(sums):
                    for c, value in enumerate(values):
                        out[(*place, row + r, first + c * tile.lanes + index)] = value
        return builder.get()


def _place(matrix: Any, place: Sequence[Expr]) -> list[Expr]:
    """The place of a matrix in a batch, the same one where it is broadcast."""
    return [0 if int(size) == 1 else at for at, size in zip(place, matrix.shape, strict=False)]
