"""Gradients: every rule against finite differences, networks against perturbations, losses against their formulas."""

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nnc import graph as graphs
from nnc import networks, rewrite, testing, verify
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

    In float64 where onnxruntime has the operators, else in float32. The inputs' values are odd multiples of 1/16, and
    no two of one tensor are alike: far from kinks and ties.
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
    [
        "Gelu(x)",
        'Gelu<approximate = "tanh">(x)',
        "Mish(x)",
        "GroupNormalization<num_groups = 3, stash_type = 11>(x, gamma, gamma)",
    ],
)
def test_layers_of_later_opsets(layer: str) -> None:
    before = net(f"y = {layer}", "x[2, 6, 3]", "float[6] gamma")
    check(before.replace("float y", "float[2, 6, 3] y"), opset=21)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize(
    "inputs", ["a[2, 3, 4], b[2, 3, 4]", "a[2, 3, 4], b[3, 1]", "a[1], b[2, 3]", "a[2, 1, 3], b[4, 1]"]
)
def test_broadcasting(op: str, inputs: str) -> None:
    check(net(f"y = {op}(a, b)", inputs))


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min"])
def test_any_number_of_inputs(op: str) -> None:
    check(
        net(f"shifted = Add(c, third) y = {op}(a, b, shifted)", "a[2, 3, 4], b[3, 1], c[1, 4]", "float third = {0.03}")
    )
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
    strides = each(1, draw(st.sampled_from([1, 3])))
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "dilations": dilations}
    # Otherwise onnxruntime pads negatively or refuses.
    if all(map(operator.le, strides, kernel)) and set(dilations) == {1} and draw(st.booleans()):
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


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_with_more_padding_than_window(stride: int) -> None:
    attrs = {"pads": [3, 0, 1, 2], "strides": [stride, 1]}
    check(net(layer("Conv", "x, W", attrs), "x[1, 2, 3, 4]", "float[2, 2, 2, 1] W"))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))
def test_conv_transpose(data: st.DataObject, rank: int, group: int, read: int, written: int) -> None:
    _, attrs = data.draw(windows(rank))
    sizes = data.draw(st.lists(st.integers(3, 4), min_size=rank, max_size=rank))
    if data.draw(st.booleans()):
        attrs["output_padding"] = [data.draw(st.integers(0, stride - 1)) for stride in attrs["strides"]]
    W = [group * read, written, *attrs["kernel_shape"]]
    shape = [1, group * read, *sizes]
    check_window(net(layer("ConvTranspose", "x, W", attrs | {"group": group}), f"x{shape}", f"float{W} W"))


@pytest.mark.parametrize("pad", ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
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


def test_max_pool_passes_the_gradient_to_the_first_maximum() -> None:
    graph = testing.graph(net("y = MaxPool<kernel_shape = [2], strides = [1]>(x)", "x[1, 1, 4]"))
    x, g = np.array([[[3, 3, 3, 1]]], np.float32), np.array([[[1, 10, 100]]], np.float32)
    _, found = Gradients(graph, ["x"], "outputs").run({"x": x}, cotangents={"y": g})
    np.testing.assert_array_equal(found["x"], [[[1, 10, 100, 0]]])


MOVEMENTS = {
    "x[2, 3, 4]": [
        "s = Shape(x) t = Slice(s, one, three) u = Concat<axis = 0>(t, minus) z = Reshape(x, u) y = Mul(z, z)",
        "z = Unsqueeze(x, minus) w = Squeeze(z, minus) v = Unsqueeze(w, one) y = Squeeze(v)",
        "y = Concat<axis = 1>(x, c, x)", "y = Concat<axis = -1>(c, x)", "y = Concat<axis = 0>(x)",
        "y, z = Split<axis = 2>(x)", "z, y = Split<axis = -1>(x, sizes)", "a, b = Split<axis = 2>(x) y = Mul(a, b)",
        "y = Expand(x, wider)", "y = Tile(x, wider)", "z = Cast<to = 11>(x) w = Mul(z, z) y = Cast<to = 1>(w)",
        "i = Cast<to = 7>(x) z = Cast<to = 1>(i) y = Add(x, z)",
        "s = Shape(x) n = Gather(s, one) m = Sub(n, one) y = Slice(x, zero, m, one)", 
        "y = Slice(x, one, three, one)", "y = Slice(x, minus, one, minus, minus)", "y = Slice(x, zero, last, two, two)",
        "y = Slice(x, starts, ends, axes, steps)", "y = Slice(x, one, minus)", "y = Slice(x, three, zero, one, minus)",
        "y = Gather<axis = 1>(x, once)", "y = Gather<axis = -1>(x, often)", "y = Gather(x, scalar)",
        "y = GatherElements<axis = 2>(x, places)", "y = GatherND(x, pairs)",
        "y = Pad(x, pads)", "y = Pad(x, crops, half)", 'y = Pad<mode = "edge">(x, pads)', 
        'y = Pad<mode = "reflect">(x, pads)',
        "z = Mul(x, x) n = ArgMax<axis = 1>(x) f = Cast<to = 1>(n) y = Sum(z, f)",
    ],
    "x[1, 8, 2, 3]": [
        "y = DepthToSpace<blocksize = 2>(x)", 'y = DepthToSpace<blocksize = 2, mode = "CRD">(x)',
        "a = Reshape(x, groups) b = Transpose<perm = [0, 2, 1, 3, 4]>(a) y = Reshape(b, shape)",
    ],
    "x[1, 2, 4, 6]": ["y = SpaceToDepth<blocksize = 2>(x)"],
}  # fmt: skip

SETTINGS = """float[2, 3, 4] c, float half = {0.5}, int64[1] minus = {-1}, int64[1] zero = {0}, int64[1] one = {1},
    int64[1] two = {2}, int64[1] three = {3}, int64[1] last = {9223372036854775807}, int64[2] sizes = {1, 3},
    int64[3] wider = {2, 3, 4}, int64[2] starts = {-1, 0}, int64[2] ends = {-9, 3}, int64[2] axes = {2, 1},
    int64[2] steps = {-3, 2}, int64[2] once = {2, 0}, int64[2, 3] often = {0, -1, 1, 0, 0, -4}, int64 scalar = {-1},
    int64[2, 3, 2] places = {0, 0, 1, -1, 2, 2, 3, 0, 1, 1, 0, 2}, int64[3, 2] pairs = {0, 1, 1, -1, 0, 1},
    int64[6] pads = {1, 0, 2, 0, 2, 1}, int64[6] crops = {0, -1, 2, 1, 0, -1}, int64[5] groups = {1, 2, 4, 2, 3},
    int64[4] shape = {1, 8, 2, 3}"""


@pytest.mark.parametrize(("x", "body"), [(x, body) for x, bodies in MOVEMENTS.items() for body in bodies])
def test_movement(x: str, body: str) -> None:
    check(net(body, x, SETTINGS))


def test_expand_adds_axes() -> None:
    check(net("y = Expand(x, shape)", "x[3, 1]", "int64[3] shape = {2, 1, 4}"))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 7),
    st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([-3, -2, -1, 1, 2, 3])), min_size=1),
)
def test_slice(size: int, bounds: list[tuple[int, int, int]]) -> None:
    for start, end, step in bounds:
        weights = f"int64[1] s = {{{start}}}, int64[1] e = {{{end}}}, int64[1] a = {{1}}, int64[1] t = {{{step}}}"
        text = net("y = Slice(x, s, e, a, t)", f"x[2, {size}]", weights)
        if testing.graph(text).outputs[0].shape[1]:
            check(text)


RESIZES = [
    ('mode = "nearest"', "2.0, 3.0"), ('mode = "nearest"', "0.5, 1.5"),
    ('mode = "linear"', "2.0, 2.0"), ('mode = "linear"', "0.6, 1.0"),
    ('mode = "linear", coordinate_transformation_mode = "align_corners"', "2.0, 1.7"),
    ('mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"', "2.0, 2.0"),
    ('mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"', "1.3, 0.5"),
    ('mode = "cubic"', "2.0, 1.5"), ('mode = "cubic", exclude_outside = 1, cubic_coeff_a = -0.5', "0.5, 2.0"),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "scales"), RESIZES)
def test_resize(attributes: str, scales: str) -> None:
    check(net(f"y = Resize<{attributes}>(x, , s)", "x[1, 2, 5, 4]", f"float[4] s = {{1.0, 1.0, {scales}}}"))
    sizes = "int64[4] s = {1, 2, 7, 9}, float[0] none"
    check(net(f"y = Resize<{attributes}>(x, , , s)", "x[1, 2, 5, 4]", sizes))
    check(net(f"y = Resize<{attributes}>(x, none, none, s)", "x[1, 2, 5, 4]", sizes))


def test_resize_of_later_opsets() -> None:
    body = 'y = Resize<mode = "linear", antialias = 1, axes = [2, -1]>(x, , s)'
    check(net(body, "x[1, 2, 5, 4]", "float[2] s = {0.5, 0.6}"), opset=18)


@pytest.mark.parametrize(
    ("body", "x", "scales", "opset", "reason"),
    [
        ("y = Resize(x, , s)", "x[2, 4]", "1.0, 1.1", 17, "by a factor that keeps a size"),
        ("y = Resize(x, , s)", "x[4]", "2.0", 17, "of a vector"),
        ('y = Resize<keep_aspect_ratio_policy = "not_larger">(x, , , n)', "x[2, 4]", "1.0, 1.0", 18, "aspect ratio"),
    ],
)
def test_resizes_without_gradient(body: str, x: str, scales: str, opset: int, reason: str) -> None:
    weights = f"float[{scales.count(',') + 1}] s = {{{scales}}}, int64[2] n = {{4, 8}}"
    with pytest.raises(NncError, match=reason):
        gradients(testing.graph(net(body, x, weights), opset=opset), ["x"], "outputs")


def test_resize_of_a_sequence() -> None:
    check(net('y = Resize<mode = "linear">(x, , s)', "x[2, 3, 4]", "float[3] s = {1.0, 1.0, 2.5}"))
    check(net("y = Resize(x, , s)", "x[2, 3, 4]", "float[3] s = {2.0, 2.0, 1.0}"))


@pytest.mark.parametrize(("dtype", "zero", "low", "high"), [("int8", -3, -125, 130), ("uint8", 128, -128, 127)])
def test_quantization_passes_straight_through_in_its_range(dtype: str, zero: int, low: int, high: int) -> None:
    body = "q = QuantizeLinear(x, s, z) f = Flatten(q) y = DequantizeLinear(f, s, z)"
    graph = testing.graph(net(body, "x[1, 4]", f"float s = {{0.5}}, {dtype} z = {{{zero}}}"))
    x = np.array([[(low - 1) / 2, low / 2, high / 2, (high + 1) / 2]], np.float32)
    _, found = Gradients(graph, ["x"], "outputs").run({"x": x}, cotangents={"y": np.full((1, 4), 3, np.float32)})
    np.testing.assert_array_equal(found["x"], [[0, 3, 3, 0]])


def test_quantization_per_channel() -> None:
    body = "q = QuantizeLinear<axis = 0>(x, s) y = DequantizeLinear<axis = 0>(q, t, )"
    graph = testing.graph(net(body, "x[2, 3]", "float[2] s = {0.5, 0.25}, float[2] t = {1.0, 0.75}"))
    x = np.array([[1, 2, -1], [3, 4, 70]], np.float32)
    _, found = Gradients(graph, ["x"], "outputs").run({"x": x}, cotangents={"y": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(found["x"], [[2, 2, 0], [3, 3, 0]])


def batched(model: onnx.ModelProto, batch: int) -> gs.Graph:
    """A reference network with another batch size."""
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    return graphs.from_model(model)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    z = logits.reshape(len(labels), -1).astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(labels)), labels]).sum())


def perturbed(graph: gs.Graph, name: str) -> gs.Graph:
    """The graph with an input 'change' that is added to a tensor wherever that is read."""
    copied = graphs.copy(graph)
    tensor = copied.tensors()[name]
    change = gs.Variable("change", tensor.dtype, tensor.shape)
    moved = gs.Variable(f"{name}.moved", tensor.dtype, tensor.shape)
    for reader in list(tensor.outputs):
        rewrite.replace_input(reader, tensor, moved)
    copied.nodes.append(gs.Node("Add", f"{name}.move", inputs=[tensor, change], outputs=[moved]))
    copied.inputs.append(change)
    graphs.sort(copied)
    return copied


def check_along_gradient(
    graph: gs.Graph, names: list[str], inputs: Mapping[str, np.ndarray], labels: np.ndarray, move: float
) -> None:
    """Compare the slope of the cross-entropy along its gradient with the gradient's length, for every tensor.

    The loss moves by `move`: more than rounding, and so little that hardly an activation meets a kink.
    """
    for name, g in Gradients(graph, names).run(inputs, labels)[1].items():
        length = np.square(g, dtype=np.float64).sum()
        forward, change = (Session(graph), name) if name in inputs else (Session(perturbed(graph, name)), "change")
        losses = []
        for step in (move / length, -move / length):
            moved = inputs.get(name, 0) + np.float32(step) * g
            outputs = forward.run({**inputs, change: moved})
            losses.append(cross_entropy(outputs[graph.outputs[0].name], labels))
        assert (losses[0] - losses[1]) / (2 * move) == pytest.approx(1, rel=0.02)


def middle(graph: gs.Graph, *shares: float) -> list[str]:
    """Outputs of convolutions, which have no ties as those of Relu have, at these shares of the way through."""
    names = [node.outputs[0].name for node in graph.nodes if node.op == "Conv"]
    return [names[int(share * (len(names) - 1))] for share in shares]


@pytest.mark.parametrize("name", [
    "vgg11_bn", "resnet18", "resnet50", "resnet56", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "ghostnet",
    "densenet121", "squeezenet1_1", "googlenet", "shufflenet_v1", "shufflenet_v2", "efficientnet_b0", "regnet_y_400mf",
])  # fmt: skip
def test_reference_networks(name: str) -> None:
    graph = batched(networks.build(name, input_size=32, width=0.25, classes=10), 2)
    names = ["input", *middle(graph, 0.5)]
    check_along_gradient(graph, names, verify.probe_inputs(graph, 0), np.array([3, 7]), move=3e-4)


CIFAR = ["cifar10_distiller_resnet20", "cifar10_mlperf_resnet8", "cifar10_resnet20", "cifar10_resnet56"]


@pytest.mark.data
@pytest.mark.parametrize("name", CIFAR)
def test_trained_networks(name: str, data: Path) -> None:
    graph = graphs.load(data / "models" / f"{name}.onnx", {"input": [4, 3, 32, 32]})
    names = ["input", *middle(graph, 0.2, 0.5, 0.8)]
    check_along_gradient(graph, names, verify.probe_inputs(graph, 0), np.array([3, 7, 0, 9]), move=1e-2)


@pytest.mark.data
def test_gradients_of_a_quantized_network_resemble_those_of_the_floating_one(data: Path) -> None:
    found = []
    for suffix in ("", "_qdq"):
        graph = graphs.load(data / "models" / f"imagenet_mobilenet_v2_1.0_224{suffix}.onnx")
        gradient = Gradients(graph, ["conv_51"]).run(verify.probe_inputs(graph, 0), np.array([7]))[1]["conv_51"]
        found.append(gradient.ravel())
    cosine = found[0] @ found[1] / np.linalg.norm(found[0]) / np.linalg.norm(found[1])
    assert cosine > 0.5


CLASSIFIER = """net (float[3, 4] x) => (float[3, 4] y) <float[4] b> { h = Add(x, b) z = Tanh(h) %s }"""
LABELS = np.array([2, 0, 3])
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)

ENDS = [
    "y = Identity(z)",
    "y = Softmax(z)",
    "y = LogSoftmax(z)",
    "p = Softmax<axis = 1>(z) q = Reshape(p, shape) y = Identity(q)",
    "w = Unsqueeze(z, last) p = Softmax<axis = 1>(w) y = Squeeze(p, last)",
]


@pytest.mark.parametrize("end", ENDS)
def test_cross_entropy_is_at_the_logits(end: str) -> None:
    text = (CLASSIFIER % end).replace("<float[4] b>", "<float[4] b, int64[2] shape = {3, 4}, int64[1] last = {2}>")
    activations, found = Gradients(testing.graph(text), ["z", "h"]).run({"x": X}, LABELS)
    probabilities = np.exp(activations["z"]) / np.exp(activations["z"]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["z"], probabilities - np.eye(4)[LABELS], atol=1e-6)
    np.testing.assert_allclose(found["h"], found["z"] * (1 - activations["z"] ** 2), atol=1e-6)


def test_labels_are_drawn_from_the_softmax() -> None:
    graph = testing.graph("net (float[20000, 3] x) => (float[20000, 3] y) { y = Neg(x) }")
    logits = np.array([0.0, 1.0, -1.0], np.float32)
    inputs = {"x": np.tile(-logits, (20000, 1))}
    runner = Gradients(graph, ["y"], seed=1)
    first, second = (runner.run(inputs)[1]["y"] for _ in range(2))
    p = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(np.square(first).mean(axis=0), p * (1 - p), atol=0.01)  # Fisher information of logits
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, Gradients(graph, ["y"], seed=1).run(inputs)[1]["y"])


def test_samples_are_independent() -> None:
    one, three = testing.graph(CLASSIFIER.replace("[3, 4]", "[1, 4]") % ENDS[0]), testing.graph(CLASSIFIER % ENDS[0])
    _, together = Gradients(three, ["h"]).run({"x": X}, LABELS)
    alone = [Gradients(one, ["h"]).run({"x": X[[i]]}, LABELS[[i]])[1]["h"] for i in range(3)]
    np.testing.assert_allclose(together["h"], np.concatenate(alone), atol=1e-6)


BRANCHES = """net (float[2, 3] x) => (float[2, 3] y, float[2, 3] z, int64[2, 1] n)
    { a = Tanh(x) b = Neg(a) y = Add(a, b) z = Mul(a, a) unused = Exp(b) n = ArgMax<axis = 1>(unused) }"""


def test_outputs_and_readers_add_up() -> None:
    graph = testing.graph(BRANCHES)
    runner = Gradients(graph, ["a", "b", "y", "unused", "b"], "outputs")
    x, g = X[:2, :3], {"y": np.full((2, 3), 2, np.float32), "z": np.full((2, 3), 3, np.float32)}
    activations, found = runner.run({"x": x}, cotangents=g)
    np.testing.assert_allclose(found["a"], 6 * np.tanh(x), atol=1e-6)  # what comes through y cancels
    np.testing.assert_array_equal(found["b"], g["y"])
    np.testing.assert_array_equal(found["y"], g["y"])
    np.testing.assert_array_equal(found["unused"], np.zeros((2, 3)))
    np.testing.assert_array_equal(activations["b"], -activations["a"])
    _, found = runner.run({"x": x}, cotangents={"y": g["y"]})
    np.testing.assert_array_equal(found["a"], np.zeros((2, 3)))
    _, found = Gradients(graph, ["unused"], "outputs").run({"x": x}, cotangents=g)
    np.testing.assert_array_equal(found["unused"], np.zeros((2, 3)))


def test_results_are_float32() -> None:
    text = """net (float16[1, 2, 6, 6] x) => (float16[1, 4] y) <float16[4, 2, 3, 3] W> {
        a = Conv(x, W) b = Relu(a) c = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b) d = GlobalAveragePool(c)
        y = Flatten(d) }"""
    half, single = testing.graph(text), testing.graph(text.replace("float16", "float"))
    x = np.random.default_rng(0).standard_normal((1, 2, 6, 6)).astype(np.float16)
    activations, found = Gradients(half, ["x", "a"]).run({"x": x}, np.array([2]))
    expected = Gradients(single, ["x", "a"]).run({"x": x.astype(np.float32)}, np.array([2]))
    for name in ("x", "a"):
        assert activations[name].dtype == found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[1][name], atol=0.01)


def test_graph_stays_as_it_was_and_names_are_free() -> None:
    text = BRANCHES.replace("a = Tanh(x)", "a.gradient = Exp(x) a = Tanh(a.gradient)").replace("a.gradient", "a_g")
    graph = testing.graph(text)
    graph.tensors()["a_g"].name = "a.gradient"
    before = graphs.to_model(graph)
    extended = gradients(graph, ["a", "a.gradient"], "outputs")
    verify.check_invariants(extended)
    assert graphs.to_model(graph) == before
    assert [tensor.name for tensor in extended.outputs] == ["y", "z", "n", "a.gradient_1", "a.gradient.gradient"]
    assert [tensor.name for tensor in extended.inputs] == ["x", "y.cotangent", "z.cotangent"]


def test_every_rule_is_of_an_operator() -> None:
    assert [op for op in RULES if not onnx.defs.has(op)] == []


@pytest.mark.parametrize(
    ("body", "wanted", "loss", "reason"),
    [
        ("y = Neg(x)", "X", "outputs", "the graph has no tensor 'X'"),
        ("y = Mul(x, k)", "k", "outputs", "'k' is a constant"),
        ("n = ArgMax(x) y = Cast<to = 1>(n)", "n", "outputs", "'n' does not hold floats"),
        ("y = Neg(x)", "y", "cross-entropy", r"scores \[N, classes\], and 'y' is float32 \[2, 3, 4\]"),
        ("y = CumSum(x, axis)", "x", "outputs", "node 'y': no rule for the gradient of CumSum$"),
        ("y = Pow(k, x)", "x", "outputs", "'y': no rule for the gradient of Pow with respect to its input 1, 'x'$"),
        ("r = Reshape(x, f) y = Conv(r, r)", "x", "outputs", "gradient of Conv with respect to its input 1, 'r'"),
        ("m = ArgMax(x) n = Reshape(m, minus) y = Slice(x, n, n)", "x", "outputs", "shapes are not known"),
        ("y, n = TopK(x, axis)", "x", "outputs", "gradient of TopK$"),
        ('y = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, roi, s)', "x", "outputs", "of a crop"),
        ("y = Dropout(x, k, t)", "x", "outputs", "Dropout in training mode"),
    ],
)
def test_refusals(body: str, wanted: str, loss: Any, reason: str) -> None:
    weights = """float k = {0.5}, int64[1] axis = {1}, int64[4] f = {2, 3, 2, 2}, int64[1] minus = {-1}, float[6] roi,
        bool t, int64[6] pads = {0, 0, 0, 0, 0, 0}, float[3] s = {1.0, 1.0, 2.0}"""
    graph = testing.graph(net(body, "x[2, 3, 4]", weights), t=True)
    with pytest.raises(NncError, match=reason):
        gradients(graph, [wanted], loss)


def test_pads_that_the_model_computes() -> None:
    graph = testing.graph("net (float[2] x, int64[2] n) => (float[4] y) { p = Neg(n) y = Pad(x, p) }")
    with pytest.raises(NncError, match="gradient of Pad with 'p' that the model computes"):
        gradients(graph, ["x"], "outputs")


def test_operator_of_another_domain() -> None:
    before = '<ir_version: 8, opset_import: ["" : 17, "acme" : 1]> ' + net("y = acme.Relu(x)", "x[2, 3]")
    with pytest.raises(NncError, match=r"gradient of acme\.Relu") as caught:
        gradients(testing.graph(before), ["x"], "outputs")
    assert caught.value.hint is not None


def test_wrong_data() -> None:
    runner = Gradients(testing.graph(CLASSIFIER % ENDS[0]), ["h"])
    with pytest.raises(NncError, match="labels must be 3 integers"):
        runner.run({"x": X}, LABELS[:2])
    with pytest.raises(NncError, match="labels must be 3 integers"):
        runner.run({"x": X}, LABELS.astype(np.float32))
    with pytest.raises(NncError, match="from 0 to 3, not from 0 to 4"):
        runner.run({"x": X}, np.array([0, 4, 1]))
    with pytest.raises(NncError, match="cotangents are for the loss 'outputs'"):
        runner.run({"x": X}, LABELS, cotangents={"y": X})
    weighted = Gradients(testing.graph(CLASSIFIER % ENDS[0]), ["h"], "outputs")
    with pytest.raises(NncError, match="'Y', which is no output"):
        weighted.run({"x": X}, cotangents={"Y": X})
    with pytest.raises(NncError, match=r"must be \[3, 4\], not \[2, 4\]"):
        weighted.run({"x": X}, cotangents={"y": X[:2]})
    with pytest.raises(NncError, match="labels are for the loss 'cross-entropy'"):
        weighted.run({"x": X}, LABELS)
