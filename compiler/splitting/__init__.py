"""What the passes share that split a layer into a chain of smaller ones: which layers, which ranks, at what cost.

A method of factorization (nnc.factorize) says which ranks a layer may have, what chain each of them is and what it
loses; `Split` does the rest. Costs are those of the whole network on the target: hollow copies of the graph, whose
layers are chains that take no memory, are measured and predicted, so that every figure counts in its surroundings.
"""

from nnc.splitting.places import Cost, Option, Place, Splits
from nnc.splitting.ranks import MOST_OPTIONS, Rank, largest, steps, thinned, undominated
from nnc.splitting.reasons import factor, no_layer, unfit
from nnc.splitting.shapes import chain_nodes, group_shape, grouped, held, replace_hollow, weight_shape
from nnc.splitting.split import Split, SvdSplit

__all__ = [
    "MOST_OPTIONS",
    "Cost",
    "Option",
    "Place",
    "Rank",
    "Split",
    "Splits",
    "SvdSplit",
    "chain_nodes",
    "factor",
    "group_shape",
    "grouped",
    "held",
    "largest",
    "no_layer",
    "replace_hollow",
    "steps",
    "thinned",
    "undominated",
    "unfit",
    "weight_shape",
]
