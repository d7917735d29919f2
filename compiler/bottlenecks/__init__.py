"""Inverted residual blocks, as MobileNetV2 has them: where they are in a graph, and how they are made other ones.

`blocks` finds them, `changes` reads what a recipe asks of them, `places` says which channels that are, `choice` chooses
within a budget by what `worth` measures, `surgery` does it, and `account` tells what became of every block.
"""

from nnc.bottlenecks.account import Before
from nnc.bottlenecks.blocks import Block, find
from nnc.bottlenecks.changes import Change, Wanted, wanted
from nnc.bottlenecks.choice import Choice, Method

__all__ = ["Before", "Block", "Change", "Choice", "Method", "Wanted", "find", "wanted"]
