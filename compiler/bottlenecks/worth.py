"""What the channels of blocks, and whole blocks, are worth to a network: what its outputs lose without them."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.bottlenecks.blocks import Block, leave_out
from nnc.calibrate import Flow
from nnc.channels import Channels, Group
from nnc.compression import elimination, importance
from nnc.compression.elimination import Ranking
from nnc.errors import NncError
from nnc.logits import before_softmax
from nnc.model.proto import is_standard
from nnc.rewrite import Context

#: Calibration data as `nnc.calibrate.samples` gives them, or none.
Samples: TypeAlias = Mapping[str, np.ndarray] | None

#: Samples on which the outputs without a block are compared with those with it.
_COMPARED = 64


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
    batch = int(graph.inputs[0].shape[0])
    few = {name: values[: max(1, _COMPARED // batch)] for name, values in samples.items()}
    whole = before_softmax(graph)
    expected = {name: values for name, values in Flow(whole, few).outputs().items() if values.dtype.kind == "f"}
    if not expected:
        raise NncError(
            "no output tells what blocks are worth: the data decide the shape of each",
            "leave 'drop' out of 'methods', or the calibration data",
        )
    lost = {}
    for index, block in enumerate(left_out):
        context.progress("leave out blocks", index, len(left_out))
        rest = graphs.copy(whole)
        leave_out(rest, [block])
        found = Flow(rest, few).outputs()
        pairs = ((_by_sample(found[name], batch), _by_sample(values, batch)) for name, values in expected.items())
        lost[block.name] = float(np.mean([_share(*pair) for pair in pairs]))
    return lost


def _by_sample(values: np.ndarray, batch: int) -> np.ndarray:
    """[batches, rows, ...], of which each sample of a batch has as many -> [samples, values]."""
    samples = len(values) * batch if values.shape[1:2] and values.shape[1] % batch == 0 else len(values)
    return values.reshape(samples, -1)


def _share(found: np.ndarray, expected: np.ndarray) -> float:
    """The share of the variance over samples that is lost, since errors in the mean are up to biases.

    Where nothing varies, as over one sample, the share of the energy.
    """
    lost = found - expected
    if variance := expected.var(0, dtype=np.float64).sum():
        return float(lost.var(0, dtype=np.float64).sum() / variance)
    noise, energy = (np.square(each, dtype=np.float64).sum() for each in (lost, expected))
    return float(noise / (energy or 1.0))


def _information(block: Block, blocks: Sequence[Block]) -> float:
    """-log(1 - s) of the block's share s of the energy that the blocks of its stage add up."""
    stage = sum(_energy(each) for each in blocks if each.stage == block.stage)
    return -math.log1p(-min(_energy(block) / (stage or 1.0), 1 - 1e-9))


def _energy(block: Block) -> float:
    """Of what a block gives, as BatchNormalization scales it or else as its weights are."""
    last = block.y.inputs[0]
    scale = last if is_standard(last, "BatchNormalization") else block.project
    return float(np.square(scale.inputs[1].values, dtype=np.float64).sum())
