"""What a network computes before the Softmax at its end, which hides how sure the network is of its answer."""

import math

import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.measure import has_shape
from nnc.model.proto import is_standard

#: Operators that show values in another shape or type.
_VIEWS = ("Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Unsqueeze")


def logits(output: gs.Tensor) -> gs.Tensor:
    """What the Softmax or LogSoftmax reads that `output` shows, in another shape or type perhaps; else the output.

    A sample has as many logits as values in the output.
    """
    shown = output
    while shown.inputs and is_standard(shown.inputs[0], *_VIEWS):
        shown = shown.inputs[0].inputs[0]
    if not shown.inputs or not is_standard(shown.inputs[0], "LogSoftmax", "Softmax"):
        return output
    found = shown.inputs[0].inputs[0]
    is_whole = has_shape(found, output) and math.prod(found.shape[1:]) == math.prod(output.shape[1:])
    return found if is_whole else output


def before_softmax(graph: gs.Graph) -> gs.Graph:
    """A copy whose outputs are the logits of those of `graph`."""
    copied = graphs.copy(graph)
    copied.outputs = list({tensor.name: tensor for tensor in map(logits, copied.outputs)}.values())
    return copied
