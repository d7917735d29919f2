"""In blocks of how many channels every image is kept: the layouts whose layers take the least time together.

Convolutions read blocks of any size and write blocks of any other; all other kernels keep the blocks that they get, and
what is added to an image is read in its blocks. So images fall into classes of equal blocks, and a convolution stands
between the class that it reads and the class that it writes. Nothing is ever converted between two convolutions, and
what an assignment costs is known as soon as the times of its layers are: see `nnc.lowering.pbqp`.

A pointwise convolution and the depthwise one behind it can be one kernel (`kernels/expand.py`): a pair takes what it
takes as one or as two, whichever is less.

Wide blocks have fewer, longer rows in memory, which prefetchers can follow, and whole cache lines per pixel; narrow
ones leave less of the last block empty.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import onnx_graphsurgeon as gs

from nnc import integers
from nnc.lowering import pbqp
from nnc.lowering.fuse import Group
from nnc.lowering.kernels.unit import Unit, lanes_of
from nnc.lowering.kinds.expansion import can_expand, expanding
from nnc.lowering.shapes import dtype_of
from nnc.lowering.workload import Choice, Workload

Blocks = Mapping[str, int]
"""Channels per block, by the name of a class."""

_PARTS = ("Concat", "Split", "Slice")
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def blocks_of(unit: Unit) -> list[int]:
    """The sizes of blocks to choose from, the default first: one, two or four vectors, at most a line of memory."""
    lanes = lanes_of(unit)
    return [lanes * count for count in (1, 2, 4) if lanes * count <= max(16, 2 * lanes)]


@dataclass(frozen=True)
class Layer:
    """A layer whose plan can be chosen, between the classes of the images that it reads and writes."""

    name: str
    """Of its node in the ONNX graph."""
    workload: Workload
    """In default blocks."""
    reads: str | None
    """None for an image that is read as ONNX has it, and where there is no image."""
    writes: str | None
    made: str
    """The tensor that it writes."""

    def variant(self, blocks: Blocks) -> Workload:
        """The layer's workload when classes have these blocks."""
        if self.writes is None:
            return self.workload
        return self.workload.in_blocks(blocks[self.reads] if self.reads else None, blocks[self.writes])


@dataclass(frozen=True)
class Layouts:
    """The classes of a graph's images, and the layers between them."""

    layers: tuple[Layer, ...]
    blocks: tuple[int, ...]
    """The sizes that there are, the default first."""
    members: Mapping[str, tuple[str, ...]]
    """The images of every class, by the class's name."""
    allowed: Mapping[str, tuple[int, ...]]
    """Those that a class can have, the default among them."""
    pairs: tuple[tuple[Layer, Layer], ...]
    """Layers that one kernel can compute."""

    @classmethod
    def of(
        cls, groups: Sequence[Group], pairs: Sequence[tuple[Group, Group]], choices: Sequence[Choice], unit: Unit
    ) -> Layouts:
        """`choices` are those of a lowering in default blocks, `pairs` those of `fuse.expansions`."""
        planned = {choice.writes: choice.workload.op for choice in choices}
        classes, blocks = nx.utils.UnionFind(), blocks_of(unit)
        allowed: dict[str, set[int]] = {}
        for group in groups:
            for tied in _tied(group, planned.get(group.outputs[0].name) == "conv2d"):
                classes.union(*(image.name for image in tied))
                for image in tied:
                    possible = {each for each in blocks if _keeps(group, image, each, lanes_of(unit), planned)}
                    allowed.setdefault(image.name, set(blocks)).intersection_update(possible)
        members = {min(names): tuple(sorted(names)) for names in classes.to_sets()}
        name_of = {image: name for name, images in members.items() for image in images}
        layers = tuple(_layer(choice, name_of) for choice in choices)
        common = {name: _common(blocks, [allowed[image] for image in images]) for name, images in members.items()}
        made = {layer.made: layer for layer in layers}
        ends = [tuple(made.get(group.outputs[0].name) for group in pair) for pair in pairs]
        known = [(one, other) for one, other in ends if one and other and can_expand(one.workload, other.workload)]
        return cls(layers, tuple(blocks), members, common, tuple(known))

    @property
    def default(self) -> dict[str, int]:
        return dict.fromkeys(self.allowed, self.blocks[0])

    def uniform(self, block: int) -> dict[str, int]:
        """Blocks of one size wherever they are possible."""
        return {name: block if block in blocks else self.blocks[0] for name, blocks in self.allowed.items()}

    def cheapest(self, time: Callable[[Workload], float]) -> dict[str, int]:
        """The blocks of all classes with the least sum of times; infinite times are never chosen over known ones.

        A layer of which no time is known tells no blocks apart.
        """
        costs = {name: np.zeros(len(blocks)) for name, blocks in self.allowed.items()}
        edges: dict[tuple[str, str], np.ndarray] = {}
        seconds = {one.made: other for one, other in self.pairs}
        behind = {other.made for _, other in self.pairs}

        def cost(layer: Layer, blocks: Blocks) -> float:
            """Of a layer, with the one that it is a pair with."""
            if layer.made in behind:
                return 0.0
            alone, second = time(layer.variant(blocks)), seconds.get(layer.made)
            return (
                alone
                if second is None
                else min(alone + time(second.variant(blocks)), time(_both(layer, second, blocks)))
            )

        def known(times: Any) -> np.ndarray:
            return np.zeros_like(times) if np.isinf(times).all() else np.asarray(times)

        for layer in self.layers:
            reads, writes = layer.reads, layer.writes
            if writes is None:
                continue
            if reads in (None, writes):
                costs[writes] += known([cost(layer, {writes: outs}) for outs in self.allowed[writes]])
                continue
            assert reads is not None
            matrix = known(
                [
                    [cost(layer, {reads: ins, writes: outs}) for outs in self.allowed[writes]]
                    for ins in self.allowed[reads]
                ]
            )
            edges[reads, writes] = edges.get((reads, writes), 0.0) + matrix
        chosen = pbqp.solve(costs, edges)
        return {name: self.allowed[name][place] for name, place in chosen.items()}

    def fused(self, blocks: Blocks, time: Callable[[Workload], float]) -> list[tuple[Layer, Layer, Workload]]:
        """The pairs that take less time as one kernel, and its workload."""
        return [
            (one, other, both)
            for one, other, both in self.expansions(blocks)
            if time(both) < time(one.variant(blocks)) + time(other.variant(blocks))
        ]

    def expansions(self, blocks: Blocks) -> list[tuple[Layer, Layer, Workload]]:
        """All pairs, and their workloads as one kernel."""
        return [(one, other, _both(one, other, blocks)) for one, other in self.pairs]

    def images(self, blocks: Blocks) -> dict[str, int]:
        """Channels per block of the images that are not in default blocks."""
        changed = {name: block for name, block in blocks.items() if block != self.blocks[0]}
        return {image: block for name, block in changed.items() for image in self.members[name]}


def _common(blocks: Sequence[int], allowed: Sequence[set[int]]) -> tuple[int, ...]:
    return tuple(block for block in blocks if all(block in each for each in allowed))


def _layer(choice: Choice, class_of: Mapping[str, str]) -> Layer:
    is_image = choice.workload.is_image
    reads = class_of.get(choice.reads) if is_image and choice.workload.reads_blocks else None
    writes = class_of.get(choice.writes) if is_image else None
    return Layer(choice.layers[0], choice.workload, reads, writes, choice.writes)


def _both(one: Layer, other: Layer, blocks: Blocks) -> Workload:
    return expanding(one.variant(blocks), other.variant(blocks))


def _tied(group: Group, is_free: bool) -> Iterator[list[gs.Tensor]]:
    """The images of a group that must be in equal blocks."""
    read = group.root.inputs[0]
    images = [t for t in [*group.inputs(), *group.outputs] if t.shape is not None and len(t.shape) == 4]
    if not is_free:
        yield images
        return
    yield [read]
    beside = [t for node in group.nodes for t in node.inputs[node is group.root :]]
    yield [t for t in images if t is not read or any(t is each for each in beside)]


def _keeps(group: Group, image: gs.Tensor, block: int, lanes: int, planned: Collection[str]) -> bool:
    """Whether a kernel can have an image in these blocks, where it can have it in blocks of `lanes`."""
    if block == lanes:
        return True
    if dtype_of(image) not in ("float32", "float16") or integers.dequantized(image) is not None:
        return False  # kernels of integers have no other blocks
    if group.root.op in _CONVOLUTIONS and group.outputs[0].name not in planned:
        return False
    channels = int(image.shape[1])
    return group.root.op not in _PARTS or channels % block == 0 or channels % lanes != 0
