"""What the channels of blocks, and whole blocks, are worth to a network: what its outputs lose without them."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from nnc.bottlenecks.blocks import Block
from nnc.channels import Channels, Group
from nnc.compression import branches, elimination, importance
from nnc.compression.elimination import Ranking
from nnc.errors import NncError
from nnc.model.proto import is_standard
from nnc.rewrite import Context

#: Calibration data as `nnc.calibrate.samples` gives them, or none.
Samples: TypeAlias = Mapping[str, np.ndarray] | None


def rank(
    graph: gs.Graph, traced: Channels, groups: Sequence[Group], samples: Samples, context: Context
) -> list[Ranking]:
    """The order in which groups lose their channels, and what that costs.

    With samples, errors are shares of the energy of the outputs; without, what is lost of the weights, as information.
    """
    if not groups or samples is None:
        return importance.rank("l2", graph, traced, groups, None, context)
    return elimination.rank(graph, traced, groups, samples, context)


def without(
    graph: gs.Graph, left_out: Sequence[Block], blocks: Sequence[Block], samples: Samples, context: Context
) -> dict[str, float]:
    """What it costs to leave out each block of `left_out`, by name and counted as `rank` does, among all `blocks`.

    Raises NncError where there are samples, but no output on which networks can be compared.
    """
    if samples is None or not left_out:
        return {block.name: _information(block, blocks) for block in left_out}
    lost = branches.worth(graph, [block.branch for block in left_out], samples, context)
    if lost is None:
        raise NncError(
            "no output tells what blocks are worth: the data decide the shape of each",
            "leave 'drop' out of 'methods', or the calibration data",
        )
    return dict(zip((block.name for block in left_out), lost, strict=True))


def _information(block: Block, blocks: Sequence[Block]) -> float:
    """-log(1 - s) of the block's share s of the energy that the blocks of its stage add up."""
    stage = sum(_energy(each) for each in blocks if each.stage == block.stage)
    return -math.log1p(-min(_energy(block) / (stage or 1.0), 1 - 1e-9))


def _energy(block: Block) -> float:
    """Of what a block gives, as BatchNormalization scales it or else as its weights are."""
    last = block.y.inputs[0]
    scale = last if is_standard(last, "BatchNormalization") else block.project
    return float(np.square(scale.inputs[1].values, dtype=np.float64).sum())
