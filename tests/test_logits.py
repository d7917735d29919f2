"""What networks compute before the Softmax at their end."""

import pytest

from nnc import testing
from nnc.logits import before_softmax, logits

CLASSIFIER = """
net (float[2, 4] x) => (float y)
<int64[4] four = {2, 4, 1, 1}, int64[2] two = {1, 8}, int64[1] last = {1}, float step = {0.1}>
{ z = Tanh(x) %s }
"""


@pytest.mark.parametrize(
    ("end", "name"),
    [
        ("y = Softmax(z)", "z"),
        ("y = LogSoftmax<axis = 1>(z)", "z"),
        ("p = Softmax(z) y = Reshape(p, four)", "z"),
        ("p = Softmax(z) q = Cast<to = 10>(p) r = Cast<to = 1>(q) y = Identity(r)", "z"),
        ("p = Softmax(z) q = QuantizeLinear(p, step) y = DequantizeLinear(q, step)", "z"),
        ("w = Reshape(z, four) p = Softmax<axis = 1>(w) y = Flatten(p)", "w"),
        ("p = Softmax(z) y = Reshape(p, two)", "y"),  # two samples are one
        ("p = Softmax(z) y = Tanh(p)", "y"),
        ("y = Identity(z)", "y"),
    ],
)
def test_logits(end: str, name: str) -> None:
    graph = testing.graph(CLASSIFIER % end)
    assert logits(graph.outputs[0]).name == name
    assert [tensor.name for tensor in before_softmax(graph).outputs] == [name]
    assert [tensor.name for tensor in graph.outputs] == ["y"]


def test_outputs_of_the_same_logits_are_one() -> None:
    graph = testing.graph("net (float[2, 4] x) => (float y, float z) { y = Softmax(x) z = LogSoftmax(x) }")
    assert [tensor.name for tensor in before_softmax(graph).outputs] == ["x"]
