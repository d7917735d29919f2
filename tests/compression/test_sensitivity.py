"""What the outputs make of the errors of layers, against outputs that are computed with such errors."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import pipeline, target, testing
from nnc.compression import sensitivity
from nnc.session import Session

# fmt: off
NETS = {
    "convolutions": """
        net (float[1, 2, 4, 4] x) => (float y) <float[3, 2, 3, 3] V, float[4, 3, 1, 1] W, float[4, 5] U> {
            a = Conv<pads = [1, 1, 1, 1]>(x, V)
            r = Tanh(a)
            b = Conv(r, W)
            s = Sigmoid(b)
            m = GlobalAveragePool(s)
            f = Flatten(m)
            y = MatMul(f, U)
        }""",
    "features": """
        net (float[3, 6] x) => (float y) <float[6, 4] V, float[5, 4] W, float[5] B> {
            a = MatMul(x, V)
            r = Tanh(a)
            y = Gemm<transB = 1>(r, W, B)
        }""",
}
# fmt: on


def drawn(graph: gs.Graph, batches: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {each.name: rng.standard_normal((batches, *each.shape), np.float32) for each in graph.inputs}


def found(graph: gs.Graph, samples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    layers = [node for node in graph.nodes if node.op in ("Conv", "Gemm", "MatMul")]
    return sensitivity.output_sensitivity(graph, layers, samples, pipeline.Context(target.load("x86")))


def measured(graph: gs.Graph, samples: dict[str, np.ndarray], layer: gs.Node) -> np.ndarray:
    """The same by finite differences: positions of a sample are moved one by one, and all of a channel together."""
    axis, name = (1 if layer.op == "Conv" else len(layer.outputs[0].shape) - 1), layer.outputs[0].name
    tail = _from(graph, layer.outputs[0])
    whole, behind = Session(graph, outputs=[name]), Session(tail)

    def moved(values: np.ndarray, place: tuple[int | slice, ...]) -> float:
        pair = [values.copy(), values.copy()]
        pair[0][place] += 5e-3
        pair[1][place] -= 5e-3
        up, down = (behind.run({tail.inputs[0].name: each})["y"] for each in pair)
        return float(np.square((up - down) / 1e-2).sum())

    outputs, seen = [], []
    apart, together = np.zeros((2, layer.outputs[0].shape[axis]))
    for index in range(len(samples["x"])):
        results = whole.run({"x": samples["x"][index]})
        outputs.append(results["y"])
        values = results[name]
        seen.append(values)
        for place in np.ndindex(values.shape):
            apart[place[axis]] += moved(values, place)
        for sample, channel in np.ndindex(values.shape[0], values.shape[axis]):
            channels = [slice(None)] * values.ndim
            channels[axis], channels[0] = channel, sample
            together[channel] += moved(values, tuple(channels))
    y = np.moveaxis(np.concatenate(seen), axis, -1).reshape(
        -1, int(np.prod(seen[0].shape[1:])) // len(apart), len(apart)
    )
    share = y.mean(1).var(0) / y.var((0, 1))
    batch = graph.inputs[0].shape[0]
    energy = np.stack(outputs).var(0).sum() / batch
    return ((1 - share) * apart + share * together) / energy / len(samples["x"]) / batch


def _from(graph: gs.Graph, tensor: gs.Tensor) -> gs.Graph:
    """What is behind a tensor, which becomes the input."""
    start = next(index for index, node in enumerate(graph.nodes) if tensor in node.outputs)
    return gs.Graph(graph.nodes[start + 1 :], [tensor], graph.outputs, opset=graph.opset, ir_version=graph.ir_version)


@pytest.mark.parametrize("case", NETS)
def test_is_what_finite_differences_find(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "SAMPLES", 10**6)
    graph = testing.graph(NETS[case])
    few = drawn(graph, 40)
    many = {name: np.concatenate([values] * 40) for name, values in few.items()}  # the estimator is random
    result = found(graph, many)
    for layer in [node for node in graph.nodes if node.name in result][:-1]:
        np.testing.assert_allclose(result[layer.name], measured(graph, few, layer), rtol=0.15)


def test_the_last_layer_counts_its_share_of_the_output() -> None:
    graph = testing.graph(NETS["features"])
    samples = drawn(graph, 50)
    outputs = np.stack([Session(graph).run({"x": each})["y"] for each in samples["x"]])
    result = found(graph, samples)["y"]
    np.testing.assert_allclose(result, 3 / outputs.var(0).sum(), rtol=1e-3)
    assert (result == result[0]).all()


@pytest.mark.parametrize(
    "end", ["y = Softmax(z)", "y = LogSoftmax(z)", "p = Softmax(z)\n q = Reshape(p, shape)\n y = Identity(q)"]
)
def test_a_softmax_at_the_end_does_not_count(end: str) -> None:
    plain = testing.graph(NETS["features"])
    text = NETS["features"].replace("y = Gemm", "z = Gemm").replace("W, B)\n", f"W, B)\n {end}\n")
    behind = testing.graph(text.replace("float[5] B>", "float[5] B, int64[3] shape = {3, 5, 1}>"))
    samples = drawn(plain, 20)
    expected, result = found(plain, samples), found(behind, samples)
    np.testing.assert_array_equal(result["a"], expected["a"])


def test_outputs_count_alike_whatever_their_scale() -> None:
    text = """net (float[1, 6] x) => (float y, float z) <float[6, 4] V, float[6, 4] W, float k> {
        a = MatMul(x, V)
        b = MatMul(x, W)
        y = Tanh(a)
        t = Tanh(b)
        z = Mul(t, k)
    }"""
    samples = drawn(testing.graph(text, k=1.0), 30)
    small, large = (found(testing.graph(text, k=k), samples) for k in (1.0, 1000.0))
    for name in ("a", "b"):
        np.testing.assert_allclose(small[name], large[name], rtol=1e-3)


def test_empty_where_an_operator_has_no_gradient() -> None:
    text = """net (float[1, 6] x) => (float y) <float[6, 4] V, int64[3] s> {
        a = MatMul(x, V)
        square = Reshape(a, s)
        y = Det(square)
    }"""
    graph = testing.graph(text, s=[1, 2, 2])
    assert found(graph, drawn(graph, 3)) == {}


def test_integers_among_the_outputs() -> None:
    graph = testing.graph("""net (float[1, 6] x) => (float y, int64 best) <float[6, 4] V> {
        y = MatMul(x, V)
        best = ArgMax(y)
        }""")
    assert (found(graph, drawn(graph, 3))["y"] > 0).all()


def test_outputs_that_do_not_vary() -> None:
    graph = testing.graph("net (float[1, 6] x) => (float y) <float[6, 4] V> { y = MatMul(x, V) }")
    same = np.ones((5, 1, 6), np.float32)
    assert np.isfinite(found(graph, {"x": same})["y"]).all()
    assert np.isfinite(found(graph, {"x": 0 * same})["y"]).all()
