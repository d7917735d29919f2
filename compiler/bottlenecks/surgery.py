"""Changes of the blocks of a graph: channels are copied or taken out, and blocks are left out."""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from nnc import calibrate, channels
from nnc import graph as graphs
from nnc.bottlenecks import worth
from nnc.bottlenecks.blocks import Block
from nnc.bottlenecks.changes import Wanted
from nnc.bottlenecks.places import Places, drop_refusal
from nnc.bottlenecks.worth import Samples
from nnc.channels import Channels
from nnc.compression import branches, importance, pruning, reconstruct
from nnc.compression.elimination import Ranking
from nnc.rewrite import Context


def widen(graph: gs.Graph, blocks: Sequence[Block], wanted: Wanted, context: Context) -> None:
    """Copy channels, in place, until blocks are as wide as wanted; the outputs stay the same."""
    traced = channels.trace(graph)
    places = Places(blocks, traced).of(wanted)
    wider = {key: (group, width) for key, (group, width) in places.items() if width > len(group.ids)}
    rankings = importance.rank("l2", graph, traced, [group for group, _ in wider.values()], None, context)
    copies: dict[int, int] = {}
    for (key, (_, width)), ranking in zip(wider.items(), rankings, strict=True):
        if reason := channels.refusal(graph, traced, ranking.ids.tolist()):
            context.skip(next(block for block in blocks if key in (block.name, block.stage)).depthwise, reason)
        else:
            copies |= _copies(ranking, width)
    if copies:
        channels.duplicate(graph, traced, copies, context.seed)


def _copies(ranking: Ranking, width: int) -> dict[int, int]:
    """How often each channel of a group shall be there: those that matter most once more often than the others."""
    each, more = divmod(width, len(ranking.ids))
    return {one: each + (place < more) for place, one in enumerate(ranking.ids[::-1].tolist())}


def narrow(graph: gs.Graph, blocks: Sequence[Block], wanted: Wanted, context: Context, refit: bool) -> None:
    """Take out the channels that matter least, and blocks, in place, until they are as wanted."""
    traced = channels.trace(graph)
    dropped = [block for block in wanted.dropped if not drop_refusal(block, graph)]
    gone = {block.name for block in dropped}
    places = Places(blocks, traced).of(wanted)
    narrower = [(group, width) for key, (group, width) in places.items() if width < len(group.ids) and key not in gone]
    if not narrower and not dropped:
        return  # without looking at the data
    samples = calibrate.samples(graph, context.calibration, context.seed) if context.calibration else None
    rankings = worth.rank(graph, traced, [group for group, _ in narrower], samples, context)
    lost = [each.ids[: len(each.ids) - width] for each, (_, width) in zip(rankings, narrower, strict=True)]
    ids = np.concatenate([np.zeros(0, np.int64), *lost])
    take_out(graph, traced, ids, dropped, samples, context, refit)


def take_out(
    graph: gs.Graph, traced: Channels, ids: np.ndarray, dropped: Sequence[Block], samples: Samples, context: Context,
    refit: bool,
) -> None:  # fmt: skip
    """Take channels and blocks out, in place, and fit what is behind them to what it gave before."""
    if not ids.size and not dropped:
        return
    original = graphs.copy(graph)
    changed = pruning.readers(traced.groups, ids)
    without = [block.branch for block in dropped]
    channels.remove(graph, traced, ids.tolist())
    changed |= branches.leave_out(graph, without)
    if samples and changed:
        kept = reconstruct.Kept(traced, frozenset(ids.tolist()))
        reconstruct.fit(original, graph, samples, context, kept=kept, changed=changed, layers=refit)
