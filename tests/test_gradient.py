"""Gradients: every rule against finite differences, networks against perturbations, losses against their formulas."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nnc import testing, verify
from nnc.errors import NncError
from nnc.gradient import Gradients, gradients
from nnc.gradient.rules import RULES
from nnc.session import Session


def net(body: str, x: str = "x[2, 3, 5, 4]", weights: str = "") -> str:
    """ONNX text of a graph with float inputs, as in 'a[2, 3], b[3]', and the output y."""
    inputs = ", ".join(f"float[{each.split('[')[1]} {each.split('[')[0]}" for each in x.replace("],", "]|").split("|"))
    return f"net ({inputs}) => (float y) <{weights}> {{ {body} }}"


def check(before: str, *, positive: bool = False, opset: int = 17, **weights: Any) -> None:
    """Compare the gradients of a random weighted sum of the outputs with central differences, element by element.

    In float64 where onnxruntime has the operators, else in float32. The inputs' values are odd multiples of 1/16, no two
    of one tensor alike: far from kinks and ties.
    """
    graph, step, tolerance = _most_exact(before, opset, weights)
    rng = np.random.default_rng(0)
    inputs = {tensor.name: _apart(rng, tensor, positive) for tensor in graph.inputs}
    forward = Session(graph)
    cotangents = {name: rng.standard_normal(y.shape) for name, y in forward.run(inputs).items() if y.dtype.kind == "f"}
    extended = gradients(graph, list(inputs), "outputs")
    verify.check_invariants(extended)
    _check_no_dead_nodes(extended)
    _, found = Gradients(graph, list(inputs), "outputs").run(inputs, cotangents=cotangents)
    for name in inputs:
        expected = _differences(forward, inputs, name, cotangents, step)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=tolerance * (1 + np.abs(expected).max()))


def _most_exact(before: str, opset: int, weights: Mapping[str, Any]) -> tuple[gs.Graph, float, float]:
    """The graph in the best precision there is, the step of the differences, and the tolerance."""
    try:
        graph = testing.graph(before.replace("float", "double"), opset=opset, **weights)
        Session(gradients(graph, [tensor.name for tensor in graph.inputs], "outputs"))
        return graph, 1e-5, 1e-6
    except NncError:
        return testing.graph(before, opset=opset, **weights), 2**-6, 1e-3


def _apart(rng: np.random.Generator, tensor: gs.Tensor, positive: bool) -> np.ndarray:
    count = int(np.prod(tensor.shape))
    multiples = rng.permutation(count) + (0 if positive else -count // 2)
    return ((2 * multiples + 1) / 16).reshape(tensor.shape).astype(tensor.dtype)


def _differences(
    forward: Session,
    inputs: Mapping[str, np.ndarray],
    name: str,
    cotangents: Mapping[str, np.ndarray],
    step: float,
) -> np.ndarray:
    result = np.empty(inputs[name].shape)
    for place in np.ndindex(result.shape):
        moved = []
        for offset in (step, -step):
            values = inputs[name].copy()
            values[place] += offset
            outputs = forward.run({**inputs, name: values})
            moved.append(sum(np.sum(g * outputs[key].astype(np.float64)) for key, g in cotangents.items()))
        result[place] = (moved[0] - moved[1]) / (2 * step)
    return result


def _check_no_dead_nodes(graph: gs.Graph) -> None:
    ends = {id(tensor) for tensor in graph.outputs}
    dead = [node.op for node in graph.nodes if not any(each.outputs or id(each) in ends for each in node.outputs)]
    assert not dead, f"nobody reads the outputs of {dead}"


ELEMENTWISE = [
    "Abs(x)", "Celu(x)", "Celu<alpha = 0.5>(x)", "Ceil(x)", "Cos(x)", "Elu(x)", "Elu<alpha = 0.7>(x)", "Erf(x)",
    "Exp(x)", "Floor(x)", "HardSigmoid(x)", "HardSigmoid<alpha = 0.3, beta = 0.4>(x)", "HardSwish(x)", "Identity(x)",
    "LeakyRelu(x)", "LeakyRelu<alpha = 0.3>(x)", "Neg(x)", "Relu(x)", "Round(x)", "Selu(x)",
    "Selu<alpha = 1.5, gamma = 1.2>(x)", "Sigmoid(x)", "Sign(x)", "Sin(x)", "Softplus(x)", "Softsign(x)", "Tanh(x)",
    "ThresholdedRelu(x)", "ThresholdedRelu<alpha = 0.5>(x)", "Dropout(x)", "Clip(x, low, high)", "Clip(x, low)",
    "Clip(x, , high)", "Clip(x)", "PRelu(x, slope)", "PRelu(x, one_slope)", "Pow(x, two)", "Pow(x, powers)",
    "Sub(high, x)", "Div(x, slope)", "Mul(x, slope)", "Add(x, slope)", "Max(x, low)", "Min(high, x)", "Sum(x)",
    "Mean(x)", "Max(x)", "Softmax(x)", "Softmax<axis = 1>(x)", "LogSoftmax(x)", "LogSoftmax<axis = -2>(x)",
    "Transpose(x)", "Transpose<perm = [1, 3, 0, 2]>(x)", "Flatten(x)", "Flatten<axis = -1>(x)",
    "GlobalAveragePool(x)", "GlobalMaxPool(x)",
    "LRN<size = 3, alpha = 0.5>(x)", "LRN<size = 5, alpha = 0.5, beta = 0.6, bias = 2.0>(x)",
    "InstanceNormalization(x, gamma, beta)", "BatchNormalization(x, gamma, beta, mean, var)",
    "BatchNormalization<epsilon = 0.1>(x, gamma, beta, mean, var)",
    "LayerNormalization(x, scale)", "LayerNormalization<axis = 1, epsilon = 0.1>(x, wide, wide)",
    "Where(mask, x, low)", "Where(mask, slope, x)",
]  # fmt: skip

WEIGHTS = """float[3, 1, 1] slope, float one_slope = {0.3}, float low = {-1.0}, float high = {1.25}, float two = {2.0},
    float[4] powers = {1.0, 2.0, 3.0, 4.0}, float[3] gamma, float[3] beta, float[3] mean, float[3] var, float[4] scale,
    float[3, 5, 4] wide, bool[5, 1] mask"""


@pytest.mark.parametrize("layer", ELEMENTWISE)
def test_layers(layer: str) -> None:
    check(net(f"y = {layer}", weights=WEIGHTS), mask=np.arange(5)[:, None] % 2 == 0, powers=[1, 2, 3, 4])


@pytest.mark.parametrize("layer", ["Log(x)", "Sqrt(x)", "Reciprocal(x)", "Div(one, x)", "Pow(x, half)"])
def test_layers_of_positive_numbers(layer: str) -> None:
    check(net(f"y = {layer}", weights="float one = {1.0}, float[1] half = {0.5}"), positive=True)


@pytest.mark.parametrize(
    "layer",
    ["Gelu(x)", 'Gelu<approximate = "tanh">(x)', "Mish(x)", "GroupNormalization<num_groups = 3, stash_type = 11>(x, gamma, gamma)"],
)
def test_layers_of_later_opsets(layer: str) -> None:
    before = net(f"y = {layer}", "x[2, 6, 3]", "float[6] gamma")
    check(before.replace("float y", "float[2, 6, 3] y"), opset=21)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("inputs", ["a[2, 3, 4], b[2, 3, 4]", "a[2, 3, 4], b[3, 1]", "a[1], b[2, 3]", "a[2, 1, 3], b[4, 1]"])
def test_broadcasting(op: str, inputs: str) -> None:
    check(net(f"y = {op}(a, b)", inputs))


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min"])
def test_any_number_of_inputs(op: str) -> None:
    check(net(f"shifted = Add(c, third) y = {op}(a, b, shifted)", "a[2, 3, 4], b[3, 1], c[1, 4]", "float third = {0.03}"))
    check(net(f"y = {op}(x, x)"))


def test_ties_share_the_gradient() -> None:
    graph = testing.graph(net("a = Max(x, one) y = ReduceMax(a)", "x[4]", "float one = {1.0}"))
    _, found = Gradients(graph, ["a", "x"], "outputs").run(
        {"x": np.array([1, 1, 0, 0.5], np.float32)}, cotangents={"y": np.ones(1, np.float32)}
    )
    np.testing.assert_array_equal(found["a"], [0.25] * 4)
    np.testing.assert_array_equal(found["x"], [0.125, 0.125, 0, 0])


REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Sum", "SumSquare"]


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("axes", [[1], [-1, 0], None])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions(op: str, axes: list[int] | None, keep: int) -> None:
    given = f"axes = {axes}, " if axes else ""
    weights = f"int64[{len(axes)}] axes = {{{str(axes)[1:-1]}}}" if axes else ""
    positive = op == "LogSum"
    old = f"y = Reduce{op}<{given}keepdims = {keep}>(x)"
    new = f"y = Reduce{op}<keepdims = {keep}>(x{', axes' if axes else ''})"
    check(net(new if op == "Sum" else old, "x[2, 3, 4]", weights if op == "Sum" else ""), positive=positive)
    check(net(new, "x[2, 3, 4]", weights), positive=positive, opset=18)


def test_reduction_of_nothing() -> None:
    check(net("y = ReduceSum<noop_with_empty_axes = 1>(x)", "x[2, 3]"))


@pytest.mark.parametrize("inputs", ["a[3, 4], b[4, 5]", "a[2, 3, 4], b[4, 5]", "a[3, 4], b[2, 4, 5]", "a[4], b[4, 5]",
    "a[3, 4], b[4]", "a[4], b[4]", "a[2, 1, 3, 4], b[5, 4, 2]", "a[2, 3, 4], b[4]", "a[4], b[2, 4, 3]"])  # fmt: skip
def test_matmul(inputs: str) -> None:
    check(net("y = MatMul(a, b)", inputs))


@pytest.mark.parametrize("ta", [0, 1])
@pytest.mark.parametrize("tb", [0, 1])
def test_gemm(ta: int, tb: int) -> None:
    a, b = ("a[3, 2]", "a[2, 3]")[1 - ta], ("b[3, 4]", "b[4, 3]")[tb]
    check(net(f"y = Gemm<alpha = 0.5, beta = 2.0, transA = {ta}, transB = {tb}>(a, b, c)", f"{a}, {b}, c[4]"))
    check(net(f"y = Gemm<transA = {ta}, transB = {tb}>(a, b)", f"{a}, {b}"))


@st.composite
def windows(draw: st.DrawFn, rank: int) -> tuple[list[int], dict[str, Any]]:
    """Sizes and the attributes of a window that fits into them."""

    def each(low: int, high: int, count: int = rank) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    kernel, dilations = each(1, 3), each(1, 2)
    sizes = [dilation * (k - 1) + 1 + more for dilation, k, more in zip(dilations, kernel, each(0, 3), strict=True)]
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": each(1, 3), "dilations": dilations}
    # Otherwise onnxruntime pads negatively or refuses.
    if all(map(operator.le, attrs["strides"], kernel)) and set(dilations) == {1} and draw(st.booleans()):
        attrs["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    else:
        attrs["pads"] = [min(pad, k - 1) for pad, k in zip(each(0, 2, 2 * rank), kernel * 2, strict=True)]
    return sizes, attrs


def check_window(before: str, opset: int = 17) -> None:
    """`check` of what onnxruntime computes in the shape that the standard gives it."""
    graph = testing.graph(before, opset=opset)
    (y,) = Session(graph).run(verify.probe_inputs(graph, 0)).values()
    assume(y.shape == tuple(graph.outputs[0].shape))
    check(before, opset=opset)


def layer(op: str, inputs: str, attrs: Mapping[str, Any]) -> str:
    words = [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in attrs.items()]
    return f"y = {op}<{', '.join(words)}>({inputs})"


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))
def test_conv(data: st.DataObject, rank: int, group: int, read: int, written: int) -> None:
    sizes, attrs = data.draw(windows(rank))
    W = [group * written, read, *attrs["kernel_shape"]]
    shape = [2 if rank < 3 else 1, group * read, *sizes]
    check_window(net(layer("Conv", "x, W, b", attrs | {"group": group}), f"x{shape}", f"float{W} W, float[{W[0]}] b"))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))
def test_conv_transpose(data: st.DataObject, rank: int, group: int, read: int, written: int) -> None:
    _, attrs = data.draw(windows(rank))
    sizes = data.draw(st.lists(st.integers(2, 3), min_size=rank, max_size=rank))
    if data.draw(st.booleans()):
        attrs["output_padding"] = [data.draw(st.integers(0, stride - 1)) for stride in attrs["strides"]]
    W = [group * read, written, *attrs["kernel_shape"]]
    shape = [1, group * read, *sizes]
    check_window(net(layer("ConvTranspose", "x, W", attrs | {"group": group}), f"x{shape}", f"float{W} W"))


@pytest.mark.parametrize("pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [[6, 9], [7, 8], [5, 7]])
def test_conv_transpose_of_a_given_size(pad: str, size: list[int]) -> None:
    attrs = {"output_shape": size, "strides": [2, 3], "auto_pad": pad}
    check(net(layer("ConvTranspose", "x, W", attrs), "x[1, 2, 3, 3]", "float[2, 2, 3, 2] W"))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 3), st.booleans(), st.sampled_from([17, 22]))
def test_max_pool(data: st.DataObject, rank: int, ceil: bool, opset: int) -> None:
    sizes, attrs = data.draw(windows(rank))
    check_window(net(layer("MaxPool", "x", attrs | {"ceil_mode": int(ceil)}), f"x{[2, 2, *sizes]}"), opset=opset)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 3), st.booleans(), st.booleans(), st.sampled_from([17, 22]))
def test_average_pool(data: st.DataObject, rank: int, ceil: bool, counted: bool, opset: int) -> None:
    sizes, attrs = data.draw(windows(rank))
    if opset == 17:
        attrs.pop("dilations")
    attrs |= {"ceil_mode": int(ceil), "count_include_pad": int(counted)}
    check_window(net(layer("AveragePool", "x", attrs), f"x{[2, 2, *sizes]}"), opset=opset)
